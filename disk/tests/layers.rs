//! Chains of overlays as the layers of a build are: frozen one after the other, opened again by
//! somebody who knows the chain, and judged by QEMU.

mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kvmbake_disk::{
    Block, ErrorKind, Format, MemoryBlock, OpenOptions, create_overlay, files, open, open_overlay,
};
use support::{Random, assert_contents, exercise, patchy, qemu_img, text};
use tempfile::TempDir;

/// Lets QEMU read the chain: each layer is given the name of the one below in a copy of its own.
fn judge(dir: &Path, base: &Path, layers: &[std::path::PathBuf], model: &[u8]) {
    let (mut below, mut format) = (base.to_owned(), "raw");
    for (index, layer) in layers.iter().enumerate() {
        let copy = dir.join(format!("judged-{index}"));
        std::fs::copy(layer, &copy).unwrap();
        qemu_img(&["check", "-f", "qcow2", text(&copy)]);
        qemu_img(&["rebase", "-u", "-f", "qcow2", "-F", format, "-b", text(&below), text(&copy)]);
        (below, format) = (copy, "qcow2");
    }
    let expected = dir.join("expected");
    std::fs::write(&expected, model).unwrap();
    qemu_img(&["compare", "-f", "qcow2", "-F", "raw", text(&below), text(&expected)]);
}

#[test]
fn a_chain_of_frozen_layers_is_read_again_and_satisfies_qemu() {
    let dir = TempDir::new().unwrap();
    let mut random = Random(11);
    let mut model = patchy(&mut random, 3_000_320);
    let base_path = dir.path().join("base.raw");
    std::fs::write(&base_path, &model).unwrap();
    let options = OpenOptions { format: Some(Format::Raw), ..OpenOptions::default() };
    let base = open(&base_path, &options).unwrap();
    model.resize(4_000_256, 0);

    let paths: Vec<_> = (0..4).map(|index| dir.path().join(format!("layer-{index}"))).collect();
    let (mut below, mut contents, mut lengths) = (Arc::clone(&base), Vec::new(), Vec::new());
    for path in &paths {
        let layer = create_overlay(path, below, model.len() as u64).unwrap();
        exercise(&*layer, &mut model, &mut random, 150);
        layer.freeze().unwrap();
        lengths.push(std::fs::metadata(path).unwrap().len());
        assert_eq!(layer.write_at(&[1], 0).unwrap_err().kind(), ErrorKind::ReadOnly);
        assert_contents(&*layer, &model);
        contents.push(model.clone());
        below = layer;
    }
    // While the makers still have them open, as another build would.
    let mut again = Arc::clone(&base);
    for (path, model) in paths.iter().zip(&contents) {
        again = open_overlay(path, again).unwrap();
        assert_contents(&*again, model);
    }
    drop((below, again));
    let after: Vec<u64> = paths.iter().map(|path| std::fs::metadata(path).unwrap().len()).collect();
    assert_eq!(after, lengths, "closing a frozen layer changes nothing");
    judge(dir.path(), &base_path, &paths, &model);
}

#[test]
fn a_layer_is_locked_until_it_is_frozen() {
    let dir = TempDir::new().unwrap();
    let base: Arc<dyn Block> = Arc::new(MemoryBlock::zeroes(1 << 20));
    let path = dir.path().join("layer");
    let layer = create_overlay(&path, Arc::clone(&base), 1 << 20).unwrap();
    let refused = open_overlay(&path, Arc::clone(&base)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Locked);
    layer.freeze().unwrap();
    open_overlay(&path, base).unwrap();
}

#[test]
fn a_layer_that_names_a_file_or_does_not_fit_its_base_is_refused() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("layer");
    qemu_img(&["create", "-q", "-f", "qcow2", text(&path), "1M"]);
    qemu_img(&["rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", "/etc/passwd", text(&path)]);
    let kind = |base: u64| {
        open_overlay(&path, Arc::new(MemoryBlock::zeroes(base as usize))).unwrap_err().kind()
    };
    assert_eq!(kind(1 << 20), ErrorKind::NamesOtherFile);
    qemu_img(&["rebase", "-u", "-f", "qcow2", "-b", "", text(&path)]);
    assert_eq!(kind(2 << 20), ErrorKind::Invalid);
}

#[test]
fn the_files_of_an_image_are_found_through_its_whole_chain() {
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("base.raw"), vec![7; 1 << 20]).unwrap();
    let make = |name: &str, backing: &str, format: &str| {
        let path = path(name);
        qemu_img(&["create", "-q", "-f", "qcow2", "-F", format, "-b", backing, text(&path)]);
    };
    make("middle.qcow2", "base.raw", "raw");
    make("top.qcow2", "middle.qcow2", "qcow2");
    let options =
        OpenOptions { allow_backing: vec![dir.path().to_owned()], ..OpenOptions::default() };
    let found = files(&path("top.qcow2"), &options).unwrap();
    let real = dir.path().canonicalize().unwrap();
    assert_eq!(found[0], path("top.qcow2"));
    assert_eq!(found[1..], [real.join("middle.qcow2"), real.join("base.raw")]);
    let refused = files(&path("top.qcow2"), &OpenOptions::default()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NamesOtherFile);
}

/// A disk that counts how often it is asked where its data is.
struct Asked(Arc<dyn Block>, AtomicU64);

impl Block for Asked {
    fn len(&self) -> u64 {
        self.0.len()
    }
    fn cluster_size(&self) -> u64 {
        self.0.cluster_size()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), kvmbake_disk::Error> {
        self.0.read_at(buf, offset)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), kvmbake_disk::Error> {
        self.0.write_at(buf, offset)
    }
    fn flush(&self) -> Result<(), kvmbake_disk::Error> {
        self.0.flush()
    }
    fn discard(&self, offset: u64, len: u64) -> Result<(), kvmbake_disk::Error> {
        self.0.discard(offset, len)
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), kvmbake_disk::Error> {
        self.0.write_zeroes(offset, len)
    }
    fn next_data(&self, from: u64) -> Result<Option<kvmbake_disk::Extent>, kvmbake_disk::Error> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.next_data(from)
    }
    fn is_read_only(&self) -> bool {
        self.0.is_read_only()
    }
}

#[test]
fn walking_the_data_of_a_chain_asks_the_base_as_often_as_walking_one_layer() {
    const SIZE: u64 = 16 << 20;
    let dir = TempDir::new().unwrap();
    let disk = MemoryBlock::zeroes(SIZE as usize);
    disk.write_at(&vec![1; SIZE as usize], 0).unwrap();
    let base = Arc::new(Asked(Arc::new(disk), AtomicU64::new(0)));
    let mut top: Arc<dyn Block> = Arc::clone(&base) as _;
    for layer in 0..5u64 {
        let overlay = create_overlay(&dir.path().join(layer.to_string()), top, SIZE).unwrap();
        // Every fifth cluster, so that each layer has gaps which the ones below fill.
        for cluster in (layer..SIZE >> 16).step_by(5) {
            overlay.write_at(&[2; 4096], cluster << 16).unwrap();
        }
        overlay.freeze().unwrap();
        top = overlay;
    }
    base.1.store(0, Ordering::Relaxed);
    let (mut at, mut data) = (0, 0);
    while let Some(extent) = top.next_data(at).unwrap() {
        (at, data) = (extent.end(), data + extent.len);
    }
    assert_eq!(data, SIZE);
    let asked = base.1.load(Ordering::Relaxed);
    assert!(asked <= 64, "the base was asked {asked} times");
}
