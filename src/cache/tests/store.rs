//! Building and finding.

use super::*;
use std::os::unix::fs::PermissionsExt;

#[test]
fn a_published_layer_is_found_with_all_it_is_built_on() {
    let store = Store::new();
    let boot = build(&store.cache, None, "boot");
    let step = build(&store.cache, Some(&boot), "step 1");
    let (boot_id, step_id) = (boot.id(), step.id());
    drop((boot, step));
    let cache = store.again();
    let boot = find(&cache, None, "boot").unwrap();
    assert_eq!(boot.id(), boot_id);
    let step = find(&cache, Some(&boot), "step 1").unwrap();
    assert_eq!(step.chain().iter().map(Layer::id).collect::<Vec<_>>(), [boot_id, step_id]);
    assert_eq!(fs::read_to_string(step.file(DISK).unwrap()).unwrap(), "disk of step 1");
    assert_eq!(step.title(), "step 1");
    assert_eq!(step.recipe(), &recipe("step 1"));
    assert_eq!(step.file("other"), None);
    assert_eq!(cache.layer(step_id, &NEVER).unwrap().0.unwrap().id(), step_id);
}

#[test]
fn another_recipe_or_another_parent_finds_nothing() {
    let store = Store::new();
    let boot = build(&store.cache, None, "boot");
    build(&store.cache, Some(&boot), "step 1");
    assert_eq!(find(&store.cache, Some(&boot), "step 2").unwrap_err(), Miss::Absent);
    assert_eq!(find(&store.cache, None, "step 1").unwrap_err(), Miss::Absent);
}

#[test]
fn nobody_else_can_read_a_layer() {
    let store = Store::new();
    let layer = build(&store.cache, None, "boot");
    for name in names(&layer.0.folder) {
        let mode = fs::metadata(layer.0.folder.join(&name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    let mut folders = vec![layer.0.folder.clone(), store.cache.root().to_path_buf()];
    folders.extend(names(store.cache.root()).iter().map(|name| store.cache.root().join(name)));
    for folder in folders {
        let mode = fs::metadata(&folder).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "{}", folder.display());
    }
}

#[test]
fn a_layer_made_again_is_another_layer_and_is_the_one_found() {
    let store = Store::new();
    let old = build(&store.cache, None, "boot");
    let child = build(&store.cache, Some(&old), "step 1");
    let recipe = recipe("boot");
    let anew = Lookup { max_age: Some(Duration::ZERO), ..lookup(None, &recipe) };
    let missed = store.cache.find(&anew).unwrap().result.unwrap_err();
    assert!(matches!(missed, Miss::Expired { .. }), "{missed:?}");
    // The times of two layers are told apart by the millisecond.
    eventually(|| store.cache.now() > old.created() + Duration::from_millis(2));
    let building = begin(&store.cache, &anew);
    fill(&building, "boot, again");
    let new = building.publish(Meta::default(), Parent::None).unwrap().wait().unwrap();
    assert_eq!(new.key(), old.key());
    assert_ne!(new.id(), old.id());
    assert_eq!(find(&store.cache, None, "boot").unwrap().id(), new.id());
    // The child is a delta on the old one's bytes, and fits no other.
    assert_eq!(find(&store.cache, Some(&new), "step 1").unwrap_err(), Miss::Absent);
    assert_eq!(find(&store.cache, Some(&old), "step 1").unwrap().id(), child.id());
}

#[test]
fn age_is_counted_from_the_making() {
    let store = Store::new();
    let layer = build(&store.cache, None, "boot");
    let recipe = recipe("boot");
    let day = Duration::from_secs(86400);
    let daily = Lookup { max_age: Some(day), ..lookup(None, &recipe) };
    assert_eq!(store.cache.find(&daily).unwrap().result.unwrap().id(), layer.id());
    let tomorrow =
        Cache { clock: || SystemTime::now() + Duration::from_secs(90000), ..store.again() };
    match tomorrow.find(&daily).unwrap().result {
        Err(Miss::Expired { age, max_age }) => {
            assert!(age >= Duration::from_secs(90000) && max_age == day, "{age:?}");
        }
        other => panic!("{other:?}"),
    }
    let yesterday =
        Cache { clock: || SystemTime::now() - Duration::from_secs(90000), ..store.again() };
    assert!(yesterday.find(&daily).unwrap().result.is_ok());
}

#[test]
fn what_the_guest_fetched_must_be_what_it_would_get() {
    let store = Store::new();
    let recipe = recipe("boot");
    let (one, two) = (Digest::of(b"one"), Digest::of(b"two"));
    let offers =
        |digest: Option<Digest>| move |path: &str| if path == "/a" { digest } else { None };
    let make = |served: &dyn Fn(&str) -> Option<Digest>, list: Vec<Served>| {
        let building = begin(&store.cache, &Lookup { served, ..lookup(None, &recipe) });
        fill(&building, "boot");
        let meta = Meta { title: "boot".into(), served: list };
        building.publish(meta, Parent::None).unwrap().wait().unwrap()
    };
    let fetched = |path: &str, digest| Served { path: path.into(), digest };
    let first = make(
        &offers(Some(one)),
        vec![fetched("/b", None), fetched("/a", Some(one)), fetched("/b", None)],
    );
    assert_eq!(first.served(), [fetched("/a", Some(one)), fetched("/b", None)]);
    let find = |served: &dyn Fn(&str) -> Option<Digest>| {
        store.cache.find(&Lookup { served, ..lookup(None, &recipe) }).unwrap().result
    };
    assert_eq!(find(&offers(Some(one))).unwrap().id(), first.id());
    let changed = Miss::Served { path: "/a".into(), was: Some(one), is: Some(two) };
    assert_eq!(find(&offers(Some(two))).unwrap_err(), changed);
    let appeared = Miss::Served { path: "/b".into(), was: None, is: Some(one) };
    assert_eq!(find(&|_| Some(one)).unwrap_err(), appeared);
    // A second variant of the same key stands beside the first.
    let second = make(&offers(Some(two)), vec![fetched("/a", Some(two))]);
    assert_eq!(second.key(), first.key());
    assert_eq!(find(&offers(Some(one))).unwrap().id(), first.id());
    assert_eq!(find(&offers(Some(two))).unwrap().id(), second.id());
}

#[test]
fn a_served_file_that_changed_on_the_way_makes_no_layer() {
    let store = Store::new();
    let recipe = recipe("boot");
    let building = begin(&store.cache, &lookup(None, &recipe));
    let fetched = |text: &[u8]| Served { path: "/a".into(), digest: Some(Digest::of(text)) };
    let meta = Meta { title: "boot".into(), served: vec![fetched(b"one"), fetched(b"two")] };
    let error = building.publish(meta, Parent::None).unwrap_err();
    assert!(matches!(&error, CacheError::Unsteady { path } if path == "/a"), "{error:?}");
    assert!(names(&store.cache.tmp()).is_empty() && names(&store.cache.locks()).is_empty());
}

#[test]
fn a_dropped_building_leaves_nothing() {
    let store = Store::new();
    let recipe = recipe("boot");
    let building = begin(&store.cache, &lookup(None, &recipe));
    fill(&building, "boot");
    assert_eq!(names(&store.cache.tmp()).len(), 1);
    drop(building);
    let building = begin(&store.cache, &lookup(None, &recipe));
    fill(&building, "boot");
    drop(building.publish(Meta::default(), Parent::None).unwrap());
    assert!(names(&store.cache.tmp()).is_empty() && names(&store.cache.locks()).is_empty());
}

#[test]
fn a_layer_goes_on_its_own_parent_only_and_holds_plain_files_only() {
    let store = Store::new();
    let boot = build(&store.cache, None, "boot");
    let other = build(&store.cache, None, "other");
    let recipe = recipe("step 1");
    let building = begin(&store.cache, &lookup(Some(&boot), &recipe));
    let error = building.publish(Meta::default(), Some(&other)).unwrap_err();
    assert!(matches!(error, CacheError::Parent { .. }), "{error:?}");
    let building = begin(&store.cache, &lookup(Some(&boot), &recipe));
    std::os::unix::fs::symlink("/etc/hostname", building.path(DISK)).unwrap();
    let published = building.publish(Meta::default(), Some(&boot)).unwrap();
    let error = published.wait().unwrap_err();
    assert!(matches!(error, CacheError::Foreign { .. }), "{error:?}");
    assert_eq!(names(&store.cache.layers()).len(), 2);
}

#[test]
fn secrets_are_told_apart_and_not_told() {
    let store = Store::new();
    let one = store.cache.secret("env TOKEN", b"hunter2").unwrap();
    assert_eq!(one, store.again().secret("env TOKEN", b"hunter2").unwrap());
    assert_ne!(one, store.cache.secret("env TOKEN", b"hunter3").unwrap());
    let elsewhere = store.cache.secret("env OTHER", b"hunter2").unwrap();
    assert_ne!(one.value, elsewhere.value);
    assert_ne!(one, Store::new().cache.secret("env TOKEN", b"hunter2").unwrap());
}

#[test]
fn the_ssh_key_stays_the_same() {
    let store = Store::new();
    let key = store.cache.ssh_key().unwrap();
    assert_eq!(key.public_openssh(), store.again().ssh_key().unwrap().public_openssh());
    let path = store.cache.root().join("ssh/id_ed25519");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    fs::write(&path, "nonsense").unwrap();
    assert!(matches!(store.cache.ssh_key(), Err(CacheError::Key { .. })));
}

#[test]
fn layers_are_published_one_behind_the_other_without_waiting_in_between() {
    let store = Store::new();
    let titles = ["boot", "one", "two", "three"];
    let mut parent = Parent::None;
    for title in titles {
        let recipe = recipe(title);
        let lookup = Lookup { parent: parent.id(), ..lookup(None, &recipe) };
        let building = begin(&store.cache, &lookup);
        fill(&building, title);
        let meta = Meta { title: title.into(), served: Vec::new() };
        parent = Parent::Pending(building.publish(meta, parent).unwrap());
    }
    let Parent::Pending(last) = parent else { panic!("nothing was published") };
    let layer = last.wait().unwrap();
    let chain = layer.chain();
    assert_eq!(chain.iter().map(Layer::title).collect::<Vec<_>>(), titles);
}
