//! `qemu-img convert`'s options that have no meaning of their own here, so that its command lines
//! work: those that ask for what is done anyway are taken, the others refused by name.

use crate::error::Error;
use crate::profile::units::parse_size;

const CACHE_MODES: [&str; 5] = ["none", "writeback", "writethrough", "directsync", "unsafe"];

/// The options, none of which is shown in the help.
#[derive(Debug, clap::Args)]
pub struct Habits {
    /// The count of coroutines; as many threads as there are processors run here
    #[arg(short = 'm', value_name = "COUNT", hide = true)]
    coroutines: Option<u32>,
    /// Out-of-order writes; here the order is the format's
    #[arg(short = 'W', hide = true)]
    unordered: bool,
    /// Copying by the host; done wherever both sides can share data
    #[arg(short = 'C', hide = true)]
    offload: bool,
    /// How the output is cached: the host's page cache is used, and synced where that is asked for
    #[arg(short = 't', value_name = "MODE", hide = true, value_parser = CACHE_MODES)]
    cache: Option<String>,
    /// How the input is cached: by the host's page cache
    #[arg(short = 'T', value_name = "MODE", hide = true, value_parser = CACHE_MODES)]
    input_cache: Option<String>,
    /// How many zeroes make a hole; the format's unit decides
    #[arg(short = 'S', value_name = "SIZE", hide = true, value_parser = parse_size)]
    sparse: Option<u64>,
    /// Writing into an image that exists
    #[arg(short = 'n', hide = true)]
    into_existing: bool,
    /// Another internal snapshot than the current state
    #[arg(short = 'l', value_name = "SNAPSHOT", hide = true)]
    snapshot: Option<String>,
    /// Copying of persistent bitmaps
    #[arg(long, hide = true)]
    bitmaps: bool,
}

impl Habits {
    /// Whether what is written must be on the disk at the end.
    pub fn wants_sync(&self) -> bool {
        matches!(self.cache.as_deref(), Some("writethrough" | "directsync"))
    }

    /// Refuses what would change the result.
    ///
    /// # Errors
    /// Wrong usage, with what to do instead.
    pub fn check(&self) -> Result<(), Error> {
        let (message, hint) = if self.bitmaps {
            (
                "Persistent bitmaps are not copied",
                "Leave --bitmaps out; kvmbake info lists the bitmaps of an image",
            )
        } else if self.snapshot.is_some() {
            (
                "Of internal snapshots only the current state is read",
                "`qemu-img snapshot -a` makes another one the current state",
            )
        } else if self.into_existing {
            ("Outputs are always new files, which replace what has their names", "Leave -n out")
        } else if self.sparse == Some(0) {
            (
                "Zeroes are never stored, so -S 0 cannot be met",
                "-O vdi -o static=on and the subformats `fixed` and `monolithicFlat` have room for all of the disk",
            )
        } else {
            return Ok(());
        };
        Err(Error::usage(message).hint(hint))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        habits: Habits,
    }

    #[test]
    fn cache_modes_that_promise_durability_sync() {
        for (mode, synced) in [("writethrough", true), ("directsync", true), ("none", false)] {
            let line = Line::parse_from(["convert", "-t", mode]);
            assert_eq!(line.habits.wants_sync(), synced, "{mode}");
        }
        assert!(!Line::parse_from(["convert", "-T", "directsync"]).habits.wants_sync());
    }
}
