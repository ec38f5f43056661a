//! HTTPS: the certificate and its key, read anew when their files change.
//!
//! Whoever renews certificates replaces two files, one after the other, and tells nobody. So the files are looked at when
//! somebody connects, once a second at most; what does not fit together is left aside, and the connection gets the
//! certificate from before.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use operators::clock::Clock;
use operators::error::StartError;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ServerConfig, version};

/// The files of a certificate and of its private key, both PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's own certificate first, then those that lead to an authority.
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// Between two looks at the files.
const LOOK: Duration = Duration::from_secs(1);

/// What tells one content of a file from another: device, number, size, and when it was changed.
type Stamp = Option<(u64, u64, u64, i64, i64)>;

/// The certificate that is shown just now.
pub(super) struct Tls {
    files: TlsFiles,
    clock: Arc<dyn Clock>,
    current: Mutex<Current>,
}

struct Current {
    acceptor: TlsAcceptor,
    stamps: [Stamp; 2],
    looked: Instant,
}

impl Tls {
    /// # Errors
    /// Where the files are no certificate and its key.
    pub fn new(files: TlsFiles, clock: Arc<dyn Clock>) -> Result<Tls, StartError> {
        let stamps = files.stamps();
        let acceptor = files.acceptor()?;
        let current = Current { acceptor, stamps, looked: clock.now() };
        Ok(Tls { files, clock, current: Mutex::new(current) })
    }

    /// What takes the next connection.
    pub fn acceptor(&self) -> TlsAcceptor {
        // Nothing panics while it holds this lock.
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.now();
        if now.saturating_duration_since(current.looked) >= LOOK {
            current.looked = now;
            let stamps = self.files.stamps();
            if stamps != current.stamps {
                current.stamps = stamps;
                match self.files.acceptor() {
                    Ok(acceptor) => {
                        tracing::info!(certificate = %self.files.certificate.display(), "the certificate was read anew");
                        current.acceptor = acceptor;
                    }
                    Err(error) => {
                        let hint = error.hint.as_deref();
                        tracing::error!(hint, "the certificate from before stays: {error}");
                    }
                }
            }
        }
        current.acceptor.clone()
    }
}

impl TlsFiles {
    fn stamps(&self) -> [Stamp; 2] {
        [&self.certificate, &self.key].map(|path| {
            let found = fs::metadata(path).ok()?;
            Some((found.dev(), found.ino(), found.size(), found.mtime(), found.mtime_nsec()))
        })
    }

    fn acceptor(&self) -> Result<TlsAcceptor, StartError> {
        let certificates: Result<Vec<CertificateDer<'static>>, _> =
            CertificateDer::pem_slice_iter(&read(&self.certificate, "certificate")?).collect();
        let certificates = certificates.ok().filter(|found| !found.is_empty());
        let certificates = certificates.ok_or_else(|| not(&self.certificate, "certificate", "CERTIFICATE"))?;
        let key = PrivateKeyDer::from_pem_slice(&read(&self.key, "private key")?)
            .map_err(|_| not(&self.key, "private key", "PRIVATE KEY"))?;
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&version::TLS13, &version::TLS12])
            .and_then(|config| config.with_no_client_auth().with_single_cert(certificates, key));
        let mut config = config.map_err(|error| {
            let (certificate, key) = (self.certificate.display(), self.key.display());
            StartError::new(format!("the certificate `{certificate}` and the key `{key}` are of no use: {error}"))
                .hint("name a certificate and the private key that it was made for")
        })?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

fn read(path: &Path, what: &str) -> Result<Vec<u8>, StartError> {
    fs::read(path).map_err(|error| {
        let why = match error.kind() {
            io::ErrorKind::NotFound => "there is no such file".to_owned(),
            io::ErrorKind::PermissionDenied => "it may not be read".to_owned(),
            _ => error.to_string(),
        };
        StartError::new(format!("the {what} `{}` cannot be read: {why}", path.display()))
            .hint("name the files with `--tls-cert` and `--tls-key`, and see that this user may read them")
    })
}

fn not(path: &Path, what: &str, mark: &str) -> StartError {
    StartError::new(format!("there is no {what} in `{}`", path.display()))
        .hint(format!("it should be PEM, with a line that ends in `{mark}-----`"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use operators::clock::SimulatedClock;

    #[test]
    fn what_is_no_certificate_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("text.pem"), "not a certificate").unwrap();
        let of = |certificate: &str, key: &str| {
            let files = TlsFiles { certificate: at(certificate), key: at(key) };
            let error = Tls::new(files, Arc::new(SimulatedClock::default())).map(drop).unwrap_err();
            assert!(error.hint.is_some(), "{error}");
            error.message
        };
        assert!(of("gone.pem", "text.pem").contains("gone.pem` cannot be read: there is no such file"));
        assert!(of("text.pem", "text.pem").contains("there is no certificate in"));
    }
}
