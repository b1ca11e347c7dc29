//! What defines a layer, and the key that follows from it.
//!
//! A recipe is an ordered list of named fields. The key is BLAKE3 over an encoding in which every
//! part carries its length, so that no two recipes have the same encoding; a file enters by its
//! digest and mode, a secret by a keyed digest. Names of host files and their kept text are for
//! people, and never enter. See docs/cache.md for the encoding, byte by byte.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::digest::Digest;

/// The version of everything a layer is: its key's encoding, its record, its files. Layers of
/// another version are never found.
pub const FORMAT: u32 = 1;

/// Longest file whose text is kept to tell later what changed in it.
pub const KEPT_TEXT: usize = 64 << 10;

/// Keeps keys apart from all other uses of BLAKE3.
const KEY_CONTEXT: &str = "kvmbake 2026-11 layer key";

/// What a layer stands for in the life of a build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The guest, booted and ready for steps.
    Boot,
    /// The guest after a step.
    Step,
    /// The finished disk of a guest that was shut down.
    Sealed,
}

impl Kind {
    /// Returns the kind's name.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Boot => "boot",
            Kind::Step => "step",
            Kind::Sealed => "sealed",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// All that defines one layer, beside its parent and what the guest fetched while it was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipe {
    /// What the layer stands for.
    pub kind: Kind,
    /// The definition, in a fixed order.
    pub fields: Vec<Field>,
}

/// One named part of a recipe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Field {
    /// What it is, in the profile's words: `cpus`, `env WEB_PORT`, `script 1`.
    pub name: String,
    /// Its value.
    pub value: Value,
}

/// The value of a field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Value {
    /// A text, kept and keyed as it is.
    Text(String),
    /// A file that goes to the guest.
    File {
        /// What a person calls it; does not enter the key.
        label: String,
        /// The digest of its content.
        digest: Digest,
        /// Its permission bits.
        mode: u32,
        /// Its text, when it is one and is short; does not enter the key.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        content: Option<String>,
    },
    /// A secret, as a digest keyed with the cache's own random key.
    Secret(Digest),
}

impl Field {
    /// A text.
    pub fn text(name: impl Into<String>, text: impl Into<String>) -> Field {
        Field { name: name.into(), value: Value::Text(text.into()) }
    }

    /// A file by its content, whose text is kept when it is short.
    pub fn bytes(
        name: impl Into<String>,
        label: impl Into<String>,
        mode: u32,
        bytes: &[u8],
    ) -> Field {
        let kept = bytes.len() <= KEPT_TEXT;
        let content = kept.then(|| std::str::from_utf8(bytes).ok()).flatten().map(str::to_string);
        let value = Value::File { label: label.into(), digest: Digest::of(bytes), mode, content };
        Field { name: name.into(), value }
    }

    /// A file by its digest.
    pub fn file(
        name: impl Into<String>,
        label: impl Into<String>,
        mode: u32,
        digest: Digest,
    ) -> Field {
        let value = Value::File { label: label.into(), digest, mode, content: None };
        Field { name: name.into(), value }
    }
}

impl Recipe {
    /// Makes a recipe.
    pub fn new(kind: Kind, fields: Vec<Field>) -> Recipe {
        Recipe { kind, fields }
    }

    /// Returns the field of this name.
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|field| field.name == name)
    }

    /// Returns the key of the layer that this recipe makes on `parent`.
    pub fn key(&self, parent: Option<LayerId>) -> LayerKey {
        let mut hasher = blake3::Hasher::new_derive_key(KEY_CONTEXT);
        hasher.update(&encode(FORMAT, parent, self));
        LayerKey(Digest::from_bytes(*hasher.finalize().as_bytes()))
    }

    /// Returns whether both define the same layer, whatever their files are called.
    pub fn same(&self, other: &Recipe) -> bool {
        self.key(None) == other.key(None)
    }
}

/// The encoding that the key is the digest of.
pub(super) fn encode(format: u32, parent: Option<LayerId>, recipe: &Recipe) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024);
    out.extend_from_slice(&format.to_le_bytes());
    match parent {
        None => out.push(0),
        Some(LayerId(id)) => {
            out.push(1);
            out.extend_from_slice(id.as_bytes());
        }
    }
    put(&mut out, recipe.kind.name().as_bytes());
    out.extend_from_slice(&(recipe.fields.len() as u64).to_le_bytes());
    for Field { name, value } in &recipe.fields {
        put(&mut out, name.as_bytes());
        match value {
            Value::Text(text) => {
                out.push(0);
                put(&mut out, text.as_bytes());
            }
            Value::File { digest, mode, .. } => {
                out.push(1);
                out.extend_from_slice(digest.as_bytes());
                out.extend_from_slice(&mode.to_le_bytes());
            }
            Value::Secret(digest) => {
                out.push(2);
                out.extend_from_slice(digest.as_bytes());
            }
        }
    }
    out
}

/// Appends the length and the bytes.
pub(super) fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    out.extend_from_slice(bytes);
}

/// What a layer is found by: the digest of its recipe on its parent. Several layers may have one
/// key, when the guest fetched different content while they were made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LayerKey(pub(super) Digest);

impl fmt::Display for LayerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// One layer, told from every other one, even from one with the same key that was made at another
/// time: what is built on a layer fits only that one's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LayerId(pub(super) Digest);

impl LayerId {
    /// Returns the short form for people, 8 digits.
    pub fn short(&self) -> String {
        self.0.prefix(8)
    }

    /// Returns the digest that it is, e.g. to name the layer in another record.
    pub fn digest(&self) -> Digest {
        self.0
    }
}

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(fields: Vec<Field>) -> Recipe {
        Recipe::new(Kind::Step, fields)
    }

    #[test]
    fn names_and_kept_text_of_files_change_no_key() {
        let one = recipe(vec![Field::bytes("script 1", "setup.sh", 0o755, b"echo")]);
        let two = recipe(vec![Field::file("script 1", "other.sh", 0o755, Digest::of(b"echo"))]);
        assert_ne!(one, two);
        assert!(one.same(&two));
    }

    #[test]
    fn all_else_changes_the_key() {
        let all = [
            recipe(vec![]),
            Recipe::new(Kind::Boot, vec![]),
            recipe(vec![Field::text("a", "b")]),
            recipe(vec![Field::text("a", "c")]),
            recipe(vec![Field::text("ab", "")]),
            recipe(vec![Field::text("", "ab")]),
            recipe(vec![Field::text("a", "b"), Field::text("a", "b")]),
            recipe(vec![Field::bytes("a", "b", 0o644, b"b")]),
            recipe(vec![Field::bytes("a", "b", 0o755, b"b")]),
            recipe(vec![Field::bytes("a", "b", 0o644, b"c")]),
            recipe(vec![Field { name: "a".into(), value: Value::Secret(Digest::of(b"b")) }]),
        ];
        let keys: std::collections::HashSet<_> = all.iter().map(|one| one.key(None)).collect();
        assert_eq!(keys.len(), all.len());
        let parent = Some(LayerId(Digest::of(b"parent")));
        assert_ne!(all[0].key(None), all[0].key(parent));
    }

    #[test]
    fn the_encoding_is_the_documented_one() {
        let recipe = recipe(vec![
            Field::text("a", "bc"),
            Field::file("f", "x", 0o644, Digest::from_bytes([7; 32])),
        ]);
        let mut expected = vec![1, 0, 0, 0, 1];
        expected.extend([9; 32]);
        expected.extend(b"\x04\0\0\0\0\0\0\0step");
        expected.extend(b"\x02\0\0\0\0\0\0\0");
        expected.extend(b"\x01\0\0\0\0\0\0\0a\0\x02\0\0\0\0\0\0\0bc");
        expected.extend(b"\x01\0\0\0\0\0\0\0f\x01");
        expected.extend([7; 32]);
        expected.extend([0xa4, 1, 0, 0]);
        let parent = LayerId(Digest::from_bytes([9; 32]));
        assert_eq!(encode(1, Some(parent), &recipe), expected);
    }

    /// A small generator of numbers, so that a failure repeats.
    struct Numbers(u64);

    impl Numbers {
        fn below(&mut self, limit: u64) -> u64 {
            // The constants of Knuth's MMIX generator.
            self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (self.0 >> 33) % limit
        }

        /// A short text over an alphabet of bytes that lengths and tags are made of.
        fn text(&mut self) -> String {
            (0..self.below(4))
                .map(|_| ['\0', '\u{1}', '\u{2}', 'a'][self.below(4) as usize])
                .collect()
        }

        fn digest(&mut self) -> Digest {
            Digest::from_bytes([self.below(3) as u8; 32])
        }

        fn recipe(&mut self) -> Recipe {
            let kind = [Kind::Boot, Kind::Step, Kind::Sealed][self.below(3) as usize];
            let field = |numbers: &mut Numbers| {
                let value = match numbers.below(3) {
                    0 => Value::Text(numbers.text()),
                    1 => Value::File {
                        label: String::new(),
                        digest: numbers.digest(),
                        mode: numbers.below(3) as u32,
                        content: None,
                    },
                    _ => Value::Secret(numbers.digest()),
                };
                Field { name: numbers.text(), value }
            };
            Recipe::new(kind, (0..self.below(3)).map(|_| field(self)).collect())
        }
    }

    #[test]
    fn different_recipes_have_different_encodings() {
        let mut numbers = Numbers(1);
        let mut seen = std::collections::HashMap::new();
        for _ in 0..100_000 {
            let recipe = numbers.recipe();
            let parent = (numbers.below(2) == 1).then(|| LayerId(numbers.digest()));
            let made = seen
                .entry(encode(FORMAT, parent, &recipe))
                .or_insert_with(|| (parent, recipe.clone()));
            assert_eq!(*made, (parent, recipe));
        }
        assert!(seen.len() > 10_000, "{}", seen.len());
    }
}
