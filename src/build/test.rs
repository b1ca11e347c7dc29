//! The tests of a finished image: what of the profile a guest of it gets, and what it answers.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use kvmbake_provision::assertion::{Assertion, bootstrap_script};

use super::guest::Guest;
use super::plan::Plan;
use super::seed::Texts;
use crate::error::Error;
use crate::profile::net::{Forward, SERVE, Target};
use crate::profile::{Action, Profile, SeedKind, Test};

/// What came of a test.
#[derive(Debug)]
pub struct Verdict {
    /// Why it failed.
    pub reason: Option<String>,
    /// How long it took, in seconds.
    pub seconds: f64,
}

/// Makes `plan`, which is to boot a finished image, one for tests: the seed brings the login, and nothing of what the
/// image was built with; the script of a `vm_bootstrap` test is at its address.
pub fn for_test(plan: &mut Plan) {
    let profile = &mut plan.profile;
    let removed = profile.steps.iter().any(|step| match &step.action {
        Action::Sysprep(sysprep) => sysprep.user.as_deref() == Some(&profile.ssh.user),
        _ => false,
    });
    let seed = &mut profile.seed;
    // Ignition is over with the first boot of a disk, and plain files bring no key.
    if !matches!(seed.kind, SeedKind::ConfigDrive) {
        seed.kind = SeedKind::NoCloud;
    }
    (seed.hostname, seed.eth0_names) = (None, false);
    plan.seed = Texts::default();
    if removed {
        // Its name is one that passed the check of `sysprep`.
        let text = format!(
            "#cloud-config\nusers:\n  - default\n  - name: {}\n    sudo: ALL=(ALL) NOPASSWD:ALL\n    shell: /bin/sh\n",
            profile.ssh.user
        );
        plan.seed.user_data = Some(text.into_bytes());
    }
    // They are those of the build.
    (profile.net.log, profile.net.pcap) = (None, None);
    let fails = profile.tests.iter().find_map(|test| match test.assertion {
        Assertion::Bootstrap { fails } => Some((fails, test.place.clone())),
        _ => None,
    });
    if let Some((fails, place)) = fails {
        let forwards = &mut profile.net.forwards;
        forwards.retain(|forward| forward.at != SERVE);
        let content = vec![("/vm-bootstrap".to_owned(), bootstrap_script(fails))];
        forwards.push(Forward { at: SERVE, target: Target::Content(content), place });
    }
}

impl Guest {
    /// Asks the guest.
    ///
    /// # Errors
    /// It cannot be asked, or ended.
    pub async fn test(&mut self, test: &Test) -> Result<Verdict, Error> {
        let begun = Instant::now();
        self.connect().await?;
        let session = &self.provisioned()?.session;
        let asked = self.watch(test.assertion.ask(session, test.sudo, test.timeout)).await;
        let reason = asked.map_err(|ended| self.explain(&ended))?.map_err(|error| {
            self.failed(format!("`{}` could not be asked", test.title)).because(&error)
        })?;
        Ok(Verdict { reason, seconds: begun.elapsed().as_secs_f64() })
    }
}

/// Returns the image of the newest finished build of `profile` in `folder`: qcow2 or raw, if there is one, as these are
/// read most directly.
pub fn newest(profile: &Profile, folder: &Path) -> Option<(PathBuf, kvmbake_convert::Format)> {
    let prefix = format!("{}-", profile.image.name);
    let mut builds: Vec<(String, PathBuf)> = fs::read_dir(folder)
        .ok()?
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let stamp = entry.file_name().to_str()?.strip_prefix(&prefix)?.to_owned();
            let built = is_stamp(&stamp) && entry.path().join("manifest.json").is_file();
            built.then(|| (stamp, entry.path()))
        })
        .collect();
    builds.sort();
    let mut outputs: Vec<_> = profile.outputs.iter().collect();
    outputs.sort_by_key(|output| match output.format() {
        kvmbake_convert::Format::Qcow2 => 0,
        kvmbake_convert::Format::Raw if output.file.ends_with(".raw") => 1,
        _ => 2,
    });
    builds.into_iter().rev().find_map(|(_, build)| {
        let output = outputs.iter().find(|output| build.join(&output.file).is_file())?;
        Some((build.join(&output.file), output.format()))
    })
}

/// `YYYYmmdd-HHMMSS`, and perhaps a number behind.
fn is_stamp(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() >= 15
        && bytes[..15].iter().enumerate().all(|(at, byte)| match at {
            8 => *byte == b'-',
            _ => byte.is_ascii_digit(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::Cancel;
    use crate::profile::{Given, Source};
    use crate::report::{Notes, Report};
    use std::sync::Arc;

    /// A plan for tests of an image that is nothing but a size, of a profile with these lines.
    fn plan(lines: &str) -> Plan {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.toml");
        let text = format!(
            "[image]\nname = \"a\"\nsource = \"gone\"\nsize = \"8G\"\n[[output]]\nformat = \"raw\"\n{lines}"
        );
        fs::write(&path, text).unwrap();
        let find = |_: &Profile| {
            let disk = kvmbake_disk::MemoryBlock::zeroes(1 << 20);
            Ok((PathBuf::from("a.raw"), Arc::new(disk) as Arc<dyn kvmbake_disk::Block>))
        };
        let report: Arc<dyn Report> = Arc::new(Notes::default());
        let given = Given::default();
        let mut plan = Plan::load_for(&find, &path, &given, &report, &Cancel::default()).unwrap();
        for_test(&mut plan);
        plan
    }

    #[test]
    fn the_guest_of_a_test_gets_a_login_and_nothing_else_of_the_seed() {
        let seed = "[seed]\nkind = \"nocloud\"\nhostname = \"h\"\nuser_data = \"#!/bin/sh\\ntrue\"\n[net]\nlog = \"n\"\n";
        let plan = plan(seed);
        assert_eq!(plan.virtual_size, 1 << 20, "the image's own size, not the profile's");
        assert!(plan.seed.user_data.is_none() && plan.profile.seed.hostname.is_none());
        assert!(plan.profile.net.log.is_none() && plan.profile.net.forwards.is_empty());
    }

    #[test]
    fn a_removed_login_is_made_again_and_the_script_of_the_test_is_served() {
        let plan = plan(
            "[ssh]\nuser = \"build\"\n[net]\ndns = \"10.0.0.1\"\n\
             [[net.forward]]\nat = \"10.0.2.100:80\"\ncontent = \"mine\"\n\
             [[net.forward]]\nat = \"10.0.2.101:80\"\ncontent = \"other\"\n\
             [[step]]\nsysprep = { user = \"build\" }\n[[test]]\nbootstrap = { fails = 3 }\n",
        );
        let user_data = String::from_utf8(plan.seed.user_data.clone().unwrap()).unwrap();
        assert!(user_data.starts_with("#cloud-config\n") && user_data.contains("- name: build\n"));
        let forwards = &plan.profile.net.forwards;
        assert_eq!(forwards.len(), 2);
        let served = forwards.iter().find(|forward| forward.at == SERVE).unwrap();
        let Target::Content(texts) = &served.target else { panic!("{served:?}") };
        assert_eq!(texts[0].0, "/vm-bootstrap");
        assert!(texts[0].1.contains("-gt 3 ]"), "{}", texts[0].1);
    }

    #[test]
    fn the_newest_finished_build_of_this_very_image_is_tested() {
        let text = "[image]\nname = \"web\"\nsource = \"b\"\n[[output]]\nformat = \"vmdk\"\n\
                    [[output]]\nformat = \"raw\"\n";
        let profile = Profile::parse(Source::new("p.toml", text)).unwrap();
        let out = tempfile::tempdir().unwrap();
        assert!(newest(&profile, out.path()).is_none());
        for (build, files) in [
            ("web-20250101-000000", &["web.raw", "web.vmdk", "manifest.json"][..]),
            ("web-20260101-000000", &["web.vmdk", "manifest.json"]),
            ("web-20270101-000000", &["web.raw"]),
            ("web-db-20280101-000000", &["web.raw", "manifest.json"]),
            (".kvmbake-web-20290101-000000-7", &["web.raw", "manifest.json"]),
        ] {
            fs::create_dir(out.path().join(build)).unwrap();
            files.iter().for_each(|file| fs::write(out.path().join(build).join(file), "").unwrap());
        }
        let found = newest(&profile, out.path()).unwrap();
        assert_eq!(found.0, out.path().join("web-20260101-000000/web.vmdk"));
        fs::remove_dir_all(out.path().join("web-20260101-000000")).unwrap();
        let found = newest(&profile, out.path()).unwrap();
        assert_eq!(found.0, out.path().join("web-20250101-000000/web.raw"));
    }
}
