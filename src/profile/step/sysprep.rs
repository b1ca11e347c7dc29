//! `sysprep`: what makes the guest this one machine is taken out of it.

use kvmbake_provision::step::sysprep::{KINDS, MachineId, Sysprep, is_removable};

use crate::profile::Context;
use crate::profile::reader::Reader;

/// The key of this action.
pub const KEY: &str = "sysprep";

impl Context<'_> {
    /// Reads `sysprep`: `true`, or a table of switches.
    pub(super) fn sysprep(&self, reader: &Reader<'_, '_>) -> Option<Sysprep> {
        let value = reader.value(KEY)?;
        let Some(table) = reader.table_of(KEY, value) else {
            return reader.true_of(KEY).then(Sysprep::default);
        };
        let kinds = KINDS.into_iter().filter(|kind| table.bool(kind).unwrap_or(true)).collect();
        let user = table.string("user").and_then(|at| match is_removable(&at.value) {
            true => Some(at.value),
            false => {
                table.fault(&at.span, format!("`{}` is no user that can be removed", at.value));
                None
            }
        });
        let sysprep = Sysprep { machine_id: machine_id(&table), kinds, user };
        table.finish();
        Some(sysprep)
    }
}

/// A switch, or what the file is to say.
fn machine_id(table: &Reader<'_, '_>) -> MachineId {
    const NAME: &str = "machine_id";
    match table.value(NAME) {
        None => MachineId::default(),
        Some(value) if value.get_ref().as_bool().is_some() => match table.bool(NAME) {
            Some(false) => MachineId::Kept,
            _ => MachineId::Empty,
        },
        Some(_) => table
            .parsed(NAME, |text| match text {
                "empty" => Ok(MachineId::Empty),
                "uninitialized" => Ok(MachineId::Uninitialized),
                _ => {
                    Err(format!("`{text}` is neither true, false, \"empty\" nor \"uninitialized\""))
                }
            })
            .map_or(MachineId::Empty, |at| at.value),
    }
}
