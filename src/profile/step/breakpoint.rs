//! `breakpoint`: a place between two steps where the build stops for a person. It is no step: it has no layer and no
//! number, and changes nothing of the layers around it.

use crate::profile::reader::Reader;
use crate::profile::{Context, Place};

/// The key that makes a `[[step]]` a breakpoint.
pub const KEY: &str = "breakpoint";

/// Where to stop.
#[derive(Debug, Clone)]
pub struct Breakpoint {
    /// How many steps come before it.
    pub after: usize,
    /// What to tell whoever is there.
    pub message: Option<String>,
    /// Where it stands.
    pub place: Place,
}

impl Context<'_> {
    /// Reads a breakpoint behind so many steps; `None` for one that is switched off.
    pub(in crate::profile) fn breakpoint(
        &self,
        reader: Reader<'_, '_>,
        after: usize,
    ) -> Option<Breakpoint> {
        let value = reader.value(KEY)?;
        let place = self.source.place(&value.span());
        let message = match value.get_ref().as_bool() {
            Some(_) => None,
            None => reader.string(KEY).map(|at| self.secrets.redact(&at.value).into_owned()),
        };
        let wanted = value.get_ref().as_bool().unwrap_or(true);
        let held = reader.condition("when").unwrap_or(true);
        reader.finish();
        (wanted && held).then_some(Breakpoint { after, message, place })
    }
}
