//! `wait`: nothing goes on until something holds in the guest.

use std::time::Duration;

use kvmbake_provision::step::wait::{Condition, Wait};

use crate::profile::Context;
use crate::profile::reader::Reader;

/// The key of this action.
pub const KEY: &str = "wait";
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(300);
const DEFAULT_INTERVAL: Duration = Duration::from_secs(1);

impl Context<'_> {
    /// Reads the table of `wait`.
    pub(super) fn wait(&self, reader: &Reader<'_, '_>) -> Option<Wait> {
        let table = reader.table(KEY)?;
        let port = table.integer("port", 1..=65535);
        let port = port.and_then(|at| u16::try_from(at.value).ok()).map(Condition::Port);
        let file = table.string("file").map(|at| Condition::File(at.value));
        let command = table.string("command").map(|at| Condition::Command(at.value));
        let given =
            ["port", "file", "command"].into_iter().filter(|key| table.value(key).is_some());
        if given.count() != 1 {
            let message = "`wait` needs exactly one of `port`, `file` and `command`";
            table.fault(&table.span(), message);
        }
        let condition = port.or(file).or(command);
        let timeout = table.duration("timeout").map_or(DEFAULT_TIMEOUT, |at| at.value);
        let interval = table.duration("interval").map_or(DEFAULT_INTERVAL, |at| at.value);
        let sudo = table.bool("sudo").unwrap_or(false);
        table.finish();
        Some(Wait { condition: condition?, timeout, interval, sudo })
    }
}
