//! What a direct boot needs: the kernel, its initrd, and its command line.
//!
//! Loading it into a guest is `load`'s work; finding it in an image is [`super::discover`]'s.

use std::ops::Range;
use std::path::PathBuf;

/// Everything the machine loads to boot Linux without firmware.
#[derive(Clone)]
pub struct Kernel {
    /// The kernel itself.
    pub image: KernelImage,
    /// The initial RAM disk, several files already joined into one.
    pub initrd: Option<Vec<u8>>,
    /// The command line, without a closing NUL.
    pub cmdline: String,
    /// Where kernel, initrd and command line came from, for a person to read.
    pub origin: String,
}

/// A kernel file, made by [`KernelImage::parse`]. It stays compressed until it is loaded, so that
/// its tens of megabytes are unpacked straight into the guest.
#[derive(Clone)]
pub struct KernelImage {
    /// The kernel file as it lies in the image.
    pub(super) file: Vec<u8>,
    /// The part of it that decompresses to an ELF64 executable for x86-64.
    pub(super) payload: Range<usize>,
    /// The bzImage's setup header: the file's bytes from offset 0x1f1 to the header's end, to be
    /// copied to the same offset of `boot_params`. `None` where the file was a plain `vmlinux`.
    pub setup_header: Option<Vec<u8>>,
    /// How the payload was compressed.
    pub compression: Compression,
    /// The version string inside the bzImage, such as `6.1.0-35-cloud-amd64 (…) #1 SMP …`.
    pub version: Option<String>,
}

/// The compression of a bzImage's payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// A plain ELF file.
    None,
    /// gzip, RFC 1952.
    Gzip,
    /// xz, with the x86 BCJ filter as kernels use it.
    Xz,
    /// Zstandard, RFC 8878.
    Zstd,
    /// The legacy frame of lz4.
    Lz4,
    /// bzip2.
    Bzip2,
    /// The `.lzma` ("LZMA alone") format.
    Lzma,
}

impl std::fmt::Display for Compression {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Compression::None => "uncompressed",
            Compression::Gzip => "gzip",
            Compression::Xz => "xz",
            Compression::Zstd => "zstd",
            Compression::Lz4 => "lz4",
            Compression::Bzip2 => "bzip2",
            Compression::Lzma => "lzma",
        })
    }
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel")
            .field("image", &self.image)
            .field("initrd_bytes", &self.initrd.as_ref().map(Vec::len))
            .field("cmdline", &self.cmdline)
            .field("origin", &self.origin)
            .finish()
    }
}

impl std::fmt::Debug for KernelImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KernelImage")
            .field("file_bytes", &self.file.len())
            .field("compression", &self.compression)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

/// A file that the user names instead of what the image's boot loader would load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileSource {
    /// A file of the host.
    Host(PathBuf),
    /// An absolute path inside the image, on whichever of its file systems has it.
    Image(String),
}

/// What the user asks for instead of, or on top of, the image's own boot configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BootOverrides {
    /// The kernel. With one, the image's own initrd is not used: it belongs to another kernel.
    pub kernel: Option<FileSource>,
    /// The initrd, several are joined in order; empty for the boot entry's own.
    pub initrd: Vec<FileSource>,
    /// Replaces the whole command line; only `append` and the serial console are added to it.
    pub cmdline: Option<String>,
    /// Added to the command line.
    pub append: Option<String>,
    /// The boot entry to take instead of the default one: an index, id, or title, or a path of
    /// them such as `1>2`.
    pub entry: Option<String>,
    /// Drops `quiet` and `splash`, for a console that shows the kernel's messages.
    pub verbose: bool,
}
