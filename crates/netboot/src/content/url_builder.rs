//! Paths that devices are given. All of a path's meaning is in the path: firmware and management controllers stumble
//! over `?` and `&`.
//!
//! ```text
//! NAME                        a file of the boot tree
//! c/DIGEST/NAME               the same, only with this content (first half of its BLAKE3 in hexadecimal)
//! s/MAC/ARCH/UUID/boot.ipxe   the script of a device; `-` stands for what is not known
//! …/autoexec.ipxe/s/…         the same, as our `autoexec.ipxe` names it
//! m/goldwire.iso              a boot medium; `m/goldwire.img` is another
//! t/TOKEN/…                   any of these, with a signed short-lived token
//! ```
//!
//! ARCH is a name of [`Architecture`], or what iPXE can say itself: `${platform}-${buildarch}`. The names `c`, `m`,
//! `s` and `t` at the top are taken; files below folders of these names in the boot tree are not served.
//!
//! [`Architecture`]: crate::device::Architecture

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::token::{TEXT_LENGTH, Token, TokenKey};
use crate::device::{Device, Mac};
use crate::policy::{Boot, What};

/// The digest of a content: the first 16 bytes of its BLAKE3.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest(pub [u8; 16]);

impl Digest {
    /// The digest of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self::from(blake3::hash(bytes))
    }
}

impl From<blake3::Hash> for Digest {
    fn from(hash: blake3::Hash) -> Self {
        let mut half = [0; 16];
        half.copy_from_slice(&hash.as_bytes()[..16]);
        Self(half)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&goldwire_stdx::to_hex(&self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Where a token's tag begins, in its digits: behind the end and the hardware address.
const TAG_START: usize = 20;

/// How long a token is good for at least, unless said otherwise. A slow boot loads its last file minutes after DHCP.
const LIFETIME: Duration = Duration::from_secs(15 * 60);

/// Makes the paths, and tells a good token from another.
///
/// Without a key (the default) paths carry no tokens and no token is good.
#[derive(Clone)]
pub struct UrlBuilder {
    key: Option<Arc<TokenKey>>,
    lifetime: Duration,
    clock: Arc<dyn Fn() -> SystemTime + Send + Sync>,
}

impl Default for UrlBuilder {
    fn default() -> Self {
        Self { key: None, lifetime: LIFETIME, clock: Arc::new(SystemTime::now) }
    }
}

impl fmt::Debug for UrlBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UrlBuilder")
            .field("key", &self.key)
            .field("lifetime", &self.lifetime)
            .finish_non_exhaustive()
    }
}

impl UrlBuilder {
    /// Links whose tokens every member with the same key takes. A token is good for at least `lifetime` and at most
    /// twice that: ends are rounded to multiples of it, so that members that render the same script in the same
    /// period render the same bytes.
    pub fn new(key: TokenKey, lifetime: Duration) -> Self {
        Self { key: Some(Arc::new(key)), lifetime: lifetime.max(Duration::from_secs(1)), ..Self::default() }
    }

    /// The same with another clock, for tests.
    #[cfg(test)]
    pub(crate) fn with_clock(mut self, clock: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// The path, without a leading slash, of what a device boots; none for what lies elsewhere.
    pub fn path_of(&self, boot: &Boot, device: &Device) -> Option<String> {
        match &boot.what {
            What::File(path) => Some(self.path_to(path, boot, device)),
            What::Script(_) => Some(self.path_to(&script_path(device), boot, device)),
            What::Literal(_) => None,
        }
    }

    /// The path by which a device that boots this fetches `path`: the same, behind a token where the boot says so.
    pub(crate) fn path_to(&self, path: &str, boot: &Boot, device: &Device) -> String {
        let path = path.trim_start_matches('/');
        match &self.key {
            Some(key) if boot.has_token => {
                let lifetime = self.lifetime.as_secs();
                let end = (seconds_of((self.clock)()) / lifetime).saturating_add(2).saturating_mul(lifetime);
                let token = Token::sign(key, u32::try_from(end).unwrap_or(u32::MAX), device.mac, path);
                format!("t/{token}/{path}")
            }
            _ => path.to_owned(),
        }
    }

    /// Whether a token is good now for the path below it, asked for by who is known to be `mac`. A token that was made
    /// for a hardware address is refused to who is known to have another; where nobody knows the requester's (behind a
    /// router that is no relay of ours), the signature alone decides.
    pub(super) fn is_good(&self, token: &Token, path: &str, mac: Option<Mac>) -> bool {
        let is_asker = match (token.mac(), mac) {
            (Some(bound), Some(known)) => bound == known,
            _ => true,
        };
        let is_signed = self.key.as_ref().is_some_and(|key| token.is_signed_by(key, path));
        is_signed && is_asker && seconds_of((self.clock)()) < u64::from(token.end())
    }
}

/// A text for a log or a terminal in which no token is good any more: of `t/TOKEN/…` the end and the device stay, the
/// tag goes. Whoever reads a log shall not be able to fetch what a device was told.
pub fn without_tokens(text: &str) -> Cow<'_, str> {
    let mut shown = Cow::Borrowed(text);
    let mut from = 0;
    while let Some(found) = shown[from..].find('/') {
        let start = from + found + 1;
        let end = start + TEXT_LENGTH;
        from = start;
        let is_hex = |token: &str| token.bytes().all(|byte| byte.is_ascii_hexdigit());
        if shown[..start - 1].ends_with(['t', 'T']) && shown.get(start..end).is_some_and(is_hex) {
            shown.to_mut().replace_range(start + TAG_START..end, "…");
        }
    }
    shown
}

/// Where a device's script is.
pub(super) fn script_path(device: &Device) -> String {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    format!(
        "s/{}/{}/{}/boot.ipxe",
        or_dash(device.mac.map(|mac| mac.hyphenated())),
        or_dash(device.arch.and_then(|arch| arch.name()).map(str::to_owned)),
        or_dash(device.uuid.map(|uuid| uuid.to_string())),
    )
}

/// Seconds since 1970; a clock before that counts as 1970.
fn seconds_of(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::device::Firmware;

    const MAC: Mac = Mac([0x52, 0x54, 0, 1, 2, 3]);

    fn boot(has_token: bool) -> Boot {
        Boot {
            profile: "p".into(),
            what: What::File("pvs/ARDBP32.BIN".into()),
            members: Vec::new(),
            is_secure: false,
            has_token,
            root_path: None,
            host_name: None,
        }
    }

    fn parts(path: &str) -> (Token, String) {
        let (token, below) = path.strip_prefix("t/").unwrap().split_once('/').unwrap();
        (token.parse().unwrap(), below.to_owned())
    }

    #[test]
    fn a_token_is_good_for_its_path_its_device_and_its_time() {
        let now = Arc::new(AtomicU64::new(1_700_000_123));
        let clock = Arc::clone(&now);
        let urls = UrlBuilder::new(TokenKey::from_secret(b"shared"), Duration::from_secs(600))
            .with_clock(move || UNIX_EPOCH + Duration::from_secs(clock.load(Ordering::Relaxed)));
        let path = urls.path_of(&boot(true), &Device::new(Some(MAC), Firmware::Ipxe)).unwrap();
        let (token, below) = parts(&path);
        assert_eq!(below, "pvs/ARDBP32.BIN");
        assert!(urls.is_good(&token, &below, Some(MAC)) && urls.is_good(&token, &below, None));
        assert!(!urls.is_good(&token, &below, Some(Mac([0; 6]))), "another device's");
        assert!(!urls.is_good(&token, "pvs/ARDBP33.BIN", Some(MAC)), "another path's");
        assert!(!UrlBuilder::new(TokenKey::from_secret(b"other"), LIFETIME).is_good(
            &token,
            &below,
            Some(MAC)
        ));
        assert!(!UrlBuilder::default().is_good(&token, &below, Some(MAC)), "no key, no token");

        now.fetch_add(600, Ordering::Relaxed);
        assert!(urls.is_good(&token, &below, Some(MAC)), "good for its lifetime");
        now.fetch_add(600, Ordering::Relaxed);
        assert!(!urls.is_good(&token, &below, Some(MAC)), "and not for twice as long");
    }

    #[test]
    fn members_make_the_same_token_in_the_same_period() {
        let at = |seconds| {
            UrlBuilder::new(TokenKey::from_secret(b"k"), Duration::from_secs(600))
                .with_clock(move || UNIX_EPOCH + Duration::from_secs(seconds))
                .path_of(&boot(true), &Device::new(Some(MAC), Firmware::Ipxe))
        };
        assert_eq!(at(600_001), at(600_599));
        assert_ne!(at(600_001), at(600_600));
    }

    #[test]
    fn without_a_key_or_a_wish_for_tokens_paths_are_plain() {
        let device = Device::new(Some(MAC), Firmware::Ipxe);
        assert_eq!(UrlBuilder::default().path_of(&boot(true), &device).unwrap(), "pvs/ARDBP32.BIN");
        let urls = UrlBuilder::new(TokenKey::from_secret(b"k"), LIFETIME);
        assert_eq!(urls.path_of(&boot(false), &device).unwrap(), "pvs/ARDBP32.BIN");
    }

    // Management controllers reject URLs with & or ? (the complaints' row 23).
    #[test]
    fn row_23_links_need_no_question_mark_and_no_ampersand() {
        let urls = UrlBuilder::new(TokenKey::from_secret(b"k"), LIFETIME);
        let mut device = Device::new(Some(MAC), Firmware::Ipxe);
        device.uuid = "01234567-89ab-cdef-0123-456789000001".parse().ok();
        device.arch = Some(crate::Architecture::EFI_X64);
        let path = urls.path_to(&script_path(&device), &boot(true), &device);
        assert!(path.bytes().all(|c| c.is_ascii_alphanumeric() || b"-./".contains(&c)), "{path}");
        assert!(path.len() < 200, "one vendor's firmware takes 255 characters of URL: {path}");
    }

    #[test]
    fn a_log_gives_nobody_a_token() {
        let urls = UrlBuilder::new(TokenKey::from_secret(b"k"), LIFETIME);
        let path = urls.path_of(&boot(true), &Device::new(Some(MAC), Firmware::Ipxe)).unwrap();
        let (token, _) = parts(&path);
        let tag = &token.to_string()[TAG_START..];
        for text in [
            path.clone(),
            format!("http://192.0.2.1/{path} by default"),
            path.to_uppercase(),
            format!("/{path} t/{path} root/t/{path}"),
        ] {
            let shown = without_tokens(&text);
            assert!(!shown.to_lowercase().contains(&tag[..8]), "{shown}");
            assert!(shown.to_lowercase().contains("525400010203…/pvs/ardbp32.bin"), "{shown}");
        }
        for text in
            ["", "t/", "root/initrd.img", "t/00/x", "t/größe/größegrößegrößegrößegrößegrößegrößegrößegröße/"]
        {
            assert_eq!(without_tokens(text), text);
        }
    }

    #[test]
    fn keys_do_not_print() {
        let urls = UrlBuilder::new(TokenKey::from_secret(b"k"), LIFETIME);
        assert!(format!("{urls:?}").contains("redacted"));
    }
}
