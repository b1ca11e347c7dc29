//! Frames for the guest that wait to be pulled, and the finishing touches every frame gets.
//!
//! Waiting frames lie back to back in one ring of bytes that is made once, so that queueing one
//! allocates nothing and a guest that does not pull costs no more than the ring. Bulk TCP data does
//! not pass through here: it is written straight into the puller's buffer.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};

use crate::link::{Gso, GuestOffloads, Offload};
use crate::wire::checksum::Sum;
use crate::wire::ethernet::{self, Mac};
use crate::wire::{icmp, ip, udp};

/// Length in bytes of the ring: a few of the largest datagrams.
const RING_LEN: usize = 512 << 10;
const MAX_FRAMES: usize = 1024;

#[derive(Clone, Copy, Debug)]
struct Waiting {
    start: usize,
    len: usize,
    offload: Offload,
}

/// The waiting frames, and who they go to.
#[derive(Debug)]
pub(crate) struct Outbox {
    ring: Box<[u8]>,
    waiting: VecDeque<Waiting>,
    tail: usize,
    pub(crate) addresses: Addresses,
    pub(crate) guest: GuestOffloads,
}

/// The two ends of the link.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addresses {
    pub(crate) gateway_mac: Mac,
    pub(crate) guest_mac: Mac,
    pub(crate) guest: Ipv4Addr,
}

impl Outbox {
    pub(crate) fn new(addresses: Addresses) -> Outbox {
        Outbox {
            ring: vec![0; RING_LEN].into_boxed_slice(),
            waiting: VecDeque::with_capacity(MAX_FRAMES),
            tail: 0,
            addresses,
            guest: GuestOffloads::default(),
        }
    }

    /// Forgets every waiting frame.
    pub(crate) fn clear(&mut self) {
        self.waiting.clear();
        self.tail = 0;
    }

    /// Returns where in the ring `len` bytes fit.
    fn place(&self, len: usize) -> Option<usize> {
        let Some(first) = self.waiting.front() else {
            return (len <= self.ring.len()).then_some(0);
        };
        if self.waiting.len() == MAX_FRAMES {
            return None;
        }
        if self.tail > first.start {
            if self.ring.len() - self.tail >= len {
                Some(self.tail)
            } else {
                (first.start >= len).then_some(0)
            }
        } else {
            (first.start - self.tail >= len).then_some(self.tail)
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether a frame of `len` bytes would fit.
    pub(crate) fn has_room(&self, len: usize) -> bool {
        self.place(len).is_some()
    }

    /// Queues a frame of at most `len` bytes. `write` fills it and returns its true length with
    /// what is left to the guest, or `None` to queue nothing.
    ///
    /// Returns `None` when there was no room or `write` gave none.
    pub(crate) fn queue(
        &mut self,
        len: usize,
        write: impl FnOnce(&mut [u8], &Addresses, GuestOffloads) -> Option<(usize, Offload)>,
    ) -> Option<()> {
        let start = self.place(len)?;
        let buf = &mut self.ring[start..start + len];
        let (written, offload) = write(buf, &self.addresses, self.guest)?;
        debug_assert!(written <= len);
        self.waiting.push_back(Waiting { start, len: written, offload });
        self.tail = start + written;
        Some(())
    }

    /// Gives the first waiting frame to `take` and removes it.
    pub(crate) fn take<R>(&mut self, take: impl FnOnce(&[u8], Offload) -> R) -> Option<R> {
        let first = self.waiting.pop_front()?;
        Some(take(&self.ring[first.start..first.start + first.len], first.offload))
    }

    /// Queues a UDP datagram to the guest whose payload of at most `max` bytes `fill` writes.
    pub(crate) fn queue_udp(
        &mut self,
        from: (IpAddr, u16),
        to: (IpAddr, u16),
        max: usize,
        fill: impl FnOnce(&mut [u8]) -> Option<usize>,
    ) -> Option<()> {
        let mac = self.addresses.guest_mac;
        self.queue_udp_to(from, to, mac, max, fill)
    }

    /// Queues a UDP datagram to any address and station.
    pub(crate) fn queue_udp_to(
        &mut self,
        from: (IpAddr, u16),
        to: (IpAddr, u16),
        mac: Mac,
        max: usize,
        fill: impl FnOnce(&mut [u8]) -> Option<usize>,
    ) -> Option<()> {
        let header_len = ip::header_len(from.0);
        let payload = ethernet::HEADER_LEN + header_len + udp::HEADER_LEN;
        self.queue(payload + max, |frame, addresses, guest| {
            let len = payload + fill(&mut frame[payload..])?;
            let frame = &mut frame[..len];
            ethernet::write(frame, &mac, &addresses.gateway_mac, ip::ether_type(from.0));
            let packet = &mut frame[ethernet::HEADER_LEN..];
            udp::write(&mut packet[header_len..], from.1, to.1);
            ip::write(packet, from.0, to.0, ip::UDP);
            // Whole, as DHCP clients on raw sockets know nothing of partial checksums.
            let whole = GuestOffloads::default();
            let kind = (ip::UDP, udp::CHECKSUM_OFFSET);
            fill_transport_checksum(frame, (from.0, to.0), kind, whole);
            let offload = Offload { data_valid: guest.csum, ..Offload::default() };
            Some((len, offload))
        })
    }

    /// Tells the guest that a packet of its does not get where it should.
    pub(crate) fn queue_unreachable(
        &mut self,
        from: IpAddr,
        why: icmp::Unreachable,
        quote: &icmp::Quote,
    ) -> Option<()> {
        self.queue_icmp(from, quote.src, icmp::error_len(from), |message| {
            icmp::write_error(message, from, why, quote);
            Some(message.len())
        })
    }

    /// Queues an ICMP message of at most `max` bytes to the guest; `fill` writes it with its checksum
    /// and returns its length.
    pub(crate) fn queue_icmp(
        &mut self,
        from: IpAddr,
        to: IpAddr,
        max: usize,
        fill: impl FnOnce(&mut [u8]) -> Option<usize>,
    ) -> Option<()> {
        let start = ethernet::HEADER_LEN + ip::header_len(from);
        self.queue(start + max, |frame, addresses, _| {
            let len = start + fill(&mut frame[start..])?;
            let Addresses { guest_mac, gateway_mac, .. } = addresses;
            ethernet::write(frame, guest_mac, gateway_mac, ip::ether_type(from));
            ip::write(&mut frame[ethernet::HEADER_LEN..len], from, to, icmp::protocol(from));
            Some((len, Offload::default()))
        })
    }
}

/// Completes a frame of IP without options and TCP or UDP between two addresses, whose checksum field
/// is empty: with the pseudo-header's sum where the guest takes the rest over, else with the whole.
///
/// # Panics
/// Panics when the frame is shorter than its headers.
fn fill_transport_checksum(
    frame: &mut [u8],
    (src, dst): (IpAddr, IpAddr),
    (protocol, checksum_offset): (u8, usize),
    guest: GuestOffloads,
) -> Offload {
    let start = ethernet::HEADER_LEN + ip::header_len(src);
    let transport = &mut frame[start..];
    let pseudo = Sum::pseudo_header(src, dst, protocol, transport.len());
    let field = checksum_offset..checksum_offset + 2;
    if guest.csum {
        transport[field].copy_from_slice(&pseudo.partial());
        return Offload {
            needs_csum: true,
            csum_start: start as u16,
            csum_offset: checksum_offset as u16,
            ..Offload::default()
        };
    }
    let sum = match pseudo.add(transport).complement() {
        [0, 0] if protocol == ip::UDP => [0xff, 0xff],
        sum => sum,
    };
    transport[field].copy_from_slice(&sum);
    Offload::default()
}

/// Completes a frame that holds an IP packet of TCP: addresses, checksum, segmentation.
///
/// # Panics
/// Panics when the frame is shorter than its headers.
pub(crate) fn finish_tcp(
    frame: &mut [u8],
    segment: Option<u16>,
    addresses: &Addresses,
    guest: GuestOffloads,
) -> Offload {
    const CHECKSUM_OFFSET: usize = 16;
    const DATA_OFFSET: usize = 12;
    let ends = ip::addresses(&frame[ethernet::HEADER_LEN..]);
    let Addresses { guest_mac, gateway_mac, .. } = addresses;
    ethernet::write(frame, guest_mac, gateway_mac, ip::ether_type(ends.0));
    let mut offload = fill_transport_checksum(frame, ends, (ip::TCP, CHECKSUM_OFFSET), guest);
    if let Some(size) = segment {
        offload.gso = match ends.0 {
            IpAddr::V4(_) => Gso::TcpV4,
            IpAddr::V6(_) => Gso::TcpV6,
        };
        offload.gso_size = size;
        let data_offset = frame[usize::from(offload.csum_start) + DATA_OFFSET];
        offload.hdr_len = offload.csum_start + u16::from(data_offset >> 4) * 4;
    }
    offload
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outbox() -> Outbox {
        Outbox::new(Addresses {
            gateway_mac: [2, 0, 0, 0, 0, 1],
            guest_mac: [2, 0, 0, 0, 0, 2],
            guest: Ipv4Addr::new(10, 0, 2, 15),
        })
    }

    #[test]
    fn frames_come_out_as_they_went_in_whatever_their_lengths() {
        let mut outbox = outbox();
        let mut state = 1u64;
        let (mut sent, mut seen) = (0u64, 0u64);
        for _ in 0..20_000 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let len = 8 + (state >> 40) as usize % 60_000;
            if state >> 63 == 0 {
                let queued = outbox.queue(len, |buf, _, _| {
                    let shorter = (len - len / 3).max(8);
                    buf[..shorter].fill(sent as u8);
                    buf[..8].copy_from_slice(&sent.to_be_bytes());
                    Some((shorter, Offload::default()))
                });
                sent += u64::from(queued.is_some());
            } else {
                outbox.take(|frame, _| {
                    assert_eq!(frame[..8], seen.to_be_bytes());
                    assert!(frame[8..].iter().all(|byte| *byte == seen as u8));
                    seen += 1;
                });
            }
        }
        assert!(sent > 1000 && sent - seen < 1024);
    }

    #[test]
    fn a_guest_that_does_not_pull_is_bounded() {
        let mut outbox = outbox();
        let mut queued = 0;
        while outbox.queue(64, |_, _, _| Some((64, Offload::default()))).is_some() {
            queued += 1;
        }
        assert_eq!(queued, MAX_FRAMES);
        assert!(!outbox.has_room(64));
    }

    #[test]
    fn a_datagram_has_its_whole_checksum_whatever_the_guest_takes() {
        for csum in [false, true] {
            let mut outbox = outbox();
            outbox.guest.csum = csum;
            let from = (Ipv4Addr::new(192, 0, 2, 1).into(), 99);
            let to = (Ipv4Addr::new(10, 0, 2, 15).into(), 1234);
            outbox
                .queue_udp(from, to, 100, |payload| {
                    payload[..3].copy_from_slice(b"abc");
                    Some(3)
                })
                .unwrap();
            outbox
                .take(|frame, offload| {
                    assert_eq!(frame.len(), 45);
                    let packet = ip::Packet::read(&frame[14..]).unwrap();
                    assert_eq!((offload.needs_csum, offload.data_valid), (false, csum));
                    assert!(packet.has_valid_transport_checksum());
                    let datagram = udp::Datagram::read(packet.payload()).unwrap();
                    assert_eq!(datagram.payload, b"abc");
                })
                .unwrap();
        }
    }
}
