//! `host`: commands to run on the host while the guest runs.

use std::path::PathBuf;
use std::time::Duration;

use crate::profile::reader::Reader;
use crate::profile::{Context, Named};
use crate::report::shortened;
use crate::secret::Secrets;

/// The key of this action.
pub const KEY: &str = "host";

/// Commands on the host.
#[derive(Debug, Clone)]
pub struct HostCommand {
    /// The commands, in one shell.
    pub commands: Vec<String>,
    /// Environment, in order.
    pub env: Vec<(String, String)>,
    /// The folder to run in.
    pub workdir: PathBuf,
    /// How long it may take.
    pub timeout: Option<Duration>,
    /// The files and folders that it follows from, besides its text.
    pub inputs: Vec<Named<PathBuf>>,
}

impl Context<'_> {
    /// Reads `host`: a command, a list of commands, or a table.
    pub(super) fn host(&self, reader: &Reader<'_, '_>) -> Option<HostCommand> {
        let value = reader.value(KEY)?;
        let of = |commands: Vec<_>| HostCommand {
            commands,
            env: Vec::new(),
            workdir: self.source.folder_at(&value.span()).to_path_buf(),
            timeout: None,
            inputs: Vec::new(),
        };
        let Some(table) = reader.table_of(KEY, value) else {
            let commands = reader.strings_of(KEY, value)?;
            let commands: Vec<String> = commands.into_iter().map(|at| at.value).collect();
            self.some_command(reader, &commands);
            return Some(of(commands));
        };
        let commands = table.strings("inline").unwrap_or_default();
        let commands: Vec<String> = commands.into_iter().map(|at| at.value).collect();
        self.some_command(&table, &commands);
        let mut host = of(commands);
        host.env = self.env(&table);
        host.timeout = table.duration("timeout").map(|at| at.value);
        if let Some(workdir) = table.string("workdir") {
            host.workdir = self.path(workdir).value;
        }
        let inputs = table.strings("inputs").unwrap_or_default();
        host.inputs = inputs.into_iter().map(|at| self.path(at)).collect();
        table.finish();
        Some(host)
    }

    fn some_command(&self, reader: &Reader<'_, '_>, commands: &[String]) {
        if commands.iter().all(|command| command.trim().is_empty()) {
            reader.fault(&reader.span(), "There is no command to run");
        }
    }
}

impl HostCommand {
    /// What to call the step when it has no name.
    pub fn title(&self, secrets: &Secrets) -> String {
        let first = self.commands.iter().find(|command| !command.trim().is_empty());
        let first = first.map_or("", |command| command.trim().lines().next().unwrap_or(""));
        format!("host: {}", shortened(&secrets.redact(first), 60))
    }
}
