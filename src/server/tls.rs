//! TLS: the certificate and the key that connections are encrypted with, read at the start and again whenever their files change.
//!
//! Connections that are open keep what they began with; those that come after a change begin with the new pair, and nothing of an earlier
//! session is taken up by them. What cannot be taken leaves everything as it was: files are replaced one after the other, and a pair of which
//! one half is new is none.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio_rustls::rustls::{Error, InconsistentKeys, ServerConfig};
use tokio_rustls::server::TlsStream;

use super::Hangups;
use crate::config::TlsFiles;
use crate::telemetry;

/// How often the files are looked at. What has changed is read when it looks the same twice, so that nobody is met while still writing.
const LOOK: Duration = Duration::from_secs(1);

/// Why a certificate and a key cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsFault {
    /// A file is not there, or not for this process.
    #[error("{} cannot be read: {why}", .file.display())]
    Unreadable {
        /// Which.
        file: PathBuf,
        /// What the system says.
        why: String,
    },
    /// A file is cut off, or was never PEM.
    #[error("{} is not in PEM form: {why}", .file.display())]
    NotPem {
        /// Which.
        file: PathBuf,
        /// Where it ceases to be.
        why: String,
    },
    /// There is nothing to show to clients.
    #[error("{} has no certificate in PEM form (-----BEGIN CERTIFICATE-----)", .0.display())]
    NoCertificate(PathBuf),
    /// There is nothing to sign with.
    #[error("{} has no private key in PEM form (-----BEGIN PRIVATE KEY-----)", .0.display())]
    NoKey(PathBuf),
    /// There is, behind a passphrase.
    #[error("the key in {file} is encrypted, and nobody is there to be asked for its passphrase: decrypt it, as by openssl pkey -in {file} -out …", file = .0.display())]
    EncryptedKey(PathBuf),
    /// Of a kind that is not known.
    #[error("the key in {} cannot be used: {why}; known are RSA of 2048 bits and more, ECDSA on P-256 and P-384, and Ed25519", .file.display())]
    UnknownKey {
        /// Where it is.
        file: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The first certificate cannot be understood.
    #[error("the certificate in {} cannot be used: {why}", .file.display())]
    BadCertificate {
        /// Where it is.
        file: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Each is good, but they are not a pair.
    #[error(
        "the key in {} is not that of the first certificate in {}; the server's own certificate stands before those that it was issued by",
        .key.display(), .certificate.display()
    )]
    Mismatch {
        /// Where the certificate is.
        certificate: PathBuf,
        /// Where the key is.
        key: PathBuf,
    },
}

/// What a listener speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speaks {
    Http1,
    Http2,
}

/// What new connections are encrypted with.
#[derive(Debug)]
pub(super) struct Tls {
    files: TlsFiles,
    used: ArcSwap<Pair>,
}

impl Tls {
    pub(super) fn open(files: &TlsFiles) -> Result<Self, TlsFault> {
        let pair = Pair::read(files, Looks::of(files))?;
        pair.tell(files);
        Ok(Self { files: files.clone(), used: ArcSwap::from_pointee(pair) })
    }

    /// Agrees with a client on how the connection is encrypted, within `limit`.
    pub(super) async fn accept<S>(&self, speaks: Speaks, socket: S, limit: Duration) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let used = self.used.load_full();
        let config = match speaks {
            Speaks::Http1 => &used.http1,
            Speaks::Http2 => &used.http2,
        };
        let agreed = tokio::time::timeout(limit, TlsAcceptor::from(config.clone()).accept(socket)).await;
        agreed.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "no agreement on TLS was reached in time")))
    }

    /// Reads the files again whenever they change, or somebody asks for it by a signal; never ends.
    pub(super) async fn renew(self: Arc<Self>, mut hangups: Hangups) {
        let mut watch = Watch { seen: self.used.load().looks, refused: None, tls: self };
        loop {
            let at_once = tokio::select! {
                () = tokio::time::sleep(LOOK) => false,
                () = hangups.next() => true,
            };
            // A file system may take its time.
            let looked = tokio::task::spawn_blocking(move || {
                watch.look(at_once);
                watch
            });
            match looked.await {
                Ok(same) => watch = same,
                Err(error) => {
                    tracing::error!(%error, "the files of certificate and key are not looked at any more");
                    return;
                }
            }
        }
    }
}

/// A certificate and the key that belongs to it.
#[derive(Debug)]
struct Pair {
    /// How the files looked just before they were read.
    looks: Looks,
    http1: Arc<ServerConfig>,
    http2: Arc<ServerConfig>,
    /// SHA-256 of the certificate, as other tools write it.
    fingerprint: String,
    not_after: Option<Timestamp>,
}

impl Pair {
    fn read(files: &TlsFiles, looks: Looks) -> Result<Self, TlsFault> {
        let TlsFiles { certificate, key } = files;
        let chain = chain(certificate)?;
        let text = read(key)?;
        let has = |mark: &[u8]| text.windows(mark.len()).any(|part| part == mark);
        if has(b"BEGIN ENCRYPTED PRIVATE KEY") || has(b"Proc-Type: 4,ENCRYPTED") {
            return Err(TlsFault::EncryptedKey(key.clone()));
        }
        let secret = match PrivateKeyDer::pem_slice_iter(&text).next() {
            Some(Ok(secret)) => secret,
            Some(Err(error)) => return Err(TlsFault::NotPem { file: key.clone(), why: error.to_string() }),
            None => return Err(TlsFault::NoKey(key.clone())),
        };
        let fingerprint = Sha256::digest(&chain[0]).iter().map(|byte| format!("{byte:02X}")).collect::<Vec<_>>().join(":");
        let not_after = not_after(&chain[0]);

        let provider = ring::default_provider();
        let secret = provider
            .key_provider
            .load_private_key(secret)
            .map_err(|error| TlsFault::UnknownKey { file: key.clone(), why: error.to_string() })?;
        let certified = CertifiedKey::new(chain, secret);
        let bad = |error: Error| TlsFault::BadCertificate { file: certificate.clone(), why: error.to_string() };
        certified.keys_match().map_err(|error| match error {
            Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                TlsFault::Mismatch { certificate: certificate.clone(), key: key.clone() }
            }
            other => bad(other),
        })?;
        let mut http1 = ServerConfig::builder_with_provider(Arc::new(provider))
            .with_safe_default_protocol_versions()
            .map_err(bad)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        http1.alpn_protocols = vec![b"http/1.1".to_vec()];
        let mut http2 = http1.clone();
        http2.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self { looks, http1: Arc::new(http1), http2: Arc::new(http2), fingerprint, not_after })
    }

    /// Says in the log and in the metrics what is used from now on.
    fn tell(&self, files: &TlsFiles) {
        #[cfg(unix)]
        warn_of_readers(&files.key);
        let not_after = self.not_after.map(tracing::field::display);
        tracing::info!(
            file = %files.certificate.display(), sha256 = self.fingerprint, not_after, "connections are encrypted with this certificate"
        );
        if let Some(end) = self.not_after {
            metrics::gauge!(telemetry::CERTIFICATE_END).set(end.as_second() as f64);
            if end < Timestamp::now() {
                tracing::warn!(not_after = %end, "the certificate is over, and clients will refuse it");
            }
        }
        metrics::gauge!(telemetry::CERTIFICATE_REFUSED).set(0.0);
    }
}

/// Looks at the files from time to time.
struct Watch {
    tls: Arc<Tls>,
    /// How they looked the last time.
    seen: Looks,
    /// Why they were not taken, as far as it was told.
    refused: Option<TlsFault>,
}

impl Watch {
    fn look(&mut self, at_once: bool) {
        let files = &self.tls.files;
        let looks = Looks::of(files);
        let settled = looks == std::mem::replace(&mut self.seen, looks);
        if looks == self.tls.used.load().looks {
            if self.refused.take().is_some() {
                metrics::gauge!(telemetry::CERTIFICATE_REFUSED).set(0.0);
            }
        } else if settled || at_once {
            match Pair::read(files, looks) {
                Ok(pair) => {
                    pair.tell(files);
                    self.tls.used.store(Arc::new(pair));
                    self.refused = None;
                }
                // It may be good at the next look, for the file beside it or for a folder on the way.
                Err(fault) => {
                    metrics::gauge!(telemetry::CERTIFICATE_REFUSED).set(1.0);
                    if self.refused.as_ref() != Some(&fault) {
                        tracing::error!(error = %fault, "the certificate and the key in the files are not taken; the earlier ones are used on");
                        self.refused = Some(fault);
                    }
                }
            }
        }
    }
}

/// How both files look from outside; other contents look otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Looks([Option<Look>; 2]);

impl Looks {
    fn of(files: &TlsFiles) -> Self {
        Self([&files.certificate, &files.key].map(|file| std::fs::metadata(file).ok().map(|metadata| Look::of(&metadata))))
    }
}

/// Which file it is, its length, and when it was changed: the last not as its writer says, which may be an old date, but as the system does.
#[cfg(unix)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Look {
    file: (u64, u64),
    length: u64,
    changed: (i64, i64),
}

#[cfg(unix)]
impl Look {
    fn of(metadata: &std::fs::Metadata) -> Self {
        use std::os::unix::fs::MetadataExt as _;
        Self { file: (metadata.dev(), metadata.ino()), length: metadata.len(), changed: (metadata.ctime(), metadata.ctime_nsec()) }
    }
}

/// Its length, and when it was written.
#[cfg(not(unix))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Look {
    length: u64,
    written: Option<std::time::SystemTime>,
}

#[cfg(not(unix))]
impl Look {
    fn of(metadata: &std::fs::Metadata) -> Self {
        Self { length: metadata.len(), written: metadata.modified().ok() }
    }
}

/// The certificates of a file, at least one.
pub(super) fn chain(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsFault> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(file)?).collect();
    let chain = chain.map_err(|error| TlsFault::NotPem { file: file.to_owned(), why: error.to_string() })?;
    if chain.is_empty() { Err(TlsFault::NoCertificate(file.to_owned())) } else { Ok(chain) }
}

fn read(file: &Path) -> Result<Vec<u8>, TlsFault> {
    std::fs::read(file).map_err(|error| TlsFault::Unreadable { file: file.to_owned(), why: error.to_string() })
}

/// Whoever can read the key can be the server.
#[cfg(unix)]
fn warn_of_readers(key: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    if std::fs::metadata(key).is_ok_and(|metadata| metadata.permissions().mode() & 0o004 != 0) {
        tracing::warn!(file = %key.display(), "every user of this machine can read the private key; chmod o-r takes that from them");
    }
}

/// When a certificate is over: the second moment of its `validity` (RFC 5280, 4.1), which stands behind its version, serial number, algorithm
/// and issuer.
fn not_after(certificate: &[u8]) -> Option<Timestamp> {
    const SEQUENCE: u8 = 0x30;
    let (_, certificate, _) = element(certificate)?;
    let (_, mut rest, _) = element(certificate)?;
    let mut sequences = 0;
    let validity = loop {
        let (tag, content, behind) = element(rest)?;
        rest = behind;
        sequences += usize::from(tag == SEQUENCE);
        if sequences == 3 {
            break content;
        }
    };
    let (_, _, rest) = element(validity)?;
    let (tag, moment, _) = element(rest)?;
    let moment = std::str::from_utf8(moment).ok()?;
    let moment = match tag {
        // Two digits of a year are those of 1950 to 2049.
        0x17 if moment.get(..1)? < "5" => format!("20{moment}"),
        0x17 => format!("19{moment}"),
        0x18 => moment.to_owned(),
        _ => return None,
    };
    let (date, time) = moment.strip_suffix('Z')?.split_at_checked(8)?;
    format!("{date}T{time}Z").parse().ok()
}

/// The first element of DER: its tag, its content, and what is behind it.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, length], rest) = der.split_first_chunk()?;
    let (length, rest) = if length < 0x80 {
        (usize::from(length), rest)
    } else {
        let (digits, rest) = rest.split_at_checked(usize::from(length & 0x7f))?;
        (digits.iter().try_fold(0_usize, |length, digit| length.checked_mul(256)?.checked_add((*digit).into()))?, rest)
    };
    let (content, behind) = rest.split_at_checked(length)?;
    Some((tag, content, behind))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn made(year: i32) -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
        parameters.not_after = rcgen::date_time_ymd(year, 3, 4);
        (parameters.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn with(certificate: &str, key: &str) -> (Self, TlsFiles) {
            let folder = Self(tempfile::tempdir().unwrap());
            let files = TlsFiles { certificate: folder.write("c.pem", certificate), key: folder.write("k.pem", key) };
            (folder, files)
        }

        fn write(&self, name: &str, text: &str) -> PathBuf {
            let path = self.0.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        }
    }

    #[test]
    fn what_is_no_pair_is_refused_by_the_name_of_its_file() {
        let ((certificate, key), (other, _)) = (made(2040), made(2040));
        for (certificate, key, wanted) in [
            (certificate.as_str(), key.as_str(), None),
            (&(certificate.clone() + &other), &key, None),
            (&(key.clone() + &certificate), &(certificate.clone() + &key), None),
            (&other, &key, Some("k.pem is not that of the first certificate in ")),
            (&(other.clone() + &certificate), &key, Some("k.pem is not that of the first certificate in ")),
            ("", &key, Some("c.pem has no certificate")),
            (&key, &key, Some("c.pem has no certificate")),
            (&certificate, "", Some("k.pem has no private key")),
            (&certificate, &certificate, Some("k.pem has no private key")),
            (&certificate[..200], &key, Some("c.pem is not in PEM form")),
            (&certificate, &key[..100], Some("k.pem is not in PEM form")),
            (
                &certificate,
                "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
                Some("k.pem is encrypted"),
            ),
            (
                &certificate,
                "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nAAAA\n-----END RSA PRIVATE KEY-----\n",
                Some("k.pem is encrypted"),
            ),
            (&certificate, &("of old UNENCRYPTED\n".to_owned() + &key), None),
            (&certificate, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", Some("k.pem cannot be used")),
            ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", &key, Some("c.pem cannot be used")),
        ] {
            let (_folder, files) = Folder::with(certificate, key);
            let told = Tls::open(&files).err().map(|fault| fault.to_string());
            match (&told, wanted) {
                (None, None) => {}
                (Some(told), Some(wanted)) => assert!(told.contains(wanted), "{told}"),
                _ => panic!("{told:?} instead of {wanted:?}"),
            }
        }
        let (folder, files) = Folder::with(&certificate, &key);
        std::fs::remove_file(folder.0.path().join("k.pem")).unwrap();
        assert!(Tls::open(&files).unwrap_err().to_string().contains("k.pem cannot be read"));
    }

    #[test]
    fn the_end_of_a_certificate_is_read_in_both_of_its_forms() {
        for year in [1999, 2040, 2050, 2100] {
            let (certificate, key) = made(year);
            let (_folder, files) = Folder::with(&certificate, &key);
            let end = Pair::read(&files, Looks::of(&files)).unwrap().not_after.unwrap();
            assert_eq!(end.to_string(), format!("{year}-03-04T00:00:00Z"));
            let der = &chain(&files.certificate).unwrap()[0];
            for length in 0..der.len() {
                // Cut off anywhere, it is no certificate, and nobody panics.
                assert_eq!(not_after(&der[..length]), None);
            }
        }
    }

    #[test]
    fn files_are_taken_when_they_are_a_pair_and_nobody_writes_them() {
        let ((first, first_key), (second, second_key)) = (made(2040), made(2041));
        let (folder, files) = Folder::with(&first, &first_key);
        let tls = Arc::new(Tls::open(&files).unwrap());
        let mut watch = Watch { seen: tls.used.load().looks, refused: None, tls: tls.clone() };
        let year = || tls.used.load().not_after.unwrap().to_string()[..4].to_owned();
        let mut look = |at_once| {
            watch.look(at_once);
            watch.refused.is_some()
        };
        assert!(!look(false) && !look(true));
        folder.write("c.pem", &second);
        assert!(!look(false), "it may be on its way");
        assert!(look(false), "it is a certificate without its key");
        assert_eq!(year(), "2040");
        folder.write("k.pem", &second_key);
        assert!(look(false));
        assert!(!look(false));
        assert_eq!(year(), "2041");
        folder.write("c.pem", &first);
        folder.write("k.pem", &first_key);
        assert!(!look(true), "who asks for it is not made to wait");
        assert_eq!(year(), "2040");
        std::fs::remove_file(folder.0.path().join("c.pem")).unwrap();
        assert!(!look(false));
        assert!(look(false));
        assert_eq!(year(), "2040");
    }
}
