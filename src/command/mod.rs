//! The command line: one file a subcommand, each with its arguments and one function.

mod cache;
mod cells;
mod check;
mod compare;
mod completions;
mod console;
mod convert;
mod doctor;
mod encodings;
mod habits;
mod image;
mod import;
mod info;
mod init;
mod man;
mod measure;
mod nc;
mod output;
mod plan;
mod ps;
mod retry;
mod run;
mod schema;
mod shell;
mod ssh;
mod starter;
mod stop;
mod test;
mod the_build;
mod validate;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Parser, Subcommand};

use crate::build::{Cancel, Inputs, Options, Plan, Position};
use crate::error::{Blame, Error};
use crate::profile::{Given, Profile};
use crate::report::{self, OfCell, Redacted, Report};
use crate::secret::Secrets;

/// Bake VM images on /dev/kvm with one binary: no root, no QEMU.
#[derive(Debug, Parser)]
#[command(name = "kvmbake", version, propagate_version = true, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    the profile, an image or the host's set-up is at fault
  2    wrong usage
  3    something failed inside the guest
  130  interrupted
  255  a defect of kvmbake";

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Args),
    Plan(plan::Args),
    Shell(shell::Args),
    Test(test::Args),
    Watch(watch::Args),
    Ps(ps::Args),
    Ssh(ssh::Args),
    Console(console::Args),
    Retry(retry::Args),
    Stop(stop::Args),
    Nc(nc::Args),
    Validate(validate::Args),
    Convert(convert::Args),
    Info(info::Args),
    Check(check::Args),
    Compare(compare::Args),
    Measure(measure::Args),
    Cache(cache::Args),
    Init(init::Args),
    Import(import::Args),
    Schema(schema::Args),
    Man(man::Args),
    Completions(completions::Args),
    Doctor(doctor::Args),
}

/// Runs the command of this process and returns its exit code.
pub fn main() -> u8 {
    let cli = Cli::parse();
    raise_descriptor_limit();
    let json = matches!(&cli.command, Command::Run(args) if args.json);
    let secrets = Secrets::default();
    let reporter: Arc<dyn Report> = Redacted::new(report::for_process(json), secrets.clone());
    let done = |()| 0;
    let result = match cli.command {
        Command::Run(args) => run::run(&args, Arc::clone(&reporter), &secrets),
        Command::Plan(args) => plan::run(&args, Arc::clone(&reporter), &secrets).map(done),
        Command::Shell(args) => shell::run(&args, Arc::clone(&reporter), &secrets),
        Command::Test(args) => test::run(&args, Arc::clone(&reporter), &secrets).map(done),
        Command::Watch(args) => watch::run(&args, Arc::clone(&reporter), &secrets).map(done),
        Command::Ps(args) => ps::run(&args).map(done),
        Command::Ssh(args) => ssh::run(&args),
        Command::Console(args) => console::run(&args).map(done),
        Command::Retry(args) => retry::run(&args).map(done),
        Command::Stop(args) => stop::run(&args).map(done),
        Command::Nc(args) => nc::run(&args).map(done),
        Command::Validate(args) => validate::run(&args, Arc::clone(&reporter), &secrets).map(done),
        Command::Convert(args) => convert::run(&args, Arc::clone(&reporter)).map(done),
        Command::Info(args) => info::run(&args).map(done),
        Command::Check(args) => check::run(&args).map(done),
        Command::Compare(args) => compare::run(&args, Arc::clone(&reporter)),
        Command::Measure(args) => measure::run(&args, &*reporter).map(done),
        Command::Cache(args) => cache::run(&args).map(done),
        Command::Init(args) => init::run(&args).map(done),
        Command::Import(args) => import::run(&args).map(done),
        Command::Schema(args) => schema::run(&args).map(done),
        Command::Man(args) => man::run(&args).map(done),
        Command::Completions(args) => completions::run(&args).map(done),
        Command::Doctor(args) => doctor::run(&args).map(done),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            reporter.event(report::Event::Failed(&error));
            error.blame.exit_code()
        }
    }
}

/// The profile, and what it is given.
#[derive(Debug, Clone, clap::Args)]
struct ProfileArgs {
    /// The profile
    #[arg(value_name = "PROFILE")]
    profile: PathBuf,
    /// Gives a variable of the profile's [vars] a value; may be repeated
    #[arg(long = "var", value_name = "NAME=VALUE", value_parser = pair)]
    vars: Vec<(String, String)>,
    /// Takes values from a TOML or JSON file; may be repeated, later files replace earlier ones
    #[arg(long = "var-file", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Takes this cell of the profile's [matrix] alone: its name, or AXIS=VALUE,…; may be repeated
    #[arg(long = "cell", value_name = "CELL")]
    cells: Vec<String>,
}

impl ProfileArgs {
    /// Returns what the profile is given. Values on the command line replace those of files.
    fn given(&self, secrets: &Secrets) -> Result<Given, Error> {
        let mut given = Given::of_process(secrets);
        given.cells = self.cells.clone();
        for file in &self.files {
            given.read_file(file).map_err(Error::input)?;
        }
        self.vars.iter().for_each(|(name, value)| given.set(name, value));
        Ok(given)
    }

    /// Returns what the profile follows from; with a faulty file of variables, what is known without.
    fn inputs(&self, secrets: &Secrets) -> Inputs {
        let given = self.given(secrets).unwrap_or_else(|_| Given::of_process(secrets));
        let mut inputs = Inputs::of(&self.profile, &given);
        self.files.iter().for_each(|file| inputs.add(file));
        inputs
    }

    /// Returns a plan for each cell of the profile's matrix; one for a profile without.
    fn plans(
        &self,
        report: &Arc<dyn Report>,
        secrets: &Secrets,
        cancel: &Cancel,
    ) -> Result<Vec<Arc<Plan>>, Error> {
        let of_cell = |profile: &Profile| match &profile.cell {
            Some(cell) => OfCell::new(Arc::clone(report), cell.name(), None) as Arc<dyn Report>,
            None => Arc::clone(report),
        };
        let plans = Plan::load_cells(&self.profile, &self.given(secrets)?, of_cell, cancel)?;
        Ok(plans.into_iter().map(Arc::new).collect())
    }

    fn plan(
        &self,
        report: &Arc<dyn Report>,
        secrets: &Secrets,
        cancel: &Cancel,
    ) -> Result<Plan, Error> {
        Plan::load(&self.profile, &self.given(secrets)?, report, cancel)
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    Ok((name.trim().to_string(), value.to_string()))
}

/// How the cache is used.
#[derive(Debug, clap::Args)]
struct CacheArgs {
    /// Neither take layers from the cache nor keep any
    #[arg(long)]
    no_cache: bool,
    /// Make STEP (`boot`, a number or a title) and all that follows anew
    #[arg(long, value_name = "STEP", conflicts_with = "no_cache")]
    from: Option<String>,
}

impl CacheArgs {
    fn options(&self, plan: &Plan) -> Result<Options, Error> {
        let from =
            self.from.as_deref().map(|text| Position::find(&plan.profile, text)).transpose()?;
        Ok(Options { no_cache: self.no_cache, from, ..Options::default() })
    }
}

/// Runs `work` on this thread.
fn block_on<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| {
            Error::new(Blame::Internal, "Cannot start the event loop").because(&error)
        })?;
    runtime.block_on(work)
}

/// Lifts the soft limit on open files to the hard one: each connection of a guest takes a descriptor,
/// and the soft limit is low for the sake of programs that use select(2).
fn raise_descriptor_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls take a pointer to a live rlimit and keep nothing of it.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}

/// Lets Ctrl-C, SIGTERM and SIGHUP stop the command in good order. A second one ends the process
/// at once; what that leaves behind, the next build removes.
fn stop_on_signal(cancel: &Cancel) -> Result<(), Error> {
    use tokio::signal::unix::{SignalKind, signal};
    let failed = |error: &dyn std::error::Error| {
        let mut failed = Error::new(Blame::Internal, "Cannot handle signals");
        failed.causes.push(error.to_string());
        failed
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| failed(&error))?;
    let listen = |kind| {
        let _context = runtime.enter();
        signal(kind).map_err(|error| failed(&error))
    };
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let mut hangup = listen(SignalKind::hangup())?;
    let cancel = cancel.clone();
    let wait = async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
            if cancel.is_set() {
                std::process::exit(i32::from(Blame::Interrupted.exit_code()));
            }
            cancel.set();
        }
    };
    // A thread of its own hears the signal while the command is in blocking work.
    std::thread::Builder::new()
        .name("signals".into())
        .stack_size(SIGNAL_STACK)
        .spawn(move || runtime.block_on(wait))
        .map_err(|error| failed(&error))?;
    Ok(())
}

/// Stack of the thread that waits for signals.
const SIGNAL_STACK: usize = 128 << 10;

/// Prints to standard output; a reader that has gone away is no error.
fn print(text: &str) -> Result<(), Error> {
    use std::io::{ErrorKind, Write};
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Error::input("Cannot write to standard output").because(&error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
