//! The NAT against real peers: Linux's own network stack as the guest, over a TAP device.
//!
//! Needs root and /dev/net/tun. All traffic stays in namespaces that the tests make.

#[path = "../../examples/tap/device.rs"]
mod device;
mod dialling;
mod forwards;
mod icmp;
mod ipv6;
mod names;
mod programs;
mod restore;
mod services;
mod tcp;
mod udp;
mod wires;
mod world;
