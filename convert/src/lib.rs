//! Image formats: encoders that write a disk's content, and read-only views of what was written.
//!
//! [`export`] reads a disk once and writes any number of images side by side; each is re-read
//! through this crate's own readers and compared with the disk's [`DiskDigest`] before it is
//! reported. [`open`], [`probe`] and [`info`] read images that others made.
//!
//! Every format has a folder: the layout of its headers, `options.rs` where a caller may choose,
//! `encode.rs` and, where `kvmbake_disk` does not read the format already, `read.rs`.
//!
//! Left out: writing into an existing image.
#![forbid(unsafe_code)]

mod buffer;
mod check;
mod checksum;
mod chunk;
mod compare;
mod compress;
mod deflate;
mod detail;
mod digest;
mod encode;
mod error;
mod export;
mod fingerprint;
mod format;
mod image;
mod join;
mod mapped;
mod measure;
mod options;
mod output;
mod ova;
mod patches;
mod pipeline;
mod progress;
mod qcow2;
mod raw;
mod sound;
mod table;
mod vdi;
mod vhd;
mod vhdx;
mod vmdk;

pub use compare::{Comparison, compare};
pub use detail::Detail;
pub use digest::{DiskDigest, digest};
pub use error::Error;
pub use export::{Artifact, Export, ExtentFile, Options, Target, export, export_with};
pub use format::{Format, UnknownFormat};
pub use image::{BackingInfo, ImageInfo, OpenOptions, files, info, open, open_noting, probe};
pub use measure::{Measure, check_fit, measure, measure_empty};
pub use options::{Encoding, OptionError};
pub use ova::{ManifestSum, OvaOptions};
pub use progress::{Progress, Silent, Stage};
pub use qcow2::{Compression, Qcow2Options};
pub use raw::{Packing, RawOptions, packing, unpack};
pub use sound::{Soundness, check_image};
pub use vdi::VdiOptions;
pub use vhd::{Subformat as VhdSubformat, VhdOptions};
pub use vhdx::VhdxOptions;
pub use vmdk::{Adapter, Subformat as VmdkSubformat, VmdkOptions};
