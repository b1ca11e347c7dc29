//! Connections that the guest still has and this process never had: those of a restored guest.
//!
//! The far ends of a guest's connections go with the process that held them. What is kept of each is
//! enough to reset it in the guest, which is how its programs learn at once that it has ended.
//!
//! A guest takes a reset whose sequence number is exactly the next it expects (RFC 5961, section 3),
//! and one that is still connecting takes a reset that acknowledges its SYN (RFC 9293, section
//! 3.10.7.3). The next number it expects lies between what it has acknowledged and what it has been
//! given, as frames may have been lost with the old process and acknowledgements too. So each
//! connection gets a reset at either end of that range, the lower first: the guest takes the one
//! that fits, drops what lies before its window, and answers what lies inside it with a challenge,
//! which [`TcpFlows`](super::TcpFlows) resets with the number it names.

use std::collections::VecDeque;

use crate::outbox::{Outbox, finish_tcp};
use crate::wire::{be32, ethernet, ip, put16, put32};

use super::flow::Key;
use super::{ACK, FIN, HEADER_LEN, RST, SYN};

/// Connections that are reset before the rest of the network has its turn.
const BATCH: usize = 64;

/// The sequence numbers of one connection, as seen in the segments that have passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Numbers {
    /// The first number the guest has not acknowledged.
    pub(crate) acknowledged: u32,
    /// The number behind the last that the guest has been given.
    pub(crate) given: u32,
    /// The number of the guest's that was last acknowledged to it.
    pub(crate) expected: u32,
}

impl Numbers {
    /// Takes the numbers of a segment in a frame for the guest. `before` is what was known.
    pub(super) fn after(before: Option<Numbers>, frame: &[u8]) -> Option<Numbers> {
        let Some((end, expected)) = end_and_expected(frame) else {
            return before;
        };
        let Some(mut numbers) = before else {
            return Some(Numbers { acknowledged: end, given: end, expected });
        };
        // A segment that is sent again does not take the end back.
        if end.wrapping_sub(numbers.given) as i32 > 0 {
            numbers.given = end;
        }
        numbers.expected = expected;
        Some(numbers)
    }

    /// Takes what a segment of the guest's acknowledges.
    pub(super) fn acknowledge(&mut self, number: u32) {
        let outstanding = self.given.wrapping_sub(self.acknowledged);
        if number.wrapping_sub(self.acknowledged) <= outstanding {
            self.acknowledged = number;
        }
    }
}

/// Returns the number behind a segment's last, and the one it expects.
fn end_and_expected(frame: &[u8]) -> Option<(u32, u32)> {
    let segment = ip::Packet::read(frame.get(ethernet::HEADER_LEN..)?).ok()?.payload();
    if segment.len() < HEADER_LEN {
        return None;
    }
    let data = segment.len().checked_sub(usize::from(segment[12] >> 4) * 4)?;
    let flags = segment[13];
    let controls = u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
    let end = be32(segment, 4).wrapping_add(data as u32).wrapping_add(controls);
    Some((end, be32(segment, 8)))
}

/// A connection that only the guest still has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Orphan {
    pub(crate) key: Key,
    pub(crate) numbers: Numbers,
}

/// The connections that are yet to be reset.
#[derive(Debug, Default)]
pub(crate) struct Orphans(VecDeque<Orphan>);

impl Orphans {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Orphan> {
        self.0.iter()
    }

    pub(crate) fn extend(&mut self, orphans: Vec<Orphan>) {
        self.0.extend(orphans);
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// Queues the resets of the next few connections, as far as the outbox has room.
    pub(crate) fn reset(&mut self, outbox: &mut Outbox) {
        for _ in 0..BATCH {
            let Some(orphan) = self.0.front() else { return };
            let Numbers { acknowledged, given, .. } = orphan.numbers;
            let mut queued = queue(outbox, orphan, acknowledged);
            if acknowledged != given {
                queued = queued.and_then(|()| queue(outbox, orphan, given));
            }
            // Without room for both, the first is sent once more and does no harm.
            if queued.is_none() {
                return;
            }
            self.0.pop_front();
        }
    }
}

fn queue(outbox: &mut Outbox, orphan: &Orphan, number: u32) -> Option<()> {
    let Orphan { key, numbers } = *orphan;
    let ip_header_len = ip::header_len(key.remote);
    let frame_len = ethernet::HEADER_LEN + ip_header_len + HEADER_LEN;
    outbox.queue(frame_len, |frame, addresses, guest| {
        let packet = &mut frame[ethernet::HEADER_LEN..];
        ip::write(packet, key.remote, key.guest, ip::TCP);
        let segment = &mut packet[ip_header_len..];
        segment.fill(0);
        put16(segment, 0, key.remote_port);
        put16(segment, 2, key.guest_port);
        put32(segment, 4, number);
        put32(segment, 8, numbers.expected);
        segment[12] = (HEADER_LEN as u8 / 4) << 4;
        segment[13] = RST | ACK;
        Some((frame_len, finish_tcp(frame, None, addresses, guest)))
    })
}
