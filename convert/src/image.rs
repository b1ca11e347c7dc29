//! Opening an image of any format for reading, and describing it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kvmbake_disk::Block;

use crate::error::{Error, unsupported};
use crate::format::Format;
use crate::mapped::ImageFile;
use crate::{qcow2, vdi, vhd, vmdk};

/// How to open an image.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// The format; `None` probes, which is only right for files that no guest has written.
    pub format: Option<Format>,
    /// Directories below which a qcow2 image may name backing and data files.
    pub allow_backing: Vec<PathBuf>,
}

impl OpenOptions {
    /// Returns options that pin the format.
    pub fn with_format(format: Format) -> OpenOptions {
        OpenOptions { format: Some(format), ..OpenOptions::default() }
    }
}

/// A reader's result: the disk, and what there is to tell about its image.
pub(crate) struct Opened {
    disk: Arc<dyn Block>,
    details: Vec<(&'static str, String)>,
}

impl Opened {
    pub(crate) fn new(disk: impl Block + 'static, details: Vec<(&'static str, String)>) -> Opened {
        Opened { disk: Arc::new(disk), details }
    }
}

/// Opens the disk in an image, read-only.
///
/// The structure of VDI, VHD and VMDK images is checked as a whole: every table and every block
/// lies inside the file and overlaps nothing. No file that the image names is opened, but for
/// qcow2 those that the options allow.
///
/// # Errors
/// [`Error::Ambiguous`] when probing finds two formats; otherwise what the image or the host's
/// file system answered, naming the file and the reason.
pub fn open(path: &Path, options: &OpenOptions) -> Result<Arc<dyn Block>, Error> {
    let format = options.format.map_or_else(|| probe(path), Ok)?;
    Ok(open_as(path, format, options)?.disk)
}

fn open_as(path: &Path, format: Format, options: &OpenOptions) -> Result<Opened, Error> {
    Ok(match format {
        Format::Raw => open_with_disk(path, kvmbake_disk::Format::Raw, options)?,
        Format::Qcow2 => open_with_disk(path, kvmbake_disk::Format::Qcow2, options)?,
        Format::Vdi => vdi::open(ImageFile::open(path)?)?,
        Format::Vhd => vhd::open(ImageFile::open(path)?)?,
        Format::Vmdk => vmdk::open(ImageFile::open(path)?)?,
    })
}

fn open_with_disk(
    path: &Path,
    format: kvmbake_disk::Format,
    options: &OpenOptions,
) -> Result<Opened, Error> {
    let options = kvmbake_disk::OpenOptions {
        format: Some(format),
        allow_backing: options.allow_backing.clone(),
        ..kvmbake_disk::OpenOptions::default()
    };
    let disk = kvmbake_disk::open(path, &options)?;
    let details = match format {
        kvmbake_disk::Format::Raw => Vec::new(),
        kvmbake_disk::Format::Qcow2 => qcow2::details(&ImageFile::open(path)?)?,
    };
    Ok(Opened { disk, details })
}

/// Returns the format that the file's bytes show; what shows none is raw.
///
/// # Errors
/// [`Error::Ambiguous`] when they show two; unsupported for formats that are known but not read.
pub fn probe(path: &Path) -> Result<Format, Error> {
    let image = ImageFile::open(path)?;
    let mut start = [0; 512];
    let len = image.len.min(512);
    image.read(&mut start[..len as usize], 0)?;
    let mut end = [0; vhd::FOOTER_LEN];
    if let Some(at) = image.len.checked_sub(end.len() as u64) {
        image.read(&mut end, at)?;
    }
    for (magic, name) in
        [(&b"vhdxfile"[..], "VHDX"), (&b"COWD"[..], "VMDK (ESX COW)"), (&b"QED\0"[..], "QED")]
    {
        if start.starts_with(magic) {
            return Err(unsupported(path, format!("it is a {name} image")).into());
        }
    }
    let signature = start[vdi::SIGNATURE_AT..vdi::SIGNATURE_AT + 4] == vdi::SIGNATURE.to_le_bytes();
    let mut found = [
        (start.starts_with(&qcow2::MAGIC), Format::Qcow2),
        (signature, Format::Vdi),
        (start.starts_with(&vhd::COOKIE) || end.starts_with(&vhd::COOKIE), Format::Vhd),
        (
            start.starts_with(&vmdk::MAGIC) || start.starts_with(vmdk::DESCRIPTOR_MAGIC),
            Format::Vmdk,
        ),
    ]
    .into_iter()
    .filter_map(|(fits, format)| fits.then_some(format));
    match (found.next(), found.next()) {
        (None, _) => Ok(Format::Raw),
        (Some(format), None) => Ok(format),
        (Some(first), Some(second)) => {
            Err(Error::Ambiguous { path: path.to_owned(), first, second })
        }
    }
}

/// What `kvmbake info` tells about an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageInfo {
    /// The file.
    pub path: PathBuf,
    /// Its format, as given or probed.
    pub format: Format,
    /// The disk's size in bytes.
    pub virtual_size: u64,
    /// The file's length in bytes.
    pub file_size: u64,
    /// The bytes that the file occupies on the host, without its holes.
    pub allocated: u64,
    /// What else the format tells, as names and values.
    pub details: Vec<(&'static str, String)>,
}

/// Opens the image as [`open`] does and describes it.
///
/// # Errors
/// Those of [`open`].
pub fn info(path: &Path, options: &OpenOptions) -> Result<ImageInfo, Error> {
    let format = options.format.map_or_else(|| probe(path), Ok)?;
    let opened = open_as(path, format, options)?;
    let file = ImageFile::open(path)?;
    Ok(ImageInfo {
        path: path.to_owned(),
        format,
        virtual_size: opened.disk.len(),
        file_size: file.len,
        allocated: file.allocated,
        details: opened.details,
    })
}
