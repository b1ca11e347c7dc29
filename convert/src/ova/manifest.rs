//! The manifest: one line for each file with its SHA-256 or SHA-1 (DSP0243, section 5.1).

use std::fmt::Write;

use super::ManifestSum;
use super::tar::{Member, members};
use crate::checksum::{Algorithm, checksum};
use crate::error::{Error, corrupt, unsupported};
use crate::mapped::ImageFile;
use crate::output::Cancel;

const MAX_LEN: u64 = 1 << 20;

/// Returns the manifest of files and their sums.
pub(super) fn encode(kind: ManifestSum, files: &[(&str, String)]) -> String {
    let algorithm = match kind {
        ManifestSum::Sha256 => "SHA256",
        ManifestSum::Sha1 => "SHA1",
    };
    files.iter().fold(String::new(), |mut text, (name, sum)| {
        let _ = writeln!(text, "{algorithm}({name})= {sum}");
        text
    })
}

/// Checks every file that an archive's manifest lists; returns what is wrong.
///
/// # Errors
/// What reading the archive gives.
pub(crate) fn check(image: &ImageFile, cancel: Cancel<'_>) -> Result<Vec<String>, Error> {
    let members = members(image)?;
    let Some(manifest) = members.iter().find(|member| member.name.ends_with(".mf")) else {
        return Ok(vec!["there is no manifest".to_owned()]);
    };
    if manifest.len > MAX_LEN {
        return Err(unsupported(&image.path, "a manifest above 1 MiB").into());
    }
    let mut text = vec![0; manifest.len as usize];
    image.read(&mut text, manifest.offset)?;
    let text = String::from_utf8_lossy(&text);
    let mut problems = Vec::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let entry = parse(line)
            .ok_or_else(|| corrupt(&image.path, format!("the manifest's line {line:?}")))?;
        if let Some(problem) = check_entry(image, &members, &entry, cancel)? {
            problems.push(problem);
        }
    }
    Ok(problems)
}

/// A line of the manifest.
struct Entry<'a> {
    algorithm: &'a str,
    name: &'a str,
    sum: &'a str,
}

fn parse(line: &str) -> Option<Entry<'_>> {
    let (head, sum) = line.rsplit_once(")=")?;
    let (algorithm, name) = head.split_once('(')?;
    Some(Entry { algorithm: algorithm.trim(), name, sum: sum.trim() })
}

fn check_entry(
    image: &ImageFile,
    members: &[Member],
    entry: &Entry<'_>,
    cancel: Cancel<'_>,
) -> Result<Option<String>, Error> {
    let name = entry.name.escape_debug();
    let Some(member) = members.iter().find(|member| member.name == entry.name) else {
        return Ok(Some(format!("the manifest lists {name}, which is not there")));
    };
    let algorithm = match entry.algorithm {
        "SHA256" => Algorithm::Sha256,
        "SHA1" => Algorithm::Sha1,
        other => return Ok(Some(format!("the sum of {name} is of kind {}", other.escape_debug()))),
    };
    let found = checksum(&image.part(member.offset, member.len), algorithm, cancel, &|_| {})?;
    let equal = found.eq_ignore_ascii_case(entry.sum);
    Ok((!equal).then(|| format!("{name} does not have the sum that the manifest states")))
}
