//! As much of DNS messages as forwarding them needs (RFC 1035, section 4).

use crate::wire::{be16, put16};

const HEADER_LEN: usize = 12;
/// The longest query that is passed on; real ones are a fraction of it.
const MAX_QUERY: usize = 1232;
const MAX_LABEL: u8 = 63;
const MAX_NAME: usize = 255;

const RESPONSE: u8 = 0x80;
const OPCODE: u8 = 0x78;
const TRUNCATED: u8 = 0x02;
const RECURSION_DESIRED: u8 = 0x01;
const RECURSION_AVAILABLE: u8 = 0x80;

/// How a query is answered without a resolver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rcode {
    /// The answer does not fit; ask over TCP.
    Truncated,
    /// SERVFAIL.
    ServerFailure,
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

    /// Returns the length of [`write_answer`](Query::write_answer)'s message.
    pub(crate) fn answer_len(&self) -> usize {
        self.question_end
    }

    /// Writes a response that holds the question only.
    ///
    /// # Panics
    /// Panics when `buf` is shorter than [`answer_len`](Query::answer_len).
    pub(crate) fn write_answer(&self, buf: &mut [u8], rcode: Rcode) {
        buf[..self.question_end].copy_from_slice(&self.bytes[..self.question_end]);
        buf[2] = RESPONSE | (self.bytes[2] & RECURSION_DESIRED);
        buf[3] = RECURSION_AVAILABLE;
        match rcode {
            Rcode::Truncated => buf[2] |= TRUNCATED,
            Rcode::ServerFailure => buf[3] |= 2,
        }
        for count in [6, 8, 10] {
            put16(buf, count, 0);
        }
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
    fn servfail_repeats_the_question_and_nothing_else() {
        let bytes = query(0x1234, "deb.debian.org");
        let query = Query::read(&bytes).unwrap();
        let mut answer = vec![0; query.answer_len()];
        query.write_answer(&mut answer, Rcode::ServerFailure);
        assert_eq!(answer[..12], [0x12, 0x34, 0x81, 0x82, 0, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(answer[12..], bytes[12..bytes.len() - 11]);
        assert!(query.is_answered_by(&answer));
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
