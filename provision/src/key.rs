//! The key that opens the guest: one ed25519 pair per build, or the user's own.
//!
//! The private half stays in memory: it is wiped when the last [`BuildKey`] is dropped, `Debug` shows only the
//! fingerprint, and nothing here writes it to a file. The comment of a generated key names the build, so that a line
//! found in a guest's `authorized_keys` tells where it came from.

use std::fmt;
use std::sync::Arc;

use russh::keys::ssh_key::{LineEnding, private::Ed25519Keypair};
use russh::keys::{Algorithm, HashAlg, PrivateKey, PrivateKeyWithHashAlg};
use zeroize::Zeroizing;

/// Why a private key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The text is no private key in any form that we read.
    #[error("Not a private key in OpenSSH, PKCS#8 or PEM form")]
    Unreadable(#[source] russh::keys::Error),
    /// The key needs a passphrase, and a build has nobody to ask.
    #[error(
        "The private key is protected by a passphrase; give an unprotected one, or leave it out to have one made"
    )]
    Passphrase,
    /// The key's algorithm is not one that we sign with.
    #[error("Private keys of type {algorithm} are not supported; use ed25519 or ecdsa")]
    Algorithm {
        /// The algorithm's SSH name.
        algorithm: String,
    },
    /// The system gave no random bytes.
    #[error("No random bytes from the system for a key")]
    Random(#[source] std::io::Error),
    /// The key could not be written in OpenSSH form.
    #[error("The key cannot be encoded")]
    Encode(#[source] russh::keys::ssh_key::Error),
}

/// A key pair for logging in to the guest.
///
/// Cheap to clone: clones share the pair.
#[derive(Clone)]
pub struct BuildKey {
    pair: Arc<PrivateKey>,
}

impl BuildKey {
    /// Makes a new ed25519 pair whose comment is `kvmbake-<build>`.
    ///
    /// # Errors
    /// When the system has no random bytes.
    pub fn generate(build: &str) -> Result<BuildKey, KeyError> {
        let mut seed = Zeroizing::new([0u8; 32]);
        fill_random(&mut seed[..]).map_err(KeyError::Random)?;
        let pair = Ed25519Keypair::from_seed(&seed);
        // A comment ends the line in `authorized_keys`: only visible characters may be in it.
        let build: String = build.chars().filter(|c| c.is_ascii_graphic()).collect();
        let pair =
            PrivateKey::new(pair.into(), format!("kvmbake-{build}")).map_err(KeyError::Encode)?;
        Ok(BuildKey { pair: Arc::new(pair) })
    }

    /// Reads a private key from the text of its file: OpenSSH form, or PEM and PKCS#8.
    ///
    /// # Errors
    /// When the text is no key, needs a passphrase, or is of a type that we do not sign with.
    pub fn from_openssh(text: &str) -> Result<BuildKey, KeyError> {
        if text.contains("BEGIN RSA PRIVATE KEY") {
            return Err(KeyError::Algorithm { algorithm: "ssh-rsa".into() });
        }
        let pair = match russh::keys::decode_secret_key(text, None) {
            Ok(pair) => pair,
            Err(russh::keys::Error::KeyIsEncrypted) => return Err(KeyError::Passphrase),
            Err(_) if text.contains("ENCRYPTED") => return Err(KeyError::Passphrase),
            Err(error) => return Err(KeyError::Unreadable(error)),
        };
        if pair.is_encrypted() {
            return Err(KeyError::Passphrase);
        }
        match pair.algorithm() {
            Algorithm::Ed25519 | Algorithm::Ecdsa { .. } => Ok(BuildKey { pair: Arc::new(pair) }),
            other => Err(KeyError::Algorithm { algorithm: other.to_string() }),
        }
    }

    /// Returns the public key as one line of `authorized_keys`, without a newline: type, key, comment.
    pub fn public_openssh(&self) -> String {
        let (kind, blob) = self.public_parts();
        let comment =
            String::from_utf8_lossy(self.pair.public_key().comment().as_ref()).into_owned();
        if comment.is_empty() {
            format!("{kind} {blob}")
        } else {
            format!("{kind} {blob} {comment}")
        }
    }

    /// Returns the base64 field of the public key: what identifies it wherever it was written, whatever the comment.
    pub fn public_blob(&self) -> String {
        self.public_parts().1
    }

    /// Returns the private key in OpenSSH form, for programs that must be handed a file. The text is wiped on drop.
    ///
    /// # Errors
    /// When the key cannot be encoded.
    pub fn private_openssh(&self) -> Result<Zeroizing<String>, KeyError> {
        self.pair.to_openssh(LineEnding::LF).map_err(KeyError::Encode)
    }

    /// Returns the SHA-256 fingerprint as `ssh-keygen -l` shows it, `SHA256:…`.
    pub fn fingerprint(&self) -> String {
        self.pair.fingerprint(HashAlg::Sha256).to_string()
    }

    /// The pair as the SSH client takes it.
    pub(crate) fn signer(&self) -> PrivateKeyWithHashAlg {
        PrivateKeyWithHashAlg::new(self.pair.clone(), None)
    }

    fn public_parts(&self) -> (String, String) {
        let line = self.pair.public_key().to_openssh().unwrap_or_default();
        let mut fields = line.split_ascii_whitespace();
        (fields.next().unwrap_or_default().to_owned(), fields.next().unwrap_or_default().to_owned())
    }
}

impl fmt::Debug for BuildKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BuildKey").field("fingerprint", &self.fingerprint()).finish_non_exhaustive()
    }
}

fn fill_random(bytes: &mut [u8]) -> std::io::Result<()> {
    use std::io::Read;
    std::fs::File::open("/dev/urandom")?.read_exact(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::OpenOptionsExt;
    use std::process::Command;

    fn ssh_keygen(arguments: &[&str]) -> String {
        let output = Command::new("ssh-keygen")
            .args(arguments)
            .output()
            .expect("ssh-keygen is missing: install the Debian package openssh-client");
        assert!(
            output.status.success(),
            "ssh-keygen {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).expect("text")
    }

    #[test]
    fn ssh_keygen_reads_a_generated_key_and_agrees_on_the_public_half() {
        let key = BuildKey::generate("web 42\n").expect("key");
        assert!(key.public_openssh().starts_with("ssh-ed25519 AAAA"));
        assert!(key.public_openssh().ends_with(" kvmbake-web42"));
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("key");
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(0o600).open(&path).expect("file");
        std::io::Write::write_all(&mut file, key.private_openssh().expect("text").as_bytes())
            .expect("write");
        let path = path.to_str().expect("path");
        assert_eq!(ssh_keygen(&["-y", "-f", path]).trim(), key.public_openssh());
        assert!(ssh_keygen(&["-l", "-f", path]).contains(&key.fingerprint()));
    }

    #[test]
    fn keys_made_by_ssh_keygen_are_read() {
        for kind in ["ed25519", "ecdsa"] {
            let folder = tempfile::tempdir().expect("folder");
            let path = folder.path().join("key");
            ssh_keygen(&[
                "-q",
                "-t",
                kind,
                "-N",
                "",
                "-C",
                "someone@there",
                "-f",
                path.to_str().expect("path"),
            ]);
            let key = BuildKey::from_openssh(&std::fs::read_to_string(&path).expect("text"))
                .expect("key");
            let public = std::fs::read_to_string(path.with_extension("pub")).expect("public");
            assert_eq!(key.public_openssh(), public.trim());
        }
    }

    #[test]
    fn a_passphrase_an_rsa_key_and_rubbish_are_told_apart() {
        let folder = tempfile::tempdir().expect("folder");
        let locked = folder.path().join("locked");
        ssh_keygen(&["-q", "-t", "ed25519", "-N", "secret", "-f", locked.to_str().expect("path")]);
        let text = std::fs::read_to_string(&locked).expect("text");
        assert!(matches!(BuildKey::from_openssh(&text), Err(KeyError::Passphrase)));
        for format in ["RFC4716", "PEM"] {
            let rsa = folder.path().join(format);
            ssh_keygen(&[
                "-q",
                "-t",
                "rsa",
                "-b",
                "2048",
                "-m",
                format,
                "-N",
                "",
                "-f",
                rsa.to_str().expect("path"),
            ]);
            let text = std::fs::read_to_string(&rsa).expect("text");
            let error = BuildKey::from_openssh(&text).expect_err("refused");
            assert!(matches!(error, KeyError::Algorithm { .. }), "{format}: {error:?}");
        }
        assert!(matches!(BuildKey::from_openssh("hello"), Err(KeyError::Unreadable(_))));
    }

    #[test]
    fn debug_shows_no_private_part() {
        let key = BuildKey::generate("x").expect("key");
        let shown = format!("{key:?}");
        assert!(shown.contains("SHA256:"));
        assert!(!shown.to_lowercase().contains("keypair"), "{shown}");
    }
}
