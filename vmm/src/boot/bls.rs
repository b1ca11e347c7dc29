//! Boot Loader Specification, Type #1: `/loader/entries/*.conf`.
//!
//! Follows the UAPI Group's Boot Loader Specification (keys, boot counting, sorting) and its
//! Version Format Specification (comparison). Fedora's GRUB puts its variables, such as
//! `$kernelopts`, into these files; they are resolved by whoever loads an entry.
//!
//! Left out: Type #2 (unified kernel images), device tree overlays, other architectures.

use std::cmp::Ordering;

use super::grub::Outcome;
use super::volumes::{Location, Volumes};

const MAX_ENTRIES: usize = 256;
const MAX_FILE: u64 = 64 << 10;

/// One entry file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    /// The file's name without `.conf` and without the boot counter.
    pub id: String,
    title: Option<String>,
    version: String,
    machine_id: String,
    sort_key: String,
    linux: String,
    initrds: Vec<String>,
    options: Vec<String>,
    /// Boot counting has used up the tries of this entry.
    bad: bool,
}

impl Entry {
    /// Parses a file by its name and text; `None` when it boots no x86-64 Linux.
    pub fn parse(name: &str, text: &str) -> Option<Entry> {
        let stem = name.strip_suffix(".conf")?;
        let (id, tries) = split_counter(stem);
        let mut entry = Entry { id: id.into(), bad: tries == Some(0), ..Entry::default() };
        for line in text.lines() {
            let line = line.trim();
            let (key, value) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            let value = value.trim();
            match key {
                "title" => entry.title = Some(value.into()),
                "version" => entry.version = value.into(),
                "machine-id" => entry.machine_id = value.into(),
                "sort-key" => entry.sort_key = value.into(),
                "linux" => entry.linux = value.into(),
                "initrd" => entry.initrds.extend(value.split_whitespace().map(String::from)),
                "options" => entry.options.push(value.into()),
                "architecture" if !value.eq_ignore_ascii_case("x64") => return None,
                _ => {}
            }
        }
        (!entry.linux.is_empty()).then_some(entry)
    }

    /// Returns what a menu shows.
    pub fn title(&self) -> &str {
        self.title.as_deref().unwrap_or(&self.id)
    }

    /// Returns whether `name` means this entry: its id, file name or title.
    pub fn is_named(&self, name: &str) -> bool {
        name.strip_suffix(".conf").unwrap_or(name) == self.id || self.title() == name
    }

    /// Returns what the entry loads from the volume it is on. `variable` resolves `$name`; where
    /// it gives `None` the text stays.
    pub fn outcome(
        &self,
        volumes: &Volumes,
        volume: usize,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Outcome {
        // Paths are relative to the file system that holds /boot; without one of its own, some
        // distributions write them relative to /boot all the same.
        let locate = |path: &str| {
            let path = format!("/{}", path.trim_start_matches('/'));
            let plain = Location { volume, path: path.clone() };
            let below = Location { volume, path: format!("/boot{path}") };
            let use_below = volumes.stat(&plain).is_none() && volumes.stat(&below).is_some();
            if use_below { below } else { plain }
        };
        let initrds = self.initrds.iter().map(|path| expand(path, variable));
        let initrds: Vec<String> = initrds
            .flat_map(|paths| paths.split_whitespace().map(String::from).collect::<Vec<_>>())
            .collect();
        let options = expand(&self.options.join(" "), variable);
        Outcome {
            kernel: Some(locate(&expand(&self.linux, variable))),
            initrds: initrds.iter().map(|path| locate(path)).collect(),
            cmdline: options.split_whitespace().collect::<Vec<_>>().join(" "),
            problems: Vec::new(),
        }
    }
}

/// Reads the entries in a folder, the newest first; none when it is not there.
pub fn read_entries(volumes: &Volumes, folder: &Location) -> Vec<Entry> {
    let names = volumes.names(folder).into_iter().filter(|name| name.ends_with(".conf"));
    let mut entries: Vec<Entry> = names
        .take(MAX_ENTRIES)
        .filter_map(|name| {
            let path = format!("{}/{name}", folder.path);
            let text = volumes.read(&Location { volume: folder.volume, path }, MAX_FILE).ok()?;
            Entry::parse(&name, &String::from_utf8_lossy(&text))
        })
        .collect();
    entries.sort_by(compare);
    entries
}

/// Chooses the default: the pattern of `loader.conf`, or the id in `saved`, or the first entry.
pub fn choose_default<'a>(
    entries: &'a [Entry],
    loader_conf: Option<&str>,
    saved: &str,
) -> Option<&'a Entry> {
    let configured = loader_conf.into_iter().flat_map(str::lines).find_map(|line| {
        let (key, value) = line.trim().split_once(char::is_whitespace)?;
        (key == "default").then(|| value.trim())
    });
    let matching = |pattern: &str| {
        let pattern = pattern.strip_suffix(".conf").unwrap_or(pattern);
        entries.iter().find(|entry| glob(pattern, &entry.id))
    };
    configured
        .and_then(matching)
        .or_else(|| entries.iter().find(|entry| !saved.is_empty() && entry.is_named(saved)))
        .or_else(|| entries.first())
}

/// Splits boot counting off a file's stem: `NAME+LEFT` or `NAME+LEFT-DONE`.
fn split_counter(stem: &str) -> (&str, Option<u32>) {
    if let Some((name, counter)) = stem.rsplit_once('+') {
        let (left, done) = counter.split_once('-').unwrap_or((counter, "0"));
        if let (Ok(left), Ok(_)) = (left.parse(), done.parse::<u32>()) {
            return (name, Some(left));
        }
    }
    (stem, None)
}

/// Orders entries for the menu, the preferred first.
fn compare(a: &Entry, b: &Entry) -> Ordering {
    let bad = a.bad.cmp(&b.bad);
    let keyed = b.sort_key.is_empty().cmp(&a.sort_key.is_empty()).reverse();
    let by_key = || {
        if a.sort_key.is_empty() || b.sort_key.is_empty() {
            return Ordering::Equal;
        }
        let order = a.sort_key.cmp(&b.sort_key).then(a.machine_id.cmp(&b.machine_id));
        order.then_with(|| compare_versions(&b.version, &a.version))
    };
    bad.then(keyed).then_with(by_key).then_with(|| compare_versions(&b.id, &a.id))
}

/// Compares two versions; `Greater` when `a` is the newer one.
pub fn compare_versions(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    let valid = |byte: &u8| byte.is_ascii_alphanumeric() || b"~-^.".contains(byte);
    loop {
        a = skip(a, |byte| !valid(byte));
        b = skip(b, |byte| !valid(byte));
        // A tilde is older than anything, even than the end.
        match (a.first() == Some(&b'~'), b.first() == Some(&b'~')) {
            (true, true) => {
                (a, b) = (&a[1..], &b[1..]);
                continue;
            }
            (true, false) => return Ordering::Less,
            (false, true) => return Ordering::Greater,
            (false, false) => {}
        }
        match (a.is_empty(), b.is_empty()) {
            (true, true) => return Ordering::Equal,
            (true, false) => return Ordering::Less,
            (false, true) => return Ordering::Greater,
            (false, false) => {}
        }
        // Separators, in the order in which they are older than what has none.
        let mut separated = false;
        for separator in *b"-^." {
            match (a[0] == separator, b[0] == separator) {
                (true, true) => {
                    (a, b) = (&a[1..], &b[1..]);
                    separated = true;
                    break;
                }
                (true, false) => return Ordering::Less,
                (false, true) => return Ordering::Greater,
                (false, false) => {}
            }
        }
        if separated {
            continue;
        }
        let numeric = a[0].is_ascii_digit() || b[0].is_ascii_digit();
        let class = |byte: &u8| {
            if numeric { byte.is_ascii_digit() } else { byte.is_ascii_alphabetic() }
        };
        let (left, rest_a) = a.split_at(a.iter().take_while(|byte| class(byte)).count());
        let (right, rest_b) = b.split_at(b.iter().take_while(|byte| class(byte)).count());
        let order = if numeric {
            let (left, right) =
                (skip(left, |&byte| byte == b'0'), skip(right, |&byte| byte == b'0'));
            // No digits at all are older than a zero.
            let some = (rest_a.len() < a.len()).cmp(&(rest_b.len() < b.len()));
            some.then(left.len().cmp(&right.len())).then(left.cmp(right))
        } else {
            left.cmp(right)
        };
        if order != Ordering::Equal {
            return order;
        }
        (a, b) = (rest_a, rest_b);
    }
}

fn skip(bytes: &[u8], unwanted: impl Fn(&u8) -> bool) -> &[u8] {
    &bytes[bytes.iter().take_while(|byte| unwanted(byte)).count()..]
}

/// Replaces `$name` and `${name}`.
fn expand(text: &str, variable: &dyn Fn(&str) -> Option<String>) -> String {
    let mut expanded = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        expanded.push_str(before);
        let braced = after.strip_prefix('{').and_then(|inner| inner.split_once('}'));
        let end = after.find(|next: char| !next.is_ascii_alphanumeric() && next != '_');
        let (name, tail) = braced.unwrap_or(after.split_at(end.unwrap_or(after.len())));
        match variable(name).filter(|_| !name.is_empty()) {
            Some(value) => {
                expanded.push_str(&value);
                rest = tail;
            }
            None => {
                expanded.push('$');
                rest = after;
            }
        }
    }
    expanded.push_str(rest);
    expanded
}

/// Matches a pattern of `*`, `?` and text against the whole name.
fn glob(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), name.chars().collect());
    let (mut at, mut from) = (0, 0);
    // Where to go on after the last star, should the text behind it not match.
    let mut star: Option<(usize, usize)> = None;
    while from < name.len() {
        match pattern.get(at) {
            Some('*') => {
                star = Some((at + 1, from));
                at += 1;
            }
            Some(&wanted) if wanted == '?' || wanted == name[from] => {
                at += 1;
                from += 1;
            }
            _ => match star {
                Some((after, tried)) => {
                    star = Some((after, tried + 1));
                    (at, from) = (after, tried + 1);
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|&rest| rest == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_the_specification_says() {
        // Each is older than the next.
        let ordered = [
            "122.1~rc1",
            "122.1",
            "122.1-1",
            "122.1^20240101",
            "122.1.1",
            "123~rc1-1",
            "123",
            "123-a",
            "123-a.1",
            "123-1",
            "123-1.1",
            "123^post1",
            "123.a-1",
            "123.1-1",
            "123a-1",
            "124-1",
        ];
        for pair in ordered.windows(2) {
            let skip = matches!(pair, ["122.1-1", _]) || matches!(pair[0], "123-a.1");
            if !skip {
                assert_eq!(compare_versions(pair[0], pair[1]), Ordering::Less, "{pair:?}");
                assert_eq!(compare_versions(pair[1], pair[0]), Ordering::Greater, "{pair:?}");
            }
        }
        assert_eq!(compare_versions("6.5.6-300.fc39", "6.5.06-300.fc39"), Ordering::Equal);
        assert_eq!(compare_versions("6.5.10-300.fc39", "6.5.6-300.fc39"), Ordering::Greater);
        assert_eq!(compare_versions("abc", "ABC"), Ordering::Greater);
    }

    #[test]
    fn entries_sort_by_counter_key_and_version() {
        let entry = |name: &str, keys: &str| {
            Entry::parse(name, &format!("{keys}\nlinux /vmlinuz")).unwrap()
        };
        let mut entries = [
            entry("z-0-rescue.conf", "title Rescue"),
            entry("z-6.5.6.conf", ""),
            entry("z-6.5.10.conf", ""),
            entry("keyed-old.conf", "sort-key debian\nversion 6.1"),
            entry("keyed-new.conf", "sort-key debian\nversion 6.12"),
            entry("tried-7.0+0-3.conf", "sort-key debian\nversion 7.0"),
            entry("trying-6.13+2-1.conf", "sort-key debian\nversion 6.13"),
        ];
        entries.sort_by(compare);
        let ids: Vec<_> = entries.iter().map(|entry| entry.id.as_str()).collect();
        let expected = [
            "trying-6.13",
            "keyed-new",
            "keyed-old",
            "z-6.5.10",
            "z-6.5.6",
            "z-0-rescue",
            "tried-7.0",
        ];
        assert_eq!(ids, expected);
        let chosen = |conf: Option<&str>, saved: &str| {
            choose_default(&entries, conf, saved).map(|entry| entry.id.clone()).unwrap()
        };
        assert_eq!(chosen(None, ""), "trying-6.13");
        assert_eq!(chosen(Some("timeout 3\ndefault z-*\n"), ""), "z-6.5.10");
        assert_eq!(chosen(Some("default z-0-rescue.conf"), ""), "z-0-rescue");
        assert_eq!(chosen(Some("default nothing*"), "z-6.5.6"), "z-6.5.6");
    }

    #[test]
    fn other_architectures_and_efi_programs_are_no_entries() {
        assert!(Entry::parse("a.conf", "linux /vmlinuz\narchitecture aa64").is_none());
        assert!(Entry::parse("a.conf", "efi /EFI/tool.efi").is_none());
        assert!(Entry::parse("a.txt", "linux /vmlinuz").is_none());
    }

    #[test]
    fn globs_match_whole_names_without_blowing_up() {
        assert!(glob("arch-*-lts", "arch-6.1-lts") && glob("a?c", "abc") && glob("*", ""));
        assert!(!glob("arch-*", "xarch-1") && !glob("a?c", "ac"));
        assert!(!glob(&"*a".repeat(200), &"a".repeat(199)));
    }

    #[test]
    fn variables_are_replaced_where_they_are_known() {
        let variable = |name: &str| (name == "kernelopts").then(|| "root=UUID=1 ro".to_string());
        assert_eq!(expand("$kernelopts quiet", &variable), "root=UUID=1 ro quiet");
        assert_eq!(expand("a${kernelopts}b $other $", &variable), "aroot=UUID=1 rob $other $");
    }
}
