//! The script on a boot medium: brings the network up, and asks one member after the other for the device's script.

use std::fmt::Write;

use super::{Address, MediaError, MediaSettings, address};

/// Where a device's script is on a member, in iPXE's words (`content/link.rs` has the layout).
const SCRIPT_PATH: &str = "s/${gw-mac}/${gw-arch}/${gw-uuid}/boot.ipxe";

/// Renders the script.
pub(super) fn render(settings: &MediaSettings) -> Result<String, MediaError> {
    if settings.members.is_empty() {
        return refused("a medium needs at least one boot server", "add a [[member]] to the boot file");
    }
    let card = match (&settings.interface, &settings.address, settings.vlan) {
        (Some(name), ..) => Some(checked("interface", name)?),
        (None, Address::Dhcp, None) => None,
        // A fixed address or a VLAN belongs to one card.
        _ => Some("net0"),
    };
    let mut text = String::from(
        "#!ipxe\n# goldwire boot medium: runs the script of the first boot server that answers.\nset pause 1\n:network\n",
    );
    let mut line = |parts: std::fmt::Arguments<'_>| {
        let _ = text.write_fmt(parts);
        text.push('\n');
    };
    let mut device = card.unwrap_or("netX").to_owned();
    if let Some(card) = card {
        line(format_args!("ifopen {card} || goto failed"));
    }
    if let Some(tag) = settings.vlan {
        if !(1..=4094).contains(&tag) {
            return refused(
                format!("{tag} is no VLAN: they go from 1 to 4094"),
                "name the tag of the machine's network",
            );
        }
        let trunk = device.clone();
        device = format!("{trunk}-{tag}");
        line(format_args!("isset ${{{device}/mac}} || vcreate --tag {tag} {trunk} || goto no_vlan"));
        line(format_args!("ifopen {device} || goto failed"));
    }
    let network = address::network_of(settings)?;
    match (&settings.address, network) {
        (Address::Fixed { address, gateway, dns, .. }, Some(network)) => {
            line(format_args!("set {device}/ip {address}"));
            line(format_args!("set {device}/netmask {}", network.mask()));
            for (name, value) in [("gateway", gateway), ("dns", dns)] {
                if let Some(value) = value {
                    line(format_args!("set {device}/{name} {value}"));
                }
            }
        }
        _ if card.is_some() => line(format_args!("dhcp {device} || goto failed")),
        _ => line(format_args!("dhcp || goto failed")),
    }
    line(format_args!("set gw-mac ${{{device}/mac:hexhyp}}"));
    line(format_args!("set gw-uuid ${{uuid}}"));
    line(format_args!("isset ${{gw-uuid}} || set gw-uuid -"));
    line(format_args!("set gw-arch bios"));
    for (build, name) in [("x86_64", "efi-x64"), ("i386", "efi-ia32"), ("arm64", "efi-arm64")] {
        line(format_args!("iseq ${{platform}}/${{buildarch}} efi/{build} && set gw-arch {name} ||"));
    }
    let timeout = settings.timeout.as_millis();
    for member in &settings.members {
        // A medium that says https does not fall back to http for one of them.
        if settings.is_secure && member.https_port.is_none() {
            let name = &member.name;
            return refused(
                format!("{name} has no https-port and shall be asked by https"),
                "give each member that speaks HTTPS its https-port, or ask them all by http",
            );
        }
        checked("name of a boot server", member.https_name.as_deref().unwrap_or("-"))?;
        let base = member.base_url(settings.is_secure);
        line(format_args!("echo goldwire: {base}"));
        // Not `--replace`: when a member's script fails, the next member has its turn.
        line(format_args!("chain --autofree --timeout {timeout} {base}/{SCRIPT_PATH} ||"));
    }
    // From the longest down, so that one step is taken at a time; 30 s is what a person still waits for.
    line(format_args!(
        ":failed\necho goldwire: no boot server answered, trying again in ${{pause}} s (Ctrl-C: shell)\n\
         sleep ${{pause}} || shell"
    ));
    for (from, to) in [(16, 30), (8, 16), (4, 8), (2, 4), (1, 2)] {
        line(format_args!("iseq ${{pause}} {from} && set pause {to} ||"));
    }
    line(format_args!("goto network"));
    if settings.vlan.is_some() {
        line(format_args!(":no_vlan\necho goldwire: this iPXE cannot make VLANs\nsleep 30\nexit 1"));
    }
    Ok(text)
}

/// A word that means nothing else to iPXE, which expands `${…}` and ends commands at `||`, and has no delivery to quote them.
fn checked<'a>(what: &str, word: &'a str) -> Result<&'a str, MediaError> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if word.is_empty() || !word.chars().all(is_plain) {
        return refused(
            format!("{what} {word:?}: only letters, digits, '.', '-' and '_'"),
            "iPXE takes no other characters in a script",
        );
    }
    Ok(word)
}

fn refused<T>(wrong: impl Into<String>, hint: &str) -> Result<T, MediaError> {
    Err(MediaError::Setting { wrong: wrong.into(), hint: hint.into() })
}
