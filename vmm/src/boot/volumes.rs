//! The image's partitions and their file systems, under the names that boot loaders give them.

use std::sync::Arc;

use kvmbake_disk::filesystem::{self, FileSystem, FileType, Kind};
use kvmbake_disk::partition::{self, Partition, Scheme, Slice};
use kvmbake_disk::{Block, Error, ErrorKind};

/// One partition, or the whole disk.
pub struct Volume {
    partition: Partition,
    scheme: Scheme,
    kind: Option<Kind>,
    /// The file system, or why there is none to read.
    fs: Result<Box<dyn FileSystem>, Error>,
}

/// All partitions of the disk, in the order of their numbers.
pub struct Volumes {
    list: Vec<Volume>,
}

/// A file on a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// The volume's index.
    pub volume: usize,
    /// The path on its file system.
    pub path: String,
}

impl Volumes {
    /// Reads the partition table and opens every file system that can be read.
    ///
    /// # Errors
    /// Those of the partition table. A file system that cannot be read is remembered as such.
    pub fn open(disk: &Arc<dyn Block>) -> Result<Volumes, Error> {
        let table = partition::partitions(&**disk)?;
        let mut list = Vec::new();
        for partition in table.partitions {
            let slice: Arc<dyn Block> = Arc::new(Slice::of(disk.clone(), &partition)?);
            let kind = filesystem::probe(&*slice)?;
            let fs = filesystem::open(slice);
            list.push(Volume { partition, scheme: table.scheme, kind, fs });
        }
        Ok(Volumes { list })
    }

    /// Returns every file system that can be read, with its volume's index.
    pub fn readable(&self) -> impl Iterator<Item = (usize, &dyn FileSystem)> {
        let indexed = self.list.iter().enumerate();
        indexed.filter_map(|(index, volume)| Some((index, volume.fs.as_deref().ok()?)))
    }

    /// Returns the volume at an index that this object gave out.
    pub fn get(&self, index: usize) -> &Volume {
        &self.list[index]
    }

    /// Finds a GRUB device name, with or without parentheses: `hd0,gpt1`, `hd0,msdos5`, `hd0,1`,
    /// or `hd0` for a disk without partitions. The image is the only disk.
    pub fn device(&self, name: &str) -> Option<usize> {
        let name = name.strip_prefix('(').unwrap_or(name);
        let name = name.strip_suffix(')').unwrap_or(name);
        self.list.iter().position(|volume| {
            let number = volume.partition.number;
            volume.device() == name
                || (number != 0 && name.strip_prefix("hd0,") == Some(number.to_string().as_str()))
        })
    }

    /// Reads a whole file of at most `limit` bytes.
    ///
    /// # Errors
    /// The file system's own, or why the volume has none.
    pub fn read(&self, location: &Location, limit: u64) -> Result<Vec<u8>, Error> {
        self.get(location.volume).open()?.read(&location.path, limit)
    }

    /// Returns the file type and length at a location, `None` when there is nothing readable.
    pub fn stat(&self, location: &Location) -> Option<(FileType, u64)> {
        let metadata = self.get(location.volume).open().ok()?.metadata(&location.path).ok()?;
        Some((metadata.file_type, metadata.len))
    }

    /// Lists the names in a directory; none when it is not there.
    pub fn names(&self, location: &Location) -> Vec<String> {
        let listed = self.get(location.volume).open().and_then(|fs| fs.list_dir(&location.path));
        let mut names: Vec<String> =
            listed.unwrap_or_default().into_iter().map(|entry| entry.name).collect();
        names.sort();
        names
    }

    /// Describes every volume for an error message.
    pub fn describe(&self) -> String {
        if self.list.is_empty() {
            return "no partitions".into();
        }
        let described: Vec<String> = self.list.iter().map(Volume::describe).collect();
        described.join(", ")
    }
}

impl Volume {
    /// Returns GRUB's name, without parentheses.
    pub fn device(&self) -> String {
        let number = self.partition.number;
        match self.scheme {
            Scheme::Gpt => format!("hd0,gpt{number}"),
            Scheme::Mbr => format!("hd0,msdos{number}"),
            Scheme::Whole => "hd0".into(),
        }
    }

    /// Returns whether it is an EFI system partition.
    pub fn is_efi_system(&self) -> bool {
        self.partition.kind.is_efi_system()
    }

    /// Returns the table's UUID of the partition.
    pub fn partition_uuid(&self) -> Option<&str> {
        self.partition.uuid.as_deref()
    }

    /// Returns the name for a person: `partition 1`.
    pub fn name(&self) -> String {
        match self.scheme {
            Scheme::Whole => "the whole disk".into(),
            _ => format!("partition {}", self.partition.number),
        }
    }

    /// Returns the file system.
    ///
    /// # Errors
    /// Why there is none to read.
    pub fn open(&self) -> Result<&dyn FileSystem, Error> {
        match &self.fs {
            Ok(fs) => Ok(fs.as_ref()),
            Err(error) => Err(Error::new(error.kind(), "open the file system").because(format!(
                "{} holds {}",
                self.name(),
                self.contents()
            ))),
        }
    }

    /// Returns name and contents for a person: `partition 1 (ext4 'cloudimg-rootfs')`.
    pub fn describe(&self) -> String {
        format!("{} ({})", self.name(), self.contents())
    }

    fn contents(&self) -> String {
        let kind = self.kind.map(|kind| kind.to_string());
        match (&self.fs, kind) {
            (Ok(fs), kind) => {
                let label = fs.label().map(|label| format!(" '{label}'")).unwrap_or_default();
                format!("{}{label}", kind.unwrap_or_default())
            }
            (Err(_), None) => "no known file system".into(),
            (Err(error), Some(kind)) if error.kind() == ErrorKind::Unsupported => {
                format!("{kind}, not read: {error}")
            }
            (Err(error), Some(kind)) => format!("damaged {kind}: {error}"),
        }
    }
}
