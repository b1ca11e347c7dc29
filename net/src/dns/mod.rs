//! The name server: forwards queries to the host's resolvers and their answers back. The addresses of
//! names that the configuration or the host's own file has are answered here.
//!
//! Messages pass through unread but for their header and question, so EDNS, DNSSEC and types yet to
//! come work as far as the host's resolvers do. Each query has a socket of its own, so that an
//! answer from anyone but the resolver asked, or to another query, is not taken. Where no resolver
//! answers in time, or there is none, the guest gets SERVFAIL.
//!
//! Queries over TCP are read in [`stream`], and answered by the same rules ([`judge`]).

pub(crate) mod addresses;
mod hosts;
pub(crate) mod judge;
pub(crate) mod message;
pub(crate) mod resolvers;
mod stream;

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use crate::config::NatConfig;
use crate::host::poller::{Poller, Token};
use crate::host::socket::Socket;
use crate::link::DropReason;
use crate::outbox::Outbox;
use crate::policy::DNS_PORT;
use crate::slab::{Slab, Slot};
use crate::timers::{Micros, Timers};
use crate::wire::{ip, udp};

use hosts::Hosts;
use judge::Judge;
use message::{Query, Rcode};
use resolvers::ResolverList;
use stream::{Conversations, Sources};

/// How long one resolver has for its answer.
const PATIENCE: Micros = 2_000_000;
/// How many times the list of resolvers is gone through.
const ROUNDS: usize = 2;
/// How many messages that are not the answer a resolver may send in its place.
const MAX_WRONG: usize = 16;

#[derive(Debug)]
struct Pending {
    client: Client,
    query: Query,
    socket: Socket,
    /// Attempts made, which is also the place in the list of resolvers.
    attempts: usize,
    /// Messages that were not the answer.
    wrong: usize,
    queued: bool,
}

/// Who asks, and whom.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Client {
    pub(crate) guest: (IpAddr, u16),
    /// The name server's address that was asked.
    pub(crate) server: IpAddr,
}

impl Client {
    /// Returns the name server as the guest sees it.
    pub(crate) fn peer(&self) -> SocketAddr {
        (self.server, DNS_PORT).into()
    }
}

/// The queries under way.
#[derive(Debug)]
pub(crate) struct Dns {
    pending: Slab<Pending>,
    timers: Timers,
    resolvers: ResolverList,
    hosts: Hosts,
    search: Option<Vec<String>>,
    /// Guests' connections.
    conversations: Conversations,
    /// Queries whose sockets may hold an answer.
    backlog: VecDeque<Slot>,
    limit: usize,
    mtu: usize,
}

impl Dns {
    pub(crate) fn new(config: &NatConfig) -> Dns {
        Dns {
            pending: Slab::new(),
            timers: Timers::default(),
            resolvers: ResolverList::new(config.resolvers.clone()),
            hosts: Hosts::new(&config.names, config.hosts.clone()),
            search: config.search.clone(),
            conversations: Conversations::new(config.limits.dns_queries),
            backlog: VecDeque::new(),
            limit: config.limits.dns_queries,
            mtu: usize::from(config.mtu),
        }
    }

    /// Takes a connection of a guest's that has queries, and returns the guest's end of it.
    ///
    /// # Errors
    /// There are too many already, or the host refused.
    pub(crate) fn begin_stream(
        &mut self,
        client: Client,
        poller: &Poller,
        now: Micros,
    ) -> io::Result<UnixStream> {
        self.conversations.begin(client, poller, now)
    }

    /// Goes on with a guest's connection.
    pub(crate) fn advance_stream(&mut self, slot: Slot, poller: &Poller, judge: &mut Judge<'_>) {
        let (conversations, mut from) = self.conversations(poller);
        conversations.advance(slot, &mut from, judge);
    }

    /// Takes how many queries have come over connections since the last call.
    pub(crate) fn take_asked_in_streams(&mut self) -> u64 {
        self.conversations.take_asked()
    }

    fn conversations<'a>(&'a mut self, poller: &'a Poller) -> (&'a mut Conversations, Sources<'a>) {
        let from = Sources { hosts: &mut self.hosts, resolvers: &mut self.resolvers, poller };
        (&mut self.conversations, from)
    }

    /// Returns the domains that the guest is to look short names up in.
    pub(crate) fn search(&mut self) -> &[String] {
        match &self.search {
            Some(domains) => domains,
            None => self.resolvers.search(),
        }
    }

    /// Returns the length of the longest message to a guest that has asked `server`.
    fn max_payload(&self, server: IpAddr) -> usize {
        self.mtu - ip::header_len(server) - udp::HEADER_LEN
    }

    /// Takes a query.
    pub(crate) fn push(
        &mut self,
        payload: &[u8],
        client: Client,
        poller: &Poller,
        outbox: &mut Outbox,
        now: Micros,
    ) -> Result<(), DropReason> {
        let query = Query::read(payload).ok_or(DropReason::BadDns)?;
        let max = self.max_payload(client.server);
        if let Some(addresses) = self.hosts.answer(&query) {
            let from = (client.server, DNS_PORT);
            let queued = outbox.queue_udp(from, client.guest, max, |payload| {
                Some(query.write_addresses(payload, addresses))
            });
            return queued.ok_or(DropReason::NoRoom);
        }
        if self.pending.len() >= self.limit {
            self.answer(outbox, client, &query, Rcode::ServerFailure);
            return Err(DropReason::NoRoom);
        }
        self.attempt(client, query, 0, poller, outbox, now);
        Ok(())
    }

    /// Asks the next resolver that can be asked at all, or gives up.
    fn attempt(
        &mut self,
        client: Client,
        query: Query,
        mut attempts: usize,
        poller: &Poller,
        outbox: &mut Outbox,
        now: Micros,
    ) {
        let resolvers = self.resolvers.current();
        while attempts < resolvers.len() * ROUNDS {
            let resolver = resolvers[attempts % resolvers.len()];
            attempts += 1;
            let token = Token::Dns(self.pending.next_slot());
            let sent = Socket::connect_udp(resolver).and_then(|socket| {
                poller.watch(socket.as_fd(), token)?;
                socket.send(query.bytes())?;
                Ok(socket)
            });
            if let Ok(socket) = sent {
                let slot = self.pending.insert(Pending {
                    client,
                    query,
                    socket,
                    attempts,
                    wrong: 0,
                    queued: false,
                });
                self.timers.set(slot, Some(now + PATIENCE));
                return;
            }
        }
        self.answer(outbox, client, &query, Rcode::ServerFailure);
    }

    /// Answers a query ourselves.
    fn answer(&self, outbox: &mut Outbox, client: Client, query: &Query, rcode: Rcode) {
        let from = (client.server, DNS_PORT);
        // Without room the guest asks again.
        let _ = outbox.queue_udp(from, client.guest, query.answer_len(), |payload| {
            query.write_answer(payload, rcode);
            Some(query.answer_len())
        });
    }

    /// Notes that a query's socket has something to read.
    pub(crate) fn readable(&mut self, slot: Slot) {
        if let Some(pending) = self.pending.get_mut(slot)
            && !pending.queued
        {
            pending.queued = true;
            self.backlog.push_back(slot);
        }
    }

    /// Returns the addresses that a query is answered with without any resolver.
    pub(crate) fn own_answer(&mut self, payload: &[u8]) -> Option<Vec<IpAddr>> {
        Some(self.hosts.answer(&Query::read(payload)?)?.to_vec())
    }

    /// Refuses a query of the guest's that it may not make.
    pub(crate) fn refuse(&self, payload: &[u8], client: Client, outbox: &mut Outbox) {
        if let Some(query) = Query::read(payload) {
            self.answer(outbox, client, &query, Rcode::Refused);
        }
    }

    /// Moves answers from the resolvers to the outbox, as far as it has room. One that may not pass is
    /// refused.
    pub(crate) fn receive(&mut self, poller: &Poller, outbox: &mut Outbox, judge: &mut Judge<'_>) {
        let now = judge.now;
        while outbox.has_room(self.mtu + 64) {
            let Some(slot) = self.backlog.pop_front() else {
                return;
            };
            let Some(pending) = self.pending.get_mut(slot) else {
                continue;
            };
            pending.queued = false;
            let mut received = Ok(0);
            let client = pending.client;
            let Client { guest, server } = client;
            let max_payload = self.mtu - ip::header_len(server) - udp::HEADER_LEN;
            outbox.queue_udp((server, DNS_PORT), guest, max_payload, |payload| {
                received = pending.socket.receive(payload, libc::MSG_TRUNC);
                let len = *received.as_ref().ok()?;
                let query = &pending.query;
                if !query.is_answered_by(&payload[..len.min(payload.len())]) {
                    received = Err(io::ErrorKind::InvalidData.into());
                    return None;
                }
                if !judge.may_pass(&payload[..len.min(payload.len())], client) {
                    query.write_answer(payload, Rcode::Refused);
                    return Some(query.answer_len());
                }
                if len > payload.len() {
                    query.write_answer(payload, Rcode::Truncated);
                    return Some(query.answer_len());
                }
                Some(len)
            });
            match received {
                Ok(_) => drop(self.finish(slot)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // Not the answer: it may still be coming.
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    pending.wrong += 1;
                    match pending.wrong < MAX_WRONG {
                        true => self.readable(slot),
                        false => self.retry(slot, poller, outbox, now),
                    }
                }
                Err(_) => self.retry(slot, poller, outbox, now),
            }
        }
    }

    fn finish(&mut self, slot: Slot) -> Option<Pending> {
        self.timers.set(slot, None);
        self.pending.remove(slot)
    }

    fn retry(&mut self, slot: Slot, poller: &Poller, outbox: &mut Outbox, now: Micros) {
        if let Some(pending) = self.finish(slot) {
            let Pending { client, query, attempts, .. } = pending;
            self.attempt(client, query, attempts, poller, outbox, now);
        }
    }

    /// Whether [`receive`](Dns::receive) has left something for want of room.
    pub(crate) fn has_backlog(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Turns to the next resolver where one has not answered in time.
    pub(crate) fn expire(&mut self, poller: &Poller, outbox: &mut Outbox, judge: &mut Judge<'_>) {
        while let Some(slot) = self.timers.pop_due(judge.now) {
            self.retry(slot, poller, outbox, judge.now);
        }
        let (conversations, mut from) = self.conversations(poller);
        conversations.expire(&mut from, judge);
    }

    /// Returns when the next resolver's time is up.
    pub(crate) fn deadline(&self) -> Option<Micros> {
        let datagrams = self.timers.first().map(|(deadline, _)| deadline);
        datagrams.into_iter().chain(self.conversations.deadline()).min()
    }
}
