//! A guest driver against the block device.

use std::sync::Mutex;

use kvmbake_disk::{ErrorKind, Extent, MemoryBlock};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use super::*;
use crate::virtio::driver::{Buffer, DATA, Dice, Guest, INDIRECT, NEXT, into, out};

const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;
const HEADER: u64 = DATA;
const STATUS: u64 = DATA + 0x100;
const PAYLOAD: u64 = DATA + 0x1000;
const DISK: u64 = 4 << 20;

/// A disk that notes what was asked of it, and fails when told to.
struct Noting {
    inner: MemoryBlock,
    calls: Mutex<Vec<String>>,
    full: bool,
}

impl Noting {
    fn new(full: bool) -> Arc<Self> {
        let inner = MemoryBlock::writable(vec![0; DISK as usize]);
        Arc::new(Self { inner, calls: Mutex::default(), full })
    }

    fn note(&self, call: String) {
        self.calls.lock().unwrap().push(call);
    }

    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }
}

impl Block for Noting {
    fn len(&self) -> u64 {
        self.inner.len()
    }
    fn cluster_size(&self) -> u64 {
        65536
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), DiskError> {
        self.note(format!("read {offset}+{}", buf.len()));
        self.inner.read_at(buf, offset)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), DiskError> {
        self.note(format!("write {offset}+{}", buf.len()));
        if self.full {
            return Err(DiskError::new(ErrorKind::NoSpace, "write").at(offset));
        }
        self.inner.write_at(buf, offset)
    }
    fn flush(&self) -> Result<(), DiskError> {
        self.note("flush".to_owned());
        self.inner.flush()
    }
    fn discard(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.note(format!("discard {offset}+{len}"));
        self.inner.discard(offset, len)
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.note(format!("zero {offset}+{len}"));
        self.inner.write_zeroes(offset, len)
    }
    fn next_data(&self, from: u64) -> Result<Option<Extent>, DiskError> {
        self.inner.next_data(from)
    }
    fn is_read_only(&self) -> bool {
        false
    }
}

struct Setup {
    guest: Guest,
    device: BlockDevice,
    disk: Arc<Noting>,
}

impl Setup {
    fn new() -> Self {
        Self::with(Noting::new(false), BlockOptions::default(), 0)
    }

    fn with(disk: Arc<Noting>, options: BlockOptions, features: u64) -> Self {
        let mut device = BlockDevice::new(disk.clone(), options);
        let mut guest = Guest::new(device.queue_sizes());
        guest.activate(&mut device, features);
        Self { guest, device, disk }
    }

    fn header(&self, kind: u32, sector: u64) {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes[8..].copy_from_slice(&sector.to_le_bytes());
        self.guest.put(HEADER, &bytes);
        self.guest.put(STATUS, &[0xff]);
    }

    /// Sends a request with `data` between header and status; returns status and used length.
    fn request(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> (u8, u32) {
        self.header(kind, sector);
        let mut buffers = vec![out(HEADER, 16)];
        buffers.extend_from_slice(data);
        buffers.push(into(STATUS, 1));
        let len = self.guest.request(0, &buffers);
        (self.guest.get(STATUS, 1)[0], len)
    }

    fn ranges(&mut self, kind: u32, ranges: &[(u64, u32, u32)]) -> u8 {
        let mut bytes = Vec::new();
        for (sector, sectors, flags) in ranges {
            bytes.extend_from_slice(&sector.to_le_bytes());
            bytes.extend_from_slice(&sectors.to_le_bytes());
            bytes.extend_from_slice(&flags.to_le_bytes());
        }
        self.guest.put(PAYLOAD, &bytes);
        self.request(kind, 0, &[out(PAYLOAD, bytes.len() as u32)]).0
    }
}

#[test]
fn writes_come_back_and_scattered_pages_are_one_call() {
    let mut setup = Setup::new();
    let data: Vec<u8> = (0..8192u32).map(|n| (n / 7) as u8).collect();
    setup.guest.put(PAYLOAD, &data);
    let scattered = [out(PAYLOAD, 512), out(PAYLOAD + 512, 3584), out(PAYLOAD + 4096, 4096)];
    assert_eq!(setup.request(VIRTIO_BLK_T_OUT, 3, &scattered), (OK, 1));
    setup.guest.put(PAYLOAD, &[0; 8192]);
    let scattered = [into(PAYLOAD, 4096), into(PAYLOAD + 4096, 4096)];
    assert_eq!(setup.request(VIRTIO_BLK_T_IN, 3, &scattered), (OK, 8193));
    assert_eq!(setup.guest.get(PAYLOAD, 8192), data);
    assert_eq!(setup.request(VIRTIO_BLK_T_FLUSH, 0, &[]), (OK, 1));
    assert_eq!(setup.disk.calls(), ["write 1536+8192", "read 1536+8192", "flush"]);
}

#[test]
fn long_requests_go_in_pieces_of_the_bounce_buffer() {
    let mut setup = Setup::new();
    let len = 2 * BOUNCE as u32 + 512;
    assert_eq!(setup.request(VIRTIO_BLK_T_OUT, 0, &[out(PAYLOAD, len)]).0, OK);
    let calls = ["write 0+1048576", "write 1048576+1048576", "write 2097152+512"];
    assert_eq!(setup.disk.calls(), calls);
}

#[test]
fn any_layout_of_descriptors_is_understood() {
    let mut setup = Setup::new();
    setup.header(VIRTIO_BLK_T_OUT, 1);
    setup.guest.put(HEADER + 16, &[7; 512]);
    let len = setup
        .guest
        .request(0, &[out(HEADER, 3), out(HEADER + 3, 20), out(HEADER + 23, 505), into(STATUS, 1)]);
    assert_eq!((len, setup.guest.get(STATUS, 1)[0]), (1, OK));
    setup.header(VIRTIO_BLK_T_IN, 1);
    // Data and status in one descriptor.
    assert_eq!(setup.guest.request(0, &[out(HEADER, 16), into(PAYLOAD, 513)]), 513);
    let mut expected = vec![7; 512];
    expected.push(OK);
    assert_eq!(setup.guest.get(PAYLOAD, 513), expected);
}

#[test]
fn indirect_chains_and_event_indices_work() {
    let features = feature(VIRTIO_RING_F_EVENT_IDX);
    let mut setup = Setup::with(Noting::new(false), BlockOptions::default(), features);
    setup.guest.put(PAYLOAD, &[0x5a; 512]);
    setup.header(VIRTIO_BLK_T_OUT, 9);
    let buffers = [out(HEADER, 16), out(PAYLOAD, 512), into(STATUS, 1)];
    setup.guest.rings[0].add_indirect(DATA + 0x800, &buffers);
    setup.guest.kick(0);
    assert_eq!(setup.guest.wait_used(0).1, 1);
    assert_eq!(setup.disk.calls(), ["write 4608+512"]);
    // Twenty requests, an interrupt asked for after the twentieth only.
    // The used buffer may be seen before its interrupt.
    let before = setup.guest.vectors[0].wait_beyond(0);
    setup.guest.rings[0].want_interrupt_after(20);
    setup.header(VIRTIO_BLK_T_FLUSH, 0);
    for _ in 0..20 {
        setup.guest.rings[0].add(&[out(HEADER, 16), into(STATUS, 1)]);
    }
    setup.guest.kick(0);
    assert_eq!(setup.guest.vectors[0].wait_beyond(before), before + 1);
    assert_eq!((0..20).filter(|_| setup.guest.rings[0].take_used().is_some()).count(), 20);
}

#[test]
fn serial_number_is_told_and_cut() {
    let options =
        BlockOptions { serial: "a-serial-of-more-than-20-bytes".into(), ..Default::default() };
    let mut setup = Setup::with(Noting::new(false), options, 0);
    assert_eq!(setup.request(VIRTIO_BLK_T_GET_ID, 0, &[into(PAYLOAD, 20)]), (OK, 21));
    assert_eq!(setup.guest.get(PAYLOAD, 20), b"a-serial-of-more-tha");
}

#[test]
fn discard_and_zeroes_reach_the_backend_by_range() {
    let mut setup = Setup::new();
    let ranges = [(0, 128, 0), (256, 8, 0), (0, 0, 0)];
    assert_eq!(setup.ranges(VIRTIO_BLK_T_DISCARD, &ranges), OK);
    assert_eq!(setup.ranges(VIRTIO_BLK_T_WRITE_ZEROES, &[(8, 8, 1)]), OK);
    assert_eq!(setup.disk.calls(), ["discard 0+65536", "discard 131072+4096", "zero 4096+4096"]);
    assert_eq!(setup.ranges(VIRTIO_BLK_T_DISCARD, &[(0, 8, 1)]), UNSUPPORTED);
    assert_eq!(setup.ranges(VIRTIO_BLK_T_WRITE_ZEROES, &[(0, 8, 2)]), UNSUPPORTED);
    let last = DISK / SECTOR - 1;
    for bad in [(last, 2, 0), (u64::MAX, 1, 0), (u64::MAX / SECTOR, 1, 0), (0, u32::MAX, 0)] {
        assert_eq!(setup.ranges(VIRTIO_BLK_T_DISCARD, &[bad]), IO_ERROR, "{bad:?}");
    }
    assert_eq!(setup.ranges(VIRTIO_BLK_T_DISCARD, &[(0, 1, 0); 33]), IO_ERROR);
    assert!(setup.disk.calls().is_empty(), "nothing of a refused request may be carried out");
}

#[test]
fn requests_beyond_the_end_and_of_odd_length_fail() {
    let mut setup = Setup::new();
    let last = DISK / SECTOR - 1;
    assert_eq!(setup.request(VIRTIO_BLK_T_IN, last, &[into(PAYLOAD, 512)]).0, OK);
    setup.disk.calls();
    for (sector, len) in [(last, 1024), (last + 1, 512), (u64::MAX, 512), (0, 511), (0, 0)] {
        let data = [into(PAYLOAD, len)];
        assert_eq!(setup.request(VIRTIO_BLK_T_IN, sector, &data), (IO_ERROR, 1));
        let data = [out(PAYLOAD, len)];
        assert_eq!(setup.request(VIRTIO_BLK_T_OUT, sector, &data), (IO_ERROR, 1));
    }
    assert_eq!(setup.request(77, 0, &[]), (UNSUPPORTED, 1));
    assert!(setup.disk.calls().is_empty());
}

#[test]
fn read_only_disk_refuses_to_change() {
    let options = BlockOptions { read_only: true, ..Default::default() };
    let mut setup = Setup::with(Noting::new(false), options, 0);
    assert_ne!(setup.device.features() & feature(VIRTIO_BLK_F_RO), 0);
    assert_eq!(setup.device.features() & feature(VIRTIO_BLK_F_DISCARD), 0);
    assert_eq!(setup.request(VIRTIO_BLK_T_OUT, 0, &[out(PAYLOAD, 512)]).0, IO_ERROR);
    assert_eq!(setup.ranges(VIRTIO_BLK_T_WRITE_ZEROES, &[(0, 8, 0)]), IO_ERROR);
    assert_eq!(setup.request(VIRTIO_BLK_T_IN, 0, &[into(PAYLOAD, 512)]).0, OK);
    assert_eq!(setup.request(VIRTIO_BLK_T_FLUSH, 0, &[]).0, OK);
    assert_eq!(setup.disk.calls(), ["read 0+512"]);
}

#[test]
fn full_host_disk_is_told_to_the_owner() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let seen = told.clone();
    let on_error: OnError = Arc::new(move |error| seen.lock().unwrap().push(error.kind()));
    let options = BlockOptions { on_error: Some(on_error), ..Default::default() };
    let mut setup = Setup::with(Noting::new(true), options, 0);
    assert_eq!(setup.request(VIRTIO_BLK_T_OUT, 0, &[out(PAYLOAD, 512)]).0, IO_ERROR);
    assert_eq!(setup.request(VIRTIO_BLK_T_OUT, DISK, &[out(PAYLOAD, 512)]).0, IO_ERROR);
    assert_eq!(*told.lock().unwrap(), [ErrorKind::NoSpace]);
}

#[test]
fn quiesced_device_goes_on_where_it_was() {
    let mut setup = Setup::new();
    assert_eq!(setup.request(VIRTIO_BLK_T_FLUSH, 0, &[]).0, OK);
    let states = setup.device.quiesce();
    assert_eq!((states[0].0, states[0].1.next_avail, states[0].1.next_used), (0, 1, 1));
    // What the driver offers meanwhile is served afterwards.
    setup.header(VIRTIO_BLK_T_FLUSH, 0);
    setup.guest.rings[0].add(&[out(HEADER, 16), into(STATUS, 1)]);
    setup.guest.resume(&mut setup.device, 0, &states);
    assert_eq!(setup.guest.wait_used(0).1, 1);
    setup.device.reset();
    setup.device.reset();
    assert_eq!(setup.disk.calls(), ["flush", "flush"]);
}

#[test]
fn queues_work_side_by_side() {
    let options = BlockOptions { queues: 3, ..Default::default() };
    let mut setup = Setup::with(Noting::new(false), options, 0);
    setup.header(VIRTIO_BLK_T_FLUSH, 0);
    for queue in 0..3 {
        let len = setup.guest.request(queue, &[out(HEADER, 16), into(STATUS, 1)]);
        assert_eq!(len, 1);
    }
    assert_eq!(setup.device.quiesce().len(), 3);
}

#[test]
fn configuration_has_the_limits() {
    let device = BlockDevice::new(Noting::new(false), BlockOptions::default());
    let u32_at = |offset| {
        let mut data = [0; 4];
        device.read_config(offset, &mut data);
        u32::from_le_bytes(data)
    };
    assert_eq!((u32_at(0), u32_at(4)), ((DISK / SECTOR) as u32, 0));
    assert_eq!((u32_at(12), u32_at(20), u32_at(28)), (254, 512, 128));
    assert_eq!((u32_at(40), u32_at(44)), (32, 128));
    assert_eq!((u32_at(u64::from(u32::MAX)), u32_at(u64::MAX)), (0, 0));
}

#[test]
fn malformed_chains_are_given_back() {
    let mut setup = Setup::new();
    let ring = &mut setup.guest.rings[0];
    // A loop, a next beyond the table, an indirect table in an indirect table, one outside memory,
    // readable behind writable, no writable descriptor, a status outside memory.
    ring.write_descriptor(ring.desc, 0, out(HEADER, 16), NEXT, 0);
    ring.write_descriptor(ring.desc, 1, out(HEADER, 16), NEXT, 256);
    ring.write_descriptor(ring.desc, 2, out(PAYLOAD, 16), INDIRECT, 0);
    ring.write_descriptor(PAYLOAD, 0, out(PAYLOAD, 16), INDIRECT, 0);
    ring.write_descriptor(ring.desc, 3, out(u64::MAX - 15, 16), INDIRECT, 0);
    ring.write_descriptor(ring.desc, 4, into(STATUS, 1), NEXT, 5);
    ring.write_descriptor(ring.desc, 5, out(HEADER, 16), 0, 0);
    ring.write_descriptor(ring.desc, 6, into(u64::MAX, 9), 0, 0);
    for head in [0, 1, 2, 3, 4, 5, 6] {
        setup.guest.rings[0].offer(head);
        setup.guest.kick(0);
        assert_eq!(setup.guest.wait_used(0), (head.into(), 0));
    }
    assert!(setup.disk.calls().is_empty());
    setup.header(VIRTIO_BLK_T_FLUSH, 0);
    setup.guest.rings[0].write_descriptor(setup.guest.rings[0].desc, 0, out(HEADER, 16), NEXT, 7);
    setup.guest.rings[0].write_descriptor(setup.guest.rings[0].desc, 7, into(STATUS, 1), 0, 0);
    setup.guest.rings[0].offer(0);
    setup.guest.kick(0);
    assert_eq!(setup.guest.wait_used(0), (0, 1), "the device must live on");
}

#[test]
fn broken_ring_makes_the_device_need_a_reset() {
    for (avail, head) in [(600u16, 0u16), (1, 256), (1, u16::MAX)] {
        let mut setup = Setup::new();
        setup.guest.signals.add_status(4);
        let ring = &setup.guest.rings[0];
        setup.guest.put(ring.avail + 4, &head.to_le_bytes());
        setup.guest.put(ring.avail + 2, &avail.to_le_bytes());
        setup.guest.kick(0);
        setup.guest.config_vector.wait_beyond(0);
        assert_eq!(setup.guest.signals.status(), 0x44);
        setup.device.reset();
    }
}

/// Thousands of chains of random descriptors: whatever they say, each comes back exactly once, or
/// the ring is declared broken; and a good request afterwards works.
#[test]
fn random_chains_never_harm_the_device() {
    for seed in 0..20 {
        let mut dice = Dice::new(seed);
        let options = BlockOptions { read_only: seed % 4 == 3, ..Default::default() };
        let features = if seed % 2 == 0 { feature(VIRTIO_RING_F_EVENT_IDX) } else { 0 };
        let mut setup = Setup::with(Noting::new(seed % 5 == 4), options, features);
        for _ in 0..150 {
            scribble(&mut dice, &mut setup);
            let heads: Vec<u16> = (0..1 + dice.below(8)).map(|_| dice.below(256) as u16).collect();
            heads.iter().for_each(|&head| setup.guest.rings[0].offer(head));
            setup.guest.kick(0);
            for head in heads {
                assert_eq!(setup.guest.wait_used(0).0, u32::from(head), "seed {seed}");
            }
        }
        assert_eq!(setup.request(VIRTIO_BLK_T_FLUSH, 0, &[]), (OK, 1), "seed {seed}");
        assert_eq!(setup.guest.signals.status(), 0, "seed {seed}");
    }
}

fn scribble(dice: &mut Dice, setup: &mut Setup) {
    const KINDS: [u32; 8] = [0, 1, 4, 8, 11, 13, 14, u32::MAX];
    setup.header(dice.pick(&KINDS), dice.pick(&[0, 1, 8191, 8192, u64::MAX, u64::MAX / 512]));
    let range = [dice.roll(), dice.pick(&[0, 1 << 32, 8]) | dice.below(0x40_0000)];
    setup.guest.put(PAYLOAD, &range.map(u64::to_le_bytes).concat());
    let ring = &setup.guest.rings[0];
    for _ in 0..16 {
        let address =
            dice.pick(&[HEADER, PAYLOAD, STATUS, DATA - 8, u64::MAX - 8, 8 << 20, 0x1000]);
        let len = dice.pick(&[0, 1, 15, 16, 17, 512, 513, 4096, 1 << 20, u32::MAX]);
        let table = dice.pick(&[ring.desc, ring.desc, PAYLOAD]);
        let buffer = Buffer { address, len, writable: dice.below(2) == 0 };
        // The rings themselves are not a target of the device's writes here: it must survive that,
        // but the test could not tell what came back.
        let buffer = if address == 0x1000 { Buffer { writable: false, ..buffer } } else { buffer };
        let flags = dice.pick(&[0, NEXT, NEXT, NEXT, 4, 5, 0xfff8]);
        ring.write_descriptor(
            table,
            dice.below(256) as u16,
            buffer,
            flags & !2,
            dice.below(300) as u16,
        );
    }
}
