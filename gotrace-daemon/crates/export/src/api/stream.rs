//! The body of an answer that a thread writes while its client reads: bounded, however much there is.
//!
//! What was not written to its end is an error of the body, so that no client takes a part for all of it. A client that
//! is gone ends the writing.

use std::{
    convert::Infallible,
    io::{self, Write},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use hyper::body::{Body, Frame};
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// Bytes that are handed on at once, and pieces of them that wait.
const PIECE: usize = 64 << 10;
const PIECES: usize = 4;

/// A piece; `None`: that was all.
type Piece = Option<Bytes>;

/// What the thread writes to.
#[derive(Debug)]
pub(super) struct Pipe {
    pieces: Sender<Piece>,
    buffer: Vec<u8>,
}

/// What a client reads from for as long as there is news: there is no whole of which it could take a part.
#[derive(Debug)]
pub(super) struct Endless(pub Receiver<Bytes>);

impl Body for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.get_mut().0.poll_recv(context).map(|news| news.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// What the client reads from.
#[derive(Debug)]
pub(super) struct Stream(Receiver<Piece>, bool);

/// Both ends.
pub(super) fn pipe() -> (Pipe, Stream) {
    let (pieces, stream) = channel(PIECES);
    (Pipe { pieces, buffer: Vec::new() }, Stream(stream, false))
}

impl Pipe {
    /// Hands on what is left, and says that it is all.
    ///
    /// # Errors
    /// The client is gone.
    pub fn end(mut self) -> io::Result<()> {
        self.flush()?;
        self.send(None)
    }

    fn send(&self, piece: Piece) -> io::Result<()> {
        self.pieces.blocking_send(piece).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = PIECE.saturating_sub(self.buffer.len());
        let taken = bytes.len().min(room);
        self.buffer.extend_from_slice(bytes.get(..taken).unwrap_or_default());
        if self.buffer.len() >= PIECE {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = Bytes::from(std::mem::take(&mut self.buffer));
        self.send(Some(piece))
    }
}

impl Body for Stream {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let Self(pieces, ended) = self.get_mut();
        if *ended {
            return Poll::Ready(None);
        }
        Poll::Ready(match ready!(pieces.poll_recv(context)) {
            Some(Some(bytes)) => Some(Ok(Frame::data(bytes))),
            Some(None) => {
                *ended = true;
                None
            }
            None => {
                *ended = true;
                Some(Err(io::ErrorKind::UnexpectedEof.into()))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    async fn read(mut stream: Stream) -> Result<Vec<u8>, io::Error> {
        let mut all = Vec::new();
        while let Some(frame) = poll_fn(|context| Pin::new(&mut stream).poll_frame(context)).await {
            all.extend_from_slice(&frame?.into_data().expect("data"));
        }
        Ok(all)
    }

    fn run<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(work)
    }

    #[test]
    fn all_of_it_comes_and_a_part_is_an_error() {
        let text: Vec<u8> = (0..1_000_000u32).map(|n| n as u8).collect();
        let (mut all, stream) = pipe();
        let written = text.clone();
        let thread = std::thread::spawn(move || all.write_all(&written).and_then(|()| all.end()));
        assert_eq!(run(read(stream)).expect("all"), text);
        thread.join().expect("no panic").expect("written");
        let (mut part, stream) = pipe();
        part.write_all(b"a part").and_then(|()| part.flush()).expect("there is room");
        drop(part);
        assert_eq!(run(read(stream)).expect_err("a part").kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_client_that_is_gone_ends_the_writing() {
        let (mut pipe, stream) = pipe();
        drop(stream);
        assert_eq!(pipe.write_all(&[0; 10 * PIECE]).expect_err("gone").kind(), io::ErrorKind::BrokenPipe);
    }
}
