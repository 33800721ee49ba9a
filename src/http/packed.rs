//! Packed bodies (`Content-Encoding`), unpacked while they are read, within limits of their own.
//!
//! A few bytes can unpack to very many. What is held in memory is held to the limit on bodies, which counts bytes as they are when unpacked;
//! beside that, how long a body may be as it comes, and how many bytes each of those may become, once there are so many that it matters.
//! A body past a limit ends in an error there and then: the rest is neither read nor unpacked.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;

use async_compression::tokio::bufread::{GzipDecoder, ZlibDecoder, ZstdDecoder};
use async_compression::zstd::DParameter;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, header};
use futures_util::{Stream, StreamExt as _};
use tokio::io::AsyncRead;
use tokio_util::io::{ReaderStream, StreamReader};

use super::App;

/// Bytes that any body may unpack to, however few it came in.
const ANYWAY: u64 = 16 << 20;
/// Bytes that are unpacked at once.
const PIECE: usize = 64 << 10;
/// The largest window of zstd, as a power of two: what RFC 9659 grants to `Content-Encoding`.
const WINDOW: u32 = 23;

/// What packed bodies are held to; 0 is no limit.
#[derive(Clone, Copy, Debug)]
pub struct PackedLimits {
    /// Bytes of a body as it comes.
    pub bytes: u64,
    /// Bytes that each of them may become.
    pub ratio: u64,
}

/// Why a body is not unpacked to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error("the body is longer than {0} bytes as it comes, packed")]
    Long(u64),
    #[error("the body unpacks to more than {0} times its length")]
    Bomb(u64),
    #[error("the body does not unpack by its Content-Encoding")]
    Malformed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    Gzip,
    Deflate,
    Zstd,
}

/// How a body is packed, by the header that says so; `None` where it is not, or by what is not known here.
fn encoding(headers: &HeaderMap, header: &HeaderName) -> Option<Encoding> {
    let name = headers.get(header)?.to_str().ok()?;
    Some(match name.to_ascii_lowercase().as_str() {
        "gzip" | "x-gzip" => Encoding::Gzip,
        "deflate" => Encoding::Deflate,
        "zstd" => Encoding::Zstd,
        _ => return None,
    })
}

/// Unpacks the body of a request. One of an encoding that is not known stays as it is, and says so still.
pub(super) async fn unpack(State(app): State<App>, mut request: Request) -> Request {
    let Some(encoding) = encoding(request.headers(), &header::CONTENT_ENCODING) else { return request };
    request.headers_mut().remove(header::CONTENT_ENCODING);
    request.headers_mut().remove(header::CONTENT_LENGTH);
    request.map(|body| Body::from_stream(unpacked(body.into_data_stream(), encoding, app.packed)))
}

/// Whether a header says how something is packed, and that is known here.
pub(super) fn is_known(headers: &HeaderMap, header: &HeaderName) -> bool {
    encoding(headers, header).is_some()
}

/// A message that is packed as a header says; `None` where that is by what is not known here.
pub(super) fn message(app: &App, headers: &HeaderMap, header: &HeaderName, packed: Bytes) -> Option<Body> {
    let whole = futures_util::stream::iter([Ok::<_, Infallible>(packed)]);
    Some(Body::from_stream(unpacked(whole, encoding(headers, header)?, app.packed)))
}

/// The body of a reply that is a stream. Whoever packs it asks once more after its end.
pub(super) fn streamed<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
    pieces: impl Stream<Item = Result<Bytes, E>> + Send + 'static,
) -> Body {
    Body::from_stream(pieces.fuse())
}

fn unpacked<B, E>(body: B, encoding: Encoding, limits: PackedLimits) -> impl Stream<Item = io::Result<Bytes>> + Send
where
    B: Stream<Item = Result<Bytes, E>> + Send + Unpin + 'static,
    E: std::error::Error + Send + Sync + 'static,
{
    let came = Arc::new(AtomicU64::new(0));
    let counted = came.clone();
    let pieces = body.map(move |piece| {
        let piece = piece.map_err(io::Error::other)?;
        let came = counted.fetch_add(piece.len() as u64, Ordering::Relaxed) + piece.len() as u64;
        if limits.bytes > 0 && came > limits.bytes {
            return Err(io::Error::other(Refused::Long(limits.bytes)));
        }
        Ok(piece)
    });
    let over = Arc::new(AtomicBool::new(false));
    let ended = over.clone();
    let end = futures_util::stream::poll_fn(move |_| {
        ended.store(true, Ordering::Relaxed);
        Poll::Ready(None)
    });
    let packed = StreamReader::new(pieces.chain(end));
    let reader: Box<dyn AsyncRead + Send + Unpin> = match encoding {
        Encoding::Gzip => {
            let mut decoder = GzipDecoder::new(packed);
            decoder.multiple_members(true);
            Box::new(decoder)
        }
        Encoding::Deflate => Box::new(ZlibDecoder::new(packed)),
        Encoding::Zstd => {
            let mut decoder = ZstdDecoder::with_params(packed, &[DParameter::window_log_max(WINDOW)]);
            decoder.multiple_members(true);
            Box::new(decoder)
        }
    };
    let mut made = 0;
    ReaderStream::with_capacity(reader, PIECE).map(move |piece| {
        let piece = piece.map_err(|error| match error.kind() {
            // A body that is cut off; what went wrong on its way tells of itself.
            io::ErrorKind::UnexpectedEof => error,
            _ if error.get_ref().is_some_and(|inner| inner.is::<Refused>() || inner.is::<E>()) => error,
            // Not every decoder says so of a body that has ended before its time.
            _ if over.load(Ordering::Relaxed) => io::ErrorKind::UnexpectedEof.into(),
            _ => io::Error::other(Refused::Malformed),
        })?;
        made += piece.len() as u64;
        let granted = came.load(Ordering::Relaxed).saturating_mul(limits.ratio).max(ANYWAY);
        if limits.ratio > 0 && made > granted {
            return Err(io::Error::other(Refused::Bomb(limits.ratio)));
        }
        Ok(piece)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use async_compression::tokio::bufread::{GzipEncoder, ZlibEncoder, ZstdEncoder};
    use tokio::io::AsyncReadExt as _;

    use super::*;

    /// `length` bytes of the same letter, packed.
    async fn packed(encoding: Encoding, length: u64) -> Vec<u8> {
        let plain = tokio::io::BufReader::new(tokio::io::repeat(b'x').take(length));
        let mut out = Vec::new();
        match encoding {
            Encoding::Gzip => GzipEncoder::new(plain).read_to_end(&mut out).await,
            Encoding::Deflate => ZlibEncoder::new(plain).read_to_end(&mut out).await,
            Encoding::Zstd => ZstdEncoder::new(plain).read_to_end(&mut out).await,
        }
        .unwrap();
        out
    }

    /// Bytes that came out, the longest piece of them, and how it ended.
    async fn unpack(body: &[u8], piece: usize, encoding: Encoding, limits: PackedLimits) -> (u64, usize, Result<(), Refused>) {
        let pieces: Vec<Result<Bytes, Infallible>> = body.chunks(piece).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        let mut out = Box::pin(unpacked(futures_util::stream::iter(pieces), encoding, limits));
        let (mut made, mut longest) = (0, 0);
        while let Some(piece) = out.next().await {
            match piece {
                Ok(piece) => (made, longest) = (made + piece.len() as u64, longest.max(piece.len())),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return (made, longest, Err(Refused::Malformed)),
                Err(error) => return (made, longest, Err(*error.get_ref().unwrap().downcast_ref::<Refused>().unwrap())),
            }
        }
        (made, longest, Ok(()))
    }

    const ALL: [Encoding; 3] = [Encoding::Gzip, Encoding::Deflate, Encoding::Zstd];
    const NONE: PackedLimits = PackedLimits { bytes: 0, ratio: 0 };

    #[tokio::test]
    async fn a_bomb_ends_where_its_limit_is_in_small_pieces() {
        for encoding in ALL {
            let bomb = packed(encoding, 256 << 20).await;
            assert!(bomb.len() < 1 << 20);
            let (made, longest, end) = unpack(&bomb, 4096, encoding, PackedLimits { bytes: 0, ratio: 20 }).await;
            assert_eq!(end, Err(Refused::Bomb(20)), "{encoding:?}");
            assert!(
                (ANYWAY - PIECE as u64..=20 * bomb.len() as u64 + ANYWAY).contains(&made) && longest <= PIECE,
                "{encoding:?}: {made} in pieces of {longest}"
            );
            let (made, _, end) = unpack(&bomb, 4096, encoding, NONE).await;
            assert_eq!((made, end), (256 << 20, Ok(())), "{encoding:?}");
        }
    }

    #[tokio::test]
    async fn a_body_is_counted_as_it_comes_too() {
        for encoding in ALL {
            let body = packed(encoding, 1 << 20).await;
            let length = body.len() as u64;
            assert_eq!(unpack(&body, 7, encoding, PackedLimits { bytes: length, ratio: 1 }).await.2, Ok(()), "{encoding:?}");
            assert_eq!(unpack(&body, 7, encoding, PackedLimits { bytes: length - 1, ratio: 1 }).await.2, Err(Refused::Long(length - 1)));
        }
    }

    #[tokio::test]
    async fn what_is_bent_or_cut_is_told_apart_from_what_is_whole() {
        for encoding in ALL {
            let body = packed(encoding, 100_000).await;
            for cut in 1..body.len() {
                assert!(unpack(&body[..cut], 11, encoding, NONE).await.2.is_err(), "{encoding:?} cut at {cut}");
            }
            assert_eq!(unpack(b"plain text, not packed", 5, encoding, NONE).await.2, Err(Refused::Malformed), "{encoding:?}");
            if encoding != Encoding::Deflate {
                assert_eq!(unpack(&body.repeat(3), 11, encoding, NONE).await.0, 300_000, "members one after the other");
            }
        }
    }
}
