//! Many builds at once, and builds that are killed.

use super::*;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Set in a process that plays a build, to the store's folder.
const STORE: &str = "KVMBAKE_TEST_CACHE";

#[test]
fn of_two_builds_one_builds_and_the_other_waits_and_uses_it() {
    let store = Store::new();
    let built = AtomicUsize::new(0);
    let ids: Vec<LayerId> = std::thread::scope(|scope| {
        let build = || {
            let cache = store.again();
            let mut parent: Option<Layer> = None;
            for name in ["boot", "step 1", "step 2"] {
                let recipe = recipe(name);
                let wanted = lookup(parent.as_ref(), &recipe);
                parent = Some(match cache.begin(&wanted, &mut |_| {}).unwrap().0 {
                    Begun::Found(layer) => layer,
                    Begun::Build(building) => {
                        built.fetch_add(1, Ordering::SeqCst);
                        fill(&building, name);
                        building.publish(Meta::default(), parent.as_ref()).unwrap().wait().unwrap()
                    }
                });
            }
            parent.unwrap().id()
        };
        let threads: Vec<_> = (0..6).map(|_| scope.spawn(build)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(built.load(Ordering::SeqCst), 3);
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    assert!(names(&store.cache.tmp()).is_empty() && names(&store.cache.locks()).is_empty());
}

#[test]
fn the_child_can_begin_while_the_parent_is_published() {
    let store = Store::new();
    let (boot, step) = (recipe("boot"), recipe("step 1"));
    let building = begin(&store.cache, &lookup(None, &boot));
    fill(&building, "boot");
    // Stays readable through what was opened before, as the guest's disk does.
    let open = fs::File::open(building.path(DISK)).unwrap();
    let publishing = building.publish(Meta::default(), Parent::None).unwrap();
    let wanted = Lookup { parent: Some(publishing.id()), ..lookup(None, &step) };
    let child = begin(&store.cache, &wanted);
    fill(&child, "step 1");
    let parent = publishing.wait().unwrap();
    let child = child.publish(Meta::default(), Some(&parent)).unwrap().wait().unwrap();
    assert_eq!(child.parent().unwrap().id(), parent.id());
    assert_eq!(std::io::read_to_string(open).unwrap(), "disk of boot");
}

/// Starts this test again as a process of its own that plays a build in `store`.
fn play(test: &str, store: &Store) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("cache::tests::crowd::{test}"), "--nocapture"])
        .env(STORE, store.cache.root())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn a_killed_builds_key_and_folder_are_free_again() {
    let recipe = recipe("boot");
    if let Some(root) = std::env::var_os(STORE) {
        let cache = Cache::open_at(Path::new(&root)).unwrap();
        let building = begin(&cache, &lookup(None, &recipe));
        fill(&building, "boot");
        fs::write(building.path("ready"), "").unwrap();
        loop {
            std::thread::park();
        }
    }
    let store = Store::new();
    let mut child = play("a_killed_builds_key_and_folder_are_free_again", &store);
    let ready = |name: &String| store.cache.tmp().join(name).join("ready").exists();
    eventually(|| names(&store.cache.tmp()).iter().any(ready));
    // The living is left alone, and waited for.
    let cache = store.again();
    assert_eq!(names(&cache.tmp()).len(), 1);
    let told = std::sync::Mutex::new(None);
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            let mut waits = |pid| *told.lock().unwrap() = Some(pid);
            cache.begin(&lookup(None, &recipe), &mut waits).unwrap().0
        });
        eventually(|| told.lock().unwrap().is_some());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(matches!(waiter.join().unwrap(), Begun::Build(_)));
    });
    assert_eq!(*told.lock().unwrap(), Some(Some(child.id())));
    store.again();
    assert!(names(&store.cache.tmp()).is_empty() && names(&store.cache.locks()).is_empty());
}

/// A build that makes layers over and over, killed at one moment after another: what is found
/// afterwards is always whole.
#[test]
fn whenever_a_build_is_killed_the_store_is_whole() {
    if let Some(root) = std::env::var_os(STORE) {
        let cache = Cache::open_at(Path::new(&root)).unwrap();
        let mut parent = None;
        for number in 0.. {
            parent = Some(build(&cache, parent.as_ref(), &format!("layer {number}")));
        }
    }
    let store = Store::new();
    for round in 0..12u64 {
        let before = names(&store.cache.layers()).len();
        fs::remove_dir_all(store.cache.layers()).unwrap();
        let cache = store.again();
        assert!(round == 0 || before > 0);
        let mut child = play("whenever_a_build_is_killed_the_store_is_whole", &store);
        eventually(|| names(&cache.layers()).len() > 1);
        std::thread::sleep(Duration::from_micros(round * 1700));
        child.kill().unwrap();
        child.wait().unwrap();
        let cache = store.again();
        assert!(names(&cache.tmp()).is_empty() && names(&cache.locks()).is_empty());
        let stored = names(&cache.layers()).len();
        let mut parent: Option<Layer> = None;
        for number in 0..stored {
            let found = cache.find(&lookup(parent.as_ref(), &recipe(&format!("layer {number}"))));
            let found = found.unwrap();
            assert!(found.discarded.is_empty(), "{:?}", found.discarded);
            parent = Some(found.result.unwrap());
        }
    }
}
