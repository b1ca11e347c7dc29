//! What every fuzz target does: an input becomes a file, the reader opens it and everything that
//! it promises is read. The reader may refuse; it must not panic, hang, or take more memory than
//! its limits say. The network's readers are given frames, or messages in one.
//!
//! Checksums stand between a fuzzer and what they protect, so an input whose last byte is odd gets
//! right ones first.

mod http;
mod net;

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use kvmbake_convert::{Format, OpenOptions, open};
use kvmbake_disk::Block;

/// A reader under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    /// qcow2.
    Qcow2,
    /// VDI.
    Vdi,
    /// VHD.
    Vhd,
    /// VHDX.
    Vhdx,
    /// VMDK.
    Vmdk,
    /// OVA.
    Ova,
    /// Whatever probing takes it for; compressed raw images among them.
    Packed,
    /// The network: frames of a guest's.
    Frames,
    /// The network's DHCP server.
    Dhcp,
    /// The network's name server.
    Dns,
    /// The server of HTTP.
    Http,
}

impl Reader {
    /// Every reader with its name, which is also that of its corpus.
    pub const ALL: [(&str, Reader); 11] = [
        ("qcow2", Reader::Qcow2),
        ("vdi", Reader::Vdi),
        ("vhd", Reader::Vhd),
        ("vhdx", Reader::Vhdx),
        ("vmdk", Reader::Vmdk),
        ("ova", Reader::Ova),
        ("packed", Reader::Packed),
        ("frames", Reader::Frames),
        ("dhcp", Reader::Dhcp),
        ("dns", Reader::Dns),
        ("http", Reader::Http),
    ];

    fn format(self) -> Option<Format> {
        match self {
            Reader::Qcow2 => Some(Format::Qcow2),
            Reader::Vdi => Some(Format::Vdi),
            Reader::Vhd => Some(Format::Vhd),
            Reader::Vhdx => Some(Format::Vhdx),
            Reader::Vmdk => Some(Format::Vmdk),
            Reader::Ova => Some(Format::Ova),
            Reader::Packed | Reader::Frames | Reader::Dhcp | Reader::Dns | Reader::Http => None,
        }
    }
}

/// Extents and bytes that are read of one input: enough for what fits into a file of a few
/// mebibytes, and the end of what claims to be endless.
const MAX_EXTENTS: usize = 256;
const MAX_BYTES: u64 = 16 << 20;

/// Opens the input with the reader and reads what it holds.
pub fn read(reader: Reader, input: &[u8]) {
    match reader {
        Reader::Frames => return net::frames(input),
        Reader::Dhcp => return net::dhcp(input),
        Reader::Dns => return net::dns(input),
        Reader::Http => return http::http(input),
        _ => {}
    }
    let mut bytes = input.to_vec();
    if bytes.last().is_some_and(|byte| byte % 2 == 1) {
        match reader {
            Reader::Vhd => seal_vhd(&mut bytes),
            Reader::Vhdx => seal_vhdx(&mut bytes),
            Reader::Ova => seal_tar(&mut bytes),
            _ => {}
        }
    }
    let file = file_of(&bytes);
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let options = OpenOptions { format: reader.format(), ..OpenOptions::default() };
    let Ok(disk) = open(&path, &options) else { return };
    let _ = read_disk(&*disk);
}

fn file_of(bytes: &[u8]) -> File {
    let folder = if PathBuf::from("/dev/shm").is_dir() { "/dev/shm" } else { "/tmp" };
    let mut file = tempfile::tempfile_in(folder).expect("a temporary file");
    file.write_all(bytes).expect("room for an input");
    file
}

fn read_disk(disk: &dyn Block) -> Result<(), kvmbake_disk::Error> {
    let mut buf = vec![0; 64 << 10];
    let (mut next, mut bytes) = (0, 0);
    for _ in 0..MAX_EXTENTS {
        let Some(extent) = disk.next_data(next)? else { break };
        assert!(extent.len > 0 && extent.offset >= next && extent.end() <= disk.len());
        let mut at = extent.offset;
        while at < extent.end() && bytes < MAX_BYTES {
            let len = (extent.end() - at).min(buf.len() as u64);
            disk.read_at(&mut buf[..len as usize], at)?;
            at += len;
            bytes += len;
        }
        next = extent.end();
    }
    if let Some(last) = disk.len().checked_sub(1) {
        disk.read_at(&mut buf[..1], last)?;
    }
    assert!(disk.read_at(&mut buf[..2], disk.len().saturating_sub(1)).is_err());
    Ok(())
}

fn seal_vhd(bytes: &mut [u8]) {
    let Some(end) = bytes.len().checked_sub(512) else { return };
    let header = bytes
        .get(16..24)
        .map_or(512, |at| at.iter().fold(0u64, |value, byte| value << 8 | u64::from(*byte)));
    for (start, len, at) in [(0, 512, 64), (end as u64, 512, 64), (header, 1024, 36)] {
        let start = usize::try_from(start).unwrap_or(usize::MAX);
        let Some(part) = start.checked_add(len).and_then(|stop| bytes.get_mut(start..stop)) else {
            continue;
        };
        part[at..at + 4].fill(0);
        let sum = !part.iter().fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
        part[at..at + 4].copy_from_slice(&sum.to_be_bytes());
    }
}

fn seal_vhdx(bytes: &mut [u8]) {
    for (start, len) in
        [(64 << 10, 4096), (128 << 10, 4096), (192 << 10, 64 << 10), (256 << 10, 64 << 10)]
    {
        let Some(part) = bytes.get_mut(start..start + len) else { continue };
        part[4..8].fill(0);
        let sum = crc32c(part);
        part[4..8].copy_from_slice(&sum.to_le_bytes());
    }
    // The entries of the log, which the seeds have in their second mebibyte.
    for start in (1 << 20..2 << 20).step_by(4096) {
        let Some(header) = bytes.get(start..start + 12).filter(|at| at.starts_with(b"loge")) else {
            continue;
        };
        let len = u32::from_le_bytes([header[8], header[9], header[10], header[11]]) as usize;
        if let Some(entry) = bytes.get_mut(start..start + len.clamp(12, 1 << 20)) {
            entry[4..8].fill(0);
            let sum = crc32c(entry);
            entry[4..8].copy_from_slice(&sum.to_le_bytes());
        }
    }
}

fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            if sum & 1 == 1 { sum >> 1 ^ 0x82f6_3b78 } else { sum >> 1 }
        })
    })
}

/// Gives the archive's first header its right sum.
fn seal_tar(bytes: &mut [u8]) {
    let Some(header) = bytes.get_mut(..512) else { return };
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}
