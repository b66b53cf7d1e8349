//! From a layer as stored to its tar stream: finds out the compression, decompresses, and checks the diff id.
//!
//! The bytes decide the compression, not the media type, since registries hold layers whose type is wrong. The digest of
//! the blob is checked below, by the source's reader; the digest of what comes out is checked here, by another thread.
//! Both checks happen at the end of the stream: what was read counts only after a read of 0 bytes.

use std::io::{self, BufRead, BufReader, Cursor, Read};

use flate2::bufread::MultiGzDecoder;
use zstd::stream::read::Decoder as ZstdDecoder;

use crate::Error;
use crate::digest::{BackgroundHasher, Digest};
use crate::sources::{Compression, LayerDescriptor, Source};

/// Compressed bytes that are read at once.
const READ_BYTES: usize = 256 << 10;
/// How much of a blob is read on after a decoder's error, to learn whether the blob itself is damaged.
const MAX_DRAIN_BYTES: u64 = 8 << 30;

/// Bytes that tell compressions apart.
const MAGIC_BYTES: usize = 6;

type Input = BufReader<io::Chain<Cursor<Vec<u8>>, Box<dyn Read + Send>>>;

/// Opens layer `index` as a tar stream: [`Source::open_layer`] and [`decompress`].
pub fn open_layer_tar(source: &dyn Source, index: usize) -> Result<Box<dyn Read + Send>, Error> {
    let Some(descriptor) = source.layers().get(index) else {
        let count = source.layers().len();
        return Err(Error::invalid(format!("layer {index}"), format!("the image has {count} layers")));
    };
    decompress(source.open_layer(index)?, descriptor)
}

/// Decompresses a layer's stored bytes. The reader gives an error instead of the end of file where the digest of what it
/// gave is not the descriptor's diff id; its errors carry an [`Error`].
///
/// # Errors
/// [`Error::Invalid`] for compressions that layers don't have, and what reading the first bytes of `input` gives.
pub fn decompress(
    mut input: Box<dyn Read + Send>,
    descriptor: &LayerDescriptor,
) -> Result<Box<dyn Read + Send>, Error> {
    let subject = format!("layer {}", descriptor.digest);
    let mut start = Vec::with_capacity(MAGIC_BYTES);
    input
        .by_ref()
        .take(MAGIC_BYTES as u64)
        .read_to_end(&mut start)
        .map_err(|error| Error::from_read(&subject, error))?;
    let compression = detect(&start).map_err(|name| {
        Error::invalid(&subject, format!("it is compressed with {name}; layers may be plain, gzip or zstd"))
    })?;
    let input: Input = BufReader::with_capacity(READ_BYTES, Cursor::new(start).chain(input));
    let decoder = match compression {
        Compression::None => Decoder::Plain(input),
        Compression::Gzip => Decoder::Gzip(Box::new(MultiGzDecoder::new(input))),
        Compression::Zstd => {
            Decoder::Zstd(Box::new(ZstdDecoder::with_buffer(input).map_err(|error| Error::from_read(&subject, error))?))
        }
    };
    // The source has already checked exactly these bytes if nothing is decompressed.
    let checked_below = compression == Compression::None && descriptor.diff_id.as_ref() == Some(&descriptor.digest);
    let expected = match &descriptor.diff_id {
        Some(diff_id) if !checked_below => Some(
            Digest::parse(diff_id)
                .map_err(|reason| Error::corrupt(&subject, format!("its diff id is none: {reason}")))?,
        ),
        _ => None,
    };
    let check = match expected {
        Some(expected) => {
            let hasher =
                BackgroundHasher::start(expected.algorithm()).map_err(|error| Error::from_read(&subject, error))?;
            Some((hasher, expected))
        }
        None => None,
    };
    Ok(Box::new(LayerReader { decoder, check, subject, state: State::Reading }))
}

/// The compression that begins like this; the error names one that isn't taken.
pub(crate) fn detect(start: &[u8]) -> Result<Compression, &'static str> {
    match start {
        [0x1f, 0x8b, ..] => Ok(Compression::Gzip),
        // A frame (RFC 8878, section 3.1.1), or a skippable frame (3.1.2) before it.
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Compression::Zstd),
        [0xfd, b'7', b'z', b'X', b'Z', 0] => Err("xz"),
        [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41] => Err("bzip2"),
        _ => Ok(Compression::None),
    }
}

enum Decoder {
    Plain(Input),
    Gzip(Box<MultiGzDecoder<Input>>),
    Zstd(Box<ZstdDecoder<'static, Input>>),
}

impl Decoder {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Decoder::Plain(input) => input.read(buffer),
            Decoder::Gzip(decoder) => decoder.read(buffer),
            Decoder::Zstd(decoder) => decoder.read(buffer),
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Decoder::Plain(_) => "plain",
            Decoder::Gzip(_) => "gzip",
            Decoder::Zstd(_) => "zstd",
        }
    }

    fn input(&mut self) -> &mut Input {
        match self {
            Decoder::Plain(input) => input,
            Decoder::Gzip(decoder) => decoder.get_mut(),
            Decoder::Zstd(decoder) => decoder.get_mut(),
        }
    }
}

enum State {
    Reading,
    /// The end was reached and every check passed.
    Ended,
    Failed,
}

struct LayerReader {
    decoder: Decoder,
    check: Option<(BackgroundHasher, Digest)>,
    subject: String,
    state: State,
}

impl LayerReader {
    /// What a failed read means. A damaged blob usually shows first as an error of the decoder; if the rest of the blob
    /// then fails its digest, that is the truer message.
    fn explain(&mut self, error: io::Error) -> io::Error {
        if error.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<Error>) {
            return error;
        }
        let name = self.decoder.name();
        let rest = io::copy(&mut self.decoder.input().take(MAX_DRAIN_BYTES), &mut io::sink());
        if let Err(rest) = rest {
            return Error::from_read(&self.subject, rest).into();
        }
        if name == "plain" {
            return Error::from_read(&self.subject, error).into();
        }
        let reason = format!(
            "its {name} stream breaks off or is malformed ({error}), though the blob is the one that was published: \
             the image has to be built and pushed again"
        );
        Error::corrupt(&self.subject, reason).into()
    }

    /// At the end: the blob must end too, with its digest right, and what came out must have the diff id.
    fn finish(&mut self) -> Result<(), io::Error> {
        let input = self.decoder.input();
        if !input.fill_buf()?.is_empty() {
            let reason = "there are bytes behind the end of its compressed stream: build and push the image again";
            return Err(Error::corrupt(&self.subject, reason).into());
        }
        let Some((hasher, expected)) = self.check.take() else {
            return Ok(());
        };
        let actual = hasher.finish()?;
        if actual != expected {
            let reason = format!(
                "decompressed it is {actual}, and the image's configuration says {expected}: \
                 the image has to be built and pushed again"
            );
            return Err(Error::corrupt(&self.subject, reason).into());
        }
        Ok(())
    }
}

impl Read for LayerReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.state {
            State::Ended => return Ok(0),
            State::Failed => return Err(Error::corrupt(&self.subject, "reading it failed before").into()),
            State::Reading if buffer.is_empty() => return Ok(0),
            State::Reading => {}
        }
        let result = match self.decoder.read(buffer) {
            Ok(0) => self.finish().map(|()| 0),
            Ok(count) => {
                if let Some((hasher, _)) = &mut self.check {
                    hasher.update(&buffer[..count]);
                }
                Ok(count)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
            Err(error) => Err(self.explain(error)),
        };
        self.state = match &result {
            Ok(0) => State::Ended,
            Ok(_) => State::Reading,
            Err(_) => State::Failed,
        };
        result
    }
}

#[cfg(test)]
mod tests;
