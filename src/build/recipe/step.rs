//! The recipe of a step, by its action.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use kvmbake_provision::Privilege;
use kvmbake_provision::step::bootstrap::ARMING;
use kvmbake_provision::step::tree::{self, Entry, EntryKind};
use kvmbake_provision::step::trim::trim;
use kvmbake_provision::step::{CheckError, ScriptStep};

use super::{Fields, label, unreadable};
use crate::build::step::{ansible, transfer};
use crate::cache::{Cache, Field, Kind, Recipe};
use crate::error::Error;
use crate::profile::{
    Action, Ansible, AnsibleLocal, Download, HostCommand, OnError, Playbook, Run, Shell, Step,
    Upload,
};
use crate::secret::Secrets;

/// Returns the recipe of `step`.
///
/// # Errors
/// A file cannot be read, or the user stopped the command.
pub fn recipe(
    step: &Step,
    secrets: &Secrets,
    cache: &Cache,
    cancel: &AtomicBool,
) -> Result<Recipe, Error> {
    let mut fields = Fields::new(cache, secrets);
    match &step.action {
        Action::Shell(shell) => self::shell(&mut fields, shell)?,
        Action::Upload(uploads) => {
            for (index, one) in uploads.iter().enumerate() {
                upload(&mut fields, &format!("upload {}", index + 1), one, cancel)?;
            }
        }
        Action::Download(downloads) => download(&mut fields, downloads)?,
        Action::Host(host) => self::host(&mut fields, host, cancel)?,
        Action::Ansible(Ansible { playbook: play, python, env }) => {
            fields.text("runs", "on the host")?;
            playbook(&mut fields, play, cancel)?;
            fields.text("python", python.as_deref().unwrap_or_default())?;
            for (name, value) in env {
                fields.text(format!("env {name}"), value)?;
            }
        }
        Action::AnsibleLocal(AnsibleLocal { playbook: play }) => {
            fields.text("runs", "in the guest")?;
            playbook(&mut fields, play, cancel)?;
        }
        Action::Sysprep(sysprep) => {
            script(&mut fields, &sysprep.step())?;
            // The rest of it is done in the seal, whose layer stands on this one.
            fields.bytes("at the end", "sysprep.sh", 0, sysprep.sealing_script().as_bytes())?;
            fields.text("user", sysprep.user.as_deref().unwrap_or_default())?;
        }
        Action::Trim => script(&mut fields, &trim())?,
        Action::Wait(wait) => {
            fields.text("for", &format!("{:?}", wait.condition))?;
            fields.text("sudo", &wait.sudo.to_string())?;
        }
        Action::Bootstrap(bootstrap) => {
            script(&mut fields, &bootstrap.step())?;
            fields.bytes("at the end", "arm.sh", 0, ARMING.as_bytes())?;
        }
    }
    // What a step left that failed is no layer for a profile that would have ended there.
    if step.on_error == OnError::Ignore {
        fields.text("on_error", "ignore")?;
    }
    Ok(Recipe::new(Kind::Step, fields.list))
}

/// Of a script of ours, which holds its settings.
fn script(fields: &mut Fields<'_>, step: &ScriptStep) -> Result<(), Error> {
    fields.bytes("script", &format!("{}.sh", step.title), 0, step.script.as_bytes())
}

fn shell(fields: &mut Fields<'_>, shell: &Shell) -> Result<(), Error> {
    match &shell.run {
        Run::Inline(commands) => {
            for (index, command) in commands.iter().enumerate() {
                fields.text(format!("command {}", index + 1), command)?;
            }
        }
        Run::Scripts(paths) => {
            for (index, path) in paths.iter().enumerate() {
                let path = &path.value;
                let (mode, bytes) = fs::metadata(path)
                    .map(|metadata| metadata.permissions().mode() & 0o7777)
                    .and_then(|mode| Ok((mode, fs::read(path)?)))
                    .map_err(|error| {
                        Error::input(format!("Cannot read {}", path.display())).because(&error)
                    })?;
                let name = format!("script {}", index + 1);
                fields.bytes(name, &label(path), mode, &bytes)?;
            }
        }
    }
    for (name, value) in &shell.env {
        fields.text(format!("env {name}"), value)?;
    }
    let expect: Vec<String> = shell.expect.iter().map(ToString::to_string).collect();
    fields.text("sudo", &(shell.privilege == Privilege::Root).to_string())?;
    if let Privilege::User(user) = &shell.privilege {
        fields.text("user", user)?;
    }
    fields.text("workdir", shell.workdir.as_deref().unwrap_or_default())?;
    fields.text("shell", shell.interpreter.as_deref().unwrap_or_default())?;
    fields.text("expect", &expect.join(" "))?;
    Ok(())
}

fn upload(
    fields: &mut Fields<'_>,
    name: &str,
    upload: &Upload,
    cancel: &AtomicBool,
) -> Result<(), Error> {
    let one = transfer::one_upload(upload);
    for mut entry in one.entries().map_err(|error| failed(&error))? {
        let label = String::from_utf8_lossy(&entry.to).into_owned();
        let EntryKind::File { from, mode } = &mut entry.kind else {
            self::entry(fields, name, &entry, cancel)?;
            continue;
        };
        *mode = upload.mode.unwrap_or(*mode);
        match &one.render {
            Some(render) => {
                let text = one.rendered(from, render).map_err(|error| failed(&error))?;
                let name = format!("{name} {}", entry.to.escape_ascii());
                fields.bytes(name, &label, *mode, text.as_bytes())?;
            }
            None => self::entry(fields, name, &entry, cancel)?,
        }
    }
    fields.text(format!("{name} owner"), upload.owner.as_deref().unwrap_or_default())?;
    fields.text(format!("{name} sudo"), &upload.sudo.to_string())
}

/// What the guest is asked for. Where it goes is the host's business.
fn download(fields: &mut Fields<'_>, downloads: &[Download]) -> Result<(), Error> {
    for (index, download) in downloads.iter().enumerate() {
        let name = format!("download {}", index + 1);
        fields.text(name.clone(), &download.source)?;
        fields.text(format!("{name} sudo"), &download.sudo.to_string())?;
    }
    Ok(())
}

fn host(fields: &mut Fields<'_>, host: &HostCommand, cancel: &AtomicBool) -> Result<(), Error> {
    for (index, command) in host.commands.iter().enumerate() {
        fields.text(format!("host command {}", index + 1), command)?;
    }
    for (name, value) in &host.env {
        fields.text(format!("env {name}"), value)?;
    }
    for (index, input) in host.inputs.iter().enumerate() {
        let path = input.value.to_string_lossy();
        let listed = tree::entries(Path::new("/"), &path, "/").map_err(|error| failed(&error))?;
        for entry in listed {
            self::entry(fields, &format!("input {}", index + 1), &entry, cancel)?;
        }
    }
    Ok(())
}

fn playbook(
    fields: &mut Fields<'_>,
    playbook: &Playbook,
    cancel: &AtomicBool,
) -> Result<(), Error> {
    fields.text("playbook", &playbook.name())?;
    for source in ansible::present(playbook) {
        let to = format!("/{source}");
        let to = match to.rsplit_once('/') {
            Some((above, _)) => format!("{above}/"),
            None => to,
        };
        let listed = tree::entries(playbook.folder(), &source, &to);
        for entry in listed.map_err(|error| failed(&error))? {
            self::entry(fields, "input", &entry, cancel)?;
        }
    }
    if let Some(galaxy) = &playbook.galaxy {
        let from = galaxy.value.clone();
        let kind = EntryKind::File { from, mode: 0 };
        self::entry(fields, "galaxy", &Entry { to: Vec::new(), kind }, cancel)?;
    }
    for (name, value) in &playbook.extra_vars {
        fields.text(format!("extra_vars {name}"), value)?;
    }
    let lists = [
        ("extra_args", &playbook.extra_args),
        ("groups", &playbook.groups),
        ("bootstrap", &playbook.bootstrap),
    ];
    for (name, list) in lists {
        for (index, text) in list.iter().enumerate() {
            fields.text(format!("{name} {}", index + 1), text)?;
        }
    }
    fields.text("host_name", &playbook.host_name)?;
    fields.text("become", &playbook.r#become.to_string())
}

/// A file, folder or link by its path.
fn entry(
    fields: &mut Fields<'_>,
    name: &str,
    entry: &Entry,
    cancel: &AtomicBool,
) -> Result<(), Error> {
    // Names that are no text stay apart.
    let name = format!("{name} {}", entry.to.escape_ascii());
    match &entry.kind {
        EntryKind::Folder { mode } => fields.text(name, &format!("folder {mode:o}")),
        EntryKind::Link { target } => fields.text(name, &format!("link {}", target.escape_ascii())),
        EntryKind::File { from, mode } => {
            let digest = fields.cache.file_digest(from, cancel);
            let digest = digest.map_err(|error| unreadable(from, &error))?;
            fields.push(Field::file(name, label(from), *mode, digest));
            Ok(())
        }
    }
}

fn failed(error: &CheckError) -> Error {
    Error::input("Cannot read what a step needs").because(error)
}

#[cfg(test)]
#[path = "step_tests.rs"]
mod tests;
