//! A read-only driver of our own, for images with what imago does not know: Zstandard clusters
//! and extended L2 entries; and for dirty images.
//!
//! Contract: [`Block`]'s, over an image that `header` and `structure` have checked. Memory is
//! bounded by the L1 table, a few L2 tables and one cluster. Left out: writing.
//!
//! Specification: QEMU, `docs/interop/qcow2.rst`, sections "Cluster mapping", "Extended L2
//! Entries" and "Compressed Clusters Descriptor".

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use zstd::stream::raw::{Decoder, InBuffer, Operation, OutBuffer};

use super::header::{Header, be64};
use super::structure::{COMPRESSED, L2_ZERO, OFFSET_MASK, compressed_extent};
use crate::block::{Block, Extent, check_range};
use crate::error::{Error, ErrorKind};
use crate::host_file::HostFile;
use crate::share::share;

/// Bytes of L2 tables that are kept, but at least two tables.
const CACHED_TABLES: u64 = 4 << 20;
/// `next_data` joins neighbouring extents up to this length.
const JOIN_LIMIT: u64 = 64 << 20;
/// Subclusters of an extended L2 entry.
const SUBCLUSTERS: u64 = 32;

/// A qcow2 image opened for reading.
pub(super) struct Reader {
    path: PathBuf,
    file: HostFile,
    data: Option<HostFile>,
    base: Option<Arc<dyn Block>>,
    header: Header,
    l1: Vec<u64>,
    /// The L2 tables used last, the latest at the end.
    tables: Mutex<Vec<(u64, Arc<Vec<u8>>)>>,
    /// The cluster decompressed last, by its L2 entry.
    cluster: Mutex<Option<(u64, Vec<u8>)>>,
}

/// What a part of the disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mapping {
    Zero,
    Base,
    /// At this byte of the data file.
    Data(u64),
    /// In the cluster with this L2 entry.
    Compressed(u64),
}

impl Mapping {
    /// Returns what goes on with this mapping `len` bytes further on.
    fn behind(self, len: u64) -> Mapping {
        match self {
            Mapping::Data(place) => Mapping::Data(place + len),
            mapping => mapping,
        }
    }
}

impl Reader {
    /// Takes a checked image; `data` is its external data file.
    pub(super) fn new(
        path: &Path,
        file: HostFile,
        data: Option<HostFile>,
        base: Option<Arc<dyn Block>>,
        header: Header,
    ) -> Result<Reader, Error> {
        let mut bytes = vec![0; header.l1_entries as usize * 8];
        if !bytes.is_empty() {
            file.read_exact_at(&mut bytes, header.l1_offset)?;
        }
        let l1 = bytes.chunks_exact(8).map(|entry| be64(entry, 0) & OFFSET_MASK).collect();
        Ok(Reader {
            path: path.to_owned(),
            file,
            data,
            base,
            header,
            l1,
            tables: Mutex::default(),
            cluster: Mutex::default(),
        })
    }

    /// Returns the L2 table at `offset`.
    fn table(&self, offset: u64) -> Result<Arc<Vec<u8>>, Error> {
        // Only whole entries are ever in the list, whatever happened to another thread.
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = tables.iter().position(|table| table.0 == offset) {
            let table = tables.remove(found);
            tables.push(table.clone());
            return Ok(table.1);
        }
        let mut bytes = vec![0; self.header.cluster_size() as usize];
        self.file.read_exact_at(&mut bytes, offset)?;
        let keep = (CACHED_TABLES / self.header.cluster_size()).max(2) as usize;
        if tables.len() >= keep {
            tables.remove(0);
        }
        let bytes = Arc::new(bytes);
        tables.push((offset, Arc::clone(&bytes)));
        Ok(bytes)
    }

    /// Returns what the disk is at `offset`, and for how many bytes at least.
    fn map(&self, offset: u64) -> Result<(Mapping, u64), Error> {
        let cluster_size = self.header.cluster_size();
        let cluster = offset / cluster_size;
        let per_table = self.header.l2_entries();
        let table = self.l1.get((cluster / per_table) as usize).copied().unwrap_or(0);
        if table == 0 {
            let end = (cluster / per_table + 1) * per_table * cluster_size;
            return Ok((self.unallocated(), end - offset));
        }
        let table = self.table(table)?;
        let at = (cluster % per_table * self.header.l2_entry_size()) as usize;
        let entry = be64(&table, at);
        let within = offset % cluster_size;
        if entry & COMPRESSED != 0 {
            return Ok((Mapping::Compressed(entry), cluster_size - within));
        }
        let place = entry & OFFSET_MASK;
        if !self.header.extended_l2 {
            let mapping = match place {
                _ if entry & L2_ZERO != 0 => Mapping::Zero,
                0 if self.data.is_none() || entry == 0 => self.unallocated(),
                place => Mapping::Data(place + within),
            };
            return Ok((mapping, cluster_size - within));
        }
        let bitmap = be64(&table, at + 8);
        let length = cluster_size / SUBCLUSTERS;
        let subcluster = within / length;
        let mapping = if bitmap >> subcluster & 1 != 0 {
            Mapping::Data(place + within)
        } else if bitmap >> (SUBCLUSTERS + subcluster) & 1 != 0 {
            Mapping::Zero
        } else {
            self.unallocated()
        };
        Ok((mapping, length - within % length))
    }

    fn unallocated(&self) -> Mapping {
        if self.base.is_some() { Mapping::Base } else { Mapping::Zero }
    }

    fn read_base(&self, buf: &mut [u8], offset: u64) -> Result<(), Error> {
        let Some(base) = &self.base else {
            buf.fill(0);
            return Ok(());
        };
        let stored = base.len().saturating_sub(offset).min(buf.len() as u64) as usize;
        let (stored, behind) = buf.split_at_mut(stored);
        behind.fill(0);
        if stored.is_empty() { Ok(()) } else { base.read_at(stored, offset) }
    }

    fn read_compressed(&self, entry: u64, buf: &mut [u8], within: u64) -> Result<(), Error> {
        if buf.len() as u64 == self.header.cluster_size() {
            return self.decompress(entry, buf);
        }
        // Set only after the bytes were decompressed, whatever happened to another thread.
        let mut cached = self.cluster.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = match cached.take() {
            Some((known, bytes)) if known == entry => bytes,
            other => {
                let mut bytes = other.map_or_else(Vec::new, |cluster| cluster.1);
                bytes.resize(self.header.cluster_size() as usize, 0);
                self.decompress(entry, &mut bytes)?;
                bytes
            }
        };
        let within = within as usize;
        buf.copy_from_slice(&bytes[within..within + buf.len()]);
        *cached = Some((entry, bytes));
        Ok(())
    }

    /// Decompresses a whole cluster into `buf`.
    fn decompress(&self, entry: u64, buf: &mut [u8]) -> Result<(), Error> {
        let (start, end) = compressed_extent(&self.header, entry);
        // Only the sectors are known; the last may lie beyond the end of the file.
        let mut packed = vec![0; end.min(self.file.len()).saturating_sub(start) as usize];
        self.file.read_exact_at(&mut packed, start)?;
        let done = if self.header.zstd { unpack_zstd(&packed, buf) } else { inflate(&packed, buf) };
        done.map_err(|error| {
            Error::new(ErrorKind::Corrupt, "read")
                .on(&self.path)
                .at(start)
                .because("a compressed cluster does not unpack")
                .caused_by(error)
        })
    }

    /// Returns the next extent with data, not joined with its neighbours.
    fn data_extent(&self, from: u64) -> Result<Option<Extent>, Error> {
        let mut at = from;
        while at < self.header.size {
            let (mapping, len) = self.map(at)?;
            let end = (at + len).min(self.header.size);
            match mapping {
                Mapping::Zero => {}
                Mapping::Data(_) | Mapping::Compressed(_) => {
                    return Ok(Some(Extent { offset: at, len: end - at }));
                }
                Mapping::Base => {
                    let found = match &self.base {
                        Some(base) => base.next_data(at)?.and_then(|extent| extent.before(end)),
                        None => None,
                    };
                    if found.is_some() {
                        return Ok(found);
                    }
                }
            }
            at = end;
        }
        Ok(None)
    }

    fn read_only(&self, operation: &'static str) -> Error {
        Error::new(ErrorKind::ReadOnly, operation).on(&self.path)
    }
}

/// Unpacks bare deflate data that fill `buf` exactly.
fn inflate(packed: &[u8], buf: &mut [u8]) -> io::Result<()> {
    let mut inflate = flate2::Decompress::new(false);
    inflate.decompress(packed, buf, flate2::FlushDecompress::Finish).map_err(io::Error::other)?;
    if inflate.total_out() == buf.len() as u64 { Ok(()) } else { Err(short(inflate.total_out())) }
}

/// Unpacks Zstandard data that fill `buf` exactly; what follows them is not looked at.
fn unpack_zstd(packed: &[u8], buf: &mut [u8]) -> io::Result<()> {
    let mut decoder = Decoder::new()?;
    let mut input = InBuffer::around(packed);
    let len = buf.len();
    let mut output = OutBuffer::around(buf);
    loop {
        let before = (input.pos(), output.pos());
        decoder.run(&mut input, &mut output)?;
        if output.pos() == len {
            return Ok(());
        }
        if (input.pos(), output.pos()) == before {
            return Err(short(output.pos() as u64));
        }
    }
}

fn short(len: u64) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("it ends after {len} bytes"))
}

impl Block for Reader {
    fn len(&self) -> u64 {
        self.header.size
    }

    fn cluster_size(&self) -> u64 {
        self.header.cluster_size()
    }

    fn read_at(&self, mut buf: &mut [u8], mut offset: u64) -> Result<(), Error> {
        check_range("read", offset, buf.len() as u64, self.header.size)
            .map_err(|error| error.on(&self.path))?;
        while !buf.is_empty() {
            let (mapping, len) = self.map(offset)?;
            let count = len.min(buf.len() as u64);
            let (here, rest) = buf.split_at_mut(count as usize);
            match mapping {
                Mapping::Zero => here.fill(0),
                Mapping::Base => self.read_base(here, offset)?,
                Mapping::Data(place) => {
                    self.data.as_ref().unwrap_or(&self.file).read_exact_at(here, place)?;
                }
                Mapping::Compressed(entry) => {
                    self.read_compressed(entry, here, offset % self.header.cluster_size())?;
                }
            }
            (buf, offset) = (rest, offset + count);
        }
        Ok(())
    }

    fn write_at(&self, _buf: &[u8], offset: u64) -> Result<(), Error> {
        Err(self.read_only("write").at(offset))
    }

    fn flush(&self) -> Result<(), Error> {
        Ok(())
    }

    fn discard(&self, offset: u64, _len: u64) -> Result<(), Error> {
        Err(self.read_only("discard").at(offset))
    }

    fn write_zeroes(&self, offset: u64, _len: u64) -> Result<(), Error> {
        Err(self.read_only("write zeroes to").at(offset))
    }

    fn next_data(&self, from: u64) -> Result<Option<Extent>, Error> {
        let Some(mut joined) = self.data_extent(from)? else {
            return Ok(None);
        };
        while joined.len < JOIN_LIMIT {
            // Only what touches is of interest, so the search ends there.
            let (mapping, _) = match joined.end() {
                end if end < self.header.size => self.map(end)?,
                _ => break,
            };
            if mapping == Mapping::Zero {
                break;
            }
            match self.data_extent(joined.end())? {
                Some(next) if next.offset == joined.end() => joined.len += next.len,
                _ => break,
            }
        }
        Ok(Some(joined))
    }

    fn is_read_only(&self) -> bool {
        true
    }

    fn share(&self, offset: u64, len: u64, file: &File, at: u64) -> io::Result<u64> {
        let Ok((mapping, mut here)) = self.map(offset) else { return Ok(0) };
        // What follows in the file as on the disk is shared at once.
        while here < len
            && let Ok((next, more)) = self.map(offset + here)
            && next == mapping.behind(here)
        {
            here += more;
        }
        let len = len.min(here);
        match (mapping, &self.base) {
            (Mapping::Data(place), _) => {
                share(self.data.as_ref().unwrap_or(&self.file).file(), place, len, file, at)
            }
            (Mapping::Base, Some(base)) if offset + len <= base.len() => {
                base.share(offset, len, file, at)
            }
            _ => Ok(0),
        }
    }
}
