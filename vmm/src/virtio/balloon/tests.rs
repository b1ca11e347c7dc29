//! The balloon against a driver, well-behaved and not.

use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::*;
use crate::memory::PAGE;
use crate::virtio::driver::{DATA, Dice, Guest, MEMORY, into, out};

/// Pages with data, a huge page's worth, beginning where no huge page begins.
const FIRST: u64 = DATA + 16 * PAGE;
const PAGES: u64 = 512;

fn guest() -> (BalloonDevice, Guest) {
    let mut device = BalloonDevice::new();
    let mut guest = Guest::new(device.queue_sizes());
    let features = device.features();
    guest.activate(&mut device, features);
    guest.put(FIRST - PAGE, &vec![0x5a; ((PAGES + 2) * PAGE) as usize]);
    (device, guest)
}

fn is_filled(guest: &Guest, page: u64, byte: u8) -> bool {
    guest.get(FIRST + page * PAGE, PAGE as usize).iter().all(|found| *found == byte)
}

/// Asserts that exactly `taken` of the filled pages are zero now.
fn expect_taken(guest: &Guest, taken: impl Fn(u64) -> bool) {
    for page in 0..PAGES {
        let byte = if taken(page) { 0 } else { 0x5a };
        assert!(is_filled(guest, page, byte), "page {page} must hold {byte:#x}");
    }
}

fn numbers(pages: &[u64]) -> Vec<u8> {
    pages.iter().flat_map(|page| ((FIRST / PAGE + page) as u32).to_le_bytes()).collect()
}

#[test]
fn reported_ranges_are_zero_and_their_neighbours_stay_on_each_number_of_the_queue() {
    for queue in 2..5 {
        let (_device, mut guest) = guest();
        let ranges = [into(FIRST, 3 * PAGE as u32), into(FIRST + 100 * PAGE, 412 * PAGE as u32)];
        assert_eq!(guest.request(queue, &ranges), 0);
        expect_taken(&guest, |page| !(3..100).contains(&page));
        let edges = [guest.get(FIRST - 1, 1), guest.get(FIRST + PAGES * PAGE, 1)];
        assert_eq!(edges, [[0x5a], [0x5a]]);
    }
}

/// Counts the filled pages that take memory of the host.
fn resident(guest: &Guest) -> usize {
    let mut pages = vec![0u8; PAGES as usize];
    let host = guest.memory.get_host_address(GuestAddress(FIRST)).unwrap();
    let len = (PAGES * PAGE) as usize;
    // SAFETY: the range is guest memory, and the vector has one byte for each of its pages.
    assert_eq!(unsafe { libc::mincore(host.cast(), len, pages.as_mut_ptr()) }, 0);
    pages.iter().filter(|page| **page & 1 != 0).count()
}

#[test]
fn reported_pages_are_given_back_to_the_host() {
    let (_device, mut guest) = guest();
    assert_eq!(resident(&guest), PAGES as usize);
    guest.request(4, &[into(FIRST, (PAGES * PAGE) as u32)]);
    assert_eq!(resident(&guest), 0);
}

#[test]
fn parts_of_pages_stay() {
    let (_device, mut guest) = guest();
    guest.request(4, &[into(FIRST + 1, 3 * PAGE as u32 - 2)]);
    expect_taken(&guest, |page| page == 1);
}

#[test]
fn inflated_pages_are_taken_and_come_back_by_touching() {
    let (_device, mut guest) = guest();
    let pages = [7, 8, 9, 300, 6, 20, 19, 18, 511];
    guest.put(DATA, &numbers(&pages));
    assert_eq!(guest.request(0, &[out(DATA, pages.len() as u32 * 4)]), 0);
    expect_taken(&guest, |page| pages.contains(&page));
    assert_eq!(guest.request(1, &[out(DATA, pages.len() as u32 * 4)]), 0);
    guest.put(FIRST + 7 * PAGE, &[0x5a; PAGE as usize]);
    assert!(is_filled(&guest, 7, 0x5a));
}

#[test]
fn the_first_page_of_all_is_a_page_as_well() {
    let (_device, mut guest) = guest();
    guest.put(0, &[1; 16]);
    guest.put(DATA, &[0; 4]);
    guest.request(0, &[out(DATA, 4)]);
    assert_eq!(guest.get(0, 16), [0; 16]);
}

#[test]
fn nonsense_takes_nothing_and_stops_nothing() {
    let (_device, mut guest) = guest();
    let end = MEMORY as u64;
    for range in [
        into(end, u32::MAX),
        into(u64::MAX, 1),
        into(u64::MAX - 4095, u32::MAX),
        into(FIRST, 0),
        into(FIRST + 1, PAGE as u32),
        out(FIRST, PAGE as u32),
    ] {
        assert_eq!(guest.request(4, &[range]), 0);
    }
    // Page numbers: beyond RAM, cut off, in no memory, writable, and more than are read.
    guest.put(DATA, &u32::MAX.to_le_bytes());
    for buffer in [out(DATA, 4), out(DATA, 3), out(end, 4), out(u64::MAX - 1, 8), into(DATA, 4)] {
        assert_eq!(guest.request(0, &[buffer]), 0);
    }
    expect_taken(&guest, |_| false);
    guest.put(DATA, &numbers(&[3]));
    guest.request(0, &[out(DATA, 4)]);
    expect_taken(&guest, |page| page == 3);
}

#[test]
fn random_requests_never_stop_the_device_unless_the_ring_is_broken() {
    let (mut device, mut guest) = guest();
    let mut dice = Dice::new(5);
    for _ in 0..500 {
        // Above the rings, whose loss would be the guest's own.
        let address = DATA + dice.below(MEMORY as u64);
        let len = dice.pick(&[0, 1, 4, 4096, 8192, 1 << 20, u32::MAX]);
        let queue = dice.below(5) as usize;
        let buffer = if dice.below(2) == 0 { out(address, len) } else { into(address, len) };
        if queue == 0 && address < MEMORY as u64 {
            // Numbers of pages above the rings.
            guest.put(address & !3, &((DATA / PAGE + dice.below(4096)) as u32).to_le_bytes());
        }
        let bounded = if queue == 0 { out(address & !3, 4) } else { buffer };
        assert_eq!(guest.request(queue, &[bounded]), 0);
    }
    assert_eq!(guest.signals.status() & VIRTIO_CONFIG_S_NEEDS_RESET as u8, 0);
    assert_eq!(device.quiesce().len(), QUEUES);
}

#[test]
fn the_device_goes_on_where_it_was_quiesced() {
    let (mut device, mut guest) = guest();
    guest.request(4, &[into(FIRST, PAGE as u32)]);
    let states = device.quiesce();
    guest.rings[4].add(&[into(FIRST + 5 * PAGE, PAGE as u32)]);
    guest.kick(4);
    let mut other = BalloonDevice::new();
    let features = other.features();
    guest.resume(&mut other, features, &states);
    guest.wait_used(4);
    expect_taken(&guest, |page| page == 0 || page == 5);
}

#[test]
fn the_target_is_no_page_and_the_driver_says_how_many_there_are() {
    let mut device = BalloonDevice::new();
    device.write_config(0, &[9; 4]);
    device.write_config(4, &[1, 2]);
    device.write_config(6, &[3, 4, 5]);
    device.write_config(u64::MAX, &[6, 7]);
    let mut config = [0; 20];
    device.read_config(0, &mut config);
    assert_eq!(config[..8], [0, 0, 0, 0, 1, 2, 3, 4]);
    assert_eq!(config[8..], [0; 12]);
    device.reset();
    device.read_config(0, &mut config[..8]);
    assert_eq!(config[..8], [0; 8]);
}
