//! The Internet checksum (RFC 1071).
//!
//! Sums are kept in the machine's own byte order, which the one's complement sum allows (RFC 1071,
//! section 2 B), and in 64 bits, so that carries are folded once at the end.

use std::net::IpAddr;

/// A running sum. Every slice added but the last must have an even length.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sum(u64);

impl Sum {
    /// Returns the sum of the pseudo-header of RFC 9293, section 3.1, and RFC 8200, section 8.1, whose
    /// fields differ in width only.
    pub(crate) fn pseudo_header(
        src: IpAddr,
        dst: IpAddr,
        protocol: u8,
        transport_len: usize,
    ) -> Sum {
        Sum(0)
            .add_address(src)
            .add_address(dst)
            .add(&[0, protocol])
            .add(&(transport_len as u16).to_be_bytes())
    }

    fn add_address(self, address: IpAddr) -> Sum {
        match address {
            IpAddr::V4(address) => self.add(&address.octets()),
            IpAddr::V6(address) => self.add(&address.octets()),
        }
    }

    /// Adds `data`; a last odd byte is padded with zero.
    pub(crate) fn add(self, data: &[u8]) -> Sum {
        let mut sum = self.0;
        let mut chunks = data.chunks_exact(4);
        for chunk in &mut chunks {
            sum += u64::from(u32::from_ne_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]));
        }
        let mut rest = [0; 4];
        let tail = chunks.remainder();
        rest[..tail.len()].copy_from_slice(tail);
        Sum(sum + u64::from(u32::from_ne_bytes(rest)))
    }

    /// Returns the bytes of the sum itself: what a partial checksum field holds.
    pub(crate) fn partial(self) -> [u8; 2] {
        let mut sum = self.0;
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (sum as u16).to_ne_bytes()
    }

    /// Returns the bytes of the checksum field over what was added.
    pub(crate) fn complement(self) -> [u8; 2] {
        self.partial().map(|byte| !byte)
    }

    /// Whether what was added, its checksum field included, is intact.
    pub(crate) fn is_valid(self) -> bool {
        self.partial() == [0xff, 0xff]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_rfc_1071_sums_as_printed_there() {
        let sum = Sum::default().add(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.partial(), [0xdd, 0xf2]);
        assert_eq!(sum.complement(), [0x22, 0x0d]);
    }

    #[test]
    fn an_odd_last_byte_is_padded_with_zero() {
        let odd = Sum::default().add(&[0x12, 0x34, 0x56]);
        let even = Sum::default().add(&[0x12, 0x34, 0x56, 0x00]);
        assert_eq!(odd.partial(), even.partial());
    }

    #[test]
    fn a_field_filled_with_the_complement_is_valid() {
        let mut data = [0x45, 0x00, 0x00, 0x3c, 0x00, 0x00, 0x1c, 0x46, 0x40, 0x06];
        data[2..4].fill(0);
        let field = Sum::default().add(&data).complement();
        data[2..4].copy_from_slice(&field);
        assert!(Sum::default().add(&data).is_valid());
        data[9] ^= 1;
        assert!(!Sum::default().add(&data).is_valid());
    }
}
