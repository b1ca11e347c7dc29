//! GRUB 2: enough of its shell to find what its menu's default entry would load.
//!
//! Follows the GNU GRUB manual 2.12, chapter 6 (the scripting language) and 16 (commands), with
//! `blscfg` of Fedora's GRUB. Files are taken as hostile: steps, depth, sizes and the number of
//! entries are bounded.
//!
//! Left out: loading anything but Linux, `regexp`, other disks than the image itself, LVM, RAID
//! and encrypted devices, networks. Commands that only concern the screen do nothing.

mod commands;
mod environment;
mod expression;
mod interpreter;
mod menu;
mod script;

pub use environment::read_block;
pub use interpreter::Interpreter;
pub use menu::{MenuEntry, Outcome};

/// The largest configuration file that is read.
pub const MAX_FILE: u64 = 4 << 20;

/// What stops a script.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScriptError {
    /// The text is no GRUB script.
    #[error("{file}, line {line}: {reason}")]
    Syntax {
        /// The file.
        file: String,
        /// The line, from 1.
        line: usize,
        /// What is wrong there.
        reason: String,
    },
    /// It runs too long, too deep, or makes too much.
    #[error("{0}")]
    Limit(String),
}

#[cfg(test)]
mod tests;
