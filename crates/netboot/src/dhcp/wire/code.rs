//! Option codes, by the names of RFC 2132 and later.

#![expect(
    missing_docs,
    reason = "the names are the documentation; the RFC that defines each stands behind it"
)]

pub const PAD: u8 = 0;
pub const SUBNET_MASK: u8 = 1;
pub const ROUTER: u8 = 3;
pub const DNS: u8 = 6;
pub const HOST_NAME: u8 = 12;
pub const DOMAIN_NAME: u8 = 15;
pub const ROOT_PATH: u8 = 17;
pub const MTU: u8 = 26;
pub const BROADCAST: u8 = 28;
pub const NTP: u8 = 42;
pub const VENDOR_SPECIFIC: u8 = 43;
pub const REQUESTED_ADDRESS: u8 = 50;
pub const LEASE_TIME: u8 = 51;
pub const OVERLOAD: u8 = 52;
pub const MESSAGE_TYPE: u8 = 53;
pub const SERVER_ID: u8 = 54;
pub const PARAMETER_LIST: u8 = 55;
pub const MESSAGE: u8 = 56;
pub const MESSAGE_SIZE_MAX: u8 = 57;
pub const RENEWAL_TIME: u8 = 58;
pub const REBINDING_TIME: u8 = 59;
pub const VENDOR_CLASS: u8 = 60;
pub const CLIENT_ID: u8 = 61;
pub const TFTP_SERVER: u8 = 66;
pub const BOOT_FILE: u8 = 67;
pub const USER_CLASS: u8 = 77; // RFC 3004
pub const RELAY_AGENT: u8 = 82; // RFC 3046
pub const LEASE_QUERY_LAST: u8 = 91; // RFC 4388 client-last-transaction-time
pub const ASSOCIATED_IP: u8 = 92; // RFC 4388
pub const CLIENT_ARCH: u8 = 93; // RFC 4578
pub const CLIENT_NDI: u8 = 94; // RFC 4578
pub const CLIENT_UUID: u8 = 97; // RFC 4578
pub const SUBNET_SELECTION: u8 = 118; // RFC 3011
pub const DOMAIN_SEARCH: u8 = 119; // RFC 3397
pub const CLASSLESS_ROUTES: u8 = 121; // RFC 3442
pub const IPXE: u8 = 175; // Etherboot's encapsulated options, ipxe src/include/ipxe/dhcp.h
pub const IPXE_INITIATOR: u8 = 203; // iSCSI initiator name
pub const END: u8 = 255;
