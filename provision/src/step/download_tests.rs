//! Downloads from a real sshd.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;
use crate::session::sshd::{Server, Sshd};
use crate::step::{Place, deliver};

async fn guest(sshd: &Sshd) -> (Guest, Server) {
    let (session, server) = sshd.session().await;
    fs::create_dir_all(sshd.path("guest/logs/deep")).expect("folder");
    (Guest { session, environment: Vec::new(), directory: PathBuf::new() }, server)
}

fn sshd() -> Sshd {
    Sshd::with("Subsystem sftp internal-sftp")
}

fn download(sshd: &Sshd, source: &str) -> Download {
    Download {
        source: format!("{}{source}", sshd.path("guest").display()),
        privilege: Privilege::Login,
        limit: 100 << 20,
    }
}

/// Downloads, and delivers into `out`.
async fn run(sshd: &Sshd, guest: &Guest, download: Download) -> Result<usize, StepError> {
    let pack = sshd.path("pack");
    let step = DownloadStep { downloads: vec![download], pack: pack.clone() };
    step.check(&CheckContext::default())?;
    step.run(guest, &mut ()).await?;
    let place = Place { path: sshd.path("out"), renamed: false };
    Ok(deliver(&File::open(pack).expect("pack"), &[Some(place)]).expect("delivered"))
}

#[tokio::test]
async fn a_tree_comes_with_what_may_come() {
    let sshd = sshd();
    let (guest, _server) = guest(&sshd).await;
    let there = |name: &str| sshd.path("guest/logs").join(name);
    let large: Vec<u8> = (0..2_500_001u32).map(|i| (i / 5) as u8).collect();
    fs::write(there("large"), &large).expect("write");
    fs::write(there("exact"), vec![7; PIECE * 2]).expect("write");
    fs::write(there("deep/empty"), b"").expect("write");
    fs::write(there("deep/small"), b"x").expect("write");
    fs::set_permissions(there("deep/small"), fs::Permissions::from_mode(0o755)).expect("mode");
    symlink("deep/small", there("inside")).expect("link");
    symlink("/etc/passwd", there("absolute")).expect("link");
    symlink("../../etc/passwd", there("outside")).expect("link");
    let made = std::process::Command::new("mkfifo").arg(there("pipe")).status().expect("mkfifo");
    assert!(made.success());
    // large, exact, empty, small, inside
    assert_eq!(run(&sshd, &guest, download(&sshd, "/logs")).await.expect("done"), 5);
    let out = sshd.path("out/logs");
    assert!(fs::read(out.join("large")).expect("large") == large);
    assert_eq!(fs::read(out.join("exact")).expect("exact"), vec![7; PIECE * 2]);
    assert_eq!(fs::read(out.join("deep/empty")).expect("empty"), b"");
    assert_eq!(fs::read(out.join("inside")).expect("through the link"), b"x");
    let mode = fs::metadata(out.join("deep/small")).expect("small").permissions().mode();
    assert_eq!(mode & 0o7777, 0o755);
    for absent in ["absolute", "outside", "pipe"] {
        assert!(out.join(absent).symlink_metadata().is_err(), "{absent}");
    }
}

#[tokio::test]
async fn slashes_and_patterns_are_those_of_uploads() {
    let sshd = sshd();
    let (guest, _server) = guest(&sshd).await;
    for name in ["a.log", "b.log", "c.txt", "deep/d.log"] {
        fs::write(sshd.path("guest/logs").join(name), name).expect("write");
    }
    assert_eq!(run(&sshd, &guest, download(&sshd, "/logs/")).await.expect("done"), 4);
    assert!(sshd.path("out/deep/d.log").exists());
    fs::remove_dir_all(sshd.path("out")).expect("remove");
    assert_eq!(run(&sshd, &guest, download(&sshd, "/l*/*.log")).await.expect("done"), 2);
    assert!(sshd.path("out/b.log").exists());
    let error = run(&sshd, &guest, download(&sshd, "/*.none")).await.expect_err("nothing");
    let error = crate::step::tests::chain(&error);
    assert!(error.contains("nothing matches"), "{error}");
    let error = run(&sshd, &guest, download(&sshd, "/none")).await.expect_err("nothing");
    let error = crate::step::tests::chain(&error);
    assert!(error.contains("there is no such file"), "{error}");
}

#[tokio::test]
async fn what_says_nothing_of_its_size_is_read_and_there_is_a_limit() {
    let sshd = sshd();
    let (guest, _server) = guest(&sshd).await;
    let source = |source: &str, limit| Download {
        source: source.into(),
        privilege: Privilege::Login,
        limit,
    };
    assert_eq!(run(&sshd, &guest, source("/proc/cpuinfo", 1 << 20)).await.expect("done"), 1);
    let expected = fs::read_to_string("/proc/cpuinfo").expect("cpuinfo");
    let got = fs::read_to_string(sshd.path("out/cpuinfo")).expect("cpuinfo");
    // The clock rates change all the time.
    let processors = |text: &str| text.matches("processor\t").count();
    assert_eq!(
        (processors(&got), got.lines().count()),
        (processors(&expected), expected.lines().count())
    );
    fs::write(sshd.path("guest/big"), vec![0; 100_001]).expect("write");
    let mut big = download(&sshd, "/big");
    big.limit = 100_001;
    assert_eq!(run(&sshd, &guest, big.clone()).await.expect("done"), 1);
    big.limit = 100_000;
    let error = run(&sshd, &guest, big).await.expect_err("too much");
    let error = crate::step::tests::chain(&error);
    assert!(error.contains("more than 100000 bytes"), "{error}");
}
