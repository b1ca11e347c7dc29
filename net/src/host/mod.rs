//! The host's side: non-blocking sockets and the epoll descriptor that watches them.

pub(crate) mod errors;
pub(crate) mod poller;
pub(crate) mod socket;
