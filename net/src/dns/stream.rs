//! Queries over TCP (RFC 7766), answered as those over UDP are.
//!
//! A guest's connection is an ordinary flow, whose other end is a conversation here: it reads one
//! query after the other, each behind its length (RFC 1035, section 4.2.2), and answers each before
//! it reads the next. What is not answered here is asked of the resolvers, each over a connection of
//! its own, as the answers over UDP may be too long.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use crate::host::poller::{Poller, Token};
use crate::host::socket::Socket;
use crate::slab::{Slab, Slot};
use crate::timers::{Micros, Timers};
use crate::wire::be16;

use super::hosts::Hosts;
use super::judge::Judge;
use super::message::{MAX_QUERY, Query, Rcode};
use super::resolvers::ResolverList;
use super::{Client, PATIENCE};

/// How long a guest may leave its connection idle, or an answer unread (RFC 7766, section 6.2.3).
const IDLE: Micros = 30_000_000;
/// Bytes of the length before each message.
const PREFIX: usize = 2;
/// The longest answer from names of our own.
const MAX_OWN: usize = 16 << 10;

/// What a conversation is at.
#[derive(Debug)]
enum Stage {
    /// Reading the next query: the bytes of it so far, its length included.
    Reading(Vec<u8>),
    /// Asking a resolver.
    Asking(Box<Asking>),
    /// Writing an answer, of which so many bytes are written.
    Writing(Vec<u8>, usize),
}

#[derive(Debug)]
struct Asking {
    query: Query,
    /// The resolvers to try, the next one last.
    others: Vec<SocketAddr>,
    resolver: Socket,
    /// The query as it is sent, and how much of it is.
    message: Vec<u8>,
    sent: usize,
    answer: Vec<u8>,
}

#[derive(Debug)]
struct Conversation {
    client: Client,
    guest: Socket,
    stage: Stage,
}

/// What becomes of a conversation that has gone as far as it can.
enum Next {
    /// It waits, at most so long.
    Wait(Micros),
    End,
}

/// The conversations.
#[derive(Debug)]
pub(super) struct Conversations {
    slab: Slab<Conversation>,
    timers: Timers,
    limit: usize,
    /// Queries read since they were last asked for.
    asked: u64,
}

/// What answering takes from the name server.
pub(super) struct Sources<'a> {
    pub(super) hosts: &'a mut Hosts,
    pub(super) resolvers: &'a mut ResolverList,
    pub(super) poller: &'a Poller,
}

impl Conversations {
    pub(super) fn new(limit: usize) -> Conversations {
        Conversations { slab: Slab::new(), timers: Timers::default(), limit, asked: 0 }
    }

    /// Begins a conversation, and returns the guest's end of it.
    ///
    /// # Errors
    /// There are too many already, or the host refused.
    pub(super) fn begin(
        &mut self,
        client: Client,
        poller: &Poller,
        now: Micros,
    ) -> io::Result<UnixStream> {
        if self.slab.len() >= self.limit {
            return Err(io::Error::from_raw_os_error(libc::ECONNREFUSED));
        }
        let (ours, theirs) = UnixStream::pair()?;
        let guest = Socket::try_from(ours)?;
        poller.watch(guest.as_fd(), Token::DnsStream(self.slab.next_slot()))?;
        let stage = Stage::Reading(Vec::new());
        let slot = self.slab.insert(Conversation { client, guest, stage });
        self.timers.set(slot, Some(now + IDLE));
        Ok(theirs)
    }

    /// Takes how many queries there have been since the last call.
    pub(super) fn take_asked(&mut self) -> u64 {
        std::mem::take(&mut self.asked)
    }

    /// Goes on with a conversation as far as its sockets let it.
    pub(super) fn advance(&mut self, slot: Slot, from: &mut Sources<'_>, judge: &mut Judge<'_>) {
        let Some(conversation) = self.slab.get_mut(slot) else { return };
        let next = conversation.advance(slot, from, judge, &mut self.asked);
        match next.unwrap_or(Next::End) {
            Next::Wait(time) => self.timers.set(slot, Some(judge.now + time)),
            Next::End => self.end(slot),
        }
    }

    fn end(&mut self, slot: Slot) {
        self.timers.set(slot, None);
        self.slab.remove(slot);
    }

    /// Turns to the next resolver where one has not answered in time, and ends what is idle.
    pub(super) fn expire(&mut self, from: &mut Sources<'_>, judge: &mut Judge<'_>) {
        while let Some(slot) = self.timers.pop_due(judge.now) {
            let Some(conversation) = self.slab.get_mut(slot) else { continue };
            if conversation.give_resolver_up(slot, from.poller) {
                self.advance(slot, from, judge);
            } else {
                self.end(slot);
            }
        }
    }

    /// Returns when the next time is up.
    pub(super) fn deadline(&self) -> Option<Micros> {
        self.timers.first().map(|(deadline, _)| deadline)
    }
}

impl Conversation {
    /// Goes on until a socket has to be waited for. An error ends the conversation.
    fn advance(
        &mut self,
        slot: Slot,
        from: &mut Sources<'_>,
        judge: &mut Judge<'_>,
        asked: &mut u64,
    ) -> io::Result<Next> {
        loop {
            let waiting = match &mut self.stage {
                Stage::Reading(bytes) => match fill(&self.guest, bytes, MAX_QUERY) {
                    Ok(()) => {
                        *asked += 1;
                        let query = Query::read(&bytes[PREFIX..]);
                        let query = query.ok_or(io::ErrorKind::InvalidData)?;
                        self.stage = answer(query, self.client, slot, from, judge);
                        continue;
                    }
                    Err(error) => (error, IDLE),
                },
                Stage::Asking(asking) => match asking.exchange() {
                    Ok(()) => {
                        let answer = &asking.answer[PREFIX..];
                        self.stage = match judge.may_pass(answer, self.client) {
                            true => Stage::Writing(std::mem::take(&mut asking.answer), 0),
                            false => writing(&asking.query, Rcode::Refused),
                        };
                        continue;
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => (error, PATIENCE),
                    Err(_) => {
                        self.give_resolver_up(slot, from.poller);
                        continue;
                    }
                },
                Stage::Writing(bytes, written) => match drain(&self.guest, bytes, written) {
                    Ok(()) => {
                        self.stage = Stage::Reading(Vec::new());
                        continue;
                    }
                    Err(error) => (error, IDLE),
                },
            };
            let (error, time) = waiting;
            return match error.kind() {
                io::ErrorKind::WouldBlock => Ok(Next::Wait(time)),
                _ => Err(error),
            };
        }
    }

    /// Turns from the resolver that is asked to the next, or to the answer that there is none.
    /// Returns whether a resolver was asked at all.
    fn give_resolver_up(&mut self, slot: Slot, poller: &Poller) -> bool {
        let reading = Stage::Reading(Vec::new());
        match std::mem::replace(&mut self.stage, reading) {
            Stage::Asking(asking) => {
                let Asking { query, others, .. } = *asking;
                self.stage = ask(query, others, slot, poller);
                true
            }
            stage => {
                self.stage = stage;
                false
            }
        }
    }
}

impl Asking {
    /// Sends the query and receives its answer.
    fn exchange(&mut self) -> io::Result<()> {
        drain(&self.resolver, &self.message, &mut self.sent)?;
        fill(&self.resolver, &mut self.answer, usize::from(u16::MAX))?;
        match self.query.is_answered_by(&self.answer[PREFIX..]) {
            true => Ok(()),
            false => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// Returns how a query is gone on with.
fn answer(
    query: Query,
    client: Client,
    slot: Slot,
    from: &mut Sources<'_>,
    judge: &mut Judge<'_>,
) -> Stage {
    let own = from.hosts.answer(&query).map(<[_]>::to_vec);
    if !judge.may_ask(query.bytes(), own.clone(), client) {
        return writing(&query, Rcode::Refused);
    }
    if let Some(addresses) = own {
        let mut message = vec![0; PREFIX + MAX_OWN];
        let len = query.write_addresses(&mut message[PREFIX..], &addresses);
        message.truncate(PREFIX + len);
        return Stage::Writing(prefixed(message), 0);
    }
    let others = from.resolvers.current().iter().rev().copied().collect();
    ask(query, others, slot, from.poller)
}

/// Asks the last of `others` that can be asked at all.
fn ask(query: Query, mut others: Vec<SocketAddr>, slot: Slot, poller: &Poller) -> Stage {
    while let Some(address) = others.pop() {
        let opened = Socket::connect_tcp(address).and_then(|(socket, _)| {
            poller.watch(socket.as_fd(), Token::DnsStream(slot))?;
            Ok(socket)
        });
        if let Ok(resolver) = opened {
            let message = prefixed([&[0; PREFIX], query.bytes()].concat());
            let asking = Asking { query, others, resolver, message, sent: 0, answer: Vec::new() };
            return Stage::Asking(Box::new(asking));
        }
    }
    writing(&query, Rcode::ServerFailure)
}

fn writing(query: &Query, rcode: Rcode) -> Stage {
    let mut message = vec![0; PREFIX + query.answer_len()];
    query.write_answer(&mut message[PREFIX..], rcode);
    Stage::Writing(prefixed(message), 0)
}

/// Writes the length of a message to the room before it.
fn prefixed(mut message: Vec<u8>) -> Vec<u8> {
    let len = (message.len() - PREFIX) as u16;
    message[..PREFIX].copy_from_slice(&len.to_be_bytes());
    message
}

/// Reads to `bytes` until they are one message of at most `max` bytes behind its length, and no more.
fn fill(socket: &Socket, bytes: &mut Vec<u8>, max: usize) -> io::Result<()> {
    loop {
        let wanted = match bytes.get(..PREFIX) {
            None => PREFIX,
            Some(prefix) => PREFIX + usize::from(be16(prefix, 0)),
        };
        if wanted > PREFIX + max {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if bytes.len() >= PREFIX && bytes.len() == wanted {
            return Ok(());
        }
        let len = bytes.len();
        bytes.resize(wanted, 0);
        let received = socket.receive(&mut bytes[len..], 0);
        bytes.truncate(len + received.as_ref().map_or(0, |received| *received));
        match received {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Writes what of `bytes` is not `written` yet.
fn drain(socket: &Socket, bytes: &[u8], written: &mut usize) -> io::Result<()> {
    while *written < bytes.len() {
        match socket.send(&bytes[*written..]) {
            Ok(sent) => *written += sent,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
