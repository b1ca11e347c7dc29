//! A decorator whose disk can be exchanged for another of the same content while it is in use: how a
//! running guest's writes go on into a new overlay when the one so far is kept as a layer.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use crate::block::{Block, Extent};
use crate::error::{Error, ErrorKind};

/// Passes everything on to the current disk.
pub struct Switch {
    current: RwLock<Arc<dyn Block>>,
    len: u64,
}

impl Switch {
    /// Starts with `disk`.
    pub fn new(disk: Arc<dyn Block>) -> Switch {
        Switch { len: disk.len(), current: RwLock::new(disk) }
    }

    /// Returns the current disk.
    pub fn current(&self) -> Arc<dyn Block> {
        Arc::clone(&self.read())
    }

    /// Goes on with `disk`, once the requests under way are done, and returns the one before it.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when `disk` is of another size, which no user of a disk expects.
    pub fn replace(&self, disk: Arc<dyn Block>) -> Result<Arc<dyn Block>, Error> {
        if disk.len() != self.len {
            return Err(Error::new(ErrorKind::Invalid, "exchange").because(format!(
                "the disk has {} bytes, and {} are to be exchanged for it",
                disk.len(),
                self.len
            )));
        }
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        Ok(std::mem::replace(&mut *current, disk))
    }

    fn read(&self) -> RwLockReadGuard<'_, Arc<dyn Block>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Block for Switch {
    fn len(&self) -> u64 {
        self.len
    }

    fn cluster_size(&self) -> u64 {
        self.read().cluster_size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Error> {
        self.read().read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), Error> {
        self.read().write_at(buf, offset)
    }

    fn flush(&self) -> Result<(), Error> {
        self.read().flush()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), Error> {
        self.read().discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), Error> {
        self.read().write_zeroes(offset, len)
    }

    fn next_data(&self, from: u64) -> Result<Option<Extent>, Error> {
        self.read().next_data(from)
    }

    fn is_read_only(&self) -> bool {
        self.read().is_read_only()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryBlock;

    #[test]
    fn writes_go_to_the_disk_of_the_moment() {
        let (first, second) = (MemoryBlock::zeroes(4096), MemoryBlock::zeroes(4096));
        let (first, second) = (Arc::new(first), Arc::new(second));
        let switch = Switch::new(Arc::clone(&first) as Arc<dyn Block>);
        switch.write_at(&[1; 512], 0).unwrap();
        switch.replace(Arc::clone(&second) as Arc<dyn Block>).unwrap();
        switch.write_at(&[2; 512], 0).unwrap();
        let mut buf = [0; 512];
        first.read_at(&mut buf, 0).unwrap();
        assert_eq!(buf, [1; 512]);
        second.read_at(&mut buf, 0).unwrap();
        assert_eq!(buf, [2; 512]);
    }

    #[test]
    fn a_disk_of_another_size_is_refused() {
        let switch = Switch::new(Arc::new(MemoryBlock::zeroes(4096)));
        let error = switch.replace(Arc::new(MemoryBlock::zeroes(8192))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert_eq!(switch.len(), 4096);
    }
}
