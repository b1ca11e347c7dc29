//! Small JSON files that know when they are damaged: `{"blake3":"<64 digits>","content":<body>}`,
//! the digest over the body's bytes. They are written beside and renamed in.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::digest::Digest;
use super::error::CacheError;
use super::root::unique;

const HEAD: &str = "{\"blake3\":\"";
const MIDDLE: &str = "\",\"content\":";
const TAIL: &str = "}\n";
/// Largest file that is read; a recipe with many kept texts stays far below.
const LIMIT: u64 = 64 << 20;

/// Writes `content` to `path`. `durable` waits until it is on the disk.
pub(super) fn write<T: Serialize>(
    path: &Path,
    content: &T,
    durable: bool,
) -> Result<(), CacheError> {
    let failed = |error| CacheError::io("write", path)(error);
    let body = serde_json::to_string(content).map_err(|error| failed(error.into()))?;
    let text = format!("{HEAD}{}{MIDDLE}{body}{TAIL}", digest(body.as_bytes()));
    let beside = path.with_extension(format!("{}.new", unique().map_err(failed)?));
    let written = put(&beside, text.as_bytes(), durable).and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written.map_err(failed)
}

fn put(path: &Path, bytes: &[u8], durable: bool) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    if durable { file.sync_all() } else { Ok(()) }
}

/// Reads what [`write`] wrote; `None` when there is no such file.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, CacheError> {
    let failed = |error| CacheError::io("read", path)(error);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut text = Vec::new();
    file.take(LIMIT).read_to_end(&mut text).map_err(failed)?;
    let damaged = |why: String| CacheError::Damaged { path: path.to_path_buf(), why };
    let body = body(&text).map_err(|why| damaged(why.into()))?;
    serde_json::from_slice(body).map(Some).map_err(|error| damaged(error.to_string()))
}

fn body(text: &[u8]) -> Result<&[u8], &'static str> {
    const SHAPE: &str = "it is not in the cache's form";
    let rest = text.strip_prefix(HEAD.as_bytes()).ok_or(SHAPE)?;
    let (digits, rest) = rest.split_at_checked(64).ok_or(SHAPE)?;
    let rest = rest.strip_prefix(MIDDLE.as_bytes()).ok_or(SHAPE)?;
    let body = rest.strip_suffix(TAIL.as_bytes()).ok_or(SHAPE)?;
    if digest(body).to_string().as_bytes() != digits {
        return Err("its digest is another");
    }
    Ok(body)
}

fn digest(body: &[u8]) -> Digest {
    Digest::from_bytes(*blake3::hash(body).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flipped_bit_anywhere_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        write(&path, &vec!["one", "two"], false).unwrap();
        let sound = fs::read(&path).unwrap();
        assert_eq!(read::<Vec<String>>(&path).unwrap().unwrap(), ["one", "two"]);
        for at in 0..sound.len() {
            let mut text = sound.clone();
            text[at] ^= 1 << (at % 8);
            fs::write(&path, text).unwrap();
            let result = read::<Vec<String>>(&path);
            assert!(matches!(result, Err(CacheError::Damaged { .. })), "byte {at}: {result:?}");
        }
        for length in 0..sound.len() {
            fs::write(&path, &sound[..length]).unwrap();
            assert!(read::<Vec<String>>(&path).is_err(), "{length}");
        }
    }

    #[test]
    fn it_is_json_and_leaves_nothing_beside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        write(&path, &7, true).unwrap();
        write(&path, &8, true).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(value["content"], 8);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert_eq!(read::<u8>(&folder.path().join("b.json")).unwrap(), None);
    }
}
