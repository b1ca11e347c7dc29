//! A stream that remembers how the conversation began, and that can be ended from outside.
//!
//! The SSH library reads the banner itself and reports every failure before it alike. The tap keeps the first bytes and
//! whether the other side hung up, so that the error can say what was there instead of a banner. It also closes: once
//! [`Tap::close`] is called, reads end and writes fail, which stops the library's task whatever it waits for.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How many of the first bytes are kept: the most that a banner with its preceding lines is read to.
const KEPT: usize = 1024;

#[derive(Debug, Default)]
struct State {
    first: Vec<u8>,
    hung_up: bool,
    closed: bool,
    waker: Option<Waker>,
}

/// The watching side.
#[derive(Debug, Clone, Default)]
pub(super) struct Tap(Arc<Mutex<State>>);

/// What the server had said when the attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Opening {
    /// Nothing at all.
    Silence,
    /// Something that is no SSH banner: its first line.
    Other(String),
    /// A banner, `SSH-2.0-…`.
    Banner(String),
}

impl Tap {
    /// Puts the tap on a stream.
    pub(super) fn on<S>(&self, stream: S) -> Tapped<S> {
        Tapped { stream, tap: self.clone() }
    }

    /// Ends the stream for its reader and writer.
    pub(super) fn close(&self) {
        let waker = {
            let mut state = self.state();
            state.closed = true;
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Whether the server ended the stream.
    pub(super) fn hung_up(&self) -> bool {
        self.state().hung_up
    }

    /// What the server said first.
    pub(super) fn opening(&self) -> Opening {
        let state = self.state();
        if state.first.is_empty() {
            return Opening::Silence;
        }
        let text = String::from_utf8_lossy(&state.first);
        let mut lines = text.lines();
        match lines.clone().find(|line| line.starts_with("SSH-")) {
            Some(banner) => Opening::Banner(banner.to_owned()),
            None => {
                let line = lines.find(|line| !line.trim().is_empty()).unwrap_or_default();
                Opening::Other(line.chars().filter(|c| !c.is_control()).take(120).collect())
            }
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The stream with the tap on it.
#[derive(Debug)]
pub(super) struct Tapped<S> {
    stream: S,
    tap: Tap,
}

impl<S: AsyncRead + Unpin> AsyncRead for Tapped<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        {
            let mut state = self.tap.state();
            if state.closed {
                return Poll::Ready(Ok(()));
            }
            state.waker = Some(cx.waker().clone());
        }
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        match &polled {
            Poll::Ready(Ok(())) => {
                let read = &buf.filled()[before..];
                let mut state = self.tap.state();
                state.hung_up |= read.is_empty() && buf.capacity() > before;
                let room = KEPT - state.first.len();
                state.first.extend_from_slice(&read[..read.len().min(room)]);
            }
            Poll::Ready(Err(_)) => self.tap.state().hung_up = true,
            Poll::Pending => {}
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Tapped<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.tap.state().closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        match Pin::new(&mut self.stream).poll_write(cx, bytes) {
            // The server has hung up already. What it said before that is the better reason, and is read next.
            Poll::Ready(Err(_)) if self.tap.state().first.is_empty() => {
                Poll::Ready(Ok(bytes.len()))
            }
            polled => polled,
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
