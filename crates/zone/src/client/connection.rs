//! One HTTP/1.1 connection to a node, which never blocks: whoever reads a chunk waits for several at once.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::event::PollFlags;

use super::transport::Transport;
use crate::wire;

/// A response's head is shorter.
const MOST_HEAD: usize = 4096;
const MOST_HEADERS: usize = 32;

/// What a response says about its shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) status: u16,
    pub(crate) body_bytes: usize,
    pub(crate) chunk_bytes: Option<u32>,
    pub(crate) checksum: Option<u32>,
    pub(crate) keeps_open: bool,
}

/// How far a request is.
#[derive(Debug)]
enum Stage {
    Idle,
    /// Being sent: bytes of `out` that went.
    Sending(usize),
    /// The head is awaited; bytes of `head` that came.
    Head(usize),
    /// The body is awaited: bytes that came, of how many.
    Body {
        came: usize,
        head: Head,
    },
}

/// A connection, and its request if there is one under way.
#[derive(Debug)]
pub(crate) struct Connection {
    transport: Transport,
    out: Vec<u8>,
    head: Box<[u8; MOST_HEAD]>,
    /// Length of the last response's head, which the next one's most often has too; 0 before there was any.
    expected_head: usize,
    stage: Stage,
    /// When its request began.
    pub(crate) since: Instant,
}

/// What waiting for a connection has come to.
pub(crate) enum Progress {
    /// It must be polled again.
    Pending,
    /// The response is whole. Its body, if the status was 200, is where it should be.
    Done(Head),
}

impl Connection {
    /// Over what has begun to connect.
    pub(super) fn new(transport: Transport, now: Instant) -> Self {
        let head = Box::new([0; MOST_HEAD]);
        Self { transport, out: Vec::new(), head, expected_head: 0, stage: Stage::Idle, since: now }
    }

    /// Over a socket that is connected and does not block.
    pub(crate) fn over(socket: OwnedFd) -> Self {
        Self::new(Transport::over(socket), Instant::now())
    }

    #[cfg(any(test, feature = "simulation"))]
    pub(super) fn pipe(&self) -> Option<&super::simulation::Pipe> {
        if let Transport::Simulated(pipe) = &self.transport { Some(pipe) } else { None }
    }

    /// Begins a request: `out` is its head and body.
    pub(crate) fn begin(&mut self, now: Instant, out: impl FnOnce(&mut Vec<u8>)) {
        self.out.clear();
        out(&mut self.out);
        self.stage = Stage::Sending(0);
        self.since = now;
    }

    /// Whether its request has not gone as a whole.
    pub(crate) fn is_sending(&self) -> bool {
        matches!(self.stage, Stage::Sending(_))
    }

    /// What to wait for, before it can go on.
    pub(crate) fn awaits(&self) -> PollFlags {
        self.transport.awaits(self.is_sending())
    }

    pub(crate) fn is_idle(&self) -> bool {
        matches!(self.stage, Stage::Idle)
    }

    /// Bytes of a body that came so far, of one that has not come as a whole.
    pub(crate) fn received(&self) -> usize {
        if let Stage::Body { came, .. } = self.stage { came } else { 0 }
    }

    /// Goes on as far as possible without waiting. `body` takes the body of a 200, whose length it must have; any other body is
    /// thrown away.
    pub(crate) fn advance(&mut self, body: &mut [u8]) -> io::Result<Progress> {
        loop {
            match &mut self.stage {
                Stage::Idle => return Err(io::Error::other("nothing was asked")),
                Stage::Sending(sent) => {
                    let Some(count) = self.transport.send(&self.out[*sent..])? else { return Ok(Progress::Pending) };
                    *sent += count;
                    if *sent == self.out.len() {
                        self.stage = Stage::Head(0);
                        // No answer is there yet.
                        if self.transport.holds_nothing() {
                            return Ok(Progress::Pending);
                        }
                    }
                }
                Stage::Head(came) => {
                    let before = *came;
                    if !self.receive_head(before, body)? {
                        return Ok(Progress::Pending);
                    }
                }
                Stage::Body { came, head } => {
                    if *came == head.body_bytes {
                        let head = *head;
                        self.stage = Stage::Idle;
                        return Ok(Progress::Done(head));
                    }
                    let received = if head.status == 200 {
                        self.transport.receive(&mut body[*came..])?
                    } else {
                        self.transport.discard(head.body_bytes - *came)?
                    };
                    *came += received.unwrap_or(0);
                    // Where less came than there is room for no more is there, and waiting for all connections says when there is.
                    let is_short = head.status == 200 && *came < body.len() && self.transport.holds_nothing();
                    if received.is_none() || is_short {
                        return Ok(Progress::Pending);
                    }
                }
            }
        }
    }

    /// Receives a head of which `before` bytes are there, and with it what has come of the body, most often with one call and to
    /// where it should be. False if nothing came.
    fn receive_head(&mut self, before: usize, body: &mut [u8]) -> io::Result<bool> {
        if before == MOST_HEAD {
            return Err(invalid("a head that has no end"));
        }
        // The rest of the head buffer serves where the head's length is not known.
        let is_expected = before == 0 && self.expected_head > 0;
        let end = if is_expected { self.expected_head } else { MOST_HEAD };
        let into = &mut self.head[before..end];
        let received =
            if is_expected { self.transport.receive_both(into, body)? } else { self.transport.receive(into)? };
        let Some(count) = received else { return Ok(false) };
        let came = before + count;
        let mut in_head = came.min(end);
        let in_body = came - in_head;
        let mut parsed = parse_head(&self.head[..in_head])?;
        if parsed.is_none() && in_body > 0 {
            // It is longer than expected.
            let more = in_body.min(MOST_HEAD - in_head);
            self.head[in_head..in_head + more].copy_from_slice(&body[..more]);
            in_head += more;
            parsed = parse_head(&self.head[..in_head])?;
        }
        let Some((head, length)) = parsed else {
            if in_head < came {
                return Err(invalid("a head that has no end"));
            }
            self.stage = Stage::Head(came);
            return Ok(true);
        };
        if came - length > head.body_bytes {
            return Err(invalid("more than one response to one request"));
        }
        if head.status == 200 {
            if head.body_bytes != body.len() {
                return Err(invalid("a shard of another length"));
            }
            if length > end {
                body.copy_within(length - end..in_body, 0);
            } else if length < end {
                let rest = &self.head[length..came.min(end)];
                body.copy_within(..in_body, rest.len());
                body[..rest.len()].copy_from_slice(rest);
            }
        }
        self.expected_head = length;
        self.stage = Stage::Body { came: came - length, head };
        Ok(true)
    }

    /// Throws away what is left of a response that nobody waits for any more. Whether the connection can be used again.
    pub(crate) fn drain(&mut self) -> io::Result<bool> {
        loop {
            match &mut self.stage {
                Stage::Idle => return Ok(true),
                // What is not sent as a whole yet would have to be.
                Stage::Sending(_) => return Err(invalid("a request that was not sent")),
                Stage::Head(_) => {
                    // As if it were asked for and not found: its body goes nowhere.
                    let Stage::Head(at) = self.stage else { continue };
                    let Some(count) = self.transport.receive(&mut self.head[at..])? else {
                        return Ok(false);
                    };
                    let came = at + count;
                    self.stage = Stage::Head(came);
                    if let Some((head, length)) = parse_head(&self.head[..came])? {
                        let rest = came - length;
                        if rest > head.body_bytes {
                            return Err(invalid("more than one response to one request"));
                        }
                        self.stage = Stage::Body { came: rest, head };
                    } else if came == MOST_HEAD {
                        return Err(invalid("a head that has no end"));
                    }
                }
                Stage::Body { came, head } => {
                    if *came == head.body_bytes {
                        if !head.keeps_open {
                            return Err(ErrorKind::ConnectionAborted.into());
                        }
                        self.stage = Stage::Idle;
                        continue;
                    }
                    match self.transport.discard(head.body_bytes - *came)? {
                        Some(count) => *came += count,
                        None => return Ok(false),
                    }
                }
            }
        }
    }

    /// Whether the other side has closed an idle connection, or has sent what nobody asked for.
    pub(crate) fn is_stale(&mut self) -> bool {
        self.transport.is_stale()
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.transport.as_fd()
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("the node sent {what}"))
}

/// A response's head and its length in bytes; `None` if it is not whole yet.
pub(crate) fn parse_head(bytes: &[u8]) -> io::Result<Option<(Head, usize)>> {
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let length = match response.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(invalid(&format!("what is no HTTP: {error}"))),
    };
    let mut head = Head {
        status: response.code.unwrap_or(0),
        body_bytes: 0,
        chunk_bytes: None,
        checksum: None,
        keeps_open: response.version == Some(1),
    };
    let mut has_length = false;
    for header in response.headers.iter() {
        let text = std::str::from_utf8(header.value).unwrap_or("").trim();
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        if is("content-length") {
            let body_bytes = text.parse().ok().filter(|bytes| *bytes <= wire::MOST_CHUNK_BYTES as usize);
            let body_bytes = body_bytes.ok_or_else(|| invalid("a body that is too long"))?;
            if has_length && head.body_bytes != body_bytes {
                return Err(invalid("two lengths"));
            }
            (head.body_bytes, has_length) = (body_bytes, true);
        } else if is("transfer-encoding") {
            return Err(invalid("a body without a length"));
        } else if is("connection") {
            head.keeps_open &= !text.eq_ignore_ascii_case("close");
        } else if is(wire::CHUNK_BYTES) {
            head.chunk_bytes = wire::parse_chunk_bytes(text);
        } else if is(wire::CHECKSUM) {
            head.checksum = wire::parse_checksum(text);
        }
    }
    if !has_length && head.status != 204 {
        return Err(invalid("a body without a length"));
    }
    Ok(Some((head, length)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::{Read as _, Write as _};
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_head_says_what_the_shard_is() {
        let text =
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nsnowmelt-chunk-bytes: 12\r\nsnowmelt-crc32c: 000000ff\r\n\r\nabc";
        let (head, length) = parse_head(text).unwrap().unwrap();
        let expected =
            Head { status: 200, body_bytes: 3, chunk_bytes: Some(12), checksum: Some(255), keeps_open: true };
        assert_eq!((head, length), (expected, text.len() - 3));
        for cut in 0..length {
            assert_eq!(parse_head(&text[..cut]).unwrap(), None);
        }
    }

    #[test]
    fn a_body_whose_end_is_not_known_is_refused() {
        for text in [
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
            "SSH-2.0-OpenSSH_9.2\r\n\r\n",
        ] {
            parse_head(text.as_bytes()).unwrap_err();
        }
    }

    #[test]
    fn a_body_is_in_its_place_whatever_the_length_of_the_head_and_however_it_comes() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut connection =
            Connection::new(Transport::open(&listener.local_addr().unwrap(), None).unwrap(), Instant::now());
        let (mut node, _) = listener.accept().unwrap();
        node.set_nodelay(true).unwrap();
        let expected: Vec<u8> = (0..200).map(|at| at as u8).collect();
        let mut number = 0;
        // Longer and shorter heads than the last, cut in the head, at its end, and in the body.
        for padding in [0, 0, 40, 40, 3, 0, 4000 - 80] {
            for cut in [1, 30, 44 + padding, 45 + padding, 60 + padding, 100 + padding] {
                number += 1;
                let status = if number % 7 == 0 { "404" } else { "200" };
                let text = format!("HTTP/1.1 {status} OK\r\ncontent-length: 200\r\nx: {}\r\n\r\n", "x".repeat(padding));
                let response = [text.as_bytes(), &expected].concat();
                let mut body = vec![255; expected.len()];
                connection.begin(Instant::now(), |out| out.extend(b"GET"));
                for part in [&response[..0], &response[..cut], &response[cut..]] {
                    node.write_all(part).unwrap();
                    let deadline = Instant::now() + Duration::from_secs(10);
                    if !part.is_empty() {
                        wait(&connection, deadline);
                    }
                    let done = loop {
                        match connection.advance(&mut body).unwrap() {
                            Progress::Done(head) => break Some(head),
                            Progress::Pending if part.len() == response.len() - cut => wait(&connection, deadline),
                            Progress::Pending => break None,
                        }
                    };
                    assert_eq!(
                        done.map(|head| head.status.to_string()).as_deref(),
                        (part.len() == response.len() - cut).then_some(status)
                    );
                }
                let sees = if status == "200" { &expected } else { &body };
                assert_eq!(&body, sees, "padding {padding}, cut {cut}");
                let mut asked = [0; 3];
                node.read_exact(&mut asked).unwrap();
            }
        }
    }

    fn wait(connection: &Connection, deadline: Instant) {
        assert!(Instant::now() < deadline);
        let flags = rustix::event::PollFlags::IN;
        rustix::event::poll(&mut [rustix::event::PollFd::new(connection, flags)], None).unwrap();
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_head_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse_head(&bytes);
            let mut begun = b"HTTP/1.1 200 OK\r\n".to_vec();
            begun.extend(bytes);
            let _ = parse_head(&begun);
        }
    }
}
