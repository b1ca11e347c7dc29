//! From an image to a [`Kernel`]: finds the boot loader's configuration, follows it, and reads
//! the files it leads to.
//!
//! Looked for, in this order: `grub.cfg` where distributions keep it, the stub on the EFI system
//! partition that leads to one, and Boot Loader Specification entries without GRUB. Where the EFI
//! system partition is systemd-boot's, its entries come first.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use kvmbake_disk::Block;
use kvmbake_disk::filesystem::FileType;

use super::bls;
use super::cmdline;
use super::error::BootError;
use super::grub::{Interpreter, Outcome, read_block};
use super::kernel::{BootOverrides, FileSource, Kernel, KernelImage};
use super::volumes::{Location, Volumes};

const MAX_KERNEL: u64 = 256 << 20;
const MAX_INITRD: u64 = 1 << 30;
const GRUB_FOLDERS: [&str; 4] = ["/boot/grub", "/grub", "/boot/grub2", "/grub2"];
const ENTRY_FOLDERS: [&str; 2] = ["/loader/entries", "/boot/loader/entries"];

/// A boot entry that leads to a kernel.
struct Found {
    outcome: Outcome,
    /// Such as `grub.cfg entry 'Debian GNU/Linux' on partition 1`.
    origin: String,
}

/// A configuration file or folder to try.
enum Candidate {
    Grub(Location),
    Entries(Location),
}

/// Finds and reads what the image's own boot loader would boot, as changed by `overrides`.
///
/// # Errors
/// [`BootError`] says what was looked at and what was wrong with it.
pub fn discover(disk: Arc<dyn Block>, overrides: &BootOverrides) -> Result<Kernel, BootError> {
    let volumes = Volumes::open(&disk).map_err(BootError::Disk)?;
    // With both given there is nothing to look for in the image.
    let complete = overrides.kernel.is_some() && overrides.cmdline.is_some();
    let found = (!complete).then(|| find(&volumes, overrides.entry.as_deref()));
    let mut origin = Vec::new();

    let (file, name, found) = match (&overrides.kernel, found) {
        (Some(source), found) => {
            let name = describe(source);
            origin.push(format!("kernel {name}"));
            (read_source(&volumes, source, MAX_KERNEL)?, name, found)
        }
        (None, Some(found)) => {
            let found = found?;
            let kernel = kernel_of(&found)?;
            origin.push(format!("{}, by {}", kernel.path, found.origin));
            let file = read_image(&volumes, kernel, MAX_KERNEL, &found.origin)?;
            (file, kernel.path.clone(), Some(Ok(found)))
        }
        (None, None) => return Err(BootError::NothingFound { looked: volumes.describe() }),
    };
    let image =
        KernelImage::parse(file).map_err(|source| BootError::Payload { path: name, source })?;
    let initrd = read_initrd(&volumes, overrides, found.as_ref(), &mut origin);
    let base = base_cmdline(overrides, found, &mut origin)?;
    let cmdline = cmdline::complete(&base, overrides.append.as_deref(), overrides.verbose);
    Ok(Kernel { image, initrd: initrd?, cmdline, origin: origin.join("; ") })
}

fn read_initrd(
    volumes: &Volumes,
    overrides: &BootOverrides,
    found: Option<&Result<Found, BootError>>,
    origin: &mut Vec<String>,
) -> Result<Option<Vec<u8>>, BootError> {
    if !overrides.initrd.is_empty() {
        let names: Vec<String> = overrides.initrd.iter().map(describe).collect();
        origin.push(format!("initrd {}", names.join(" + ")));
        let files = overrides.initrd.iter();
        return join(files.map(|source| read_source(volumes, source, MAX_INITRD)));
    }
    // An initrd of the image belongs to the image's kernel.
    if let (None, Some(Ok(found))) = (&overrides.kernel, found) {
        let files = found.outcome.initrds.iter();
        return join(files.map(|file| read_image(volumes, file, MAX_INITRD, &found.origin)));
    }
    origin.push("no initrd".into());
    Ok(None)
}

fn base_cmdline(
    overrides: &BootOverrides,
    found: Option<Result<Found, BootError>>,
    origin: &mut Vec<String>,
) -> Result<String, BootError> {
    match (&overrides.cmdline, found) {
        (Some(cmdline), _) => {
            origin.push("command line as given".into());
            Ok(cmdline.clone())
        }
        (None, Some(Ok(found))) => {
            if overrides.kernel.is_some() {
                origin.push(format!("command line of {}", found.origin));
            }
            Ok(found.outcome.cmdline)
        }
        (None, Some(Err(reason))) => {
            let kernel = overrides.kernel.as_ref().map(describe).unwrap_or_default();
            Err(BootError::NoCommandLine { kernel, reason: reason.to_string() })
        }
        (None, None) => Ok(String::new()),
    }
}

/// Finds the boot entry: the first configuration that leads to a kernel which is there.
fn find(volumes: &Volumes, wanted: Option<&str>) -> Result<Found, BootError> {
    let candidates = candidates(volumes);
    if candidates.is_empty() {
        return Err(BootError::NothingFound { looked: volumes.describe() });
    }
    let mut problems = Vec::new();
    let mut unknown_entry = None;
    for candidate in &candidates {
        let found = match candidate {
            Candidate::Grub(file) => by_grub(volumes, file, wanted),
            Candidate::Entries(folder) => by_entries(volumes, folder, wanted),
        };
        match found.and_then(|found| check(volumes, found)) {
            Ok(found) => return Ok(found),
            Err(Problem::Text(problem)) => problems.push(problem),
            Err(Problem::NoSuchEntry(error)) => unknown_entry = unknown_entry.or(Some(error)),
        }
    }
    match unknown_entry {
        Some(error) => Err(error),
        None => Err(BootError::NoKernel { problems: problems.join("; ") }),
    }
}

/// Why a candidate is none.
enum Problem {
    Text(String),
    NoSuchEntry(BootError),
}

fn candidates(volumes: &Volumes) -> Vec<Candidate> {
    let mut main = Vec::new();
    let mut stubs = Vec::new();
    let mut entries = Vec::new();
    let mut systemd_boot = false;
    let is_file = |location: &Location| {
        volumes.stat(location).is_some_and(|(kind, len)| kind == FileType::File && len > 0)
    };
    for (volume, fs) in volumes.readable() {
        let at = |path: String| Location { volume, path };
        main.extend(
            GRUB_FOLDERS.iter().map(|folder| at(format!("{folder}/grub.cfg"))).filter(&is_file),
        );
        for vendor in volumes.names(&at("/EFI".into())) {
            stubs.extend(Some(at(format!("/EFI/{vendor}/grub.cfg"))).filter(&is_file));
        }
        for folder in ENTRY_FOLDERS {
            let folder = at(folder.into());
            if volumes.names(&folder).iter().any(|name| name.ends_with(".conf")) {
                let systemd = "/EFI/systemd/systemd-bootx64.efi";
                systemd_boot |= volumes.get(volume).is_efi_system() && fs.metadata(systemd).is_ok();
                entries.push(folder);
            }
        }
    }
    let entries = entries.into_iter().map(Candidate::Entries);
    // With several to choose from, the stub tells which one the firmware would end up with.
    let ambiguous = main.len() > 1;
    let (main, stubs) =
        (main.into_iter().map(Candidate::Grub), stubs.into_iter().map(Candidate::Grub));
    let grub: Vec<Candidate> =
        if ambiguous { stubs.chain(main).collect() } else { main.chain(stubs).collect() };
    if systemd_boot {
        entries.chain(grub).collect()
    } else {
        grub.into_iter().chain(entries).collect()
    }
}

fn by_grub(volumes: &Volumes, file: &Location, wanted: Option<&str>) -> Result<Found, Problem> {
    let place = format!("{} on {}", file.path, volumes.get(file.volume).name());
    let mut grub = Interpreter::new(volumes);
    let fail = |error: super::grub::ScriptError| Problem::Text(error.to_string());
    grub.start(file).map_err(fail)?;
    let started = grub.outcome().clone();
    if grub.menu().is_empty() {
        // A script may load a kernel without any menu.
        if started.kernel.is_some() && wanted.is_none() {
            return Ok(Found { outcome: started, origin: place });
        }
        let problems = in_words(&started.problems);
        return Err(Problem::Text(format!("{place} gives no menu entries{problems}")));
    }
    let titles: Vec<String> =
        grub.menu().iter().take(20).map(|entry| format!("'{}'", entry.title)).collect();
    // The file that the menu came from, where a stub led to another one.
    let config = grub.variable("config_file").to_string();
    let volume = config
        .split_once(')')
        .and_then(|(device, _)| volumes.device(device))
        .map_or_else(|| "the image".to_string(), |volume| volumes.get(volume).name());
    let name = config.rsplit('/').next().unwrap_or("grub.cfg").to_string();
    match grub.boot(wanted).map_err(fail)? {
        Some((title, outcome)) => {
            let origin = format!("{name} entry '{title}' on {volume}");
            if outcome.kernel.is_none() {
                let problems = in_words(&outcome.problems);
                return Err(Problem::Text(format!("{origin} loads no kernel{problems}")));
            }
            Ok(Found { outcome, origin })
        }
        None => Err(Problem::NoSuchEntry(BootError::NoSuchEntry {
            wanted: wanted.unwrap_or_default().into(),
            config: place,
            available: titles.join(", "),
        })),
    }
}

fn by_entries(
    volumes: &Volumes,
    folder: &Location,
    wanted: Option<&str>,
) -> Result<Found, Problem> {
    let place = format!("{} on {}", folder.path, volumes.get(folder.volume).name());
    let entries = bls::read_entries(volumes, folder);
    let environment = grub_environment(volumes);
    let variable = |name: &str| {
        let found = environment.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.clone())
    };
    let chosen = match wanted {
        Some(wanted) => {
            let by_index = wanted.parse::<usize>().ok().and_then(|index| entries.get(index));
            by_index.or_else(|| entries.iter().find(|entry| entry.is_named(wanted)))
        }
        None => {
            let path = format!("{}/loader.conf", folder.path.trim_end_matches("/entries"));
            let location = Location { volume: folder.volume, path };
            let conf = volumes.read(&location, 64 << 10).ok();
            let conf = conf.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
            let saved = variable("saved_entry").unwrap_or_default();
            bls::choose_default(&entries, conf.as_deref(), &saved)
        }
    };
    match chosen {
        Some(entry) => {
            // A variable that the environment lacks is empty, as in GRUB; but only where GRUB has
            // been, for systemd-boot takes a `$` as it is.
            let value = |name: &str| {
                if environment.is_empty() { None } else { Some(variable(name).unwrap_or_default()) }
            };
            let outcome = entry.outcome(volumes, folder.volume, &value);
            let name = volumes.get(folder.volume).name();
            Ok(Found { outcome, origin: format!("loader entry '{}' on {name}", entry.title()) })
        }
        None if entries.is_empty() => {
            Err(Problem::Text(format!("{place} has no entry for x86-64 Linux")))
        }
        None => Err(Problem::NoSuchEntry(BootError::NoSuchEntry {
            wanted: wanted.unwrap_or_default().into(),
            config: place,
            available: entries
                .iter()
                .map(|entry| format!("'{}'", entry.title()))
                .collect::<Vec<_>>()
                .join(", "),
        })),
    }
}

/// Reads the first environment block of GRUB's in the image, for entries that use its variables.
fn grub_environment(volumes: &Volumes) -> Vec<(String, String)> {
    let mut folders: Vec<Location> = Vec::new();
    for (volume, _) in volumes.readable() {
        let at = |path: String| Location { volume, path };
        folders.extend(GRUB_FOLDERS.iter().map(|folder| at(format!("{folder}/grubenv"))));
        let vendors = volumes.names(&at("/EFI".into())).into_iter();
        folders.extend(vendors.map(|vendor| at(format!("/EFI/{vendor}/grubenv"))));
    }
    let blocks = folders.iter().filter_map(|file| read_block(&volumes.read(file, 64 << 10).ok()?));
    blocks.into_iter().next().unwrap_or_default()
}

/// Checks that the files an entry names are there.
fn check(volumes: &Volumes, found: Found) -> Result<Found, Problem> {
    for location in found.outcome.kernel.iter().chain(&found.outcome.initrds) {
        if volumes.stat(location).is_none() {
            return Err(Problem::Text(format!(
                "{} names {}, which is not there ({})",
                found.origin,
                location.path,
                volumes.get(location.volume).describe()
            )));
        }
    }
    Ok(found)
}

fn in_words(problems: &[String]) -> String {
    if problems.is_empty() { String::new() } else { format!(": {}", problems.join("; ")) }
}

fn kernel_of(found: &Found) -> Result<&Location, BootError> {
    found.outcome.kernel.as_ref().ok_or_else(|| BootError::NoKernel {
        problems: format!("{} loads no kernel", found.origin),
    })
}

fn describe(source: &FileSource) -> String {
    match source {
        FileSource::Host(path) => format!("{} of the host", path.display()),
        FileSource::Image(path) => format!("{path} of the image"),
    }
}

fn read_source(volumes: &Volumes, source: &FileSource, limit: u64) -> Result<Vec<u8>, BootError> {
    let named_by = "the boot override";
    match source {
        FileSource::Host(path) => read_host(path, limit),
        FileSource::Image(path) => {
            let places =
                volumes.readable().map(|(volume, _)| Location { volume, path: path.clone() });
            match places.into_iter().find(|place| volumes.stat(place).is_some()) {
                Some(location) => read_image(volumes, &location, limit, named_by),
                None => Err(BootError::ImageFile {
                    named_by: named_by.into(),
                    path: path.clone(),
                    place: volumes.describe(),
                    source: kvmbake_disk::Error::new(kvmbake_disk::ErrorKind::NotFound, "read")
                        .on(Path::new(path)),
                }),
            }
        }
    }
}

fn read_host(path: &Path, limit: u64) -> Result<Vec<u8>, BootError> {
    let fail = |source| BootError::HostFile { path: path.into(), source };
    let file = std::fs::File::open(path).map_err(fail)?;
    let mut contents = Vec::new();
    file.take(limit + 1).read_to_end(&mut contents).map_err(fail)?;
    if contents.len() as u64 > limit {
        return Err(fail(std::io::Error::other(format!("it has more than {limit} bytes"))));
    }
    Ok(contents)
}

fn read_image(
    volumes: &Volumes,
    location: &Location,
    limit: u64,
    named_by: &str,
) -> Result<Vec<u8>, BootError> {
    volumes.read(location, limit).map_err(|source| BootError::ImageFile {
        named_by: named_by.into(),
        path: location.path.clone(),
        place: volumes.get(location.volume).describe(),
        source,
    })
}

/// Joins initrds; each starts at a multiple of four bytes, as boot loaders place them.
fn join(
    files: impl Iterator<Item = Result<Vec<u8>, BootError>>,
) -> Result<Option<Vec<u8>>, BootError> {
    let mut joined: Option<Vec<u8>> = None;
    for file in files {
        let file = file?;
        match &mut joined {
            None => joined = Some(file),
            Some(joined) => {
                joined.resize(joined.len().next_multiple_of(4), 0);
                joined.extend_from_slice(&file);
            }
        }
        if joined.as_ref().is_some_and(|joined| joined.len() as u64 > MAX_INITRD) {
            return Err(BootError::InitrdTooLarge { limit: MAX_INITRD });
        }
    }
    Ok(joined)
}

#[cfg(test)]
#[path = "discover_tests.rs"]
mod tests;
