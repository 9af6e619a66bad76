//! The boot file as it is written. Every key is known here, and no other is taken.
//!
//! Tables are read one by one, so that a mistake in one does not hide those in the others.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use goldwire_netboot::{Mac, Network};
use goldwire_stdx::{ByteSize, Uuid};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use super::problem::{Collector, did_you_mean};
use super::value::{AddressRange, Bytes, Oui, Parsed, Pattern, Several, Wait};

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
    Tftp { listen: List<SocketAddr>, single_port: Switch, block_size_max: Value<ByteSize>,
           window_size_max: Option<Spanned<u16>> }
    Dhcp { mode: Text, interfaces: List<String>, authoritative: Switch, probe: Switch, lease_query_from: List<Network> }
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
    let (table, errors) = DeTable::parse_recoverable(source);
    for error in &errors {
        let span = error.span().unwrap_or(0..0);
        let hint = is_bare_text(source, span.start).then(|| {
            "texts stand in quotation marks, addresses and durations too: \"10.0.0.1\", \"12h\"".into()
        });
        problems.error_with_hint(span, error.message(), hint);
    }
    if !errors.is_empty() {
        return None;
    }
    let mut file = File::default();
    for (key, value) in table.into_inner() {
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
            "profile" => (file.profiles, file.unread.profiles) = named_tables(value, problems),
            unknown => {
                let hint =
                    did_you_mean(unknown, TOP).unwrap_or_else(|| format!("known are {}", TOP.join(", ")));
                problems.error_with_hint(span, format!("unknown key {unknown:?}"), Some(hint));
            }
        }
    }
    Some(file)
}

/// Whether a value begins before this place that has no quotation mark, bracket or brace: `router = 10.0.0.1`.
fn is_bare_text(source: &str, at: usize) -> bool {
    let at = source.floor_char_boundary(at.min(source.len()));
    let line_start = source[..at].rfind('\n').map_or(0, |found| found + 1);
    let line = source[line_start..].lines().next().unwrap_or_default();
    let Some((_, value)) = line.split_once('=') else { return false };
    !value.trim().is_empty() && !value.contains(['"', '\'', '[', '{'])
}

fn table_of<T: DeserializeOwned>(value: Spanned<DeValue<'_>>, problems: &mut Collector<'_>) -> Option<T> {
    let span = value.span();
    T::deserialize(ValueDeserializer::from(value)).map_err(|error| report(&error, span, problems)).ok()
}

/// The tables that can be read, and whether there are others.
fn tables_of<T: DeserializeOwned>(
    name: &str,
    value: Spanned<DeValue<'_>>,
    problems: &mut Collector<'_>,
) -> (Vec<Spanned<T>>, bool) {
    let span = value.span();
    let DeValue::Array(array) = value.into_inner() else {
        problems.error(span, format!("{name} has to be written [[{name}]]"));
        return (Vec::new(), true);
    };
    let count = array.len();
    let read: Vec<_> = array.into_iter().filter_map(|item| table_of(item, problems)).collect();
    let has_others = read.len() < count;
    (read, has_others)
}

/// The profiles that can be read, and the names of the others.
fn named_tables(
    value: Spanned<DeValue<'_>>,
    problems: &mut Collector<'_>,
) -> (Vec<(Spanned<String>, Profile)>, BTreeSet<String>) {
    let span = value.span();
    let DeValue::Table(table) = value.into_inner() else {
        problems.error(span, "profiles have to be written [profile.NAME]");
        return Default::default();
    };
    let (mut named, mut others) = (Vec::new(), BTreeSet::new());
    for (key, value) in table {
        let name = Spanned::new(key.span(), key.get_ref().to_string());
        match table_of(value, problems) {
            Some(profile) => named.push((name, profile)),
            None => drop(others.insert(name.into_inner())),
        }
    }
    named.sort_by_key(|(name, _): &(Spanned<String>, Profile)| name.span().start);
    (named, others)
}

fn report(error: &toml::de::Error, around: std::ops::Range<usize>, problems: &mut Collector<'_>) {
    let message = error.message();
    // serde says: unknown field `x`, expected one of `a`, `b`.
    let words: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let hint = match words.split_first() {
        Some((unknown, known)) if message.starts_with("unknown field") => {
            did_you_mean(unknown, known.iter().copied())
                .or_else(|| Some(format!("known are {}", known.join(", "))))
        }
        _ => None,
    };
    let message = match (message.starts_with("unknown field"), words.first()) {
        (true, Some(unknown)) => format!("unknown key {unknown:?}"),
        _ => message.to_owned(),
    };
    problems.error_with_hint(error.span().unwrap_or(around), message, hint);
}
