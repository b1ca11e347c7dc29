//! The seam between a network device and the network behind it: Ethernet frames with offloads.
//!
//! A [`Link`] takes frames from the guest and gives frames for it. It knows nothing of virtio: the
//! [`Offload`] that travels beside a frame mirrors `struct virtio_net_hdr` (VIRTIO 1.3, section
//! 5.1.6) so that a device passes it through field by field, but every value in it comes from the
//! guest and is checked here.
//!
//! The order of a device's calls, all from one thread: [`poll`](Link::poll) when the wake
//! descriptor is readable or the deadline has come, [`push`](Link::push) for each frame of a batch,
//! then `poll` once, then [`pull`](Link::pull) until it gives `None`.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::time::Instant;

/// Length in bytes of the largest frame that crosses a [`Link`] in either direction: an Ethernet
/// header and a 64 KiB IP packet (a TSO super-frame), rounded up.
pub const MAX_FRAME: usize = 65_550;

/// A point-to-point Ethernet connection of one guest network device.
///
/// Nothing a guest can put into a frame or an [`Offload`] may make an implementation panic, block,
/// or use memory without bound.
pub trait Link: Send {
    /// Takes one Ethernet frame from the guest, headers complete except for what `offload` says is
    /// left to the receiver. The frame is not kept: the call returns when it has been dealt with.
    ///
    /// It is dealt with at the time of the last [`poll`](Link::poll).
    ///
    /// # Errors
    /// The frame was dropped, and why. The implementation has counted it; a device only carries on.
    fn push(&mut self, frame: &[u8], offload: Offload) -> Result<(), DropReason>;

    /// Copies the next frame for the guest into `buf`; `None` when nothing waits. Never allocates.
    ///
    /// A buffer of [`MAX_FRAME`] bytes holds any frame; a frame longer than `buf` is dropped.
    fn pull(&mut self, buf: &mut [u8]) -> Option<Pulled>;

    /// Moves data between the host and the flows, and fires the timers that are due at `now`.
    ///
    /// Calls must not go back in time.
    fn poll(&mut self, now: Instant);

    /// Returns when [`poll`](Link::poll) must be called at the latest; `None` when only the wake
    /// descriptor or a pushed frame gives it something to do.
    fn deadline(&mut self, now: Instant) -> Option<Instant>;

    /// Returns a descriptor that is readable while [`poll`](Link::poll) has something to do. It
    /// stays the same for the life of the link.
    fn wake_fd(&self) -> BorrowedFd<'_>;

    /// Says what the guest's driver has negotiated to receive. Before the first call, and again
    /// after a device reset, that is nothing.
    ///
    /// To say nothing again ends what the link holds for the guest, so a device that is only paused
    /// does not say it. A device says it once more when it goes on, after a restore too.
    fn set_guest_offloads(&mut self, accepted: GuestOffloads);

    /// Returns the MAC address that the guest's device should carry.
    fn mac(&self) -> [u8; 6];

    /// Returns the largest IP packet, in bytes, that the link carries without segmentation offload.
    fn mtu(&self) -> u16;

    /// Returns what another link needs to carry on for the same guest in another process.
    ///
    /// Called while nobody polls; the link goes on afterwards as if it had not been. The state has a
    /// version and is bounded. Frames that wait in the link are not part of it: they are lost to the
    /// restored guest, as on a wire.
    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Takes over a guest that another link has been saved with.
    ///
    /// Called on a new link, before the first [`poll`](Link::poll). What the guest has open then and
    /// the link cannot carry on is ended in the guest as the polls begin.
    ///
    /// # Errors
    /// `InvalidData`, and nothing has changed: the state is damaged, of another version, or of a
    /// network that this one cannot stand in for.
    fn restore(&mut self, state: &[u8]) -> Result<(), std::io::Error> {
        let _ = state;
        Ok(())
    }
}

/// Writes the methods of [`Link`] that every wrapper passes on to the link in its field `link`.
macro_rules! pass_on_the_rest {
    () => {
        fn wake_fd(&self) -> std::os::fd::BorrowedFd<'_> {
            self.link.wake_fd()
        }

        fn mac(&self) -> [u8; 6] {
            self.link.mac()
        }

        fn mtu(&self) -> u16 {
            self.link.mtu()
        }

        fn save(&self) -> Vec<u8> {
            self.link.save()
        }

        fn restore(&mut self, state: &[u8]) -> std::io::Result<()> {
            self.link.restore(state)
        }
    };
}
pub(crate) use pass_on_the_rest;

/// A frame that [`Link::pull`] has copied out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pulled {
    /// Bytes written to the front of the buffer.
    pub len: usize,
    /// What of the frame the guest must complete.
    pub offload: Offload,
}

/// What a frame's sender has left to its receiver: `struct virtio_net_hdr` without `num_buffers`.
///
/// The default is a complete frame with nothing left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// `VIRTIO_NET_HDR_F_NEEDS_CSUM`: the checksum field holds only the pseudo-header's sum.
    pub needs_csum: bool,
    /// `VIRTIO_NET_HDR_F_DATA_VALID`: the checksums are known to be right.
    pub data_valid: bool,
    /// Where checksumming starts, in bytes from the start of the frame; with `needs_csum`.
    pub csum_start: u16,
    /// Where the checksum goes, in bytes after `csum_start`; with `needs_csum`.
    pub csum_offset: u16,
    /// How the frame is to be cut into segments.
    pub gso: Gso,
    /// Payload bytes of each segment; zero without segmentation.
    pub gso_size: u16,
    /// Length in bytes of the headers to repeat before each segment; a hint, often zero.
    pub hdr_len: u16,
}

/// Kinds of segmentation a frame may be left to (`VIRTIO_NET_HDR_GSO_*`). UDP's are never offered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gso {
    /// The frame is one packet.
    #[default]
    None,
    /// TCP over IPv4.
    TcpV4,
    /// TCP over IPv6.
    TcpV6,
}

/// What a guest's driver has negotiated that it can receive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuestOffloads {
    /// `VIRTIO_NET_F_GUEST_CSUM`: frames with partial checksums.
    pub csum: bool,
    /// `VIRTIO_NET_F_GUEST_TSO4`: frames of several TCP segments over IPv4; needs `csum`.
    pub tso4: bool,
    /// `VIRTIO_NET_F_GUEST_TSO6`: frames of several TCP segments over IPv6; needs `csum`.
    pub tso6: bool,
}

/// Why a frame, or the flow it would have opened, was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(usize)]
#[non_exhaustive]
pub enum DropReason {
    /// Shorter than the headers it announces.
    Truncated,
    /// Longer than [`MAX_FRAME`], or than the MTU without segmentation offload.
    TooLong,
    /// An [`Offload`] that does not fit its frame.
    BadOffload,
    /// An Ethernet destination that is neither the gateway's nor a broadcast or multicast.
    NotForUs,
    /// A source MAC address that a station cannot have.
    BadMac,
    /// An EtherType other than IPv4, IPv6 and ARP.
    UnknownEtherType,
    /// IPv6, where the network is configured without it.
    Ipv6,
    /// An ARP packet that is malformed or claims an address that is not the guest's.
    BadArp,
    /// An IPv4 header that is malformed or whose checksum is wrong.
    BadIpv4,
    /// A malformed IPv6 header, or extension headers that nothing here reads.
    BadIpv6,
    /// A fragment of an IP packet.
    Fragment,
    /// A source address that is not the guest's.
    SpoofedSource,
    /// A multicast, broadcast or reserved destination that nothing here answers.
    UnroutableDestination,
    /// An IP protocol other than ICMP, UDP and TCP.
    UnknownProtocol,
    /// A malformed TCP header, or a wrong TCP checksum.
    BadTcp,
    /// A malformed UDP header, or a wrong UDP checksum.
    BadUdp,
    /// An ICMP message that is malformed or of a kind nothing here answers.
    BadIcmp,
    /// Echo to the world, where the host lets this process have no ping socket
    /// (`net.ipv4.ping_group_range`).
    PingForbidden,
    /// A malformed message of neighbour discovery, or one that claims another station.
    BadNdp,
    /// A malformed DHCP message.
    BadDhcp,
    /// A malformed DNS query.
    BadDns,
    /// The configuration does not let the guest reach that destination.
    Denied,
    /// A flow table or a queue that the frame needed room in was full.
    NoRoom,
    /// The host could not open, or had closed, the socket that a flow needed.
    HostError,
    /// A TCP segment that belongs to no flow and opens none.
    NoFlow,
}

impl DropReason {
    /// Every reason, in the order of declaration.
    pub const ALL: [DropReason; 25] = [
        DropReason::Truncated,
        DropReason::TooLong,
        DropReason::BadOffload,
        DropReason::NotForUs,
        DropReason::BadMac,
        DropReason::UnknownEtherType,
        DropReason::Ipv6,
        DropReason::BadArp,
        DropReason::BadIpv4,
        DropReason::BadIpv6,
        DropReason::Fragment,
        DropReason::SpoofedSource,
        DropReason::UnroutableDestination,
        DropReason::UnknownProtocol,
        DropReason::BadTcp,
        DropReason::BadUdp,
        DropReason::BadIcmp,
        DropReason::PingForbidden,
        DropReason::BadNdp,
        DropReason::BadDhcp,
        DropReason::BadDns,
        DropReason::Denied,
        DropReason::NoRoom,
        DropReason::HostError,
        DropReason::NoFlow,
    ];

    /// Returns the reason as a few words of plain text.
    pub fn as_str(self) -> &'static str {
        match self {
            DropReason::Truncated => "truncated",
            DropReason::TooLong => "too long",
            DropReason::BadOffload => "bad offload header",
            DropReason::NotForUs => "not for the gateway",
            DropReason::BadMac => "bad source MAC address",
            DropReason::UnknownEtherType => "unknown EtherType",
            DropReason::Ipv6 => "IPv6",
            DropReason::BadArp => "bad ARP",
            DropReason::BadIpv4 => "bad IPv4 header",
            DropReason::BadIpv6 => "bad IPv6 header",
            DropReason::Fragment => "IP fragment",
            DropReason::SpoofedSource => "spoofed source address",
            DropReason::UnroutableDestination => "unroutable destination",
            DropReason::UnknownProtocol => "unknown IP protocol",
            DropReason::BadTcp => "bad TCP segment",
            DropReason::BadUdp => "bad UDP datagram",
            DropReason::BadIcmp => "bad or unanswered ICMP",
            DropReason::PingForbidden => "ping forbidden by ping_group_range",
            DropReason::BadNdp => "bad neighbour discovery",
            DropReason::BadDhcp => "bad DHCP message",
            DropReason::BadDns => "bad DNS query",
            DropReason::Denied => "denied",
            DropReason::NoRoom => "no room",
            DropReason::HostError => "host error",
            DropReason::NoFlow => "no such flow",
        }
    }
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_lists_every_reason_at_its_own_index() {
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
        }
        assert_eq!(DropReason::NoFlow as usize + 1, DropReason::ALL.len());
    }
}
