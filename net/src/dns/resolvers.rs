//! The host's resolvers, as resolv.conf(5) names them.

use std::fs;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::path::Path;
use std::time::SystemTime;

use crate::config::{NatConfig, Resolvers};
use crate::policy::DNS_PORT;

/// How many name servers are used, as in the C library.
const MAX_SERVERS: usize = 3;
/// How many domains are searched.
const MAX_SEARCH: usize = 6;

/// The list, which follows its file.
#[derive(Debug)]
pub(crate) struct ResolverList {
    from: Resolvers,
    modified: Option<SystemTime>,
    servers: Vec<SocketAddr>,
    /// The domains that short names are looked up in.
    search: Vec<String>,
}

impl ResolverList {
    pub(crate) fn new(from: Resolvers) -> ResolverList {
        let servers = match &from {
            Resolvers::Fixed(servers) => servers.clone(),
            Resolvers::File(_) => Vec::new(),
        };
        ResolverList { from, modified: None, servers, search: Vec::new() }
    }

    /// Returns the resolvers in order; none when the host has none.
    pub(crate) fn current(&mut self) -> &[SocketAddr] {
        self.follow();
        &self.servers
    }

    /// Returns the domains that the file searches, in order.
    pub(crate) fn search(&mut self) -> &[String] {
        self.follow();
        &self.search
    }

    fn follow(&mut self) {
        if let Resolvers::File(path) = &self.from {
            let modified = fs::metadata(path).and_then(|m| m.modified()).ok();
            if modified.is_none() || modified != self.modified {
                let text = read(path);
                self.servers = parse(&text);
                self.search = parse_search(&text);
                if modified != self.modified {
                    tracing::debug!(path = %path.display(), servers = ?self.servers, "resolvers");
                }
                self.modified = modified;
            }
        }
    }
}

fn read(path: &Path) -> String {
    let text = fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&text).into_owned()
}

/// Returns the domains of the last line that names any. Those that are no names are left out, as
/// they end in the hands of the guest's shell scripts.
fn parse_search(text: &str) -> Vec<String> {
    let mut domains = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let count = match words.next() {
            Some("search") => MAX_SEARCH,
            Some("domain") => 1,
            _ => continue,
        };
        let names = words.take_while(|word| !word.starts_with(['#', ';']));
        let names =
            names.map(|name| name.trim_end_matches('.')).filter(|name| NatConfig::is_name(name));
        domains = names.take(count).map(str::to_owned).collect();
    }
    domains
}

fn parse(text: &str) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            match (words.next(), words.next()) {
                (Some("nameserver"), Some(address)) => server(address),
                _ => None,
            }
        })
        .take(MAX_SERVERS)
        .collect()
}

fn server(address: &str) -> Option<SocketAddr> {
    if let Ok(address) = address.parse::<IpAddr>() {
        return Some(SocketAddr::new(address, DNS_PORT));
    }
    // A link-local server comes with the interface it is on.
    let (address, interface) = address.split_once('%')?;
    let index = fs::read_to_string(format!("/sys/class/net/{interface}/ifindex")).ok()?;
    let scope = index.trim().parse().ok()?;
    let address = address.parse().ok()?;
    Some(SocketAddrV6::new(address, DNS_PORT, 0, scope).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_read_in_order_and_the_rest_skipped() {
        let text = "# made by hand\nsearch a.b\nnameserver 127.0.0.53\n nameserver ::1 # two\n\
                    nameserver nonsense\noptions edns0\nnameserver 192.0.2.1\nnameserver 192.0.2.2";
        let servers: Vec<String> = parse(text).iter().map(SocketAddr::to_string).collect();
        assert_eq!(servers, ["127.0.0.53:53", "[::1]:53", "192.0.2.1:53"]);
    }

    #[test]
    fn the_last_line_of_domains_counts_and_holds_names_only() {
        let text =
            "search old.test\nnameserver ::1\nsearch a.test. b.test $(reboot) c_1.test # x y";
        assert_eq!(parse_search(text), ["a.test", "b.test", "c_1.test"]);
        assert_eq!(parse_search("search a.test\ndomain b.test c.test"), ["b.test"]);
        assert!(parse_search("search .\n").is_empty());
    }

    #[test]
    fn a_changed_file_is_read_again_and_a_missing_one_holds_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        let mut list = ResolverList::new(Resolvers::File(path.clone()));
        assert!(list.current().is_empty());
        fs::write(&path, "nameserver 192.0.2.7\n").unwrap();
        assert_eq!(list.current(), ["192.0.2.7:53".parse().unwrap()]);
        fs::write(&path, "nameserver 192.0.2.8\n").unwrap();
        let later = SystemTime::now() + std::time::Duration::from_secs(5);
        fs::File::options().write(true).open(&path).unwrap().set_modified(later).unwrap();
        assert_eq!(list.current(), ["192.0.2.8:53".parse().unwrap()]);
    }
}
