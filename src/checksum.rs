//! Checksums of whole files as profiles write them: `sha256:<hex>` and its kin.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};

use md5::Md5;
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha512};

const CHUNK: usize = 1 << 20;

/// The digest algorithms that a profile may use.
///
/// In the order of their strength.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Algorithm {
    /// MD5, 128 bits; guards against accidents only.
    Md5,
    /// SHA-1, 160 bits; guards against accidents only.
    Sha1,
    /// SHA-256.
    Sha256,
    /// SHA-512.
    Sha512,
}

impl Algorithm {
    const ALL: [Algorithm; 4] =
        [Algorithm::Md5, Algorithm::Sha1, Algorithm::Sha256, Algorithm::Sha512];

    fn name(self) -> &'static str {
        match self {
            Algorithm::Md5 => "md5",
            Algorithm::Sha1 => "sha1",
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    fn hex_digits(self) -> usize {
        match self {
            Algorithm::Md5 => 32,
            Algorithm::Sha1 => 40,
            Algorithm::Sha256 => 64,
            Algorithm::Sha512 => 128,
        }
    }
}

/// An algorithm and a digest in lower-case hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checksum {
    /// The algorithm.
    pub algorithm: Algorithm,
    hex: String,
}

impl Checksum {
    /// Takes a digest whose algorithm follows from its length; `None` when none does.
    pub fn from_digits(hex: &str) -> Option<Checksum> {
        let known = |algorithm: &Algorithm| algorithm.hex_digits() == hex.len();
        let algorithm = Algorithm::ALL.into_iter().find(known)?;
        format!("{}:{hex}", algorithm.name()).parse().ok()
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.hex)
    }
}

impl FromStr for Checksum {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, hex) = text.split_once(':').ok_or_else(|| {
            format!(
                "`{text}` is no checksum; write the algorithm and the digest, as in \"sha256:…\""
            )
        })?;
        let algorithm =
            Algorithm::ALL.into_iter().find(|algorithm| algorithm.name() == name).ok_or_else(
                || format!("`{name}` is no known algorithm; known are md5, sha1, sha256, sha512"),
            )?;
        let hex = hex.trim().to_ascii_lowercase();
        let digits = algorithm.hex_digits();
        if hex.len() != digits || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(format!(
                "A {name} digest has {digits} hexadecimal digits, this one has {}",
                hex.len()
            ));
        }
        Ok(Checksum { algorithm, hex })
    }
}

/// Computes the checksum of the file at `path`; `None` when `cancel` was set meanwhile.
///
/// # Errors
/// The read error.
pub fn of_file(
    path: &Path,
    algorithm: Algorithm,
    cancel: &AtomicBool,
) -> io::Result<Option<Checksum>> {
    let file = File::open(path)?;
    let hex = match algorithm {
        Algorithm::Md5 => digest::<Md5>(file, cancel)?,
        Algorithm::Sha1 => digest::<Sha1>(file, cancel)?,
        Algorithm::Sha256 => digest::<Sha256>(file, cancel)?,
        Algorithm::Sha512 => digest::<Sha512>(file, cancel)?,
    };
    Ok(hex.map(|hex| Checksum { algorithm, hex }))
}

/// Computes all checksums of the file at `path` in one pass, in the order of their strength; `None`
/// when `cancel` was set meanwhile.
///
/// # Errors
/// The read error.
pub fn all_of_file(path: &Path, cancel: &AtomicBool) -> io::Result<Option<Vec<Checksum>>> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; CHUNK];
    let (mut md5, mut sha1) = (Md5::new(), Sha1::new());
    let (mut sha256, mut sha512) = (Sha256::new(), Sha512::new());
    loop {
        if cancel.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let read = file.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        let bytes = &buffer[..read];
        md5.update(bytes);
        sha1.update(bytes);
        sha256.update(bytes);
        sha512.update(bytes);
    }
    let digests = [
        hex(&md5.finalize()),
        hex(&sha1.finalize()),
        hex(&sha256.finalize()),
        hex(&sha512.finalize()),
    ];
    let of = |(algorithm, hex)| Checksum { algorithm, hex };
    Ok(Some(Algorithm::ALL.into_iter().zip(digests).map(of).collect()))
}

/// Returns the SHA-256 checksum of `bytes`.
pub fn of_bytes(bytes: &[u8]) -> Checksum {
    Checksum { algorithm: Algorithm::Sha256, hex: hex(&Sha256::digest(bytes)) }
}

fn digest<D: Digest>(mut file: File, cancel: &AtomicBool) -> io::Result<Option<String>> {
    let mut hasher = D::new();
    let mut buffer = vec![0; CHUNK];
    loop {
        if cancel.load(Ordering::Relaxed) {
            return Ok(None);
        }
        match file.read(&mut buffer)? {
            0 => return Ok(Some(hex(&hasher.finalize()))),
            read => hasher.update(&buffer[..read]),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_match_the_published_ones_of_abc() {
        // FIPS 180-4 and RFC 1321 give the digests of "abc".
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("abc");
        std::fs::write(&path, "abc").unwrap();
        let of = |algorithm| {
            of_file(&path, algorithm, &AtomicBool::new(false)).unwrap().unwrap().to_string()
        };
        assert_eq!(of(Algorithm::Md5), "md5:900150983cd24fb0d6963f7d28e17f72");
        assert_eq!(of(Algorithm::Sha1), "sha1:a9993e364706816aba3e25717850c26c9cd0d89d");
        assert_eq!(
            of(Algorithm::Sha256),
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert!(of(Algorithm::Sha512).starts_with("sha512:ddaf35a193617abacc417349ae204131"));
        let all = all_of_file(&path, &AtomicBool::new(false)).unwrap().unwrap();
        let each = Algorithm::ALL.map(of);
        assert_eq!(all.iter().map(ToString::to_string).collect::<Vec<_>>(), each);
    }

    #[test]
    fn a_checksum_needs_its_algorithm_and_all_its_digits() {
        assert!("sha256".parse::<Checksum>().is_err());
        assert!("sha3:00".parse::<Checksum>().is_err());
        assert!("md5:00".parse::<Checksum>().is_err());
        assert!("md5:900150983CD24FB0D6963F7D28E17F72".parse::<Checksum>().is_ok());
    }
}
