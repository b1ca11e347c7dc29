//! A file system without room, in a mount namespace of its own.

use super::*;
use std::process::Command;

/// Set in the process that has the small file system, to where it is mounted.
const MOUNTED: &str = "KVMBAKE_TEST_SMALL";

fn on_a_small_file_system(test: &str) {
    let folder = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs -o size=1m,mode=700 none \"$KVMBAKE_TEST_SMALL\" && exec \"$@\"";
    let output = Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c", script, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", &format!("cache::tests::full_disk::{test}"), "--nocapture"])
        .env(MOUNTED, folder.path())
        .output()
        .expect("unshare is missing: install the Debian package util-linux");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "this needs user namespaces: {text}");
}

#[test]
fn a_full_disk_costs_the_layer_and_nothing_else() {
    let Some(mounted) = std::env::var_os(MOUNTED) else {
        return on_a_small_file_system("a_full_disk_costs_the_layer_and_nothing_else");
    };
    let cache = Cache::open_at(&Path::new(&mounted).join("cache")).unwrap();
    let boot = build(&cache, None, "boot");
    let recipe = recipe("step 1");
    let building = begin(&cache, &lookup(Some(&boot), &recipe));
    fs::write(building.path(MACHINE_STATE), "machine").unwrap();
    let written = fs::write(building.path(DISK), vec![1; 2 << 20]).unwrap_err();
    assert_eq!(written.raw_os_error(), Some(libc::ENOSPC));
    // Nothing is left for the record.
    let publishing = building.publish(Meta::default(), Some(&boot)).unwrap();
    let error = publishing.wait().unwrap_err();
    assert!(error.is_full(), "{error:?}");
    assert!(error.hint().unwrap().contains("kvmbake cache gc"));
    assert_eq!(names(&cache.layers()).len(), 1);
    assert!(names(&cache.tmp()).is_empty() && names(&cache.locks()).is_empty());
    assert_eq!(find(&cache, None, "boot").unwrap().id(), boot.id());
    build(&cache, Some(&boot), "step 1");
}
