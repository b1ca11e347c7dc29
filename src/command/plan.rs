//! `kvmbake plan`

use std::fmt::Write;
use std::sync::Arc;

use super::{CacheArgs, ProfileArgs, print};
use crate::build::{Build, Cancel, Position};
use crate::error::Error;
use crate::report::{Report, planned, printable};
use crate::secret::Secrets;

/// Says what a run would take from the cache, what it would do, and why
///
/// Nothing is booted, and nothing is written but a base image that must be downloaded first. For each layer that is missing it says what differs from
/// the profile's last run: the key, the variable or the file, with the old and the new value.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    profile: ProfileArgs,
    #[command(flatten)]
    cache: CacheArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Looks ahead and prints what it saw.
///
/// # Errors
/// The profile, a file it names, or the cache is at fault.
pub fn run(args: &Args, report: Arc<dyn Report>, secrets: &Secrets) -> Result<(), Error> {
    let cancel = Cancel::default();
    super::stop_on_signal(&cancel)?;
    let plan = Arc::new(args.profile.plan(&report, secrets, &cancel)?);
    let options = args.cache.options(&plan)?;
    let build = Build::new(Arc::clone(&plan), &options, report, cancel)?;
    let outlook = super::block_on(build.outlook(Position::Sealed))?;
    if args.json {
        let entries: Vec<serde_json::Value> = outlook
            .entries
            .iter()
            .map(|entry| {
                serde_json::json!({
                    "position": entry.position.to_string(), "title": entry.title,
                    "action": entry.action(), "remark": entry.remark(), "details": entry.details(),
                    "layer": entry.layer().map(|layer| layer.id().to_string()),
                })
            })
            .collect();
        let mut entries = serde_json::Value::Array(entries);
        secrets.redact_json(&mut entries);
        return print(&format!("{entries}\n"));
    }
    let mut text = String::new();
    let base = plan.profile.image.source.value.to_string();
    let _ = writeln!(text, "  {:<6}  {:<7}  {}", "", "base", printable(&base));
    for entry in &outlook.entries {
        let line = planned(&entry.position.to_string(), &entry.title, &entry.remark());
        let _ = writeln!(text, "  {:<6}  {line}", entry.action());
        for line in entry.details() {
            let _ = writeln!(text, "{:<19}{}", "", printable(&line));
        }
    }
    for gone in &outlook.discarded {
        let _ = writeln!(text, "  thrown away: {}", printable(&gone.to_string()));
    }
    print(&secrets.redact(&text))
}
