//! Checksums of files, reading only what is not a hole.

use std::fmt::Write;

use md5::Digest;

use crate::buffer::Buffer;
use crate::error::Error;
use crate::mapped::ImageFile;
use crate::output::Cancel;

/// Bytes hashed between two looks at the wish to stop.
const STEP: usize = 256 << 10;

/// A checksum algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Algorithm {
    Sha512,
    Sha256,
    /// Only where a format's other readers know nothing better.
    Sha1,
    Md5,
}

enum Hasher {
    Sha(ring::digest::Context),
    Md5(md5::Md5),
}

impl Hasher {
    fn new(algorithm: Algorithm) -> Hasher {
        match algorithm {
            Algorithm::Sha512 => Hasher::Sha(ring::digest::Context::new(&ring::digest::SHA512)),
            Algorithm::Sha256 => Hasher::Sha(ring::digest::Context::new(&ring::digest::SHA256)),
            Algorithm::Sha1 => {
                let algorithm = &ring::digest::SHA1_FOR_LEGACY_USE_ONLY;
                Hasher::Sha(ring::digest::Context::new(algorithm))
            }
            Algorithm::Md5 => Hasher::Md5(md5::Md5::new()),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha(hasher) => hasher.update(bytes),
            Hasher::Md5(hasher) => hasher.update(bytes),
        }
    }

    fn finish(self) -> String {
        let digest = match self {
            Hasher::Sha(hasher) => hasher.finish().as_ref().to_vec(),
            Hasher::Md5(hasher) => hasher.finalize().to_vec(),
        };
        let mut hex = String::new();
        for byte in digest {
            // Writing to a string cannot fail.
            let _ = write!(hex, "{byte:02x}");
        }
        hex
    }
}

/// Returns the lower-case hexadecimal digest of the whole file, telling `advanced` how many bytes
/// were hashed. The holes of the file are hashed as zeroes without reading them.
pub(crate) fn checksum(
    image: &ImageFile,
    algorithm: Algorithm,
    cancel: Cancel<'_>,
    advanced: &dyn Fn(u64),
) -> Result<String, Error> {
    let mut hasher = Hasher::new(algorithm);
    let mut buffer = Buffer::new(STEP);
    let zeroes = vec![0; STEP];
    let mut at = 0;
    while at < image.len {
        let data = image.next_data(at)?;
        let (start, end) = data.map_or((image.len, image.len), |data| (data.offset, data.end()));
        let (start, end) = (start.min(image.len), end.min(image.len));
        while at < end {
            cancel.check()?;
            let limit = if at < start { start } else { end };
            let len = (limit - at).min(STEP as u64) as usize;
            if at < start {
                hasher.update(&zeroes[..len]);
            } else {
                image.read(&mut buffer[..len], at)?;
                hasher.update(&buffer[..len]);
            }
            at += len as u64;
            advanced(len as u64);
        }
    }
    Ok(hasher.finish())
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[test]
    fn checksums_of_sparse_files_are_coreutils() {
        use std::os::unix::fs::FileExt;
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().write_all_at(&[7; 5000], 3 << 20).unwrap();
        file.as_file().write_all_at(b"x", 9 << 20).unwrap();
        file.as_file().set_len((12 << 20) + 77).unwrap();
        let image = ImageFile::open(file.path()).unwrap();
        let never = AtomicBool::new(false);
        let cancel = Cancel { wish: &never, failed: &never };
        let sums = [
            ("sha512sum", checksum(&image, Algorithm::Sha512, cancel, &|_| {}).unwrap()),
            ("md5sum", checksum(&image, Algorithm::Md5, cancel, &|_| {}).unwrap()),
        ];
        for (program, sum) in sums {
            let output = Command::new(program)
                .arg(file.path())
                .output()
                .unwrap_or_else(|error| panic!("{program} (Debian: coreutils): {error}"));
            assert!(String::from_utf8(output.stdout).unwrap().starts_with(&format!("{sum} ")));
        }
    }
}
