//! What is damaged is noticed, thrown away with all that is built on it, and told.

use super::*;
use std::fs::FileTimes;

/// Flips one bit in the middle of the file, and puts its time back when `hidden`.
fn flip(path: &Path, hidden: bool) {
    let modified = fs::metadata(path).unwrap().modified().unwrap();
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    fs::write(path, bytes).unwrap();
    let time = if hidden { modified } else { modified + Duration::from_secs(1) };
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_times(FileTimes::new().set_modified(time)).unwrap();
}

/// A store with boot → step 1 → step 2, nobody using them.
fn three() -> (Store, [PathBuf; 3]) {
    let store = Store::new();
    let boot = build(&store.cache, None, "boot");
    let one = build(&store.cache, Some(&boot), "step 1");
    let two = build(&store.cache, Some(&one), "step 2");
    let folders = [&boot, &one, &two].map(|layer| layer.0.folder.clone());
    drop((boot, one, two));
    (store, folders)
}

#[test]
fn a_changed_file_of_any_kind_is_thrown_away_with_its_descendants() {
    for name in [DISK, MEMORY, MEMORY_MAP, MACHINE_STATE, "layer.json"] {
        let (store, folders) = three();
        flip(&folders[1].join(name), false);
        let cache = store.again();
        let boot = find(&cache, None, "boot").unwrap();
        let found = cache.find(&lookup(Some(&boot), &recipe("step 1"))).unwrap();
        let why = found.discarded[0].why.clone();
        let file = if name == "layer.json" { "record" } else { name };
        assert!(why.contains(file), "{name}: {why}");
        assert!(matches!(found.result, Err(Miss::Damaged { .. })), "{:?}", found.result);
        assert_eq!(found.discarded.len(), 2, "{:?}", found.discarded);
        assert_eq!(found.discarded[1].title.as_deref(), Some("step 2"));
        assert!(folders[0].exists() && !folders[1].exists() && !folders[2].exists());
        assert!(names(&cache.tmp()).is_empty());
        build(&cache, Some(&boot), "step 1");
    }
}

#[test]
fn a_missing_or_short_file_is_noticed() {
    for name in [DISK, MEMORY, MEMORY_MAP, MACHINE_STATE, "layer.json"] {
        for shorten in [false, true] {
            let (store, folders) = three();
            let path = folders[2].join(name);
            if shorten {
                let file = fs::File::options().write(true).open(&path).unwrap();
                file.set_len(2).unwrap();
            } else {
                fs::remove_file(&path).unwrap();
            }
            let (boot, one) = {
                let boot = find(&store.cache, None, "boot").unwrap();
                let one = find(&store.cache, Some(&boot), "step 1").unwrap();
                (boot, one)
            };
            let missed = find(&store.cache, Some(&one), "step 2").unwrap_err();
            assert!(matches!(missed, Miss::Damaged { .. }), "{name}: {missed:?}");
            assert!(boot.0.folder.exists() && one.0.folder.exists() && !folders[2].exists());
        }
    }
}

#[test]
fn a_damaged_ancestor_takes_the_layer_with_it() {
    let (store, folders) = three();
    flip(&folders[0].join(DISK), false);
    let id = envelope::read::<layer::Record>(&folders[2].join("layer.json")).unwrap().unwrap().id;
    let (layer, discarded) = store.cache.layer(id, &NEVER).unwrap();
    assert!(layer.is_none());
    let titles: Vec<_> = discarded.iter().filter_map(|one| one.title.clone()).collect();
    assert_eq!(titles, ["boot", "step 1", "step 2"]);
    assert!(names(&store.cache.layers()).is_empty());
}

#[test]
fn a_touched_file_is_read_in_full_once() {
    let (store, folders) = three();
    let path = folders[0].join(MEMORY);
    let file = fs::File::options().write(true).open(&path).unwrap();
    let time = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 77);
    file.set_times(FileTimes::new().set_modified(time)).unwrap();
    assert!(find(&store.cache, None, "boot").is_ok());
    let record: layer::Record = envelope::read(&folders[0].join("layer.json")).unwrap().unwrap();
    let memory = record.files.iter().find(|file| file.name == MEMORY).unwrap();
    assert_eq!(memory.mtime_ns, 1_000_000_000_000_000_077);
    assert!(find(&store.cache, None, "boot").is_ok());
}

#[test]
fn a_damaged_layer_in_use_stays_until_its_user_has_gone() {
    let (store, folders) = three();
    let user = find(&store.cache, None, "boot").unwrap();
    flip(&folders[0].join(DISK), false);
    let other = store.again();
    assert!(matches!(find(&other, None, "boot"), Err(Miss::Damaged { .. })));
    assert!(folders[0].exists());
    assert_eq!(find(&other, None, "boot").unwrap_err(), Miss::Absent);
    drop(user);
    assert_eq!(find(&other, None, "boot").unwrap_err(), Miss::Absent);
    assert!(!folders[0].exists());
}

#[test]
fn a_record_in_anothers_folder_is_refused() {
    let (store, folders) = three();
    fs::copy(folders[1].join("layer.json"), folders[0].join("layer.json")).unwrap();
    assert!(matches!(find(&store.cache, None, "boot"), Err(Miss::Damaged { .. })));
}

#[test]
fn a_layer_that_its_user_finds_wrong_goes_with_what_is_built_on_it() {
    let (store, folders) = three();
    let boot = find(&store.cache, None, "boot").unwrap();
    let one = find(&store.cache, Some(&boot), "step 1").unwrap();
    let gone = store.cache.throw_away(one, "the machine's state is of no use").unwrap();
    assert_eq!(gone[0].to_string(), format!("layer {} (step 1): {}", gone[0].id, gone[0].why));
    assert_eq!(gone.len(), 2);
    assert!(folders[0].exists() && !folders[1].exists() && !folders[2].exists());
}
