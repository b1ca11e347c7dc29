//! The keys of `[net]` that say what network the guest is in: its addresses, MTU and names.

use std::net::{IpAddr, Ipv4Addr};

use kvmbake_net::NatConfig;

use super::reader::{At, Reader};

/// The last bits of the addresses in every network, as in 10.0.2.0/24.
const GATEWAY: u32 = 2;
const DNS: u32 = 3;
const GUEST: u32 = 15;
const SERVE: u32 = 100;

/// The network that the guest is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lan {
    network: Ipv4Addr,
    prefix_len: u8,
    /// Whether the network has an IPv6 side.
    pub ipv6: bool,
    /// The longest IP packet, in bytes.
    pub mtu: u16,
    /// Names that the name server answers with these addresses.
    pub hosts: Vec<(String, IpAddr)>,
    /// The domains that the guest searches; `None` for the host's.
    pub search: Option<Vec<String>>,
}

impl Default for Lan {
    fn default() -> Lan {
        let NatConfig { prefix_len, mtu, .. } = NatConfig::default();
        let network = NatConfig::default().network();
        Lan { network, prefix_len, ipv6: true, mtu, hosts: Vec::new(), search: None }
    }
}

impl Lan {
    /// Returns the configuration of a network with these addresses and names, and nothing else that
    /// is not the default.
    pub fn config(&self) -> NatConfig {
        let default = NatConfig::default();
        NatConfig {
            gateway: self.address(GATEWAY),
            prefix_len: self.prefix_len,
            dns: self.address(DNS),
            guest: self.address(GUEST),
            ipv6: default.ipv6.filter(|_| self.ipv6),
            mtu: self.mtu,
            names: self.hosts.clone(),
            search: self.search.clone(),
            ..default
        }
    }

    /// Returns the address of what `serve` names.
    pub fn serve(&self) -> Ipv4Addr {
        self.address(SERVE)
    }

    /// Returns what a guest sees of the network and would not in the default one, by its keys.
    pub fn differences(&self) -> Vec<(&'static str, String)> {
        let default = Lan::default();
        let mut found = Vec::new();
        if (self.network, self.prefix_len) != (default.network, default.prefix_len) {
            found.push(("network", format!("{}/{}", self.network, self.prefix_len)));
        }
        if self.ipv6 != default.ipv6 {
            found.push(("ipv6", self.ipv6.to_string()));
        }
        if self.mtu != default.mtu {
            found.push(("mtu", self.mtu.to_string()));
        }
        if !self.hosts.is_empty() {
            let host = |(name, address): &(String, IpAddr)| format!("{name} {address}");
            found.push(("hosts", self.hosts.iter().map(host).collect::<Vec<_>>().join("\n")));
        }
        if let Some(domains) = &self.search {
            found.push(("search", domains.join("\n")));
        }
        found
    }

    fn address(&self, last: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.network) | last)
    }

    pub(super) fn read(reader: &Reader<'_, '_>) -> Lan {
        let mut lan = Lan::default();
        if let Some(At { value, .. }) = reader.parsed("network", network) {
            (lan.network, lan.prefix_len) = value;
        }
        lan.ipv6 = reader.bool("ipv6").unwrap_or(lan.ipv6);
        if let Some(mtu) = reader.integer("mtu", 576..=65_520) {
            lan.mtu = mtu.value as u16;
        }
        for (name, addresses) in reader.string_lists("hosts") {
            if !NatConfig::is_name(&name.value) {
                reader.fault(&name.span, format!("`hosts`: `{}` is no host name", name.value));
            }
            for At { value, span } in addresses {
                match value.parse() {
                    Ok(address) => lan.hosts.push((name.value.clone(), address)),
                    Err(_) => {
                        let message = format!("`hosts`: `{value}` is no IP address");
                        reader.fault_with_hint(&span, message, "Such as \"192.0.2.7\"");
                    }
                }
            }
        }
        lan.search = reader.strings("search").map(|domains| {
            let read = |At { value, span }: At<String>| {
                if !NatConfig::is_name(&value) {
                    reader.fault(&span, format!("`search`: `{value}` is no domain name"));
                }
                value
            };
            domains.into_iter().map(read).collect()
        });
        lan
    }
}

/// Reads a network that has room for every address of ours, and that others than guests have not.
fn network(text: &str) -> Result<(Ipv4Addr, u8), String> {
    let parsed = text
        .split_once('/')
        .and_then(|(address, len)| Some((address.parse::<Ipv4Addr>().ok()?, len.parse().ok()?)));
    let (address, len): (Ipv4Addr, u8) =
        parsed.ok_or_else(|| format!("`{text}` is no IPv4 network, such as 10.0.2.0/24"))?;
    if !(8..=25).contains(&len) {
        return Err(format!("the prefix of {text} is not 8 to 25 bits long"));
    }
    let network = Ipv4Addr::from(u32::from(address) & (u32::MAX << (32 - len)));
    if network != address {
        return Err(format!("{text} has bits behind its prefix; {network}/{len} is the network"));
    }
    if network.is_loopback()
        || network.is_link_local()
        || network.is_multicast()
        || network.octets()[0] == 0
        || network.octets()[0] >= 240
    {
        return Err(format!("{text} is not a network that hosts have addresses in"));
    }
    Ok((network, len))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{Profile, Source};

    fn read(net: &str) -> Result<Lan, Vec<(usize, String)>> {
        let text = format!(
            "[image]\nname = \"a\"\nsource = \"b\"\n[[output]]\nformat = \"raw\"\n[net]\n{net}"
        );
        Profile::parse(Source::new("/a.toml", text)).map(|profile| profile.net.lan).map_err(
            |faults| {
                faults.into_iter().map(|fault| (fault.place.line - 6, fault.message)).collect()
            },
        )
    }

    #[test]
    fn a_network_of_the_profile_s_has_its_addresses_at_the_same_places() {
        let lan = read("network = \"172.20.8.0/22\"\nipv6 = false\nmtu = 65520\n").unwrap();
        let config = lan.config();
        config.validate().unwrap();
        let addresses = [config.gateway, config.dns, config.guest, lan.serve()];
        let expected = ["172.20.8.2", "172.20.8.3", "172.20.8.15", "172.20.8.100"];
        assert_eq!(addresses.map(|address| address.to_string()), expected);
        assert_eq!((config.prefix_len, config.mtu, config.ipv6), (22, 65_520, None));
        for least in ["10.9.0.128/25", "10.0.0.0/8"] {
            read(&format!("network = \"{least}\"")).unwrap().config().validate().unwrap();
        }
    }

    #[test]
    fn names_and_domains_are_read_as_they_are_written() {
        let lan = read(
            "search = [\"a.test\", \"b.test\"]\n\
             hosts = { \"db.test\" = \"192.0.2.7\", web = [\"192.0.2.8\", \"2001:db8::8\"] }\n",
        )
        .unwrap();
        let mut names: Vec<String> =
            lan.hosts.iter().map(|(name, address)| format!("{name} {address}")).collect();
        names.sort();
        assert_eq!(names, ["db.test 192.0.2.7", "web 192.0.2.8", "web 2001:db8::8"]);
        assert_eq!(lan.config().search.unwrap(), ["a.test", "b.test"]);
        assert_eq!(read("search = []").unwrap().search, Some(Vec::new()));
    }

    #[test]
    fn the_default_is_the_network_s_own_and_differs_in_nothing() {
        let lan = read("").unwrap();
        assert!(lan.differences().is_empty());
        let (config, default) = (lan.config(), NatConfig::default());
        assert_eq!(format!("{config:?}"), format!("{default:?}"));
        let lan = read("network = \"10.9.0.0/24\"\nhosts = { a = \"192.0.2.1\" }\n").unwrap();
        let expected =
            [("network", "10.9.0.0/24".to_string()), ("hosts", "a 192.0.2.1".to_string())];
        assert_eq!(lan.differences(), expected);
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_line() {
        for (net, part) in [
            ("network = \"10.0.2.0\"", "is no IPv4 network, such as 10.0.2.0/24"),
            ("network = \"10.0.2.0/26\"", "is not 8 to 25 bits long"),
            ("network = \"10.0.2.1/24\"", "10.0.2.0/24 is the network"),
            ("network = \"127.0.0.0/24\"", "is not a network that hosts have"),
            ("network = \"224.0.0.0/24\"", "is not a network that hosts have"),
            ("mtu = 575", "between 576 and 65520"),
            ("ipv6 = \"on\"", "`ipv6`"),
            ("hosts = { \"a b\" = \"192.0.2.1\" }", "`a b` is no host name"),
            ("hosts = { a = \"localhost\" }", "`localhost` is no IP address"),
            ("hosts = { a = 1 }", "a string or a list of strings"),
            ("hosts = \"a\"", "must be a table"),
            ("search = [\"a..b\"]", "`a..b` is no domain name"),
        ] {
            let faults = read(net).unwrap_err();
            assert_eq!(faults.len(), 1, "{faults:?}");
            assert!(faults[0].1.contains(part), "{faults:?}");
            assert_eq!(faults[0].0, 1, "{faults:?}");
        }
    }
}
