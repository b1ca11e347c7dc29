//! Kernel files: the bzImage's setup header and its compressed payload, or a plain `vmlinux`.
//!
//! The payload is decompressed on the host, so that the guest enters the kernel proper at once.
//! Follows Documentation/arch/x86/boot.rst of Linux (setup header, `payload_offset` and
//! `payload_length` of protocol 2.08) and the decompressors under arch/x86/boot/compressed.
//!
//! Left out: KASLR relocations (the kernel runs at its link address, as with `nokaslr`), LZO
//! payloads, EFI zboot files and unified kernel images, 32-bit kernels. Every byte of the file is
//! taken as hostile: lengths are checked against the file and the output is bounded.

use std::io::{self, Read};
use std::ops::Range;

use super::elf::{ElfStream, Loaded};
use super::kernel::{Compression, KernelImage};

/// The most that a payload may decompress to.
pub const MAX_ELF: u64 = 1 << 30;
/// How much of a payload is handed over at a time.
const PIECE: usize = 256 << 10;
/// The memory an xz or lzma decoder may take; kernels are packed with dictionaries of up to 128 MiB.
const DECODER_MEMORY: u64 = 256 << 20;

const SETUP_SECTS: usize = 0x1f1;
const BOOT_FLAG: usize = 0x1fe;
const HEADER_MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const KERNEL_VERSION: usize = 0x20e;
const LOADFLAGS: usize = 0x211;
const XLOADFLAGS: usize = 0x236;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
/// `boot_params` leaves room for the header up to here.
const HEADER_END_MAX: usize = 0x290;
/// XLF_KERNEL_64: the kernel has a 64-bit entry point.
const XLF_KERNEL_64: u16 = 1;

/// A file that is not a kernel this machine can enter.
#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
    /// Neither a bzImage nor an ELF file.
    #[error("Not a Linux kernel: {0}")]
    NotAKernel(String),
    /// A kernel, but for another machine or in a form that is not read.
    #[error("Kernel is not supported: {0}")]
    Unsupported(String),
    /// A length or offset leads outside the file.
    #[error("Kernel file is damaged: {0}")]
    Damaged(String),
    /// The decompressor gave up.
    #[error("Cannot decompress the kernel's {compression} payload")]
    Decompress {
        /// How the payload is compressed.
        compression: Compression,
        /// What the decompressor said.
        source: io::Error,
    },
    /// The kernel's place in memory is not the guest's to give.
    #[error("Kernel does not fit the guest's memory: {0}")]
    NoRoom(String),
    /// The payload decompresses to more than [`MAX_ELF`].
    #[error("Kernel's {compression} payload decompresses to more than {limit} bytes")]
    TooLarge {
        /// How the payload is compressed.
        compression: Compression,
        /// The limit.
        limit: u64,
    },
}

impl KernelImage {
    /// Reads a kernel file's headers: those of a bzImage, or an ELF `vmlinux`.
    ///
    /// # Errors
    /// Whatever keeps the file from being an x86-64 kernel, as far as it shows before
    /// [`KernelImage::unpack`]; see [`PayloadError`].
    pub fn parse(file: Vec<u8>) -> Result<KernelImage, PayloadError> {
        if file.starts_with(b"\x7fELF") {
            let payload = 0..file.len();
            let compression = Compression::None;
            return Ok(KernelImage {
                file,
                payload,
                setup_header: None,
                compression,
                version: None,
            });
        }
        if file.get(..8) == Some(b"MZ\0\0zimg") {
            return Err(PayloadError::Unsupported(
                "an EFI zboot file, which other architectures use".into(),
            ));
        }
        let setup = Setup::parse(&file)?;
        let payload = setup.payload(&file)?;
        let compression = compression_of(&file[payload.clone()])?;
        let version = setup.version_string(&file);
        let setup_header = Some(file[SETUP_SECTS..setup.header_end].to_vec());
        Ok(KernelImage { file, payload, setup_header, compression, version })
    }

    /// Decompresses the kernel and hands its ELF file to `take`, piece by piece.
    ///
    /// # Errors
    /// The payload is damaged or too large, or `take` refuses a piece.
    pub fn unpack(
        &self,
        take: &mut dyn FnMut(&[u8]) -> Result<(), PayloadError>,
    ) -> Result<(), PayloadError> {
        decompress(self.compression, &self.file[self.payload.clone()], MAX_ELF, take)
    }

    /// Decompresses the kernel, hands the bytes of its segments to `place`, each with its physical
    /// address, and returns where the kernel is entered and where it ends.
    ///
    /// # Errors
    /// It is no x86-64 kernel that can be entered, or `place` refuses bytes.
    pub fn load(
        &self,
        place: impl FnMut(u64, &[u8]) -> Result<(), PayloadError>,
    ) -> Result<Loaded, PayloadError> {
        let mut stream = ElfStream::new(place);
        self.unpack(&mut |bytes| stream.take(bytes))?;
        stream.finish()
    }

    /// Checks the whole kernel without loading it.
    ///
    /// # Errors
    /// Those of [`KernelImage::load`].
    pub fn verify(&self) -> Result<(), PayloadError> {
        self.load(|_, _| Ok(())).map(drop)
    }
}

/// The parts of the setup header that lead to the payload.
struct Setup {
    /// Where the protected-mode code starts in the file.
    code: usize,
    payload_offset: u32,
    payload_length: u32,
    header_end: usize,
    version_at: usize,
}

impl Setup {
    fn parse(file: &[u8]) -> Result<Setup, PayloadError> {
        if file.len() < HEADER_END_MAX {
            return Err(PayloadError::NotAKernel(format!("only {} bytes", file.len())));
        }
        if u16_at(file, BOOT_FLAG) != 0xaa55 || &file[HEADER_MAGIC..HEADER_MAGIC + 4] != b"HdrS" {
            let what = if file.starts_with(b"MZ") {
                "an EFI program without a Linux setup header (a unified kernel image?)"
            } else if let Ok(compression) = compression_of(file) {
                return Err(PayloadError::NotAKernel(format!(
                    "a bare {compression} file without a setup header"
                )));
            } else {
                "neither a bzImage nor an ELF file"
            };
            return Err(PayloadError::NotAKernel(what.into()));
        }
        let protocol = u16_at(file, VERSION);
        if protocol < 0x20c {
            return Err(PayloadError::Unsupported(format!(
                "boot protocol {}.{:02} is older than 2.12",
                protocol >> 8,
                protocol & 0xff
            )));
        }
        if file[LOADFLAGS] & 1 == 0 {
            return Err(PayloadError::Unsupported("a zImage, loaded low".into()));
        }
        if u16_at(file, XLOADFLAGS) & XLF_KERNEL_64 == 0 {
            return Err(PayloadError::Unsupported("a 32-bit kernel".into()));
        }
        let setup_sects = match file[SETUP_SECTS] {
            0 => 4,
            sectors => usize::from(sectors),
        };
        // The header ends where the jump instruction at 0x200 leads to.
        let header_end = HEADER_MAGIC + usize::from(file[0x201]);
        if !(PAYLOAD_LENGTH + 4..=HEADER_END_MAX).contains(&header_end) {
            return Err(PayloadError::Damaged(format!("setup header ends at {header_end:#x}")));
        }
        Ok(Setup {
            code: (setup_sects + 1) * 512,
            payload_offset: u32_at(file, PAYLOAD_OFFSET),
            payload_length: u32_at(file, PAYLOAD_LENGTH),
            header_end,
            version_at: usize::from(u16_at(file, KERNEL_VERSION)),
        })
    }

    fn payload(&self, file: &[u8]) -> Result<Range<usize>, PayloadError> {
        let start = self.code as u64 + u64::from(self.payload_offset);
        let end = start + u64::from(self.payload_length);
        if self.payload_length == 0 || end > file.len() as u64 {
            return Err(PayloadError::Damaged(format!(
                "payload at {start:#x}..{end:#x} in a file of {:#x} bytes",
                file.len()
            )));
        }
        Ok(start as usize..end as usize)
    }

    fn version_string(&self, file: &[u8]) -> Option<String> {
        if self.version_at == 0 {
            return None;
        }
        let text = file.get(self.version_at + 0x200..)?;
        let text = &text[..text.iter().take(256).position(|&byte| byte == 0)?];
        let printable = text.iter().all(|byte| (0x20..0x7f).contains(byte));
        (printable && !text.is_empty()).then(|| String::from_utf8_lossy(text).into_owned())
    }
}

/// Tells a payload's compression by its first bytes.
fn compression_of(payload: &[u8]) -> Result<Compression, PayloadError> {
    let known: [(&[u8], Compression); 7] = [
        (b"\x1f\x8b", Compression::Gzip),
        (b"\xfd7zXZ\0", Compression::Xz),
        (b"\x28\xb5\x2f\xfd", Compression::Zstd),
        (b"\x02\x21\x4c\x18", Compression::Lz4),
        (b"BZh", Compression::Bzip2),
        (b"\x5d\0\0", Compression::Lzma),
        (b"\x7fELF", Compression::None),
    ];
    for (magic, compression) in known {
        if payload.starts_with(magic) {
            return Ok(compression);
        }
    }
    if payload.starts_with(b"\x89LZO") {
        return Err(PayloadError::Unsupported("its payload is compressed with LZO".into()));
    }
    let start: Vec<String> = payload.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    Err(PayloadError::Unsupported(format!(
        "its payload starts with {}, which is no known compression",
        start.join(" ")
    )))
}

/// Decompresses `payload` to at most `limit` bytes, given to `take` in pieces.
///
/// Kernels append the uncompressed size to every format but gzip; the decoders stop at their own
/// end mark and never see it.
fn decompress(
    compression: Compression,
    payload: &[u8],
    limit: u64,
    take: &mut dyn FnMut(&[u8]) -> Result<(), PayloadError>,
) -> Result<(), PayloadError> {
    let failed = |source| PayloadError::Decompress { compression, source };
    let lzma = |stream: Result<liblzma::stream::Stream, liblzma::stream::Error>| {
        Ok(liblzma::read::XzDecoder::new_stream(payload, stream.map_err(io::Error::from)?))
    };
    let mut reader: Box<dyn Read + '_> = match compression {
        Compression::None => Box::new(payload),
        Compression::Gzip => Box::new(flate2::read::GzDecoder::new(payload)),
        Compression::Bzip2 => Box::new(bzip2::read::BzDecoder::new(payload)),
        Compression::Zstd => Box::new(
            zstd::stream::read::Decoder::with_buffer(payload).map_err(failed)?.single_frame(),
        ),
        Compression::Xz => Box::new(
            lzma(liblzma::stream::Stream::new_stream_decoder(DECODER_MEMORY, 0)).map_err(failed)?,
        ),
        Compression::Lzma => Box::new(
            lzma(liblzma::stream::Stream::new_lzma_decoder(DECODER_MEMORY)).map_err(failed)?,
        ),
        Compression::Lz4 => return decompress_lz4(payload, limit, take),
    };
    let mut buffer = vec![0; PIECE];
    let mut total = 0;
    loop {
        let read = match reader.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed(error)),
        };
        total += read as u64;
        if total > limit {
            return Err(PayloadError::TooLarge { compression, limit });
        }
        take(&buffer[..read])?;
    }
}

/// Decompresses lz4's legacy frame: a magic number, then blocks of at most 8 MiB of output, each
/// with its compressed length before it. A rest of four bytes is the size that the kernel appends.
fn decompress_lz4(
    payload: &[u8],
    limit: u64,
    take: &mut dyn FnMut(&[u8]) -> Result<(), PayloadError>,
) -> Result<(), PayloadError> {
    const BLOCK: usize = 8 << 20;
    let compression = Compression::Lz4;
    let failed = |reason: String| PayloadError::Decompress {
        compression,
        source: io::Error::new(io::ErrorKind::InvalidData, reason),
    };
    let mut block = vec![0; BLOCK];
    let mut total = 0;
    let mut rest = &payload[4..];
    while rest.len() > 4 {
        let (head, tail) = rest.split_at(4);
        let length = u32_at(head, 0) as usize;
        // Frames may be joined: a magic number in the place of a length.
        if length == 0x184c_2102 {
            rest = tail;
            continue;
        }
        let Some(input) = tail.get(..length).filter(|input| !input.is_empty()) else {
            return Err(failed(format!("block of {length} bytes, {} are left", tail.len())));
        };
        let filled = lz4_flex::block::decompress_into(input, &mut block)
            .map_err(|error| failed(error.to_string()))?;
        total += filled as u64;
        if total > limit {
            return Err(PayloadError::TooLarge { compression, limit });
        }
        take(&block[..filled])?;
        rest = &tail[length..];
    }
    Ok(())
}

/// Reads a little-endian number; the caller has checked the length.
pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
#[path = "payload_tests.rs"]
mod tests;
