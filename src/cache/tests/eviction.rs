//! Collections: what goes, in which order, and what never does.

use super::*;
use std::os::unix::fs::FileExt;

const NOT_PACKED: Limits<'static> = Limits { bytes: 0, pack: false, cancel: &NEVER };

/// Notes a use `seconds` after the epoch.
fn used_at(layer: &Layer, seconds: u64) {
    layer.0.hold.touch(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
}

fn titles(removed: &[Removed]) -> Vec<&str> {
    removed.iter().map(|one| one.title.as_str()).collect()
}

/// boot → (one → two, three), used at these times, in use by nobody.
fn family(store: &Store, times: [u64; 4]) {
    let boot = build(&store.cache, None, "boot");
    let one = build(&store.cache, Some(&boot), "one");
    let two = build(&store.cache, Some(&one), "two");
    let three = build(&store.cache, Some(&boot), "three");
    for (layer, at) in [&boot, &one, &two, &three].into_iter().zip(times) {
        used_at(layer, at);
    }
}

#[test]
fn the_least_recently_used_goes_first_and_children_go_before_parents() {
    let store = Store::new();
    family(&store, [1, 2, 30, 20]);
    let all = store.cache.gc(&NOT_PACKED).unwrap();
    assert_eq!(titles(&all.removed), ["three", "two", "one", "boot"]);
    assert_eq!(all.after, 0);
    assert_eq!(all.before, all.removed.iter().map(|one| one.bytes).sum::<u64>());
    assert!(names(&store.cache.layers()).is_empty() && names(&store.cache.tmp()).is_empty());
}

#[test]
fn nothing_goes_below_the_limit_and_no_more_than_needed_above_it() {
    let store = Store::new();
    family(&store, [40, 40, 30, 20]);
    let before = store.cache.usage().unwrap().bytes;
    let within = store.cache.gc(&Limits { bytes: before, ..NOT_PACKED }).unwrap();
    assert_eq!((within.removed.len(), within.before, within.after), (0, before, before));
    let above = store.cache.gc(&Limits { bytes: before - 1, ..NOT_PACKED }).unwrap();
    assert_eq!(titles(&above.removed), ["three"]);
    assert_eq!(above.after, store.cache.usage().unwrap().bytes);
}

#[test]
fn what_is_in_use_stays_with_all_it_is_built_on() {
    let store = Store::new();
    family(&store, [1, 2, 30, 20]);
    let user = store.again();
    let boot = find(&user, None, "boot").unwrap();
    let one = find(&user, Some(&boot), "one").unwrap();
    drop(boot);
    let done = store.cache.gc(&NOT_PACKED).unwrap();
    assert_eq!(titles(&done.removed), ["three", "two"]);
    assert!(one.file(DISK).unwrap().exists() && one.parent().unwrap().file(DISK).unwrap().exists());
    drop(one);
    let done = store.cache.gc(&NOT_PACKED).unwrap();
    assert_eq!(titles(&done.removed), ["one", "boot"]);
}

#[test]
fn finding_counts_as_a_use_of_the_whole_chain() {
    let store = Store::new();
    family(&store, [1, 1, 1, 20]);
    let boot = find(&store.cache, None, "boot").unwrap();
    let one = find(&store.cache, Some(&boot), "one").unwrap();
    drop(find(&store.cache, Some(&one), "two").unwrap());
    drop((boot, one));
    let done = store.cache.gc(&NOT_PACKED).unwrap();
    assert_eq!(titles(&done.removed)[0], "three");
}

#[test]
fn what_nothing_can_find_always_goes() {
    let store = Store::new();
    let huge = Limits { bytes: u64::MAX, ..NOT_PACKED };
    let old = build(&store.cache, None, "boot");
    let child = build(&store.cache, Some(&old), "one");
    eventually(|| store.cache.now() > old.created() + Duration::from_millis(2));
    let recipe = recipe("boot");
    let anew = Lookup { max_age: Some(Duration::ZERO), ..lookup(None, &recipe) };
    let building = begin(&store.cache, &anew);
    fill(&building, "boot");
    let meta = Meta { title: "new boot".into(), served: Vec::new() };
    let new = building.publish(meta, Parent::None).unwrap().wait().unwrap();
    // In use they stay; afterwards they go.
    assert!(store.again().gc(&huge).unwrap().removed.is_empty());
    drop((old, child, new));
    let done = store.again().gc(&huge).unwrap();
    assert_eq!(titles(&done.removed), ["boot", "one"]);
    assert_eq!(done.removed[0].why, "made again since");
    assert_eq!(done.removed[1].why, "what it was built on is gone");
    assert!(find(&store.cache, None, "boot").is_ok());
}

#[test]
fn damaged_records_and_strays_go() {
    let store = Store::new();
    let huge = Limits { bytes: u64::MAX, ..NOT_PACKED };
    let folder = build(&store.cache, None, "boot").0.folder.clone();
    let other = build(&store.cache, None, "other").0.folder.clone();
    fs::write(folder.join("memory.zst"), "half").unwrap();
    fs::write(folder.join("layer.1-2.new"), "half").unwrap();
    fs::write(other.join("layer.json"), "{").unwrap();
    let done = store.cache.gc(&huge).unwrap();
    assert_eq!(done.removed.len(), 1);
    assert!(!other.exists());
    let expected = ["disk.qcow2", "layer.json", "machine.state", "memory", "memory.map", "used"];
    assert_eq!(names(&folder), expected);
    assert!(find(&store.cache, None, "boot").is_ok());
}

/// A layer whose memory holds a third of `bytes` at each of three places of 8 MiB.
fn with_memory(store: &Store, name: &str, bytes: &[u8]) -> (PathBuf, Vec<u8>) {
    let recipe = recipe(name);
    let building = begin(&store.cache, &lookup(None, &recipe));
    let memory = fs::File::create(building.path(MEMORY)).unwrap();
    memory.set_len((8 << 20) + 777).unwrap();
    let third = bytes.len() / 3;
    let places = [4096, (2 << 20) + 4096, (8 << 20) + 777 - third as u64];
    for (part, at) in bytes.chunks_exact(third).zip(places) {
        memory.write_all_at(part, at).unwrap();
    }
    memory.write_all_at(&[0; 65536], 5 << 20).unwrap();
    let content = fs::read(building.path(MEMORY)).unwrap();
    let meta = Meta { title: name.into(), served: Vec::new() };
    let layer = building.publish(meta, Parent::None).unwrap().wait().unwrap();
    used_at(&layer, 1);
    (layer.0.folder.clone(), content)
}

/// Bytes that no compressor makes smaller.
fn noise(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}

#[test]
fn resting_memory_is_compressed_before_a_layer_goes_and_restored_as_it_was() {
    let store = Store::new();
    let (folder, content) = with_memory(&store, "boot", &b"kernel text ".repeat(150_000));
    let before = store.cache.usage().unwrap().bytes;
    let limits = Limits { bytes: before - 1, pack: true, cancel: &NEVER };
    // In use it stays as it is.
    let layer = find(&store.cache, None, "boot").unwrap();
    used_at(&layer, 1);
    let done = store.again().gc(&limits).unwrap();
    assert!(done.packed.is_empty() && done.removed.is_empty());
    assert_eq!(layer.memory_form(), Some(MemoryForm::Flat));
    drop(layer);
    let done = store.again().gc(&limits).unwrap();
    assert!(done.removed.is_empty(), "{done:?}");
    assert_eq!(done.packed.len(), 1);
    assert_eq!(done.before - done.after, done.packed[0].1);
    assert!(done.after < before / 3 * 2, "{done:?}");
    assert_eq!(names(&folder), ["layer.json", "memory.zst", "used"]);
    // Killed before the flat file was removed, a collection leaves it to the next one.
    fs::write(folder.join(MEMORY), "old").unwrap();
    store.again().gc(&Limits { bytes: u64::MAX, ..limits }).unwrap();
    assert_eq!(names(&folder), ["layer.json", "memory.zst", "used"]);
    let layer = find(&store.cache, None, "boot").unwrap();
    assert_eq!(layer.memory_form(), Some(MemoryForm::Packed));
    let memory = layer.open_memory(&store.cache, &NEVER).unwrap().unwrap();
    let mut restored = vec![0; content.len()];
    memory.read_exact_at(&mut restored, 0).unwrap();
    assert!(restored == content);
    let metadata = memory.metadata().unwrap();
    assert_eq!(metadata.len(), content.len() as u64);
    let taken = std::os::unix::fs::MetadataExt::blocks(&metadata) * 512;
    assert!(taken < 3 << 20, "the holes were filled: {taken}");
    assert!(names(&store.cache.tmp()).is_empty());
}

#[test]
fn memory_that_does_not_shrink_or_was_just_used_stays_flat() {
    let store = Store::new();
    let (folder, _) = with_memory(&store, "noise", &noise(1_800_000));
    assert_eq!(store.cache.pack(&folder, &NEVER).unwrap(), 0);
    assert!(folder.join(MEMORY).exists() && names(&store.cache.tmp()).is_empty());
    // It is not tried again.
    let stopped = AtomicBool::new(true);
    assert_eq!(store.cache.pack(&folder, &stopped).unwrap(), 0);
    let (folder, _) = with_memory(&store, "fresh", &[7; 1_800_000]);
    drop(find(&store.cache, None, "fresh").unwrap());
    let limits =
        Limits { bytes: store.cache.usage().unwrap().bytes - 1, pack: true, cancel: &NEVER };
    let done = store.cache.gc(&limits).unwrap();
    assert!(done.packed.is_empty(), "{done:?}");
    assert_eq!(titles(&done.removed), ["noise"]);
    assert!(folder.join(MEMORY).exists());
}

#[test]
fn flipped_bits_in_compressed_memory_are_noticed() {
    let store = Store::new();
    let (folder, _) = with_memory(&store, "boot", &b"kernel text ".repeat(150_000));
    assert!(store.cache.pack(&folder, &NEVER).unwrap() > 0);
    let layer = find(&store.cache, None, "boot").unwrap();
    let path = folder.join("memory.zst");
    let sound = fs::read(&path).unwrap();
    for at in (0..sound.len()).step_by(sound.len() / 40 + 1) {
        let mut flipped = sound.clone();
        flipped[at] ^= 0x10;
        fs::write(&path, flipped).unwrap();
        let result = layer.open_memory(&store.cache, &NEVER);
        assert!(matches!(result, Err(CacheError::Damaged { .. })), "byte {at}: {result:?}");
    }
    drop(layer);
    let missed = find(&store.cache, None, "boot").unwrap_err();
    assert!(matches!(missed, Miss::Damaged { .. }), "{missed:?}");
}

#[test]
fn removing_takes_the_descendants_and_spares_what_is_in_use() {
    let store = Store::new();
    family(&store, [1, 2, 3, 4]);
    let boot = find(&store.cache, None, "boot").unwrap();
    let id = find(&store.cache, Some(&boot), "one").unwrap().id();
    drop(boot);
    let user = store.again().layer(id, &NEVER).unwrap().0.unwrap();
    let id = store.cache.resolve(&id.short()).unwrap();
    assert!(matches!(store.cache.remove(id), Err(CacheError::InUse { .. })));
    assert_eq!(names(&store.cache.layers()).len(), 4);
    drop(user);
    assert_eq!(titles(&store.cache.remove(id).unwrap()), ["two", "one"]);
    assert!(matches!(store.cache.resolve(""), Err(CacheError::Ambiguous { .. })));
    assert!(matches!(store.cache.resolve("zz"), Err(CacheError::Unknown { .. })));
    let user = find(&store.cache, None, "boot").unwrap();
    store.cache.file_digest(&user.file(DISK).unwrap(), &NEVER).unwrap();
    assert_eq!(titles(&store.again().remove_all().unwrap()), ["three"]);
    assert!(names(&store.cache.root().join("digests")).is_empty());
}

#[test]
fn verifying_reads_every_byte() {
    let store = Store::new();
    family(&store, [1, 2, 3, 4]);
    let mut told = 0;
    let sound = store.cache.verify(&mut |_, _| told += 1, &NEVER).unwrap();
    assert_eq!((sound.sound, told, sound.discarded.len()), (4, 4, 0));
    assert!(sound.bytes > 4 * (8 << 20));
    // A bit that flips on the disk changes no time.
    let one = store.cache.list().unwrap().iter().find(|layer| layer.title == "one").unwrap().id;
    let layer = store.cache.layer(one, &NEVER).unwrap().0.unwrap();
    let path = layer.file(MEMORY).unwrap();
    drop(layer);
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(b"M", 3 << 20).unwrap();
    file.set_modified(modified).unwrap();
    let found = store.cache.verify(&mut |_, _| {}, &NEVER).unwrap();
    assert_eq!(found.sound, 2);
    let titles: Vec<_> = found.discarded.iter().filter_map(|one| one.title.clone()).collect();
    assert_eq!(titles, ["one", "two"]);
    assert!(found.discarded[0].why.contains("memory"));
}

#[test]
fn a_list_shows_each_layer_after_what_it_is_built_on() {
    let store = Store::new();
    family(&store, [1, 2, 3, 4]);
    let list = store.cache.list().unwrap();
    let titles: Vec<_> = list.iter().map(|layer| layer.title.as_str()).collect();
    assert_eq!(titles, ["boot", "one", "two", "three"]);
    assert_eq!(list[2].parent, Some(list[1].id));
    assert_eq!(list[0].memory, Some(MemoryForm::Flat));
    assert!(list.iter().all(|layer| !layer.in_use && layer.allocated > 0));
    let usage = store.cache.usage().unwrap();
    assert_eq!(usage.layers, 4);
    assert_eq!(usage.bytes, list.iter().map(|layer| layer.allocated).sum::<u64>());
    assert!(usage.memory > 0 && usage.memory < usage.bytes);
}

#[test]
fn collections_and_builds_at_once_never_hurt_each_other() {
    let store = Store::new();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let cache = store.again();
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                cache.gc(&NOT_PACKED).unwrap();
            }
        });
        let builders: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let cache = store.again();
                    for round in 0..15 {
                        let mut parent: Option<Layer> = None;
                        for name in ["boot", "one", "two"] {
                            let name = format!("{name} {}", round % 3);
                            let recipe = recipe(&name);
                            let wanted = lookup(parent.as_ref(), &recipe);
                            let (begun, discarded) = cache.begin(&wanted, &mut |_| {}).unwrap();
                            assert_eq!(discarded, []);
                            let layer = match begun {
                                Begun::Found(layer) => layer,
                                Begun::Build(building) => {
                                    fill(&building, &name);
                                    let published =
                                        building.publish(Meta::default(), parent.as_ref());
                                    published.unwrap().wait().unwrap()
                                }
                            };
                            let disk = fs::read_to_string(layer.file(DISK).unwrap()).unwrap();
                            assert_eq!(disk, format!("disk of {name}"));
                            parent = Some(layer);
                        }
                    }
                })
            })
            .collect();
        for builder in builders {
            builder.join().unwrap();
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}
