//! Image formats: encoders that write a disk's content, and read-only views of what was written.
//!
//! [`export`] reads a disk once and writes any number of images side by side; each is re-read
//! through this crate's own readers and compared with the disk's [`DiskDigest`] before it is
//! reported. [`open`], [`probe`] and [`info`] read images that others made.
//!
//! Every format has a module with the layout of its headers, `encode.rs` and, where
//! `kvmbake_disk` does not read the format already, `read.rs`.
//!
//! Left out: compressed and multi-file formats, writing into an existing image.
#![forbid(unsafe_code)]

mod buffer;
mod check;
mod checksum;
mod chunk;
mod digest;
mod encode;
mod error;
mod export;
mod format;
mod image;
mod mapped;
mod output;
mod progress;
mod qcow2;
mod raw;
mod table;
mod vdi;
mod vhd;
mod vmdk;

pub use digest::{DiskDigest, digest};
pub use error::Error;
pub use export::{Artifact, Export, Options, Target, export, export_with};
pub use format::{Format, UnknownFormat};
pub use image::{ImageInfo, OpenOptions, info, open, probe};
pub use progress::{Progress, Silent, Stage};
