//! Bits that flip on the host's disk: found, said, thrown away, made anew.

use super::five::{Five, LOG};

/// Flips a byte in the middle of the data of a file.
fn flip(five: &Five, path: &str) {
    five.project.judge(&format!(
        "python3 - {path} <<'END'\n\
         import os, sys\n\
         file = os.open(sys.argv[1], os.O_RDWR)\n\
         at = os.lseek(file, os.fstat(file).st_size // 2, os.SEEK_DATA)\n\
         byte = os.pread(file, 1, at)[0] ^ 0x10\n\
         os.pwrite(file, bytes([byte]), at)\n\
         END"
    ));
}

#[test]
#[ignore = "builds anew, minutes in the rig; `make guest-long` runs it"]
fn a_flipped_bit_in_a_disk_is_found_said_and_made_good() {
    let five = Five::new("flip-disk");
    flip(&five, &format!("{}/disk.qcow2", five.layer_folder("five")));
    let run = five.run("--until 5");
    assert_eq!(run.planned(), "boot 1 2 3 4 | 5");
    assert!(run.notes().contains("thrown away:"), "{}", run.notes());
    assert!(run.notes().contains("disk.qcow2"), "{}", run.notes());
    assert_eq!(five.shell("5", "cat log"), LOG);
    five.assert_sound();
}

#[test]
#[ignore = "builds anew, minutes in the rig; `make guest-long` runs it"]
fn a_flipped_bit_in_memory_takes_what_is_built_on_it_along() {
    let five = Five::new("flip-memory");
    flip(&five, &format!("{}/memory", five.layer_folder("three")));
    let plan = five.plan();
    assert_eq!(plan.planned(), "boot 1 2 | 3 4 5 sealed");
    assert!(plan.text.contains("thrown away"), "{}", plan.text);
    let run = five.run("--until 5");
    assert_eq!(run.steps(), [3, 4, 5]);
    assert_eq!(five.shell("5", "cat log"), LOG);
    five.assert_sound();
}
