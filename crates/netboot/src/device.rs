//! Who asks: a target device, as far as the protocol that it speaks tells.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use goldwire_stdx::Uuid;

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// With hyphens, as it stands in paths: iPXE's `${mac:hexhyp}`.
    pub(crate) fn hyphenated(self) -> String {
        self.to_string().replace(':', "-")
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        f.pad(&format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}"))
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Mac {
    type Err = &'static str;

    /// Takes `52:54:00:12:34:56`, `52-54-00-12-34-56`, `5254.0012.3456` and `525400123456`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str = "a MAC address is twelve hexadecimal digits, such as 52:54:00:12:34:56";
        let digits: String = text.chars().filter(|c| !matches!(c, ':' | '-' | '.')).collect();
        let is_spelled_well = match text.len() {
            12 => text == digits,
            14 => text.bytes().enumerate().all(|(at, c)| (c == b'.') == (at % 5 == 4)),
            17 => {
                let separator = text.as_bytes()[2];
                matches!(separator, b':' | b'-')
                    && text.bytes().enumerate().all(|(at, c)| (c == separator) == (at % 3 == 2))
            }
            _ => false,
        };
        goldwire_stdx::from_hex(&digits).filter(|_| is_spelled_well).map(Mac).ok_or(WRONG)
    }
}

/// The SMBIOS UUID in the 16 bytes of DHCP option 97 behind its type byte. Firmware sends SMBIOS's own byte order there:
/// the first three fields little-endian (seen of SeaBIOS, iPXE and EDK2). All-zero and all-one mean that the machine has
/// none (SMBIOS 3.6, 7.2.1).
pub(crate) fn uuid_from_smbios(bytes: [u8; 16]) -> Option<Uuid> {
    Some(Uuid(bytes).swapped()).filter(|uuid| !uuid.is_nil_or_max())
}

/// A client system architecture: DHCP option 93, DHCPv6 option 61 (IANA "Processor Architecture Types").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Architecture(pub u16);

impl Architecture {
    /// x86 BIOS. Also what a Raspberry Pi up to model 5 says.
    pub const BIOS: Self = Self(0);
    /// x64 UEFI.
    pub const EFI_X64: Self = Self(7);
    /// ARM 64-bit UEFI.
    pub const EFI_ARM64: Self = Self(11);

    /// Numbers and the names by which rules speak of them.
    const NAMES: [(u16, &'static str); 27] = [
        (0, "bios"),
        (2, "efi-ia64"),
        (6, "efi-ia32"),
        (7, "efi-x64"),
        // RFC 4578 listed 7 and 9 the other way round, and some x64 firmware sends 9 (RFC 5970 erratum).
        (9, "efi-x64"),
        (10, "efi-arm32"),
        (11, "efi-arm64"),
        (15, "http-ia32"),
        (16, "http-x64"),
        (17, "http-x64"),
        (18, "http-arm32"),
        (19, "http-arm64"),
        (20, "http-bios"),
        (25, "efi-riscv32"),
        (26, "http-riscv32"),
        (27, "efi-riscv64"),
        (28, "http-riscv64"),
        (29, "efi-riscv128"),
        (30, "http-riscv128"),
        (33, "efi-mips32"),
        (34, "efi-mips64"),
        (35, "efi-sunway32"),
        (36, "efi-sunway64"),
        (37, "efi-loongarch32"),
        (38, "http-loongarch32"),
        (39, "efi-loongarch64"),
        (40, "http-loongarch64"),
    ];
    const RASPBERRY: u16 = 41;

    /// The name by which rules speak of it; architectures that boot the same programs share one.
    pub fn name(self) -> Option<&'static str> {
        if self.0 == Self::RASPBERRY {
            return Some("rpi");
        }
        Self::NAMES.iter().find(|(number, _)| *number == self.0).map(|(_, name)| *name)
    }

    /// Every name.
    pub fn names() -> impl Iterator<Item = &'static str> {
        let mut last = "";
        Self::NAMES.iter().map(|(_, name)| *name).chain(["rpi"]).filter(move |name| {
            let is_new = *name != last;
            last = name;
            is_new
        })
    }

    /// The architecture of this name; where several share it, the usual one.
    pub fn from_name(name: &str) -> Option<Self> {
        if name == "rpi" {
            return Some(Self(Self::RASPBERRY));
        }
        Self::NAMES.iter().find(|(_, known)| *known == name).map(|(number, _)| Self(*number))
    }

    /// Its name without what it boots by: `x64` for both `efi-x64` and `http-x64`.
    pub fn processor(self) -> Option<&'static str> {
        let name = self.name()?;
        Some(name.split_once('-').map_or(name, |(_, processor)| processor))
    }
}

/// Which program speaks: it decides how an answer has to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Firmware {
    /// PXE of a BIOS or a network card: TFTP only.
    BiosPxe,
    /// PXE of UEFI: TFTP only.
    EfiPxe,
    /// UEFI HTTP Boot: a URL.
    HttpClient,
    /// iPXE, in whatever firmware it sits: a URL, a script.
    Ipxe,
    /// gPXE, iPXE's ancestor: a URL, a script.
    Gpxe,
    /// A Raspberry Pi's boot ROM: TFTP, and only from who calls itself "Raspberry Pi Boot".
    RaspberryPi,
    /// None of these: an operating system, which wants an address and no boot file.
    Other,
}

impl Firmware {
    /// The name in configuration, logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::BiosPxe => "bios-pxe",
            Self::EfiPxe => "efi-pxe",
            Self::HttpClient => "http-client",
            Self::Ipxe => "ipxe",
            Self::Gpxe => "gpxe",
            Self::RaspberryPi => "raspberry-pi",
            Self::Other => "other",
        }
    }

    /// Whether it takes a URL where others want a TFTP server and a file.
    pub fn takes_url(self) -> bool {
        matches!(self, Self::HttpClient | Self::Ipxe | Self::Gpxe)
    }
}

/// A target device as it is seen in one request. What a protocol does not tell is absent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Hardware address of its network card.
    pub mac: Option<Mac>,
    /// SMBIOS UUID.
    pub uuid: Option<Uuid>,
    /// What it says that it can run.
    pub arch: Option<Architecture>,
    /// Which program speaks.
    pub firmware: Firmware,
    /// DHCP option 60.
    pub vendor_class: Vec<u8>,
    /// DHCP option 77, as it came: iPXE sends bare text, others RFC 3004's counted strings.
    pub user_class: Vec<u8>,
    /// The relay through which it was heard (`giaddr`).
    pub relay: Option<IpAddr>,
    /// An address that tells its subnet: its own, the relay's, the link selection, or the receiving interface's.
    pub subnet: Option<IpAddr>,
    /// Option 82, sub-option 1.
    pub circuit_id: Vec<u8>,
    /// Option 82, sub-option 2.
    pub remote_id: Vec<u8>,
}

impl Device {
    /// A device of which nothing else is known.
    pub fn new(mac: Option<Mac>, firmware: Firmware) -> Self {
        Self {
            mac,
            uuid: None,
            arch: None,
            firmware,
            vendor_class: Vec::new(),
            user_class: Vec::new(),
            relay: None,
            subnet: None,
            circuit_id: Vec::new(),
            remote_id: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_addresses_in_every_spelling() {
        let mac = Mac([0x52, 0x54, 0, 0x12, 0xab, 0x56]);
        for text in ["52:54:00:12:AB:56", "52-54-00-12-ab-56", "5254.0012.ab56", "52540012ab56"] {
            assert_eq!(text.parse(), Ok(mac), "{text}");
        }
        for text in
            ["", "52:54:00:12:ab", "52:54-00:12:ab:56", "5254001.2ab56x", "g2540012ab56", "5:254:00:12:ab:56"]
        {
            assert!(text.parse::<Mac>().is_err(), "{text}");
        }
        assert_eq!(
            (mac.to_string(), mac.hyphenated()),
            ("52:54:00:12:ab:56".into(), "52-54-00-12-ab-56".into())
        );
    }

    #[test]
    fn the_uuid_in_option_97_is_in_smbios_order() {
        // As a QEMU machine with uuid=01234567-89ab-cdef-0123-456789000001 sends it.
        let sent = goldwire_stdx::from_hex("67452301ab89efcd0123456789000001").unwrap();
        let uuid = uuid_from_smbios(sent).unwrap();
        assert_eq!(uuid.to_string(), "01234567-89ab-cdef-0123-456789000001");
        assert_eq!(uuid.to_string().parse(), Ok(uuid));
        assert_eq!(uuid_from_smbios([0; 16]), None);
    }

    #[test]
    fn architectures_have_names() {
        for name in Architecture::names() {
            assert_eq!(Architecture::from_name(name).unwrap().name(), Some(name));
        }
        assert_eq!(Architecture(9).name(), Architecture::EFI_X64.name());
        assert_eq!(Architecture(16).processor(), Architecture::EFI_X64.processor());
        assert_eq!(Architecture(9999).name(), None);
    }
}
