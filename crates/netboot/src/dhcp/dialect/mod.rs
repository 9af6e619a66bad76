//! What each firmware family wants to hear: the one answer of the policy, in its dialect.
//!
//! [`ReplyProfile`] is the table of dialects with their rationales; this file turns a [`Boot`] into a server and a file, or into a
//! URL, and writes it as the row says.

mod profile;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

pub(crate) use profile::{ReplyProfile, UrlPlacement};

use super::wire::{Message, code};
use crate::content::UrlBuilder;
use crate::device::{Device, Firmware};
use crate::percent::{Plain, percent_encode};
use crate::place::Place;
use crate::policy::{Boot, What};

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
pub enum BootReply {
    /// To load a URL.
    Url(String),
    /// To load a file by TFTP.
    File {
        /// The TFTP server.
        server: Ipv4Addr,
        /// The file.
        file: String,
    },
    /// To attach this disk and boot it: no file, only the root path.
    RootPath(String),
    /// To ask us on port 4011, where it will be told the file.
    AskBinl,
    /// Nothing, and why.
    Nothing(Reason),
}

/// Why an answer says nothing about booting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// An operating system asked.
    NoBootClient,
    /// All members are dead or drained, or none that is left can be reached as the profile wants it: by this version of
    /// IP, and by HTTPS where URLs are `https`.
    NoMember,
    /// The profile names a URL and the program knows TFTP only.
    UrlForTftp,
    /// The profile names a file without a URL and the program knows HTTP only.
    FileForHttp,
    /// The profile is a script and the program runs none.
    ScriptForFirmware,
    /// The profile is iPXE's own program, and iPXE asks: it would load itself for ever.
    OwnLoader,
    /// A URL of more than 255 bytes, which no firmware joins from two options.
    LongUrl,
    /// The profile names nothing.
    NothingNamed,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoBootClient => "who asks does not boot over the network",
            Self::NoMember => "no live member that it can reach",
            Self::UrlForTftp => "the profile is a URL, and this firmware knows TFTP only",
            Self::FileForHttp => "the profile is a file name, and this firmware wants an http URL",
            Self::ScriptForFirmware => "the profile is a script, and this firmware runs none",
            Self::OwnLoader => "the profile is iPXE, and iPXE asks: it would load itself for ever",
            Self::LongUrl => "the URL has more than 255 bytes",
            Self::NothingNamed => "the profile names neither a file nor a root path that this firmware takes",
        })
    }
}

impl fmt::Display for BootReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(url) => f.write_str(url),
            Self::File { server, file } => write!(f, "tftp://{server}/{file}"),
            Self::RootPath(path) => write!(f, "root path {path}"),
            Self::AskBinl => f.write_str("ask on port 4011"),
            Self::Nothing(reason) => write!(f, "nothing: {reason}"),
        }
    }
}

/// Puts into `reply` what the program that sent `request` needs to boot `boot`, and says what that was. Leaves the reply
/// without boot options if nothing can be told, and says why; only the host name, which is no matter of booting, is set
/// for whoever is given an address.
///
/// Call it when all else but option 82 is in the reply: option 54 is read, and option 67 goes last.
pub fn add_boot(
    reply: &mut Message,
    request: &Message,
    device: &Device,
    boot: &Boot,
    urls: &UrlBuilder,
    role: Role,
) -> BootReply {
    if let Some(name) = boot.host_name.as_ref().filter(|_| role == Role::Server) {
        reply.options.set(code::HOST_NAME, name.as_bytes());
    }
    let Some(profile) = ReplyProfile::of(device.firmware, role) else {
        return BootReply::Nothing(Reason::NoBootClient);
    };
    let us = reply.options.address(code::SERVER_ID).unwrap_or(Ipv4Addr::UNSPECIFIED);
    match target(boot, device, urls, IpAddr::is_ipv4) {
        Ok(target) => write(reply, request, boot, profile, target, us),
        Err(reason) => BootReply::Nothing(reason),
    }
}

/// What to load, before it is put into a dialect.
pub(crate) enum Target {
    Url(String),
    /// A file of a TFTP server.
    File {
        server: IpAddr,
        file: String,
    },
    RootPath(String),
}

/// What this program shall load, from the first member that it can reach.
pub(crate) fn target(
    boot: &Boot,
    device: &Device,
    urls: &UrlBuilder,
    is_reachable: fn(&IpAddr) -> bool,
) -> Result<Target, Reason> {
    let takes_url = device.firmware.takes_url();
    let mut members = boot.members.iter().filter(|member| is_reachable(&member.address));
    let target = match &boot.what {
        What::Literal(text) if text.is_empty() => match &boot.root_path {
            Some(path) if matches!(device.firmware, Firmware::Ipxe | Firmware::Gpxe) => {
                Target::RootPath(path.clone())
            }
            _ => return Err(Reason::NothingNamed),
        },
        What::Literal(text) if matches!(Place::of(text), Place::Url(_)) => {
            if takes_url {
                Target::Url(text.clone())
            } else {
                let (server, file) =
                    tftp_url(text).filter(|(server, _)| is_reachable(server)).ok_or(Reason::UrlForTftp)?;
                Target::File { server, file }
            }
        }
        What::Literal(_) if device.firmware == Firmware::HttpClient => return Err(Reason::FileForHttp),
        What::Literal(file) => {
            let server = members.next().ok_or(Reason::NoMember)?;
            Target::File { server: server.address, file: file.clone() }
        }
        What::Script(_) if !matches!(device.firmware, Firmware::Ipxe | Firmware::Gpxe) => {
            return Err(Reason::ScriptForFirmware);
        }
        What::File(_) | What::Script(_) => {
            let path = urls.path_of(boot, device).ok_or(Reason::NothingNamed)?;
            if takes_url {
                // A profile that wants https is not handed out as http.
                let member = members
                    .find(|member| !boot.is_secure || member.https_port.is_some())
                    .ok_or(Reason::NoMember)?;
                Target::Url(format!(
                    "{}/{}",
                    member.base_url(boot.is_secure),
                    percent_encode(&path, Plain::BOOT_FILE)
                ))
            } else {
                let server = members.next().ok_or(Reason::NoMember)?;
                Target::File { server: server.address, file: path }
            }
        }
    };
    match &target {
        Target::Url(name) | Target::File { file: name, .. }
            if device.firmware == Firmware::Ipxe && is_ipxe_itself(name) =>
        {
            Err(Reason::OwnLoader)
        }
        Target::Url(url) if url.len() > URL_MAX => Err(Reason::LongUrl),
        _ => Ok(target),
    }
}

/// An option's length is one byte. RFC 3396 would join two of them, and neither EDK2 nor iPXE does for a boot file.
const URL_MAX: usize = 255;
/// The header's field, less a NUL.
const FILE_MAX: usize = 127;

/// Writes a target as the profile says.
fn write(
    reply: &mut Message,
    request: &Message,
    boot: &Boot,
    profile: &ReplyProfile,
    target: Target,
    us: Ipv4Addr,
) -> BootReply {
    // RFC 4578 §2.3 has it from the client only; PXE 2.1 has the server echo it, and some ROMs drop offers without.
    if let Some(uuid) = request.options.get(code::CLIENT_UUID) {
        reply.options.set(code::CLIENT_UUID, uuid);
    }
    for (code, value) in [
        (code::VENDOR_CLASS, profile.vendor_class),
        (code::VENDOR_SPECIFIC, profile.vendor_options),
        (code::IPXE, profile.ipxe_options),
    ] {
        if let Some(value) = value {
            reply.options.set(code, value);
        }
    }
    let is_asked_for =
        |code| request.options.get(code::PARAMETER_LIST).is_some_and(|list| list.contains(&code));
    if let Some(path) = &boot.root_path
        && (is_asked_for(code::ROOT_PATH) || matches!(target, Target::RootPath(_)))
    {
        reply.options.set(code::ROOT_PATH, path.as_bytes());
    }
    if profile.placement == UrlPlacement::AskBinl {
        reply.siaddr = us;
        return BootReply::AskBinl;
    }
    match target {
        Target::RootPath(path) => BootReply::RootPath(path),
        Target::File { server, file } => {
            // `target` was asked for IPv4.
            let server = ipv4_of(server).unwrap_or(us);
            reply.siaddr = server;
            if profile.has_server_name {
                reply.options.set(code::TFTP_SERVER, server.to_string());
            }
            if file.len() <= FILE_MAX {
                reply.file = file.clone().into_bytes();
            } else {
                reply.options.set(code::BOOT_FILE, file.as_bytes());
            }
            BootReply::File { server, file }
        }
        Target::Url(url) => {
            if profile.placement == UrlPlacement::UrlAndServer {
                let first = boot.members.iter().find_map(|member| ipv4_of(member.address));
                reply.siaddr = first.unwrap_or(us);
            }
            // Only in option 67: the header's field holds 128 bytes.
            let mut value = url.clone().into_bytes();
            if profile.placement == UrlPlacement::UrlWithNul && value.len() < URL_MAX {
                value.push(0);
            }
            reply.options.set(code::BOOT_FILE, value);
            BootReply::Url(url)
        }
    }
}

fn ipv4_of(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

/// `tftp://10.0.0.5/pxelinux.0` or `tftp://[2001:db8::5]/pxelinux.0` as a server and a file, for firmware without URLs.
fn tftp_url(url: &str) -> Option<(IpAddr, String)> {
    let (host, file) = url.strip_prefix("tftp://")?.split_once('/')?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    Some((host.parse().ok()?, file.to_owned()))
}

/// Whether a file or a URL is one of iPXE's own programs, by the names that its build gives them.
fn is_ipxe_itself(name: &str) -> bool {
    let name = name.rsplit('/').next().unwrap_or(name).to_ascii_lowercase();
    let is_program =
        [".kpxe", ".kkpxe", ".kkkpxe", ".pxe", ".efi", ".lkrn", ".0"].iter().any(|end| name.ends_with(end));
    is_program && ["ipxe", "undionly", "snponly", "snp."].iter().any(|start| name.starts_with(start))
}

#[cfg(test)]
mod tests;
