//! The TCP state machine: smoltcp, with one socket set for each flow.
//!
//! smoltcp looks its sockets up one by one, so a set holds the single socket of one flow and the
//! flow itself is found by our own table: a segment costs the same among thousands of flows as
//! among one. Only the state machine is used. Headers below TCP are read before and written after
//! it, checksums are verified before it, and it gives and takes segments of up to 64 KiB where the
//! guest takes them (`segmentation-offload`).

use std::num::NonZeroUsize;

use smoltcp::iface::{Config, Interface, PollResult, SocketSet};
use smoltcp::phy::{
    Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, PacketMeta, RxToken,
    TxToken,
};
use smoltcp::time::Instant;
use smoltcp::wire::HardwareAddress;

use crate::link::{DropReason, GuestOffloads, Pulled};
use crate::outbox::{Outbox, finish_tcp};
use crate::timers::Micros;
use crate::wire::ethernet;

/// The longest IP packet given to a guest that takes segmentation offload.
const MAX_SEGMENTS: usize = 65_535;
/// Room that an answer made while a segment is taken may need: headers and options.
const REPLY_LEN: usize = ethernet::HEADER_LEN + 60 + 60;

/// The state machine that all flows share.
pub(crate) struct Engine {
    interface: Interface,
    mtu: u16,
    /// An empty set: what is pushed against it is answered with a reset.
    nobody: SocketSet<'static>,
}

impl Engine {
    pub(crate) fn new(mtu: u16, guest: GuestOffloads, seed: u64) -> Engine {
        let mut port = Port { mtu, guest, frame: None, to: To::Nowhere };
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut port, Instant::ZERO);
        interface.set_any_ip(true);
        Engine { interface, mtu, nobody: SocketSet::new(Vec::new()) }
    }

    /// Returns the context that opening a connection needs.
    pub(crate) fn context(&mut self) -> &mut smoltcp::iface::Context {
        self.interface.context()
    }

    /// Gives an IP packet of TCP to a flow's socket, or with `None` has it reset. What the socket
    /// answers at once goes to the outbox.
    pub(crate) fn push(
        &mut self,
        packet: &[u8],
        sockets: Option<&mut SocketSet<'static>>,
        outbox: &mut Outbox,
        now: Micros,
    ) -> Result<(), DropReason> {
        if !outbox.has_room(REPLY_LEN) {
            return Err(DropReason::NoRoom);
        }
        let mut port = Port {
            mtu: self.mtu,
            guest: outbox.guest,
            frame: Some(packet),
            to: To::Outbox(outbox),
        };
        let sockets = sockets.unwrap_or(&mut self.nobody);
        self.interface.poll_ingress_single(instant(now), &mut port, sockets);
        Ok(())
    }

    /// Writes a flow's next segment as a frame to `buf`; `None` when it has none to send now.
    pub(crate) fn pull(
        &mut self,
        sockets: &mut SocketSet<'static>,
        outbox: &Outbox,
        buf: &mut [u8],
        now: Micros,
    ) -> Option<Pulled> {
        let mut pulled = None;
        let mut port = Port {
            mtu: self.mtu,
            guest: outbox.guest,
            frame: None,
            to: To::Buffer(buf, outbox, &mut pulled),
        };
        let result = self.interface.poll_egress(instant(now), &mut port, sockets);
        match result {
            PollResult::None => None,
            PollResult::SocketStateChanged => pulled,
        }
    }

    /// Returns when a flow may next have something to send; a time not after `now` means now.
    pub(crate) fn deadline(&mut self, sockets: &SocketSet<'static>, now: Micros) -> Option<Micros> {
        let at = self.interface.poll_at(instant(now), sockets)?;
        Some(u64::try_from(at.total_micros()).unwrap_or(0))
    }
}

fn instant(now: Micros) -> Instant {
    Instant::from_micros(i64::try_from(now).unwrap_or(i64::MAX))
}

/// Where a packet of the state machine goes.
enum To<'a> {
    Nowhere,
    Outbox(&'a mut Outbox),
    Buffer(&'a mut [u8], &'a Outbox, &'a mut Option<Pulled>),
}

/// The device that smoltcp sees during one call: at most one packet in, and one or a few out.
struct Port<'a> {
    mtu: u16,
    guest: GuestOffloads,
    frame: Option<&'a [u8]>,
    to: To<'a>,
}

struct Incoming<'a>(&'a [u8]);

impl RxToken for Incoming<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

struct Outgoing<'a, 'b> {
    to: &'a mut To<'b>,
    segment: Option<u16>,
}

impl TxToken for Outgoing<'_, '_> {
    fn set_meta(&mut self, meta: PacketMeta) {
        self.segment = meta.segmentation_offload_size.map(|size| size.get());
    }

    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let len = ethernet::HEADER_LEN + len;
        let segment = self.segment;
        let mut f = Some(f);
        let mut result = None;
        match self.to {
            To::Outbox(outbox) => {
                outbox.queue(len, |frame, addresses, guest| {
                    result = f.take().map(|f| f(&mut frame[ethernet::HEADER_LEN..]));
                    Some((len, finish_tcp(frame, segment, addresses, guest)))
                });
            }
            To::Buffer(buf, outbox, pulled) if buf.len() >= len => {
                let frame = &mut buf[..len];
                result = f.take().map(|f| f(&mut frame[ethernet::HEADER_LEN..]));
                let offload = finish_tcp(frame, segment, &outbox.addresses, outbox.guest);
                **pulled = Some(Pulled { len, offload });
            }
            To::Buffer(..) | To::Nowhere => {}
        }
        match (result, f) {
            (Some(result), _) => result,
            // There was no room: the packet is lost, as packets may be, but must be written.
            (None, Some(f)) => f(&mut vec![0; len]),
            (None, None) => unreachable!("a packet is written at most once"),
        }
    }
}

impl<'b> Device for Port<'b> {
    type RxToken<'a>
        = Incoming<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Outgoing<'a, 'b>
    where
        Self: 'a;

    fn receive(&mut self, _: Instant) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
        let frame = self.frame.take()?;
        let token = Outgoing { to: &mut self.to, segment: None };
        Some((Incoming(frame), token))
    }

    fn transmit(&mut self, _: Instant) -> Option<Self::TxToken<'_>> {
        Some(Outgoing { to: &mut self.to, segment: None })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut checksum = ChecksumCapabilities::ignored();
        checksum.ipv4 = Checksum::Tx;
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = usize::from(self.mtu);
        capabilities.checksum = checksum;
        if self.guest.csum && self.guest.tso4 {
            capabilities.segmentation.tcpv4 = NonZeroUsize::new(MAX_SEGMENTS);
        }
        // Nothing is said of IPv6: smoltcp 0.14 drops its packets beyond the MTU, segmented or not.
        capabilities
    }
}
