//! What the tests of this crate share: QEMU's tools as judges, a deterministic source of
//! randomness, and a vector as the model of a disk.
#![allow(dead_code, reason = "each test file uses its part")]

use std::path::Path;
use std::process::{Command, Output};

use kvmbake_disk::Block;

/// Runs a program and returns its output; a missing program names its Debian package.
pub fn run(program: &str, arguments: &[&str]) -> Output {
    match Command::new(program).args(arguments).output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            panic!("{program} is missing: install the Debian package qemu-utils")
        }
        Err(error) => panic!("{program}: {error}"),
    }
}

/// Runs `qemu-img`, which must succeed, and returns what it printed.
pub fn qemu_img(arguments: &[&str]) -> String {
    let output = run("qemu-img", arguments);
    assert!(
        output.status.success(),
        "qemu-img {arguments:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// SplitMix64: the same numbers on every run.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn fill(&mut self, buf: &mut [u8]) {
        for chunk in buf.chunks_mut(8) {
            let bytes = self.next().to_le_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
    }

    /// A range of the disk: mostly small, sometimes large, half of the time aligned to 4 KiB.
    pub fn range(&mut self, disk_len: u64) -> (u64, usize) {
        let (unit, longest) = match self.below(4) {
            0 => (1, 3000),
            1 => (512, 40_000),
            2 => (4096, 300_000),
            _ => (65_536, 1_000_000),
        };
        let offset = self.below(disk_len) / unit * unit;
        let len = (self.below(longest) / unit + 1) * unit;
        (offset, len.min(disk_len - offset) as usize)
    }
}

/// Fills parts of a fresh model, leaving holes.
pub fn patchy(random: &mut Random, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut at = 0;
    while at < len {
        let run = (random.below(200_000) as usize + 1).min(len - at);
        if random.below(2) == 0 {
            random.fill(&mut bytes[at..at + run]);
        }
        at += run;
    }
    bytes
}

/// Does `count` random requests to the disk and to the model, comparing what is read.
///
/// After a discard the model takes over what the disk reads, having checked that each byte is
/// zero or as before.
pub fn exercise(disk: &dyn Block, model: &mut [u8], random: &mut Random, count: usize) {
    let disk_len = model.len() as u64;
    assert_eq!(disk.len(), disk_len);
    for step in 0..count {
        let (offset, len) = random.range(disk_len);
        let range = offset as usize..offset as usize + len;
        match random.below(10) {
            0..=3 => {
                random.fill(&mut model[range.clone()]);
                disk.write_at(&model[range], offset).unwrap();
            }
            4..=6 => {
                let mut buf = vec![0xee; len];
                disk.read_at(&mut buf, offset).unwrap();
                assert!(buf == model[range], "step {step}: read {len} at {offset:#x}");
            }
            7 => {
                disk.write_zeroes(offset, len as u64).unwrap();
                model[range].fill(0);
            }
            8 => {
                disk.discard(offset, len as u64).unwrap();
                let mut buf = vec![0xee; len];
                disk.read_at(&mut buf, offset).unwrap();
                for (at, (now, before)) in buf.iter().zip(&model[range.clone()]).enumerate() {
                    assert!(
                        *now == 0 || now == before,
                        "step {step}: byte {at} after discarding {len} at {offset:#x}"
                    );
                }
                model[range].copy_from_slice(&buf);
            }
            _ => disk.flush().unwrap(),
        }
    }
    assert_contents(disk, model);
}

/// Reads the whole disk and walks its extents: outside of them there are only zeroes.
pub fn assert_contents(disk: &dyn Block, model: &[u8]) {
    let mut buf = vec![0xee; model.len()];
    disk.read_at(&mut buf, 0).unwrap();
    if let Some(at) = buf.iter().zip(model).position(|(is, should)| is != should) {
        panic!("byte {at:#x} is {:#x} instead of {:#x}", buf[at], model[at]);
    }
    let mut at = 0;
    while let Some(extent) = disk.next_data(at).unwrap() {
        assert!(extent.len > 0 && extent.offset >= at && extent.end() <= disk.len());
        assert!(is_zero(&model[at as usize..extent.offset as usize]));
        at = extent.end();
    }
    assert!(is_zero(&model[at as usize..]), "data behind {at:#x}");
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| byte == 0)
}

/// How many bytes of the file the host stores.
pub fn allocated(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).unwrap().blocks() * 512
}

/// One line of `qemu-img map --output=json`.
#[derive(Debug)]
pub struct MapEntry {
    pub start: u64,
    pub length: u64,
    pub data: bool,
    pub zero: bool,
}

pub fn map_entries(json: &str) -> Vec<MapEntry> {
    let entries: serde_json::Value = serde_json::from_str(json).unwrap();
    entries
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| MapEntry {
            start: entry["start"].as_u64().unwrap(),
            length: entry["length"].as_u64().unwrap(),
            data: entry["data"].as_bool().unwrap(),
            zero: entry["zero"].as_bool().unwrap(),
        })
        .collect()
}
