//! Connections that the guest opens: the host's side first, and what becomes of it.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use smoltcp::wire::IpListenEndpoint;

use crate::config::Target;
use crate::dns::Client;
use crate::host::poller::Token;
use crate::host::socket::{Connect, Socket};
use crate::link::DropReason;
use crate::outbox::Outbox;
use crate::policy::{Refusal, Route};
use crate::slab::Slot;
use crate::watch::{Bytes, Ended, Outcome, Protocol};
use crate::wire::{icmp, ip};

use super::flow::{Flow, Key, Stage};
use super::{Header, Surroundings, TcpFlows};

impl TcpFlows {
    /// Opens a flow for a SYN from the guest.
    pub(super) fn accept(
        &mut self,
        packet: &ip::Packet<'_>,
        header: &Header,
        key: Key,
        around: &mut Surroundings<'_>,
    ) -> Result<(), DropReason> {
        let peer = (key.remote, key.remote_port).into();
        let name = around.policy.name_of(key.remote);
        let route = match around.policy.tcp(key.remote, key.remote_port, around.now) {
            Ok(route) => route,
            Err(refusal) => {
                if let Refusal::Denied(denial) = refusal {
                    self.reset(packet, around);
                    let (guest_port, why) = (key.guest_port, (around.policy, denial));
                    around.reporter.denied(Protocol::Tcp, guest_port, peer, name, why, around.now);
                }
                return Err(refusal.into());
            }
        };
        if self.flows.len() >= self.limits.tcp_flows
            || self.connecting >= self.limits.tcp_connecting
        {
            return Err(DropReason::NoRoom);
        }
        if matches!(route, Route::Service(_)) {
            around.reporter.opened(peer);
        }
        let mut others = Vec::new();
        let opened = match route {
            Route::Service(Target::Service(service)) => {
                service.connect().and_then(Socket::try_from).map(|socket| (socket, Connect::Done))
            }
            Route::Service(Target::Socket(path)) => {
                Socket::connect_unix(&path).map(|socket| (socket, Connect::Done))
            }
            Route::Service(Target::Host(addresses)) => {
                others = addresses.into_iter().rev().collect();
                connect_any(&mut others)
            }
            Route::Host(address) => Socket::connect_tcp(address),
            Route::Resolver => {
                let client = Client { guest: (key.guest, key.guest_port), server: key.remote };
                let stream = around.dns.begin_stream(client, around.poller, around.now);
                stream.and_then(Socket::try_from).map(|socket| (socket, Connect::Done))
            }
        };
        let (host, connect) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                tracing::debug!(to = %key.remote, port = key.remote_port, %error, "no TCP flow");
                let failure = Failure::of(&error);
                self.ended.push(Ended {
                    protocol: Protocol::Tcp,
                    inbound: false,
                    guest_port: key.guest_port,
                    peer,
                    name,
                    opened: around.now,
                    bytes: Bytes::default(),
                    outcome: failure.outcome(),
                });
                match failure {
                    Failure::Refused => self.reset(packet, around),
                    Failure::Unreachable(why) => {
                        unreachable(around.outbox, &key, header.seq, why);
                    }
                    Failure::Silent => {}
                }
                return Err(DropReason::HostError);
            }
        };
        let token = Token::Tcp(self.flows.next_slot());
        if let Err(error) = around.poller.watch(host.as_fd(), token) {
            tracing::warn!(%error, "cannot watch a socket");
            return Err(DropReason::HostError);
        }
        let stage = Stage::Connecting { syn: header.seq, others };
        let flow = Flow::new(key, stage, Some(host), self.buffer(), around.now);
        let mut flow = flow.map_err(|error| {
            tracing::warn!(%error, "no memory for a flow");
            DropReason::HostError
        })?;
        flow.name = name;
        let socket = flow.socket();
        socket.pause_synack(true);
        let endpoint = IpListenEndpoint { addr: Some(key.remote.into()), port: key.remote_port };
        if socket.listen(endpoint).is_err() {
            return Err(DropReason::BadTcp);
        }
        let sockets = Some(&mut flow.sockets);
        self.engine.push(packet.bytes, sockets, around.outbox, around.now)?;
        match connect {
            Connect::Done => flow.open(),
            Connect::InProgress => self.connecting += 1,
        }
        let slot = self.insert(flow);
        self.touch(slot);
        Ok(())
    }

    /// Deals with the end of a connection attempt of the host's.
    pub(super) fn connected(&mut self, slot: Slot, around: &mut Surroundings<'_>) {
        let Some(flow) = self.flows.get_mut(slot) else {
            return;
        };
        let Stage::Connecting { syn, others } = &mut flow.stage else {
            return;
        };
        let syn = *syn;
        let mut result = match &flow.host {
            Some(host) => host.progress(),
            None => Err(io::ErrorKind::NotConnected.into()),
        };
        if result.is_err() && !others.is_empty() {
            // Closing the failed socket ends its watch, so the new one takes its token over.
            result = connect_any(others).and_then(|(host, connect)| {
                around.poller.watch(host.as_fd(), Token::Tcp(slot))?;
                flow.host = Some(host);
                Ok(connect)
            });
        }
        match result {
            Ok(Connect::Done) => {
                flow.open();
                self.connecting -= 1;
            }
            Ok(Connect::InProgress) => {}
            Err(error) => match Failure::of(&error).noted_by(flow) {
                Failure::Refused => flow.socket().abort(),
                Failure::Unreachable(why) => {
                    let key = flow.key;
                    unreachable(around.outbox, &key, syn, why);
                    self.remove(slot);
                }
                Failure::Silent => self.remove(slot),
            },
        }
    }
}

/// Starts to connect to the last of `addresses` that can be tried at all, removing those tried.
fn connect_any(addresses: &mut Vec<SocketAddr>) -> io::Result<(Socket, Connect)> {
    let mut result = Err(io::Error::from_raw_os_error(libc::ECONNREFUSED));
    while result.is_err()
        && let Some(address) = addresses.pop()
    {
        result = Socket::connect_tcp(address);
    }
    result
}

/// What a failed connection of the host's means for the guest.
enum Failure {
    Refused,
    Unreachable(icmp::Unreachable),
    Silent,
}

impl Failure {
    fn of(error: &io::Error) -> Failure {
        match (error.kind(), icmp::Unreachable::from_host_error(error)) {
            (io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset, _) => {
                Failure::Refused
            }
            (_, Some(why)) => Failure::Unreachable(why),
            (io::ErrorKind::TimedOut, None) => Failure::Silent,
            // The host lacks something, or a service does not serve.
            (_, None) => Failure::Refused,
        }
    }
}

impl Failure {
    fn outcome(&self) -> Outcome {
        match self {
            Failure::Refused => Outcome::Refused,
            Failure::Unreachable(_) => Outcome::Unreachable,
            Failure::Silent => Outcome::TimedOut,
        }
    }

    fn noted_by(self, flow: &mut Flow) -> Failure {
        flow.failed = Some(self.outcome());
        self
    }
}

/// Tells the guest that the destination of its SYN cannot be reached.
fn unreachable(outbox: &mut Outbox, key: &Key, syn: u32, why: icmp::Unreachable) {
    let mut transport = [0; 8];
    transport[..2].copy_from_slice(&key.guest_port.to_be_bytes());
    transport[2..4].copy_from_slice(&key.remote_port.to_be_bytes());
    transport[4..].copy_from_slice(&syn.to_be_bytes());
    let quote = icmp::Quote { src: key.guest, dst: key.remote, protocol: ip::TCP, transport };
    // Without room the guest's SYN comes again.
    let _ = outbox.queue_unreachable(key.remote, why, &quote);
}
