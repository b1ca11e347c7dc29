//! Which names the guest has looked up and what addresses it got: what rules by DNS name go by, and
//! what the log of flows calls a peer.
//!
//! Only what our own name server has answered counts. The table is bounded; the address that was
//! answered longest ago makes room.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::timers::Micros;

const MAX_ADDRESSES: usize = 4096;
/// Names of one address; hosts of large networks serve many.
const MAX_NAMES: usize = 16;
/// How long an answer counts at least: programs keep addresses for longer than they should.
const LEAST: Micros = 600_000_000;
/// How long it counts at most.
const MOST: Micros = 24 * 3_600_000_000;

#[derive(Debug)]
struct Named {
    name: Arc<str>,
    until: Micros,
}

/// The table: the names of each address, the last one asked for at the end.
#[derive(Debug, Default)]
pub(crate) struct Names {
    by_address: HashMap<IpAddr, Vec<Named>>,
}

impl Names {
    /// Notes that `name` was answered with `address`, for `ttl` seconds.
    pub(crate) fn learn(&mut self, name: &Arc<str>, address: IpAddr, ttl: u32, now: Micros) {
        let address = address.to_canonical();
        if self.by_address.len() >= MAX_ADDRESSES && !self.by_address.contains_key(&address) {
            self.make_room(now);
        }
        let names = self.by_address.entry(address).or_default();
        names.retain(|named| named.name != *name && named.until > now);
        if names.len() == MAX_NAMES {
            names.remove(0);
        }
        let until = now + (u64::from(ttl) * 1_000_000).clamp(LEAST, MOST);
        names.push(Named { name: Arc::clone(name), until });
    }

    /// Removes what counts no more, and the half that ends first when that is not enough.
    fn make_room(&mut self, now: Micros) {
        let last = |names: &[Named]| names.iter().map(|named| named.until).max().unwrap_or(0);
        self.by_address.retain(|_, names| last(names) > now);
        if self.by_address.len() >= MAX_ADDRESSES {
            let mut ends: Vec<Micros> = self.by_address.values().map(|n| last(n)).collect();
            let middle = ends.len() / 2;
            let (_, middle, _) = ends.select_nth_unstable(middle);
            let middle = *middle;
            self.by_address.retain(|_, names| last(names) > middle);
        }
    }

    /// Iterates over the names that count for an address at `now`.
    pub(crate) fn of(&self, address: IpAddr, now: Micros) -> impl Iterator<Item = &str> {
        let names = self.by_address.get(&address.to_canonical());
        let named = names.into_iter().flatten().filter(move |named| named.until > now);
        named.map(|named| &*named.name)
    }

    /// Returns the name by which an address was last looked up.
    pub(crate) fn last_of(&self, address: IpAddr) -> Option<Arc<str>> {
        let names = self.by_address.get(&address.to_canonical())?;
        names.last().map(|named| Arc::clone(&named.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u32) -> IpAddr {
        std::net::Ipv4Addr::from_bits(0xc000_0200 + number).into()
    }

    #[test]
    fn a_name_counts_for_its_time_and_the_last_one_is_known_longer() {
        let mut names = Names::default();
        names.learn(&"a.test".into(), address(1), 3600, 0);
        names.learn(&"b.test".into(), address(1), 5, 0);
        let of = |names: &Names, now| names.of(address(1), now).count();
        assert_eq!(of(&names, LEAST - 1), 2);
        assert_eq!(of(&names, LEAST), 1);
        assert_eq!(of(&names, 3_600_000_000), 0);
        assert_eq!(names.last_of(address(1)).as_deref(), Some("b.test"));
        assert_eq!(names.last_of(address(2)), None);
        let mapped = std::net::Ipv4Addr::from_bits(0xc000_0201).to_ipv6_mapped();
        assert_eq!(names.of(mapped.into(), 0).count(), 2);
    }

    #[test]
    fn a_guest_that_looks_everything_up_takes_bounded_memory() {
        let mut names = Names::default();
        for number in 0..20_000u32 {
            let name = format!("{number}.test").into();
            names.learn(&name, address(number), 60, Micros::from(number));
            names.learn(&name, address(1), 60, Micros::from(number));
        }
        assert!(names.by_address.len() <= MAX_ADDRESSES);
        assert_eq!(names.by_address[&address(1)].len(), MAX_NAMES);
        assert_eq!(names.last_of(address(19_999)).as_deref(), Some("19999.test"));
    }
}
