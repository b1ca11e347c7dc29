//! The store as its users meet it: several opens of one folder stand for several processes, as
//! flock(2) locks belong to opens; what needs true processes starts this test binary again.

mod crowd;
mod damage;
mod eviction;
mod full_disk;
mod store;

use std::fs;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::*;

pub(super) static NEVER: AtomicBool = AtomicBool::new(false);

/// A store in a folder that goes with it.
pub(super) struct Store {
    _folder: tempfile::TempDir,
    pub cache: Cache,
}

impl Store {
    pub fn new() -> Store {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open_at(&folder.path().join("cache")).unwrap();
        Store { _folder: folder, cache }
    }

    /// What another process would open.
    pub fn again(&self) -> Cache {
        Cache::open_at(self.cache.root()).unwrap()
    }
}

pub(super) fn recipe(name: &str) -> Recipe {
    Recipe::new(Kind::Step, vec![Field::text("script", name)])
}

pub(super) fn lookup<'a>(parent: Option<&Layer>, recipe: &'a Recipe) -> Lookup<'a> {
    Lookup {
        parent: parent.map(Layer::id),
        recipe,
        max_age: None,
        served: &|_| None,
        cancel: &NEVER,
    }
}

pub(super) fn find(cache: &Cache, parent: Option<&Layer>, name: &str) -> Result<Layer, Miss> {
    cache.find(&lookup(parent, &recipe(name))).unwrap().result
}

#[track_caller]
pub(super) fn begin(cache: &Cache, lookup: &Lookup<'_>) -> Building {
    match cache.begin(lookup, &mut |_| panic!("nobody else builds")).unwrap().0 {
        Begun::Build(building) => building,
        Begun::Found(layer) => panic!("{layer:?} is there"),
    }
}

/// Builds a layer whose disk holds `name` and whose memory is sparse.
#[track_caller]
pub(super) fn build(cache: &Cache, parent: Option<&Layer>, name: &str) -> Layer {
    let recipe = recipe(name);
    let building = begin(cache, &lookup(parent, &recipe));
    fill(&building, name);
    let meta = Meta { title: name.into(), served: Vec::new() };
    building.publish(meta, parent).unwrap().wait().unwrap()
}

pub(super) fn fill(building: &Building, name: &str) {
    use std::os::unix::fs::FileExt;
    fs::write(building.path(DISK), format!("disk of {name}")).unwrap();
    let memory = fs::File::create(building.path(MEMORY)).unwrap();
    memory.set_len(8 << 20).unwrap();
    for at in [0, 3 << 20, (8 << 20) - 4096] {
        memory.write_all_at(&[b'm'; 4096], at).unwrap();
    }
    fs::write(building.path(MEMORY_MAP), "map").unwrap();
    fs::write(building.path(MACHINE_STATE), format!("machine of {name}")).unwrap();
}

/// Names in a folder, sorted.
pub(super) fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Waits for what another thread or process does.
#[track_caller]
pub(super) fn eventually(mut done: impl FnMut() -> bool) {
    for _ in 0..3000 {
        if done() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("it did not happen within 30 s");
}
