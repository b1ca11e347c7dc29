//! `[[test]]`: what `kvmbake test` asks of a finished image.

use std::time::Duration;

use kvmbake_provision::assertion::Assertion;

use super::lan::Lan;
use super::net::{SERVE, address_in_network};
use super::reader::Reader;
use super::{Context, Place};

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);
/// A served script that fails longer than this is no test any more.
const MAXIMUM_FAILURES: i64 = 100;
/// The keys of which a test has one.
const KINDS: [&str; 6] = ["shell", "file", "absent", "port", "service", "bootstrap"];

/// One test.
#[derive(Debug)]
pub struct Test {
    /// What it is called.
    pub title: String,
    /// What shall hold.
    pub assertion: Assertion,
    /// Whether root asks.
    pub sudo: bool,
    /// How long it may take to hold.
    pub timeout: Duration,
    /// Where it stands.
    pub place: Place,
}

impl Context<'_> {
    /// Reads a test; `None` for one that is left out.
    pub(super) fn test(&self, reader: Reader<'_, '_>, lan: &Lan) -> Option<Test> {
        let name = reader.string("name");
        let given: Vec<_> = KINDS.into_iter().filter_map(|key| reader.value(key)).collect();
        let place = given.first().map_or_else(|| reader.span(), |value| value.span());
        let place = self.source.place(&place);
        if given.len() != 1 {
            let known = KINDS.map(|key| format!("`{key}`")).join(", ");
            reader.fault(&reader.span(), format!("A test needs exactly one of {known}"));
        }
        if let Some(bootstrap) = reader.value("bootstrap")
            && let Err(why) = address_in_network(&SERVE.to_string(), lan)
        {
            let message = format!("The script of `bootstrap` cannot be at {SERVE}: {why}");
            let hint =
                "`vm_bootstrap` asks at this address alone; choose another `network` in [net]";
            reader.fault_with_hint(&bootstrap.span(), message, hint);
        }
        let assertion = assertion(&reader);
        let sudo = reader.bool("sudo").unwrap_or(false);
        let timeout = reader.duration("timeout").map_or(DEFAULT_TIMEOUT, |at| at.value);
        let held = reader.condition("when").unwrap_or(true);
        reader.finish();
        let assertion = assertion.filter(|_| held)?;
        let title = name.map_or_else(|| assertion.name(), |at| at.value);
        let title = self.secrets.redact(&title).into_owned();
        Some(Test { title, assertion, sudo, timeout, place })
    }
}

fn assertion(reader: &Reader<'_, '_>) -> Option<Assertion> {
    if reader.value("shell").is_some() {
        let expect = reader.integers("expect", 0..=255);
        let expect =
            expect.map_or_else(|| vec![0], |codes| codes.iter().map(|c| *c as i32).collect());
        let contains = reader.string("contains").map(|at| at.value);
        let command = reader.string("shell")?.value;
        return Some(Assertion::Shell { command, expect, contains });
    }
    if reader.value("file").is_some() {
        let mode = reader.parsed("mode", |text| {
            let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777);
            mode.ok_or_else(|| format!("`{text}` is no mode; write for example \"0644\""))
        });
        let contains = reader.string("contains").map(|at| at.value);
        let path = reader.string("file")?.value;
        return Some(Assertion::File { path, mode: mode.map(|at| at.value), contains });
    }
    if let Some(path) = reader.string("absent") {
        return Some(Assertion::Absent(path.value));
    }
    if let Some(port) = reader.integer("port", 1..=65535) {
        return u16::try_from(port.value).ok().map(Assertion::Port);
    }
    if let Some(service) = reader.string("service") {
        return Some(Assertion::Service(service.value));
    }
    let table = reader.table("bootstrap")?;
    let fails = table.integer("fails", 0..=MAXIMUM_FAILURES);
    if table.value("fails").is_none() {
        table.fault(&table.span(), "`bootstrap` needs `fails`, how often the script fails");
    }
    table.finish();
    Some(Assertion::Bootstrap { fails: u32::try_from(fails?.value).ok()? })
}
