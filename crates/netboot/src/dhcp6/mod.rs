//! Boot options over DHCPv6 (RFC 5970 on a part of RFC 8415): what a device boots, and never an address.
//!
//! Addresses, name servers and router advertisements are left to others: SLAAC, or a DHCPv6 server beside us. We answer
//! programs that boot, and only with the options 59 (boot file URL), 60 (its parameters are empty here, so it is never
//! sent) and 16 (vendor class), next to the identifiers.
//!
//! | who | asks | is answered |
//! |---|---|---|
//! | anything that boots | Information-Request | Reply |
//! | UEFI PXE, UEFI HTTP Boot | Solicit | Advertise without an address, a proxy's offer to EDK2 |
//! | UEFI PXE | Request to port 4011, for the file itself | Reply |
//! | iPXE | Solicit | nothing: it takes no offer without an address. Its router should say "other configuration" (RFC 4861, flag O) and not "managed" (M); then it asks for information |
//!
//! Not done: addresses and prefixes (IA_NA, IA_TA, IA_PD), Confirm, Renew, Rebind, Release, Decline, Reconfigure, rapid
//! commit, authentication, and name servers. A Request to port 547 that names our identifier is answered that there are
//! no addresses here.

pub mod driver;
pub mod responder;
pub mod wire;
