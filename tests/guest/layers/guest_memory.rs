//! What of the guest's memory a layer holds, and layers without it.

use kvmbake::cache::Digest;
use kvmbake_rig::quote;

use super::five::{Five, LOG};

const MIB: u64 = 1 << 20;

/// Fills 200 MiB of memory with random bytes, frees it, and gives the balloon time to report it.
fn fill_and_free(with_balloon: bool) -> String {
    let modprobe = if with_balloon { "sudo modprobe virtio_balloon" } else { "true" };
    format!(
        r#"
[[step]]
name = "fill"
shell = {{ inline = ["{modprobe}", "head -c 1M /dev/urandom > /dev/shm/random", "for i in $(seq 200); do cat /dev/shm/random; done > /dev/shm/full", "stat -c %b /dev/shm/full", "rm /dev/shm/*", "sleep 5", "ls /sys/bus/virtio/drivers"] }}
"#
    )
}

/// What the memory file of the layer with this title takes on the disk.
fn memory_of(five: &Five, title: &str) -> u64 {
    let folder = five.layer_folder(title);
    let blocks = five.project.shell(&format!("stat -c %b {folder}/memory"));
    blocks.trim().parse::<u64>().unwrap() * 512
}

#[test]
#[ignore = "builds twice, minutes in the rig; `make guest-long` runs it"]
fn memory_that_the_guest_has_freed_is_not_in_the_layer() {
    let five = Five::new("balloon");
    // What it would be without the balloon; that the test measures what it means to.
    five.write_steps(&fill_and_free(false));
    five.run("--until 1");
    let without = memory_of(&five, "fill");
    five.kvmbake("cache rm --all");
    let five = Five::new("balloon-with");
    five.write_steps(&fill_and_free(true));
    let run = five.run("--until 1");
    assert!(run.printed().contains("virtio_balloon"), "{}", run.printed());
    let with = memory_of(&five, "fill");
    eprintln!("memory after 200 MiB freed: {} MiB, reported {} MiB", without / MIB, with / MIB);
    assert!(without > 190 * MIB, "{without}");
    // What else the guest has written since its boot, the module among it, is in there as well.
    assert!(with < 100 * MIB, "{with}");
}

#[test]
#[ignore = "boots twice, minutes in the rig; `make guest-long` runs it"]
fn without_memory_in_the_cache_the_disk_of_the_layer_below_is_booted() {
    let five = Five::new("disks");
    let profile = format!("{}{}\n[cache]\nmemory = false\n", super::five::HEAD, super::five::STEPS);
    five.write("p.toml", &profile);
    five.write("five.sh", "#!/bin/sh\necho fifth >> log\n");
    let run = five.run("--until 5");
    assert_eq!(run.planned(), "boot 1 2 3 4 | 5");
    assert_eq!(run.boots(), ["reading the kernel from the image"]);
    assert_eq!(run.steps(), [5]);
    let newest = five.layers().into_iter().max_by_key(|layer| layer["created"].as_u64()).unwrap();
    assert_eq!((&newest["title"], &newest["memory"]), (&"five".into(), &serde_json::Value::Null));
    assert_eq!(five.shell("5", "cat log"), LOG.replace("five", "fifth"));
    five.assert_sound();
}

#[test]
fn a_machine_that_cannot_go_on_is_booted_from_its_disk() {
    let five = Five::new("unusable");
    let folder = five.layer_folder("four");
    // A machine's state that the cache takes for whole, and the machine does not.
    let local = tempfile::tempdir().unwrap();
    let (state, record) = (local.path().join("state"), local.path().join("record"));
    five.project.rig.get(&format!("{folder}/machine.state"), &state).unwrap();
    five.project.rig.get(&format!("{folder}/layer.json"), &record).unwrap();
    let digest = |path| {
        let file = std::fs::File::open(path).unwrap();
        Digest::of_file(&file, &false.into()).unwrap().unwrap().0.to_string()
    };
    let mut bytes = std::fs::read(&state).unwrap();
    let was = digest(&state);
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&state, &bytes).unwrap();
    let text = std::fs::read_to_string(&record).unwrap();
    let body = text.split_once("\"content\":").unwrap().1.trim_end().strip_suffix('}').unwrap();
    assert_eq!(body.matches(&was).count(), 1, "{was} in {body}");
    let body = body.replace(&was, &digest(&state));
    let envelope = blake3::hash(body.as_bytes());
    let text = format!("{{\"blake3\":\"{envelope}\",\"content\":{body}}}\n");
    let files = quote(&folder);
    let time = five.project.shell(&format!("stat -c %.9Y {files}/machine.state"));
    five.project.rig.put_bytes(bytes, &format!("{folder}/machine.state")).unwrap();
    five.project.rig.put_bytes(text, &format!("{folder}/layer.json")).unwrap();
    five.project.shell(&format!("touch -d @{} {files}/machine.state", time.trim()));
    five.assert_sound();

    five.write("five.sh", "#!/bin/sh\necho fifth >> log\n");
    let run = five.run("--until 5");
    assert_eq!(run.planned(), "boot 1 2 3 4 | 5");
    assert!(run.notes().contains("cannot go on from its memory"), "{}", run.notes());
    assert!(run.notes().contains("booting its disk"), "{}", run.notes());
    assert_eq!(run.boots(), ["reading the kernel from the image"]);
    assert_eq!(five.shell("5", "cat log"), LOG.replace("five", "fifth"));
}
