//! The `kvmbake` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(kvmbake::command::main())
}
