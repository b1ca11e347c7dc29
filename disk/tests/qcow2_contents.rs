//! What is read and written through the qcow2 backend, with `qemu-img check` and
//! `qemu-img compare` as judges.

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kvmbake_disk::{Block, ErrorKind, Format, MemoryBlock, OpenOptions, create_overlay, open};
use support::{Random, allocated, assert_contents, exercise, patchy, qemu_img, text};
use tempfile::TempDir;

fn options(format: Format) -> OpenOptions {
    OpenOptions { format: Some(format), ..OpenOptions::default() }
}

fn writable(format: Format) -> OpenOptions {
    OpenOptions { writable: true, ..options(format) }
}

/// Writes `contents` as an image that qemu-img made with these options.
fn image(dir: &TempDir, name: &str, contents: &[u8], convert: &[&str]) -> PathBuf {
    let raw = dir.path().join(format!("{name}.source"));
    std::fs::write(&raw, contents).unwrap();
    let path = dir.path().join(name);
    let mut arguments = vec!["convert", "-f", "raw", "-O", "qcow2"];
    arguments.extend(convert);
    arguments.extend([text(&raw), text(&path)]);
    qemu_img(&arguments);
    std::fs::remove_file(raw).unwrap();
    path
}

/// Lets QEMU check the overlay and compare it, on its base, with the model.
fn judge(overlay: &Path, base: &Path, base_format: &str, model: &[u8]) {
    qemu_img(&["check", "-f", "qcow2", text(overlay)]);
    let expected = overlay.with_extension("expected");
    std::fs::write(&expected, model).unwrap();
    qemu_img(&["rebase", "-u", "-f", "qcow2", "-F", base_format, "-b", text(base), text(overlay)]);
    qemu_img(&["compare", "-f", "qcow2", "-F", "raw", text(overlay), text(&expected)]);
    std::fs::remove_file(expected).unwrap();
}

#[test]
fn overlays_behave_like_a_vector_and_satisfy_qemu() {
    let dir = TempDir::new().unwrap();
    let kinds: [(&str, &[&str]); 9] = [
        ("64k", &[]),
        ("512", &["-o", "cluster_size=512"]),
        ("2m", &["-o", "cluster_size=2M"]),
        ("v2", &["-o", "compat=0.10"]),
        ("compressed", &["-c"]),
        ("compressed-v2", &["-c", "-o", "compat=0.10,cluster_size=16k"]),
        ("zstd", &["-c", "-o", "compression_type=zstd"]),
        ("zstd-2m", &["-c", "-o", "compression_type=zstd,cluster_size=2M"]),
        ("extended", &["-o", "extended_l2=on,cluster_size=16k"]),
    ];
    for (seed, (name, convert)) in kinds.into_iter().enumerate() {
        let mut random = Random(seed as u64);
        // 512-byte sectors, but not whole clusters, so that the tail is exercised.
        let len = 5_000_192 + 512 * seed;
        let contents = patchy(&mut random, len);
        let base_path = image(&dir, name, &contents, convert);
        let base = open(&base_path, &options(Format::Qcow2)).unwrap();
        assert_contents(&*base, &contents);

        let mut model = contents.clone();
        model.resize(len + 3_000_320, 0);
        let path = dir.path().join(format!("{name}.overlay"));
        let overlay = create_overlay(&path, base, model.len() as u64).unwrap();
        exercise(&*overlay, &mut model, &mut random, 400);
        overlay.flush().unwrap();
        drop(overlay);
        judge(&path, &base_path, "qcow2", &model);
    }
}

#[test]
fn subclusters_compressed_clusters_and_the_base_are_told_apart() {
    let dir = TempDir::new().unwrap();
    let mut random = Random(11);
    let len = 4 << 20;
    let mut model = patchy(&mut random, len);
    std::fs::write(dir.path().join("base.raw"), &model).unwrap();
    let path = dir.path().join("image.qcow2");
    let options_of_image = "extended_l2=on,compression_type=zstd,cluster_size=128k";
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-F",
        "raw",
        "-b",
        text(&dir.path().join("base.raw")),
        "-o",
        options_of_image,
        text(&path),
        "5M",
    ]);
    model.resize(5 << 20, 0);
    let mut commands = Vec::new();
    for _ in 0..60 {
        let (offset, count) = (random.below(len as u64 / 512) * 512, (1 + random.below(40)) * 512);
        let byte = random.below(256) as u8;
        let range = offset as usize..(offset + count) as usize;
        if random.below(3) == 0 {
            commands.extend(["-c".to_owned(), format!("write -z {offset} {count}")]);
            model[range].fill(0);
        } else {
            commands.extend(["-c".to_owned(), format!("write -P {byte} {offset} {count}")]);
            model[range].fill(byte);
        }
    }
    // A whole cluster that nothing else touches, compressed.
    commands.extend(["-c".to_owned(), format!("write -c -P 77 {} 128k", (5 << 20) - (128 << 10))]);
    model[(5 << 20) - (128 << 10)..].fill(77);
    commands.extend(["-f".to_owned(), "qcow2".to_owned(), text(&path).to_owned()]);
    let arguments: Vec<_> = commands.iter().map(String::as_str).collect();
    support::run("qemu-io", &arguments);
    let allowed =
        OpenOptions { allow_backing: vec![dir.path().to_owned()], ..options(Format::Qcow2) };
    assert_contents(&*open(&path, &allowed).unwrap(), &model);
}

#[test]
fn overlays_stand_on_raw_files_and_memory_too() {
    let dir = TempDir::new().unwrap();
    let mut random = Random(7);
    let contents = patchy(&mut random, 3_000_000 / 512 * 512);
    let base_path = dir.path().join("base.raw");
    std::fs::write(&base_path, &contents).unwrap();
    let bases: [Arc<dyn Block>; 2] = [
        open(&base_path, &options(Format::Raw)).unwrap(),
        Arc::new(MemoryBlock::read_only(contents.clone())),
    ];
    for (number, base) in bases.into_iter().enumerate() {
        let path = dir.path().join(format!("{number}.overlay"));
        let mut model = contents.clone();
        let overlay = create_overlay(&path, base, model.len() as u64).unwrap();
        exercise(&*overlay, &mut model, &mut random, 300);
        drop(overlay);
        judge(&path, &base_path, "raw", &model);
    }
}

#[test]
fn existing_images_of_every_kind_can_be_written() {
    let dir = TempDir::new().unwrap();
    let kinds: [&[&str]; 6] = [
        &[],
        &["-o", "cluster_size=512"],
        &["-o", "cluster_size=4k,refcount_bits=1"],
        &["-o", "cluster_size=2M,refcount_bits=64"],
        &["-c", "-o", "lazy_refcounts=on"],
        &["-o", "compat=0.10"],
    ];
    for (seed, convert) in kinds.into_iter().enumerate() {
        let mut random = Random(100 + seed as u64);
        let mut model = patchy(&mut random, 4_000_256);
        let path = image(&dir, "image", &model, convert);
        let disk = open(&path, &writable(Format::Qcow2)).unwrap();
        exercise(&*disk, &mut model, &mut random, 300);
        drop(disk);
        qemu_img(&["check", "-f", "qcow2", text(&path)]);
        let disk = open(&path, &options(Format::Qcow2)).unwrap();
        assert_contents(&*disk, &model);
        let expected = dir.path().join("expected");
        std::fs::write(&expected, &model).unwrap();
        qemu_img(&["compare", "-f", "qcow2", "-F", "raw", text(&path), text(&expected)]);
    }
}

#[test]
fn raw_images_behave_like_a_vector() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("disk.raw");
    let mut random = Random(11);
    let mut model = patchy(&mut random, 3_000_001);
    std::fs::write(&path, &model).unwrap();
    let disk = open(&path, &writable(Format::Raw)).unwrap();
    exercise(&*disk, &mut model, &mut random, 400);
    drop(disk);
    assert_eq!(std::fs::read(&path).unwrap(), model);
}

#[test]
fn chains_of_backing_files_read_through_when_allowed() {
    let dir = TempDir::new().unwrap();
    let mut random = Random(21);
    let contents = patchy(&mut random, 2_000_384);
    let base = image(&dir, "base.qcow2", &contents, &["-c"]);
    let middle = dir.path().join("middle.qcow2");
    let top = dir.path().join("top.qcow2");
    // Version 2 has no zero clusters: what hides the base must be written.
    for (path, backing, compat) in
        [(&middle, "base.qcow2", "compat=0.10"), (&top, "middle.qcow2", "compat=1.1")]
    {
        let arguments = ["create", "-q", "-f", "qcow2", "-o", compat, "-F", "qcow2", "-b"];
        qemu_img(&[&arguments[..], &[backing, text(path)]].concat());
    }
    let mut model = contents.clone();
    let allowed =
        OpenOptions { allow_backing: vec![dir.path().to_owned()], ..writable(Format::Qcow2) };
    let disk = open(&middle, &allowed).unwrap();
    exercise(&*disk, &mut model, &mut random, 100);
    drop(disk);
    qemu_img(&["resize", "-f", "qcow2", text(&top), "3M"]);
    let disk = open(&top, &allowed).unwrap();
    model.resize(3 << 20, 0);
    assert_contents(&*disk, &model);
    exercise(&*disk, &mut model, &mut random, 200);
    drop(disk);
    judge(&top, &middle, "qcow2", &model);
    let unchanged = open(&base, &options(Format::Qcow2)).unwrap();
    assert_contents(&*unchanged, &contents);
}

#[test]
fn internal_snapshots_survive_writing() {
    let dir = TempDir::new().unwrap();
    let mut random = Random(31);
    let contents = patchy(&mut random, 2_000_384);
    let path = image(&dir, "image", &contents, &[]);
    qemu_img(&["snapshot", "-c", "before", text(&path)]);
    let mut model = contents.clone();
    let disk = open(&path, &writable(Format::Qcow2)).unwrap();
    exercise(&*disk, &mut model, &mut random, 200);
    drop(disk);
    qemu_img(&["check", "-f", "qcow2", text(&path)]);
    qemu_img(&["snapshot", "-a", "before", text(&path)]);
    let disk = open(&path, &options(Format::Qcow2)).unwrap();
    assert_contents(&*disk, &contents);
}

#[test]
fn external_data_files_are_followed_when_allowed() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("image.qcow2");
    let data_file = format!("data_file={}", text(&dir.path().join("image.data")));
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", &data_file, text(&path), "2M"]);
    let refused = open(&path, &options(Format::Qcow2)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NamesOtherFile);
    let allowed =
        OpenOptions { allow_backing: vec![dir.path().to_owned()], ..writable(Format::Qcow2) };
    let mut random = Random(41);
    let mut model = vec![0; 2 << 20];
    let disk = open(&path, &allowed).unwrap();
    exercise(&*disk, &mut model, &mut random, 200);
    drop(disk);
    qemu_img(&["check", "-f", "qcow2", text(&path)]);
    let expected = dir.path().join("expected");
    std::fs::write(&expected, &model).unwrap();
    qemu_img(&["compare", "-f", "qcow2", "-F", "raw", text(&path), text(&expected)]);
}

#[test]
fn discards_and_zeroes_free_clusters_and_the_hosts_space() {
    let dir = TempDir::new().unwrap();
    let contents = {
        let mut bytes = vec![0; 16 << 20];
        Random(51).fill(&mut bytes);
        bytes
    };
    let base: Arc<dyn Block> = Arc::new(MemoryBlock::read_only(contents));
    for operation in [<dyn Block>::discard, <dyn Block>::write_zeroes] {
        let path = dir.path().join("overlay");
        let overlay = create_overlay(&path, Arc::clone(&base), 64 << 20).unwrap();
        let empty = allocated(&path);
        let data = vec![0xab; 8 << 20];
        overlay.write_at(&data, 4 << 20).unwrap();
        overlay.write_at(&data, 32 << 20).unwrap();
        overlay.flush().unwrap();
        assert!(allocated(&path) >= 16 << 20);

        operation(&*overlay, 4 << 20, 8 << 20).unwrap();
        operation(&*overlay, 32 << 20, 8 << 20).unwrap();
        overlay.flush().unwrap();
        let left = allocated(&path) - empty;
        assert!(left < 512 << 10, "{left} bytes are left");
        // Everything behind the base is free already: this must not cost anything.
        operation(&*overlay, 16 << 20, 48 << 20).unwrap();
        overlay.flush().unwrap();
        assert!(allocated(&path) - empty < 512 << 10);
        let mut buf = vec![1; 8 << 20];
        overlay.read_at(&mut buf, 4 << 20).unwrap();
        assert!(buf.iter().all(|&byte| byte == 0), "the base shows through");

        // What was freed is used again before the file grows.
        let file_len = std::fs::metadata(&path).unwrap().len();
        overlay.write_at(&data, 20 << 20).unwrap();
        overlay.flush().unwrap();
        assert!(std::fs::metadata(&path).unwrap().len() <= file_len + (1 << 20));
        drop(overlay);
        qemu_img(&["check", "-f", "qcow2", text(&path)]);
        let map = qemu_img(&["map", "-f", "qcow2", "--output=json", text(&path)]);
        let stored: u64 = support::map_entries(&map)
            .iter()
            .filter(|entry| entry.data)
            .map(|entry| entry.length)
            .sum();
        assert_eq!(stored, 8 << 20, "{map}");
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn next_data_agrees_with_qemu_img_map() {
    let dir = TempDir::new().unwrap();
    let mut random = Random(61);
    let contents = patchy(&mut random, 6 << 20);
    let base_path = image(&dir, "base.qcow2", &contents, &["-o", "cluster_size=64k"]);
    let base = open(&base_path, &options(Format::Qcow2)).unwrap();
    let path = dir.path().join("overlay.qcow2");
    let overlay = create_overlay(&path, base, 8 << 20).unwrap();
    let mut model = contents;
    model.resize(8 << 20, 0);
    exercise(&*overlay, &mut model, &mut random, 60);
    let mut ours = Vec::new();
    let mut at = 0;
    while let Some(extent) = overlay.next_data(at).unwrap() {
        ours.push((extent.offset, extent.end()));
        at = extent.end();
    }
    drop(overlay);
    qemu_img(&["rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", text(&base_path), text(&path)]);
    let map = qemu_img(&["map", "-f", "qcow2", "--output=json", text(&path)]);
    let mut theirs: Vec<(u64, u64)> = Vec::new();
    for entry in support::map_entries(&map).iter().filter(|entry| !entry.zero) {
        match theirs.last_mut() {
            Some(last) if last.1 == entry.start => last.1 += entry.length,
            _ => theirs.push((entry.start, entry.start + entry.length)),
        }
    }
    assert_eq!(ours, theirs);
}

#[test]
fn several_threads_write_read_and_discard_side_by_side() {
    const THREADS: u64 = 4;
    const SHARE: u64 = (2 << 20) + 4096;
    let dir = TempDir::new().unwrap();
    let mut random = Random(71);
    let contents = patchy(&mut random, (THREADS * SHARE) as usize);
    let base_path = image(&dir, "base.qcow2", &contents, &["-c"]);
    let path = dir.path().join("overlay");
    let base = open(&base_path, &options(Format::Qcow2)).unwrap();
    let overlay = create_overlay(&path, base, THREADS * SHARE).unwrap();
    let mut model = contents;
    std::thread::scope(|scope| {
        for (number, part) in (0..).zip(model.chunks_mut(SHARE as usize)) {
            let window = Window { disk: overlay.clone(), start: number * SHARE, len: SHARE };
            scope.spawn(move || exercise(&window, part, &mut Random(80 + number), 250));
        }
    });
    assert_contents(&*overlay, &model);
    drop(overlay);
    judge(&path, &base_path, "qcow2", &model);
}

/// A part of a disk, at an offset that is no cluster bound.
struct Window {
    disk: Arc<dyn Block>,
    start: u64,
    len: u64,
}

impl Block for Window {
    fn len(&self) -> u64 {
        self.len
    }
    fn cluster_size(&self) -> u64 {
        512
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), kvmbake_disk::Error> {
        self.disk.read_at(buf, self.start + offset)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), kvmbake_disk::Error> {
        self.disk.write_at(buf, self.start + offset)
    }
    fn flush(&self) -> Result<(), kvmbake_disk::Error> {
        self.disk.flush()
    }
    fn discard(&self, offset: u64, len: u64) -> Result<(), kvmbake_disk::Error> {
        self.disk.discard(self.start + offset, len)
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), kvmbake_disk::Error> {
        self.disk.write_zeroes(self.start + offset, len)
    }
    fn next_data(&self, from: u64) -> Result<Option<kvmbake_disk::Extent>, kvmbake_disk::Error> {
        let end = self.start + self.len;
        let extent = self.disk.next_data(self.start + from)?;
        Ok(extent.filter(|extent| extent.offset < end).map(|extent| kvmbake_disk::Extent {
            offset: extent.offset - self.start,
            len: extent.end().min(end) - extent.offset,
        }))
    }
    fn is_read_only(&self) -> bool {
        false
    }
}

#[test]
fn overlays_are_private_new_and_at_least_as_large_as_their_base() {
    use std::os::unix::fs::PermissionsExt;
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("overlay");
    let base: Arc<dyn Block> = Arc::new(MemoryBlock::zeroes(1 << 20));
    let refused = create_overlay(&path, Arc::clone(&base), (1 << 20) - 512);
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Invalid);
    assert!(!path.exists());
    let overlay = create_overlay(&path, Arc::clone(&base), 1 << 20).unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let refused = create_overlay(&path, base, 1 << 20);
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert!(path.exists());
    let kinds = [
        overlay.read_at(&mut [0; 512], 1 << 20).unwrap_err().kind(),
        overlay.write_at(&[0; 512], u64::MAX - 8).unwrap_err().kind(),
        overlay.discard(0, (1 << 20) + 1).unwrap_err().kind(),
        overlay.write_zeroes(1 << 20, 1).unwrap_err().kind(),
    ];
    assert_eq!(kinds, [ErrorKind::OutOfRange; 4]);
}
