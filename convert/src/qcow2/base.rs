//! The backing file of an image being written, of which only the differences are stored.

use std::sync::Arc;

use kvmbake_disk::Block;

use crate::chunk::next_extent;
use crate::error::Error;

/// The backing file, walked in the disk's order beside it.
pub(super) struct Base {
    disk: Arc<dyn Block>,
    cluster: u64,
    /// The disk's clusters are done up to here.
    next: u64,
    /// The backing file may hold data up to here, from `next` on.
    data_end: u64,
}

impl Base {
    pub(super) fn new(disk: Arc<dyn Block>, cluster: u64) -> Base {
        Base { disk, cluster, next: 0, data_end: 0 }
    }

    /// Returns the backing file's content.
    pub(super) fn disk(&self) -> &Arc<dyn Block> {
        &self.disk
    }

    /// Returns the next cluster before `end` that was not passed and in which the backing file may
    /// hold data: one of zeroes on the disk, which must hide them.
    pub(super) fn next_hidden(&mut self, end: u64) -> Result<Option<u64>, Error> {
        let end = end.min(self.disk.len());
        if self.next >= self.data_end.min(end) {
            let Some(extent) = next_extent(&*self.disk, self.next, end)? else {
                self.next = self.next.max(end);
                return Ok(None);
            };
            self.next = self.next.max(extent.offset / self.cluster * self.cluster);
            self.data_end = extent.end();
        }
        let cluster = self.next / self.cluster;
        self.next = (cluster + 1) * self.cluster;
        Ok(Some(cluster))
    }

    /// Passes the clusters before `end`, which are not of zeroes.
    pub(super) fn pass(&mut self, end: u64) {
        self.next = self.next.max(end);
    }
}

#[cfg(test)]
mod tests {
    use kvmbake_disk::MemoryBlock;

    use super::*;

    #[test]
    fn what_the_backing_file_holds_and_nobody_passed_is_hidden() {
        // Memory gives out its data in pages of 4 KiB.
        let mut bytes = vec![0; 10 * 4096 + 512];
        for cluster in [1, 2, 4, 5, 7, 10] {
            bytes[cluster * 4096 + 5] = 1;
        }
        let mut base = Base::new(Arc::new(MemoryBlock::read_only(bytes)), 4096);
        let mut hidden = |until: u64, pass: u64| {
            let mut found = Vec::new();
            while let Some(cluster) = base.next_hidden(until * 4096).unwrap() {
                found.push(cluster);
            }
            base.pass(pass * 4096);
            found
        };
        assert_eq!(hidden(1, 2), [0; 0]);
        assert_eq!(hidden(5, 6), [2, 4]);
        assert_eq!(hidden(6, 6), [0; 0]);
        assert_eq!(hidden(9, 9), [7]);
        assert_eq!(hidden(u64::MAX / 4096, 0), [10]);
        assert_eq!(hidden(u64::MAX / 4096, 0), [0; 0]);
    }
}
