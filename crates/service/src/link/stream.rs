//! A socket of this machine whose reader and writer wait only for what they need.
//!
//! Such a socket tells everybody who waits for room that there is some each time that the other side reads, full or not. Who waits for
//! room and for bytes at once, as tokio's own streams do, is therefore woken for every message that it has sent: on both sides that costs as
//! much as the message. Here nobody waits for room until a write has found none.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustix::net::{RecvFlags, SendFlags, recv, send};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;

/// Reads from a socket.
#[derive(Debug)]
pub(crate) struct Reader(AsyncFd<Arc<OwnedFd>>);

/// Writes to it.
#[derive(Debug)]
pub(crate) struct Writer {
    socket: Arc<OwnedFd>,
    /// There while there is no room: another descriptor of it, since one can be waited for only once.
    full: Option<AsyncFd<OwnedFd>>,
}

/// Both ends of a stream.
///
/// # Errors
/// Those of the system.
pub(crate) fn split(stream: UnixStream) -> io::Result<(Reader, Writer)> {
    let socket = Arc::new(OwnedFd::from(stream.into_std()?));
    Ok((Reader(wait_for(Arc::clone(&socket), Interest::READABLE)?), Writer { socket, full: None }))
}

/// Waits for one thing only.
// What is wrong with this function is that it believes whatever says which descriptor it is; these say their own, for as long as they live.
// What took its place must be called unsafely.
#[allow(deprecated)]
fn wait_for<T: AsRawFd>(descriptor: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(descriptor, interest)
}

impl Drop for Writer {
    /// The other side hears that nothing more comes, though there may be a reader here still.
    fn drop(&mut self) {
        // One that is gone needs not be told.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Write);
    }
}

impl AsyncRead for Reader {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.0.poll_read_ready(cx))?;
            let asked = into.remaining();
            let received = ready.try_io(|socket| {
                let (count, _) = recv(socket.get_ref(), into.initialize_unfilled(), RecvFlags::DONTWAIT)?;
                Ok(count)
            });
            match received {
                Ok(Ok(count)) => {
                    // Less than there is room for was all that there was: the next read need not find that out.
                    if count > 0 && count < asked {
                        ready.clear_ready();
                    }
                    into.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Writer {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            if let Some(full) = &self.full {
                // Ready once: what then finds no room waits with another descriptor.
                drop(ready!(full.poll_write_ready(cx))?);
                self.full = None;
            }
            match send(&self.socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(count) => return Poll::Ready(Ok(count)),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => {
                    let again = self.socket.as_fd().try_clone_to_owned()?;
                    self.full = Some(wait_for(again, Interest::WRITABLE)?);
                }
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Write).map_err(io::Error::from))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn what_does_not_fit_is_written_as_it_is_read() {
        let (here, there) = UnixStream::pair().unwrap();
        let ((mut from_here, mut to_there), (mut from_there, mut to_here)) =
            (split(here).unwrap(), split(there).unwrap());
        let bytes: Vec<u8> = (0..4_000_000_u32).map(|number| (number % 251) as u8).collect();
        let sent = bytes.clone();
        let write = tokio::spawn(async move {
            to_there.write_all(&sent).await.unwrap();
            to_there.shutdown().await.unwrap();
            let mut said = [0; 5];
            from_here.read_exact(&mut said).await.unwrap();
            // Nobody is there any more.
            said
        });
        let mut received = Vec::new();
        from_there.read_to_end(&mut received).await.unwrap();
        assert!(received == bytes);
        to_here.write_all(b"heard").await.unwrap();
        assert_eq!(&write.await.unwrap(), b"heard");
        // One whose other side is gone is not written to, and kills nobody.
        assert_eq!(to_here.write_all(b"more").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(from_there.read(&mut [0; 8]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn short_messages_come_one_by_one() {
        let (here, there) = UnixStream::pair().unwrap();
        let ((mut from_here, mut to_there), (mut from_there, mut to_here)) =
            (split(here).unwrap(), split(there).unwrap());
        let answer = tokio::spawn(async move {
            let mut byte = [0; 64];
            loop {
                match from_there.read(&mut byte).await.unwrap() {
                    0 => return,
                    count => to_here.write_all(&byte[..count]).await.unwrap(),
                }
            }
        });
        for number in 0..1000_u16 {
            to_there.write_all(&number.to_be_bytes()).await.unwrap();
            let mut said = [0; 2];
            from_here.read_exact(&mut said).await.unwrap();
            assert_eq!(said, number.to_be_bytes());
        }
        to_there.shutdown().await.unwrap();
        answer.await.unwrap();
    }
}
