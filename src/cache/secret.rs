//! The store's own secrets: the random key that secrets of profiles are digested with, and the SSH
//! key that opens the guests in its layers. Both are made once and stay.

use std::io;

use kvmbake_provision::key::BuildKey;
use zeroize::Zeroizing;

use super::Cache;
use super::digest::Digest;
use super::error::CacheError;
use super::recipe::{Field, Value, put};
use super::root::once;
use crate::random;

impl Cache {
    /// Makes a field of a secret: it tells whether the secret is another one, and nothing else, as
    /// its digest is keyed with random bytes that never leave the store.
    ///
    /// # Errors
    /// The store's key cannot be read or made.
    pub fn secret(&self, name: impl Into<String>, secret: &[u8]) -> Result<Field, CacheError> {
        let path = self.root.join("secret");
        let key = once::<CacheError>(&path, || {
            let mut key = vec![0; 32];
            random::fill(&mut key).map_err(CacheError::io("make", &path))?;
            Ok(key)
        })?;
        let key = Zeroizing::new(key);
        let key: &[u8; 32] = key.as_slice().try_into().map_err(|_| CacheError::Damaged {
            path: path.clone(),
            why: format!("it has {} bytes instead of 32", key.len()),
        })?;
        let name = name.into();
        // With the name, so that two fields do not show that they have one secret.
        let mut text = Zeroizing::new(Vec::with_capacity(name.len() + secret.len() + 16));
        put(&mut text, name.as_bytes());
        put(&mut text, secret);
        let digest = Digest::from_bytes(*blake3::keyed_hash(key, &text).as_bytes());
        Ok(Field { name, value: Value::Secret(digest) })
    }

    /// Returns the key pair that opens the guests in this store's layers, made when it is missing.
    ///
    /// # Errors
    /// The key cannot be read or made.
    pub fn ssh_key(&self) -> Result<BuildKey, CacheError> {
        let path = self.root.join("ssh/id_ed25519");
        let failed = |source| CacheError::Key { path: path.clone(), source };
        let text = once::<CacheError>(&path, || {
            let key = BuildKey::generate("cache").map_err(failed)?;
            Ok(key.private_openssh().map_err(failed)?.as_bytes().to_vec())
        })?;
        let text = Zeroizing::new(text);
        let text = std::str::from_utf8(&text).map_err(|error| {
            CacheError::io("read", &path)(io::Error::new(io::ErrorKind::InvalidData, error))
        })?;
        BuildKey::from_openssh(text).map_err(failed)
    }
}
