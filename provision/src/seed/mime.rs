//! MIME multipart messages as cloud-init reads them: several user-data or vendor-data documents in one.
//!
//! A document that is more than plain ASCII text is carried in base64, so that it arrives byte for byte; one that is
//! multipart itself is nested with its own headers. RFC 2045 and 2046; cloud-init's "User-data formats".

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// One document of a message.
#[derive(Debug, Clone, Copy)]
pub struct Part<'a> {
    /// The document.
    pub content: &'a [u8],
    /// The name that cloud-init stores it under; file-name characters only.
    pub name: &'a str,
}

/// Returns one message that holds all parts, in order. cloud-init finds out what each part is by its first bytes, as
/// it does for a document that stands alone.
pub fn multipart(parts: &[Part<'_>]) -> Vec<u8> {
    // Longer than any line of base64, and a line of its own in no nested message that is not made to collide.
    let mut number = 0u32;
    let boundary = loop {
        let boundary = format!("==kvmbake=boundary=of=one=document=in=a=seed={number:04}==");
        if !parts.iter().any(|part| contains(part.content, boundary.as_bytes())) {
            break boundary;
        }
        number += 1;
    };
    let mut message =
        format!("MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=\"{boundary}\"\n\n")
            .into_bytes();
    for part in parts {
        message.extend_from_slice(format!("--{boundary}\n").as_bytes());
        if is_multipart(part.content) {
            message.extend_from_slice(part.content);
        } else {
            push_part(&mut message, part);
        }
        if !message.ends_with(b"\n") {
            message.push(b'\n');
        }
    }
    message.extend_from_slice(format!("--{boundary}--\n").as_bytes());
    message
}

/// Plain text goes as it is, so that a key in it can be found and overwritten in the copies that cloud-init keeps.
fn push_part(message: &mut Vec<u8>, part: &Part<'_>) {
    let name = part.name;
    let plain = part
        .content
        .iter()
        .all(|&byte| byte == b'\n' || byte == b'\t' || (b' '..=b'~').contains(&byte))
        && part.content.split(|&byte| byte == b'\n').all(|line| line.len() < 990);
    let kind =
        if part.content.starts_with(&[0x1f, 0x8b]) { "application/gzip" } else { "text/plain" };
    let encoding = if plain { "7bit" } else { "base64" };
    message.extend_from_slice(
        format!(
            "Content-Type: {kind}\nContent-Transfer-Encoding: {encoding}\n\
             Content-Disposition: attachment; filename=\"{name}\"\n\n"
        )
        .as_bytes(),
    );
    if plain {
        // The newline before a boundary belongs to the boundary.
        message.extend_from_slice(part.content);
        message.push(b'\n');
        return;
    }
    for line in STANDARD.encode(part.content).as_bytes().chunks(76) {
        message.extend_from_slice(line);
        message.push(b'\n');
    }
}

/// Whether a document is a MIME message already, by cloud-init's own rule: the word in its first 4096 bytes.
pub fn is_multipart(document: &[u8]) -> bool {
    let head = document[..document.len().min(4096)].to_ascii_lowercase();
    contains(&head, b"mime-version:")
}

fn contains(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len()).any(|window| window == word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_told_from_messages() {
        assert!(is_multipart(b"Content-Type: multipart/mixed; boundary=x\nMIME-Version: 1.0\n\n"));
        assert!(!is_multipart(b"#cloud-config\nusers: []\n"));
    }

    #[test]
    fn a_part_that_holds_the_boundary_makes_another_boundary() {
        let inner = multipart(&[Part { content: b"#!/bin/sh\n", name: "a" }]);
        let outer = multipart(&[
            Part { content: &inner, name: "b" },
            Part { content: b"#cloud-config\n", name: "c" },
        ]);
        let text = String::from_utf8(outer).expect("text");
        assert!(text.contains("seed=0001==\""), "{text}");
        assert_eq!(
            text.matches("--==kvmbake=boundary=of=one=document=in=a=seed=0001==").count(),
            3
        );
    }
}
