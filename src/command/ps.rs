//! `kvmbake ps`

use std::time::{Duration, SystemTime};

use crate::control::{Found, Status, all};
use crate::error::Error;
use crate::profile::units::Elapsed;
use crate::report::printable;

/// Lists the running builds of this user
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

/// Lists the builds.
///
/// # Errors
/// Standard output cannot be written.
pub fn run(args: &Args) -> Result<(), Error> {
    let builds: Vec<Status> = all().into_iter().filter_map(Found::into_status).collect();
    if args.json {
        let text = serde_json::to_string_pretty(&builds).unwrap_or_default();
        return super::print(&format!("{text}\n"));
    }
    super::print(&table(&builds, SystemTime::now()))
}

fn table(builds: &[Status], now: SystemTime) -> String {
    if builds.is_empty() {
        return "no build is running\n".into();
    }
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let age = |since: u64| Elapsed(Duration::from_secs(now.saturating_sub(since))).to_string();
    let head = ["ID", "NAME", "STATE", "FOR", "RUNS FOR", "PROFILE"].map(str::to_string);
    let rows: Vec<[String; 6]> = std::iter::once(head)
        .chain(builds.iter().map(|build| {
            let profile = build.profile.display().to_string();
            let (name, state) = (printable(&build.name), printable(&build.state));
            [
                build.id.clone(),
                name,
                state,
                age(build.since),
                age(build.started),
                printable(&profile),
            ]
        }))
        .collect();
    let width =
        |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 6] = std::array::from_fn(width);
    let line = |row: &[String; 6]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builds_stand_in_columns_and_cannot_drive_the_terminal() {
        let status = Status {
            id: "abcdef".into(),
            pid: 1,
            profile: "/srv/web.toml".into(),
            name: "web".into(),
            output: None,
            started: 1000,
            state: "step 2 (a\x1b[2Jb) failed, guest kept".into(),
            since: 1090,
            kept: true,
        };
        let table = table(&[status], SystemTime::UNIX_EPOCH + Duration::from_secs(1100));
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 2);
        assert!(lines[1].contains("step 2 (a\u{fffd}[2Jb) failed, guest kept  "), "{table}");
        let column = |line: &str, word: &str| line[..line.find(word).unwrap()].chars().count();
        assert_eq!(column(lines[0], "PROFILE"), column(lines[1], "/srv"));
        assert_eq!(column(lines[0], "FOR"), column(lines[1], "10"), "{table}");
        assert_eq!(super::table(&[], SystemTime::now()), "no build is running\n");
    }
}
