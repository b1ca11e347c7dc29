//! The qcow2 header and its extensions, checked field by field.
//!
//! Contract: what [`Header::read`] returns is consistent in itself and lies within the file as far
//! as the header can tell; every refusal names the field and its value. Nothing here allocates
//! more than one cluster. Left out: the contents of the tables (see `structure`).
//!
//! Specification: QEMU, `docs/interop/qcow2.rst`, sections "Header" and "Header extensions".

use std::path::Path;

use crate::error::{Error, ErrorKind};
use crate::host_file::HostFile;

const V2_LENGTH: usize = 72;
const V3_LENGTH: usize = 104;

/// QEMU's own limits, which keep hostile sizes small.
const MAX_L1_ENTRIES: u32 = (32 << 20) / 8;
const MAX_REFCOUNT_TABLE: u64 = 8 << 20;

const INCOMPATIBLE_DIRTY: u64 = 1 << 0;
const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
const INCOMPATIBLE_DATA_FILE: u64 = 1 << 2;
const INCOMPATIBLE_COMPRESSION: u64 = 1 << 3;
const INCOMPATIBLE_EXTENDED_L2: u64 = 1 << 4;

const EXTENSION_END: u32 = 0;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXTENSION_FEATURE_NAMES: u32 = 0x6803_f857;
const EXTENSION_DATA_FILE: u32 = 0x4441_5441;

/// What the rest of this module needs of the header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub version: u32,
    pub cluster_bits: u32,
    pub size: u64,
    pub l1_entries: u32,
    pub l1_offset: u64,
    pub refcount_table_offset: u64,
    pub refcount_table_clusters: u32,
    /// Entries of L2 tables have 16 bytes and tell subclusters apart.
    pub extended_l2: bool,
    /// Compressed clusters are Zstandard, not deflate.
    pub zstd: bool,
    pub refcount_order: u32,
    pub snapshots: u32,
    pub snapshots_offset: u64,
    /// Its last user did not close it, and the refcounts may be behind.
    pub dirty: bool,
    /// There are persistent bitmaps or other things that take clusters and that are not read.
    pub has_extras: bool,
    pub backing: Option<Backing>,
    pub data_file: Option<DataFile>,
}

/// The file that unallocated clusters are read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Backing {
    pub name: String,
    pub format: Option<String>,
}

/// The file that holds the guest's clusters, when it is not the image itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DataFile {
    pub name: Option<String>,
}

impl Header {
    pub(super) fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Returns how many L2 entries one L2 table has.
    pub(super) fn l2_entries(&self) -> u64 {
        self.cluster_size() / self.l2_entry_size()
    }

    /// Returns the bytes of an L2 entry.
    pub(super) fn l2_entry_size(&self) -> u64 {
        if self.extended_l2 { 16 } else { 8 }
    }

    /// Returns what the image uses that is only read, not written.
    pub(super) fn read_only_feature(&self) -> Option<&'static str> {
        match self {
            Header { zstd: true, .. } => Some("zstd compression"),
            Header { extended_l2: true, .. } => Some("extended L2 entries"),
            _ => None,
        }
    }

    /// Refuses an image that its last user did not close.
    pub(super) fn refuse_dirty(&self, file: &HostFile) -> Result<(), Error> {
        if !self.dirty {
            return Ok(());
        }
        let detail = "it is marked as dirty: its last user did not close it";
        Err(corrupt(file, 72, detail.into()).with_hint(repair(file)))
    }

    /// Reads and checks the header.
    pub(super) fn read(file: &HostFile) -> Result<Header, Error> {
        let mut buf = [0; V3_LENGTH + 8];
        let start = file.read_prefix(&mut buf)?;
        if !start.starts_with(b"QFI\xfb") {
            return Err(corrupt(file, 0, "it has no qcow2 magic number".into())
                .with_hint("Check the format that the profile or command line gives"));
        }
        if start.len() < V2_LENGTH {
            return Err(truncated(file, 0, "the header"));
        }
        let raw = Fields::decode(start);
        if !(2..=3).contains(&raw.version) {
            return Err(unsupported(file, format!("qcow2 version {}", raw.version)));
        }
        if raw.version == 3 && start.len() < V3_LENGTH {
            return Err(truncated(file, 0, "the header"));
        }
        raw.check_features(file)?;
        raw.check_geometry(file)?;

        let mut header = Header {
            version: raw.version,
            cluster_bits: raw.cluster_bits,
            size: raw.size,
            l1_entries: raw.l1_entries,
            l1_offset: raw.l1_offset,
            refcount_table_offset: raw.refcount_table_offset,
            refcount_table_clusters: raw.refcount_table_clusters,
            extended_l2: raw.has_extended_l2(),
            zstd: raw.compression == 1,
            refcount_order: raw.refcount_order,
            snapshots: raw.snapshots,
            snapshots_offset: raw.snapshots_offset,
            dirty: raw.incompatible & INCOMPATIBLE_DIRTY != 0,
            has_extras: false,
            backing: None,
            data_file: (raw.incompatible & INCOMPATIBLE_DATA_FILE != 0)
                .then_some(DataFile { name: None }),
        };
        header.read_names(file, &raw)?;
        Ok(header)
    }

    /// Reads the header extensions and the backing file's name, which share the first cluster.
    fn read_names(&mut self, file: &HostFile, raw: &Fields) -> Result<(), Error> {
        let mut cluster = vec![0; self.cluster_size().min(file.len()) as usize];
        file.read_exact_at(&mut cluster, 0)?;

        let mut backing_format = None;
        let end = match raw.backing_offset {
            0 => cluster.len(),
            offset => cluster.len().min(offset as usize),
        };
        let mut at = raw.header_length as usize;
        while at + 8 <= end {
            let kind = be32(&cluster, at);
            let len = be32(&cluster, at + 4) as usize;
            at += 8;
            if kind == EXTENSION_END {
                break;
            }
            let Some(data) = at.checked_add(len).and_then(|behind| cluster.get(at..behind)) else {
                return Err(corrupt(
                    file,
                    at as u64,
                    format!("the header extension {kind:#010x} of {len} bytes leaves the header"),
                ));
            };
            match kind {
                EXTENSION_BACKING_FORMAT => {
                    backing_format = Some(text(file, at, data, "backing format")?);
                }
                EXTENSION_DATA_FILE => {
                    if let Some(data_file) = &mut self.data_file {
                        data_file.name = Some(text(file, at, data, "data file name")?);
                    }
                }
                EXTENSION_FEATURE_NAMES if !len.is_multiple_of(48) => {
                    return Err(corrupt(
                        file,
                        at as u64,
                        format!("the feature name table has {len} bytes, no multiple of 48"),
                    ));
                }
                EXTENSION_FEATURE_NAMES => {}
                _ => self.has_extras = true,
            }
            at += len.next_multiple_of(8);
        }

        if raw.backing_offset != 0 {
            let len = raw.backing_len as usize;
            let name = usize::try_from(raw.backing_offset)
                .ok()
                .and_then(|offset| cluster.get(offset..offset.checked_add(len)?))
                .filter(|_| len <= 1023)
                .ok_or_else(|| {
                    corrupt(
                        file,
                        raw.backing_offset,
                        format!("the backing file's name of {len} bytes leaves the header"),
                    )
                })?;
            let name = text(file, raw.backing_offset as usize, name, "backing file's name")?;
            self.backing = Some(Backing { name, format: backing_format });
        }
        Ok(())
    }
}

/// The header's fields as they stand in the file.
struct Fields {
    version: u32,
    backing_offset: u64,
    backing_len: u32,
    cluster_bits: u32,
    size: u64,
    encryption: u32,
    l1_entries: u32,
    l1_offset: u64,
    refcount_table_offset: u64,
    refcount_table_clusters: u32,
    snapshots: u32,
    snapshots_offset: u64,
    incompatible: u64,
    refcount_order: u32,
    header_length: u32,
    compression: u8,
}

impl Fields {
    fn decode(buf: &[u8]) -> Fields {
        let version = be32(buf, 4);
        let v3 = version >= 3 && buf.len() >= V3_LENGTH;
        let header_length = if v3 { be32(buf, 100) } else { V2_LENGTH as u32 };
        Fields {
            version,
            backing_offset: be64(buf, 8),
            backing_len: be32(buf, 16),
            cluster_bits: be32(buf, 20),
            size: be64(buf, 24),
            encryption: be32(buf, 32),
            l1_entries: be32(buf, 36),
            l1_offset: be64(buf, 40),
            refcount_table_offset: be64(buf, 48),
            refcount_table_clusters: be32(buf, 56),
            snapshots: be32(buf, 60),
            snapshots_offset: be64(buf, 64),
            incompatible: if v3 { be64(buf, 72) } else { 0 },
            refcount_order: if v3 { be32(buf, 96) } else { 4 },
            header_length,
            compression: match buf.get(V3_LENGTH) {
                Some(&compression) if v3 && header_length as usize > V3_LENGTH => compression,
                _ => 0,
            },
        }
    }

    /// Refuses what this program does not read, by name.
    fn check_features(&self, file: &HostFile) -> Result<(), Error> {
        match self.encryption {
            0 => {}
            1 => return Err(unsupported(file, "AES encryption".into())),
            2 => return Err(unsupported(file, "LUKS encryption".into())),
            other => return Err(unsupported(file, format!("encryption method {other}"))),
        }
        if self.incompatible & INCOMPATIBLE_CORRUPT != 0 {
            return Err(corrupt(file, 72, "it is marked as corrupt".into()).with_hint(repair(file)));
        }
        if (self.incompatible & INCOMPATIBLE_COMPRESSION != 0) != (self.compression != 0)
            || self.compression > 1
        {
            return Err(unsupported(file, format!("compression type {}", self.compression)));
        }
        let known = INCOMPATIBLE_DIRTY
            | INCOMPATIBLE_DATA_FILE
            | INCOMPATIBLE_COMPRESSION
            | INCOMPATIBLE_EXTENDED_L2;
        if self.incompatible & !known != 0 {
            return Err(unsupported(
                file,
                format!("incompatible feature bits {:#x}", self.incompatible & !known),
            ));
        }
        Ok(())
    }

    fn has_extended_l2(&self) -> bool {
        self.incompatible & INCOMPATIBLE_EXTENDED_L2 != 0
    }

    /// Checks sizes against each other, and that what the header points to lies in the file.
    fn check_geometry(&self, file: &HostFile) -> Result<(), Error> {
        if !(9..=21).contains(&self.cluster_bits) {
            return Err(corrupt(
                file,
                20,
                format!("cluster_bits is {}, not within 9 to 21", self.cluster_bits),
            ));
        }
        let cluster_size = 1u64 << self.cluster_bits;
        if self.has_extended_l2() && self.cluster_bits < 14 {
            return Err(corrupt(
                file,
                20,
                format!("extended L2 entries with cluster_bits {}", self.cluster_bits),
            ));
        }
        if self.refcount_order > 6 {
            return Err(corrupt(
                file,
                96,
                format!("refcount_order is {}, above 6", self.refcount_order),
            ));
        }
        let least = if self.version == 2 { V2_LENGTH } else { V3_LENGTH };
        if (self.header_length as usize) < least
            || u64::from(self.header_length) > cluster_size
            || !self.header_length.is_multiple_of(8)
        {
            return Err(corrupt(file, 100, format!("header_length is {}", self.header_length)));
        }
        if self.backing_offset != 0
            && (self.backing_offset < u64::from(self.header_length)
                || self.backing_offset >= cluster_size)
        {
            return Err(corrupt(
                file,
                8,
                format!("the backing file's name is at {:#x}", self.backing_offset),
            ));
        }

        let entry_size = if self.has_extended_l2() { 16 } else { 8 };
        let per_l1_entry = cluster_size * (cluster_size / entry_size);
        let needed = self.size.div_ceil(per_l1_entry);
        if self.l1_entries > MAX_L1_ENTRIES || needed > u64::from(MAX_L1_ENTRIES) {
            return Err(corrupt(
                file,
                36,
                format!(
                    "the L1 table has {} entries for a disk of {} bytes, above the limit of {}",
                    self.l1_entries, self.size, MAX_L1_ENTRIES
                ),
            ));
        }
        if u64::from(self.l1_entries) < needed {
            return Err(corrupt(
                file,
                36,
                format!(
                    "the L1 table has {} entries, but a disk of {} bytes needs {needed}",
                    self.l1_entries, self.size
                ),
            ));
        }
        let refcount_table = u64::from(self.refcount_table_clusters) * cluster_size;
        if refcount_table == 0 || refcount_table > MAX_REFCOUNT_TABLE.max(cluster_size) {
            return Err(corrupt(
                file,
                56,
                format!("the refcount table has {refcount_table} bytes"),
            ));
        }
        let tables = [
            ("the L1 table", self.l1_offset, u64::from(self.l1_entries) * 8),
            ("the refcount table", self.refcount_table_offset, refcount_table),
            ("the snapshot table", self.snapshots_offset, u64::from(self.snapshots) * 40),
        ];
        for (name, offset, len) in tables {
            if len == 0 {
                continue;
            }
            if !offset.is_multiple_of(cluster_size) || offset == 0 {
                return Err(corrupt(
                    file,
                    offset,
                    format!("{name} does not start at a cluster of its own"),
                ));
            }
            if offset.checked_add(len).is_none_or(|end| end > file.len()) {
                return Err(truncated(file, offset, name));
            }
        }
        Ok(())
    }
}

fn text(file: &HostFile, at: usize, bytes: &[u8], what: &str) -> Result<String, Error> {
    String::from_utf8(bytes.to_vec())
        .map_err(|_| corrupt(file, at as u64, format!("the {what} is not UTF-8")))
}

/// Returns how to repair the image.
pub(super) fn repair(file: &HostFile) -> String {
    format!("Repair it with: qemu-img check -r all {}", file.path().display())
}

pub(super) fn corrupt(file: &HostFile, offset: u64, detail: String) -> Error {
    Error::new(ErrorKind::Corrupt, "open").on(file.path()).at(offset).because(detail)
}

pub(super) fn truncated(file: &HostFile, offset: u64, what: &str) -> Error {
    ends_early(file.path(), file.len(), what).at(offset)
}

pub(super) fn ends_early(path: &Path, len: u64, what: &str) -> Error {
    Error::new(ErrorKind::Truncated, "open")
        .on(path)
        .because(format!(
            "the file is truncated: it ends after {len} bytes, before the end of {what}"
        ))
        .with_hint("Download or copy the image again")
}

pub(super) fn unsupported(file: &HostFile, feature: String) -> Error {
    Error::new(ErrorKind::Unsupported, "open")
        .on(file.path())
        .because(format!("it uses {feature}, which is not supported"))
}

pub(super) fn be32(buf: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([buf[at], buf[at + 1], buf[at + 2], buf[at + 3]])
}

pub(super) fn be64(buf: &[u8], at: usize) -> u64 {
    u64::from(be32(buf, at)) << 32 | u64::from(be32(buf, at + 4))
}
