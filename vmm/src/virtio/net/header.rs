//! `struct virtio_net_hdr`, which travels in front of every frame, to and from [`Offload`].
//!
//! With VERSION_1 it always has `num_buffers`. See VIRTIO 1.2, section 5.1.6.

use kvmbake_net::link::{Gso, Offload};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_HDR_F_DATA_VALID, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_NONE,
    VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6,
};

/// Bytes of the header.
pub const LEN: usize = 12;

/// Reads the header of a frame from the guest; `None` for a kind of segmentation that was not
/// offered. The values are the guest's: the link checks them against the frame.
pub fn decode(bytes: &[u8; LEN]) -> Option<Offload> {
    let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let gso = match u32::from(bytes[1]) {
        VIRTIO_NET_HDR_GSO_NONE => Gso::None,
        VIRTIO_NET_HDR_GSO_TCPV4 => Gso::TcpV4,
        VIRTIO_NET_HDR_GSO_TCPV6 => Gso::TcpV6,
        _ => return None,
    };
    let flag = |bit: u32| u32::from(bytes[0]) & bit != 0;
    Some(Offload {
        needs_csum: flag(VIRTIO_NET_HDR_F_NEEDS_CSUM),
        data_valid: flag(VIRTIO_NET_HDR_F_DATA_VALID),
        gso,
        hdr_len: u16_at(2),
        gso_size: u16_at(4),
        csum_start: u16_at(6),
        csum_offset: u16_at(8),
    })
}

/// Returns the header of a frame for the guest that fills `buffers` buffers.
pub fn encode(offload: &Offload, buffers: u16) -> [u8; LEN] {
    let mut flags = 0;
    if offload.needs_csum {
        flags |= VIRTIO_NET_HDR_F_NEEDS_CSUM;
    }
    if offload.data_valid {
        flags |= VIRTIO_NET_HDR_F_DATA_VALID;
    }
    let gso = match offload.gso {
        Gso::None => VIRTIO_NET_HDR_GSO_NONE,
        Gso::TcpV4 => VIRTIO_NET_HDR_GSO_TCPV4,
        Gso::TcpV6 => VIRTIO_NET_HDR_GSO_TCPV6,
    };
    let mut bytes = [0; LEN];
    bytes[0] = flags as u8;
    bytes[1] = gso as u8;
    bytes[2..4].copy_from_slice(&offload.hdr_len.to_le_bytes());
    bytes[4..6].copy_from_slice(&offload.gso_size.to_le_bytes());
    bytes[6..8].copy_from_slice(&offload.csum_start.to_le_bytes());
    bytes[8..10].copy_from_slice(&offload.csum_offset.to_le_bytes());
    bytes[10..].copy_from_slice(&buffers.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_survives_the_way_there_and_back() {
        let offload = Offload {
            needs_csum: true,
            data_valid: false,
            csum_start: 34,
            csum_offset: 16,
            gso: Gso::TcpV4,
            gso_size: 1448,
            hdr_len: 66,
        };
        let bytes = encode(&offload, 3);
        assert_eq!(bytes, [1, 1, 66, 0, 0xa8, 5, 34, 0, 16, 0, 3, 0]);
        assert_eq!(decode(&bytes), Some(offload));
    }

    #[test]
    fn segmentation_that_was_not_offered_is_refused() {
        for gso in [2, 3, 5, 0x80, 0x81, 0xff] {
            assert_eq!(decode(&[0, gso, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), None, "{gso:#x}");
        }
    }
}
