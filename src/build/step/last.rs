//! What steps leave for the end: it would be undone by a reboot, or the build needs until then what it takes away.

use kvmbake_provision::seal::Last;
use kvmbake_provision::step::bootstrap::ARMING;
use kvmbake_provision::step::sysprep::Sysprep;

use crate::profile::{self, Action};

/// The end of a guest, as its steps want it.
#[derive(Debug, Default, PartialEq)]
pub struct Ending {
    /// What runs before the power-off, in order.
    pub scripts: Vec<Last>,
    /// The user who is removed.
    pub user: Option<String>,
}

impl Ending {
    /// Of these steps. Nothing writes after `sysprep`.
    pub fn of(steps: &[profile::Step]) -> Ending {
        let mut scripts = Vec::new();
        if steps.iter().any(|step| matches!(step.action, Action::Bootstrap(_))) {
            scripts.push(Last { what: "Starting vm_bootstrap", script: ARMING.into() });
        }
        let each = steps.iter().filter_map(|step| match &step.action {
            Action::Sysprep(sysprep) => Some(sysprep.clone()),
            _ => None,
        });
        let all = each.reduce(|all, one| all.and(&one));
        if let Some(sysprep) = &all {
            scripts.push(Last { what: "sysprep", script: sysprep.sealing_script() });
        }
        Ending { scripts, user: all.and_then(|Sysprep { user, .. }| user) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{Profile, Source};

    fn ending(steps: &str) -> Ending {
        let text = format!(
            "[image]\nname = \"a\"\nsource = \"b\"\n{steps}\n[[output]]\nformat = \"raw\"\n"
        );
        Ending::of(&Profile::parse(Source::new("p.toml", text)).unwrap().steps)
    }

    #[test]
    fn sysprep_comes_last_and_profiles_without_it_end_as_ever() {
        assert_eq!(ending("[[step]]\nshell = \"true\"\n[[step]]\ntrim = true"), Ending::default());
        let ending = ending(
            "[[step]]\nsysprep = { logs = false, user = \"build\" }\n[[step]]\nvm_bootstrap = true\n\
             [[step]]\nsysprep = { tmp = false, ssh_host_keys = false, machine_id = \"uninitialized\" }",
        );
        let what: Vec<&str> = ending.scripts.iter().map(|last| last.what).collect();
        assert_eq!(what, ["Starting vm_bootstrap", "sysprep"]);
        assert_eq!(ending.user.as_deref(), Some("build"));
        let script = &ending.scripts[1].script;
        assert!(
            script.contains("phase='seal'")
                && script.contains(" logs ")
                && script.contains(" tmp ")
        );
        assert!(script.contains("machine_id='uninitialized\n'"));
    }
}
