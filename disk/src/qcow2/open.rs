//! Opening qcow2 images: what is checked before imago or our own reader takes over, and the other
//! files that an image names.

use std::path::Path;
use std::sync::Arc;

use imago::qcow2::Qcow2;
use imago::{DenyImplicitOpenGate, FormatDriverBuilder};

use super::header::{self, Header};
use super::reader::Reader;
use super::refcounts::{self, Depth, RefcountReport};
use super::store::Store;
use super::{Qcow2Block, base_format, structure};
use crate::block::Block;
use crate::error::{Error, ErrorKind};
use crate::host_file::HostFile;
use crate::lock::{self, Use};
use crate::open::{OpenOptions, open_backing};

/// Opens a qcow2 image and what it depends on, as far as `options` allow. `depth` counts the
/// images in front of it.
pub(crate) fn open(
    path: &Path,
    options: &OpenOptions,
    depth: usize,
) -> Result<Arc<dyn Block>, Error> {
    let writable = options.writable;
    let file = HostFile::open(path, writable)?;
    let wanted = if writable { Use::Write } else { Use::Read };
    lock::lock(file.file(), path, wanted)?;
    let header = Header::read(&file)?;
    if writable || !options.accept_dirty {
        header.refuse_dirty(&file)?;
    }
    let read_only_feature = header.read_only_feature();
    if let Some(feature) = read_only_feature.filter(|_| writable) {
        return Err(header::unsupported(&file, format!("{feature} and is to be written"))
            .with_hint(format!("Convert it first: kvmbake convert {} new.qcow2", path.display())));
    }

    let data_file = match &header.data_file {
        Some(data_file) => Some(open_data_file(path, data_file, options, wanted)?),
        None => None,
    };
    let data_len = data_file.as_ref().map_or(file.len(), HostFile::len);
    let doubtful = structure::check(&file, &header, data_len)?;
    refuse_low_refcounts(&file, &header)?;
    let own_driver = read_only_feature.is_some() || header.dirty;
    let file_len = file.len();
    let base = match &header.backing {
        Some(backing) => {
            Some(open_backing(path, &backing.name, backing.format.as_deref(), options, depth)?)
        }
        None => None,
    };

    if own_driver {
        let disk = Reader::new(path, file, data_file, base, header)?;
        check_doubtful(&disk, doubtful, path, file_len)?;
        return Ok(Arc::new(disk));
    }
    let image = Qcow2::builder(Store::image(file))
        .write(writable)
        .backing(base_format(base.as_ref(), path)?)
        .data_file(data_file.map(Store::data))
        .open(DenyImplicitOpenGate::default())
        .map_err(|error| Error::io("open", error).on(path))?;
    let disk = Qcow2Block::new(image, base, path, &header, writable);
    check_doubtful(&disk, doubtful, path, file_len)?;
    Ok(Arc::new(disk))
}

/// Refuses an image of which clusters are used more often than they are counted: whoever wrote it
/// last was interrupted or wrong, and whoever writes to it next overwrites data.
///
/// In a dirty image the counts say nothing. They are taken anew there, and must come out as those
/// of a sound image: no table and no data cluster of the disk has a second use.
fn refuse_low_refcounts(file: &HostFile, header: &Header) -> Result<(), Error> {
    match refcounts::check(file, header, Depth::Current)? {
        RefcountReport { overlap: Some(overlap), .. } if header.dirty => Err(header::corrupt(
            file,
            overlap,
            "it is marked as dirty, and a cluster is used twice".into(),
        )
        .with_hint(header::repair(file))),
        _ if header.dirty => Ok(()),
        RefcountReport { too_low, first: Some(first), .. } => Err(header::corrupt(
            file,
            first,
            format!("{too_low} clusters are used more often than their refcounts say"),
        )
        .with_hint(header::repair(file))),
        _ => Ok(()),
    }
}

/// Compares the refcounts of a qcow2 image with what refers to its clusters.
///
/// # Errors
/// What opening the image meets, low refcounts and the mark of a dirty image apart.
pub fn check_refcounts(path: &Path) -> Result<RefcountReport, Error> {
    let file = HostFile::open(path, false)?;
    lock::lock(file.file(), path, Use::Read)?;
    let header = Header::read(&file)?;
    // Data in another file are not counted in this one.
    let data_len = if header.data_file.is_some() { u64::MAX } else { file.len() };
    structure::check(&file, &header, data_len)?;
    refcounts::check(&file, &header, Depth::All)
}

/// Reads where the file may have lost the end of a compressed cluster.
fn check_doubtful(
    disk: &dyn Block,
    doubtful: Option<u64>,
    path: &Path,
    file_len: u64,
) -> Result<(), Error> {
    let Some(offset) = doubtful else { return Ok(()) };
    disk.read_at(&mut [0], offset).map_err(|error| {
        header::ends_early(path, file_len, "a compressed cluster").caused_by(error)
    })
}

/// The other files that an image names.
pub(crate) struct Names {
    /// The data file.
    pub(crate) data_file: Option<String>,
    /// The backing file and its format.
    pub(crate) backing: Option<(String, Option<String>)>,
}

/// Reads from the header at `path` which other files the image names.
pub(crate) fn names(path: &Path) -> Result<Names, Error> {
    let header = Header::read(&HostFile::open(path, false)?)?;
    Ok(Names {
        data_file: header.data_file.and_then(|data_file| data_file.name),
        backing: header.backing.map(|backing| (backing.name, backing.format)),
    })
}

fn open_data_file(
    path: &Path,
    data_file: &header::DataFile,
    options: &OpenOptions,
    wanted: Use,
) -> Result<HostFile, Error> {
    let name = data_file.name.as_deref().ok_or_else(|| {
        Error::new(ErrorKind::Corrupt, "open")
            .on(path)
            .because("it keeps its data in another file, but does not name it")
    })?;
    let resolved = options.resolve(path, "data file", name)?;
    let file = HostFile::open(&resolved, options.writable)?;
    lock::lock(file.file(), &resolved, wanted)?;
    Ok(file)
}
