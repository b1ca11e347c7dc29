//! `[net]`: what the guest's network offers, what it lets through, and what is told of it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;

use kvmbake_net::{Protocol, Rule, Rules};

use super::lan::Lan;
use super::reader::{At, Reader};
use super::{Context, Named, Place};

/// Where `serve` is in the default network.
pub const SERVE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 2, 100), 80);
/// The least limit, in bytes a second: below it nothing gets anywhere.
const LEAST_RATE: u64 = 1024;

/// What the guest's network offers.
#[derive(Debug, Default)]
pub struct Net {
    /// The network itself.
    pub lan: Lan,
    /// Whether 10.0.2.2 leads to the host's loopback.
    pub host_loopback: bool,
    /// The resolver behind 10.0.2.3, when it is not the host's.
    pub dns: Option<Ipv4Addr>,
    /// What the guest finds at addresses of its network: that of `serve` and all `[[net.forward]]`.
    pub forwards: Vec<Forward>,
    /// Ports of the host that lead to the guest.
    pub inbound: Vec<Inbound>,
    /// What the guest may reach.
    pub rules: Rules,
    /// The limit in each direction, in bytes a second.
    pub rate: Option<u64>,
    /// Where the log of flows goes, when it is not the build's folder.
    pub log: Option<Named<PathBuf>>,
    /// Where captured frames go.
    pub pcap: Option<Named<PathBuf>>,
}

/// A service at an address of the guest's network.
#[derive(Debug)]
pub struct Forward {
    /// The address and port, as the guest sees them.
    pub at: SocketAddrV4,
    /// Who answers.
    pub target: Target,
    /// Where it stands.
    pub place: Place,
}

/// Who answers a forward.
#[derive(Debug)]
pub enum Target {
    /// A folder, over HTTP.
    Folder {
        /// The folder.
        path: Named<PathBuf>,
        /// Whether the guest may add to its files.
        writable: bool,
    },
    /// Texts by their paths, over HTTP; the one of the empty path is for all others.
    Content(Vec<(String, String)>),
    /// `host:port`, as the host sees it.
    Host(String),
    /// A Unix socket.
    Socket(Named<PathBuf>),
    /// A program with its arguments.
    Command(Vec<String>),
}

/// A port of the host that leads to the guest.
#[derive(Debug)]
pub struct Inbound {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Where the host listens; port 0 for one of its choice.
    pub host: SocketAddr,
    /// The guest's port.
    pub guest: u16,
    /// Where it stands.
    pub place: Place,
}

impl Context<'_> {
    pub(super) fn net(&self, reader: Option<Reader<'_, '_>>) -> Net {
        let mut net = Net::default();
        let Some(reader) = reader else { return net };
        net.lan = Lan::read(&reader);
        let serve = SocketAddrV4::new(net.lan.serve(), SERVE.port());
        if let Some(folder) = reader.string("serve").map(|at| self.path(at)) {
            let place = folder.place.clone();
            let target = Target::Folder { path: folder, writable: false };
            net.forwards.push(Forward { at: serve, target, place });
        }
        net.host_loopback = reader.bool("host_loopback").unwrap_or(false);
        net.dns = reader
            .parsed("dns", |text| text.parse().map_err(|_| format!("`{text}` is no IPv4 address")))
            .map(|at| at.value);
        net.rules = Rules {
            restrict: reader.bool("restrict").unwrap_or(false),
            allow: rules(&reader, "allow"),
            deny: rules(&reader, "deny"),
        };
        if let Some(rate) = reader.size("rate") {
            if rate.value < LEAST_RATE {
                reader.fault(&rate.span, "`rate` must be at least 1K, in bytes a second");
            }
            net.rate = Some(rate.value);
        }
        net.log = reader.string("log").map(|at| self.path(at));
        net.pcap = reader.string("pcap").map(|at| self.path(at));
        for table in reader.tables("forward") {
            let Some(forward) = self.forward(table, &net.lan) else { continue };
            if net.forwards.iter().any(|other| other.at == forward.at) {
                let message = format!("Two forwards are at {}", forward.at);
                let hint = format!("`serve` is the one at {serve}");
                self.fault(&reader, &forward.place, message, hint);
            }
            net.forwards.push(forward);
        }
        for table in reader.tables("inbound") {
            let Some(inbound) = self.inbound(table) else { continue };
            let same =
                |other: &Inbound| other.host == inbound.host && other.protocol == inbound.protocol;
            if inbound.host.port() != 0 && net.inbound.iter().any(same) {
                let message = format!("Two ports of the host are {}", inbound.host);
                let hint = "Give one of them another `host`".to_string();
                self.fault(&reader, &inbound.place, message, hint);
            }
            net.inbound.push(inbound);
        }
        reader.finish();
        net
    }

    /// Adds a fault at a place that was read before.
    fn fault(&self, reader: &Reader<'_, '_>, place: &Place, message: String, hint: String) {
        reader.fault_at(place.clone(), message, Some(hint));
    }

    fn forward(&self, reader: Reader<'_, '_>, lan: &Lan) -> Option<Forward> {
        if reader.value("at").is_none() {
            let hint = "Such as at = \"10.0.2.101:80\"";
            reader.fault_with_hint(&reader.span(), "The forward has no `at`", hint);
        }
        let at = reader.parsed("at", |text| address_in_network(text, lan));
        let writable = reader.bool("writable");
        let mut targets: Vec<(&str, Target)> = Vec::new();
        if let Some(path) = reader.string("serve").map(|at| self.path(at)) {
            let writable = writable.unwrap_or(false);
            targets.push(("serve", Target::Folder { path, writable }));
        } else if writable.is_some() {
            reader.fault(&reader.span(), "`writable` needs `serve`, the folder that is written to");
        }
        if let Some(content) = content(&reader) {
            targets.push(("content", Target::Content(content)));
        }
        if let Some(host) = reader.parsed("connect", host_and_port) {
            targets.push(("connect", Target::Host(host.value)));
        }
        if let Some(path) = reader.string("socket").map(|at| self.path(at)) {
            targets.push(("socket", Target::Socket(path)));
        }
        if let Some(arguments) = command(&reader) {
            targets.push(("command", Target::Command(arguments)));
        }
        let given = TARGETS.iter().filter(|key| reader.value(key).is_some()).count();
        let at_span = reader.value("at").map_or(reader.span(), |value| value.span());
        if given != 1 {
            let message = format!("A forward needs exactly one of `{}`", TARGETS.join("`, `"));
            reader.fault(&at_span, message);
        }
        reader.finish();
        let (_, target) = targets.pop()?;
        Some(Forward { at: at?.value, target, place: self.source.place(&at_span) })
    }

    fn inbound(&self, reader: Reader<'_, '_>) -> Option<Inbound> {
        if reader.value("host").is_none() {
            let hint = "Such as host = \"127.0.0.1:2222\"; port 0 is one of the host's choice";
            reader.fault_with_hint(&reader.span(), "[[net.inbound]] has no `host`", hint);
        }
        let host = reader.parsed("host", |text| {
            text.parse::<SocketAddr>()
                .map_err(|_| format!("`{text}` is no address and port, such as 127.0.0.1:2222"))
        });
        let guest = reader.integer("guest", 1..=65_535);
        if reader.value("guest").is_none() {
            reader.fault(&reader.span(), "[[net.inbound]] has no `guest`, the guest's port");
        }
        let protocol = reader.parsed("protocol", |text| match text {
            "tcp" => Ok(Protocol::Tcp),
            "udp" => Ok(Protocol::Udp),
            _ => Err(format!("`{text}` is neither tcp nor udp")),
        });
        let public = reader.bool("public").unwrap_or(false);
        if let Some(host) = &host
            && !host.value.ip().to_canonical().is_loopback()
            && !public
        {
            reader.fault_with_hint(
                &host.span,
                format!("`host` {} lets others than this host reach the guest", host.value.ip()),
                "127.0.0.1 is this host alone; `public = true` if others are meant",
            );
        }
        reader.finish();
        let host = host?;
        Some(Inbound {
            protocol: protocol.map_or(Protocol::Tcp, |at| at.value),
            place: self.source.place(&host.span),
            host: host.value,
            guest: guest?.value as u16,
        })
    }
}

/// The keys that say who answers a forward.
const TARGETS: [&str; 5] = ["serve", "content", "connect", "socket", "command"];

fn rules(reader: &Reader<'_, '_>, key: &'static str) -> Vec<Rule> {
    let texts = reader.strings(key).unwrap_or_default();
    let parsed = texts.into_iter().filter_map(|At { value, span }| match value.parse::<Rule>() {
        Ok(rule) => Some(rule),
        Err(error) => {
            reader.fault_with_hint(
                &span,
                format!("`{key}`: {error}"),
                "Such as \"192.0.2.0/24\", \"192.0.2.1:443\", \"deb.debian.org\", \"*.debian.org:80-90\"",
            );
            None
        }
    });
    parsed.collect()
}

/// Reads an address and port at which something may be put in the guest's network.
pub(super) fn address_in_network(text: &str, lan: &Lan) -> Result<SocketAddrV4, String> {
    let at: SocketAddrV4 = text
        .parse()
        .map_err(|_| format!("`{text}` is no IPv4 address and port, such as 10.0.2.101:80"))?;
    let net = lan.config();
    let (address, network) = (*at.ip(), format!("{}/{}", net.network(), net.prefix_len));
    if !net.contains(address) || address == net.network() || address == net.broadcast() {
        return Err(format!("{address} is no host's address in the guest's network, {network}"));
    }
    if address == net.guest {
        return Err(format!("{address} is the guest's own address"));
    }
    match at.port() {
        0 => Err("port 0 is nobody's".into()),
        53 if address == net.dns => Err(format!("{address}:53 is the network's name server")),
        _ => Ok(at),
    }
}

fn host_and_port(text: &str) -> Result<String, String> {
    let expected = || format!("`{text}` is no host and port, such as 127.0.0.1:8080");
    let (host, port) = text.rsplit_once(':').ok_or_else(expected)?;
    let is_address = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    let is_name = host.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c));
    match port.parse::<u16>() {
        Ok(1..) if !host.is_empty() && (is_address || is_name) => Ok(text.to_string()),
        _ => Err(expected()),
    }
}

/// Reads one text for all paths, or a table of them.
fn content(reader: &Reader<'_, '_>) -> Option<Vec<(String, String)>> {
    let value = reader.value("content")?;
    if value.get_ref().as_str().is_some() {
        return reader.string("content").map(|text| vec![(String::new(), text.value)]);
    }
    let texts = reader.string_map("content");
    for (path, _) in &texts {
        if !path.starts_with('/') {
            let message = format!("`{path}` in `content` is no path: it does not begin with `/`");
            reader.fault(&value.span(), message);
        }
    }
    Some(texts.into_iter().map(|(path, text)| (path, text.value)).collect())
}

/// Reads a command: a text is the shell's, a list is a program and its arguments.
fn command(reader: &Reader<'_, '_>) -> Option<Vec<String>> {
    let value = reader.value("command")?;
    if value.get_ref().as_str().is_some() {
        let text = reader.string("command")?.value;
        if text.trim().is_empty() {
            reader.fault(&value.span(), "`command` is empty");
            return None;
        }
        return Some(["/bin/sh", "-c", &text].map(str::to_string).into());
    }
    let arguments = reader.strings("command")?;
    if arguments.first().is_none_or(|program| program.value.is_empty()) {
        reader.fault(&value.span(), "`command` has no program");
        return None;
    }
    Some(arguments.into_iter().map(|at| at.value).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{Fault, Profile, Source};
    use std::path::Path;

    fn parse(net: &str) -> Result<Net, Vec<Fault>> {
        let text = format!(
            "[image]\nname = \"a\"\nsource = \"b\"\n[[output]]\nformat = \"raw\"\n[net]\n{net}"
        );
        Profile::parse(Source::new("/profiles/a.toml", text)).map(|profile| profile.net)
    }

    /// The only fault of a `[net]`, by its line, from 1, and its message and hint.
    fn fault(net: &str) -> (usize, String) {
        let mut faults = parse(net).expect_err(net);
        assert_eq!(faults.len(), 1, "{faults:#?}");
        let Fault { message, place, hint } = faults.remove(0);
        (place.line - 6, format!("{message}; {}", hint.unwrap_or_default()))
    }

    #[track_caller]
    fn refused(net: &str, line: usize, part: &str) {
        let (at, message) = fault(net);
        assert!(message.contains(part), "{message}");
        assert_eq!(at, line, "{message}");
    }

    #[test]
    fn forwards_of_every_kind_are_read() {
        let net = parse(
            "serve = \"www\"\n\
             [[net.forward]]\nat = \"10.0.2.101:443\"\nconnect = \"[::1]:8443\"\n\
             [[net.forward]]\nat = \"10.0.2.102:80\"\nserve = \"logs\"\nwritable = true\n\
             [[net.forward]]\nat = \"10.0.2.103:80\"\ncontent = { \"/vm-bootstrap\" = \"#!/bin/sh\" }\n\
             [[net.forward]]\nat = \"10.0.2.104:80\"\ncontent = \"for all\"\n\
             [[net.forward]]\nat = \"10.0.2.105:1\"\nsocket = \"a.sock\"\n\
             [[net.forward]]\nat = \"10.0.2.2:7\"\ncommand = [\"cat\", \"-u\"]\n\
             [[net.forward]]\nat = \"10.0.2.100:81\"\ncommand = \"tr a b\"\n",
        )
        .unwrap();
        let at: Vec<String> = net.forwards.iter().map(|forward| forward.at.to_string()).collect();
        let expected = [
            "10.0.2.100:80",
            "10.0.2.101:443",
            "10.0.2.102:80",
            "10.0.2.103:80",
            "10.0.2.104:80",
            "10.0.2.105:1",
            "10.0.2.2:7",
            "10.0.2.100:81",
        ];
        assert_eq!(at, expected);
        let targets: Vec<&Target> = net.forwards.iter().map(|forward| &forward.target).collect();
        assert!(matches!(targets[0], Target::Folder { path, writable: false }
            if path.value == Path::new("/profiles/www")));
        assert!(matches!(targets[1], Target::Host(host) if host == "[::1]:8443"));
        assert!(matches!(targets[2], Target::Folder { writable: true, .. }));
        assert!(matches!(targets[3], Target::Content(texts) if texts[0].0 == "/vm-bootstrap"));
        assert!(matches!(targets[4], Target::Content(texts) if texts[0].0.is_empty()));
        assert!(matches!(targets[5], Target::Socket(path)
            if path.value == Path::new("/profiles/a.sock")));
        assert!(matches!(targets[6], Target::Command(command) if command == &["cat", "-u"]));
        assert!(matches!(targets[7], Target::Command(command) if command[2] == "tr a b"));
    }

    #[test]
    fn a_forward_that_cannot_be_is_refused_with_its_line() {
        let forward = |text: &str| format!("[[net.forward]]\n{text}\n");
        for (text, line, part) in [
            ("serve = \"www\"", 1, "has no `at`"),
            ("at = \"10.0.2.9:80\"", 2, "exactly one of `serve`, `content`, `connect`"),
            ("at = \"10.0.2.9:80\"\nserve = \"a\"\ncommand = \"b\"", 2, "exactly one of"),
            ("at = \"10.0.3.9:80\"\nserve = \"a\"", 2, "no host's address in the guest's network"),
            ("at = \"10.0.2.255:80\"\nserve = \"a\"", 2, "no host's address"),
            ("at = \"10.0.2.15:80\"\nserve = \"a\"", 2, "the guest's own"),
            ("at = \"10.0.2.3:53\"\nserve = \"a\"", 2, "name server"),
            ("at = \"10.0.2.9:0\"\nserve = \"a\"", 2, "port 0"),
            ("at = \"10.0.2.9\"\nserve = \"a\"", 2, "such as 10.0.2.101:80"),
            ("at = \"10.0.2.9:80\"\nconnect = \"localhost\"", 3, "such as 127.0.0.1:8080"),
            ("at = \"10.0.2.9:80\"\nconnect = \"::1:80x\"", 3, "no host and port"),
            ("at = \"10.0.2.9:80\"\ncommand = []", 3, "no program"),
            ("at = \"10.0.2.9:80\"\ncommand = \" \"", 3, "is empty"),
            ("at = \"10.0.2.9:80\"\ncontent = { a = \"b\" }", 3, "does not begin with `/`"),
            ("at = \"10.0.2.9:80\"\ncontent = \"a\"\nwritable = true", 1, "needs `serve`"),
            ("at = \"10.0.2.9:80\"\nsreve = \"a\"\nsocket = \"b\"", 3, "Did you mean `serve`?"),
            ("at = \"10.0.2.9:80\"\nserve = 1", 3, "`serve` in [[net.forward]] must be a string"),
        ] {
            refused(&forward(text), line, part);
        }
        let twice = forward("at = \"10.0.2.100:80\"\ncontent = \"a\"");
        refused(&format!("serve = \"www\"\n{twice}"), 3, "Two forwards are at 10.0.2.100:80");
        let elsewhere = forward("at = \"10.0.2.9:80\"\nserve = \"a\"");
        let network = "network = \"10.9.0.0/24\"\nserve = \"b\"\n";
        refused(&format!("{network}{elsewhere}"), 4, "the guest's network, 10.9.0.0/24");
        assert_eq!(parse(network).unwrap().forwards[0].at.to_string(), "10.9.0.100:80");
    }

    #[test]
    fn rules_are_read_and_refused_each_with_its_place() {
        let net = parse(
            "restrict = true\nallow = [\"deb.debian.org:80\", \"192.0.2.0/24\"]\ndeny = \"*:25\"\n\
             rate = \"10M\"\nlog = \"a.jsonl\"\npcap = \"/tmp/a.pcap\"\n",
        )
        .unwrap();
        assert!(net.rules.restrict);
        assert_eq!((net.rules.allow.len(), net.rules.deny.len()), (2, 1));
        assert_eq!(net.rate, Some(10 << 20));
        assert_eq!(net.log.unwrap().value, Path::new("/profiles/a.jsonl"));
        assert_eq!(net.pcap.unwrap().value, Path::new("/tmp/a.pcap"));
        refused("allow = [\"ok.test\",\n\"10.0.0.1/8\"]", 2, "`allow`: `10.0.0.1/8` is no network");
        refused("deny = \"a b\"", 1, "Such as");
        refused("rate = \"5\"", 1, "at least 1K");
    }

    #[test]
    fn inbound_ports_are_the_host_s_alone_unless_it_is_said() {
        let inbound = |text: &str| format!("[[net.inbound]]\n{text}\n");
        let net = parse(&inbound("host = \"127.0.0.1:0\"\nguest = 22")).unwrap();
        assert_eq!((net.inbound[0].protocol, net.inbound[0].guest), (Protocol::Tcp, 22));
        let udp = "host = \"[::1]:69\"\nguest = 69\nprotocol = \"udp\"";
        assert_eq!(parse(&inbound(udp)).unwrap().inbound[0].protocol, Protocol::Udp);
        let open = "host = \"0.0.0.0:8080\"\nguest = 80";
        refused(&inbound(open), 2, "`public = true`");
        assert_eq!(parse(&inbound(&format!("{open}\npublic = true"))).unwrap().inbound.len(), 1);
        refused(&inbound("host = \"192.0.2.1:80\"\nguest = 80"), 2, "lets others");
        refused(&inbound("host = \"127.0.0.1\"\nguest = 80"), 2, "such as 127.0.0.1:2222");
        refused(&inbound("host = \"127.0.0.1:1\"\nguest = 0"), 3, "between 1 and 65535");
        refused(&inbound("host = \"127.0.0.1:1\""), 1, "no `guest`");
        refused(&inbound("guest = 1"), 1, "no `host`");
        refused(&inbound("host = \"127.0.0.1:1\"\nguest = 1\nprotocol = \"sctp\""), 4, "neither");
        let one = inbound("host = \"127.0.0.1:1\"\nguest = 1");
        refused(&format!("{one}{one}"), 5, "Two ports of the host are 127.0.0.1:1");
    }
}
