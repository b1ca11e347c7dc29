//! `vm_bootstrap`: the agent of SlapOS images that runs a script from the network at the first boots.

use kvmbake_provision::step::bootstrap::{Bootstrap, DEFAULT_MAXIMUM};

use crate::profile::Context;
use crate::profile::reader::Reader;

/// The key of this action.
pub const KEY: &str = "vm_bootstrap";

impl Context<'_> {
    /// Reads `vm_bootstrap`: `true`, or a table.
    pub(super) fn bootstrap(&self, reader: &Reader<'_, '_>) -> Option<Bootstrap> {
        let value = reader.value(KEY)?;
        let Some(table) = reader.table_of(KEY, value) else {
            return reader.true_of(KEY).then_some(Bootstrap { maximum: DEFAULT_MAXIMUM });
        };
        let maximum = table.integer("max_retry", 1..=1_000_000);
        let maximum = maximum.and_then(|at| u32::try_from(at.value).ok());
        table.finish();
        Some(Bootstrap { maximum: maximum.unwrap_or(DEFAULT_MAXIMUM) })
    }
}
