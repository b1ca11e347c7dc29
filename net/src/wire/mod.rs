//! Reading and writing of the headers that the network handles itself.
//!
//! Readers take bytes a guest wrote and give `None` or a [`DropReason`](crate::DropReason) where
//! they do not hold what they announce. Writers are given buffers of the right length.

pub(crate) mod checksum;
pub(crate) mod ethernet;
pub(crate) mod icmp;
pub(crate) mod ip;
pub(crate) mod ipv4;
pub(crate) mod ipv6;
pub(crate) mod udp;

/// Reads the big-endian 16-bit field at `offset`.
///
/// # Panics
/// Panics when the field is not inside `bytes`; callers have checked the header's length.
pub(crate) fn be16(bytes: &[u8], offset: usize) -> u16 {
    u16::from_be_bytes([bytes[offset], bytes[offset + 1]])
}

/// Reads the big-endian 32-bit field at `offset`.
///
/// # Panics
/// Panics when the field is not inside `bytes`; callers have checked the header's length.
pub(crate) fn be32(bytes: &[u8], offset: usize) -> u32 {
    u32::from_be_bytes([bytes[offset], bytes[offset + 1], bytes[offset + 2], bytes[offset + 3]])
}

/// Writes the big-endian 16-bit field at `offset`.
///
/// # Panics
/// Panics when the field is not inside `bytes`.
pub(crate) fn put16(bytes: &mut [u8], offset: usize, value: u16) {
    bytes[offset..offset + 2].copy_from_slice(&value.to_be_bytes());
}

/// Writes the big-endian 32-bit field at `offset`.
///
/// # Panics
/// Panics when the field is not inside `bytes`.
pub(crate) fn put32(bytes: &mut [u8], offset: usize, value: u32) {
    bytes[offset..offset + 4].copy_from_slice(&value.to_be_bytes());
}
