//! `kvmbake completions`

use clap::{CommandFactory, ValueEnum};
use clap_complete::Shell;

use super::{Cli, print};
use crate::error::{Blame, Error};

/// Prints the completions of a shell
///
/// bash: `kvmbake completions bash > ~/.local/share/bash-completion/completions/kvmbake`;
/// zsh: `kvmbake completions zsh > _kvmbake` in a folder of $fpath;
/// fish: `kvmbake completions fish > ~/.config/fish/completions/kvmbake.fish`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The shell
    shell: Known,
}

/// The shells that are tested.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Known {
    Bash,
    Zsh,
    Fish,
}

/// Prints them.
///
/// # Errors
/// Standard output cannot be written.
pub fn run(args: &Args) -> Result<(), Error> {
    let shell = match args.shell {
        Known::Bash => Shell::Bash,
        Known::Zsh => Shell::Zsh,
        Known::Fish => Shell::Fish,
    };
    let mut bytes = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "kvmbake", &mut bytes);
    let text = String::from_utf8(bytes)
        .map_err(|error| Error::new(Blame::Internal, "Completions are no text").because(&error))?;
    print(&text)
}
