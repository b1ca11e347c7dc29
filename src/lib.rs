//! The build pipeline and the command.
