//! What a guest that went on from memory can tell of it: its clock, its randomness, its connections,
//! its address, its processes.

use std::time::Duration;

use super::five::Five;

/// Leaves processes, files in memory, a connection to the host's loopback and what identifies the boot.
const KEEP: &str = r#"
[[step]]
name = "keep"
shell = { shell = "/bin/bash", inline = ['''
set -e
setsid sleep 100000 > /dev/null 2>&1 < /dev/null &
echo $! > /dev/shm/pid
cp /proc/sys/kernel/random/boot_id /dev/shm/boot_id
{ ip -o -4 address show; ip route show; } > /dev/shm/address
setsid bash -c '
    exec 3<>/dev/tcp/10.0.2.2/7007
    echo opened > /dev/shm/flow
    cat <&3 > /dev/null 2> /dev/shm/flow-error
    echo "ended with $?" >> /dev/shm/flow' > /dev/null 2>&1 < /dev/null &
for i in $(seq 100); do grep -qs opened /dev/shm/flow && break; sleep 0.1; done
cat /dev/shm/flow
'''] }
"#;

/// Seconds and nanoseconds since 1970.
const NOW: &str = "date +%s.%N";

#[test]
fn a_guest_that_goes_on_has_the_time_its_address_and_its_processes_and_no_old_connections() {
    let five = Five::new("resumed");
    five.write_steps(KEEP);
    let listener = five.project.rig.command("exec nc -lk 127.0.0.1 7007").spawn().unwrap();
    let run = five.run("--until 1");
    assert_eq!(run.planned(), "boot | 1");
    assert_eq!(run.printed(), "opened\n", "the connection was open");
    drop(listener);
    std::thread::sleep(Duration::from_secs(20));

    let shell = "/tmp/kvmbake shell p.toml --at 1 --";
    let output = five.project.rig.command(format!("{NOW}; {shell} {NOW}; {NOW}"));
    let output = output.folder(&five.project.folder).env("KVMBAKE_CACHE", &five.cache);
    let output = output.run().unwrap().expect(0);
    assert!(output.stderr.contains("going on from memory"), "{}", output.stderr);
    let times: Vec<f64> = output.stdout.lines().map(|line| line.parse().unwrap()).collect();
    let [before, guest, after] = times[..] else { panic!("{times:?}") };
    eprintln!("clock: host {before:.2}, guest {guest:.2}, host {after:.2}");
    assert!(guest > before - 2.0 && guest < after + 2.0, "{times:?}");

    let told = five.shell(
        "1",
        "cmp /proc/sys/kernel/random/boot_id /dev/shm/boot_id && echo same boot; \
         test \"$(cat /proc/$(cat /dev/shm/pid)/comm)\" = sleep && echo same process; \
         { ip -o -4 address show; ip route show; } | diff - /dev/shm/address && echo same address; \
         busybox wget -q -O - http://10.0.2.100/data.txt; \
         for i in $(seq 50); do grep -q ended /dev/shm/flow && break; sleep 0.1; done; \
         cat /dev/shm/flow /dev/shm/flow-error",
    );
    let expected = "same boot\nsame process\nsame address\nfour\nopened\nended with 1\n";
    assert!(told.starts_with(expected), "{told}");
    assert!(told.contains("onnection reset"), "not merely closed: {told}");
}

#[test]
fn two_guests_that_go_on_from_one_layer_draw_different_random_numbers() {
    let five = Five::new("random");
    let kernel = five.shell("1", "grep -s CONFIG_VMGENID= /boot/config-$(uname -r) || true");
    let draw = "head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \\n'; echo; sudo dmesg";
    let (one, other) = (five.shell("1", draw), five.shell("1", draw));
    let (one, other) = (one.split_once('\n').unwrap(), other.split_once('\n').unwrap());
    assert_eq!(one.0.len(), 64, "{}", one.0);
    assert_ne!(one.0, other.0, "two machines that began alike drew the same");
    eprintln!("vmgenid in this kernel: {kernel:?}");
    if kernel.contains('y') {
        assert!(one.1.contains("crng reseeded due to virtual machine fork"), "{}", one.1);
    }
}
