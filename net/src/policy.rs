//! Where a destination leads: the one place that decides what a guest may reach.
//!
//! The network's own addresses lead to the name server, to a forward, or nowhere; the gateway leads
//! to the host's loopback only when the configuration says so. Loopback, link-local addresses and
//! the metadata services of clouds lead nowhere unless a rule spells them out, and multicast and
//! reserved ones never. All else leads out, as far as the [`Rules`](crate::Rules) let it.
//!
//! A rule by DNS name holds for the addresses that our own name server has answered for it; an answer
//! that leads a name to the host itself is refused, so that no name does.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use crate::config::{NatConfig, Target};
use crate::dns::addresses;
use crate::link::DropReason;
use crate::names::Names;
use crate::rules::{Special, special};
use crate::timers::Micros;

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
    Service(Target),
}

/// Why a flow leads nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It is no address of a single host.
    Unroutable,
    /// There is no IPv6.
    NoIpv6,
    /// The guest may not.
    Denied(Denial),
}

/// Why the guest may not reach something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Denial {
    /// Port 0.
    NoPort,
    /// Nothing is at that address and port of the network.
    NoService,
    /// What is special about the address, and no rule spells it out.
    Special(Special),
    /// It is an IPv4 address in the clothes of IPv6.
    Disguised,
    /// The rule in `deny` with this index.
    Rule(usize),
    /// No rule in `allow`, and the network is restricted.
    Restricted,
    /// A name was answered with an address of the host's own.
    Rebinding,
}

impl From<Refusal> for DropReason {
    fn from(refusal: Refusal) -> DropReason {
        match refusal {
            Refusal::Unroutable => DropReason::UnroutableDestination,
            Refusal::NoIpv6 => DropReason::Ipv6,
            Refusal::Denied(_) => DropReason::Denied,
        }
    }
}

/// The rules made from a configuration, and the names they go by.
#[derive(Debug)]
pub(crate) struct Policy {
    config: Arc<NatConfig>,
    names: Names,
}

impl Policy {
    pub(crate) fn new(config: Arc<NatConfig>) -> Policy {
        Policy { config, names: Names::default() }
    }

    /// Returns where a TCP connection to `dst:port` leads.
    pub(crate) fn tcp(&self, dst: IpAddr, port: u16, now: Micros) -> Result<Route, Refusal> {
        for forward in &self.config.forwards {
            if forward.address == dst && forward.port == port {
                return Ok(Route::Service(forward.target.clone()));
            }
        }
        self.udp(dst, port, now)
    }

    /// Returns where a UDP datagram to `dst:port` leads; never to a service.
    pub(crate) fn udp(&self, dst: IpAddr, port: u16, now: Micros) -> Result<Route, Refusal> {
        if port == 0 {
            return Err(Refusal::Denied(Denial::NoPort));
        }
        match dst {
            IpAddr::V4(dst) => self.ipv4(dst, port, now),
            IpAddr::V6(dst) => self.ipv6(dst, port, now),
        }
    }

    fn ipv4(&self, dst: Ipv4Addr, port: u16, now: Micros) -> Result<Route, Refusal> {
        let config = &*self.config;
        if config.contains(dst) {
            return if dst == config.dns && port == DNS_PORT {
                Ok(Route::Resolver)
            } else if dst == config.gateway {
                self.host(Ipv4Addr::LOCALHOST.into(), port, now)
            } else if dst == config.network() || dst == config.broadcast() {
                Err(Refusal::Unroutable)
            } else {
                Err(Refusal::Denied(Denial::NoService))
            };
        }
        if dst.is_multicast() || dst.octets()[0] >= 240 {
            return Err(Refusal::Unroutable);
        }
        self.world(dst.into(), port, now)
    }

    fn ipv6(&self, dst: Ipv6Addr, port: u16, now: Micros) -> Result<Route, Refusal> {
        let config = self.config.ipv6.as_ref().ok_or(Refusal::NoIpv6)?;
        // RFC 4291, section 2.5.5: IPv4-compatible and IPv4-mapped addresses.
        let embeds_ipv4 = matches!(dst.segments(), [0, 0, 0, 0, 0, 0 | 0xffff, _, _]);
        if dst.is_multicast() {
            Err(Refusal::Unroutable)
        } else if config.is_dns(dst) && port == DNS_PORT {
            Ok(Route::Resolver)
        } else if config.is_gateway(dst) {
            self.host(Ipv6Addr::LOCALHOST.into(), port, now)
        } else if config.contains(dst) {
            Err(Refusal::Denied(Denial::NoService))
        } else if embeds_ipv4 && special(dst.into()).is_none() {
            Err(Refusal::Denied(Denial::Disguised))
        } else {
            self.world(dst.into(), port, now)
        }
    }

    /// Returns the way to an address that is not the guest's network's.
    fn world(&self, address: IpAddr, port: u16, now: Micros) -> Result<Route, Refusal> {
        // The guest's loopback is its own: what it sends there from outside is astray.
        if let Some(Special::Loopback) = special(address) {
            return Err(Refusal::Denied(Denial::Special(Special::Loopback)));
        }
        self.host(address, port, now)
    }

    fn host(&self, address: IpAddr, port: u16, now: Micros) -> Result<Route, Refusal> {
        self.admit(address, port, now).map_err(Refusal::Denied)?;
        Ok(Route::Host((address, port).into()))
    }

    /// Whether the rules let the guest reach an address of the world or of the host.
    fn admit(&self, address: IpAddr, port: u16, now: Micros) -> Result<(), Denial> {
        let rules = &self.config.rules;
        let names = || self.names.of(address, now);
        if let Some(index) = rules.deny.iter().position(|r| r.matches(address, port, names())) {
            return Err(Denial::Rule(index));
        }
        let is_open = match special(address) {
            Some(Special::Loopback) if self.config.host_loopback && !rules.restrict => true,
            Some(_) => rules.allow.iter().any(|rule| rule.spells_out(address, port)),
            None => {
                !rules.restrict || rules.allow.iter().any(|r| r.matches(address, port, names()))
            }
        };
        match (is_open, special(address)) {
            (true, _) => Ok(()),
            (false, Some(special)) => Err(Denial::Special(special)),
            (false, None) => Err(Denial::Restricted),
        }
    }

    /// Whether the guest may ask for a name at all: not for one that it may reach on no port.
    pub(crate) fn ask(&self, name: &str) -> Result<(), Denial> {
        let rules = &self.config.rules;
        let denies = |rule: &crate::Rule| rule.has_all_ports() && rule.is_about(name);
        if let Some(index) = rules.deny.iter().position(denies) {
            return Err(Denial::Rule(index));
        }
        if rules.restrict && !rules.allow.iter().any(|rule| rule.is_about(name)) {
            return Err(Denial::Restricted);
        }
        Ok(())
    }

    /// Takes an answer to the guest's question for `name`.
    ///
    /// # Errors
    /// It leads the name to the host or into the guest's network, and must not be passed on.
    pub(crate) fn learn(
        &mut self,
        name: &Arc<str>,
        answer: &[u8],
        now: Micros,
    ) -> Result<(), Denial> {
        let addresses = addresses::addresses(answer);
        // RFC 6761, section 6.3: these names are the loopback's by right.
        let is_localhost = &**name == "localhost" || name.ends_with(".localhost");
        if !is_localhost && addresses.iter().any(|(address, _)| self.is_inside(*address)) {
            return Err(Denial::Rebinding);
        }
        for (address, ttl) in addresses {
            if !self.is_inside(address) {
                self.names.learn(name, address, ttl, now);
            }
        }
        Ok(())
    }

    /// Notes an address of a name that the host or the configuration knows, and so may be anywhere.
    pub(crate) fn learn_own(&mut self, name: &Arc<str>, address: IpAddr, now: Micros) {
        if !self.is_inside(address) {
            self.names.learn(name, address, 0, now);
        }
    }

    /// Whether no name of the world's has any business with an address.
    fn is_inside(&self, address: IpAddr) -> bool {
        let is_ours = match address.to_canonical() {
            IpAddr::V4(address) => self.config.contains(address),
            IpAddr::V6(address) => self.config.ipv6.is_some_and(|ipv6| ipv6.contains(address)),
        };
        is_ours || special(address).is_some()
    }

    /// Returns the name by which the guest last looked an address up.
    pub(crate) fn name_of(&self, address: IpAddr) -> Option<Arc<str>> {
        self.names.last_of(address)
    }

    /// Says why, in a few words.
    pub(crate) fn reason(&self, denial: Denial) -> String {
        match denial {
            Denial::NoPort => "port 0 is nobody's".into(),
            Denial::NoService => "nothing is forwarded there".into(),
            Denial::Special(Special::Loopback) => "the host's loopback is not allowed".into(),
            Denial::Special(Special::LinkLocal) => {
                "link-local addresses are not allowed unless by themselves".into()
            }
            Denial::Special(Special::Metadata) => {
                "metadata services are not allowed unless by their address".into()
            }
            Denial::Disguised => "an IPv4 address in IPv6 leads nowhere".into(),
            Denial::Rule(index) => match self.config.rules.deny.get(index) {
                Some(rule) => format!("denied by the rule `{rule}`"),
                None => "denied by a rule".into(),
            },
            Denial::Restricted => "the network is restricted".into(),
            Denial::Rebinding => "its name was answered with an address of the host's own".into(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rules;

    fn policy(change: impl FnOnce(&mut NatConfig)) -> Policy {
        let mut config = NatConfig::default();
        change(&mut config);
        Policy::new(Arc::new(config))
    }

    fn rules(restrict: bool, allow: &[&str], deny: &[&str]) -> Rules {
        let parse = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        Rules { restrict, allow: parse(allow), deny: parse(deny) }
    }

    fn route(policy: &Policy, to: &str) -> Result<SocketAddr, Refusal> {
        let to: SocketAddr = to.parse().unwrap();
        match policy.tcp(to.ip(), to.port(), 0)? {
            Route::Host(address) => Ok(address),
            Route::Resolver | Route::Service(_) => panic!("leads into the network"),
        }
    }

    fn denied(denial: Denial) -> Result<SocketAddr, Refusal> {
        Err(Refusal::Denied(denial))
    }

    const LOOPBACK: Denial = Denial::Special(Special::Loopback);
    const LINK_LOCAL: Denial = Denial::Special(Special::LinkLocal);

    #[test]
    fn the_world_is_reached_and_the_host_s_loopback_is_not() {
        for host_loopback in [false, true] {
            let policy = policy(|config| config.host_loopback = host_loopback);
            assert_eq!(route(&policy, "192.0.2.1:80"), Ok("192.0.2.1:80".parse().unwrap()));
            for (to, denial) in [
                ("127.0.0.1:80", LOOPBACK),
                ("127.9.9.9:80", LOOPBACK),
                ("0.0.0.0:80", LOOPBACK),
                ("169.254.169.254:80", LINK_LOCAL),
                ("168.63.129.16:80", Denial::Special(Special::Metadata)),
            ] {
                assert_eq!(route(&policy, to), denied(denial), "{to}");
            }
            for to in ["224.0.0.251:80", "255.255.255.255:80", "10.0.2.255:80"] {
                assert_eq!(route(&policy, to), Err(Refusal::Unroutable));
            }
        }
    }

    #[test]
    fn the_gateway_is_the_host_s_loopback_only_when_configured() {
        let shut = policy(|_| {});
        assert_eq!(route(&shut, "10.0.2.2:80"), denied(LOOPBACK));
        let open = policy(|config| config.host_loopback = true);
        assert_eq!(route(&open, "10.0.2.2:80"), Ok("127.0.0.1:80".parse().unwrap()));
        assert_eq!(route(&open, "10.0.2.9:80"), denied(Denial::NoService));
    }

    #[test]
    fn ipv6_leads_to_the_world_and_not_to_the_host() {
        let shut = policy(|_| {});
        let open = policy(|config| config.host_loopback = true);
        let world = "[2001:db8::1]:80";
        assert_eq!(route(&shut, world), Ok(world.parse().unwrap()));
        assert_eq!(route(&open, "[fd00::2]:80"), Ok("[::1]:80".parse().unwrap()));
        assert_eq!(route(&shut, "[fd00::2]:80"), denied(LOOPBACK));
        for (to, denial) in [
            ("[::]:80", LOOPBACK),
            ("[::1]:80", LOOPBACK),
            ("[::7f00:1]:80", Denial::Disguised),
            ("[::ffff:192.0.2.1]:80", Denial::Disguised),
            ("[::ffff:127.0.0.1]:80", LOOPBACK),
            ("[fe80::1]:80", LINK_LOCAL),
            ("[fd00::7]:80", Denial::NoService),
            ("[fd00:ec2::254]:80", Denial::Special(Special::Metadata)),
        ] {
            assert_eq!(route(&open, to), denied(denial), "{to}");
        }
        assert_eq!(route(&open, "[ff02::1]:80"), Err(Refusal::Unroutable));
        let restricted = policy(|config| {
            config.rules = rules(true, &["[2001:db8::]/32:443", "[::1]:5432"], &[]);
        });
        assert!(route(&restricted, "[2001:db8::1]:443").is_ok());
        assert_eq!(route(&restricted, world), denied(Denial::Restricted));
        assert_eq!(route(&restricted, "[fd00::2]:5432"), Ok("[::1]:5432".parse().unwrap()));
    }

    #[test]
    fn rules_open_special_addresses_only_by_spelling_them_out() {
        let open = policy(|config| {
            config.rules = rules(false, &["127.0.0.1:5432", "169.254.169.254:80"], &[]);
        });
        assert_eq!(route(&open, "10.0.2.2:5432"), Ok("127.0.0.1:5432".parse().unwrap()));
        assert_eq!(route(&open, "10.0.2.2:5433"), denied(LOOPBACK));
        assert!(route(&open, "169.254.169.254:80").is_ok());
        assert_eq!(route(&open, "169.254.169.253:80"), denied(LINK_LOCAL));
        let wide = policy(|config| config.rules = rules(false, &["0.0.0.0/0", "*"], &[]));
        assert_eq!(route(&wide, "169.254.169.254:80"), denied(LINK_LOCAL));
        assert_eq!(route(&wide, "10.0.2.2:80"), denied(LOOPBACK));
    }

    #[test]
    fn deny_wins_over_allow_and_allow_over_restrict() {
        let policy = policy(|config| {
            config.host_loopback = true;
            config.rules = rules(true, &["192.0.2.0/24"], &["192.0.2.7", "*:25"]);
        });
        assert!(route(&policy, "192.0.2.1:80").is_ok());
        assert_eq!(route(&policy, "192.0.2.7:80"), denied(Denial::Rule(0)));
        assert_eq!(route(&policy, "192.0.2.1:25"), denied(Denial::Rule(1)));
        assert_eq!(route(&policy, "198.51.100.1:80"), denied(Denial::Restricted));
        assert_eq!(route(&policy, "10.0.2.2:80"), denied(LOOPBACK), "restricted as well");
        assert_eq!(policy.reason(Denial::Rule(1)), "denied by the rule `*:25`");
    }

    /// An answer of one address, as a resolver gives it.
    fn answer(name: &str, address: [u8; 4]) -> Vec<u8> {
        let mut message = crate::dns::message::tests::query(1, name);
        message.truncate(message.len() - 11);
        message[7] = 1;
        message.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        message.extend(address);
        message
    }

    #[test]
    fn a_rule_by_name_holds_for_what_our_name_server_answered_and_while_it_counts() {
        let mut policy = policy(|config| {
            config.rules = rules(true, &["*.deb.test:443"], &["bad.deb.test"]);
        });
        assert_eq!(route(&policy, "192.0.2.1:443"), denied(Denial::Restricted));
        assert_eq!(policy.ask("www.deb.test"), Ok(()));
        assert_eq!(policy.ask("other.test"), Err(Denial::Restricted));
        assert_eq!(policy.ask("bad.deb.test"), Err(Denial::Rule(0)));
        let name: Arc<str> = "www.deb.test".into();
        policy.learn(&name, &answer(&name, [192, 0, 2, 1]), 0).unwrap();
        assert!(route(&policy, "192.0.2.1:443").is_ok());
        assert_eq!(route(&policy, "192.0.2.1:80"), denied(Denial::Restricted));
        assert_eq!(policy.name_of(Ipv4Addr::new(192, 0, 2, 1).into()), Some(name));
        let (dst, later) = (Ipv4Addr::new(192, 0, 2, 1), 3_600_000_000);
        assert!(policy.tcp(dst.into(), 443, later).is_err());
        assert_eq!(
            self::policy(|c| c.rules = rules(true, &["*:443"], &["*:25"])).ask("a.test"),
            Ok(())
        );
        let bad: Arc<str> = "bad.deb.test".into();
        policy.learn(&bad, &answer(&bad, [192, 0, 2, 1]), 0).unwrap();
        assert_eq!(route(&policy, "192.0.2.1:443"), denied(Denial::Rule(0)));
    }

    #[test]
    fn a_name_that_is_answered_with_the_host_itself_is_refused() {
        let mut policy = policy(|config| config.rules = rules(false, &["evil.test"], &[]));
        let evil: Arc<str> = "evil.test".into();
        for address in
            [[127, 0, 0, 1], [0, 0, 0, 0], [169, 254, 169, 254], [10, 0, 2, 2], [10, 0, 2, 100]]
        {
            let answer = answer(&evil, address);
            assert_eq!(policy.learn(&evil, &answer, 0), Err(Denial::Rebinding), "{address:?}");
        }
        assert_eq!(route(&policy, "10.0.2.2:80"), denied(LOOPBACK));
        let localhost: Arc<str> = "db.localhost".into();
        assert_eq!(policy.learn(&localhost, &answer(&localhost, [127, 0, 0, 1]), 0), Ok(()));
        assert_eq!(policy.learn(&evil, &answer(&evil, [10, 1, 2, 3]), 0), Ok(()));
    }
}
