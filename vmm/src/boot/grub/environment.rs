//! Variables, and the environment block (`grubenv`) they are loaded from.

use std::collections::HashMap;

/// The longest value a variable may have; `a=$a$a` ends here.
pub const MAX_VALUE: usize = 64 << 10;
const MAX_VARIABLES: usize = 4096;

/// GRUB's variables.
#[derive(Debug, Default)]
pub struct Environment {
    variables: HashMap<String, String>,
}

impl Environment {
    /// Returns a variable's value; an unset one is empty.
    pub fn get(&self, name: &str) -> &str {
        self.variables.get(name).map_or("", String::as_str)
    }

    /// Sets a variable; returns whether name, value and number of variables are within bounds.
    pub fn set(&mut self, name: &str, value: &str) -> bool {
        let known = self.variables.contains_key(name);
        if value.len() > MAX_VALUE || name.len() > 256 || (!known && self.len() >= MAX_VARIABLES) {
            return false;
        }
        self.variables.insert(name.into(), value.into());
        true
    }

    /// Forgets a variable.
    pub fn unset(&mut self, name: &str) {
        self.variables.remove(name);
    }

    fn len(&self) -> usize {
        self.variables.len()
    }
}

/// Reads an environment block: `name=value` lines behind a signature, filled up with `#`; a
/// backslash keeps a line's end or itself in the value. `None` when the signature is missing.
pub fn read_block(bytes: &[u8]) -> Option<Vec<(String, String)>> {
    let text = String::from_utf8_lossy(bytes);
    let body = text.strip_prefix("# GRUB Environment Block\n")?;
    let mut variables = Vec::new();
    let mut line = String::new();
    let mut characters = body.chars();
    loop {
        match characters.next() {
            Some('\\') => line.extend(characters.next()),
            Some('\n') | None if line.is_empty() && characters.as_str().is_empty() => break,
            Some('\n') | None => {
                if let Some((name, value)) = line.split_once('=')
                    && !line.starts_with('#')
                {
                    variables.push((name.to_string(), value.to_string()));
                }
                line.clear();
            }
            Some(other) => line.push(other),
        }
    }
    Some(variables)
}
