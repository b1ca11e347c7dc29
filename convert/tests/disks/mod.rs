//! Source disks of known patterns, and the programs that judge what became of them.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use kvmbake_convert::{
    Error, Export, Format, OpenOptions, Options, Silent, Target, digest, export, export_with, open,
};
use kvmbake_disk::Block;

/// A small generator (xorshift64*): tests need variety that is the same in every run.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8 | 1).collect()
    }
}

/// A directory with a sparse raw source disk in it.
pub struct Workshop {
    pub directory: tempfile::TempDir,
    pub raw: PathBuf,
}

impl Workshop {
    /// Returns a workshop whose disk has `size` bytes, all zero.
    pub fn new(size: u64) -> Workshop {
        let directory = tempfile::tempdir().unwrap();
        let raw = directory.path().join("source.raw");
        File::create(&raw).unwrap().set_len(size).unwrap();
        Workshop { directory, raw }
    }

    /// Writes to the source disk.
    pub fn put(&self, offset: u64, bytes: &[u8]) {
        File::options().write(true).open(&self.raw).unwrap().write_all_at(bytes, offset).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Opens the source disk.
    pub fn source(&self) -> Arc<dyn Block> {
        open(&self.raw, &OpenOptions::with_format(Format::Raw)).unwrap()
    }

    /// Returns targets `prefix.<extension>`.
    pub fn targets(&self, formats: &[Format], prefix: &str) -> Vec<Target> {
        let target = |format: &Format| {
            Target::new(*format, self.path(&format!("{prefix}.{}", format.extension())))
        };
        formats.iter().map(target).collect()
    }

    /// Exports to files `prefix.<extension>`.
    pub fn try_export(&self, formats: &[Format], prefix: &str) -> Result<Export, Error> {
        let targets = self.targets(formats, prefix);
        export(&*self.source(), &targets, &Silent, &AtomicBool::new(false))
    }

    /// Exports, verified but without checksums, which take their time over terabytes of holes.
    pub fn export_quickly(&self, formats: &[Format], prefix: &str) -> Export {
        let options = Options { checksums: false, ..Options::default() };
        let targets = self.targets(formats, prefix);
        let never = AtomicBool::new(false);
        export_with(&*self.source(), &targets, &options, &Silent, &never).unwrap()
    }

    pub fn export(&self, formats: &[Format], prefix: &str) -> Export {
        self.try_export(formats, prefix).unwrap()
    }
}

/// QEMU's name for a format.
pub fn qemu_name(format: Format) -> &'static str {
    match format {
        Format::Vhd => "vpc",
        other => other.name(),
    }
}

/// Runs a program, failing with the package that has it when it is missing.
pub fn run(program: &str, package: &str, arguments: &[&str]) -> Output {
    Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program} (Debian package {package}): {error}"))
}

/// Runs a program that must succeed and returns what it printed.
pub fn succeed(program: &str, package: &str, arguments: &[&str]) -> String {
    let output = run(program, package, arguments);
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}\n{printed}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    printed
}

pub fn qemu_img(arguments: &[&str]) -> String {
    succeed("qemu-img", "qemu-utils", arguments)
}

/// Returns the virtual size that qemu-img sees.
pub fn qemu_virtual_size(path: &Path, format: Format) -> u64 {
    let info = qemu_img(&["info", "--output=json", "-f", qemu_name(format), text(path)]);
    let key = "\"virtual-size\": ";
    // The image comes last; what stands before is about its file.
    let at = info.rfind(key).unwrap() + key.len();
    info[at..].split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// CRC-32C bit by bit, as RFC 3720 describes it.
pub fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            if sum & 1 == 1 { sum >> 1 ^ 0x82f6_3b78 } else { sum >> 1 }
        })
    })
}

/// Makes the checksums of a VHDX right again, so that what they protect is reached.
pub fn seal_vhdx(bytes: &mut [u8]) {
    for (at, len) in
        [(64 << 10, 4096), (128 << 10, 4096), (192 << 10, 64 << 10), (256 << 10, 64 << 10)]
    {
        let part = &mut bytes[at..at + len];
        part[4..8].fill(0);
        let sum = crc32c(part);
        part[4..8].copy_from_slice(&sum.to_le_bytes());
    }
}

/// A disk of 3 MiB with data in three places.
pub fn three_places() -> Workshop {
    let workshop = Workshop::new(3 << 20);
    let mut random = Random::new(4);
    for offset in [0, 1 << 20, (2 << 20) + 70_000] {
        workshop.put(offset, &random.bytes(100_000));
    }
    workshop
}

/// Writes the bytes of a damaged image to a file.
pub fn damaged(workshop: &Workshop, bytes: &[u8]) -> PathBuf {
    let path = workshop.path("damaged");
    fs::write(&path, bytes).unwrap();
    path
}

/// Opens and reads everything; an error must name the file.
pub fn read_all(path: &Path, format: Format) -> Result<(), Error> {
    let start = Instant::now();
    let result =
        open(path, &OpenOptions::with_format(format)).and_then(|disk| digest(&*disk)).map(|_| ());
    assert!(start.elapsed() < Duration::from_secs(20), "{format}: {:?}", start.elapsed());
    if let Err(error) = &result {
        assert!(error.to_string().contains(text(path)), "{error}");
    }
    result
}
