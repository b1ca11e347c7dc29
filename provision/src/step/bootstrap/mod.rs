//! The `vm_bootstrap` step: the agent of SlapOS images, which at an image's first boots fetches a script from the
//! network's fixed address and runs it until it succeeds.
//!
//! The agent is installed where the step stands, and let loose by the seal: `start-bootstrap`, without which it does
//! nothing, appears when nothing boots this guest any more but its user.

use super::ScriptStep;

/// How often the script runs at most, unless a profile says otherwise.
pub const DEFAULT_MAXIMUM: u32 = 10;

/// Installs the agent; its script runs at most `maximum` times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bootstrap {
    /// How often the script may run.
    pub maximum: u32,
}

impl Bootstrap {
    /// Returns the step.
    pub fn step(self) -> ScriptStep {
        let script = include_str!("install.sh")
            .replace("@MAXIMUM@", &self.maximum.to_string())
            .replace("@AGENT@", include_str!("agent.sh").trim_end());
        ScriptStep::as_root("vm_bootstrap", script)
    }
}

/// The script of the seal.
pub const ARMING: &str = include_str!("arm.sh");

#[cfg(test)]
mod tests;
