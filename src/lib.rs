//! kvmbake: bake a VM image on `/dev/kvm` with one binary.
//!
//! This package is the command and the build pipeline. It knows the other crates and is known by
//! none of them: `vmm` is the machine, `net` its network, `disk` the block backends and file
//! systems, `provision` the guest as seen over SSH, `convert` the image encoders.
//!
//! - [`profile`]: `profile.toml`, read and validated with line and column
//! - [`build`]: base → overlay → seed → boot → steps → seal → artifacts
//! - [`cache`]: the layers of earlier builds, found by what made them
//! - [`import`]: profiles made of templates of other tools
//! - [`fetch`]: downloads over HTTP
//! - [`report`]: all that a person sees
//! - [`control`]: how a running build is reached from outside
//! - [`secret`]: what nobody may see
//! - [`terminal`]: a person in a guest
//! - [`command`]: one file a subcommand

pub mod build;
pub mod cache;
pub mod calendar;
pub mod checksum;
pub mod command;
pub mod control;
pub mod error;
pub mod fetch;
pub mod import;
pub mod profile;
mod random;
pub mod report;
pub mod secret;
mod sparse;
pub mod terminal;
