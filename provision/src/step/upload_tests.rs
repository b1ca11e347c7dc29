//! Uploads to a real sshd.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use super::*;
use crate::session::sshd::{Server, Sshd, scripts};
use crate::step::Outcome;

/// An sshd whose guest is the folder `guest` below its own.
async fn guest(sshd: &Sshd) -> (Guest, Server) {
    let (session, server) = sshd.session().await;
    fs::create_dir_all(sshd.path("guest")).expect("folder");
    fs::create_dir_all(sshd.path("source")).expect("folder");
    (Guest { session, environment: Vec::new(), directory: PathBuf::new() }, server)
}

fn sshd() -> Sshd {
    Sshd::with("Subsystem sftp internal-sftp")
}

fn upload(sshd: &Sshd, source: &str, to: &str) -> Upload {
    Upload {
        folder: sshd.path("source"),
        source: source.into(),
        to: format!("{}{to}", sshd.path("guest").display()),
        mode: None,
        owner: None,
        privilege: Privilege::Login,
        render: None,
    }
}

async fn run(guest: &Guest, upload: Upload) -> Result<(), StepError> {
    let step = UploadStep { uploads: vec![upload] };
    step.check(&CheckContext::default())?;
    let result = step.run(guest, &mut ()).await?;
    assert!(matches!(result.outcome, Outcome::Finished(_)));
    Ok(())
}

fn names(folder: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<fs::DirEntry>| {
        entry.expect("entry").file_name().to_string_lossy().into_owned()
    };
    let mut names: Vec<String> = fs::read_dir(folder).expect("list").map(name).collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_tree_arrives_with_its_permissions_and_links() {
    let sshd = sshd();
    let (guest, _server) = guest(&sshd).await;
    let host = |name: &str| sshd.path("source").join(name);
    fs::create_dir_all(host("app/deep/closed")).expect("folders");
    let large: Vec<u8> = (0..3_000_017u32).map(|i| (i / 7) as u8).collect();
    fs::write(host("app/large"), &large).expect("write");
    fs::write(host("app/deep/closed/empty"), b"").expect("write");
    fs::write(host("app/run"), b"#!/bin/sh\n").expect("write");
    fs::set_permissions(host("app/run"), fs::Permissions::from_mode(0o751)).expect("mode");
    fs::set_permissions(host("app/deep/closed"), fs::Permissions::from_mode(0o511)).expect("mode");
    symlink("../nowhere", host("app/deep/link")).expect("link");
    let odd = std::ffi::OsStr::from_bytes(b"odd \xff'name");
    use std::os::unix::ffi::OsStrExt;
    fs::write(host("app").join(odd), b"odd").expect("write");
    run(&guest, upload(&sshd, "app", "/srv/new/")).await.expect("uploaded");
    let there = |name: &str| sshd.path("guest/srv/new/app").join(name);
    assert!(fs::read(there("large")).expect("large") == large);
    assert_eq!(fs::read(sshd.path("guest/srv/new/app").join(odd)).expect("odd"), b"odd");
    let mode = |path: &Path| fs::metadata(path).expect("there").mode() & 0o7777;
    assert_eq!(mode(&there("run")), 0o751);
    assert_eq!(mode(&there("deep/closed")), 0o511);
    assert_eq!(fs::read_link(there("deep/link")).expect("link"), Path::new("../nowhere"));
    assert_eq!(names(&there("")), ["deep", "large", "odd \u{fffd}'name", "run"]);
    fs::set_permissions(host("app/deep/closed"), fs::Permissions::from_mode(0o755)).expect("mode");
}

#[tokio::test]
async fn a_file_replaces_what_is_there_and_takes_mode_and_name() {
    let sshd = sshd();
    let (guest, _server) = guest(&sshd).await;
    fs::write(sshd.path("source/a"), b"new").expect("write");
    fs::write(sshd.path("guest/target"), b"old").expect("write");
    let before = fs::metadata(sshd.path("guest/target")).expect("there").ino();
    let mut one = upload(&sshd, "a", "/target");
    one.mode = Some(0o4700);
    run(&guest, one).await.expect("uploaded");
    let after = fs::metadata(sshd.path("guest/target")).expect("there");
    assert_eq!(fs::read(sshd.path("guest/target")).expect("file"), b"new");
    assert_eq!(after.mode() & 0o7777, 0o4700);
    assert_ne!(after.ino(), before, "renamed into place");
    // A link is replaced, and not written through.
    symlink("target", sshd.path("guest/link")).expect("link");
    run(&guest, upload(&sshd, "a", "/link")).await.expect("uploaded");
    assert!(fs::symlink_metadata(sshd.path("guest/link")).expect("there").is_file());
    assert_eq!(names(&sshd.path("guest")), ["link", "target"]);
}

#[tokio::test]
async fn failures_name_the_path_and_leave_no_unfinished_file() {
    let sshd = sshd();
    let (guest, _server) = guest(&sshd).await;
    fs::write(sshd.path("source/a"), b"new").expect("write");
    fs::create_dir_all(sshd.path("guest/folder")).expect("folder");
    fs::write(sshd.path("guest/folder/x"), b"").expect("write");
    let said = |error: StepError| crate::step::tests::chain(&error);
    let error = said(run(&guest, upload(&sshd, "a", "/folder")).await.expect_err("refused"));
    assert!(error.contains("it is a folder; a slash at the end"), "{error}");
    let error = said(run(&guest, upload(&sshd, "a", "/folder/x/y")).await.expect_err("refused"));
    assert!(error.contains("guest/folder/x in the guest"), "{error}");
    assert_eq!(names(&sshd.path("guest")), ["folder"]);
    let mut owned = upload(&sshd, "a", "/b");
    owned.owner = Some("nobody-knows".into());
    let error = said(run(&guest, owned).await.expect_err("refused"));
    assert!(error.contains("The guest has no user nobody-knows"), "{error}");
}

#[tokio::test]
async fn a_template_is_rendered_and_one_at_fault_is_found_before_the_boot() {
    let sshd = sshd();
    let (guest, _server) = guest(&sshd).await;
    fs::write(sshd.path("source/a"), b"port = @port@\n").expect("write");
    let mut one = upload(&sshd, "a", "/");
    one.render = Some(Arc::new(|text: &str| Ok(text.replace("@port@", "80"))));
    run(&guest, one.clone()).await.expect("uploaded");
    assert_eq!(fs::read(sshd.path("guest/a")).expect("file"), b"port = 80\n");
    one.render = Some(Arc::new(|_: &str| Err("line 1: no variable".into())));
    let step = UploadStep { uploads: vec![one.clone()] };
    let error = step.check(&CheckContext::default()).expect_err("refused").to_string();
    assert!(error.ends_with("source/a: line 1: no variable"), "{error}");
    fs::write(sshd.path("source/a"), b"\xff").expect("write");
    let error = step.check(&CheckContext::default()).expect_err("refused").to_string();
    assert!(error.contains("no UTF-8"), "{error}");
}

#[tokio::test]
async fn root_s_rights_come_by_sudo_and_owners_by_name() {
    let is_root = std::process::Command::new("id").arg("-u").output().expect("id");
    if is_root.stdout != b"0\n" {
        // Without root's rights there is nobody to give a file to.
        return;
    }
    // Before the real ones; it notes that it was asked, with what.
    let tools = scripts(&[(
        "sudo",
        "echo \"$1 $2 $3\" >>\"$0.log\"; while [ \"$1\" != -- ]; do shift; done; shift; exec \"$@\"",
    )]);
    let sshd = Sshd::with(&format!("SetEnv PATH={}:/usr/bin:/bin", tools.path().display()));
    let (mut guest, _server) = guest(&sshd).await;
    guest.session.set_user("debian");
    fs::write(sshd.path("source/a"), b"new").expect("write");
    let mut one = upload(&sshd, "a", "/a");
    (one.owner, one.mode) = (Some("daemon:mail".into()), Some(0o2755));
    one.privilege = Privilege::Root;
    run(&guest, one.clone()).await.expect("uploaded");
    let there = fs::metadata(sshd.path("guest/a")).expect("there");
    // Debian's base-passwd: daemon is user 1, mail is group 8.
    assert_eq!((there.uid(), there.gid(), there.mode() & 0o7777), (1, 8, 0o2755));
    one.owner = Some("12:34".into());
    run(&guest, one).await.expect("uploaded");
    let there = fs::metadata(sshd.path("guest/a")).expect("there");
    assert_eq!((there.uid(), there.gid()), (12, 34));
    let asked = fs::read_to_string(tools.path().join("sudo.log")).expect("sudo was asked");
    assert_eq!(asked, "-n -H --\n-n -H --\n");
}

#[tokio::test]
async fn a_server_without_the_subsystem_is_found_by_its_path() {
    let sshd = Sshd::new();
    let (guest, _server) = guest(&sshd).await;
    fs::write(sshd.path("source/a"), b"new").expect("write");
    run(&guest, upload(&sshd, "a", "/a")).await.expect("uploaded");
    assert_eq!(fs::read(sshd.path("guest/a")).expect("file"), b"new");
}

#[tokio::test]
async fn a_server_that_ends_or_talks_nonsense_is_an_error() {
    for (program, said) in [
        ("exit 3", "did not start: exit code 3"),
        ("echo welcome to this machine", "did not start: welcome"),
        ("printf '\\0\\0\\0\\5\\2\\0\\0\\0\\2'", "it speaks version 2"),
    ] {
        let tools = scripts(&[("server", program)]);
        let server = tools.path().join("server");
        let sshd = Sshd::with(&format!("Subsystem sftp {}", server.display()));
        let (guest, _server) = guest(&sshd).await;
        fs::write(sshd.path("source/a"), b"new").expect("write");
        let error = run(&guest, upload(&sshd, "a", "/a")).await.expect_err("refused");
        let error = crate::step::tests::chain(&error);
        assert!(error.contains(said), "{program}: {error}");
    }
}

#[tokio::test]
async fn thousands_of_small_files_go_ahead_of_their_answers() {
    let sshd = sshd();
    let (guest, _server) = guest(&sshd).await;
    let folder = sshd.path("source/many");
    for number in 0..2000 {
        let folder = folder.join((number / 100).to_string());
        fs::create_dir_all(&folder).expect("folder");
        fs::write(folder.join(number.to_string()), number.to_string()).expect("write");
    }
    let begun = std::time::Instant::now();
    run(&guest, upload(&sshd, "many/", "/many")).await.expect("uploaded");
    println!("2000 files in {:?}", begun.elapsed());
    let sum = (0..2000).filter(|number| {
        let path = sshd.path(&format!("guest/many/{}/{number}", number / 100));
        fs::read_to_string(path).is_ok_and(|text| text == number.to_string())
    });
    assert_eq!(sum.count(), 2000);
}

#[test]
fn parents_of_paths() {
    let parents =
        [("/a/b", Some("/a")), ("/a", Some("/")), ("/", None), ("a", None), ("a//b/", Some("a"))];
    for (path, above) in parents {
        assert_eq!(parent(path.as_bytes()), above.map(str::as_bytes), "{path}");
    }
}
