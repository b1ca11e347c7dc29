//! The `kvmbake` command.

fn main() {}
