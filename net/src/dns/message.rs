//! As much of DNS messages as forwarding them needs (RFC 1035, section 4).

use std::net::IpAddr;

use crate::wire::{be16, put16, put32};

const HEADER_LEN: usize = 12;
/// The longest query that is passed on; real ones are a fraction of it.
pub(super) const MAX_QUERY: usize = 1232;
const MAX_LABEL: u8 = 63;
const MAX_NAME: usize = 255;

const RESPONSE: u8 = 0x80;
const OPCODE: u8 = 0x78;
const TRUNCATED: u8 = 0x02;
const RECURSION_DESIRED: u8 = 0x01;
const RECURSION_AVAILABLE: u8 = 0x80;

/// Types of records (RFC 1035, section 3.2.2; RFC 3596; RFC 6891).
const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;
const TYPE_OPT: u16 = 41;
const CLASS_IN: u16 = 1;
/// How long a guest may keep an answer of ours, in seconds.
const TTL: u32 = 60;
/// An OPT record without options, and the largest datagram it announces.
const OPT: [u8; 11] = [0, 0, TYPE_OPT as u8, 0x04, 0xd0, 0, 0, 0, 0, 0, 0];

/// How a query is answered without a resolver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rcode {
    /// The answer does not fit; ask over TCP.
    Truncated,
    /// SERVFAIL.
    ServerFailure,
    /// REFUSED.
    Refused,
}

/// A standard query with one question, kept to be asked again.
#[derive(Debug)]
pub(crate) struct Query {
    bytes: Box<[u8]>,
    /// Where the question ends.
    question_end: usize,
}

impl Query {
    /// Reads a query; `None` when it is none, or not a standard one.
    pub(crate) fn read(bytes: &[u8]) -> Option<Query> {
        if bytes.len() < HEADER_LEN || bytes.len() > MAX_QUERY {
            return None;
        }
        if bytes[2] & (RESPONSE | OPCODE) != 0 || be16(bytes, 4) != 1 {
            return None;
        }
        Some(Query { bytes: bytes.into(), question_end: question_end(bytes)? })
    }

    /// Returns the query as it came.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether `answer` is a response to this query.
    pub(crate) fn is_answered_by(&self, answer: &[u8]) -> bool {
        answer.len() >= HEADER_LEN
            && answer[2] & RESPONSE != 0
            && answer[..2] == self.bytes[..2]
            // An error may come back without the question.
            && match be16(answer, 4) {
                0 => answer[3] & 0x0f != 0,
                _ => answer
                    .get(HEADER_LEN..self.question_end)
                    .is_some_and(|q| q.eq_ignore_ascii_case(&self.bytes[HEADER_LEN..self.question_end])),
            }
    }

    /// Returns the name that is asked for, in lower case and without a dot at the end; `None` when
    /// it is none that a configuration or a file could hold.
    pub(crate) fn name(&self) -> Option<String> {
        let mut name = String::new();
        let mut at = HEADER_LEN;
        loop {
            let len = usize::from(self.bytes[at]);
            if len == 0 {
                return (!name.is_empty()).then_some(name);
            }
            let label = &self.bytes[at + 1..at + 1 + len];
            if !label.iter().all(|byte| byte.is_ascii_graphic() && *byte != b'.') {
                return None;
            }
            if !name.is_empty() {
                name.push('.');
            }
            name.extend(label.iter().map(|byte| char::from(byte.to_ascii_lowercase())));
            at += 1 + len;
        }
    }

    /// Whether the query is for the addresses of a name, of either family.
    pub(crate) fn asks_for_addresses(&self) -> bool {
        matches!(self.kind(), (TYPE_A | TYPE_AAAA, CLASS_IN))
    }

    /// Returns the type and the class that are asked for.
    fn kind(&self) -> (u16, u16) {
        (be16(&self.bytes, self.question_end - 4), be16(&self.bytes, self.question_end - 2))
    }

    /// Whether an OPT record follows the question, as clients that know EDNS have it.
    fn has_opt(&self) -> bool {
        be16(&self.bytes, 6) == 0
            && be16(&self.bytes, 8) == 0
            && be16(&self.bytes, 10) > 0
            && self.bytes[self.question_end..].starts_with(&OPT[..3])
    }

    /// Returns the length of [`write_answer`](Query::write_answer)'s message.
    pub(crate) fn answer_len(&self) -> usize {
        self.question_end + if self.has_opt() { OPT.len() } else { 0 }
    }

    /// Writes the answer that a name has these addresses, as many of the family asked for as fit,
    /// and returns its length. A name without one of that family has an empty answer.
    ///
    /// # Panics
    /// Panics when `buf` is shorter than [`answer_len`](Query::answer_len).
    pub(crate) fn write_addresses(&self, buf: &mut [u8], addresses: &[IpAddr]) -> usize {
        let (kind, _) = self.kind();
        let mut len = self.question_end;
        let mut count = 0;
        for address in addresses {
            let octets: &[u8] = match address {
                IpAddr::V4(address) if kind == TYPE_A => &address.octets(),
                IpAddr::V6(address) if kind == TYPE_AAAA => &address.octets(),
                _ => continue,
            };
            let Some(record) = buf.get_mut(len..len + 12 + octets.len() + OPT.len()) else {
                break;
            };
            // The name is the question's, by a pointer.
            put16(record, 0, 0xc000 | HEADER_LEN as u16);
            put16(record, 2, kind);
            put16(record, 4, CLASS_IN);
            put32(record, 6, TTL);
            put16(record, 10, octets.len() as u16);
            record[12..12 + octets.len()].copy_from_slice(octets);
            len += 12 + octets.len();
            count += 1;
        }
        self.write_header(buf, len, count, 0, 0)
    }

    /// Writes a response that holds the question only.
    ///
    /// # Panics
    /// Panics when `buf` is shorter than [`answer_len`](Query::answer_len).
    pub(crate) fn write_answer(&self, buf: &mut [u8], rcode: Rcode) {
        let (flags, code) = match rcode {
            Rcode::Truncated => (TRUNCATED, 0),
            Rcode::ServerFailure => (0, 2),
            Rcode::Refused => (0, 5),
        };
        self.write_header(buf, self.question_end, 0, flags, code);
    }

    /// Writes the header and the question of a response, and an OPT record behind its `len` bytes
    /// where the query has one (RFC 6891, section 6.1.1). Returns the response's length.
    fn write_header(&self, buf: &mut [u8], len: usize, count: u16, flags: u8, code: u8) -> usize {
        buf[..self.question_end].copy_from_slice(&self.bytes[..self.question_end]);
        buf[2] = RESPONSE | (self.bytes[2] & RECURSION_DESIRED) | flags;
        buf[3] = RECURSION_AVAILABLE | code;
        put16(buf, 6, count);
        put16(buf, 8, 0);
        put16(buf, 10, u16::from(self.has_opt()));
        if !self.has_opt() {
            return len;
        }
        buf[len..len + OPT.len()].copy_from_slice(&OPT);
        len + OPT.len()
    }
}

/// Returns a name as it is on the wire, without compression (RFC 1035, section 3.1).
///
/// Labels are those of names that a configuration has checked; longer ones are cut.
pub(crate) fn encode_name(name: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(name.len() + 2);
    for label in name.split('.').filter(|label| !label.is_empty()) {
        let label = &label.as_bytes()[..label.len().min(usize::from(MAX_LABEL))];
        bytes.push(label.len() as u8);
        bytes.extend(label);
    }
    bytes.push(0);
    bytes
}

/// Returns where the first question ends.
fn question_end(bytes: &[u8]) -> Option<usize> {
    let mut at = HEADER_LEN;
    loop {
        let len = *bytes.get(at)?;
        at += 1;
        if len == 0 {
            break;
        }
        at += usize::from(len);
        if len > MAX_LABEL || at - HEADER_LEN > MAX_NAME {
            return None;
        }
    }
    (at + 4 <= bytes.len()).then_some(at + 4)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A query for the address of `name`, with an EDNS record.
    pub(crate) fn query(id: u16, name: &str) -> Vec<u8> {
        let mut bytes = id.to_be_bytes().to_vec();
        bytes.extend([1, 0x20, 0, 1, 0, 0, 0, 0, 0, 1]);
        for label in name.split('.') {
            bytes.push(label.len() as u8);
            bytes.extend(label.as_bytes());
        }
        bytes.extend([0, 0, 1, 0, 1]);
        bytes.extend([0, 0, 41, 0x10, 0, 0, 0, 0, 0, 0, 0]);
        bytes
    }

    #[test]
    fn servfail_repeats_the_question_and_says_that_edns_is_known() {
        let bytes = query(0x1234, "deb.debian.org");
        let query = Query::read(&bytes).unwrap();
        let mut answer = vec![0; query.answer_len()];
        query.write_answer(&mut answer, Rcode::ServerFailure);
        assert_eq!(answer[..12], [0x12, 0x34, 0x81, 0x82, 0, 1, 0, 0, 0, 0, 0, 1]);
        assert_eq!(answer[12..answer.len() - 11], bytes[12..bytes.len() - 11]);
        assert_eq!(answer[answer.len() - 11..], [0, 0, 41, 4, 0xd0, 0, 0, 0, 0, 0, 0]);
        assert!(query.is_answered_by(&answer));
    }

    #[test]
    fn addresses_are_answered_as_far_as_they_fit() {
        let query = Query::read(&query(9, "Some.Name.Test")).unwrap();
        assert_eq!(query.name().as_deref(), Some("some.name.test"));
        assert!(query.asks_for_addresses());
        let addresses: Vec<IpAddr> = (0..100).map(|at| [192, 0, 2, at].into()).collect();
        let mut buf = [0; 512];
        let len = query.write_addresses(&mut buf, &addresses);
        let count = be16(&buf, 6);
        assert_eq!(len, query.answer_len() + 16 * usize::from(count));
        assert!(len <= 512 && count > 20);
        assert!(query.is_answered_by(&buf[..len]));
        let first = query.question_end;
        let record = [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 0];
        assert_eq!(buf[first..first + 16], record);
        // None of the other family's.
        let len = query.write_addresses(&mut buf, &["2001:db8::1".parse().unwrap()]);
        assert_eq!((len, be16(&buf, 6)), (query.answer_len(), 0));
    }

    #[test]
    fn answers_to_another_query_are_not_taken() {
        let bytes = query(7, "example.org");
        let query_ = Query::read(&bytes).unwrap();
        let mut answer = vec![0; query_.answer_len()];
        query_.write_answer(&mut answer, Rcode::Truncated);
        let mut other_id = answer.clone();
        other_id[0] ^= 1;
        let mut other_name = answer.clone();
        other_name[14] ^= 1;
        assert!(query_.is_answered_by(&answer));
        for wrong in [&other_id[..], &other_name, &bytes, &answer[..11]] {
            assert!(!query_.is_answered_by(wrong));
        }
    }

    #[test]
    fn what_is_no_query_is_not_read() {
        let good = query(1, "a.b");
        assert!(Query::read(&good).is_some());
        let mut response = good.clone();
        response[2] |= 0x80;
        let mut two_questions = good.clone();
        two_questions[5] = 2;
        let mut pointer = good.clone();
        pointer[12] = 0xc0;
        for bad in [&good[..11], &good[..18], &response, &two_questions, &pointer] {
            assert!(Query::read(bad).is_none());
        }
    }
}
