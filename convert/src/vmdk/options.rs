//! What a caller may choose about a VMDK image.

use crate::options::{Fault, number};

const KEYS: &[&str] = &["subformat", "adapter_type", "hwversion", "level"];

/// Which kind of VMDK.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Subformat {
    /// One file whose grains are allocated as they are needed.
    #[default]
    MonolithicSparse,
    /// One file of compressed grains, made for sending: what OVA archives hold and ESXi imports.
    StreamOptimized,
    /// A descriptor, and the disk as it is in a file beside it.
    MonolithicFlat,
}

impl Subformat {
    /// Returns the name that descriptors and command lines write.
    pub fn name(self) -> &'static str {
        match self {
            Subformat::MonolithicSparse => "monolithicSparse",
            Subformat::StreamOptimized => "streamOptimized",
            Subformat::MonolithicFlat => "monolithicFlat",
        }
    }
}

/// The disk controller that a descriptor states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Adapter {
    /// IDE.
    Ide,
    /// BusLogic SCSI.
    BusLogic,
    /// LSI Logic SCSI, which VMware takes for every SCSI controller of its own.
    #[default]
    LsiLogic,
}

impl Adapter {
    /// Returns the name that descriptors and command lines write.
    pub fn name(self) -> &'static str {
        match self {
            Adapter::Ide => "ide",
            Adapter::BusLogic => "buslogic",
            Adapter::LsiLogic => "lsilogic",
        }
    }
}

/// How to write a VMDK image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmdkOptions {
    /// Which kind; monolithicSparse when absent.
    pub subformat: Option<Subformat>,
    /// The controller.
    pub adapter: Adapter,
    /// The version of VMware's virtual hardware, 4 to 99.
    pub hardware_version: u8,
    /// The deflate level of streamOptimized grains, 1 to 12.
    pub level: u8,
}

impl Default for VmdkOptions {
    fn default() -> VmdkOptions {
        VmdkOptions {
            subformat: None,
            adapter: Adapter::default(),
            hardware_version: 13,
            level: DEFAULT_LEVEL,
        }
    }
}

/// About as small as zlib makes it, in half the time.
pub(crate) const DEFAULT_LEVEL: u8 = 6;

impl VmdkOptions {
    /// Returns which kind to write.
    pub(crate) fn kind(&self) -> Subformat {
        self.subformat.unwrap_or_default()
    }

    /// Asks for compressed grains, which one kind has; a chosen kind without them stays.
    pub(crate) fn compress(&mut self) -> Result<(), Fault> {
        match self.subformat {
            Some(Subformat::MonolithicSparse) => {
                Err(Fault::Contradicts("subformat=monolithicSparse"))
            }
            Some(Subformat::MonolithicFlat) => Err(Fault::Contradicts("subformat=monolithicFlat")),
            Some(Subformat::StreamOptimized) | None => {
                self.subformat = Some(Subformat::StreamOptimized);
                Ok(())
            }
        }
    }

    pub(crate) fn set(&mut self, key: &str, value: &str) -> Result<(), Fault> {
        match key {
            "subformat" => {
                self.subformat = Some(match value {
                    "monolithicSparse" => Subformat::MonolithicSparse,
                    "streamOptimized" => Subformat::StreamOptimized,
                    "monolithicFlat" => Subformat::MonolithicFlat,
                    _ => {
                        let what = "monolithicSparse, streamOptimized or monolithicFlat";
                        return Err(Fault::Expected(what));
                    }
                });
            }
            "adapter_type" => {
                self.adapter = match value {
                    "ide" => Adapter::Ide,
                    "buslogic" => Adapter::BusLogic,
                    "lsilogic" => Adapter::LsiLogic,
                    _ => return Err(Fault::Expected("ide, buslogic or lsilogic")),
                }
            }
            "hwversion" => self.hardware_version = number(value, 4..=99, "4 to 99")?,
            "level" => self.level = number(value, 1..=12, "1 to 12")?,
            _ => return Err(Fault::Unknown(KEYS)),
        }
        Ok(())
    }
}
