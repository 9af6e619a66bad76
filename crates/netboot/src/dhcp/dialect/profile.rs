//! The shapes that an answer has, as data: one row for each family of firmware and each role, with how we
//! know. `pcap` in a rationale means that the firmware was seen to boot by this profile, see `testdata/README.md`.

use super::Role;
use crate::device::Firmware;

/// How an answer to one family of firmware looks.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ReplyProfile {
    /// Whom it is for.
    pub firmware: Firmware,
    /// As what we answer.
    pub(crate) roles: &'static [Role],
    /// Option 60.
    pub vendor_class: Option<&'static [u8]>,
    /// Option 43.
    pub(crate) vendor_options: Option<&'static [u8]>,
    /// Option 175.
    pub(crate) ipxe_options: Option<&'static [u8]>,
    /// How it is told where the boot file is.
    pub(crate) placement: UrlPlacement,
    /// Whether the TFTP server stands in option 66 too, as text.
    pub(crate) has_server_name: bool,
    /// Why it looks so.
    pub(crate) rationale: &'static str,
}

/// How an answer tells where the boot file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UrlPlacement {
    /// The TFTP server in `siaddr`, the file in `file`.
    ServerAndFile,
    /// A URL in option 67.
    Url,
    /// A URL in option 67, with a NUL behind it.
    UrlWithNul,
    /// A URL in option 67, and a `siaddr` that is not zero.
    UrlAndServer,
    /// Our address in `siaddr`, and nothing else: ask there, on port 4011.
    AskBinl,
}

impl ReplyProfile {
    /// The profile for this firmware in this role; none for who does not boot.
    pub(crate) fn of(firmware: Firmware, role: Role) -> Option<&'static Self> {
        PROFILES.iter().find(|profile| profile.firmware == firmware && profile.roles.contains(&role))
    }
}

const PXE_CLIENT: Option<&[u8]> = Some(b"PXEClient");
/// Sub-option 6 (discovery control) = 8: no discovery, take the file that is named here. Then the end.
const BOOT_THIS_FILE: Option<&[u8]> = Some(&[6, 1, 8, 255]);
/// Sub-option 6 = 3: no broadcast and no multicast discovery. Sub-option 10: the prompt `PXE`, for no second.
/// Sub-option 9: one entry, type 0 (this boot server), with the text that a Raspberry Pi looks for.
const RASPBERRY_PI_MENU: Option<&[u8]> =
    Some(b"\x06\x01\x03\x0a\x04\x00PXE\x09\x14\x00\x00\x11Raspberry Pi Boot\xff");
/// Sub-option 176 (`no-pxedhcp`) = 1.
const NO_PXE_DHCP: Option<&[u8]> = Some(&[176, 1, 1]);

const EVERY_ROLE: &[Role] = &[Role::Server, Role::Proxy, Role::ProxyWithoutBinl, Role::Binl];
const BESIDE_A_SERVER: &[Role] = &[Role::Proxy, Role::ProxyWithoutBinl, Role::Binl];

const BASE: ReplyProfile = ReplyProfile {
    firmware: Firmware::Other,
    roles: &[],
    vendor_class: None,
    vendor_options: None,
    ipxe_options: None,
    placement: UrlPlacement::ServerAndFile,
    has_server_name: false,
    rationale: "",
};

const PROFILES: [ReplyProfile; 10] = [
    ReplyProfile {
        firmware: Firmware::BiosPxe,
        roles: EVERY_ROLE,
        vendor_class: PXE_CLIENT,
        vendor_options: BOOT_THIS_FILE,
        rationale: "PXE 2.1: an offer with class PXEClient and 43.6 = 8 names the file itself, so the ROM neither waits for \
                proxies nor asks on port 4011. The file and the server stand in the header, because ROMs read \
                options 66 and 67 less reliably.",
        ..BASE
    },
    ReplyProfile {
        firmware: Firmware::EfiPxe,
        roles: &[Role::Server],
        rationale: "Without option 60, EDK2 takes this for a plain DHCP offer that names a file (pcap). With option 60 and \
                without 43 it would take us for a BINL server, ask on port 4011 and end with PXE-E16 where nobody \
                listens.",
        ..BASE
    },
    ReplyProfile {
        firmware: Firmware::EfiPxe,
        roles: &[Role::Proxy],
        vendor_class: PXE_CLIENT,
        placement: UrlPlacement::AskBinl,
        rationale: "Without option 43, EDK2 takes this for a BINL offer: it keeps those of all proxies and asks them one \
                after the other on port 4011, so a proxy that died since costs ten seconds and no boot. Offers with \
                43.6 = 8 fail on older EDK2: it drops each of them where it means to keep the first (seen as \
                HP DL380 Gen9, Dell T430 and T130). It asks at siaddr, and at option 54 only where siaddr is zero; \
                so siaddr is ours and not the TFTP server's, or it would ask a machine that has no port 4011.",
        ..BASE
    },
    ReplyProfile {
        firmware: Firmware::EfiPxe,
        roles: &[Role::ProxyWithoutBinl],
        vendor_class: PXE_CLIENT,
        vendor_options: BOOT_THIS_FILE,
        rationale: "Where port 4011 is somebody else's, 43.6 = 8 is all that is left (pcap). EDK2 keeps the first such \
                offer only, and older EDK2 none.",
        ..BASE
    },
    ReplyProfile {
        firmware: Firmware::EfiPxe,
        roles: &[Role::Binl],
        vendor_class: PXE_CLIENT,
        rationale: "The answer on port 4011 has to name a file; siaddr is now the TFTP server (pcap).",
        ..BASE
    },
    ReplyProfile {
        firmware: Firmware::HttpClient,
        roles: EVERY_ROLE,
        vendor_class: Some(b"HTTPClient"),
        placement: UrlPlacement::UrlWithNul,
        rationale: "Without option 60 = HTTPClient the offer is ignored for ever (pcap). EDK2 writes a NUL behind the value \
                of option 67, over the next option's code; so the value ends with one already.",
        ..BASE
    },
    ReplyProfile {
        firmware: Firmware::Ipxe,
        roles: &[Role::Server],
        ipxe_options: NO_PXE_DHCP,
        placement: UrlPlacement::Url,
        rationale: "A URL in option 67 is enough, neither siaddr nor option 66 is needed (pcap). no-pxedhcp saves the two \
                seconds for which iPXE waits for a proxy. No option 60 and no 43: with them iPXE may take a PXE menu \
                for its next step and load itself again.",
        ..BASE
    },
    ReplyProfile {
        firmware: Firmware::Ipxe,
        roles: BESIDE_A_SERVER,
        vendor_class: PXE_CLIENT,
        placement: UrlPlacement::UrlAndServer,
        rationale: "iPXE takes a proxy's offer by its class. Where siaddr is zero it asks on port 4011 and then has \
                \"Nothing to boot\", although option 67 is a whole URL (pcap).",
        ..BASE
    },
    ReplyProfile {
        firmware: Firmware::Gpxe,
        roles: EVERY_ROLE,
        vendor_class: PXE_CLIENT,
        ipxe_options: NO_PXE_DHCP,
        placement: UrlPlacement::UrlAndServer,
        rationale: "iPXE's ancestor knows the same options. It is given siaddr and the class everywhere, as no gPXE was at \
                hand to find out when it can do without.",
        ..BASE
    },
    ReplyProfile {
        firmware: Firmware::RaspberryPi,
        roles: EVERY_ROLE,
        vendor_class: PXE_CLIENT,
        vendor_options: RASPBERRY_PI_MENU,
        has_server_name: true,
        rationale: "The boot ROM waits until somebody's PXE menu says \"Raspberry Pi Boot\", and asks no name of a file: it \
                fetches bootcode.bin or SERIAL/start4.elf from the TFTP server. Its documentation names option 66, \
                later models read siaddr as well.",
        ..BASE
    },
];
