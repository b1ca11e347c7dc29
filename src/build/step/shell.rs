//! The `shell` action.

use kvmbake_provision::step::{ShellSource, ShellStep};

use crate::profile::{Run, Shell};

/// Returns the step as `provision` runs it.
pub fn step(shell: &Shell) -> ShellStep {
    let source = match &shell.run {
        Run::Inline(commands) => ShellSource::Inline(commands.clone()),
        Run::Scripts(paths) => {
            ShellSource::Scripts(paths.iter().map(|path| path.value.clone()).collect())
        }
    };
    ShellStep {
        env: shell.env.clone(),
        privilege: shell.privilege.clone(),
        workdir: shell.workdir.clone(),
        shell: shell
            .interpreter
            .as_ref()
            .map(|words| words.split_whitespace().map(str::to_string).collect()),
        expect: shell.expect.clone(),
        timeout: shell.timeout,
        retries: shell.retries,
        retry_delay: shell.retry_delay,
        // Any step may reboot the guest; whether it did, the machine tells.
        may_reboot: true,
        ..ShellStep::new(source)
    }
}
