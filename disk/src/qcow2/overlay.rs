//! Overlays: the qcow2 images that a guest's writes go to, over any disk.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, RwLock};

use imago::qcow2::Qcow2;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatCreateBuilder, FormatDriverBuilder};

use super::header::{self, Header};
use super::store::Store;
use super::{Qcow2Block, base_format, structure};
use crate::block::Block;
use crate::error::{Error, ErrorKind};
use crate::host_file::HostFile;
use crate::lock::{self, Use};

/// The cluster size of the overlays made here.
const OVERLAY_CLUSTER_SIZE: u64 = 64 * 1024;

/// Makes a new qcow2 overlay at `path`: what is not written to it reads from `base`, and as
/// zeroes behind the end of `base`. The overlay is locked for writing until it is frozen or closed.
///
/// The overlay does not name its base: it is of use only through the returned disk, and later
/// to somebody who knows the base and calls [`open_overlay`]. So nothing that a guest writes can
/// make a later reader open a file. The file belongs to its owner alone (mode 0600).
///
/// # Errors
/// [`ErrorKind::AlreadyExists`]; [`ErrorKind::Invalid`] when `virtual_size` is smaller than the
/// base; otherwise what creating met, in which case no file is left behind.
pub fn create_overlay(
    path: &Path,
    base: Arc<dyn Block>,
    virtual_size: u64,
) -> Result<Arc<Qcow2Block>, Error> {
    if virtual_size < base.len() {
        return Err(Error::new(ErrorKind::Invalid, "create")
            .on(path)
            .because(format!(
                "a disk of {virtual_size} bytes is smaller than its base of {} bytes",
                base.len()
            ))
            .with_hint("Disks only grow: give at least the size of the base image"));
    }
    let file = HostFile::create(path)?;
    fill_overlay(file, path, base, virtual_size).inspect_err(|_| {
        // Nothing to report beyond the first error.
        let _ = std::fs::remove_file(path);
    })
}

fn fill_overlay(
    file: HostFile,
    path: &Path,
    base: Arc<dyn Block>,
    virtual_size: u64,
) -> Result<Arc<Qcow2Block>, Error> {
    lock::lock(file.file(), path, Use::Write)?;
    let backing = base_format(Some(&base), path)?;
    let store = Store::image(file);
    let file = store.file_store();
    let image = Qcow2::<Store>::create_builder(store)
        .cluster_size(OVERLAY_CLUSTER_SIZE as usize)
        .size(virtual_size)
        .create_open(DenyImplicitOpenGate::default(), |store| {
            Ok(Qcow2::builder(store).backing(backing))
        })
        .map_err(|error| Error::io("create", error).on(path))?;
    let image = FormatAccess::new(image);
    image.flush().map_err(|error| Error::io("create", error).on(path))?;
    Ok(Arc::new(Qcow2Block {
        len: image.size(),
        image,
        base: Some(base),
        clusters: RwLock::new(()),
        path: path.to_owned(),
        cluster_size: OVERLAY_CLUSTER_SIZE,
        version: 3,
        writable: AtomicBool::new(true),
        file,
    }))
}

/// Opens, for reading, an overlay that [`create_overlay`] made on `base`.
///
/// # Errors
/// As [`open`](crate::open()); [`ErrorKind::NamesOtherFile`] when the file names a backing file or a
/// data file, which no overlay made here does; [`ErrorKind::Invalid`] when it is smaller than `base`.
pub fn open_overlay(path: &Path, base: Arc<dyn Block>) -> Result<Arc<Qcow2Block>, Error> {
    let file = HostFile::open(path, false)?;
    lock::lock(file.file(), path, Use::Read)?;
    let header = Header::read(&file)?;
    header.refuse_dirty(&file)?;
    if header.backing.is_some() || header.data_file.is_some() {
        return Err(Error::new(ErrorKind::NamesOtherFile, "open")
            .on(path)
            .because("an overlay names no other file, and this one does"));
    }
    if let Some(feature) = header.read_only_feature() {
        return Err(header::unsupported(
            &file,
            format!("{feature}, which no overlay made here does"),
        ));
    }
    if header.size < base.len() {
        return Err(Error::new(ErrorKind::Invalid, "open").on(path).because(format!(
            "a disk of {} bytes is smaller than its base of {} bytes",
            header.size,
            base.len()
        )));
    }
    let data_len = file.len();
    structure::check(&file, &header, data_len)?;
    let image = Qcow2::builder(Store::image(file))
        .write(false)
        .backing(base_format(Some(&base), path)?)
        .open(DenyImplicitOpenGate::default())
        .map_err(|error| Error::io("open", error).on(path))?;
    Ok(Arc::new(Qcow2Block::new(image, Some(base), path, &header, false)))
}
