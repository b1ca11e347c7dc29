//! Rules on what the guest may reach in the world, as the profile's `allow` and `deny` lists have
//! them: an address or a network, or a DNS name, and ports.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// What the guest may reach beyond the services of its own network.
///
/// A rule in `deny` wins over all; then one in `allow`; then `restrict` decides. The host's loopback,
/// link-local addresses and the metadata services of clouds are only reached through a rule in
/// `allow` that spells such an address out, never through a wider network or a DNS name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Whether nothing is reached that `allow` does not name.
    pub restrict: bool,
    /// What is reached although `restrict`, or the kind of the address, says otherwise.
    pub allow: Vec<Rule>,
    /// What is never reached.
    pub deny: Vec<Rule>,
}

/// One rule: whom it is about, and which of its ports.
///
/// Written as `192.0.2.0/24`, `192.0.2.1:443`, `[2001:db8::]/32:80-90`, `deb.debian.org`,
/// `*.debian.org:443` (every name below it) or `*:25` (everyone).
#[derive(Clone, PartialEq, Eq)]
pub struct Rule {
    text: String,
    peer: Peer,
    ports: Option<(u16, u16)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Peer {
    Everyone,
    Network(Network),
    /// A name in lower case without its last dot.
    Name(String),
    /// Every name that ends in this one, its dot included.
    Below(String),
}

/// Addresses that begin alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Network {
    base: IpAddr,
    len: u8,
}

/// A text that is no rule. Says what is wrong, as a clause.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RuleError(String);

impl Network {
    const fn v4(address: [u8; 4], len: u8) -> Network {
        let [a, b, c, d] = address;
        Network { base: IpAddr::V4(Ipv4Addr::new(a, b, c, d)), len }
    }

    const fn v6(address: [u16; 8], len: u8) -> Network {
        let [a, b, c, d, e, f, g, h] = address;
        Network { base: IpAddr::V6(Ipv6Addr::new(a, b, c, d, e, f, g, h)), len }
    }

    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        match (self.base, address) {
            (IpAddr::V4(base), IpAddr::V4(address)) => {
                let beyond = 32 - u32::from(self.len);
                (u64::from(base.to_bits() ^ address.to_bits())) >> beyond == 0
            }
            (IpAddr::V6(base), IpAddr::V6(address)) => {
                let differs = base.to_bits() ^ address.to_bits();
                differs.leading_zeros() >= u32::from(self.len)
            }
            _ => false,
        }
    }
}

/// Kinds of addresses that only a rule which spells them out opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Special {
    /// The host itself, by its loopback.
    Loopback,
    /// Only valid on the host's own links.
    LinkLocal,
    /// Where clouds give machines their credentials.
    Metadata,
}

/// RFC 6890; the metadata addresses are those that cloud providers document: Azure's and Alibaba's,
/// Oracle's first, Amazon's and Google's of IPv6. The rest of them are link-local.
const SPECIAL: [(Network, Special); 11] = [
    (Network::v4([127, 0, 0, 0], 8), Special::Loopback),
    (Network::v4([0, 0, 0, 0], 8), Special::Loopback),
    (Network::v4([169, 254, 0, 0], 16), Special::LinkLocal),
    (Network::v4([168, 63, 129, 16], 32), Special::Metadata),
    (Network::v4([100, 100, 100, 200], 32), Special::Metadata),
    (Network::v4([192, 0, 0, 192], 32), Special::Metadata),
    // With the unspecified address, which hosts connect to their loopback.
    (Network::v6([0, 0, 0, 0, 0, 0, 0, 0], 127), Special::Loopback),
    (Network::v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10), Special::LinkLocal),
    (Network::v6([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10), Special::LinkLocal),
    (Network::v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254], 128), Special::Metadata),
    (Network::v6([0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254], 128), Special::Metadata),
];

/// Returns what is special about an address.
pub(crate) fn special(address: IpAddr) -> Option<Special> {
    special_network(address).map(|(_, special)| special)
}

fn special_network(address: IpAddr) -> Option<(Network, Special)> {
    // An IPv4 address in the clothes of IPv6 leads where the IPv4 address leads.
    let address = address.to_canonical();
    SPECIAL.into_iter().find(|(network, _)| network.contains(address))
}

impl Rule {
    /// Whether the rule is about a port of an address that goes by `names`.
    pub(crate) fn matches<'n>(
        &self,
        address: IpAddr,
        port: u16,
        mut names: impl Iterator<Item = &'n str>,
    ) -> bool {
        self.ports.is_none_or(|(first, last)| (first..=last).contains(&port))
            && match &self.peer {
                Peer::Everyone => true,
                Peer::Network(network) => network.contains(address.to_canonical()),
                Peer::Name(_) | Peer::Below(_) => names.any(|name| self.is_about(name)),
            }
    }

    /// Whether the rule spells a special address out: its network holds no other kind.
    pub(crate) fn spells_out(&self, address: IpAddr, port: u16) -> bool {
        let (Peer::Network(own), Some((special, _))) = (&self.peer, special_network(address))
        else {
            return false;
        };
        own.len >= special.len && self.matches(address, port, std::iter::empty())
    }

    /// Whether the rule names `name`, in lower case without its last dot.
    pub(crate) fn is_about(&self, name: &str) -> bool {
        match &self.peer {
            Peer::Everyone => true,
            Peer::Network(_) => false,
            Peer::Name(own) => own == name,
            Peer::Below(suffix) => name.len() > suffix.len() && name.ends_with(suffix.as_str()),
        }
    }

    /// Whether the rule is about all ports of whom it is about.
    pub(crate) fn has_all_ports(&self) -> bool {
        self.ports.is_none()
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rule({})", self.text)
    }
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Rule, RuleError> {
        let (peer, ports) = split(text);
        let ports = ports.map(|ports| parse_ports(text, ports)).transpose()?;
        Ok(Rule { text: text.to_string(), peer: parse_peer(text, peer)?, ports })
    }
}

/// Splits the ports off. A colon of a bare IPv6 address is none before ports.
fn split(text: &str) -> (&str, Option<&str>) {
    let is_bare_v6 = !text.starts_with('[') && text.matches(':').count() > 1;
    match text.rsplit_once(':') {
        Some((peer, ports)) if !is_bare_v6 && !ports.contains(']') => (peer, Some(ports)),
        _ => (text, None),
    }
}

fn parse_ports(text: &str, ports: &str) -> Result<(u16, u16), RuleError> {
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    match (first.parse::<u16>(), last.parse::<u16>()) {
        (Ok(first), Ok(last)) if 0 < first && first <= last => Ok((first, last)),
        _ => Err(RuleError(format!("`{ports}` in `{text}` is no port and no range of ports"))),
    }
}

fn parse_peer(text: &str, peer: &str) -> Result<Peer, RuleError> {
    if peer == "*" {
        return Ok(Peer::Everyone);
    }
    let (address, len) = match peer.split_once('/') {
        Some((address, len)) => (address, Some(len)),
        None => (peer, None),
    };
    let inside = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    if let Ok(address) = inside.unwrap_or(address).parse::<IpAddr>() {
        return parse_network(text, address, len).map(Peer::Network);
    }
    let is_below = address.starts_with("*.");
    let name = address.strip_prefix("*.").unwrap_or(address);
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    if len.is_some() || !is_name(&name) {
        let message = format!("`{text}` is no address, network or DNS name with an optional port");
        return Err(RuleError(message));
    }
    Ok(if is_below { Peer::Below(format!(".{name}")) } else { Peer::Name(name) })
}

fn parse_network(text: &str, base: IpAddr, len: Option<&str>) -> Result<Network, RuleError> {
    let bits = if base.is_ipv4() { 32 } else { 128 };
    let len = match len {
        None => bits,
        Some(len) => match len.parse::<u8>() {
            Ok(len) if len <= bits => len,
            _ => return Err(RuleError(format!("`/{len}` in `{text}` is not 0 to {bits}"))),
        },
    };
    let first = match base {
        IpAddr::V4(base) => {
            let mask = (!0u64 << (32 - u32::from(len))) as u32;
            IpAddr::from(Ipv4Addr::from_bits(base.to_bits() & mask))
        }
        IpAddr::V6(base) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
            IpAddr::from(Ipv6Addr::from_bits(base.to_bits() & mask))
        }
    };
    if first != base {
        let message = format!("`{text}` is no network: its first address is {first}");
        return Err(RuleError(message));
    }
    Ok(Network { base, len })
}

/// Whether a text is a DNS name (RFC 1035, section 2.3.1, with the underscore that services use) and
/// not an address written wrongly.
fn is_name(name: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let last = name.rsplit('.').next().unwrap_or_default();
    name.len() <= 253 && name.split('.').all(is_label) && !last.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(text: &str) -> Rule {
        text.parse().unwrap()
    }

    fn matches(text: &str, address: &str, port: u16, name: &str) -> bool {
        rule(text).matches(address.parse().unwrap(), port, std::iter::once(name))
    }

    #[test]
    fn networks_names_and_ports_match_what_they_say() {
        for (text, address, port, name, expected) in [
            ("192.0.2.0/24", "192.0.2.255", 1, "", true),
            ("192.0.2.0/24", "192.0.3.0", 1, "", false),
            ("192.0.2.7", "192.0.2.7", 1, "", true),
            ("192.0.2.7:443", "192.0.2.7", 80, "", false),
            ("192.0.2.7:80-90", "192.0.2.7", 90, "", true),
            ("192.0.2.7:80-90", "192.0.2.7", 91, "", false),
            ("0.0.0.0/0", "192.0.2.7", 1, "", true),
            ("0.0.0.0/0", "2001:db8::1", 1, "", false),
            ("2001:db8::/32", "2001:db8:ffff::1", 1, "", true),
            ("[2001:db8::]/32:443", "2001:db8:ffff::1", 443, "", true),
            ("[2001:db8::1]:443", "2001:db8::1", 80, "", false),
            ("::/0", "2001:db8::1", 80, "", true),
            ("192.0.2.7", "::ffff:192.0.2.7", 1, "", true),
            ("*:25", "192.0.2.7", 25, "", true),
            ("*:25", "192.0.2.7", 26, "", false),
            ("Deb.Debian.org.", "192.0.2.7", 1, "deb.debian.org", true),
            ("deb.debian.org", "192.0.2.7", 1, "x.deb.debian.org", false),
            ("*.debian.org:443", "192.0.2.7", 443, "a.b.debian.org", true),
            ("*.debian.org", "192.0.2.7", 443, "debian.org", false),
            ("*.debian.org", "192.0.2.7", 443, "xdebian.org", false),
        ] {
            assert_eq!(matches(text, address, port, name), expected, "{text} {address} {name}");
        }
    }

    #[test]
    fn what_is_no_rule_is_refused_with_the_reason() {
        for (text, reason) in [
            ("", "no address, network or DNS name"),
            ("192.0.2.0/33", "`/33`"),
            ("2001:db8::/129", "`/129`"),
            ("192.0.2.1/24", "its first address is 192.0.2.0"),
            ("192.0.2", "no address, network or DNS name"),
            ("192.0.2.1:0", "no port"),
            ("192.0.2.1:90-80", "no port"),
            ("192.0.2.1:http", "no port"),
            ("a b", "no address, network or DNS name"),
            ("*.*.org", "no address, network or DNS name"),
            ("a..b", "no address, network or DNS name"),
            ("debian.org/24", "no address, network or DNS name"),
        ] {
            let error = text.parse::<Rule>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn special_addresses_are_known_in_all_their_clothes() {
        for (address, expected) in [
            ("127.255.0.1", Some(Special::Loopback)),
            ("0.0.0.0", Some(Special::Loopback)),
            ("::1", Some(Special::Loopback)),
            ("::", Some(Special::Loopback)),
            ("::ffff:127.0.0.1", Some(Special::Loopback)),
            ("169.254.169.254", Some(Special::LinkLocal)),
            ("::ffff:169.254.169.254", Some(Special::LinkLocal)),
            ("fe80::1", Some(Special::LinkLocal)),
            ("fd00:ec2::254", Some(Special::Metadata)),
            ("100.100.100.200", Some(Special::Metadata)),
            ("10.0.0.1", None),
            ("fd00::1", None),
            ("2001:db8::1", None),
        ] {
            assert_eq!(special(address.parse().unwrap()), expected, "{address}");
        }
    }

    #[test]
    fn only_a_rule_that_spells_a_special_address_out_opens_it() {
        let metadata: IpAddr = "169.254.169.254".parse().unwrap();
        for (text, expected) in [
            ("169.254.169.254", true),
            ("169.254.169.254:80", true),
            ("169.254.0.0/16", true),
            ("169.254.169.254:81", false),
            ("169.0.0.0/8", false),
            ("0.0.0.0/0", false),
            ("*", false),
            ("metadata.test", false),
        ] {
            assert_eq!(rule(text).spells_out(metadata, 80), expected, "{text}");
        }
    }
}
