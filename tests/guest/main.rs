//! The whole program on real images: the release binary bakes inside the rig, as a user whose only
//! privilege is `/dev/kvm`, and programs that are not ours judge what it made.
//!
//! Run with `cargo test --release --test guest -- --test-threads=1`: one L1 serves all tests, and
//! each of them keeps its processors busy.

mod ansible;
mod attach;
mod bake;
mod failures;
mod interrupts;
mod layers;
mod matrix;
mod network;
mod project;
mod reboots;
mod seeds;
mod steps;
mod sysprep;
