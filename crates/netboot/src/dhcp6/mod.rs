//! Boot options over DHCPv6 (RFC 5970 on a part of RFC 8415): what a device boots, and never an address.
//!
//! Addresses, name servers and router advertisements are left to others: SLAAC, or a DHCPv6 server beside us. We answer
//! programs that boot, and only with the options 59 (boot file URL) and 16 (vendor class) beside the identifiers; 61
//! (architecture) is read. Option 60, parameters for the boot file, is never sent: no boot program of ours takes any.
//!
//! | who | asks | is answered |
//! |---|---|---|
//! | anything that boots | Information-Request | Reply |
//! | UEFI PXE, UEFI HTTP Boot | Solicit | Advertise without an address, a proxy's offer to EDK2 |
//! | UEFI PXE | Request to port 4011, for the file itself | Reply |
//! | iPXE | Solicit | nothing: it takes no offer without an address. Its router should say "other configuration" (RFC 4861, flag O) and not "managed" (M); then it asks for information |
//!
//! Seen with OVMF 2022.11 beside dnsmasq, see `testdata/README.md`: PXE over IPv6 by an offer
//! and port 4011, and HTTP Boot over IPv6 by an offer.
//!
//! Not done: addresses and prefixes (IA_NA, IA_TA, IA_PD), Confirm, Renew, Rebind, Release, Decline, Reconfigure, rapid
//! commit, authentication, and name servers. A Request to port 547 that names our identifier is answered that there are
//! no addresses here.

mod driver;
pub(crate) mod responder;
pub(crate) mod wire;

pub use driver::{Bound, Running, Settings};
