//! Packed bodies, for the tests of more than one program.

use async_compression::tokio::bufread::{GzipEncoder, ZlibEncoder, ZstdEncoder};
use tokio::io::{AsyncRead, AsyncReadExt as _, BufReader};

/// Packs what a reader gives.
pub(crate) async fn pack(encoding: &str, plain: impl AsyncRead + Unpin) -> Vec<u8> {
    let plain = BufReader::with_capacity(1 << 20, plain);
    let mut out = Vec::new();
    match encoding {
        "gzip" => GzipEncoder::new(plain).read_to_end(&mut out).await,
        "deflate" => ZlibEncoder::new(plain).read_to_end(&mut out).await,
        _ => ZstdEncoder::new(plain).read_to_end(&mut out).await,
    }
    .unwrap();
    out
}
