//! Packer templates with a QEMU builder, turned into profiles. What has no counterpart is listed, in the
//! profile too: nothing is left out in silence.
//!
//! Both forms of a template, JSON and HCL2, are read to one shape ([`template`]), which [`map`] turns into
//! a profile's keys.

mod builder;
mod draft;
mod hcl;
mod json;
mod map;
mod provisioner;
mod settings;
mod template;
mod text;

use std::fmt::Write;
use std::path::Path;

use crate::report::printable;

/// A profile that was made of a template.
pub struct Imported {
    /// The profile.
    pub profile: String,
    /// What has no counterpart in it, a sentence each.
    pub notes: Vec<String>,
}

/// Turns the template at `path`, which says `text`, into a profile. Its form goes by its extension.
///
/// # Errors
/// A sentence: it is no template, or has no QEMU builder.
pub fn import(path: &Path, text: &str) -> Result<Imported, String> {
    let is_hcl = path.extension().is_some_and(|extension| extension == "hcl");
    let template = if is_hcl { hcl::read(text)? } else { json::read(text)? };
    let (body, notes) = map::profile(template)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut profile = format!("# Made of {} by `kvmbake import`.\n", printable(&name));
    if !notes.is_empty() {
        profile.push_str("#\n# Without a counterpart here:\n");
        for note in &notes {
            let _ = writeln!(profile, "# - {}", printable(note));
        }
    }
    profile.push_str(&body);
    Ok(Imported { profile, notes })
}

#[cfg(test)]
mod tests;
