//! How a running build is reached from outside: a Unix socket in a folder that its owner alone may
//! enter, and both ends of what is spoken over it.
//!
//! A build's [`Folder`] holds a lock, by which the living are told from the dead, `build.json`, and the
//! socket. A [`Server`] answers there for as long as the build lives; [`Found`] is how another process
//! sees the build, and asks it something. The build's side of the answers is [`Serve`].

mod client;
mod folder;
pub mod openssh;
mod peer;
mod protocol;
mod server;

pub use client::{Found, all, find};
pub use folder::Folder;
pub use protocol::{Console, Login, Refusal, Request, Status};
pub use server::{Serve, Server};
