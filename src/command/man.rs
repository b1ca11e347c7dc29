//! `kvmbake man`

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::{Command, CommandFactory};
use clap_mangen::Man;

use super::{Cli, print};
use crate::build::export::source_date_epoch;
use crate::calendar::rfc3339;
use crate::error::Error;

/// The digits of a date without its time.
const DATE: usize = "2026-01-31".len();

/// Prints the man page, or writes those of all commands to a folder
///
/// `kvmbake man | man -l -` shows it. The pages' date is that of today; SOURCE_DATE_EPOCH sets it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Writes kvmbake.1, kvmbake-run.1 and so on there instead
    #[arg(short, long, value_name = "FOLDER")]
    output: Option<PathBuf>,
}

/// Writes the pages.
///
/// # Errors
/// They cannot be written.
pub fn run(args: &Args) -> Result<(), Error> {
    let epoch = source_date_epoch()?.map(Duration::from_secs);
    let time = epoch.and_then(|since| SystemTime::UNIX_EPOCH.checked_add(since));
    let date: String = rfc3339(time.unwrap_or_else(SystemTime::now)).chars().take(DATE).collect();
    // The subcommand `help` is for the command line; its page would say nothing.
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    match &args.output {
        None => {
            let page = rendered(&command, &date)
                .map_err(|error| Error::input("Cannot write the man page").because(&error))?;
            print(&page)
        }
        Some(folder) => fs::create_dir_all(folder)
            .and_then(|()| write(command, &date, folder))
            .map_err(|error| {
                Error::input(format!("Cannot write to {}", folder.display())).because(&error)
            }),
    }
}

/// Writes the page of `command`, and those of all commands below it.
fn write(command: Command, date: &str, folder: &Path) -> io::Result<()> {
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()).cloned() {
        write(below, date, folder)?;
    }
    let path = folder.join(page(&command, date).get_filename());
    fs::write(path, rendered(&command, date)?)
}

fn page(command: &Command, date: &str) -> Man {
    let source = format!("kvmbake {}", env!("CARGO_PKG_VERSION"));
    Man::new(command.clone()).date(date).source(source).manual("kvmbake")
}

fn rendered(command: &Command, date: &str) -> io::Result<String> {
    let mut bytes = Vec::new();
    page(command, date).render(&mut bytes)?;
    String::from_utf8(bytes).map(|page| tidy(&page)).map_err(io::Error::other)
}

/// Writes an empty line between two breaks, which lists of values begin with, as the vertical space that
/// it is: formatters complain of it.
fn tidy(page: &str) -> String {
    page.replace("\n.br\n\n.br\n", "\n.sp\n")
}
