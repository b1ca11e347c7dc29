//! The disk of the guest under construction: an overlay takes its writes, and when what was written
//! is to become a layer, a new overlay on top of it takes the next ones.
//!
//! The overlays are worthless until the cache or an export has made something of them, so a guest's
//! flushes cost nothing (`docs/decisions/0004`).

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use kvmbake_disk::{
    Block, Counted, Counts, Error, ErrorKind, Qcow2Block, Switch, Volatile, create_overlay,
};

/// The guest's disk, with its overlays in a folder of the build.
pub struct GuestDisk {
    block: Arc<Counted<Arc<dyn Block>>>,
    switch: Arc<Switch>,
    folder: PathBuf,
    /// The overlay that takes the writes.
    top: Mutex<Arc<Qcow2Block>>,
}

impl GuestDisk {
    /// Lays the first overlay, of `size` bytes, on `below`. The overlays are made in `folder`, which
    /// several disks may share.
    ///
    /// # Errors
    /// What making the overlay met.
    pub fn new(folder: &Path, below: Arc<dyn Block>, size: u64) -> Result<GuestDisk, Error> {
        let overlay = new_overlay(folder, &below, size)?;
        let switch = Arc::new(Switch::new(Arc::clone(&overlay) as Arc<dyn Block>));
        let volatile = Arc::new(Volatile(Arc::clone(&switch))) as Arc<dyn Block>;
        Ok(GuestDisk {
            block: Arc::new(Counted::new(volatile)),
            switch,
            folder: folder.to_owned(),
            top: Mutex::new(overlay),
        })
    }

    /// Returns the disk as the machine gets it.
    pub fn block(&self) -> Arc<dyn Block> {
        Arc::clone(&self.block) as Arc<dyn Block>
    }

    /// Returns what has passed through so far.
    pub fn counts(&self) -> Counts {
        self.block.counts()
    }

    /// Ends the current overlay, and lets the guest go on in a new one on top of it. Returns the one
    /// that was ended; the guest must be paused meanwhile.
    ///
    /// # Errors
    /// What the file system met; the guest's disk is as it was then, or read-only.
    pub fn split(&self) -> Result<Arc<Qcow2Block>, Error> {
        let mut top = self.top.lock().unwrap_or_else(PoisonError::into_inner);
        top.freeze()?;
        let below = Arc::clone(&*top) as Arc<dyn Block>;
        let overlay = new_overlay(&self.folder, &below, top.len())?;
        self.switch.replace(Arc::clone(&overlay) as Arc<dyn Block>)?;
        Ok(std::mem::replace(&mut top, overlay))
    }

    /// Ends the current overlay for good, when the guest is gone.
    ///
    /// # Errors
    /// What the file system met.
    pub fn finish(&self) -> Result<Arc<Qcow2Block>, Error> {
        let top = self.top.lock().unwrap_or_else(PoisonError::into_inner);
        top.freeze()?;
        Ok(Arc::clone(&*top))
    }
}

/// Makes an overlay under the first name that is free in `folder`.
fn new_overlay(folder: &Path, below: &Arc<dyn Block>, size: u64) -> Result<Arc<Qcow2Block>, Error> {
    let mut number = 1;
    loop {
        let path = folder.join(format!("overlay-{number}.qcow2"));
        match create_overlay(&path, Arc::clone(below), size) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => number += 1,
            made => return made,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvmbake_disk::MemoryBlock;

    #[test]
    fn what_was_written_before_a_split_stays_below_it() {
        let folder = tempfile::tempdir().unwrap();
        let base = Arc::new(MemoryBlock::zeroes(1 << 20));
        let disk = GuestDisk::new(folder.path(), base, 2 << 20).unwrap();
        let guest = disk.block();
        guest.write_at(&[1; 512], 0).unwrap();
        let first = disk.split().unwrap();
        guest.write_at(&[2; 512], 0).unwrap();
        guest.write_at(&[3; 512], 1 << 20).unwrap();
        let second = disk.finish().unwrap();
        let byte = |disk: &dyn Block, offset| {
            let mut buf = [0];
            disk.read_at(&mut buf, offset).unwrap();
            buf[0]
        };
        assert_eq!([byte(&*first, 0), byte(&*first, 1 << 20)], [1, 0]);
        assert_eq!([byte(&*second, 0), byte(&*second, 1 << 20)], [2, 3]);
        assert_ne!(first.path(), second.path());
        assert!(guest.write_at(&[4; 512], 0).is_err());
        assert_eq!(disk.counts().errors, 1);
    }
}
