//! Where a destination leads: the one place that decides what a guest may reach.
//!
//! The network's own addresses lead to the name server, to a forward, or nowhere; the gateway leads
//! to the host's loopback only when the configuration says so. Loopback, link-local (and with it the
//! metadata services of clouds), multicast and reserved addresses lead nowhere. All else leads out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use crate::config::{NatConfig, Service};
use crate::link::DropReason;

/// The port of DNS over both UDP and TCP.
pub(crate) const DNS_PORT: u16 = 53;

/// Where a flow leads.
#[derive(Clone)]
pub(crate) enum Route {
    /// To a socket of the host.
    Host(SocketAddr),
    /// To the host's resolvers.
    Resolver,
    /// To a service inside the network.
    Service(Arc<dyn Service>),
}

/// The rules made from a configuration.
pub(crate) struct Policy {
    config: Arc<NatConfig>,
}

impl Policy {
    pub(crate) fn new(config: Arc<NatConfig>) -> Policy {
        Policy { config }
    }

    /// Returns where a TCP connection to `dst:port` leads.
    pub(crate) fn tcp(&self, dst: IpAddr, port: u16) -> Result<Route, DropReason> {
        for forward in &self.config.forwards {
            if forward.address == dst && forward.port == port {
                return Ok(Route::Service(Arc::clone(&forward.target)));
            }
        }
        self.udp(dst, port)
    }

    /// Returns where a UDP datagram to `dst:port` leads; never to a service.
    pub(crate) fn udp(&self, dst: IpAddr, port: u16) -> Result<Route, DropReason> {
        if port == 0 {
            return Err(DropReason::Denied);
        }
        match dst {
            IpAddr::V4(dst) => self.ipv4(dst, port),
            IpAddr::V6(dst) => self.ipv6(dst, port),
        }
    }

    fn ipv4(&self, dst: Ipv4Addr, port: u16) -> Result<Route, DropReason> {
        let config = &*self.config;
        let host = |address: Ipv4Addr| Route::Host(SocketAddr::from((address, port)));
        if config.contains(dst) {
            return if dst == config.dns && port == DNS_PORT {
                Ok(Route::Resolver)
            } else if dst == config.gateway && config.host_loopback {
                Ok(host(Ipv4Addr::LOCALHOST))
            } else if dst == config.network() || dst == config.broadcast() {
                Err(DropReason::UnroutableDestination)
            } else {
                Err(DropReason::Denied)
            };
        }
        let first = dst.octets()[0];
        if dst.is_multicast() || first >= 240 {
            Err(DropReason::UnroutableDestination)
        } else if dst.is_loopback() || dst.is_link_local() || first == 0 {
            Err(DropReason::Denied)
        } else {
            Ok(host(dst))
        }
    }

    fn ipv6(&self, dst: Ipv6Addr, port: u16) -> Result<Route, DropReason> {
        let config = self.config.ipv6.as_ref().ok_or(DropReason::Ipv6)?;
        let host = |address: Ipv6Addr| Route::Host(SocketAddr::from((address, port)));
        if dst.is_multicast() {
            Err(DropReason::UnroutableDestination)
        } else if config.is_dns(dst) && port == DNS_PORT {
            Ok(Route::Resolver)
        } else if config.is_gateway(dst) && self.config.host_loopback {
            Ok(host(Ipv6Addr::LOCALHOST))
        } else if config.contains(dst) || is_special(dst) {
            Err(DropReason::Denied)
        } else {
            Ok(host(dst))
        }
    }

    /// Whether something in the network goes by `address`: it answers pings, ARP and neighbour
    /// solicitations.
    pub(crate) fn is_ours(&self, address: IpAddr) -> bool {
        let config = &*self.config;
        match (address, &config.ipv6) {
            (IpAddr::V4(address), _) => {
                address == config.gateway
                    || address == config.dns
                    || config.forwards.iter().any(|f| f.address == address)
            }
            (IpAddr::V6(address), Some(ipv6)) => ipv6.is_gateway(address) || ipv6.is_dns(address),
            (IpAddr::V6(_), None) => false,
        }
    }
}

/// Whether an address is the host's own, its link's, an IPv4 address in disguise, or that of a
/// cloud's metadata service.
fn is_special(address: Ipv6Addr) -> bool {
    const METADATA: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
    // RFC 4291, section 2.5: unspecified, loopback, IPv4-compatible and IPv4-mapped addresses.
    let embeds_ipv4 = matches!(address.segments(), [0, 0, 0, 0, 0, 0 | 0xffff, _, _]);
    embeds_ipv4 || address.is_unicast_link_local() || address == METADATA
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(
        host_loopback: bool,
        dst: impl Into<IpAddr>,
        port: u16,
    ) -> Result<SocketAddr, DropReason> {
        let config = NatConfig { host_loopback, ..NatConfig::default() };
        match Policy::new(Arc::new(config)).tcp(dst.into(), port)? {
            Route::Host(address) => Ok(address),
            Route::Resolver | Route::Service(_) => panic!("leads into the network"),
        }
    }

    #[test]
    fn the_world_is_reached_and_the_host_s_loopback_is_not() {
        assert_eq!(route(false, [192, 0, 2, 1], 80), Ok("192.0.2.1:80".parse().unwrap()));
        for dst in [[127, 0, 0, 1], [127, 9, 9, 9], [169, 254, 169, 254], [0, 0, 0, 0]] {
            assert_eq!(route(true, dst, 80), Err(DropReason::Denied));
        }
        for dst in [[224, 0, 0, 251], [255, 255, 255, 255], [10, 0, 2, 255]] {
            assert_eq!(route(true, dst, 80), Err(DropReason::UnroutableDestination));
        }
    }

    #[test]
    fn the_gateway_is_the_host_s_loopback_only_when_configured() {
        assert_eq!(route(false, [10, 0, 2, 2], 80), Err(DropReason::Denied));
        assert_eq!(route(true, [10, 0, 2, 2], 80), Ok("127.0.0.1:80".parse().unwrap()));
        assert_eq!(route(true, [10, 0, 2, 9], 80), Err(DropReason::Denied));
    }

    #[test]
    fn ipv6_leads_to_the_world_and_not_to_the_host() {
        let to = |host_loopback, address: &str| {
            route(host_loopback, address.parse::<Ipv6Addr>().unwrap(), 80)
        };
        assert_eq!(to(false, "2001:db8::1"), Ok("[2001:db8::1]:80".parse().unwrap()));
        assert_eq!(to(true, "fd00::2"), Ok("[::1]:80".parse().unwrap()));
        for address in
            ["::", "::1", "::7f00:1", "::ffff:127.0.0.1", "fe80::1", "fd00::7", "fd00:ec2::254"]
        {
            assert_eq!(to(true, address), Err(DropReason::Denied), "{address}");
        }
        assert_eq!(to(false, "fd00::2"), Err(DropReason::Denied));
        assert_eq!(to(true, "ff02::1"), Err(DropReason::UnroutableDestination));
    }
}
