//! Names that are answered here: those of the configuration, those of the host's hosts(5) file, which
//! is read again when it changes, and `localhost` (RFC 6761, section 6.3).
//!
//! What the file says of the host's loopback is left out, as the guest's loopback is another.

use std::collections::HashMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::message::Query;

type Table = HashMap<String, Vec<IpAddr>>;

const LOCALHOST: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// The names, in lower case and without a dot at the end.
#[derive(Debug)]
pub(crate) struct Hosts {
    fixed: Table,
    file: Option<PathBuf>,
    modified: Option<SystemTime>,
    from_file: Table,
}

impl Hosts {
    pub(crate) fn new(names: &[(String, IpAddr)], file: Option<PathBuf>) -> Hosts {
        let mut fixed = Table::new();
        for (name, address) in names {
            add(&mut fixed, name, *address);
        }
        Hosts { fixed, file, modified: None, from_file: Table::new() }
    }

    /// Returns the addresses that a query is answered with, if it is for those of one of these names.
    pub(crate) fn answer(&mut self, query: &Query) -> Option<&[IpAddr]> {
        let name = query.name().filter(|_| query.asks_for_addresses())?;
        self.addresses(&name)
    }

    /// Returns the addresses of a name in lower case, if it is one of these.
    fn addresses(&mut self, name: &str) -> Option<&[IpAddr]> {
        if name == "localhost" || name.ends_with(".localhost") {
            return Some(&LOCALHOST);
        }
        self.follow();
        self.fixed.get(name).or_else(|| self.from_file.get(name)).map(Vec::as_slice)
    }

    fn follow(&mut self) {
        if let Some(path) = &self.file {
            let modified = fs::metadata(path).and_then(|m| m.modified()).ok();
            if modified.is_none() || modified != self.modified {
                self.from_file = read(path);
                self.modified = modified;
            }
        }
    }
}

fn add(table: &mut Table, name: &str, address: IpAddr) {
    let addresses = table.entry(name.trim_end_matches('.').to_ascii_lowercase()).or_default();
    if !addresses.contains(&address) {
        addresses.push(address);
    }
}

fn read(path: &Path) -> Table {
    let text = fs::read(path).unwrap_or_default();
    parse(&String::from_utf8_lossy(&text))
}

fn parse(text: &str) -> Table {
    let mut table = Table::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace();
        let Some(Ok(address)) = words.next().map(str::parse::<IpAddr>) else {
            continue;
        };
        if address.is_loopback() {
            continue;
        }
        for name in words {
            add(&mut table, name, address);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_the_configuration_first_then_in_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hosts");
        let text = "127.0.0.1 localhost baker\n192.0.2.7\tMirror.test  mirror # near\n\
                    2001:db8::7 mirror.test\nnonsense x.test\n0.0.0.0 adverts.test\n\
                    192.0.2.8 fixed.test\n";
        fs::write(&path, text).unwrap();
        let names = [("Fixed.Test.".to_owned(), IpAddr::from([192, 0, 2, 1]))];
        let mut hosts = Hosts::new(&names, Some(path.clone()));
        let mut look = |name: &str| {
            let addresses = hosts.addresses(name)?;
            Some(addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
        };
        for (name, addresses) in [
            ("fixed.test", "192.0.2.1"),
            ("mirror.test", "192.0.2.7 2001:db8::7"),
            ("mirror", "192.0.2.7"),
            ("adverts.test", "0.0.0.0"),
            ("db.localhost", "127.0.0.1 ::1"),
        ] {
            assert_eq!(look(name).as_deref(), Some(addresses), "{name}");
        }
        assert_eq!(look("baker"), None);
        assert_eq!(look("x.test"), None);
        fs::write(&path, "192.0.2.9 mirror\n").unwrap();
        let later = SystemTime::now() + std::time::Duration::from_secs(5);
        fs::File::options().write(true).open(&path).unwrap().set_modified(later).unwrap();
        assert_eq!(look("mirror").as_deref(), Some("192.0.2.9"));
        assert_eq!(look("mirror.test"), None);
    }
}
