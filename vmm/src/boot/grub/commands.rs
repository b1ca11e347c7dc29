//! The commands that matter for finding a kernel; those of the screen and of modules do nothing.

use kvmbake_disk::filesystem::FileType;

use super::ScriptError;
use super::environment::read_block;
use super::expression::{FileTest, test};
use super::interpreter::{Flow, Interpreter};
use super::menu::{EntryBody, MenuEntry};
use crate::boot::bls;
use crate::boot::volumes::Location;

/// An environment block has 1024 bytes; larger ones are seen in the wild.
const MAX_ENVIRONMENT: u64 = 64 << 10;

/// Commands that change nothing which matters here, and succeed.
const IGNORED: [&str; 36] = [
    "insmod",
    "rmmod",
    "echo",
    "terminal",
    "terminal_input",
    "terminal_output",
    "serial",
    "loadfont",
    "load_video",
    "videoinfo",
    "background_image",
    "background_color",
    "play",
    "sleep",
    "clear",
    "keymap",
    "password",
    "password_pbkdf2",
    "export",
    "save_env",
    "list_env",
    "hdparm",
    "color_normal",
    "gfxmode",
    "usb_keyboard",
    "keystatus",
    "cpuid",
    "boot",
    "cat",
    "ls",
    "lsmod",
    "nativedisk",
    "rdmsr",
    "wrmsr",
    "savedefault",
    "acpi",
];

/// Commands that load something else than Linux.
const OTHER_LOADERS: [&str; 13] = [
    "chainloader",
    "multiboot",
    "multiboot2",
    "module",
    "module2",
    "xen_hypervisor",
    "xen_module",
    "knetbsd",
    "kfreebsd",
    "kopenbsd",
    "ntldr",
    "fwsetup",
    "drivemap",
];

impl Interpreter<'_> {
    pub(super) fn builtin(&mut self, name: &str, rest: &[String]) -> Result<Flow, ScriptError> {
        let status = match name {
            "set" => match rest.first().and_then(|assignment| assignment.split_once('=')) {
                Some((variable, value)) => {
                    self.set(variable, value)?;
                    true
                }
                None => true,
            },
            "unset" => {
                rest.iter().for_each(|variable| self.environment.unset(variable));
                true
            }
            "true" => true,
            "false" => false,
            "[" => match rest.split_last() {
                Some((last, expression)) if last == "]" => self.test(expression),
                _ => false,
            },
            "test" => self.test(rest),
            "search" => self.search(rest)?,
            "search.fs_uuid" => self.search_for("--fs-uuid", rest)?,
            "search.fs_label" => self.search_for("--label", rest)?,
            "search.file" => self.search_for("--file", rest)?,
            "probe" => self.probe(rest)?,
            "load_env" => self.load_env(rest)?,
            "increment" | "decrement" => self.count(name, rest)?,
            "source" | "." => return self.source(rest, false),
            "configfile" | "normal" | "extract_entries_configfile" => {
                return self.source(rest, true);
            }
            "exit" | "halt" | "reboot" | "normal_exit" => return Ok(Flow::Stop),
            "blscfg" => self.blscfg(rest)?,
            "linux" | "linuxefi" | "linux16" | "kernel" => self.linux(rest),
            "initrd" | "initrdefi" | "initrd16" => self.initrd(rest),
            _ if IGNORED.contains(&name) => true,
            _ if OTHER_LOADERS.contains(&name) => {
                self.problem(format!("it loads with '{name}', which is not Linux"));
                true
            }
            _ => match name.split_once('=') {
                Some((variable, value)) if !variable.is_empty() => {
                    self.set(variable, value)?;
                    true
                }
                _ => false,
            },
        };
        Ok(Flow::Done(status))
    }

    /// Finds the file that `(device)/path`, or a path on `$root`, means.
    fn locate(&self, path: &str) -> Option<Location> {
        let (device, path) = match path.strip_prefix('(') {
            Some(rest) => rest.split_once(')')?,
            None => (self.variable("root"), path),
        };
        let device = if device.is_empty() { self.variable("root") } else { device };
        Some(Location { volume: self.volumes.device(device)?, path: path.to_string() })
    }

    fn test(&self, expression: &[String]) -> bool {
        test(expression, &|kind, path| {
            let found = self.locate(path).and_then(|file| self.volumes.stat(&file));
            match (kind, found) {
                (_, None) => false,
                (FileTest::Exists, Some(_)) => true,
                (FileTest::Directory, Some((kind, _))) => kind == FileType::Directory,
                (FileTest::File, Some((kind, _))) => kind == FileType::File,
                (FileTest::NotEmpty, Some((kind, len))) => kind == FileType::File && len > 0,
            }
        })
    }

    /// `search [--fs-uuid|--label|--file] [--set=VARIABLE] [hints] NAME`.
    fn search(&mut self, arguments: &[String]) -> Result<bool, ScriptError> {
        let mut by = "--file";
        let mut variable = None;
        let mut wanted = None;
        let mut rest = arguments.iter().peekable();
        while let Some(argument) = rest.next() {
            match argument.as_str() {
                "-u" | "--fs-uuid" => by = "--fs-uuid",
                "-l" | "--label" | "--fs-label" => by = "--label",
                "-f" | "--file" => by = "--file",
                "-n" | "--no-floppy" | "--efidisk-only" | "--cryptodisk-only" => {}
                "-s" | "--set" => {
                    // The variable may be left out: then it is `root`, and the name follows.
                    let words = rest.clone().filter(|next| !next.starts_with('-')).count();
                    let next = rest.peek().is_some_and(|next| !next.starts_with('-'));
                    let named = next && (wanted.is_some() || words > 1);
                    variable = if named { rest.next().cloned() } else { Some("root".into()) };
                }
                "-h" | "--hint" => drop(rest.next()),
                other if other.starts_with("--hint") => {}
                other => match other.strip_prefix("--set=") {
                    Some(name) => variable = Some(name.to_string()),
                    None if other.starts_with("--") => {}
                    None => wanted = Some(argument.clone()),
                },
            }
        }
        let wanted: Vec<String> = wanted.into_iter().chain(variable).collect();
        self.search_for(by, &wanted)
    }

    /// Sets the variable named second (if any) to the first volume that fits the name.
    fn search_for(&mut self, by: &str, arguments: &[String]) -> Result<bool, ScriptError> {
        let Some(wanted) = arguments.first() else { return Ok(false) };
        let found = self.volumes.readable().find(|(_, fs)| match by {
            "--fs-uuid" => fs.uuid().eq_ignore_ascii_case(wanted),
            "--label" => fs.label() == Some(wanted.as_str()),
            _ => fs.metadata(wanted).is_ok(),
        });
        let Some((volume, _)) = found else {
            let kind = by.trim_start_matches('-');
            self.problem(format!("'search' finds no file system by {kind} {wanted}"));
            return Ok(false);
        };
        let device = self.volumes.get(volume).device();
        if let Some(variable) = arguments.get(1) {
            self.set(variable, &device)?;
        }
        Ok(true)
    }

    /// `probe --set=VARIABLE --fs-uuid|--label|--fs|--part-uuid DEVICE`.
    fn probe(&mut self, arguments: &[String]) -> Result<bool, ScriptError> {
        let mut variable = None;
        let mut what = "";
        let mut device = "";
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            match argument.as_str() {
                "-s" | "--set" => variable = rest.next().cloned(),
                option if option.starts_with("--set=") => variable = Some(option[6..].to_string()),
                option if option.starts_with('-') => what = option,
                other => device = other,
            }
        }
        let Some(volume) = self.volumes.device(device) else { return Ok(false) };
        let volume = self.volumes.get(volume);
        let value = match (what, volume.open()) {
            ("--part-uuid", _) => volume.partition_uuid().map(String::from),
            ("-u" | "--fs-uuid", Ok(fs)) => Some(fs.uuid().to_string()),
            ("-l" | "--label", Ok(fs)) => fs.label().map(String::from),
            ("-f" | "--fs", Ok(fs)) => Some(match fs.kind().to_string().as_str() {
                "FAT" => "fat".to_string(),
                // GRUB's one module for all three is called ext2.
                _ => "ext2".to_string(),
            }),
            _ => None,
        };
        match (value, variable) {
            (Some(value), Some(variable)) => self.set(&variable, &value).map(|()| true),
            (value, _) => Ok(value.is_some()),
        }
    }

    /// `load_env [--file FILE] [--skip-sig] [NAME…]`: all variables, or those named.
    fn load_env(&mut self, arguments: &[String]) -> Result<bool, ScriptError> {
        let mut file = format!("{}/grubenv", self.variable("prefix"));
        let mut only = Vec::new();
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            match argument.as_str() {
                "-f" | "--file" => file = rest.next().cloned().unwrap_or_default(),
                "-s" | "--skip-sig" => {}
                option if option.starts_with("--file=") => file = option[7..].to_string(),
                name => only.push(name.to_string()),
            }
        }
        let Some(location) = self.locate(&file) else { return Ok(false) };
        let Ok(bytes) = self.volumes.read(&location, MAX_ENVIRONMENT) else { return Ok(false) };
        let Some(variables) = read_block(&bytes) else {
            self.problem(format!("{file} is no environment block"));
            return Ok(false);
        };
        for (name, value) in variables {
            if only.is_empty() || only.contains(&name) {
                self.set(&name, &value)?;
            }
        }
        Ok(true)
    }

    /// Fedora's boot counting.
    fn count(&mut self, name: &str, rest: &[String]) -> Result<bool, ScriptError> {
        let Some(variable) = rest.first() else { return Ok(false) };
        let Ok(value) = self.variable(variable).parse::<i64>() else { return Ok(false) };
        let change = if name == "increment" { 1 } else { -1 };
        self.set(variable, &value.saturating_add(change).to_string())?;
        Ok(true)
    }

    /// Runs another file; `configfile` starts a new menu and does not come back.
    fn source(&mut self, rest: &[String], new_menu: bool) -> Result<Flow, ScriptError> {
        let path = match rest.iter().find(|argument| !argument.starts_with('-')) {
            Some(path) => path.clone(),
            None if new_menu => format!("{}/grub.cfg", self.variable("prefix")),
            None => return Ok(Flow::Done(false)),
        };
        let Some(file) = self.locate(&path) else {
            self.problem(format!("{path} is on no partition of the image"));
            return Ok(Flow::Done(false));
        };
        if !new_menu {
            return Ok(match self.run_file(&file)? {
                Flow::Return(status) => Flow::Done(status),
                other => other,
            });
        }
        if self.volumes.stat(&file).is_none_or(|(kind, _)| kind != FileType::File) {
            self.problem(format!("{path} is not there"));
            return Ok(Flow::Done(false));
        }
        self.menu.clear();
        self.run_file(&file)?;
        Ok(Flow::Stop)
    }

    fn linux(&mut self, rest: &[String]) -> bool {
        let Some((path, arguments)) = rest.split_first() else { return false };
        let Some(kernel) = self.locate(path) else {
            self.problem(format!("the kernel {path} is on no partition of the image"));
            return false;
        };
        self.outcome.kernel = Some(kernel);
        self.outcome.initrds.clear();
        let image = format!("BOOT_IMAGE={path}");
        let words: Vec<String> =
            std::iter::once(&image).chain(arguments).map(|word| quoted(word)).collect();
        self.outcome.cmdline = words.join(" ");
        true
    }

    fn initrd(&mut self, rest: &[String]) -> bool {
        for path in rest {
            match self.locate(path) {
                Some(_) if path.starts_with("newc:") => {
                    self.problem(format!("initrd {path}: 'newc:' is not supported"));
                    return false;
                }
                Some(location) => self.outcome.initrds.push(location),
                None => {
                    self.problem(format!("the initrd {path} is on no partition of the image"));
                    return false;
                }
            }
        }
        true
    }

    /// Adds the Boot Loader Specification's entries to the menu, newest first.
    fn blscfg(&mut self, rest: &[String]) -> Result<bool, ScriptError> {
        let mut folders: Vec<Location> = Vec::new();
        for path in rest.iter().map(String::as_str).chain([self.variable("blsdir")]) {
            folders.extend(self.locate(path).filter(|_| !path.is_empty()));
        }
        for device in [self.variable("boot"), self.variable("root")] {
            let Some(volume) = self.volumes.device(device) else { continue };
            for path in ["/loader/entries", "/boot/loader/entries"] {
                folders.push(Location { volume, path: path.into() });
            }
        }
        for folder in folders {
            let entries = bls::read_entries(self.volumes, &folder);
            if entries.is_empty() {
                continue;
            }
            for entry in entries {
                self.define(MenuEntry {
                    title: entry.title().to_string(),
                    id: Some(entry.id.clone()),
                    arguments: Vec::new(),
                    body: EntryBody::Loader { volume: folder.volume, entry: entry.into() },
                })?;
            }
            return Ok(true);
        }
        self.problem("'blscfg' finds no entries in /loader/entries".into());
        Ok(false)
    }

    /// Loads a Boot Loader Specification entry; its values may use GRUB's variables.
    pub(super) fn load_bls_entry(
        &mut self,
        entry: &bls::Entry,
        volume: usize,
    ) -> Result<(), ScriptError> {
        let variable = |name: &str| Some(self.variable(name).to_string());
        let mut outcome = entry.outcome(self.volumes, volume, &variable);
        if let Some(kernel) = &outcome.kernel {
            let image =
                format!("BOOT_IMAGE=({}){}", self.volumes.get(volume).device(), kernel.path);
            outcome.cmdline = format!("{image} {}", outcome.cmdline);
        }
        self.outcome = outcome;
        Ok(())
    }
}

/// Joins a word to the command line as GRUB does: quoted when it has a space, with `\`, `'` and
/// `"` escaped.
fn quoted(word: &str) -> String {
    let mut text = String::with_capacity(word.len());
    for character in word.chars() {
        if matches!(character, '\\' | '\'' | '"') {
            text.push('\\');
        }
        text.push(character);
    }
    if text.contains(' ') { format!("\"{text}\"") } else { text }
}
