//! Opening an image of any format for reading, and describing it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kvmbake_disk::{Block, named};

use crate::chunk::next_extent;
use crate::detail::{Detail, Details};
use crate::error::{Error, unsupported};
use crate::format::Format;
use crate::mapped::{ImageFile, LinearDisk};
use crate::raw::Packing;
use crate::{ova, qcow2, vdi, vhd, vhdx, vmdk};

/// How to open an image.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// The format; `None` probes, which is only right for files that no guest has written. A raw
    /// image that is compressed as a whole is found only by probing.
    pub format: Option<Format>,
    /// Directories below which an image may name other files: backing and data files of qcow2,
    /// extents of VMDK.
    pub allow_backing: Vec<PathBuf>,
    /// Where a compressed raw image is unpacked; the system's temporary directory when absent.
    pub scratch: Option<PathBuf>,
}

impl OpenOptions {
    /// Returns options that pin the format.
    pub fn with_format(format: Format) -> OpenOptions {
        OpenOptions { format: Some(format), ..OpenOptions::default() }
    }
}

/// A reader's result: the disk, and what there is to tell about its image.
pub(crate) struct Opened {
    pub(crate) disk: Arc<dyn Block>,
    pub(crate) details: Details,
    /// What is wrong without making it unreadable.
    pub(crate) problems: Vec<String>,
    /// What a person should know of how it is read.
    pub(crate) notes: Vec<String>,
    /// Bytes of the file that nothing refers to, where that is known.
    pub(crate) unused: Option<u64>,
}

impl Opened {
    pub(crate) fn new(disk: impl Block + 'static, details: Details) -> Opened {
        Opened::of(Arc::new(disk), details)
    }

    pub(crate) fn of(disk: Arc<dyn Block>, details: Details) -> Opened {
        Opened { disk, details, problems: Vec::new(), notes: Vec::new(), unused: None }
    }

    /// Notes how many bytes of the file something refers to, headers included.
    pub(crate) fn accounting_for(mut self, used: u64, len: u64) -> Opened {
        self.unused = Some(len.saturating_sub(used));
        self
    }

    pub(crate) fn with_problem(mut self, problem: String) -> Opened {
        self.problems.push(problem);
        self
    }

    pub(crate) fn with_note(mut self, note: impl Into<String>) -> Opened {
        self.notes.push(note.into());
        self
    }

    pub(crate) fn with_detail(mut self, name: &'static str, value: impl Into<Detail>) -> Opened {
        self.details.push((name, value.into()));
        self
    }
}

/// Opens the disk in an image, read-only.
///
/// The structure of the image is checked as a whole: every table and every block lies inside the
/// file and overlaps nothing. No file that the image names is opened, but for those that the
/// options allow.
///
/// # Errors
/// [`Error::Ambiguous`] when probing finds two formats; otherwise what the image or the host's
/// file system answered, naming the file and the reason.
pub fn open(path: &Path, options: &OpenOptions) -> Result<Arc<dyn Block>, Error> {
    Ok(open_image(path, options)?.1.disk)
}

/// Opens the disk in an image as [`open`] does; returns also what a person should know of how it
/// is read, such as that its last user did not close it.
///
/// # Errors
/// Those of [`open`].
pub fn open_noting(
    path: &Path,
    options: &OpenOptions,
) -> Result<(Arc<dyn Block>, Vec<String>), Error> {
    let opened = open_image(path, options)?.1;
    Ok((opened.disk, opened.notes))
}

/// Opens the image; returns also its format, as given or probed.
pub(crate) fn open_image(path: &Path, options: &OpenOptions) -> Result<(Format, Opened), Error> {
    match options.format {
        Some(format) => Ok((format, open_as(path, format, options)?)),
        None => match probe_image(&ImageFile::open(path)?)? {
            Probed::Plain(format) => Ok((format, open_as(path, format, options)?)),
            Probed::Packed(packing) => Ok((Format::Raw, open_packed(path, packing, options)?)),
        },
    }
}

fn open_as(path: &Path, format: Format, options: &OpenOptions) -> Result<Opened, Error> {
    Ok(match format {
        Format::Raw => open_with_disk(path, kvmbake_disk::Format::Raw, options)?,
        Format::Qcow2 => open_with_disk(path, kvmbake_disk::Format::Qcow2, options)?,
        Format::Vdi => vdi::open(ImageFile::open(path)?)?,
        Format::Vhd => vhd::open(ImageFile::open(path)?)?,
        Format::Vhdx => vhdx::open(ImageFile::open(path)?)?,
        Format::Vmdk => vmdk::open(ImageFile::open(path)?, options)?,
        Format::Ova => ova::open(ImageFile::open(path)?)?,
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
        accept_dirty: true,
        ..kvmbake_disk::OpenOptions::default()
    };
    let disk = kvmbake_disk::open(path, &options)?;
    if format == kvmbake_disk::Format::Raw {
        return Ok(Opened::of(disk, Vec::new()));
    }
    let mut opened = Opened::of(disk, qcow2::details(&ImageFile::open(path)?)?);
    for file in kvmbake_disk::files(path, &options)? {
        if qcow2::is_dirty(&ImageFile::open(&file)?)? {
            let file = if file == path { "it".to_owned() } else { file.display().to_string() };
            opened = opened.with_note(format!(
                "{file} is marked as dirty, its last user did not close it: its refcounts are not used"
            ));
        }
    }
    Ok(opened)
}

/// Opens a raw image that is compressed as a whole.
fn open_packed(path: &Path, packing: Packing, options: &OpenOptions) -> Result<Opened, Error> {
    let scratch = options.scratch.clone().unwrap_or_else(std::env::temp_dir);
    let image = packing.unpack(&ImageFile::open(path)?, &scratch)?;
    match probe_image(&image)? {
        Probed::Plain(Format::Raw) => {}
        Probed::Plain(format) => {
            return Err(unsupported(path, format!("it is a {format} image packed with {packing}"))
                .with_hint("Unpack it first")
                .into());
        }
        Probed::Packed(_) => return Err(unsupported(path, "it is compressed twice").into()),
    }
    let size = image.len;
    let details = vec![("packed with", packing.to_string().into())];
    Ok(Opened::new(LinearDisk { image, size }, details))
}

/// Opens a raw image that is known to be compressed so; it is unpacked beside itself.
pub(crate) fn open_packed_as(path: &Path, packing: Packing) -> Result<Arc<dyn Block>, Error> {
    let scratch = path.parent().filter(|folder| *folder != Path::new(""));
    let image = packing.unpack(&ImageFile::open(path)?, scratch.unwrap_or(Path::new(".")))?;
    let size = image.len;
    Ok(Arc::new(LinearDisk { image, size }))
}

/// What a file's bytes show.
enum Probed {
    Plain(Format),
    /// A whole file compressed: a raw image.
    Packed(Packing),
}

/// Returns the format that the file's bytes show; what shows none is raw, and so is a file that
/// is compressed as a whole.
///
/// # Errors
/// [`Error::Ambiguous`] when they show two; unsupported for formats that are known but not read.
pub fn probe(path: &Path) -> Result<Format, Error> {
    Ok(match probe_image(&ImageFile::open(path)?)? {
        Probed::Plain(format) => format,
        Probed::Packed(_) => Format::Raw,
    })
}

fn probe_image(image: &ImageFile) -> Result<Probed, Error> {
    let path = &image.path;
    let mut start = [0; 512];
    let len = image.len.min(512);
    image.read(&mut start[..len as usize], 0)?;
    let mut end = [0; vhd::FOOTER_LEN];
    if let Some(at) = image.len.checked_sub(end.len() as u64) {
        image.read(&mut end, at)?;
    }
    for (magic, name) in [(&b"COWD"[..], "VMDK (ESX COW)"), (&b"QED\0"[..], "QED")] {
        if start.starts_with(magic) {
            return Err(unsupported(path, format!("it is a {name} image")).into());
        }
    }
    let signature = start[vdi::SIGNATURE_AT..vdi::SIGNATURE_AT + 4] == vdi::SIGNATURE.to_le_bytes();
    let mut found = [
        (start.starts_with(&qcow2::MAGIC), Format::Qcow2),
        (signature, Format::Vdi),
        (start.starts_with(&vhd::COOKIE) || end.starts_with(&vhd::COOKIE), Format::Vhd),
        (start.starts_with(&vhdx::MAGIC), Format::Vhdx),
        (
            start.starts_with(&vmdk::MAGIC) || start.starts_with(vmdk::DESCRIPTOR_MAGIC),
            Format::Vmdk,
        ),
        (ova::looks_like(&start), Format::Ova),
    ]
    .into_iter()
    .filter_map(|(fits, format)| fits.then_some(format));
    let (first, second) = (found.next(), found.next());
    match (first, second, Packing::of(&start)) {
        (None, _, None) => Ok(Probed::Plain(Format::Raw)),
        (None, _, Some(packing)) => Ok(Probed::Packed(packing)),
        (Some(format), None, None) => Ok(Probed::Plain(format)),
        (Some(first), second, _) => Err(Error::Ambiguous {
            path: path.clone(),
            first,
            second: second.unwrap_or(Format::Raw),
        }),
    }
}

/// An image and what it is made from, as [`info`] tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackingInfo {
    /// The file.
    pub path: PathBuf,
    /// Its format, as the image before it states it.
    pub format: Format,
    /// Its virtual size in bytes.
    pub virtual_size: u64,
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
    /// The bytes of the disk that may hold something else than zeroes.
    pub data: u64,
    /// What else the format tells, as names and values.
    pub details: Vec<(&'static str, Detail)>,
    /// What a person should know of how it is read.
    pub notes: Vec<String>,
    /// The files that the image is based on, nearest first.
    pub chain: Vec<BackingInfo>,
}

/// Opens the image as [`open`] does and describes it.
///
/// # Errors
/// Those of [`open`].
pub fn info(path: &Path, options: &OpenOptions) -> Result<ImageInfo, Error> {
    let (format, opened) = open_image(path, options)?;
    let file = ImageFile::open(path)?;
    let mut data = 0;
    let mut next = 0;
    while let Some(extent) = next_extent(&*opened.disk, next, opened.disk.len())? {
        data += extent.len;
        next = extent.end();
    }
    Ok(ImageInfo {
        path: path.to_owned(),
        format,
        virtual_size: opened.disk.len(),
        file_size: file.len,
        allocated: file.allocated,
        data,
        details: opened.details,
        notes: opened.notes,
        chain: chain(path, format, options)?,
    })
}

/// Returns the files that an image is based on.
fn chain(path: &Path, format: Format, options: &OpenOptions) -> Result<Vec<BackingInfo>, Error> {
    let mut chain = Vec::new();
    let (mut path, mut format) = (path.to_owned(), format);
    // The image was opened, so what it names is allowed, and the chain ends.
    while format == Format::Qcow2 {
        let Some(backing) = qcow2::names(&ImageFile::open(&path)?)?.backing else { break };
        path = named::resolve(&path, "backing file", &backing.0, &options.allow_backing)?;
        format = if backing.1.as_deref() == Some("qcow2") { Format::Qcow2 } else { Format::Raw };
        let open_backing = OpenOptions { format: Some(format), scratch: None, ..options.clone() };
        let virtual_size = open(&path, &open_backing)?.len();
        chain.push(BackingInfo { path: path.clone(), format, virtual_size });
    }
    Ok(chain)
}

/// Returns every file that opening the image opens: itself, its backing files, its data file,
/// its extents. Symbolic links are resolved.
///
/// # Errors
/// Those of [`open`].
pub fn files(path: &Path, options: &OpenOptions) -> Result<Vec<PathBuf>, Error> {
    let format = options.format.map_or_else(|| probe(path), Ok)?;
    let mut files = vec![path.to_owned()];
    let allowed = &options.allow_backing;
    match format {
        Format::Qcow2 => {
            let options = kvmbake_disk::OpenOptions {
                format: Some(kvmbake_disk::Format::Qcow2),
                allow_backing: allowed.clone(),
                ..kvmbake_disk::OpenOptions::default()
            };
            files = kvmbake_disk::files(path, &options)?;
        }
        Format::Vmdk => {
            let image = ImageFile::open(path)?;
            for name in vmdk::named_extents(&image)? {
                files.push(named::resolve(path, "extent", &name, allowed)?);
            }
        }
        _ => {}
    }
    Ok(files)
}
