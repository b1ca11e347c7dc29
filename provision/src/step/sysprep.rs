//! The sysprep step: what makes the guest this one machine is taken out of it.
//!
//! A running guest writes on, and a reboot would make its identity anew, so the work has two parts. The step does what
//! takes long, and finds out whether the rest can be done. The seal does everything again, when nothing else runs: the
//! build's key is out by then, journald writes to memory, other log daemons have ended, and so have DHCP clients; then
//! the host keys go, the machine ID and the random seed, the logs last. A user is removed in the very shell that powers
//! the guest off, as the session may be that user's.
//!
//! systemd, "Safely Building Images"; machine-id(5), "First Boot Semantics"; cloud-init, `cloud-init clean`.

use super::ScriptStep;
use crate::seed::nocloud::is_user_name;

/// What can be taken out besides the machine ID and a user, by the names that profiles use.
pub const KINDS: [&str; 9] = [
    "ssh_host_keys",
    "logs",
    "dhcp_leases",
    "cloud_init",
    "history",
    "package_caches",
    "tmp",
    "random_seed",
    "persistent_net",
];

/// What becomes of `/etc/machine-id`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MachineId {
    /// Nothing.
    Kept,
    /// It is empty: the next boot makes an ID, and is no first boot to systemd, which would apply presets to units.
    #[default]
    Empty,
    /// It says `uninitialized`: the next boot makes an ID, and is a first boot.
    Uninitialized,
}

/// What is taken out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sysprep {
    /// The machine ID.
    pub machine_id: MachineId,
    /// Of [`KINDS`].
    pub kinds: Vec<&'static str>,
    /// A user to remove.
    pub user: Option<String>,
}

impl Default for Sysprep {
    fn default() -> Sysprep {
        Sysprep { machine_id: MachineId::Empty, kinds: KINDS.to_vec(), user: None }
    }
}

impl Sysprep {
    /// Returns what both take out together.
    pub fn and(mut self, other: &Sysprep) -> Sysprep {
        if other.machine_id != MachineId::Kept {
            self.machine_id = other.machine_id;
        }
        self.kinds = KINDS
            .into_iter()
            .filter(|kind| self.kinds.contains(kind) || other.kinds.contains(kind))
            .collect();
        self.user = other.user.clone().or(self.user);
        self
    }

    /// Returns what is done where the step stands.
    pub fn step(&self) -> ScriptStep {
        ScriptStep::as_root("sysprep", self.script("step"))
    }

    /// Returns the script of the seal.
    pub fn sealing_script(&self) -> String {
        self.script("seal")
    }

    fn script(&self, phase: &str) -> String {
        let (wanted, content) = match self.machine_id {
            MachineId::Kept => (None, ""),
            MachineId::Empty => (Some("machine_id"), ""),
            MachineId::Uninitialized => (Some("machine_id"), "uninitialized\n"),
        };
        let kinds: Vec<&str> = self.kinds.iter().copied().chain(wanted).collect();
        include_str!("sysprep.sh")
            .replace("@PHASE@", phase)
            .replace("@KINDS@", &kinds.join(" "))
            .replace("@MACHINE_ID@", content)
    }
}

/// Whether the name is that of a user that may be removed.
pub fn is_removable(user: &str) -> bool {
    is_user_name(user) && user != "root"
}

#[cfg(test)]
#[path = "sysprep_tests.rs"]
mod tests;
