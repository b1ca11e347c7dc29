//! The layer cache and machine snapshots, as a user meets them: what is reused, what is made anew and
//! what the reason is said to be; what survives kills, damage and company; what a guest that went on
//! from memory can tell of it.
//!
//! One build of five steps ([`five`]) is made once; each test begins with a copy of its cache.

mod company;
mod damage;
mod edits;
mod five;
mod guest_memory;
mod inner_loop;
mod kills;
mod resumed;
mod sameness;
mod unchanged;
