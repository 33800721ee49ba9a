//! Asking a server whether it is well: for a health check on a machine that has no client of its own.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme, StreamOwned};

use super::tls;

/// How long it may take, in all.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// Asks a server whether it is well: over TLS if there is the file of a certificate, which it has to show, whatever names stand in it.
///
/// # Errors
/// It cannot be reached, shows another certificate, does not answer within two seconds, or answers with another status than 200.
pub fn probe(authority: &str, path: &str, certificate: Option<&Path>) -> Result<(), String> {
    let pinned = match certificate {
        Some(file) => Some(Pinned::of(file).map_err(|error| error.to_string())?),
        None => None,
    };
    let end = Instant::now() + PROBE_TIMEOUT;
    let attempt = || -> io::Result<String> {
        let mut socket = Err(io::Error::from(io::ErrorKind::NotFound));
        for address in authority.to_socket_addrs()? {
            socket = TcpStream::connect_timeout(&address, left(end)?);
            if socket.is_ok() {
                break;
            }
        }
        let socket = Hurried { socket: socket?, end };
        let request = format!("GET {path} HTTP/1.1\r\nhost: {authority}\r\nconnection: close\r\n\r\n");
        match pinned {
            None => ask(socket, &request),
            Some(pinned) => {
                let name = ServerName::IpAddress(socket.socket.peer_addr()?.ip().into());
                ask(StreamOwned::new(pinned.connection(name).map_err(io::Error::other)?, socket), &request)
            }
        }
    };
    match attempt() {
        Ok(line) if line.starts_with("HTTP/1.1 200 ") => Ok(()),
        Ok(line) if line.is_empty() => Err(format!("{authority} closed the connection without an answer")),
        Ok(line) => Err(format!("{authority} answered {line}")),
        Err(error) => Err(format!("{authority} did not answer: {error}")),
    }
}

/// Sends a request; the first line of its answer.
fn ask(mut stream: impl Read + Write, request: &str) -> io::Result<String> {
    stream.write_all(request.as_bytes())?;
    let mut head = Vec::new();
    let mut piece = [0; 1024];
    while !head.contains(&b'\n') && head.len() < piece.len() {
        match stream.read(&mut piece)? {
            0 => break,
            count => head.extend_from_slice(&piece[..count]),
        }
    }
    Ok(String::from_utf8_lossy(&head).lines().next().unwrap_or_default().to_owned())
}

/// A socket that gives up when no time is left.
struct Hurried {
    socket: TcpStream,
    end: Instant,
}

/// The time until then, if there is some.
fn left(end: Instant) -> io::Result<Duration> {
    let left = end.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

impl Read for Hurried {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.socket.set_read_timeout(Some(left(self.end)?))?;
        self.socket.read(bytes)
    }
}

impl Write for Hurried {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.set_write_timeout(Some(left(self.end)?))?;
        self.socket.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush()
    }
}

/// The one certificate that is taken: who has it and its key is the one who is asked. Neither names nor issuers matter, so that one that
/// somebody made for themselves will do.
#[derive(Debug)]
struct Pinned {
    certificate: CertificateDer<'static>,
    provider: CryptoProvider,
}

impl Pinned {
    fn of(file: &Path) -> Result<Self, tls::TlsFault> {
        Ok(Self { certificate: tls::chain(file)?.swap_remove(0), provider: ring::default_provider() })
    }

    fn connection(self, name: ServerName<'static>) -> Result<ClientConnection, Error> {
        let config = ClientConfig::builder_with_provider(Arc::new(self.provider.clone()))
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(self))
            .with_no_client_auth();
        ClientConnection::new(Arc::new(config), name)
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if *end_entity == self.certificate {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
