//! OVA: a tar archive of an OVF 1.0 descriptor, a streamOptimized VMDK, and a manifest of their
//! SHA-256 (DMTF DSP0243, version 1.1, sections 5 to 8).
//!
//! Left out: certificates, localised strings, several machines or disks in one archive.

mod encode;
mod manifest;
mod options;
mod ovf;
mod read;
mod tar;

pub(crate) use encode::OvaEncoder;
pub(crate) use manifest::check;
pub use options::{ManifestSum, OvaOptions};
pub(crate) use read::{looks_like, open};
