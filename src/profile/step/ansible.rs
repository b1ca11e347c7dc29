//! `ansible` and `ansible_local`: a playbook, run by the host's `ansible-playbook` or by the guest's.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::profile::reader::Reader;
use crate::profile::{Context, Named, folder_of};

/// The key of playbooks that the host runs.
pub const KEY: &str = "ansible";
/// The key of playbooks that the guest runs.
pub const LOCAL_KEY: &str = "ansible_local";

const DEFAULT_NAME: &str = "guest";

/// What Ansible looks for beside a playbook, and patterns of files that playbooks refer to.
const BESIDE: [&str; 20] = [
    "roles",
    "collections",
    "group_vars",
    "host_vars",
    "library",
    "module_utils",
    "action_plugins",
    "filter_plugins",
    "lookup_plugins",
    "callback_plugins",
    "files",
    "templates",
    "tasks",
    "handlers",
    "vars",
    "defaults",
    "*.yml",
    "*.yaml",
    "*.j2",
    "ansible.cfg",
];

/// A playbook and how it is run.
#[derive(Debug, Clone)]
pub struct Playbook {
    /// The file.
    pub file: Named<PathBuf>,
    /// What the step follows from besides it: paths or patterns below its folder. None is what Ansible
    /// looks for there.
    pub inputs: Option<Vec<String>>,
    /// Arguments for `ansible-playbook`.
    pub extra_args: Vec<String>,
    /// Variables for it.
    pub extra_vars: Vec<(String, String)>,
    /// The groups that the guest is in.
    pub groups: Vec<String>,
    /// What the inventory calls the guest.
    pub host_name: String,
    /// Requirements of roles and collections, relative to the playbook's folder.
    pub galaxy: Option<Named<PathBuf>>,
    /// Whether tasks are done as root.
    pub r#become: bool,
    /// Commands that are run in the guest before, with root's rights.
    pub bootstrap: Vec<String>,
    /// How long it may take.
    pub timeout: Option<Duration>,
}

/// A playbook that the host runs.
#[derive(Debug)]
pub struct Ansible {
    /// The playbook.
    pub playbook: Playbook,
    /// The guest's Python.
    pub python: Option<String>,
    /// Environment, in order.
    pub env: Vec<(String, String)>,
}

/// A playbook that the guest runs.
#[derive(Debug)]
pub struct AnsibleLocal {
    /// The playbook.
    pub playbook: Playbook,
}

impl Context<'_> {
    /// Reads `ansible`.
    pub(super) fn ansible(&self, reader: &Reader<'_, '_>) -> Option<Ansible> {
        let table = self.playbook_table(KEY, reader)?;
        let playbook = self.playbook(&table);
        let python = table.string("python").map(|at| at.value);
        let env = self.env(&table);
        table.finish();
        Some(Ansible { playbook: playbook?, python, env })
    }

    /// Reads `ansible_local`.
    pub(super) fn ansible_local(&self, reader: &Reader<'_, '_>) -> Option<AnsibleLocal> {
        let table = self.playbook_table(LOCAL_KEY, reader)?;
        let playbook = self.playbook(&table);
        table.finish();
        Some(AnsibleLocal { playbook: playbook? })
    }

    fn playbook_table<'t, 's>(
        &self,
        key: &'static str,
        reader: &Reader<'t, 's>,
    ) -> Option<Reader<'t, 's>> {
        let value = reader.value(key)?;
        let table = reader.table_of(key, value);
        if table.is_none() {
            let message = format!("`{key}` must be a table such as {{ playbook = \"site.yml\" }}");
            reader.fault(&value.span(), message);
        }
        table
    }

    fn playbook(&self, table: &Reader<'_, '_>) -> Option<Playbook> {
        let texts = |key| {
            let texts = table.strings(key).map(|texts| texts.into_iter().map(|at| at.value));
            texts.map(Iterator::collect::<Vec<String>>)
        };
        let file = table.required_string("playbook").map(|at| self.path(at));
        let groups = table.strings("groups").unwrap_or_default();
        let host_name = table.string("host_name");
        for name in groups.iter().chain(&host_name) {
            let plain = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
            if name.value.is_empty() || !name.value.chars().all(plain) {
                let message = format!("`{}` is no name in an inventory", name.value);
                table.fault(&name.span, message);
            }
        }
        let vars = table.string_map("extra_vars").into_iter();
        let extra_vars = vars.map(|(name, at)| (name, at.value)).collect();
        let playbook = Playbook {
            inputs: texts("inputs"),
            extra_args: texts("extra_args").unwrap_or_default(),
            extra_vars,
            groups: groups.into_iter().map(|at| at.value).collect(),
            host_name: host_name.map_or_else(|| DEFAULT_NAME.into(), |at| at.value),
            galaxy: table.string("galaxy").map(|at| self.path(at)),
            r#become: table.bool("become").unwrap_or(false),
            bootstrap: texts("bootstrap").unwrap_or_default(),
            timeout: table.duration("timeout").map(|at| at.value),
            file: file?,
        };
        Some(playbook)
    }
}

impl Playbook {
    /// Returns the folder that the playbook lies in.
    pub fn folder(&self) -> &Path {
        folder_of(&self.file.value)
    }

    /// Returns its file name.
    pub fn name(&self) -> String {
        self.file.value.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Returns paths and patterns of what it follows from, relative to its folder, and whether each
    /// must be there.
    pub fn sources(&self) -> Vec<(String, bool)> {
        let own = (self.name(), true);
        match &self.inputs {
            Some(inputs) => {
                std::iter::once(own).chain(inputs.iter().map(|one| (one.clone(), true))).collect()
            }
            None => {
                std::iter::once(own).chain(BESIDE.map(|name| (name.to_string(), false))).collect()
            }
        }
    }
}
