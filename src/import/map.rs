//! A template's parts as the keys of a profile.

use super::draft::Draft;
use super::settings::Settings;
use super::template::{Part, Template};

/// Returns the profile, and what has no counterpart in it.
///
/// # Errors
/// The template has no QEMU builder.
pub fn profile(template: Template) -> Result<(String, Vec<String>), String> {
    let Template { variables, builders, provisioners, post_processors, notes } = template;
    let mut draft = Draft { variables, notes, ..Draft::default() };
    let (mut qemu, others): (Vec<Part>, Vec<Part>) =
        builders.into_iter().partition(|builder| builder.kind == "qemu");
    if qemu.is_empty() {
        return Err("It has no QEMU builder (`type` qemu, or `source \"qemu\"`)".into());
    }
    for other in others {
        draft.note(format!("The builder `{}`", other.kind));
    }
    if qemu.len() > 1 {
        draft.note(format!("{} more QEMU builders; this is the first", qemu.len() - 1));
    }
    draft.builder(Settings::of("qemu", qemu.remove(0)));
    for part in provisioners {
        draft.provisioner(part);
    }
    for part in post_processors {
        draft.post_processor(part);
    }
    draft.secrets();
    Ok(draft.finish())
}
