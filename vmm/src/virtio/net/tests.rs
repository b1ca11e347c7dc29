//! A guest driver against the network device, with a cable that the test holds.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use kvmbake_net::link::{DropReason, Gso, MAX_FRAME, Offload, Pulled};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::virtio::driver::{Buffer, DATA, Dice, Guest, into, out};

/// What the test and the cable share.
#[derive(Default)]
struct Ends {
    from_guest: Vec<(Vec<u8>, Offload)>,
    to_guest: VecDeque<(Vec<u8>, Offload)>,
    offloads: GuestOffloads,
    polls: u64,
    /// Given back for every frame.
    deadline: Option<Duration>,
}

#[derive(Clone)]
struct FakeLink {
    ends: Arc<(Mutex<Ends>, Condvar)>,
    wake: Arc<EventFd>,
}

impl FakeLink {
    fn new() -> Self {
        let wake = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        Self { ends: Arc::default(), wake }
    }

    fn wait<T>(&self, mut find: impl FnMut(&mut Ends) -> Option<T>) -> T {
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut ends = self.ends.0.lock().unwrap();
        loop {
            if let Some(found) = find(&mut ends) {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "nothing came over the cable");
            ends = self.ends.1.wait_timeout(ends, left).unwrap().0;
        }
    }

    /// Sends a frame to the guest.
    fn send(&self, frame: &[u8], offload: Offload) {
        self.ends.0.lock().unwrap().to_guest.push_back((frame.to_vec(), offload));
        self.wake.write(1).unwrap();
    }

    fn waiting(&self) -> usize {
        self.ends.0.lock().unwrap().to_guest.len()
    }
}

impl Link for FakeLink {
    fn push(&mut self, frame: &[u8], offload: Offload) -> Result<(), DropReason> {
        self.ends.0.lock().unwrap().from_guest.push((frame.to_vec(), offload));
        self.ends.1.notify_all();
        Ok(())
    }
    fn pull(&mut self, buf: &mut [u8]) -> Option<Pulled> {
        let (frame, offload) = self.ends.0.lock().unwrap().to_guest.pop_front()?;
        buf[..frame.len()].copy_from_slice(&frame);
        Some(Pulled { len: frame.len(), offload })
    }
    fn poll(&mut self, _: Instant) {
        let _ = self.wake.read();
        self.ends.0.lock().unwrap().polls += 1;
        self.ends.1.notify_all();
    }
    fn deadline(&mut self, now: Instant) -> Option<Instant> {
        self.ends.0.lock().unwrap().deadline.map(|after| now + after)
    }
    fn wake_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the link owns the eventfd and outlives the borrow.
        unsafe { BorrowedFd::borrow_raw(self.wake.as_raw_fd()) }
    }
    fn set_guest_offloads(&mut self, accepted: GuestOffloads) {
        self.ends.0.lock().unwrap().offloads = accepted;
    }
    fn mac(&self) -> [u8; 6] {
        [0x52, 0x54, 0, 1, 2, 3]
    }
    fn mtu(&self) -> u16 {
        1500
    }
    fn save(&self) -> Vec<u8> {
        b"cable".to_vec()
    }
    fn restore(&mut self, state: &[u8]) -> std::io::Result<()> {
        assert_eq!(state, b"cable");
        Ok(())
    }
}

const RX_QUEUE: usize = RX as usize;
const TX_QUEUE: usize = TX as usize;
const TX_DATA: u64 = DATA;
const RX_DATA: u64 = DATA + 0x20_0000;

struct Setup {
    guest: Guest,
    device: NetDevice,
    link: FakeLink,
}

impl Setup {
    fn new(features: u64) -> Self {
        let link = FakeLink::new();
        let mut device = NetDevice::new(Box::new(link.clone()));
        let mut guest = Guest::new(device.queue_sizes());
        guest.activate(&mut device, features);
        Self { guest, device, link }
    }

    fn transmit(&mut self, frame: &[u8], header: [u8; 12]) {
        self.guest.put(TX_DATA, &header);
        self.guest.put(TX_DATA + 12, frame);
        self.guest.request(TX_QUEUE, &[out(TX_DATA, 12 + frame.len() as u32)]);
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 31 / 7) as u8).collect()
}

const MERGEABLE: u64 = feature(VIRTIO_NET_F_MRG_RXBUF);

#[test]
fn frames_of_the_guest_reach_the_link_with_their_offload() {
    let mut setup = Setup::new(MERGEABLE);
    let frame = pattern(65_000);
    setup.guest.put(TX_DATA, &[1, 1, 66, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0]);
    setup.guest.put(TX_DATA + 12, &frame);
    // Header and frame cut across descriptors where it hurts.
    let mut buffers = vec![out(TX_DATA, 5), out(TX_DATA + 5, 10)];
    let rest = (15..65_012u64).step_by(4096);
    buffers.extend(rest.map(|at| out(TX_DATA + at, 4096.min(65_012 - at) as u32)));
    assert_eq!(setup.guest.request(TX_QUEUE, &buffers), 0);
    let (got, offload) = setup.link.wait(|ends| ends.from_guest.pop());
    assert!(got == frame);
    let expected = Offload {
        needs_csum: true,
        data_valid: false,
        csum_start: 34,
        csum_offset: 16,
        gso: Gso::TcpV4,
        gso_size: 1448,
        hdr_len: 66,
    };
    assert_eq!(offload, expected);
}

#[test]
fn large_frames_are_spread_over_mergeable_buffers() {
    let mut setup = Setup::new(MERGEABLE | feature(VIRTIO_RING_F_EVENT_IDX));
    for n in 0..60 {
        setup.guest.rings[RX_QUEUE].add(&[into(RX_DATA + n * 0x1000, 1526)]);
    }
    let frame = pattern(MAX_FRAME);
    setup.link.send(&frame, Offload { gso: Gso::TcpV4, gso_size: 1448, ..Offload::default() });
    let mut got = Vec::new();
    let (head, len) = setup.guest.wait_used(RX_QUEUE);
    got.extend(setup.guest.get(RX_DATA + u64::from(head) * 0x1000, len as usize));
    let buffers = u16::from_le_bytes([got[10], got[11]]);
    assert_eq!(usize::from(buffers), (MAX_FRAME + 12).div_ceil(1526));
    for _ in 1..buffers {
        // All of a frame's buffers are there as soon as the first is.
        let (head, len) = setup.guest.rings[RX_QUEUE].take_used().expect("a buffer of the frame");
        got.extend(setup.guest.get(RX_DATA + u64::from(head) * 0x1000, len as usize));
    }
    assert_eq!(got[1], 1, "segmentation is told");
    assert!(got[12..] == frame);
    assert!(setup.guest.rings[RX_QUEUE].take_used().is_none());
}

#[test]
fn frames_stay_in_the_link_until_there_are_buffers() {
    let mut setup = Setup::new(MERGEABLE);
    for n in 0..5 {
        setup.link.send(&pattern(3000 + n), Offload::default());
    }
    // One buffer is too small for a frame: nothing may be used up.
    setup.guest.rings[RX_QUEUE].add(&[into(RX_DATA, 2048)]);
    setup.guest.kick(RX_QUEUE);
    setup.link.wait(|ends| (ends.to_guest.len() == 4).then_some(()));
    assert_eq!(setup.guest.rings[RX_QUEUE].used_index(), 0);
    for n in 0..5 {
        setup.guest.rings[RX_QUEUE].add(&[into(RX_DATA + 0x1000 * (2 * n + 1), 2048)]);
        setup.guest.rings[RX_QUEUE].add(&[into(RX_DATA + 0x1000 * (2 * n + 2), 2048)]);
        setup.guest.kick(RX_QUEUE);
        let (first, second) = (setup.guest.wait_used(RX_QUEUE), setup.guest.wait_used(RX_QUEUE));
        assert_eq!(first.1 + second.1, 3012 + n as u32);
    }
    assert_eq!(setup.link.waiting(), 0);
}

#[test]
fn without_mergeable_buffers_a_frame_needs_one_that_holds_it() {
    let mut setup = Setup::new(0);
    setup.guest.rings[RX_QUEUE].add(&[into(RX_DATA, 12), into(RX_DATA + 12, 1500)]);
    setup.link.send(&pattern(4000), Offload::default());
    setup.link.send(&pattern(1000), Offload::default());
    assert_eq!(setup.guest.wait_used(RX_QUEUE), (0, 1012));
    assert_eq!(setup.guest.get(RX_DATA, 12), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert!(setup.guest.get(RX_DATA + 12, 1000) == pattern(1000));
}

#[test]
fn only_negotiated_offloads_are_given_to_the_link() {
    let csum = feature(VIRTIO_NET_F_GUEST_CSUM);
    let cases = [
        (0, GuestOffloads::default()),
        (feature(VIRTIO_NET_F_GUEST_TSO4), GuestOffloads::default()),
        (csum, GuestOffloads { csum: true, ..Default::default() }),
        (
            csum | feature(VIRTIO_NET_F_GUEST_TSO4) | feature(VIRTIO_NET_F_GUEST_TSO6),
            GuestOffloads { csum: true, tso4: true, tso6: true },
        ),
    ];
    for (features, expected) in cases {
        let mut setup = Setup::new(features);
        setup.link.wait(|ends| (ends.polls > 0).then_some(()));
        assert_eq!(setup.link.ends.0.lock().unwrap().offloads, expected, "{features:#x}");
        setup.device.reset();
        let after = setup.link.ends.0.lock().unwrap().offloads;
        assert_eq!(after, GuestOffloads::default());
    }
}

#[test]
fn link_is_polled_at_its_deadline() {
    let setup = Setup::new(MERGEABLE);
    setup.link.ends.0.lock().unwrap().deadline = Some(Duration::from_millis(1));
    setup.link.wake.write(1).unwrap();
    let start = setup.link.wait(|ends| Some(ends.polls));
    setup.link.wait(|ends| (ends.polls > start + 5).then_some(()));
}

#[test]
fn malformed_frames_are_dropped_and_given_back() {
    let mut setup = Setup::new(MERGEABLE);
    let bad: [&[Buffer]; 6] = [
        &[out(TX_DATA, 11)],
        &[out(TX_DATA, 0)],
        &[into(TX_DATA, 100)],
        &[out(TX_DATA, 12), out(RX_DATA, MAX_FRAME as u32 + 1)],
        &[out(u64::MAX - 5, 100)],
        &[out(TX_DATA, 12), out(0x8000_0000, 100)],
    ];
    for buffers in bad {
        assert_eq!(setup.guest.request(TX_QUEUE, buffers), 0);
    }
    setup.transmit(&[1, 2, 3], [0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert!(setup.link.ends.0.lock().unwrap().from_guest.is_empty());
    setup.transmit(&[1, 2, 3], [0; 12]);
    assert_eq!(setup.link.wait(|ends| ends.from_guest.pop()).0, [1, 2, 3]);
}

#[test]
fn receive_buffers_that_make_no_sense_stop_the_device() {
    for buffers in [&[out(RX_DATA, 100)][..], &[into(RX_DATA, 0)]] {
        let mut setup = Setup::new(MERGEABLE);
        setup.guest.signals.add_status(4);
        setup.guest.rings[RX_QUEUE].add(buffers);
        setup.link.send(&[0; 60], Offload::default());
        setup.guest.config_vector.wait_beyond(0);
        assert_eq!(setup.guest.signals.status(), 0x44);
    }
}

#[test]
fn receive_buffers_outside_memory_cost_only_their_frame() {
    let mut setup = Setup::new(MERGEABLE);
    setup.guest.rings[RX_QUEUE].add(&[into(u64::MAX - 50, 2048)]);
    setup.link.send(&[1; 60], Offload::default());
    assert_eq!(setup.guest.wait_used(RX_QUEUE), (0, 0));
    setup.guest.rings[RX_QUEUE].add(&[into(RX_DATA, 2048)]);
    setup.link.send(&[2; 60], Offload::default());
    assert_eq!(setup.guest.wait_used(RX_QUEUE), (1, 72));
}

#[test]
fn device_is_usable_again_after_a_reset() {
    let mut setup = Setup::new(MERGEABLE);
    setup.transmit(&[1], [0; 12]);
    setup.device.reset();
    setup.guest = Guest::new(setup.device.queue_sizes());
    setup.guest.activate(&mut setup.device, 0);
    setup.transmit(&[2], [0; 12]);
    let frames =
        setup.link.wait(|ends| (ends.from_guest.len() == 2).then(|| ends.from_guest.clone()));
    assert_eq!((&frames[0].0[..], &frames[1].0[..]), (&[1][..], &[2][..]));
}

#[test]
fn configuration_has_mac_status_and_mtu() {
    let device = NetDevice::new(Box::new(FakeLink::new()));
    let mut config = [0; 14];
    device.read_config(0, &mut config);
    assert_eq!(config, [0x52, 0x54, 0, 1, 2, 3, 1, 0, 1, 0, 0xdc, 5, 0, 0]);
}

#[test]
fn random_transmit_chains_never_harm_the_device() {
    for seed in 0..10 {
        let mut dice = Dice::new(seed);
        let mut setup = Setup::new(MERGEABLE | (feature(VIRTIO_RING_F_EVENT_IDX) * (seed % 2)));
        for _ in 0..200 {
            let header: Vec<u8> = (0..12).map(|_| dice.below(6) as u8).collect();
            setup.guest.put(TX_DATA, &header);
            let count = 1 + dice.below(20);
            let buffer = |_| Buffer {
                address: dice.pick(&[TX_DATA, TX_DATA + 7, u64::MAX, 8 << 20, (8 << 20) - 4]),
                len: dice.pick(&[0, 1, 12, 60, 1514, 65_536, u32::MAX]),
                writable: dice.below(12) == 0,
            };
            let buffers: Vec<_> = (0..count).map(buffer).collect();
            assert_eq!(setup.guest.request(TX_QUEUE, &buffers), 0, "seed {seed}");
        }
        setup.transmit(b"the end", [0; 12]);
        let last = setup.link.wait(|ends| ends.from_guest.pop());
        assert_eq!(last.0, b"the end", "seed {seed}");
    }
}

#[test]
fn frame_without_a_buffer_survives_a_pause_but_not_a_reset() {
    for reset in [false, true] {
        let mut setup = Setup::new(MERGEABLE);
        let frame = pattern(700);
        setup.link.send(&frame, Offload::default());
        // The worker has taken the frame from the link, and finds no buffer.
        setup.link.wait(|ends| ends.to_guest.is_empty().then_some(()));
        let states = if reset {
            setup.device.reset();
            (0..).zip(&setup.guest.rings).map(|(index, ring)| (index, ring.state(false))).collect()
        } else {
            setup.device.quiesce()
        };
        setup.guest.resume(&mut setup.device, MERGEABLE, &states);
        let later = pattern(90);
        setup.link.send(&later, Offload::default());
        let first = if reset { later } else { frame };
        let len = setup.guest.request(RX_QUEUE, &[into(RX_DATA, 2048)]) as usize;
        assert_eq!(setup.guest.get(RX_DATA + 12, len - 12), first, "reset: {reset}");
    }
}

#[test]
fn link_keeps_its_state_with_the_device() {
    let mut device = Setup::new(0).device;
    let mut other = NetDevice::new(Box::new(FakeLink::new()));
    device.quiesce();
    let saved = device.save();
    other.restore(&saved).unwrap();
    assert_eq!(other.port().link.save(), b"cable");
    other.config[0] ^= 4;
    assert!(other.restore(&saved).unwrap_err().to_string().contains("MAC"));
    assert!(other.restore(&saved[1..]).is_err());
}
