//! The guest as seen over SSH, and what it is given at its first boot.
//!
//! A leaf: nothing here knows of virtual machines or of our network. A [`session::Session`] speaks over any byte stream,
//! a [`seed`] is the bytes of a disk, and [`http`] serves any stream that it is handed. Everything that a guest sends
//! is hostile: it is bounded, and it ends in an error value, never in a panic.
//!
//! Around a machine snapshot: [`sync`] before it, [`clock`] after it was restored; [`terminal`] is for people.
//!
//! The order of a build: [`key`] and [`seed`] before the boot, [`session`] and [`wait`] once sshd answers, [`step`]s in
//! their order, [`seal`] at the end.
#![forbid(unsafe_code)]

pub mod assertion;
pub mod clock;
pub mod command;
pub mod eth0;
pub mod glob;
pub mod http;
pub mod key;
pub mod output;
pub mod reseed;
pub mod seal;
pub mod seed;
pub mod session;
pub mod sftp;
pub mod step;
pub mod sync;
pub mod terminal;
pub mod wait;

pub use command::{Command, ExitStatus, Privilege, Program, shell_word};
pub use key::BuildKey;
pub use output::{Output, Stream};
pub use reseed::{Reseeded, reseed};
pub use session::{ConnectError, Login, Session, SessionError};
pub use sync::sync;
