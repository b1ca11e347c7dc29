//! Saving and restoring RAM: each way of restoring against a model, and each way of changing memory in between.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::ram::Ram;
use super::residency::{PageState, Residency};
use super::{
    GuestMemory, MemoryError, MemoryLayer, PAGE, PageKind, PageMap, PageRun, SavedMemory, discard,
    reserve,
};
use crate::layout;
use crate::virtio::driver::Dice;

const RAM: u64 = 24 << 20;
const PAGES: u64 = RAM / PAGE;

/// A way to restore.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Read,
    Mapped,
    /// With fewer mappings than there are extents.
    Mixed,
}

const WAYS: [Way; 3] = [Way::Read, Way::Mapped, Way::Mixed];

fn restore(saved: &SavedMemory, way: Way) -> Result<GuestMemory, MemoryError> {
    match way {
        Way::Read => saved.map_with(u64::MAX, 0),
        Way::Mapped => saved.map_with(0, usize::MAX),
        Way::Mixed => saved.map_with(0, 3),
    }
}

fn file() -> File {
    tempfile::tempfile().unwrap()
}

fn address(page: u64) -> GuestAddress {
    GuestAddress(page * PAGE)
}

/// Fills a page with bytes that tell pages and fillings apart; filling 0 is zero.
fn fill(memory: &GuestMemory, page: u64, filling: u64) {
    memory.write_slice(&content(page, filling), address(page)).unwrap();
}

fn content(page: u64, filling: u64) -> Vec<u8> {
    let word = if filling == 0 { 0 } else { filling << 40 | page << 8 | 0x5a };
    word.to_le_bytes().repeat(PAGE as usize / 8)
}

fn expect(memory: &GuestMemory, model: &[u64]) {
    let mut page = vec![0; PAGE as usize];
    for (index, filling) in (0..).zip(model) {
        memory.read_slice(&mut page, address(index)).unwrap();
        assert!(page == content(index, *filling), "page {index} is not of filling {filling}");
    }
}

fn push(saved: &mut SavedMemory, memory: &GuestMemory) -> PageMap {
    let layer = saved.save(memory, file()).unwrap();
    let map = layer.map.clone();
    saved.push(layer).unwrap();
    map
}

fn run(first: u64, pages: u64, kind: PageKind) -> PageRun {
    PageRun { first, pages, kind }
}

#[test]
fn only_pages_that_hold_something_are_saved_and_the_file_is_sparse() {
    let memory = reserve(RAM).unwrap();
    for page in [0, 1, 2, 1000, PAGES - 1] {
        fill(&memory, page, 1);
    }
    fill(&memory, 1001, 0);
    let mut saved = SavedMemory::new(RAM);
    let map = push(&mut saved, &memory);
    let expected = [
        run(0, 3, PageKind::Data),
        run(1000, 1, PageKind::Data),
        run(PAGES - 1, 1, PageKind::Data),
    ];
    assert_eq!(map.runs(), expected);
    let file = &saved.layers()[0].file;
    let metadata = file.metadata().unwrap();
    assert_eq!(metadata.size(), RAM);
    assert!(metadata.blocks() * 512 <= 64 << 10, "{} blocks", metadata.blocks());
    let mut page = vec![0; PAGE as usize];
    file.read_exact_at(&mut page, 1000 * PAGE).unwrap();
    assert_eq!(page, content(1000, 1));
}

/// Counts the pages that are in the process's page tables.
fn present_pages(memory: &GuestMemory) -> usize {
    let pagemap = File::open("/proc/self/pagemap").unwrap();
    let mut present = 0;
    for region in memory.iter() {
        let mut entries = vec![0; (region.len() / PAGE * 8) as usize];
        pagemap.read_exact_at(&mut entries, region.as_ptr() as u64 / PAGE * 8).unwrap();
        present += entries.chunks_exact(8).filter(|entry| entry[7] & 0x80 != 0).count();
    }
    present
}

#[test]
fn saving_touches_no_page() {
    let memory = reserve(RAM).unwrap();
    let mut saved = SavedMemory::new(RAM);
    saved.save(&memory, file()).unwrap();
    assert_eq!(present_pages(&memory), 0);
    (0..1000).for_each(|page| fill(&memory, page, 1));
    push(&mut saved, &memory);
    let mapped = restore(&saved, Way::Mapped).unwrap();
    assert_eq!(present_pages(&mapped), 0, "restored without reading");
    saved.save(&mapped, file()).unwrap();
    assert_eq!(present_pages(&mapped), 0);
    fill(&mapped, 5, 2);
    assert_ne!(present_pages(&mapped), 0);
}

#[test]
fn a_layer_holds_only_what_differs_and_says_what_became_zero() {
    for way in WAYS {
        let memory = reserve(RAM).unwrap();
        (10..60).for_each(|page| fill(&memory, page, 1));
        let mut saved = SavedMemory::new(RAM);
        push(&mut saved, &memory);
        let memory = restore(&saved, way).unwrap();
        assert_eq!(saved.save(&memory, file()).unwrap().map.runs(), [], "nothing changed");
        fill(&memory, 20, 2);
        fill(&memory, 30, 0);
        // Written, and the same.
        fill(&memory, 40, 1);
        fill(&memory, 70, 0);
        fill(&memory, 80, 3);
        let expected =
            [run(20, 1, PageKind::Data), run(30, 1, PageKind::Zero), run(80, 1, PageKind::Data)];
        assert_eq!(push(&mut saved, &memory).runs(), expected, "{way:?}");
        // The same guest goes on, its unwritten pages still mapped from the first layer.
        fill(&memory, 20, 1);
        fill(&memory, 30, 4);
        let expected = [run(20, 1, PageKind::Data), run(30, 1, PageKind::Data)];
        assert_eq!(push(&mut saved, &memory).runs(), expected, "{way:?}");
    }
}

#[test]
fn a_chain_of_five_layers_comes_back_in_every_way_whatever_was_changed_between() {
    for seed in 0..6 {
        let mut dice = Dice::new(seed);
        let mut model = vec![0; PAGES as usize];
        let mut saved = SavedMemory::new(RAM);
        let mut memory = reserve(RAM).unwrap();
        for layer in 0..5 {
            for _ in 0..60 {
                let first = dice.below(PAGES);
                let end = (first + 1 + dice.below(80)).min(PAGES);
                let filling = dice.pick(&[0, 1, 2, 3]);
                for page in first..end {
                    fill(&memory, page, filling);
                    model[page as usize] = filling;
                }
            }
            if dice.below(2) == 0 {
                let first = dice.below(PAGES - 1024);
                let range = first * PAGE..(first + 1024) * PAGE;
                let taken = discard(&memory, range.clone()).unwrap();
                let mut page = vec![0; PAGE as usize];
                for index in first..first + 1024 {
                    memory.read_slice(&mut page, address(index)).unwrap();
                    if page.iter().all(|byte| *byte == 0) {
                        model[index as usize] = 0;
                    }
                }
                assert!(taken >= 1 << 21, "{taken} of {range:?}");
            }
            push(&mut saved, &memory);
            for way in WAYS {
                expect(&restore(&saved, way).unwrap(), &model);
            }
            // Go on in the same machine, or in one restored in any way.
            memory = match dice.below(4) {
                0 => memory,
                way => restore(&saved, WAYS[way as usize - 1]).unwrap(),
            };
            assert_eq!(saved.save(&memory, file()).unwrap().map.runs(), [], "{seed} {layer}");
        }
    }
}

#[test]
fn what_was_saved_ahead_is_finished_to_the_memory_as_it_stands() {
    for seed in 0..6 {
        let mut dice = Dice::new(seed);
        let mut model = vec![0; PAGES as usize];
        let mut saved = SavedMemory::new(RAM);
        let mut memory = reserve(RAM).unwrap();
        let scribble = |memory: &GuestMemory, model: &mut [u64], dice: &mut Dice| {
            for _ in 0..40 {
                let first = dice.below(PAGES);
                let end = (first + 1 + dice.below(80)).min(PAGES);
                let filling = dice.pick(&[0, 0, 1, 2]);
                (first..end).for_each(|page| fill(memory, page, filling));
                model[first as usize..end as usize].fill(filling);
            }
        };
        for way in WAYS {
            scribble(&memory, &mut model, &mut dice);
            let ahead = saved.save(&memory, file()).unwrap();
            scribble(&memory, &mut model, &mut dice);
            let layer = saved.finish(&memory, ahead).unwrap();
            let below = restore(&saved, Way::Read).unwrap();
            for run in layer.map.runs().iter().filter(|run| run.kind == PageKind::Zero) {
                let mut page = [0; PAGE as usize];
                below.read_slice(&mut page, address(run.first)).unwrap();
                assert!(page.iter().any(|byte| *byte != 0), "zero over nothing at {run:?}");
            }
            let blocks = layer.file.metadata().unwrap().blocks();
            assert!(blocks * 512 <= layer.map.data_bytes() + (64 << 10), "zero pages take disk");
            saved.push(layer).unwrap();
            expect(&restore(&saved, Way::Read).unwrap(), &model);
            memory = restore(&saved, way).unwrap();
        }
    }
}

#[test]
fn saving_ahead_of_a_guest_that_writes_all_the_while_ends_right() {
    let memory = reserve(RAM).unwrap();
    (0..PAGES).for_each(|page| fill(&memory, page, 1));
    let mut saved = SavedMemory::new(RAM);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let (ahead, model) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut dice = Dice::new(7);
            let mut model = vec![1; PAGES as usize];
            loop {
                let (page, filling) = (dice.below(PAGES), dice.pick(&[0, 2, 3]));
                fill(&memory, page, filling);
                model[page as usize] = filling;
                if stop.load(std::sync::atomic::Ordering::Relaxed) {
                    return model;
                }
            }
        });
        let ahead = saved.save(&memory, file()).unwrap();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        (ahead, writer.join().unwrap())
    });
    let layer = saved.finish(&memory, ahead).unwrap();
    saved.push(layer).unwrap();
    expect(&restore(&saved, Way::Read).unwrap(), &model);
}

#[test]
fn memory_above_the_hole_is_at_its_ram_offset() {
    let bytes = layout::LOW_RAM_END + (64 << 20);
    let memory = reserve(bytes).unwrap();
    let last_low = GuestAddress(layout::LOW_RAM_END - PAGE);
    let first_high = GuestAddress(layout::HIGH_RAM_START);
    memory.write_slice(&content(1, 1), last_low).unwrap();
    memory.write_slice(&content(2, 1), first_high).unwrap();
    let mut saved = SavedMemory::new(bytes);
    let map = push(&mut saved, &memory);
    assert_eq!(map.runs(), [run(layout::LOW_RAM_END / PAGE - 1, 2, PageKind::Data)]);
    for way in WAYS {
        let memory = restore(&saved, way).unwrap();
        let mut page = vec![0; PAGE as usize];
        memory.read_slice(&mut page, last_low).unwrap();
        assert!(page == content(1, 1));
        memory.read_slice(&mut page, first_high).unwrap();
        assert!(page == content(2, 1));
        memory.write_slice(&content(9, 9), GuestAddress(layout::HIGH_RAM_START + PAGE)).unwrap();
        let map = saved.save(&memory, file()).unwrap().map;
        assert_eq!(map.runs(), [run(layout::LOW_RAM_END / PAGE + 1, 1, PageKind::Data)]);
    }
}

#[test]
fn long_runs_are_mapped_privately_and_the_guests_writes_stay_its_own() {
    let memory = reserve(RAM).unwrap();
    (0..256).for_each(|page| fill(&memory, page, 1));
    let mut saved = SavedMemory::new(RAM);
    push(&mut saved, &memory);
    let restored = restore(&saved, Way::Mapped).unwrap();
    assert!(restored.iter().all(|region| region.file_offset().is_some()));
    fill(&restored, 3, 7);
    let mut page = vec![0; PAGE as usize];
    saved.layers()[0].file.read_exact_at(&mut page, 3 * PAGE).unwrap();
    assert!(page == content(3, 1), "the file is as it was");
    // What is mapped and unwritten shows a change of the file, which read pages do not: only that tells the two apart.
    saved.layers()[0].file.write_all_at(&content(9, 9), 9 * PAGE).unwrap();
    restored.read_slice(&mut page, address(9)).unwrap();
    assert!(page == content(9, 9), "page 9 was read and not mapped");
}

#[test]
fn mappings_are_bounded_and_short_runs_are_read() {
    let memory = reserve(RAM).unwrap();
    for run in 0..10 {
        (0..20).for_each(|page| fill(&memory, run * 100 + page, 1));
        fill(&memory, run * 100 + 50, 1);
    }
    let mut saved = SavedMemory::new(RAM);
    push(&mut saved, &memory);
    for (way, mapped) in [(Way::Read, 0), (Way::Mapped, 200), (Way::Mixed, 60)] {
        let ram = Ram::of(&restore(&saved, way).unwrap());
        let mut states = Vec::new();
        Residency::of(&ram).look(ram.parts(u64::MAX)[0], &mut Vec::new(), &mut states);
        let of_file = states.iter().filter(|state| **state == PageState::OfFile).count();
        assert_eq!(of_file, mapped, "{way:?}");
    }
}

#[test]
fn a_memory_mapped_from_another_chain_is_saved_whole() {
    let memory = reserve(RAM).unwrap();
    (0..100).for_each(|page| fill(&memory, page, 1));
    let mut saved = SavedMemory::new(RAM);
    push(&mut saved, &memory);
    let restored = restore(&saved, Way::Mapped).unwrap();
    let whole = SavedMemory::new(RAM).save(&restored, file()).unwrap();
    assert_eq!(whole.map.runs(), [run(0, 100, PageKind::Data)]);
}

#[test]
fn a_layer_of_another_machine_on_top_does_not_hide_what_is_still_mapped() {
    let memory = reserve(RAM).unwrap();
    (0..100).for_each(|page| fill(&memory, page, 1));
    let mut saved = SavedMemory::new(RAM);
    push(&mut saved, &memory);
    let (one, other) =
        (restore(&saved, Way::Mapped).unwrap(), restore(&saved, Way::Mapped).unwrap());
    fill(&other, 5, 2);
    fill(&other, 6, 0);
    push(&mut saved, &other);
    // `one` still has the first layer's pages: for the chain as it is now, these two differ.
    assert_eq!(push(&mut saved, &one).runs(), [run(5, 2, PageKind::Data)]);
    let mut model = vec![0; PAGES as usize];
    model[..100].fill(1);
    expect(&restore(&saved, Way::Read).unwrap(), &model);
}

#[test]
fn a_file_that_is_cut_off_is_refused_before_it_is_mapped() {
    let memory = reserve(RAM).unwrap();
    (0..100).for_each(|page| fill(&memory, page, 1));
    let mut saved = SavedMemory::new(RAM);
    push(&mut saved, &memory);
    saved.layers()[0].file.set_len(50 * PAGE).unwrap();
    for way in WAYS {
        let error = restore(&saved, way).unwrap_err();
        assert!(
            matches!(error, MemoryError::Truncated { layer: 0, found: 204_800, .. }),
            "{error}"
        );
    }
    let mut other = SavedMemory::new(RAM);
    let layer = MemoryLayer { file: file(), map: PageMap::new(PAGES) };
    assert!(matches!(other.push(layer), Err(MemoryError::Truncated { found: 0, .. })));
}

#[test]
fn another_size_is_refused() {
    let mut saved = SavedMemory::new(RAM);
    let layer = MemoryLayer { file: file(), map: PageMap::new(PAGES + 1) };
    assert!(matches!(saved.push(layer), Err(MemoryError::WrongSize { expected: RAM, .. })));
    let memory = reserve(2 * RAM).unwrap();
    assert!(matches!(saved.save(&memory, file()), Err(MemoryError::WrongSize { .. })));
}

#[test]
fn a_file_that_cannot_be_written_is_an_error() {
    let memory = reserve(RAM).unwrap();
    fill(&memory, 1, 1);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("layer");
    std::fs::write(&path, b"").unwrap();
    let saved = SavedMemory::new(RAM);
    let error = saved.save(&memory, File::open(path).unwrap()).unwrap_err();
    assert!(matches!(error, MemoryError::Write { .. }), "{error}");
}

#[test]
fn discarded_pages_are_zero_in_either_kind_of_memory_and_a_zero_run_over_the_layers_data() {
    for way in WAYS {
        let memory = reserve(RAM).unwrap();
        (0..PAGES).for_each(|page| fill(&memory, page, 1));
        let mut saved = SavedMemory::new(RAM);
        push(&mut saved, &memory);
        let memory = restore(&saved, way).unwrap();
        // Two whole huge pages in the middle, and a little at both ends.
        let range = (2 << 20) - 3 * PAGE..(6 << 20) + 5 * PAGE;
        let expected = if way != Way::Read { 4 << 20 } else { range.end - range.start };
        assert_eq!(discard(&memory, range.clone()).unwrap(), expected);
        let first = if way != Way::Read { 512 } else { 509 };
        let zero = run(first, expected / PAGE, PageKind::Zero);
        assert_eq!(push(&mut saved, &memory).runs(), [zero]);
        let mut model = vec![1; PAGES as usize];
        model[first as usize..zero.end() as usize].fill(0);
        expect(&memory, &model);
        expect(&restore(&saved, way).unwrap(), &model);
    }
}

#[test]
fn made_up_ranges_discard_nothing_outside_of_ram() {
    let memory = reserve(RAM).unwrap();
    fill(&memory, PAGES - 1, 1);
    fill(&memory, 0, 1);
    let reversed = std::ops::Range { start: 2 * PAGE, end: PAGE };
    for range in [RAM..u64::MAX, u64::MAX - 1..u64::MAX, 5..4095, 0..0, reversed, 1..PAGE] {
        assert_eq!(discard(&memory, range.clone()).unwrap(), 0, "{range:?}");
    }
    assert_eq!(discard(&memory, RAM - PAGE..u64::MAX).unwrap(), PAGE);
    let mut model = vec![0; PAGES as usize];
    model[0] = 1;
    expect(&memory, &model);
}

/// Runs the real-mode code at 0x1000 up to its `hlt`.
fn run_guest(vcpu: &mut kvm_ioctls::VcpuFd) {
    let mut sregs = vcpu.get_sregs().unwrap();
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    vcpu.set_sregs(&sregs).unwrap();
    vcpu.set_regs(&kvm_bindings::kvm_regs { rip: 0x1000, rflags: 2, ..Default::default() })
        .unwrap();
    match vcpu.run().unwrap() {
        kvm_ioctls::VcpuExit::Hlt => {}
        exit => panic!("{exit:?}"),
    }
}

#[test]
fn a_guest_runs_on_mapped_pages_writes_its_own_and_sees_discarded_ones_as_zero() {
    // mov al, [0x8000]; inc al; mov [0x9000], al; hlt
    const CODE: [u8; 9] = [0xa0, 0x00, 0x80, 0xfe, 0xc0, 0xa2, 0x00, 0x90, 0xf4];
    let memory = reserve(RAM).unwrap();
    (0..64).for_each(|page| fill(&memory, page, 1));
    memory.write_slice(&CODE, GuestAddress(0x1000)).unwrap();
    let mut saved = SavedMemory::new(RAM);
    push(&mut saved, &memory);
    for way in WAYS {
        let memory = restore(&saved, way).unwrap();
        let kvm = crate::host::open().expect("a usable /dev/kvm");
        let vm = crate::host::create_vm(&kvm).unwrap();
        super::register(&memory, &vm).unwrap();
        let mut vcpu = vm.create_vcpu(0).unwrap();
        let byte = |address| memory.read_obj::<u8>(GuestAddress(address)).unwrap();
        run_guest(&mut vcpu);
        assert_eq!((byte(0x8000), byte(0x9000)), (0x5a, 0x5b));
        // Of the whole guest, one page has changed.
        let map = saved.save(&memory, file()).unwrap().map;
        assert_eq!(map.runs(), [run(9, 1, PageKind::Data)], "{way:?}");
        // Pages that KVM has mapped already are taken from it as well.
        assert_eq!(discard(&memory, 0..2 << 20).unwrap(), 2 << 20);
        memory.write_slice(&CODE, GuestAddress(0x1000)).unwrap();
        run_guest(&mut vcpu);
        assert_eq!((byte(0x8000), byte(0x9000)), (0, 1));
    }
}
