//! The addresses in a DNS answer (RFC 1035, section 4; AAAA: RFC 3596, section 2).
//!
//! Only records that follow from the question count: those of the name that was asked for, or of a
//! name that it is an alias of, in the order in which resolvers give them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::wire::{be16, be32};

const HEADER_LEN: usize = 12;
/// Compression pointers followed in one name; each leads backwards, so that none is endless.
const MAX_POINTERS: usize = 32;
const MAX_NAME: usize = 255;
/// Records looked at.
const MAX_RECORDS: usize = 512;

const A: u16 = 1;
const CNAME: u16 = 5;
const AAAA: u16 = 28;

/// Returns the name that a query or an answer asks for, in lower case without its last dot.
pub(crate) fn question(message: &[u8]) -> Option<String> {
    let (name, end) = read_name(message, HEADER_LEN)?;
    message.get(end..end + 4)?;
    Some(name)
}

/// Returns the addresses that the question is answered with, each with its time to live in seconds;
/// as far as the message can be read.
pub(crate) fn addresses(message: &[u8]) -> Vec<(IpAddr, u32)> {
    let mut found = Vec::new();
    // A message that breaks off is read up to there.
    let _ = collect(message, &mut found);
    found
}

fn collect(message: &[u8], found: &mut Vec<(IpAddr, u32)>) -> Option<()> {
    let (mut wanted, end) = read_name(message, HEADER_LEN)?;
    let count = usize::from(be16(message.get(..HEADER_LEN)?, 6));
    let mut at = end + 4;
    for _ in 0..count.min(MAX_RECORDS) {
        let (owner, end) = read_name(message, at)?;
        let head = message.get(end..end + 10)?;
        let (kind, ttl, len) = (be16(head, 0), be32(head, 4), usize::from(be16(head, 8)));
        let data = message.get(end + 10..end + 10 + len)?;
        if owner == wanted {
            if let (A, Ok(bytes)) = (kind, <[u8; 4]>::try_from(data)) {
                found.push((Ipv4Addr::from(bytes).into(), ttl));
            } else if let (AAAA, Ok(bytes)) = (kind, <[u8; 16]>::try_from(data)) {
                found.push((Ipv6Addr::from(bytes).into(), ttl));
            } else if kind == CNAME {
                wanted = read_name(message, end + 10)?.0;
            }
        }
        at = end + 10 + len;
    }
    Some(())
}

/// Reads a name; returns it with the position behind it.
fn read_name(message: &[u8], start: usize) -> Option<(String, usize)> {
    let mut name = String::new();
    let (mut at, mut end, mut pointers) = (start, None, 0);
    loop {
        let len = *message.get(at)?;
        match len >> 6 {
            0b11 => {
                let target = usize::from(be16(message.get(at..at + 2)?, 0) & 0x3fff);
                end = end.or(Some(at + 2));
                pointers += 1;
                if target >= at || pointers > MAX_POINTERS {
                    return None;
                }
                at = target;
            }
            0 if len == 0 => return Some((name, end.unwrap_or(at + 1))),
            0 => {
                let label = message.get(at + 1..at + 1 + usize::from(len))?;
                if !name.is_empty() {
                    name.push('.');
                }
                // What is no letter, digit or hyphen stands as `?`: no rule is about it.
                let shown = |byte: &u8| match byte {
                    b'-' | b'_' => char::from(*byte),
                    byte if byte.is_ascii_alphanumeric() => char::from(byte.to_ascii_lowercase()),
                    _ => '?',
                };
                name.extend(label.iter().map(shown));
                if name.len() > MAX_NAME {
                    return None;
                }
                at += 1 + label.len();
            }
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::message::tests::query;

    /// An answer to a query for `name` with records of an owner, a kind and data.
    fn answer(name: &str, records: &[(&[u8], u16, &[u8])]) -> Vec<u8> {
        let mut message = query(7, name);
        message.truncate(message.len() - 11);
        message[2] |= 0x80;
        message[6..8].copy_from_slice(&(records.len() as u16).to_be_bytes());
        message[10..12].fill(0);
        for (owner, kind, data) in records {
            message.extend(*owner);
            message.extend(kind.to_be_bytes());
            message.extend([0, 1, 0, 0, 0, 60]);
            message.extend((data.len() as u16).to_be_bytes());
            message.extend(*data);
        }
        message
    }

    const ASKED: &[u8] = &[0xc0, 12];

    fn found(message: &[u8]) -> Vec<String> {
        addresses(message).iter().map(|(address, ttl)| format!("{address} {ttl}")).collect()
    }

    #[test]
    fn addresses_of_the_question_and_of_its_aliases_count_and_others_do_not() {
        let alias = b"\x03cdn\x04test\0";
        let other = b"\x05other\x04test\0";
        let v6: [u8; 16] = "2001:db8::1".parse::<Ipv6Addr>().unwrap().octets();
        let message = answer(
            "Deb.Test",
            &[
                (ASKED, A, &[192, 0, 2, 1]),
                (other, A, &[192, 0, 2, 9]),
                (alias, A, &[192, 0, 2, 8]),
                (ASKED, CNAME, alias),
                (b"\x03CDN\x04test\0", A, &[192, 0, 2, 2]),
                (alias, AAAA, &v6),
                (alias, A, &[192, 0, 2]),
                (alias, 16, b"\x04text"),
            ],
        );
        assert_eq!(question(&message).as_deref(), Some("deb.test"));
        assert_eq!(found(&message), ["192.0.2.1 60", "192.0.2.2 60", "2001:db8::1 60"]);
    }

    #[test]
    fn an_answer_that_breaks_off_is_read_up_to_there() {
        let message = answer("a.b", &[(ASKED, A, &[192, 0, 2, 1]), (ASKED, A, &[192, 0, 2, 2])]);
        for len in 0..message.len() {
            assert!(found(&message[..len]).len() <= 1, "{len}");
        }
        assert_eq!(found(&message).len(), 2);
    }

    #[test]
    fn names_that_lead_in_circles_are_not_followed() {
        let mut message = answer("a.b", &[(ASKED, A, &[192, 0, 2, 1])]);
        let at = message.len() - 16;
        for target in [at, at + 1, 0x3fff] {
            message[at..at + 2].copy_from_slice(&(0xc000 | target as u16).to_be_bytes());
            assert!(found(&message).is_empty(), "{target}");
        }
        assert_eq!(question(&[0; 12]), None);
        assert_eq!(
            question(b"\0\x07\x01\0\0\x01\0\0\0\0\0\0\x03a\n.\0\0\x01\0\x01").unwrap(),
            "a??"
        );
    }
}
