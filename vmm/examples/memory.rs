//! How long a guest stands still while its memory is saved, and how long it waits for it when it is restored.
//!
//! `cargo run --release -p kvmbake-vmm --example memory -- FOLDER [MIB...]`: for each amount of data, a RAM of twice the size is
//! filled with runs of random lengths, a quarter of it zero, saved to a file in FOLDER, restored, and saved again.

use std::fs::File;
use std::path::Path;
use std::time::Instant;

use kvmbake_vmm::memory::{self, EAGER_LIMIT, GuestMemory, MemoryLayer, PAGE, SavedMemory};
use vm_memory::{Bytes, GuestAddress};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().expect("a folder for the files");
    let sizes: Vec<u64> = arguments.map(|mib| mib.parse().expect("a number of MiB")).collect();
    for mib in if sizes.is_empty() { vec![256, 500, 1400] } else { sizes } {
        measure(Path::new(&folder), mib << 20);
    }
}

fn measure(folder: &Path, bytes: u64) {
    let ram = 2 * bytes;
    let guest = memory::reserve(ram).expect("memory");
    let mut dice = 1;
    let mut page = 0;
    let mut held = 0;
    while held < bytes && page < ram / PAGE {
        let (pages, gap) = (1 + roll(&mut dice) % 512, roll(&mut dice) % 256);
        let value = if roll(&mut dice).is_multiple_of(4) { 0 } else { 7 };
        held += write(&guest, page, pages, value) * PAGE;
        page += pages + gap;
    }
    let how = if held <= EAGER_LIMIT { "read" } else { "mapped" };
    println!("{} MiB touched, restored {how}", held >> 20);
    let mut saved = SavedMemory::new(ram);
    let start = Instant::now();
    let ahead = saved.save(&guest, file(folder)).expect("saved memory");
    report("first save", start, &ahead);
    change(&guest, bytes / 50, &mut dice);
    let start = Instant::now();
    let layer = saved.finish(&guest, ahead).expect("finished memory");
    report("finish it, a fiftieth changed", start, &layer);
    saved.push(layer).expect("a layer of this memory");
    push(folder, "nothing changed, same machine", &mut saved, &guest);
    change(&guest, bytes / 10, &mut dice);
    push(folder, "a tenth changed, same machine", &mut saved, &guest);
    drop(guest);
    let start = Instant::now();
    let guest = saved.map().expect("restored memory");
    println!("  {:32} {:6.0} ms", "restore", millis(start));
    push(folder, "nothing changed, restored", &mut saved, &guest);
    change(&guest, bytes / 10, &mut dice);
    push(folder, "a tenth changed, restored", &mut saved, &guest);
}

/// Writes `bytes` in scattered runs of up to 64 pages, into the lower half of the RAM.
fn change(guest: &GuestMemory, bytes: u64, dice: &mut u64) {
    let mut done = 0;
    while done < bytes / PAGE {
        let first = roll(dice) % (bytes * 10 / PAGE);
        let value = roll(dice) as u8;
        done += write(guest, first, 1 + roll(dice) % 64, value);
    }
}

fn write(guest: &GuestMemory, first: u64, pages: u64, value: u8) -> u64 {
    let page = [value; PAGE as usize];
    (first..first + pages)
        .take_while(|page_number| {
            guest.write_slice(&page, GuestAddress(page_number * PAGE)).is_ok()
        })
        .count() as u64
}

fn push(folder: &Path, what: &str, saved: &mut SavedMemory, guest: &GuestMemory) {
    let file = file(folder);
    let start = Instant::now();
    let layer = saved.save(guest, file).expect("saved memory");
    report(what, start, &layer);
    saved.push(layer).expect("a layer of this memory");
}

/// Returns a new file that has no name any more.
fn file(folder: &Path) -> File {
    let path = folder.join(format!("layer-{}", std::process::id()));
    let open = File::options().read(true).write(true).create_new(true).open(&path);
    let file = open.expect("a new file in the folder");
    std::fs::remove_file(&path).expect("removed again");
    file
}

fn report(what: &str, start: Instant, layer: &MemoryLayer) {
    let (time, runs) = (millis(start), layer.map.runs().len());
    let mib = layer.map.data_bytes() >> 20;
    println!("  {what:32} {time:6.0} ms {mib:6} MiB in {runs} runs");
}

fn millis(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

/// xorshift64: the same numbers in every run.
fn roll(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state >> 8
}
