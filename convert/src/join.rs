//! A disk made of parts that follow each other, as the extents of a VMDK do.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use kvmbake_disk::block::check_range;
use kvmbake_disk::{Block, Error, Extent};

use crate::mapped::read_only;

/// Disks one behind the other.
pub(crate) struct JoinedDisk {
    path: PathBuf,
    size: u64,
    parts: Vec<Part>,
}

struct Part {
    start: u64,
    len: u64,
    /// Without one it reads as zeroes.
    disk: Option<Arc<dyn Block>>,
}

impl JoinedDisk {
    /// Joins parts, each of the given length and with a disk at least that long.
    pub(crate) fn new(path: PathBuf, parts: Vec<(u64, Option<Arc<dyn Block>>)>) -> JoinedDisk {
        let mut size = 0;
        let parts = parts
            .into_iter()
            .map(|(len, disk)| {
                size += len;
                Part { start: size - len, len, disk }
            })
            .collect();
        JoinedDisk { path, size, parts }
    }

    fn part(&self, offset: u64) -> usize {
        self.parts.partition_point(|part| part.start + part.len <= offset)
    }
}

impl Block for JoinedDisk {
    fn len(&self) -> u64 {
        self.size
    }

    fn cluster_size(&self) -> u64 {
        self.parts
            .iter()
            .filter_map(|part| Some(part.disk.as_ref()?.cluster_size()))
            .max()
            .unwrap_or(512)
    }

    fn read_at(&self, mut buf: &mut [u8], mut offset: u64) -> Result<(), Error> {
        check_range("read", offset, buf.len() as u64, self.size)
            .map_err(|error| error.on(&self.path))?;
        while !buf.is_empty() {
            let Part { start, len, disk } = &self.parts[self.part(offset)];
            let count = (start + len - offset).min(buf.len() as u64);
            let (here, rest) = buf.split_at_mut(count as usize);
            match disk {
                Some(disk) => disk.read_at(here, offset - start)?,
                None => here.fill(0),
            }
            (buf, offset) = (rest, offset + count);
        }
        Ok(())
    }

    fn write_at(&self, _buf: &[u8], offset: u64) -> Result<(), Error> {
        Err(read_only(&self.path, "write").at(offset))
    }

    fn flush(&self) -> Result<(), Error> {
        Ok(())
    }

    fn discard(&self, offset: u64, _len: u64) -> Result<(), Error> {
        Err(read_only(&self.path, "discard").at(offset))
    }

    fn write_zeroes(&self, offset: u64, _len: u64) -> Result<(), Error> {
        Err(read_only(&self.path, "write zeroes to").at(offset))
    }

    fn next_data(&self, from: u64) -> Result<Option<Extent>, Error> {
        for Part { start, len, disk } in &self.parts[self.part(from)..] {
            let Some(disk) = disk else { continue };
            let within = from.saturating_sub(*start);
            let extent = disk.next_data(within)?.and_then(|extent| extent.before(*len));
            if let Some(extent) = extent {
                return Ok(Some(Extent { offset: start + extent.offset, len: extent.len }));
            }
        }
        Ok(None)
    }

    fn is_read_only(&self) -> bool {
        true
    }

    fn share(&self, offset: u64, len: u64, file: &File, at: u64) -> io::Result<u64> {
        let Part { start, len: part, disk } = &self.parts[self.part(offset)];
        let len = len.min(start + part - offset);
        disk.as_ref().map_or(Ok(0), |disk| disk.share(offset - start, len, file, at))
    }
}
