//! What a caller may choose about an image, typed, and the `key=value` form in which a person
//! writes it. The keys and their values are `qemu-img convert -o`'s where it has them.

use std::fmt;
use std::str::FromStr;

use crate::format::Format;
use crate::ova::OvaOptions;
use crate::qcow2::Qcow2Options;
use crate::raw::{Packing, RawOptions};
use crate::vdi::VdiOptions;
use crate::vhd::VhdOptions;
use crate::vhdx::VhdxOptions;
use crate::vmdk::VmdkOptions;

/// A format together with how to write it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Encoding {
    /// qcow2.
    Qcow2(Qcow2Options),
    /// Raw.
    Raw(RawOptions),
    /// VDI.
    Vdi(VdiOptions),
    /// VHD.
    Vhd(VhdOptions),
    /// VHDX.
    Vhdx(VhdxOptions),
    /// VMDK.
    Vmdk(VmdkOptions),
    /// OVA.
    Ova(OvaOptions),
}

impl Encoding {
    /// Returns the format.
    pub fn format(&self) -> Format {
        match self {
            Encoding::Qcow2(_) => Format::Qcow2,
            Encoding::Raw(_) => Format::Raw,
            Encoding::Vdi(_) => Format::Vdi,
            Encoding::Vhd(_) => Format::Vhd,
            Encoding::Vhdx(_) => Format::Vhdx,
            Encoding::Vmdk(_) => Format::Vmdk,
            Encoding::Ova(_) => Format::Ova,
        }
    }

    /// Sets one option by its name.
    ///
    /// # Errors
    /// The format has no such option, or the option does not take the value.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), OptionError> {
        let result = match self {
            Encoding::Qcow2(options) => options.set(key, value),
            Encoding::Raw(options) => options.set(key, value),
            Encoding::Vdi(options) => options.set(key, value),
            Encoding::Vhd(options) => options.set(key, value),
            Encoding::Vhdx(options) => options.set(key, value),
            Encoding::Vmdk(options) => options.set(key, value),
            Encoding::Ova(options) => options.set(key, value),
        };
        result.map_err(|fault| self.error(key, value, fault))
    }

    /// Asks for compressed data, as `qemu-img convert -c` does.
    ///
    /// # Errors
    /// The format cannot compress.
    pub fn compress(&mut self) -> Result<(), OptionError> {
        let fault = match self {
            Encoding::Qcow2(options) => {
                options.compressed = true;
                return Ok(());
            }
            Encoding::Vmdk(options) => match options.compress() {
                Ok(()) => return Ok(()),
                Err(fault) => fault,
            },
            Encoding::Ova(_) | Encoding::Raw(RawOptions { packing: Some(_), .. }) => return Ok(()),
            Encoding::Raw(_) | Encoding::Vdi(_) | Encoding::Vhd(_) | Encoding::Vhdx(_) => {
                Fault::Uncompressed
            }
        };
        Err(self.error("compression", "", fault))
    }

    /// Checks that the options go together; each for itself was checked by [`Encoding::set`].
    ///
    /// # Errors
    /// One needs another, or excludes it.
    pub fn check(&self) -> Result<(), OptionError> {
        let checked = match self {
            Encoding::Qcow2(options) => options.check(),
            Encoding::Raw(options) => options.check(),
            _ => Ok(()),
        };
        checked.map_err(|(key, value, fault)| self.error(key, &value, fault))
    }

    /// Returns the encoding that a file's name stands for by its extension: `web.vmdk`, or `web.raw.gz`
    /// for a raw image that is compressed as a whole.
    pub fn from_file_name(name: &str) -> Option<Encoding> {
        let (stem, extension) = name.rsplit_once('.')?;
        if let Some(format) = Format::from_extension(extension) {
            return Some(format.into());
        }
        let packing = Packing::ALL.into_iter().find(|packing| packing.extension() == extension)?;
        let inner = Format::from_extension(stem.rsplit_once('.')?.1)?;
        let options = RawOptions { packing: Some(packing), level: None };
        (inner == Format::Raw).then_some(Encoding::Raw(options))
    }

    /// Returns the usual extension of file names, without the first dot.
    pub fn extension(&self) -> String {
        match self {
            Encoding::Raw(RawOptions { packing: Some(packing), .. }) => {
                format!("raw.{}", packing.extension())
            }
            _ => self.format().extension().to_owned(),
        }
    }

    /// Returns whether the image states the name of its own file, so that the name decides its
    /// bytes too.
    pub fn states_file_name(&self) -> bool {
        matches!(self, Encoding::Vmdk(_) | Encoding::Ova(_))
    }

    fn error(&self, key: &str, value: &str, fault: Fault) -> OptionError {
        OptionError { format: self.format(), key: key.to_owned(), value: value.to_owned(), fault }
    }
}

impl From<Format> for Encoding {
    /// The format with everything as it usually is.
    fn from(format: Format) -> Encoding {
        match format {
            Format::Qcow2 => Encoding::Qcow2(Qcow2Options::default()),
            Format::Raw => Encoding::Raw(RawOptions::default()),
            Format::Vdi => Encoding::Vdi(VdiOptions::default()),
            Format::Vhd => Encoding::Vhd(VhdOptions::default()),
            Format::Vhdx => Encoding::Vhdx(VhdxOptions::default()),
            Format::Vmdk => Encoding::Vmdk(VmdkOptions::default()),
            Format::Ova => Encoding::Ova(OvaOptions::default()),
        }
    }
}

/// An option that a format does not have, or a value that it does not take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct OptionError {
    format: Format,
    key: String,
    value: String,
    fault: Fault,
}

impl OptionError {
    /// Returns whether the format has no such option; otherwise the value is wrong.
    pub fn is_unknown(&self) -> bool {
        matches!(self.fault, Fault::Unknown(_) | Fault::Uncompressed)
    }

    /// Returns the options that the format has, when this one is not among them.
    pub fn known(&self) -> &'static [&'static str] {
        match self.fault {
            Fault::Unknown(known) => known,
            _ => &[],
        }
    }
}

impl fmt::Display for OptionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let OptionError { format, key, value, fault } = self;
        match fault {
            Fault::Uncompressed => write!(f, "The {format} format has no compressed form"),
            Fault::Unknown(known) => {
                write!(f, "The {format} format has no option {key:?}; it has {}", known.join(", "))
            }
            Fault::Expected(what) => {
                write!(f, "The {format} option {key} takes {what}, not {value:?}")
            }
            Fault::Needs(other) => write!(f, "The {format} option {key} needs {other}"),
            Fault::Contradicts(other) => {
                write!(f, "The {format} option {key} does not go with {other}")
            }
        }
    }
}

/// What is wrong with an option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The format has only these.
    Unknown(&'static [&'static str]),
    /// The format cannot compress its data.
    Uncompressed,
    /// What the option takes.
    Expected(&'static str),
    /// What must be given too.
    Needs(&'static str),
    /// What must not be given too.
    Contradicts(&'static str),
}

/// Reads `on` or `off`.
pub(crate) fn switch(value: &str) -> Result<bool, Fault> {
    match value {
        "on" | "true" | "yes" => Ok(true),
        "off" | "false" | "no" => Ok(false),
        _ => Err(Fault::Expected("on or off")),
    }
}

/// Reads a number within bounds; `what` says them.
pub(crate) fn number<T: FromStr + PartialOrd>(
    value: &str,
    bounds: std::ops::RangeInclusive<T>,
    what: &'static str,
) -> Result<T, Fault> {
    value.parse().ok().filter(|number| bounds.contains(number)).ok_or(Fault::Expected(what))
}

/// Reads a size such as `65536`, `64K`, `2M` or `1G`, a power of two within bounds.
pub(crate) fn power_of_two(
    value: &str,
    bounds: std::ops::RangeInclusive<u64>,
    what: &'static str,
) -> Result<u64, Fault> {
    size(value)
        .filter(|size| size.is_power_of_two() && bounds.contains(size))
        .ok_or(Fault::Expected(what))
}

/// Reads a size in bytes with one of qemu-img's suffixes.
pub(crate) fn size(value: &str) -> Option<u64> {
    let (digits, shift) = match value.as_bytes().last()? {
        b'k' | b'K' => (&value[..value.len() - 1], 10),
        b'm' | b'M' => (&value[..value.len() - 1], 20),
        b'g' | b'G' => (&value[..value.len() - 1], 30),
        b't' | b'T' => (&value[..value.len() - 1], 40),
        _ => (value, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// Reads text that may stand in a quoted field of a descriptor.
pub(crate) fn plain_text(value: &str) -> Result<String, Fault> {
    if value.is_empty() || value.len() > 128 || value.chars().any(|c| c.is_control() || c == '"') {
        return Err(Fault::Expected("1 to 128 bytes of text without quotes"));
    }
    Ok(value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_take_suffixes_and_refuse_overflow() {
        assert_eq!(size("64K"), Some(65536));
        assert_eq!(size("2m"), Some(2 << 20));
        assert_eq!(size("512"), Some(512));
        for wrong in ["", "K", "1.5M", "-1", "99999999T", "1KB"] {
            assert_eq!(size(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn unknown_options_and_wrong_values_say_what_there_is() {
        let mut qcow2 = Encoding::from(Format::Qcow2);
        let error = qcow2.set("clustersize", "64K").unwrap_err().to_string();
        assert!(error.contains("clustersize") && error.contains("cluster_size"), "{error}");
        let error = qcow2.set("cluster_size", "3K").unwrap_err().to_string();
        assert!(error.contains("3K") && error.contains("power of two"), "{error}");
        let error = Encoding::from(Format::Raw).set("size", "1").unwrap_err().to_string();
        assert_eq!(error, "The raw format has no option \"size\"; it has compression, level");
    }

    #[test]
    fn every_documented_option_is_taken() {
        for (format, settings) in [
            (Format::Qcow2, &["cluster_size=2M", "compression_type=zstd", "level=19"][..]),
            (Format::Vdi, &["static=on"]),
            (Format::Vhd, &["subformat=fixed", "force_size=on"]),
            (Format::Vhdx, &["subformat=dynamic", "block_size=8M"]),
            (
                Format::Vmdk,
                &["subformat=streamOptimized", "adapter_type=ide", "hwversion=19", "level=12"],
            ),
            (Format::Ova, &["memory=4G", "cpus=4", "nic=VmxNet3", "controller=VirtualSCSI"]),
            (
                Format::Ova,
                &[
                    "system=vmx-19",
                    "name=web",
                    "product=a",
                    "vendor=b",
                    "version=1.0",
                    "manifest=sha1",
                ],
            ),
        ] {
            let mut encoding = Encoding::from(format);
            for setting in settings {
                let (key, value) = setting.split_once('=').unwrap();
                encoding.set(key, value).unwrap();
            }
            assert_eq!(encoding.format(), format);
        }
    }

    #[test]
    fn names_stand_for_encodings_and_back() {
        for name in ["web.qcow2", "web.raw", "web.raw.gz", "web.raw.bz2", "web.raw.xz"] {
            let encoding = Encoding::from_file_name(name).unwrap();
            assert_eq!(format!("web.{}", encoding.extension()), name);
        }
        let packed = Encoding::from_file_name("a.img.zst").unwrap();
        assert_eq!(packed.extension(), "raw.zst");
        for name in ["web", "web.gz", "web.qcow2.gz", "web.xyz", "gz"] {
            assert_eq!(Encoding::from_file_name(name), None, "{name}");
        }
    }

    #[test]
    fn options_that_do_not_go_together_are_named() {
        for (settings, expected) in [
            (&["level=10"][..], "The qcow2 option level takes 1 to 9 with zlib, not \"10\""),
            (&["level=10", "compression_type=zstd"], ""),
            (&["backing_file=a"], "The qcow2 option backing_file needs backing_fmt"),
            (&["backing_fmt=raw"], "The qcow2 option backing_fmt needs backing_file"),
            (&["backing_file=a", "backing_fmt=raw"], ""),
        ] {
            let mut encoding = Encoding::from(Format::Qcow2);
            for setting in settings {
                let (key, value) = setting.split_once('=').unwrap();
                encoding.set(key, value).unwrap();
            }
            let said = encoding.check().err().map_or_else(String::new, |error| error.to_string());
            assert_eq!(said, expected);
        }
        let mut packed = Encoding::from_file_name("a.raw.xz").unwrap();
        packed.set("level", "12").unwrap();
        let said = packed.check().unwrap_err().to_string();
        assert_eq!(said, "The raw option level takes 1 to 9, and more only with zstd, not \"12\"");
        for plain in ["monolithicFlat", "monolithicSparse"] {
            let mut vmdk = Encoding::from(Format::Vmdk);
            vmdk.set("subformat", plain).unwrap();
            let error = vmdk.compress().unwrap_err();
            assert!(!error.is_unknown() && error.to_string().contains(plain), "{error}");
        }
        let mut stream = Encoding::from(Format::Vmdk);
        stream.compress().unwrap();
        let mut named = Encoding::from(Format::Vmdk);
        named.set("subformat", "streamOptimized").unwrap();
        assert_eq!(named, stream);
        named.compress().unwrap();
        assert_eq!(named, stream);
    }

    #[test]
    fn only_some_formats_compress() {
        for format in Format::ALL {
            let can = matches!(format, Format::Qcow2 | Format::Vmdk | Format::Ova);
            let compressed = Encoding::from(format).compress();
            assert_eq!(compressed.is_ok(), can, "{format}");
            if let Err(error) = compressed {
                assert!(error.is_unknown());
                assert_eq!(
                    error.to_string(),
                    format!("The {format} format has no compressed form")
                );
            }
        }
        Encoding::from_file_name("a.raw.gz").unwrap().compress().unwrap();
    }
}
