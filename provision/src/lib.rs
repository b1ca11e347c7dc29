//! The guest as seen over SSH.
