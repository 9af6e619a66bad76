//! `goldwire boot …`, as it was typed.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use goldwire_netboot::Network;
use goldwire_netboot::{Architecture, Mac};
use goldwire_stdx::Uuid;

use super::{parse_duration, within};

#[derive(Debug, Subcommand)]
pub(crate) enum BootCommand {
    /// Serve network boots: DHCP or proxyDHCP, TFTP, HTTP, as the boot file says.
    Serve(ServeArgs),
    /// Check a boot file; every problem is shown with its line.
    Check(CheckArgs),
    /// Say what a device boots, which rule won, and the reply that each firmware would get.
    Explain(ExplainArgs),
    /// Print the iPXE script of a device.
    Script(ScriptArgs),
    /// Show how far devices have come, and follow them.
    Watch(WatchArgs),
    /// Play a client of each firmware family against a running set-up, and say what is wrong.
    Doctor(DoctorArgs),
    /// Be the one address for firmware that takes only one: pass HTTP and TFTP on to live members.
    Balance(BalanceArgs),
    /// Write a boot medium: iPXE with the boot file's members, for machines whose DHCP cannot be changed.
    Media(Box<MediaArgs>),
    /// Make the secret that the members of a boot group share.
    Secret(SecretArgs),
    /// Make a certificate authority, or a server certificate from one, for HTTPS boots.
    Certificate(CertificateArgs),
}

#[derive(Debug, Parser)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    pub(crate) file: FileArgs,
    /// Also whether this machine can serve by it: folders, user, interfaces, certificate, addresses.
    #[arg(long)]
    pub(crate) here: bool,
}

/// Where the boot file is.
#[derive(Debug, Parser)]
pub(crate) struct FileArgs {
    /// The boot file.
    #[arg(long, short, value_name = "FILE", default_value = "/etc/goldwire/boot.toml")]
    pub(crate) config: PathBuf,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

const SERVE_HELP: &str = "\
Signals: INT and TERM stop in order (running transfers get ten seconds), HUP reads the boot file again; a changed file \
is also noticed by itself.

Exit codes: 0 stopped on request, 1 could not start or a server failed, 2 wrong usage.";

#[derive(Debug, Parser)]
#[command(after_help = SERVE_HELP)]
pub(crate) struct ServeArgs {
    /// The boot file.
    #[arg(long, short, value_name = "FILE", default_value = "/etc/goldwire/boot.toml")]
    pub(crate) config: PathBuf,
    /// How log lines look.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,
    /// Log this much: error, warn, info, debug, trace, or a filter such as `info,goldwire_netboot::tftp=debug`.
    #[arg(long, value_name = "FILTER", default_value = "info")]
    pub(crate) log: String,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// A device, as far as somebody asks about it.
#[derive(Debug, Parser)]
pub(crate) struct DeviceArgs {
    /// Hardware address: 52:54:00:12:34:56.
    pub(crate) mac: Mac,
    /// Architecture: bios, efi-x64, http-x64, efi-arm64, … or its number.
    #[arg(long, value_parser = parse_arch)]
    pub(crate) arch: Option<Architecture>,
    /// SMBIOS UUID.
    #[arg(long)]
    pub(crate) uuid: Option<Uuid>,
    /// An address in its subnet; by default that of the first subnet.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) subnet: Option<IpAddr>,
}

#[derive(Debug, Parser)]
pub(crate) struct ExplainArgs {
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    #[command(flatten)]
    pub(crate) file: FileArgs,
}

#[derive(Debug, Parser)]
pub(crate) struct ScriptArgs {
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    /// The boot file.
    #[arg(long, short, value_name = "FILE", default_value = "/etc/goldwire/boot.toml")]
    pub(crate) config: PathBuf,
}

#[derive(Debug, Parser)]
pub(crate) struct WatchArgs {
    /// Only this device: a hardware or network address.
    #[arg(value_parser = parse_device)]
    pub(crate) device: Option<String>,
    #[command(flatten)]
    pub(crate) file: FileArgs,
    /// Show what is there and end; by default, follow.
    #[arg(long)]
    pub(crate) once: bool,
    /// Where the server keeps its state, instead of what the boot file says.
    #[arg(long, value_name = "FOLDER")]
    pub(crate) state: Option<PathBuf>,
}

const DOCTOR_HELP: &str = "\
Exit codes: 0 every firmware would boot, 5 something is wrong, 1 could not look, 2 wrong usage.

Examples:
  goldwire boot doctor --interface eth0               # as a machine on this network; needs root
  goldwire boot doctor --server 10.0.0.1 --from 10.0.0.9   # as a relay at 10.0.0.9, from another network";

#[derive(Debug, Parser)]
#[command(after_help = DOCTOR_HELP)]
pub(crate) struct DoctorArgs {
    /// Ask on the network of this interface, as a machine would.
    #[arg(long, required_unless_present = "server", conflicts_with = "server")]
    pub(crate) interface: Option<String>,
    /// Ask this DHCP server as a relay does.
    #[arg(long, value_name = "ADDRESS", requires = "from")]
    pub(crate) server: Option<Ipv4Addr>,
    /// The address of this machine that answers come to.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) from: Option<Ipv4Addr>,
    /// Play only these firmware families; by default all.
    #[arg(long, value_enum)]
    pub(crate) firmware: Vec<FirmwareArg>,
    /// Ask as this device instead of a made-up one.
    #[arg(long)]
    pub(crate) mac: Option<Mac>,
    /// A boot file: each of its members is asked for the same content, and all may give addresses.
    #[arg(long, short, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// How long to listen for answers.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "4s")]
    pub(crate) wait: Duration,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FirmwareArg {
    /// PXE of a BIOS.
    Bios,
    /// PXE of UEFI.
    Efi,
    /// UEFI HTTP Boot.
    Http,
    /// iPXE.
    Ipxe,
}

#[derive(Debug, Parser)]
pub(crate) struct BalanceArgs {
    /// The boot file, whose members are served.
    #[arg(long, short, value_name = "FILE", default_value = "/etc/goldwire/boot.toml")]
    pub(crate) config: PathBuf,
    /// Where HTTP is taken.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:80")]
    pub(crate) http: Vec<std::net::SocketAddr>,
    /// Where TFTP is taken.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:69")]
    pub(crate) tftp: Vec<std::net::SocketAddr>,
    /// Load balancers that put a PROXY protocol header before a connection.
    #[arg(long, value_name = "ADDRESS[/PREFIX]")]
    pub(crate) proxy_protocol_from: Vec<Network>,
    /// Put a PROXY protocol header before connections to members.
    #[arg(long)]
    pub(crate) send_proxy_protocol: bool,
    /// How log lines look.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,
    /// Log this much.
    #[arg(long, value_name = "FILTER", default_value = "info")]
    pub(crate) log: String,
}

#[derive(Debug, Parser)]
#[command(group = clap::ArgGroup::new("kind").required(true).args(["iso", "usb", "esp"]))]
pub(crate) struct MediaArgs {
    /// Write an ISO image for BIOS and UEFI.
    #[arg(long, value_name = "FILE")]
    pub(crate) iso: Option<PathBuf>,
    /// Write a disk image for BIOS and UEFI.
    #[arg(long, value_name = "FILE")]
    pub(crate) usb: Option<PathBuf>,
    /// Write the files of an EFI system partition into a folder.
    #[arg(long, value_name = "FOLDER")]
    pub(crate) esp: Option<PathBuf>,
    /// The boot file, whose members the medium asks.
    #[arg(long, short, value_name = "FILE", default_value = "/etc/goldwire/boot.toml")]
    pub(crate) config: PathBuf,
    /// Static address instead of DHCP: 10.0.0.7/24.
    #[arg(long, value_name = "ADDRESS/PREFIX", requires = "gateway")]
    pub(crate) address: Option<String>,
    /// The gateway to a static address.
    #[arg(long, value_name = "ADDRESS", requires = "address")]
    pub(crate) gateway: Option<Ipv4Addr>,
    /// The name server to a static address.
    #[arg(long, value_name = "ADDRESS", requires = "address")]
    pub(crate) dns: Option<Ipv4Addr>,
    /// VLAN tag of the network, instead of the boot file's media.vlan.
    #[arg(long, value_parser = within::<u16>(1..=4094))]
    pub(crate) vlan: Option<u16>,
    /// Ask the members by HTTPS, as with the boot file's media.secure.
    #[arg(long)]
    pub(crate) secure: bool,
    /// A CA certificate to put on the medium, for enrolling in the firmware, instead of the boot file's media.trust.
    #[arg(long, value_name = "FILE")]
    pub(crate) trust: Option<PathBuf>,
    /// Where iPXE's programs are, instead of the boot file's media.programs or server.ipxe.
    #[arg(long, value_name = "FOLDER")]
    pub(crate) programs: Option<PathBuf>,
    /// Replace an existing file.
    #[arg(long)]
    pub(crate) replace: bool,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Parser)]
pub(crate) struct SecretArgs {
    /// Where to write it; must not exist. Copy it to every member.
    pub(crate) file: PathBuf,
}

#[derive(Debug, Parser)]
pub(crate) struct CertificateArgs {
    /// Folder of the authority (`ca.pem`, `ca.key`); made with a new authority if it is not there.
    pub(crate) folder: PathBuf,
    /// Names and addresses of a server that gets a certificate: the first one names the files.
    #[arg(long, value_name = "NAME|ADDRESS")]
    pub(crate) server: Vec<String>,
    /// Make a new authority's keys for ECDSA on P-256: cheaper handshakes, for iPXE 2.0 and recent UEFI only. By
    /// default, RSA with 2048 bits, which all firmware takes.
    #[arg(long)]
    pub(crate) ecdsa: bool,
}

/// An address as the timeline has it, however it was typed.
fn parse_device(text: &str) -> Result<String, String> {
    let mac = text.parse::<Mac>().map(|mac| mac.to_string());
    mac.or_else(|_| text.parse::<IpAddr>().map(|address| address.to_string()))
        .map_err(|_| "a device is a MAC address, such as 52:54:00:12:34:56, or a network address".into())
}

fn parse_arch(text: &str) -> Result<Architecture, String> {
    let number = text.parse().ok().map(Architecture);
    number.or_else(|| Architecture::from_name(text)).ok_or_else(|| {
        let names: Vec<_> = Architecture::names().collect();
        format!("an architecture is a number or one of {}", names.join(", "))
    })
}
