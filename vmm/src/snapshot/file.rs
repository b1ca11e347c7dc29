//! The bytes of a saved machine state: a fixed header, then the state in postcard's encoding.
//!
//! Header, little-endian, 88 bytes: magic (8), format (u32), reserved (u32, zero), release of kvmbake (32, filled up with zeroes),
//! length of the state (u64), BLAKE3 of everything else in the file (32). The digest is looked at before the state is read, so
//! that a flipped bit can never reach KVM. See docs/snapshot-format.md.

use super::{MachineState, SnapshotError, decode, encode};

const MAGIC: &[u8; 8] = b"kvmbakeS";
/// Grows with every change of what [`MachineState`] or a device's state holds.
const FORMAT: u32 = 1;
const RELEASE: &str = env!("CARGO_PKG_VERSION");
const RELEASE_LEN: usize = 32;
pub(super) const DIGEST: usize = 56;
pub(super) const HEADER: usize = 88;
/// A state of 255 vCPUs and a full bus stays far below.
const LIMIT: usize = 64 << 20;

impl MachineState {
    /// Returns the state as bytes for a file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let state = encode(self);
        let mut release = [0; RELEASE_LEN];
        let len = RELEASE.len().min(RELEASE_LEN);
        release[..len].copy_from_slice(&RELEASE.as_bytes()[..len]);
        let mut bytes = Vec::with_capacity(HEADER + state.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&release);
        bytes.extend_from_slice(&(state.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&[0; HEADER - DIGEST]);
        bytes.extend_from_slice(&state);
        let digest = digest(&bytes);
        bytes[DIGEST..HEADER].copy_from_slice(&digest);
        bytes
    }

    /// Reads the state back.
    ///
    /// # Errors
    /// [`SnapshotError::NotASnapshot`], [`SnapshotError::Format`], [`SnapshotError::Release`] and [`SnapshotError::Damaged`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SnapshotError> {
        let damaged = |what: String| SnapshotError::Damaged(what);
        if !bytes.starts_with(MAGIC) {
            return Err(SnapshotError::NotASnapshot);
        }
        let Some((header, state)) = bytes.split_at_checked(HEADER) else {
            return Err(damaged(format!("it ends after {} bytes", bytes.len())));
        };
        let saved = u32::from_le_bytes(array(&header[8..12]));
        if saved != FORMAT {
            return Err(SnapshotError::Format { saved, present: FORMAT });
        }
        let len = u64::from_le_bytes(array(&header[48..56]));
        if len != state.len() as u64 || state.len() > LIMIT {
            return Err(damaged(format!("it holds {} bytes of state, not {len}", state.len())));
        }
        if digest(bytes) != header[DIGEST..] {
            return Err(damaged("its digest does not match".to_owned()));
        }
        let release = String::from_utf8_lossy(&header[16..16 + RELEASE_LEN]);
        let release = release.trim_end_matches('\0');
        if release != RELEASE {
            return Err(SnapshotError::Release { saved: release.to_owned(), present: RELEASE });
        }
        decode(state).map_err(|error| damaged(format!("it has {error}")))
    }
}

/// Returns the digest of a whole file without the place of the digest itself.
pub(super) fn digest(bytes: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&bytes[..DIGEST]);
    hasher.update(&bytes[HEADER..]);
    *hasher.finalize().as_bytes()
}

/// Returns the bytes as an array of the length that the caller has cut.
fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(bytes);
    array
}
