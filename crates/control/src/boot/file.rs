//! The boot file as it is written. Every key is known here, and no other is taken.
//!
//! Tables are read one by one, so that a mistake in one does not hide those in the others.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use goldwire_netboot::dhcp::AddressRange;
use goldwire_netboot::{Mac, Network};
use goldwire_stdx::{ByteSize, Uuid};
use serde::Deserialize;
use toml::Spanned;

use super::value::{Bytes, Oui, Pattern};
use crate::config::{
    Collector, Parsed, Several, Wait, document, named_tables, table_of, tables_of, unknown_key,
};

/// A whole file. Tables that have a mistake are missing here.
#[derive(Default)]
pub(super) struct File {
    pub(super) default_profile: Option<Spanned<String>>,
    pub(super) server: Server,
    pub(super) http: Http,
    pub(super) tftp: Tftp,
    pub(super) dhcp: Dhcp,
    pub(super) dhcp6: Dhcp6,
    pub(super) metrics: Metrics,
    pub(super) heartbeat: Heartbeat,
    pub(super) media: Option<Spanned<Media>>,
    pub(super) ipxe: BTreeMap<Spanned<String>, Spanned<String>>,
    pub(super) subnets: Vec<Spanned<Subnet>>,
    pub(super) members: Vec<Spanned<Member>>,
    pub(super) devices: Vec<Spanned<Device>>,
    pub(super) groups: Vec<Spanned<Group>>,
    pub(super) profiles: Vec<(Spanned<String>, Profile)>,
    pub(super) unread: Unread,
}

/// Tables that are there and have a mistake, which has been told. That something names them, or needs a key of theirs,
/// is no mistake of its own.
#[derive(Default)]
pub(super) struct Unread {
    pub(super) server: bool,
    pub(super) media: bool,
    /// One of them, whichever it is: its name may be what could not be read.
    pub(super) members: bool,
    pub(super) subnets: bool,
    /// By their names.
    pub(super) profiles: BTreeSet<String>,
}

macro_rules! tables {
    ($($(#[$doc:meta])* $name:ident { $($key:ident: $kind:ty),* $(,)? })*) => {$(
        $(#[$doc])*
        #[derive(Default, Deserialize)]
        #[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
        pub(super) struct $name { $(pub(super) $key: $kind),* }
    )*};
}

type Text = Option<Spanned<String>>;
type Switch = Option<bool>;
type Value<T> = Option<Spanned<Parsed<T>>>;
type List<T> = Option<Spanned<Several<T>>>;

tables! {
    Server { name: Text, state: Option<PathBuf>, root: Option<Spanned<PathBuf>>, ipxe: Option<Spanned<PathBuf>>,
             user: Text, secret_file: Option<Spanned<PathBuf>>, templates: Option<Spanned<PathBuf>> }
    Http { listen: List<SocketAddr>, tls_listen: List<SocketAddr>, certificate: Option<Spanned<PathBuf>>,
           key: Option<Spanned<PathBuf>>, transfers_max: Option<Spanned<u32>>, proxy_protocol_from: List<Network> }
    Tftp { allow_from: List<Network>, listen: List<SocketAddr>, single_port: Option<Spanned<bool>>, block_size_max: Value<ByteSize>,
           window_size_max: Option<Spanned<u16>> }
    Dhcp { mode: Text, interfaces: List<String>, authoritative: Switch, probe: Switch, lease_query_from: List<Network>,
        relays: List<Network> }
    Dhcp6 { interfaces: List<String> }
    Metrics { listen: Value<SocketAddr> }
    Heartbeat { listen: Value<SocketAddr>, announce_to: List<SocketAddr>, accept_found: Switch, probe_interval: Value<Wait> }
    Media { programs: Option<Spanned<PathBuf>>, secure: Switch, vlan: Option<Spanned<u16>>, trust: Option<Spanned<PathBuf>> }
    Subnet { network: Value<Network>, shared_network: Text, pools: List<AddressRange>,
             pools_of: BTreeMap<Spanned<String>, Spanned<Several<AddressRange>>>, router: List<Ipv4Addr>, dns: List<Ipv4Addr>,
             ntp: List<Ipv4Addr>, domain: Text, search: List<String>, mtu: Option<Spanned<u16>>,
             routes: Vec<Spanned<Route>>, lease: Value<Wait>, boot_lease: Value<Wait>,
             tftp_block_size_max: Value<ByteSize>, reservation: Vec<Spanned<Reservation>> }
    Route { to: Value<Network>, via: Value<Ipv4Addr> }
    Reservation { mac: Value<Mac>, uuid: Value<Uuid>, client_id: Value<Bytes>, address: Value<Ipv4Addr>, name: Text }
    Member { name: Text, address: Value<IpAddr>, http_port: Option<u16>, https_port: Option<u16>, tftp_port: Option<u16>, https_name: Text,
             heartbeat: Value<SocketAddr>, weight: Option<Spanned<u32>>, drain: Switch, subnets: List<Network> }
    Device { mac: Value<Mac>, uuid: Value<Uuid>, name: Text, profile: Text, address: Value<Ipv4Addr>,
             variables: BTreeMap<Spanned<String>, Spanned<String>> }
    Group { name: Text, profile: Text, mac: List<Mac>, oui: List<Oui>, uuid: List<Uuid>, arch: List<String>,
            firmware: List<String>, subnet: List<Network>, circuit_id: List<Pattern>, remote_id: List<Pattern>,
            vendor_class: List<Pattern>, user_class: List<Pattern> }
    Profile { file: Text, files: BTreeMap<Spanned<String>, Spanned<String>>, script: Text, script_text: Text,
              kernel: Text, initrd: List<String>, arguments: Text, san: List<String>, initiator: Text,
              menu: List<String>, timeout: Value<Wait>, url: Text, local: Switch, ignore: Switch, title: Text,
              ipxe: BTreeMap<Spanned<String>, Spanned<String>>, token: Option<Spanned<bool>>, secure: Option<Spanned<bool>>,
              root_path: Text, variables: BTreeMap<Spanned<String>, Spanned<String>> }
}

/// Names of the tables and keys at the top.
const TOP: [&str; 15] = [
    "default-profile",
    "server",
    "http",
    "tftp",
    "dhcp",
    "dhcp6",
    "metrics",
    "heartbeat",
    "media",
    "ipxe",
    "subnet",
    "member",
    "device",
    "group",
    "profile",
];

/// Reads a file's text as far as it can be read; none if it is no TOML.
pub(super) fn read(source: &str, problems: &mut Collector<'_>) -> Option<File> {
    let mut file = File::default();
    for (key, value) in document(source, problems)? {
        let span = key.span();
        match key.get_ref().as_ref() {
            "default-profile" => file.default_profile = table_of(value, problems),
            "server" => {
                let server = table_of(value, problems);
                file.unread.server = server.is_none();
                file.server = server.unwrap_or_default();
            }
            "http" => file.http = table_of(value, problems).unwrap_or_default(),
            "tftp" => file.tftp = table_of(value, problems).unwrap_or_default(),
            "dhcp" => file.dhcp = table_of(value, problems).unwrap_or_default(),
            "dhcp6" => file.dhcp6 = table_of(value, problems).unwrap_or_default(),
            "metrics" => file.metrics = table_of(value, problems).unwrap_or_default(),
            "heartbeat" => file.heartbeat = table_of(value, problems).unwrap_or_default(),
            "media" => {
                file.media = table_of(value, problems);
                file.unread.media = file.media.is_none();
            }
            "ipxe" => file.ipxe = table_of(value, problems).unwrap_or_default(),
            "subnet" => (file.subnets, file.unread.subnets) = tables_of("subnet", value, problems),
            "member" => (file.members, file.unread.members) = tables_of("member", value, problems),
            "device" => (file.devices, _) = tables_of("device", value, problems),
            "group" => (file.groups, _) = tables_of("group", value, problems),
            "profile" => (file.profiles, file.unread.profiles) = named_tables("profile", value, problems),
            unknown => unknown_key(span, unknown, &TOP, problems),
        }
    }
    Some(file)
}
