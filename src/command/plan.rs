//! `kvmbake plan`

use std::fmt::Write;
use std::sync::Arc;

use super::{CacheArgs, ProfileArgs, print};
use crate::build::{Build, Cancel, Entry, Outlook, Plan, Position};
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
    let plans = args.profile.plans(&report, secrets, &cancel)?;
    let mut outlooks = Vec::with_capacity(plans.len());
    for plan in plans {
        let options = args.cache.options(&plan)?;
        let build = Build::new(Arc::clone(&plan), &options, Arc::clone(&report), cancel.clone())?;
        let outlook = super::block_on(build.outlook(Position::Sealed))?;
        outlooks.push((plan, outlook));
    }
    if args.json {
        let entries = outlooks.iter().flat_map(|(plan, outlook)| entries(plan, outlook)).collect();
        let mut entries = serde_json::Value::Array(entries);
        secrets.redact_json(&mut entries);
        return print(&format!("{entries}\n"));
    }
    let texts: Vec<String> = outlooks.iter().map(|(plan, outlook)| text(plan, outlook)).collect();
    print(&secrets.redact(&texts.join("\n")))
}

fn entries(plan: &Plan, outlook: &Outlook) -> Vec<serde_json::Value> {
    let entry = |entry: &Entry| {
        let mut value = serde_json::json!({
            "position": entry.position.to_string(), "title": entry.title,
            "action": entry.action(), "remark": entry.remark(), "details": entry.details(),
            "layer": entry.layer().map(|layer| layer.id().to_string()),
        });
        if let Some(cell) = &plan.profile.cell {
            value["cell"] = cell.name().into();
        }
        value
    };
    outlook.entries.iter().map(entry).collect()
}

fn text(plan: &Plan, outlook: &Outlook) -> String {
    let mut text = String::new();
    if let Some(cell) = &plan.profile.cell {
        let _ = writeln!(text, "{}", cell.name());
    }
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
    text
}
