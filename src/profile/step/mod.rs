//! `[[step]]`: what is done between the boot and the seal. A step has one key that says what it does,
//! its [`Action`]; each kind of action has a file of its own here.

mod ansible;
mod bootstrap;
mod breakpoint;
mod host;
mod on_error;
mod shell;
mod sysprep;
mod transfer;
mod wait;

use std::path::PathBuf;
use std::time::Duration;

use kvmbake_provision::step::bootstrap::Bootstrap;
use kvmbake_provision::step::sysprep::Sysprep;
use kvmbake_provision::step::tree;
use kvmbake_provision::step::wait::Wait;

pub use ansible::{Ansible, AnsibleLocal, Playbook};
pub use breakpoint::{Breakpoint, KEY as BREAKPOINT};
pub use host::HostCommand;
pub use on_error::OnError;
pub use shell::{Run, Shell};
pub use transfer::{Download, HostPath, Upload};

use super::reader::Reader;
use super::{Context, Named, Place};
use crate::report::shortened;
use crate::secret::Secrets;

/// One step.
#[derive(Debug)]
pub struct Step {
    /// The title a person sees.
    pub title: String,
    /// What to do.
    pub action: Action,
    /// Whether its layer may be kept and used again.
    pub cache: bool,
    /// How old its layer may be to be used again.
    pub max_age: Option<Duration>,
    /// What follows when it fails.
    pub on_error: OnError,
    /// Where the step stands.
    pub place: Place,
}

/// What a step does.
#[derive(Debug)]
pub enum Action {
    /// Runs commands or scripts in the guest.
    Shell(Shell),
    /// Puts files into the guest.
    Upload(Vec<Upload>),
    /// Takes files off the guest.
    Download(Vec<Download>),
    /// Runs commands on the host.
    Host(HostCommand),
    /// Runs a playbook on the host.
    Ansible(Ansible),
    /// Runs a playbook in the guest.
    AnsibleLocal(AnsibleLocal),
    /// Takes out what makes the guest this one machine.
    Sysprep(Sysprep),
    /// Gives unused space back.
    Trim,
    /// Waits for something in the guest.
    Wait(Wait),
    /// Installs the agent of the first boot.
    Bootstrap(Bootstrap),
}

/// Gives unused space of the guest's file systems back.
const TRIM: &str = "trim";

/// The keys of actions.
const ACTIONS: [&str; 10] = [
    shell::KEY,
    transfer::UPLOAD,
    transfer::DOWNLOAD,
    host::KEY,
    ansible::KEY,
    ansible::LOCAL_KEY,
    sysprep::KEY,
    TRIM,
    wait::KEY,
    bootstrap::KEY,
];

impl Context<'_> {
    /// Reads a step, and whether it is to be done; if not, by which key.
    pub(super) fn step(&self, reader: Reader<'_, '_>) -> Option<(Step, Result<(), &'static str>)> {
        let name = reader.string("name");
        let given = ACTIONS.into_iter().filter_map(|key| Some((key, reader.value(key)?.span())));
        let given: Vec<_> = given.collect();
        let action = match given.as_slice() {
            [] => {
                let known = ACTIONS.map(|key| format!("`{key}`")).join(", ");
                let hint = format!("Give it one of {known}");
                reader.fault_with_hint(&reader.span(), "The step does nothing", hint);
                None
            }
            [(key, _)] => self.action(key, &reader),
            [(first, _), (second, span), ..] => {
                let message = format!("A step does one thing, this one `{first}` and `{second}`");
                reader.fault_with_hint(span, message, "Make two steps of it");
                None
            }
        };
        let span = given.first().map_or_else(|| reader.span(), |(_, span)| span.clone());
        let place = self.source.place(&span);
        let cache = reader.bool("cache").unwrap_or(true);
        let max_age = reader.duration("max_age");
        if let (Some(max_age), false) = (&max_age, cache) {
            reader.fault(&max_age.span, "A step with `cache = false` has no `max_age`");
        }
        let on_error = on_error::read(&reader);
        let held = self.is_done(&reader);
        reader.finish();
        let action = action?;
        let title = name.map_or_else(|| action.title(self.secrets), |at| at.value);
        let title = self.secrets.redact(&title).into_owned();
        let max_age = max_age.map(|at| at.value);
        Some((Step { title, action, cache, max_age, on_error, place }, held))
    }

    /// Looks at `when`, `only` and `except`.
    fn is_done(&self, reader: &Reader<'_, '_>) -> Result<(), &'static str> {
        let held = reader.condition("when").unwrap_or(true);
        let only = self.images(reader, "only");
        let except = self.images(reader, "except");
        match (held, only, except) {
            (false, ..) => Err("when"),
            (_, Some(false), _) => Err("only"),
            (.., Some(true)) => Err("except"),
            _ => Ok(()),
        }
    }

    /// Reads a list of cells or images, and says whether this one is among them.
    fn images(&self, reader: &Reader<'_, '_>, key: &'static str) -> Option<bool> {
        let texts = reader.strings(key)?;
        for text in texts.iter().filter(|text| !self.matrix.knows(&text.value)) {
            let message = format!("`{key}` has `{}`, which no image here is", text.value);
            reader.fault_with_hint(&text.span, message, self.matrix.hint(&text.value));
        }
        Some(texts.iter().any(|text| self.variant.is_meant(&text.value)))
    }

    fn action(&self, key: &str, reader: &Reader<'_, '_>) -> Option<Action> {
        match key {
            shell::KEY => self.shell(reader).map(Action::Shell),
            transfer::UPLOAD => self.upload(reader).map(Action::Upload),
            transfer::DOWNLOAD => self.download(reader).map(Action::Download),
            host::KEY => self.host(reader).map(Action::Host),
            ansible::KEY => self.ansible(reader).map(Action::Ansible),
            ansible::LOCAL_KEY => self.ansible_local(reader).map(Action::AnsibleLocal),
            sysprep::KEY => self.sysprep(reader).map(Action::Sysprep),
            TRIM => reader.true_of(TRIM).then_some(Action::Trim),
            wait::KEY => self.wait(reader).map(Action::Wait),
            bootstrap::KEY => self.bootstrap(reader).map(Action::Bootstrap),
            _ => None,
        }
    }
}

impl Action {
    /// What to call the step when it has no name.
    fn title(&self, secrets: &Secrets) -> String {
        match self {
            Action::Shell(shell) => shell.title(secrets),
            Action::Upload(uploads) => {
                let sources = uploads.iter().map(|upload| upload.source.as_str());
                shortened(&format!("upload: {}", sources.collect::<Vec<_>>().join(", ")), 60)
            }
            Action::Download(downloads) => {
                let sources = downloads.iter().map(|download| download.source.as_str());
                shortened(&format!("download: {}", sources.collect::<Vec<_>>().join(", ")), 60)
            }
            Action::Host(host) => host.title(secrets),
            Action::Ansible(ansible) => format!("ansible: {}", ansible.playbook.name()),
            Action::AnsibleLocal(ansible) => format!("ansible_local: {}", ansible.playbook.name()),
            Action::Sysprep(sysprep) => sysprep.step().title,
            Action::Trim => TRIM.into(),
            Action::Wait(wait) => wait.step().title,
            Action::Bootstrap(bootstrap) => bootstrap.step().title,
        }
    }

    /// Returns the files on the host that it reads.
    pub fn files(&self) -> Vec<&Named<PathBuf>> {
        match self {
            Action::Shell(Shell { run: Run::Scripts(scripts), .. }) => scripts.iter().collect(),
            Action::Ansible(Ansible { playbook, .. })
            | Action::AnsibleLocal(AnsibleLocal { playbook }) => {
                std::iter::once(&playbook.file).chain(&playbook.galaxy).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Returns the folders on the host whose content it follows from, and files by patterns as the
    /// folder that they are looked for in.
    pub fn trees(&self) -> Vec<PathBuf> {
        match self {
            Action::Upload(uploads) => {
                let watched = |upload: &Upload| tree::watched(&upload.folder, &upload.source);
                uploads.iter().map(watched).collect()
            }
            Action::Host(host) => host.inputs.iter().map(|input| input.value.clone()).collect(),
            Action::Ansible(Ansible { playbook, .. })
            | Action::AnsibleLocal(AnsibleLocal { playbook }) => {
                let sources = playbook.sources().into_iter();
                sources.map(|(source, _)| tree::watched(playbook.folder(), &source)).collect()
            }
            _ => Vec::new(),
        }
    }
}

#[cfg(test)]
impl Step {
    /// Returns the shell step that a test expects.
    pub fn shell(&self) -> &Shell {
        match &self.action {
            Action::Shell(shell) => shell,
            other => panic!("{other:?} is no shell step"),
        }
    }
}

#[cfg(test)]
mod tests;
