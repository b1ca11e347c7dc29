//! Virtual CPUs: what they are told they are (CPUID), their state at entry, their threads, and what stops them.

pub mod cpuid;
pub mod failure;
pub(crate) mod kick;
pub(crate) mod run;
pub(crate) mod setup;
