//! What a network is made from: its addresses, what it forwards, and what it lets the guest reach.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::inbound::Inbound;
use crate::policy::DNS_PORT;
use crate::rules::Rules;
use crate::watch::Watch;

/// The configuration of a [`Nat`](crate::Nat).
///
/// The default is the network that QEMU's user networking has made the custom: 10.0.2.0/24 with the
/// gateway at .2, the name server at .3 and the guest at .15, and nothing forwarded.
#[derive(Clone, Debug)]
pub struct NatConfig {
    /// The gateway's address, which is also the DHCP server's.
    pub gateway: Ipv4Addr,
    /// Length of the network's prefix in bits, 8 to 29.
    pub prefix_len: u8,
    /// The name server's address.
    pub dns: Ipv4Addr,
    /// The guest's address.
    pub guest: Ipv4Addr,
    /// The network's IPv6 side; `None` where there is none. An MTU below 1,280 leaves it out too.
    pub ipv6: Option<Ipv6Config>,
    /// The MAC address that the guest's device should carry.
    pub guest_mac: [u8; 6],
    /// The MAC address of the gateway and of everything else the guest sees.
    pub gateway_mac: [u8; 6],
    /// The largest IP packet in bytes, 576 to 65,520; announced by DHCP.
    pub mtu: u16,
    /// How long a DHCP lease lasts.
    pub lease: Duration,
    /// The domain name that DHCP gives; `None` for the first domain that is searched.
    pub domain: Option<String>,
    /// The host name that DHCP gives.
    pub hostname: Option<String>,
    /// Where DNS queries go.
    pub resolvers: Resolvers,
    /// Names that the name server answers itself, each once for each address.
    pub names: Vec<(String, IpAddr)>,
    /// A file of more such names as hosts(5) describes; `names` go before it.
    pub hosts: Option<PathBuf>,
    /// The domains that the guest looks short names up in; `None` for those of the resolvers' file.
    pub search: Option<Vec<String>>,
    /// Whether the gateway's address stands for the host's loopback.
    pub host_loopback: bool,
    /// What the guest may reach.
    pub rules: Rules,
    /// What is served inside the network.
    pub forwards: Vec<Forward>,
    /// Ports of the host that lead to the guest.
    pub inbound: Vec<Inbound>,
    /// How much the guest may occupy.
    pub limits: Limits,
    /// Who hears of flows.
    pub watch: Watch,
}

impl Default for NatConfig {
    fn default() -> NatConfig {
        NatConfig {
            gateway: Ipv4Addr::new(10, 0, 2, 2),
            prefix_len: 24,
            dns: Ipv4Addr::new(10, 0, 2, 3),
            guest: Ipv4Addr::new(10, 0, 2, 15),
            ipv6: Some(Ipv6Config::default()),
            guest_mac: [0x52, 0x54, 0x00, 0x12, 0x34, 0x56],
            gateway_mac: [0x52, 0x55, 0x0a, 0x00, 0x02, 0x02],
            mtu: 1500,
            lease: Duration::from_secs(24 * 60 * 60),
            domain: None,
            hostname: None,
            resolvers: Resolvers::default(),
            names: Vec::new(),
            hosts: Some(PathBuf::from("/etc/hosts")),
            search: None,
            host_loopback: false,
            rules: Rules::default(),
            forwards: Vec::new(),
            inbound: Vec::new(),
            limits: Limits::default(),
            watch: Watch::default(),
        }
    }
}

/// The IPv6 side of a network: a prefix of 64 bits, in which the guest chooses its own addresses
/// (RFC 4862).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv6Config {
    /// The prefix; what it has behind its first 64 bits is not looked at.
    pub prefix: Ipv6Addr,
    /// Whether the guest is told that the gateway leads to the world.
    pub route: Ipv6Route,
}

/// Whether the gateway is the guest's default router for IPv6.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ipv6Route {
    /// As long as the host itself has a route to the world.
    #[default]
    LikeHost,
    /// Always.
    Always,
    /// Never.
    Never,
}

impl Default for Ipv6Config {
    fn default() -> Ipv6Config {
        let prefix = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0);
        Ipv6Config { prefix, route: Ipv6Route::default() }
    }
}

impl Ipv6Config {
    /// The gateway's address on the link, from which it advertises itself.
    pub const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);

    /// Returns the gateway's address in the prefix, which ends in 2.
    pub fn gateway(&self) -> Ipv6Addr {
        self.address(2)
    }

    /// Returns the name server's address, which ends in 3.
    pub fn dns(&self) -> Ipv6Addr {
        self.address(3)
    }

    /// Whether `address` has the prefix.
    pub fn contains(&self, address: Ipv6Addr) -> bool {
        address.segments()[..4] == self.prefix.segments()[..4]
    }

    fn address(&self, last: u16) -> Ipv6Addr {
        let [a, b, c, d, ..] = self.prefix.segments();
        Ipv6Addr::new(a, b, c, d, 0, 0, 0, last)
    }

    pub(crate) fn is_gateway(&self, address: Ipv6Addr) -> bool {
        address == self.gateway() || address == Ipv6Config::LINK_LOCAL
    }

    pub(crate) fn is_dns(&self, address: Ipv6Addr) -> bool {
        address == self.dns()
    }
}

/// Where the network's name server sends its queries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolvers {
    /// To the name servers in a file as resolv.conf(5) describes, read again when it changes.
    File(PathBuf),
    /// To these, in order.
    Fixed(Vec<SocketAddr>),
}

impl Default for Resolvers {
    fn default() -> Resolvers {
        Resolvers::File(PathBuf::from("/etc/resolv.conf"))
    }
}

/// A service inside the network: TCP connections to `address:port` become streams of `target`.
#[derive(Clone, Debug)]
pub struct Forward {
    /// An address of the network, other than the guest's.
    pub address: Ipv4Addr,
    /// The TCP port.
    pub port: u16,
    /// Who answers.
    pub target: Target,
}

/// Who answers a forward.
#[derive(Clone)]
pub enum Target {
    /// A service in this process.
    Service(Arc<dyn Service>),
    /// The first of these addresses of the host's that takes the connection.
    Host(Vec<SocketAddr>),
    /// Whoever listens on a Unix socket of the host's.
    Socket(PathBuf),
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Service(_) => f.write_str("Service"),
            Target::Host(addresses) => write!(f, "Host({addresses:?})"),
            Target::Socket(path) => write!(f, "Socket({})", path.display()),
        }
    }
}

/// A service in this process that answers forwards.
pub trait Service: Send + Sync {
    /// Returns one end of a new stream for one connection of the guest; the service serves the
    /// other end. Called on the network's own thread, so it must not block.
    ///
    /// # Errors
    /// The guest's connection is refused.
    fn connect(&self) -> io::Result<UnixStream>;
}

/// How much of each kind the guest may occupy at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// TCP connections.
    pub tcp_flows: usize,
    /// TCP connections the host has not yet answered.
    pub tcp_connecting: usize,
    /// Bytes of all TCP buffers together, before each flow gets the least it can work with, 128 KiB.
    /// Only what of them has been used occupies memory.
    pub tcp_buffers: usize,
    /// UDP flows; the one idle for longest makes room for a new one.
    pub udp_flows: usize,
    /// DNS queries under way over UDP, and connections to the name server.
    pub dns_queries: usize,
    /// Echo flows to the world; the one idle for longest makes room for a new one.
    pub pings: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            tcp_flows: 2048,
            tcp_connecting: 512,
            tcp_buffers: 512 << 20,
            udp_flows: 512,
            dns_queries: 128,
            pings: 64,
        }
    }
}

impl NatConfig {
    /// Returns the network's address.
    pub fn network(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.gateway) & self.mask_bits())
    }

    /// Returns the network's mask.
    pub fn mask(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.mask_bits())
    }

    /// Returns the network's broadcast address.
    pub fn broadcast(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.gateway) | !self.mask_bits())
    }

    /// Whether `address` lies in the network.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        u32::from(address) & self.mask_bits() == u32::from(self.network())
    }

    fn mask_bits(&self) -> u32 {
        u32::MAX << (32 - u32::from(self.prefix_len.clamp(1, 32)))
    }

    /// Whether `name` is a host or domain name: letters, digits, hyphens, and underscores as services
    /// have them, in labels of at most 63 bytes (RFC 1123, section 2.1), with or without a last dot.
    pub fn is_name(name: &str) -> bool {
        let is_label = |label: &str| {
            let mut bytes = label.bytes();
            (1..=63).contains(&label.len())
                && bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        };
        let name = name.strip_suffix('.').unwrap_or(name);
        name.len() <= 253 && name.split('.').all(is_label)
    }

    /// Checks that the values fit together.
    ///
    /// # Errors
    /// `InvalidInput`, naming the value.
    pub fn validate(&self) -> io::Result<()> {
        let refuse = |message: String| Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        if !(8..=29).contains(&self.prefix_len) {
            return refuse(format!("Prefix length {} is not 8 to 29", self.prefix_len));
        }
        if !(576..=65_520).contains(&self.mtu) {
            return refuse(format!("MTU {} is not 576 to 65520", self.mtu));
        }
        for mac in [self.guest_mac, self.gateway_mac] {
            if mac[0] & 1 != 0 || mac == [0; 6] {
                return refuse(format!("MAC address {mac:02x?} is not a station's"));
            }
        }
        let forwards = self.forwards.iter().map(|f| ("Forward address", f.address));
        let named =
            [("Gateway", self.gateway), ("Name server", self.dns), ("Guest address", self.guest)];
        for (name, address) in named.into_iter().chain(forwards) {
            if !self.contains(address) || address == self.network() || address == self.broadcast() {
                let network = self.network();
                let prefix_len = self.prefix_len;
                return refuse(format!(
                    "{name} {address} is no host's address in {network}/{prefix_len}"
                ));
            }
            if name != "Guest address" && address == self.guest {
                return refuse(format!("{name} {address} is the guest's own"));
            }
        }
        for (index, forward) in self.forwards.iter().enumerate() {
            let Forward { address, port, .. } = forward;
            let same = |other: &Forward| (other.address, other.port) == (*address, *port);
            if *port == 0 || self.forwards[..index].iter().any(same) {
                return refuse(format!("Forward {address}:{port} has port 0 or is there twice"));
            }
            if (*address, *port) == (self.dns, DNS_PORT) {
                return refuse(format!("Forward {address}:{port} is the name server"));
            }
        }
        if self.gateway == self.dns {
            return refuse(format!("Gateway and name server are both {}", self.dns));
        }
        if let Some(Ipv6Config { prefix, .. }) = self.ipv6
            && (prefix.is_multicast()
                || prefix.is_unicast_link_local()
                || prefix.segments()[0] == 0)
        {
            return refuse(format!("IPv6 prefix {prefix}/64 is not one of a network's"));
        }
        let names = self.names.iter().map(|(name, _)| name);
        let search = self.search.iter().flatten();
        for name in [&self.domain, &self.hostname].into_iter().flatten().chain(names).chain(search)
        {
            if !NatConfig::is_name(name) {
                return refuse(format!("{name:?} is no host or domain name"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(change: impl FnOnce(&mut NatConfig)) -> String {
        let mut config = NatConfig::default();
        change(&mut config);
        config.validate().unwrap_err().to_string()
    }

    #[test]
    fn the_default_is_valid() {
        NatConfig::default().validate().unwrap();
        assert_eq!(NatConfig::default().network(), Ipv4Addr::new(10, 0, 2, 0));
        assert_eq!(NatConfig::default().broadcast(), Ipv4Addr::new(10, 0, 2, 255));
    }

    #[test]
    fn refusals_name_the_value() {
        assert!(refusal(|c| c.mtu = 500).contains("MTU 500"));
        assert!(refusal(|c| c.dns = Ipv4Addr::new(10, 1, 2, 3)).contains("Name server 10.1.2.3"));
        assert!(refusal(|c| c.dns = c.guest).contains("is the guest's own"));
        assert!(refusal(|c| c.guest_mac[0] = 1).contains("MAC address"));
        assert!(refusal(|c| c.hostname = Some(String::new())).contains("\"\""));
        assert!(refusal(|c| c.prefix_len = 31).contains("31"));
        assert!(refusal(|c| c.search = Some(vec!["a b".into()])).contains("\"a b\""));
        assert!(refusal(|c| c.domain = Some("a..b".into())).contains("\"a..b\""));
        let address = IpAddr::from([192, 0, 2, 1]);
        assert!(refusal(|c| c.names = vec![("$x".into(), address)]).contains("\"$x\""));
        for prefix in ["fe80::", "ff02::", "::"] {
            let prefix = prefix.parse().unwrap();
            let ipv6 = Some(Ipv6Config { prefix, ..Ipv6Config::default() });
            assert!(refusal(|c| c.ipv6 = ipv6).contains("IPv6 prefix"));
        }
    }
}
