//! What can be wrong, and what the person before the machine sees of it.
//!
//! BIOS codes are those of Intel's PXE 2.1 base code, which other ROMs share. UEFI's are EDK2's (UefiPxeBcDxe), its HTTP
//! Boot prints texts without numbers (HttpBootDxe). iPXE prints `http://ipxe.org/` and an error number; its first two
//! digits are the kind of error, the rest depends on the build.

use super::Client;

/// Something that keeps a machine from booting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Problem {
    /// Nobody offers anything.
    NoOffer,
    /// Only proxies answer: no address.
    NoAddress,
    /// A server refuses the request.
    Refused,
    /// An offer is taken and nobody confirms it.
    NoAck,
    /// Nobody names a boot file, or not in a form that this firmware takes.
    NoBootFile,
    /// The firmware asks port 4011 and gets no answer that names a boot file.
    ProxySilent,
    /// A URL where the firmware can only do TFTP.
    UrlForTftp,
    /// A file name where the firmware needs a URL.
    FileForHttp,
    /// There is no server to fetch from.
    NoServer,
    /// The TFTP server does not answer, or not from where it was asked.
    TftpTimeout,
    /// The TFTP server has no such file.
    TftpNotFound,
    /// The TFTP server refuses otherwise.
    TftpError,
    /// The TFTP server answers with options that were not asked for.
    TftpOptions,
    /// Nothing answers at the URL.
    HttpUnreachable,
    /// The HTTP server has no such file.
    HttpNotFound,
    /// The HTTP server answers otherwise than firmware can use.
    HttpStatus,
    /// A name in the URL that cannot be looked up.
    NoDns,
    /// What came is no program and no script for this firmware.
    NotBootable,
    /// iPXE is given itself again.
    Loop,
}

impl Problem {
    /// The code that is seen, or where the firmware shows none, a short name.
    pub fn code(self, client: Client) -> &'static str {
        use Client::{BiosPxe, EfiPxe, HttpBoot, Ipxe};
        match (self, client) {
            (Self::NoOffer, BiosPxe) => "PXE-E51",
            (Self::NoAddress, BiosPxe) => "PXE-E52",
            (Self::NoBootFile, BiosPxe) => "PXE-E53",
            (Self::ProxySilent, BiosPxe) => "PXE-E55",
            (Self::Refused | Self::NoAck, BiosPxe) => "PXE-E51",
            (Self::NoServer | Self::TftpTimeout, BiosPxe) => "PXE-E32",
            (Self::TftpNotFound | Self::UrlForTftp, BiosPxe) => "PXE-E3B",
            (Self::TftpError | Self::TftpOptions, BiosPxe) => "PXE-E36",
            (Self::NoOffer | Self::NoAddress | Self::NoBootFile | Self::ProxySilent, EfiPxe) => "PXE-E16",
            (Self::Refused | Self::NoAck | Self::NoServer | Self::TftpTimeout, EfiPxe) => "PXE-E18",
            (Self::TftpNotFound | Self::TftpError | Self::UrlForTftp, EfiPxe) => "PXE-E23",
            (Self::TftpOptions, EfiPxe) => "PXE-E99",
            (Self::NotBootable, BiosPxe | EfiPxe) => "not-bootable",
            (Self::NoOffer | Self::NoAddress | Self::Refused | Self::NoAck, HttpBoot) => "http-boot-timeout",
            (Self::NoBootFile | Self::FileForHttp, HttpBoot) => "http-boot-timeout",
            (Self::NotBootable, HttpBoot) => "http-boot-unsupported",
            (_, HttpBoot) => "http-boot-nbp-size",
            (Self::NoOffer | Self::NoAddress | Self::Refused | Self::NoAck, Ipxe) => "ipxe-040ee119",
            (Self::NoBootFile | Self::ProxySilent, Ipxe) => "ipxe-2d03e13b",
            (Self::TftpNotFound | Self::HttpNotFound, Ipxe) => "ipxe-2d",
            (Self::NoServer | Self::TftpTimeout | Self::HttpUnreachable, Ipxe) => "ipxe-4c",
            (Self::NoDns, Ipxe) => "ipxe-3e",
            (Self::NotBootable, Ipxe) => "ipxe-2e008081",
            (Self::Loop, Ipxe) => "ipxe-loop",
            (_, Ipxe) => "ipxe-error",
            (_, BiosPxe | EfiPxe) => "pxe-error",
        }
    }

    /// What is on the screen.
    pub fn seen(self, client: Client) -> &'static str {
        match self.code(client) {
            "PXE-E51" => "PXE-E51: No DHCP or proxyDHCP offers were received",
            "PXE-E52" => "PXE-E52: proxyDHCP offers were received. No DHCP offers were received",
            "PXE-E53" => "PXE-E53: No boot filename received",
            "PXE-E55" => "PXE-E55: proxyDHCP service did not reply to request on port 4011",
            "PXE-E32" => "PXE-E32: TFTP open timeout",
            "PXE-E3B" => "PXE-E3B: TFTP Error - File Not found (newer ROMs: PXE-T01)",
            "PXE-E36" => "PXE-E36: Error received from TFTP server",
            "PXE-E16" => "PXE-E16: No valid offer received",
            "PXE-E18" => "PXE-E18: Server response timeout",
            "PXE-E23" => "PXE-E23: Client received TFTP error from server",
            "PXE-E99" => "PXE-E99: Unexpected network error",
            "http-boot-timeout" => "Error: Server response timeout",
            "http-boot-nbp-size" => "Error: Could not retrieve NBP file size from HTTP server",
            "http-boot-unsupported" => "the file is loaded and not started",
            "ipxe-040ee119" => "No configuration methods succeeded (http://ipxe.org/040ee119)",
            "ipxe-2d03e13b" => "Nothing to boot: No such file or directory (http://ipxe.org/2d03e13b)",
            "ipxe-2d" => "No such file or directory (http://ipxe.org/2d…)",
            "ipxe-4c" => "Connection timed out (http://ipxe.org/4c…)",
            "ipxe-3e" => "a DNS error (http://ipxe.org/3e…)",
            "ipxe-2e008081" => "Exec format error (http://ipxe.org/2e008081)",
            "ipxe-loop" => "iPXE starts again and again",
            "not-bootable" => "the file is loaded; the machine hangs or goes on to the next boot entry",
            _ => "an error, and the next boot entry",
        }
    }

    /// What to do about it.
    pub fn hint(self) -> &'static str {
        match self {
            Self::NoOffer => {
                "is a DHCP server running on this segment, or a relay to one? Is the switch port forwarding yet \
                 (spanning tree, LACP)? Does a rule of the boot policy ignore this machine?"
            }
            Self::NoAddress => "a proxyDHCP server gives no addresses: start a DHCP server beside it",
            Self::Refused => "two servers disagree about this network: make only one of them authoritative",
            Self::NoAck => "the server offers and does not confirm: look at its log and its free addresses",
            Self::NoBootFile => {
                "name a boot file for this kind of client (option 67), with the options that it needs; goldwire names \
                 none while none of its members lives"
            }
            Self::ProxySilent => {
                "option 60 without boot options in 43 sends the machine to port 4011: answer there, or leave option 60 \
                 out, or add 43 = 06 01 08 ff with server and file"
            }
            Self::UrlForTftp => {
                "this firmware can only do TFTP: give it a program by TFTP (iPXE), and the URL to that program; or \
                 switch the machine to HTTP Boot"
            }
            Self::FileForHttp => "UEFI HTTP Boot wants a whole URL (http://…) in option 67",
            Self::NoServer => "name the server: siaddr (next-server), or option 66 with an address",
            Self::TftpTimeout => {
                "is the TFTP server running there, on UDP 69, and no firewall between? Behind address translation or a \
                 balancer it has to answer from the address and port that was asked (tftp.single-port = true)"
            }
            Self::TftpNotFound => {
                "check the name: upper and lower case count, and the path is below the TFTP root"
            }
            Self::TftpError => "look at the TFTP server's log and at the file's permissions",
            Self::TftpOptions => {
                "the TFTP server breaks RFC 2347: it may only acknowledge options that were asked for"
            }
            Self::HttpUnreachable => "is the server running there, on that port, and no firewall between?",
            Self::HttpNotFound => "check the path: upper and lower case count",
            Self::HttpStatus => {
                "firmware takes a plain 200 with a length, on HEAD and GET, and 206 for a range"
            }
            Self::NoDns => {
                "firmware often has no DNS: use an address in the URL, or give DNS servers in option 6"
            }
            Self::NotBootable => {
                "give this client a program for its processor, or iPXE a script that begins #!ipxe"
            }
            Self::Loop => "tell iPXE from firmware (option 77 \"iPXE\", or option 175) and give it a script",
        }
    }
}
