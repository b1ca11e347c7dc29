//! FAT12, FAT16 and FAT32 (Microsoft's FAT specification 1.03), with long names.
//!
//! Its own reader because the contents are hostile: cluster chains are followed no further than
//! the file's size asks for, every cluster number is checked, and no arithmetic can overflow.
//! Whether a volume is FAT32 is decided as Linux does, by the 16-bit FAT size being zero.

mod boot_sector;
mod directory;

use std::sync::{Arc, Mutex, PoisonError};

use boot_sector::{Geometry, Width};
use directory::Entry;

use super::{DirEntry, FileSystem, FileType, Kind, Metadata, check_limit, file_error};
use crate::block::Block;
use crate::error::{Error, ErrorKind};

/// A directory has at most 65536 entries of 32 bytes.
const MAX_DIRECTORY: u64 = 2 << 20;
/// How much of the FAT is read and kept at a time.
const WINDOW: u64 = 64 << 10;

/// A FAT file system.
pub struct Fat {
    disk: Arc<dyn Block>,
    geometry: Geometry,
    /// The part of the FAT last looked at, with its first byte's place in the FAT.
    window: Mutex<(u64, Vec<u8>)>,
    label: Option<String>,
    uuid: String,
}

/// Where a directory or file starts.
#[derive(Clone, Copy)]
enum Start {
    /// The root directory of FAT12 and FAT16, which has a place of its own.
    FixedRoot,
    Cluster(u32),
}

impl Fat {
    /// Opens the file system that fills `disk`.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] or [`ErrorKind::Truncated`] when the boot sector is no FAT's.
    pub fn open(disk: Arc<dyn Block>) -> Result<Fat, Error> {
        let geometry = Geometry::read(&*disk)?;
        let uuid = format!("{:04X}-{:04X}", geometry.serial >> 16, geometry.serial & 0xffff);
        let label = geometry.label.clone();
        let mut fat = Fat { disk, geometry, window: Mutex::default(), label, uuid };
        if let Some(label) = directory::volume_label(&fat.directory_bytes("/", fat.root())?) {
            fat.label = Some(label);
        }
        Ok(fat)
    }

    fn root(&self) -> Start {
        match self.geometry.width {
            Width::Bits32 => Start::Cluster(self.geometry.root_cluster),
            _ => Start::FixedRoot,
        }
    }

    /// Walks to `path`; `None` stands for the root directory.
    fn find(&self, operation: &'static str, path: &str) -> Result<Option<Entry>, Error> {
        let mut names: Vec<&str> = Vec::new();
        for part in path.split('/') {
            match part {
                "" | "." => {}
                ".." => drop(names.pop()),
                name => names.push(name),
            }
        }
        let mut found: Option<Entry> = None;
        for name in names {
            let start = match &found {
                None => self.root(),
                Some(entry) if entry.is_directory => self.start_of(entry),
                Some(_) => {
                    return Err(file_error(ErrorKind::Invalid, operation, path)
                        .because("a part of the path is not a directory"));
                }
            };
            let entries = directory::entries(&self.directory_bytes(path, start)?);
            match entries.into_iter().find(|entry| entry.is_named(name)) {
                Some(entry) => found = Some(entry),
                None => return Err(file_error(ErrorKind::NotFound, operation, path)),
            }
        }
        Ok(found)
    }

    /// Directory entries name the root directory by cluster 0.
    fn start_of(&self, entry: &Entry) -> Start {
        match entry.first_cluster {
            0 => self.root(),
            cluster => Start::Cluster(cluster),
        }
    }

    fn directory_bytes(&self, path: &str, start: Start) -> Result<Vec<u8>, Error> {
        let corrupt = |reason: String| file_error(ErrorKind::Corrupt, "read", path).because(reason);
        match start {
            Start::FixedRoot => {
                let mut bytes = vec![0; self.geometry.root_len as usize];
                self.disk.read_at(&mut bytes, self.geometry.root_offset)?;
                Ok(bytes)
            }
            Start::Cluster(first) => {
                let (runs, _) = self.runs(first, MAX_DIRECTORY).map_err(corrupt)??;
                self.read_runs(&runs, u64::MAX)
            }
        }
    }

    /// Follows a chain until it ends or covers `len` bytes; returns runs of neighbouring clusters
    /// and the bytes they hold. The inner error is the disk's, the outer one the chain's.
    #[allow(clippy::type_complexity)]
    fn runs(&self, first: u32, len: u64) -> Result<Result<(Vec<(u32, u32)>, u64), Error>, String> {
        let mut runs: Vec<(u32, u32)> = Vec::new();
        let mut covered = 0;
        let mut cluster = first;
        while covered < len {
            if !(2..self.geometry.clusters + 2).contains(&cluster) {
                return Err(format!("its chain leads to cluster {cluster}"));
            }
            match runs.last_mut() {
                Some((start, count)) if *start + *count == cluster => *count += 1,
                _ => runs.push((cluster, 1)),
            }
            covered += self.geometry.cluster_size;
            match self.next_cluster(cluster) {
                Ok(Some(next)) => cluster = next,
                Ok(None) => break,
                Err(error) => return Ok(Err(error)),
            }
        }
        let mut sorted = runs.clone();
        sorted.sort_unstable();
        if sorted.windows(2).any(|pair| pair[0].0 + pair[0].1 > pair[1].0) {
            return Err("its chain comes back to a cluster it had".into());
        }
        Ok(Ok((runs, covered)))
    }

    fn read_runs(&self, runs: &[(u32, u32)], len: u64) -> Result<Vec<u8>, Error> {
        let available: u64 =
            runs.iter().map(|(_, count)| u64::from(*count) * self.geometry.cluster_size).sum();
        let mut bytes = vec![0; available.min(len) as usize];
        let mut rest = bytes.as_mut_slice();
        for &(start, count) in runs {
            let run = (u64::from(count) * self.geometry.cluster_size).min(rest.len() as u64);
            let (head, tail) = rest.split_at_mut(run as usize);
            self.disk.read_at(head, self.geometry.offset_of(start))?;
            rest = tail;
        }
        Ok(bytes)
    }

    /// Looks up the cluster that follows in the chain; `None` at its end.
    fn next_cluster(&self, cluster: u32) -> Result<Option<u32>, Error> {
        let (value, end) = match self.geometry.width {
            Width::Bits12 => {
                let pair = self.fat_bytes::<2>(u64::from(cluster) * 3 / 2)?;
                let value = u16::from_le_bytes(pair) >> (4 * (cluster & 1));
                (u32::from(value & 0xfff), 0xff8)
            }
            Width::Bits16 => {
                let value = u16::from_le_bytes(self.fat_bytes(u64::from(cluster) * 2)?);
                (u32::from(value), 0xfff8)
            }
            Width::Bits32 => {
                let value = u32::from_le_bytes(self.fat_bytes(u64::from(cluster) * 4)?);
                (value & 0x0fff_ffff, 0x0fff_fff8)
            }
        };
        Ok((value < end).then_some(value))
    }

    /// Reads `N` bytes of the first FAT through the window.
    fn fat_bytes<const N: usize>(&self, at: u64) -> Result<[u8; N], Error> {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let inside = |(start, bytes): &(u64, Vec<u8>)| {
            at >= *start && at + N as u64 <= start + bytes.len() as u64
        };
        if !inside(&window) {
            let start = at / WINDOW * WINDOW;
            // Beyond the window's end by what an entry across it needs.
            let end = (start + WINDOW + 4).min(self.geometry.fat_len);
            if at + N as u64 > end {
                return Err(Error::new(ErrorKind::Corrupt, "read the FAT").at(at));
            }
            window.1.resize((end - start) as usize, 0);
            window.0 = start;
            let read = self.disk.read_at(&mut window.1, self.geometry.fat_offset + start);
            if let Err(error) = read {
                window.1.clear();
                return Err(error);
            }
        }
        let mut bytes = [0; N];
        let from = (at - window.0) as usize;
        bytes.copy_from_slice(&window.1[from..from + N]);
        Ok(bytes)
    }
}

impl FileSystem for Fat {
    fn kind(&self) -> Kind {
        Kind::Fat
    }

    fn label(&self) -> Option<&str> {
        self.label.as_deref()
    }

    fn uuid(&self) -> &str {
        &self.uuid
    }

    fn metadata(&self, path: &str) -> Result<Metadata, Error> {
        let directory = Metadata { file_type: FileType::Directory, len: 0 };
        Ok(match self.find("look up", path)? {
            Some(entry) if !entry.is_directory => {
                Metadata { file_type: FileType::File, len: u64::from(entry.size) }
            }
            _ => directory,
        })
    }

    fn read(&self, path: &str, limit: u64) -> Result<Vec<u8>, Error> {
        let fail = |kind| file_error(kind, "read", path);
        let entry = match self.find("read", path)? {
            Some(entry) if !entry.is_directory => entry,
            _ => return Err(fail(ErrorKind::Invalid).because("it is not a regular file")),
        };
        let size = u64::from(entry.size);
        check_limit(path, size, limit)?;
        let chain = self.runs(entry.first_cluster, size);
        let (runs, covered) =
            chain.map_err(|reason| fail(ErrorKind::Corrupt).because(reason))??;
        if covered < size {
            return Err(fail(ErrorKind::Corrupt)
                .because(format!("its chain holds {covered} of {size} bytes")));
        }
        self.read_runs(&runs, size)
    }

    fn list_dir(&self, path: &str) -> Result<Vec<DirEntry>, Error> {
        let start = match self.find("list", path)? {
            None => self.root(),
            Some(entry) if entry.is_directory => self.start_of(&entry),
            Some(_) => {
                return Err(
                    file_error(ErrorKind::Invalid, "list", path).because("it is not a directory")
                );
            }
        };
        let entries = directory::entries(&self.directory_bytes(path, start)?).into_iter();
        Ok(entries
            .map(|entry| DirEntry {
                file_type: if entry.is_directory { FileType::Directory } else { FileType::File },
                name: entry.name,
            })
            .collect())
    }
}
