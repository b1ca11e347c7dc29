//! The userspace network.
