//! The doctor: plays a BIOS PXE, a UEFI PXE, a UEFI HTTP Boot and an iPXE client against a running set-up and says what
//! is wrong, in the words that a person before such a machine would see.
//!
//! ```text
//! firmware.rs   what each firmware sends
//! judge.rs      which offer each firmware takes, and what is wrong with the others     (pure)
//! tftp.rs, http.rs   fetch a little of what it would fetch
//! script.rs     which files a script needs                                    (pure)
//! driver.rs     sockets: an interface, or the place of a relay
//! problem.rs    codes, what is seen, hints
//! ```

mod driver;
mod firmware;
mod http;
mod judge;
mod problem;
mod script;
#[cfg(test)]
mod tests;
mod tftp;

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};

pub use driver::{DoctorError, DoctorSettings, Reach, examine};
pub use problem::Problem;

use goldwire_stdx::printable;

use crate::dhcp::wire::Message;

/// A firmware that the doctor plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Client {
    /// PXE of a BIOS.
    BiosPxe,
    /// PXE of x64 UEFI.
    EfiPxe,
    /// HTTP Boot of x64 UEFI.
    HttpBoot,
    /// iPXE on x64 UEFI, as a network card's ROM or loaded by one of the others.
    Ipxe,
}

impl Client {
    /// Each of them.
    pub const ALL: [Self; 4] = [Self::BiosPxe, Self::EfiPxe, Self::HttpBoot, Self::Ipxe];

    /// The name in output and arguments.
    pub fn name(self) -> &'static str {
        match self {
            Self::BiosPxe => "bios-pxe",
            Self::EfiPxe => "efi-pxe",
            Self::HttpBoot => "http-boot",
            Self::Ipxe => "ipxe",
        }
    }
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// As it should be.
    Ok,
    /// It boots, but slowly, or not everywhere.
    Warning,
    /// It does not boot.
    Error,
}

impl Level {
    /// The name in output.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// One thing that the doctor found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// The code that the machine shows, or a short name: stable, for scripts.
    pub code: &'static str,
    /// What was found.
    pub what: String,
    /// Why it matters, or what the machine shows. Empty where it is as it should be.
    pub why: String,
    /// What to do about it. Empty where it is as it should be.
    pub hint: String,
}

impl Finding {
    fn ok(code: &'static str, what: impl AsRef<str>) -> Self {
        Self::new(Level::Ok, code, what.as_ref(), "", "")
    }

    fn warning(code: &'static str, what: impl AsRef<str>, why: &str, hint: &str) -> Self {
        Self::new(Level::Warning, code, what.as_ref(), why, hint)
    }

    fn error(problem: Problem, client: Client, what: impl AsRef<str>) -> Self {
        Self::new(Level::Error, problem.code(client), what.as_ref(), problem.seen(client), problem.hint())
    }

    /// Servers have said parts of the texts, and a person reads them.
    fn new(level: Level, code: &'static str, what: &str, why: &str, hint: &str) -> Self {
        let [what, why, hint] = [what, why, hint].map(|text| printable(text).into_owned());
        Self { level, code, what, why, hint }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.level.name(), self.code, self.what)?;
        for (name, text) in [("why", &self.why), ("hint", &self.hint)] {
            if !text.is_empty() {
                write!(f, "\n  {name}: {text}")?;
            }
        }
        Ok(())
    }
}

/// What one firmware would meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnosis {
    /// Which firmware.
    pub client: Client,
    /// What was found, in the order in which the machine meets it.
    pub findings: Vec<Finding>,
}

impl Diagnosis {
    /// The worst of the findings.
    pub fn level(&self) -> Level {
        self.findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok)
    }
}

/// An answer to a DISCOVER.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Offer {
    /// Who sent it.
    from: SocketAddrV4,
    message: Message,
}

/// What a firmware fetches once it has an address.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fetch {
    /// A file by TFTP.
    Tftp { server: Ipv4Addr, file: String },
    /// A URL.
    Url(String),
}
