//! What a machine snapshot keeps of a network: who the guest is, and what it has open.
//!
//! All fields are big-endian, in the order they are written below, behind a magic number and a
//! version and before a checksum of all that (FNV-1a, 64 bits), which finds damage; it is no defence
//! against forgery. A state is read whole or not at all. Left out: UDP flows and DNS queries, whose
//! clients ask again, waiting frames, and counts.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::handle::Lease;
use crate::tcp::Key;
use crate::tcp::orphans::{Numbers, Orphan};
use crate::wire::ethernet::{self, Mac};

const MAGIC: [u8; 4] = *b"KNAT";
const VERSION: u16 = 2;
/// Length in bytes of one connection, and of the checksum.
const ORPHAN_LEN: usize = 48;
const SUM_LEN: usize = 8;
/// More connections than a network can have: flows, and those that were yet to be reset.
const MAX_ORPHANS: usize = 1 << 16;

/// The state of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Saved {
    pub(crate) gateway: Ipv4Addr,
    pub(crate) guest: Ipv4Addr,
    pub(crate) gateway_mac: Mac,
    /// The MAC address the guest uses, once it has sent a frame.
    pub(crate) guest_mac: Option<Mac>,
    pub(crate) lease: Lease,
    /// Whether a driver has taken the device into use.
    pub(crate) driver_up: bool,
    /// Whether the guest has been seen to use its address.
    pub(crate) address_seen: bool,
    /// Whether the guest has asked for an IPv6 router.
    pub(crate) router_asked: bool,
    /// The port that the next dial comes from.
    pub(crate) next_port: u16,
    pub(crate) orphans: Vec<Orphan>,
}

impl Saved {
    /// Returns the state as bytes.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let orphans = &self.orphans[..self.orphans.len().min(MAX_ORPHANS)];
        let mut bytes = Vec::with_capacity(64 + orphans.len() * ORPHAN_LEN);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_be_bytes());
        bytes.extend(self.gateway.octets());
        bytes.extend(self.guest.octets());
        bytes.extend(self.gateway_mac);
        bytes.extend(self.guest_mac.unwrap_or_default());
        bytes.push(lease_code(self.lease));
        let flags = [self.driver_up, self.address_seen, self.router_asked];
        bytes.push(flags.iter().rev().fold(0, |bits, flag| bits << 1 | u8::from(*flag)));
        bytes.extend(self.next_port.to_be_bytes());
        bytes.extend((orphans.len() as u32).to_be_bytes());
        for Orphan { key, numbers } in orphans {
            bytes.extend(key.guest_port.to_be_bytes());
            bytes.extend(key.remote_port.to_be_bytes());
            bytes.extend(octets(key.guest));
            bytes.extend(octets(key.remote));
            bytes.extend(numbers.acknowledged.to_be_bytes());
            bytes.extend(numbers.given.to_be_bytes());
            bytes.extend(numbers.expected.to_be_bytes());
        }
        bytes.extend(checksum(&bytes).to_be_bytes());
        bytes
    }

    /// Reads a state.
    ///
    /// # Errors
    /// `InvalidData`: the bytes are not a whole state of this version.
    pub(crate) fn from_bytes(bytes: &[u8]) -> io::Result<Saved> {
        let mut fields = Fields(bytes);
        if fields.take()? != MAGIC {
            return Err(damaged("it does not begin as one"));
        }
        let version = u16::from_be_bytes(fields.take()?);
        if version != VERSION {
            let message = format!("Saved network has version {version}, not {VERSION}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        let Some((content, sum)) = bytes.split_last_chunk::<SUM_LEN>() else {
            return Err(damaged("it is too short"));
        };
        if checksum(content) != u64::from_be_bytes(*sum) {
            return Err(damaged("its checksum is wrong"));
        }
        let gateway = Ipv4Addr::from(fields.take::<4>()?);
        let guest = Ipv4Addr::from(fields.take::<4>()?);
        let gateway_mac = fields.take()?;
        let guest_mac: Mac = fields.take()?;
        if ethernet::is_group(&guest_mac) {
            return Err(damaged("a group is not a guest"));
        }
        let [lease, flags] = fields.take()?;
        let lease = lease_of(lease).ok_or_else(|| damaged("its lease has no known state"))?;
        let next_port = u16::from_be_bytes(fields.take()?);
        let count = u32::from_be_bytes(fields.take()?) as usize;
        if count > MAX_ORPHANS || fields.0.len() != count * ORPHAN_LEN + SUM_LEN {
            return Err(damaged("its length does not fit its connections"));
        }
        let orphans = (0..count).map(|_| fields.orphan()).collect::<io::Result<_>>()?;
        Ok(Saved {
            gateway,
            guest,
            gateway_mac,
            guest_mac: (guest_mac != Mac::default()).then_some(guest_mac),
            lease,
            driver_up: flags & 1 != 0,
            address_seen: flags & 2 != 0,
            router_asked: flags & 4 != 0,
            next_port,
            orphans,
        })
    }
}

/// What of the bytes has not been read yet.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk().ok_or_else(|| damaged("it is too short"))?;
        self.0 = rest;
        Ok(*field)
    }

    fn orphan(&mut self) -> io::Result<Orphan> {
        let guest_port = u16::from_be_bytes(self.take()?);
        let remote_port = u16::from_be_bytes(self.take()?);
        let guest = address(self.take()?);
        let remote = address(self.take()?);
        if guest.is_ipv4() != remote.is_ipv4() {
            return Err(damaged("a connection has ends of two families"));
        }
        let key = Key { guest, guest_port, remote, remote_port };
        let numbers = Numbers {
            acknowledged: u32::from_be_bytes(self.take()?),
            given: u32::from_be_bytes(self.take()?),
            expected: u32::from_be_bytes(self.take()?),
        };
        Ok(Orphan { key, numbers })
    }
}

/// Returns an address in 16 bytes; those of IPv4 are mapped (RFC 4291, section 2.5.5.2), which no
/// address of a connection over IPv6 is.
fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

fn address(octets: [u8; 16]) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from(octets)).to_canonical()
}

fn damaged(how: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("Saved network is damaged: {how}"))
}

const LEASES: [Lease; 5] =
    [Lease::None, Lease::Offered, Lease::Bound, Lease::Refused, Lease::Released];

fn lease_code(lease: Lease) -> u8 {
    match lease {
        Lease::None => 0,
        Lease::Offered => 1,
        Lease::Bound => 2,
        Lease::Refused => 3,
        Lease::Released => 4,
    }
}

fn lease_of(code: u8) -> Option<Lease> {
    LEASES.get(usize::from(code)).copied()
}

/// FNV-1a: any one changed byte changes the sum.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved() -> Saved {
        let orphan = |guest_port, guest: &str, remote: &str| Orphan {
            key: Key {
                guest: guest.parse().unwrap(),
                guest_port,
                remote: remote.parse().unwrap(),
                remote_port: 443,
            },
            numbers: Numbers { acknowledged: 0xffff_fff0, given: 16, expected: 77 },
        };
        Saved {
            gateway: Ipv4Addr::new(10, 0, 2, 2),
            guest: Ipv4Addr::new(10, 0, 2, 15),
            gateway_mac: [2, 0, 0, 0, 0, 1],
            guest_mac: Some([2, 0, 0, 0, 0, 2]),
            lease: Lease::Bound,
            driver_up: true,
            address_seen: true,
            router_asked: true,
            next_port: 50_000,
            orphans: vec![
                orphan(4000, "10.0.2.15", "192.0.2.1"),
                orphan(4001, "fd00::5054:ff:fe12:3456", "2001:db8::1"),
            ],
        }
    }

    #[test]
    fn the_checksum_is_that_of_the_published_vectors() {
        // From the FNV reference's test suite.
        assert_eq!(checksum(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(checksum(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(checksum(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn what_was_saved_reads_back() {
        for (at, lease) in LEASES.into_iter().enumerate() {
            let (driver_up, address_seen) = (at % 2 == 0, at > 2);
            let router_asked = at == 3;
            let saved = Saved { lease, driver_up, address_seen, router_asked, ..saved() };
            assert_eq!(Saved::from_bytes(&saved.to_bytes()).unwrap(), saved);
        }
        let unknown = Saved { guest_mac: None, orphans: vec![], ..saved() };
        assert_eq!(Saved::from_bytes(&unknown.to_bytes()).unwrap(), unknown);
    }

    #[test]
    fn what_is_not_whole_is_refused() {
        let bytes = saved().to_bytes();
        for len in 0..bytes.len() {
            assert!(Saved::from_bytes(&bytes[..len]).is_err(), "{len} bytes");
        }
        assert!(Saved::from_bytes(&[&bytes[..], &[0]].concat()).is_err());
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Saved::from_bytes(&flipped).is_err(), "bit {bit}");
        }
    }

    /// Gives bytes the checksum that they should have.
    fn summed(mut bytes: Vec<u8>) -> Vec<u8> {
        let at = bytes.len() - SUM_LEN;
        let sum = checksum(&bytes[..at]);
        bytes[at..].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    #[test]
    fn what_makes_no_sense_is_refused_even_with_its_checksum_right() {
        let bytes = saved().to_bytes();
        let with = |at: usize, value: u8| {
            let mut bytes = bytes.clone();
            bytes[at] = value;
            Saved::from_bytes(&summed(bytes)).map_err(|error| error.to_string())
        };
        assert!(with(5, 9).unwrap_err().contains("version 9"));
        assert!(with(20, 3).unwrap_err().contains("group"));
        assert!(with(26, 5).unwrap_err().contains("lease"));
        // Far more connections than bytes.
        assert!(with(30, 0xff).unwrap_err().contains("length"));
        assert!(with(33, 1).unwrap_err().contains("length"));
        assert!(with(33, 2).is_ok());
        // One end of the first connection is no longer a mapped address.
        assert!(with(38, 1).unwrap_err().contains("families"));
    }
}
