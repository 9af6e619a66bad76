//! Why a server does not begin: every part of this room binds its sockets, runs and stops in one way, and fails in one.

use std::io;
use std::net::SocketAddr;

use goldwire_stdx::Hints;

use crate::http::TlsError;

/// Why a server cannot listen, or cannot start.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// A port is in use, an address or an interface is not there, or the right is missing.
    #[error("listen {for_what}")]
    Listen {
        /// `for TFTP on 10.0.0.1:69`.
        for_what: String,
        /// The UDP or TCP port.
        port: u16,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something else that it needs: a thread, an interface's address, a multicast group.
    #[error("{what}")]
    Need {
        /// `start the HTTP server's threads`.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The certificate cannot be used.
    #[error("prepare HTTPS")]
    Tls(#[source] TlsError),
    /// A secure listener without a certificate.
    #[error("{0} is to speak HTTPS and there is no certificate")]
    NoCertificate(SocketAddr),
}

impl BindError {
    /// For a socket that is to have this address.
    pub(crate) fn listen(protocol: &str, address: SocketAddr) -> impl Fn(io::Error) -> Self {
        let for_what = format!("for {protocol} on {address}");
        move |source| Self::Listen { for_what: for_what.clone(), port: address.port(), source }
    }

    /// For what else is needed.
    pub(crate) fn need(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Need { what, source }
    }
}

impl Hints for BindError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::Tls(error) => error.hints(),
            Self::Listen { .. } | Self::Need { .. } | Self::NoCertificate(_) => Vec::new(),
        }
    }
}
