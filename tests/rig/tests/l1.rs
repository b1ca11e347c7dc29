//! The rig itself: what L1 promises to the tests that run in it.
//!
//! Run with `cargo test -p kvmbake-rig --test l1 -- --test-threads=1`; `make guest` does.

use std::time::{Duration, Instant};

use kvmbake_rig::Rig;

const MOMENT: Duration = Duration::from_secs(60);

#[test]
fn builder_may_use_kvm_and_nothing_else() {
    let rig = Rig::shared();
    let open = "python3 -c 'import fcntl, os; print(fcntl.ioctl(os.open(\"/dev/kvm\", os.O_RDWR), 0xAE00))'";
    assert_eq!(rig.command(open).run().unwrap().expect(0).stdout.trim(), "12");
    assert_eq!(rig.command("id -Gn").run().unwrap().expect(0).stdout.trim(), "builder kvm");
    assert_ne!(rig.command("unshare --user true").run().unwrap().status, 0);
    for program in ["qemu-img", "qemu-system-x86_64"] {
        assert_ne!(rig.command(format!("command -v {program}")).run().unwrap().status, 0);
        assert_ne!(
            rig.command(format!("/opt/peer/bin/{program} --version")).run().unwrap().status,
            0
        );
        rig.command(format!("/opt/peer/bin/{program} --version")).root().run().unwrap().expect(0);
    }
}

#[test]
fn the_base_images_are_sound_and_read_only() {
    let rig = Rig::shared();
    for name in ["light", "debian-12", "light-generic"] {
        let image = rig.base(&format!("{name}.qcow2"));
        rig.command(format!("/opt/peer/bin/qemu-img check {image}"))
            .root()
            .run()
            .unwrap()
            .expect(0);
        for part in ["vmlinuz", "initrd"] {
            rig.command(format!("test -s {}", rig.base(&format!("{name}.{part}"))))
                .run()
                .unwrap()
                .expect(0);
        }
    }
    assert_ne!(rig.command("touch /images/x").root().run().unwrap().status, 0);
}

#[test]
fn files_and_folders_go_in_and_come_back() {
    let rig = Rig::shared();
    let here = std::env::temp_dir().join(format!("kvmbake-rig-l1-{}", std::process::id()));
    std::fs::create_dir_all(&here).unwrap();
    let bytes: Vec<u8> = (0..3_000_000u32).map(|n| (n ^ (n >> 8)) as u8).collect();
    std::fs::write(here.join("in"), &bytes).unwrap();
    let folder = rig.folder("there and back").unwrap();
    rig.put(here.join("in"), &format!("{folder}/tree/it's in")).unwrap();
    rig.put_bytes("small", &format!("{folder}/tree/small")).unwrap();
    rig.command("chmod 600 tree/small; truncate -s 1G tree/sparse")
        .folder(&folder)
        .root()
        .run()
        .unwrap()
        .expect(0);
    rig.get(&format!("{folder}/tree"), here.join("out")).unwrap();
    assert!(std::fs::read(here.join("out/it's in")).unwrap() == bytes);
    assert_eq!(std::fs::read(here.join("out/small")).unwrap(), b"small");
    let sparse = std::fs::metadata(here.join("out/sparse")).unwrap();
    assert_eq!(sparse.len(), 1 << 30);
    assert!(std::os::unix::fs::MetadataExt::blocks(&sparse) < 2048);
    std::fs::remove_dir_all(here).unwrap();
}

#[test]
fn a_command_has_its_own_environment_folder_input_and_exit_code() {
    let rig = Rig::shared();
    let folder = rig.folder("command").unwrap();
    let command =
        rig.command("pwd; echo \"$GREETING\"; cat; echo error >&2; exit 7").folder(&folder);
    let output = command.env("GREETING", "it's me").stdin("input").run().unwrap().expect(7);
    assert_eq!(output.stdout, format!("{folder}\nit's me\ninput"));
    assert_eq!(output.stderr, "error\n");
}

#[test]
fn a_command_past_its_time_is_killed_with_all_it_started() {
    let rig = Rig::shared();
    let start = Instant::now();
    let output = rig
        .command("sleep 4242 & sleep 4242")
        .timeout(Duration::from_secs(2))
        .run()
        .unwrap()
        .expect(124);
    assert!(output.duration >= Duration::from_secs(2) && start.elapsed() < MOMENT);
    assert_eq!(
        rig.command("pgrep -x sleep -u builder | wc -l").run().unwrap().expect(0).stdout.trim(),
        "0"
    );
}

#[test]
fn a_running_command_can_be_followed_and_interrupted() {
    let rig = Rig::shared();
    let trap = "trap 'echo caught; exit 130' INT; echo ready; while :; do sleep 0.1; done";
    let mut process = rig.command(trap).spawn().unwrap();
    assert!(process.wait_for("ready", MOMENT));
    process.signal("INT").unwrap();
    assert!(process.wait(MOMENT).expect(130).stdout.contains("caught"));

    let mut process = rig.command(trap).pty().spawn().unwrap();
    assert!(process.wait_for("ready", MOMENT));
    process.type_keys("\x03").unwrap();
    assert!(process.wait(MOMENT).expect(130).stdout.contains("caught"));
}

#[test]
fn the_clock_is_the_hosts() {
    let seconds = Rig::shared().command("date +%s").run().unwrap().expect(0).stdout;
    let here =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!(seconds.trim().parse::<u64>().unwrap().abs_diff(here) < 60);
}
