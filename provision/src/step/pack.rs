//! Files of the guest in one file of the host, and from there to where the profile wants them.
//!
//! A download is packed first: the pack goes into the step's layer, so that the files are there again when the step is
//! taken from the cache. The form: a line that names it; then for each thing its type (`f`, `d`, `l`), the number of the
//! download, the permissions, the length of the path, the path, the length of the content, the content; numbers in
//! little endian, the last in 8 bytes, the others in 4.
//!
//! Names and links come from the guest. A path is a chain of plain names, and links are made last, into folders that
//! are none, and only those that stay within what was downloaded.

use std::fs::{self, File, Permissions};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::session::mark_number;

const MAGIC: &[u8] = b"kvmbake downloads 1\n";
/// The longest path that Linux takes.
const MAX_PATH: u32 = 4096;

/// What a thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Folder,
    Link,
}

impl Kind {
    fn letter(self) -> u8 {
        match self {
            Kind::File => b'f',
            Kind::Folder => b'd',
            Kind::Link => b'l',
        }
    }
}

/// Writes a pack.
pub(super) struct Packer {
    out: BufWriter<File>,
}

impl Packer {
    /// Begins a pack at `path`, in the place of an earlier one.
    pub(super) fn create(path: &Path) -> io::Result<Packer> {
        let mut options = File::options();
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(path)?;
        let mut out = BufWriter::with_capacity(256 << 10, file);
        out.write_all(MAGIC)?;
        Ok(Packer { out })
    }

    fn head(&mut self, kind: Kind, item: u32, mode: u32, path: &[u8], size: u64) -> io::Result<()> {
        let length = u32::try_from(path.len()).ok().filter(|length| *length <= MAX_PATH);
        let length = length.ok_or_else(|| io::Error::other("a path that is too long"))?;
        self.out.write_all(&[kind.letter()])?;
        for number in [item, mode, length] {
            self.out.write_all(&number.to_le_bytes())?;
        }
        self.out.write_all(path)?;
        self.out.write_all(&size.to_le_bytes())
    }

    /// Adds a folder, or a link with what it says.
    pub(super) fn add(
        &mut self,
        kind: Kind,
        item: u32,
        mode: u32,
        path: &[u8],
        content: &[u8],
    ) -> io::Result<()> {
        self.head(kind, item, mode, path, content.len() as u64)?;
        self.out.write_all(content)
    }

    /// Begins a file, whose length is known at its end.
    pub(super) fn begin(&mut self, item: u32, mode: u32, path: &[u8]) -> io::Result<()> {
        self.head(Kind::File, item, mode, path, 0)
    }

    /// Adds to the file that was begun.
    pub(super) fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)
    }

    /// Ends the file, which has `size` bytes.
    pub(super) fn end(&mut self, size: u64) -> io::Result<()> {
        if size == 0 {
            return Ok(());
        }
        let end = self.out.stream_position()?;
        let at =
            end.checked_sub(size + 8).ok_or_else(|| io::Error::other("a file before it began"))?;
        self.out.seek(SeekFrom::Start(at))?;
        self.out.write_all(&size.to_le_bytes())?;
        self.out.seek(SeekFrom::Start(end)).map(|_| ())
    }

    pub(super) fn finish(mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Where the files of one download go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The folder; with `renamed`, the file.
    pub path: PathBuf,
    /// Whether a single file gets the path's name instead of going below it by its own.
    pub renamed: bool,
}

/// Writes what is in a pack to its places: one per download, none for those that have no place here. Each file appears
/// by a rename. Returns the number of files and links.
///
/// # Errors
/// The pack is damaged, or the host's file system fails; the path says where.
pub fn deliver(pack: &File, places: &[Option<Place>]) -> Result<usize, (PathBuf, io::Error)> {
    let mut pack = pack;
    let damaged = |error| (PathBuf::from("the downloads of a layer"), error);
    pack.seek(SeekFrom::Start(0)).map_err(damaged)?;
    let mut pack = BufReader::with_capacity(256 << 10, pack);
    let mut magic = [0; MAGIC.len()];
    pack.read_exact(&mut magic).map_err(damaged)?;
    if magic != MAGIC {
        return Err(damaged(io::Error::other("they have another form")));
    }
    let (mut count, mut links) = (0, Vec::new());
    while let Some(thing) = Thing::read(&mut pack).map_err(damaged)? {
        let mut content = pack.by_ref().take(thing.size);
        let place = places.get(thing.item as usize).and_then(Option::as_ref);
        let Some(place) = place else {
            io::copy(&mut content, &mut io::sink()).map_err(damaged)?;
            continue;
        };
        let target = match place.renamed && thing.kind == Kind::File && !thing.path.contains(&b'/')
        {
            true => place.path.clone(),
            false => place.path.join(std::ffi::OsStr::from_bytes(&thing.path)),
        };
        let failed = |error| (target.clone(), error);
        match thing.kind {
            Kind::Folder => folders(&place.path, &thing.path).map_err(failed)?,
            Kind::File => {
                folders_above(place, &thing.path).map_err(failed)?;
                let mode = (thing.mode & 0o755) | 0o600;
                appear(&target, |path| {
                    let mut options = File::options();
                    let mut file = options.write(true).create_new(true).mode(0o600).open(path)?;
                    let copied = io::copy(&mut content, &mut file)?;
                    if copied != thing.size {
                        return Err(io::Error::other("the pack ends too early"));
                    }
                    file.set_permissions(Permissions::from_mode(mode))
                })
                .map_err(failed)?;
                count += 1;
            }
            Kind::Link => {
                let mut says = Vec::new();
                content.take(u64::from(MAX_PATH)).read_to_end(&mut says).map_err(damaged)?;
                if stays_within(&thing.path, &says) {
                    links.push((place, thing.path, target, says));
                }
            }
        }
    }
    for (place, path, target, says) in links {
        let failed = |error| (target.clone(), error);
        folders_above(place, &path).map_err(failed)?;
        let says = Path::new(std::ffi::OsStr::from_bytes(&says));
        appear(&target, |path| symlink(says, path)).map_err(failed)?;
        count += 1;
    }
    Ok(count)
}

/// What stands before a thing's content.
struct Thing {
    kind: Kind,
    item: u32,
    mode: u32,
    path: Vec<u8>,
    size: u64,
}

impl Thing {
    /// Reads the next one; none at the end.
    fn read(pack: &mut impl Read) -> io::Result<Option<Thing>> {
        let mut letter = [0];
        if pack.read(&mut letter)? == 0 {
            return Ok(None);
        }
        let kind = [Kind::File, Kind::Folder, Kind::Link];
        let kind = kind.into_iter().find(|kind| kind.letter() == letter[0]);
        let kind = kind.ok_or_else(|| io::Error::other("a thing of no known type"))?;
        let mut number = || {
            let mut bytes = [0; 4];
            pack.read_exact(&mut bytes).map(|()| u32::from_le_bytes(bytes))
        };
        let (item, mode, length) = (number()?, number()?, number()?);
        if length > MAX_PATH {
            return Err(io::Error::other("a path that is too long"));
        }
        let mut path = vec![0; length as usize];
        pack.read_exact(&mut path)?;
        let mut size = [0; 8];
        pack.read_exact(&mut size)?;
        if !is_plain(&path) {
            return Err(io::Error::other("a path that leads elsewhere"));
        }
        Ok(Some(Thing { kind, item, mode, path, size: u64::from_le_bytes(size) }))
    }
}

/// Whether a path is a chain of names that leads nowhere but down.
pub(super) fn is_plain(path: &[u8]) -> bool {
    path.split(|&byte| byte == b'/')
        .all(|name| !matches!(name, b"" | b"." | b"..") && !name.contains(&0))
}

/// Whether a link at `path` leads to something that is below the same folder as `path`.
pub(super) fn stays_within(path: &[u8], says: &[u8]) -> bool {
    if says.first().is_none_or(|first| *first == b'/') || says.contains(&0) {
        return false;
    }
    let mut depth = path.iter().filter(|&&byte| byte == b'/').count();
    says.split(|&byte| byte == b'/').all(|name| match name {
        b"" | b"." => true,
        b".." => match depth.checked_sub(1) {
            Some(less) => {
                depth = less;
                true
            }
            None => false,
        },
        _ => {
            depth += 1;
            true
        }
    })
}

fn folders_above(place: &Place, path: &[u8]) -> io::Result<()> {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(end) => folders(&place.path, &path[..end]),
        None if place.renamed => place.path.parent().map_or(Ok(()), fs::create_dir_all),
        None => fs::create_dir_all(&place.path),
    }
}

/// Makes the folders of `path` below `base`, each of which must be a folder indeed and no link to one.
fn folders(base: &Path, path: &[u8]) -> io::Result<()> {
    fs::create_dir_all(base)?;
    let mut folder = base.to_path_buf();
    for name in path.split(|&byte| byte == b'/') {
        folder.push(std::ffi::OsStr::from_bytes(name));
        match fs::DirBuilder::new().mode(0o755).create(&folder) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if !fs::symlink_metadata(&folder)?.is_dir() {
                    return Err(io::Error::other("something that is no folder is in the way"));
                }
            }
            made => made?,
        }
    }
    Ok(())
}

/// Makes something beside `target`, and renames it to there.
fn appear(target: &Path, make: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    let unfinished = target.with_file_name(format!(".kvmbake-{:016x}", mark_number()));
    let made = make(&unfinished).and_then(|()| fs::rename(&unfinished, target));
    if made.is_err() {
        let _ = fs::remove_file(&unfinished);
    }
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pack(things: &[(Kind, &[u8], &[u8])]) -> (tempfile::TempDir, File) {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("pack");
        let mut packer = Packer::create(&path).expect("pack");
        for (kind, path, content) in things {
            if *kind == Kind::File {
                packer.begin(0, 0o4777, path).expect("begin");
                packer.push(content).expect("push");
                packer.end(content.len() as u64).expect("end");
            } else {
                packer.add(*kind, 0, 0o700, path, content).expect("add");
            }
        }
        packer.finish().expect("finish");
        let file = File::open(path).expect("open");
        (folder, file)
    }

    fn delivered(things: &[(Kind, &[u8], &[u8])]) -> (tempfile::TempDir, Result<usize, String>) {
        let (_folder, file) = pack(things);
        let target = tempfile::tempdir().expect("folder");
        let place = Place { path: target.path().join("in"), renamed: false };
        let result = deliver(&file, &[Some(place)]);
        (target, result.map_err(|(path, error)| format!("{}: {error}", path.display())))
    }

    #[test]
    fn files_folders_and_links_come_back() {
        let (target, count) = delivered(&[
            (Kind::Folder, b"a", b""),
            (Kind::Link, b"a/link", b"../b\xff"),
            (Kind::File, b"a/b/c", b"content"),
            (Kind::File, b"b\xff", b""),
        ]);
        assert_eq!(count, Ok(3));
        let path = target.path().join("in");
        assert_eq!(fs::read(path.join("a/b/c")).expect("file"), b"content");
        let mode = fs::metadata(path.join("a/b/c")).expect("file").permissions().mode();
        assert_eq!(mode & 0o7777, 0o755, "neither set-user-ID nor writable by others");
        assert_eq!(fs::read(path.join("a/link")).expect("through the link"), b"");
    }

    #[test]
    fn nothing_leads_out_of_the_folder() {
        for path in [&b"../x"[..], b"/x", b"a/../../x", b"", b"a//b", b"a/\0"] {
            let (target, result) = delivered(&[(Kind::File, path, b"x")]);
            assert!(result.is_err(), "{path:?}");
            assert!(!target.path().join("x").exists());
        }
        // A link that is a folder a moment later, in whatever order.
        let (target, result) = delivered(&[
            (Kind::Link, b"a", b"b"),
            (Kind::Folder, b"b", b""),
            (Kind::File, b"a/x", b"x"),
        ]);
        assert!(result.is_err() || target.path().join("in/a/x").exists());
        for says in [&b"/etc"[..], b"../x", b"a/../../x", b"./../.."] {
            let (target, result) = delivered(&[(Kind::Link, b"link", says)]);
            assert_eq!(result, Ok(0), "{says:?}");
            assert!(target.path().join("in/link").symlink_metadata().is_err());
        }
        let (target, _) = delivered(&[(Kind::Link, b"a/link", b"../b/c")]);
        assert!(target.path().join("in/a/link").symlink_metadata().is_ok());
    }

    #[test]
    fn a_folder_of_the_host_that_is_a_link_is_not_written_through() {
        let (_folder, file) = pack(&[(Kind::File, b"a/x", b"x")]);
        let target = tempfile::tempdir().expect("folder");
        let outside = tempfile::tempdir().expect("folder");
        symlink(outside.path(), target.path().join("a")).expect("link");
        let place = Place { path: target.path().into(), renamed: false };
        assert!(deliver(&file, &[Some(place)]).is_err());
        assert_eq!(fs::read_dir(outside.path()).expect("list").count(), 0);
    }

    #[test]
    fn a_single_file_takes_the_name_and_downloads_without_a_place_are_passed_over() {
        let (_folder, file) = pack(&[(Kind::File, b"os-release", b"x")]);
        let target = tempfile::tempdir().expect("folder");
        let path = target.path().join("deep/name");
        let place = Place { path: path.clone(), renamed: true };
        assert_eq!(deliver(&file, &[None]).expect("done"), 0);
        assert_eq!(deliver(&file, &[Some(place.clone())]).expect("done"), 1);
        // In the place of what is there.
        assert_eq!(deliver(&file, &[Some(place)]).expect("done"), 1);
        assert_eq!(fs::read(path).expect("file"), b"x");
        assert_eq!(fs::read_dir(target.path().join("deep")).expect("list").count(), 1);
    }

    #[test]
    fn a_damaged_pack_is_an_error_wherever_it_is_cut() {
        let (folder, _) = pack(&[(Kind::File, b"a", b"content"), (Kind::Folder, b"b", b"")]);
        let bytes = fs::read(folder.path().join("pack")).expect("pack");
        let cut_between = MAGIC.len() + 1 + 12 + 1 + 8 + 7;
        for cut in 0..bytes.len() {
            let path = folder.path().join("cut");
            fs::write(&path, &bytes[..cut]).expect("write");
            let place = Place { path: folder.path().join("out"), renamed: false };
            let result = deliver(&File::open(&path).expect("open"), &[Some(place)]);
            assert_eq!(result.is_ok(), cut == MAGIC.len() || cut == cut_between, "{cut}");
        }
    }
}
