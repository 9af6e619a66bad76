//! What is asked for: from the head of a request to a [`Request`]. Pure and total.

use crate::content::one_spelling;
pub use crate::http1::BadHead;
use crate::http1::{Method, Persistence, RequestHead, Version};
use crate::percent::percent_decode;

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// How.
    pub method: Method,
    /// The path: percent-decoded, in one spelling, without the query.
    pub path: String,
    /// Of what the client speaks.
    pub(crate) version: Version,
    /// What the client wants of the connection.
    pub persistence: Persistence,
    /// Whether a body follows the head, which nobody wants.
    pub has_body: bool,
    /// Who asks, cut to 128 bytes; empty if it does not say.
    pub user_agent: String,
    /// `Accept` names JSON.
    pub takes_json: bool,
    /// `Range`.
    pub range: Option<String>,
    /// `If-Match`.
    pub if_match: Option<String>,
    /// `If-None-Match`.
    pub if_none_match: Option<String>,
    /// `If-Modified-Since`.
    pub if_modified_since: Option<String>,
    /// `If-Unmodified-Since`.
    pub if_unmodified_since: Option<String>,
    /// `If-Range`.
    pub if_range: Option<String>,
}

/// Reads a head from the beginning of what came: the request and the head's length, or nothing while it is not whole.
pub fn parse(bytes: &[u8]) -> Result<Option<(Request, usize)>, BadHead> {
    let Some((head, length)) = RequestHead::decode(bytes)? else { return Ok(None) };
    let mut request = Request {
        method: head.method,
        path: path(&head.target).ok_or(BadHead::Target)?,
        version: head.version,
        persistence: head.persistence,
        has_body: head.has_body,
        user_agent: String::new(),
        takes_json: false,
        range: None,
        if_match: None,
        if_none_match: None,
        if_modified_since: None,
        if_unmodified_since: None,
        if_range: None,
    };
    head.fields.iter().for_each(|(name, value)| request.take(name, value));
    Ok(Some((request, length)))
}

impl Request {
    fn take(&mut self, name: &str, value: &[u8]) {
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        // What is no text is no value of a header that we know.
        let Ok(text) = std::str::from_utf8(value) else { return };
        let text = text.trim_matches([' ', '\t']);
        if is("user-agent") {
            self.user_agent = text.chars().take(128).collect();
        } else if is("accept") {
            self.takes_json |= text.contains("application/json");
        } else {
            let slot = match () {
                () if is("range") => &mut self.range,
                () if is("if-match") => &mut self.if_match,
                () if is("if-none-match") => &mut self.if_none_match,
                () if is("if-modified-since") => &mut self.if_modified_since,
                () if is("if-unmodified-since") => &mut self.if_unmodified_since,
                () if is("if-range") => &mut self.if_range,
                () => return,
            };
            // Lists may come in several lines (RFC 9110 §5.3); a date or a range set twice ends as neither.
            match slot {
                Some(before) => {
                    before.push_str(", ");
                    before.push_str(text);
                }
                None => *slot = Some(text.to_owned()),
            }
        }
    }

    /// Whether iPXE asks: it alone waits and asks again after 503 with `Retry-After` (src/net/tcp/httpcore.c).
    pub(crate) fn is_ipxe(&self) -> bool {
        self.user_agent.starts_with("iPXE/")
    }
}

/// The path of a request target in origin form (`/a%20b?query`) or absolute form (`http://host/a`), which a proxy gets
/// and a server has to take (RFC 9112 §3.2.2).
fn path(target: &str) -> Option<String> {
    let lower = target.get(..8).map(str::to_ascii_lowercase).unwrap_or_default();
    let path = if target.starts_with('/') {
        target
    } else if lower.starts_with("http://") || lower == "https://" {
        let authority = target.split_once("://")?.1;
        authority.find(['/', '?']).map_or("/", |at| &authority[at..])
    } else {
        return None;
    };
    let path = path.split_once(['?', '#']).map_or(path, |(path, _)| path);
    let decoded = percent_decode(path)?;
    // What leads nowhere is for the contents to say.
    Some(one_spelling(&decoded))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::http1::{FIELDS_MAX, HEAD_MAX, TARGET_MAX};

    fn get(target: &str) -> Result<String, BadHead> {
        let head = format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n");
        let (request, length) = parse(head.as_bytes())?.unwrap();
        assert_eq!(length, head.len());
        Ok(request.path)
    }

    #[test]
    fn targets() {
        for (target, path) in [
            ("/", ""),
            ("/a/b.efi", "a/b.efi"),
            ("//a///b", "a/b"),
            ("/a%20b%2Fc", "a b/c"),
            ("/%c3%BC", "ü"),
            ("/a?b=c&d", "a"),
            ("http://10.0.0.1:8080/a/b", "a/b"),
            ("HTTPS://x/a", "a"),
            ("http://x", ""),
            ("http://x?y", ""),
            ("/a\\..\\b/.", "a/../b"),
            ("/%2e%2e/a", "../a"),
        ] {
            assert_eq!(get(target).as_deref(), Ok(path), "{target}");
        }
        for target in ["*", "a", "ftp://x/a", "/%", "/%1", "/%zz", "/%00", "/%ff", "/%+1"] {
            assert_eq!(get(target), Err(BadHead::Target), "{target}");
        }
        assert_eq!(get(&format!("/{}", "x".repeat(TARGET_MAX))), Err(BadHead::TargetTooLong));
    }

    #[test]
    fn what_ipxe_and_uefi_send() {
        let head = b"GET /x.iso HTTP/1.1\r\nConnection: keep-alive\r\nUser-Agent: iPXE/1.0.0+git\r\nHost: 10.0.0.1\r\nRange: bytes=32768-34815\r\n\r\nGET";
        let (request, length) = parse(head).unwrap().unwrap();
        assert!(request.is_ipxe() && !request.has_body);
        assert_eq!((request.persistence, request.version), (Persistence::Keep, Version::Http11));
        assert_eq!((request.range.as_deref(), length), (Some("bytes=32768-34815"), head.len() - 3));
        let head =
            b"HEAD /x.efi HTTP/1.1\r\nHost: 10.0.0.1\r\nAccept: */*\r\nUser-Agent: UefiHttpBoot/1.0\r\n\r\n";
        let (request, _) = parse(head).unwrap().unwrap();
        assert!(!request.is_ipxe() && request.method == Method::Head);
    }

    #[test]
    fn versions_and_keeping() {
        let kept =
            |head: &str| parse(head.as_bytes()).map(|parsed| parsed.map(|(request, _)| request.persistence));
        assert_eq!(kept("GET / HTTP/1.1\r\nHost: a\r\n\r\n"), Ok(Some(Persistence::Keep)));
        assert_eq!(
            kept("GET / HTTP/1.1\r\nHost: a\r\nConnection: x, Close\r\n\r\n"),
            Ok(Some(Persistence::Close))
        );
        assert_eq!(kept("GET / HTTP/1.0\r\n\r\n"), Ok(Some(Persistence::Close)));
        assert_eq!(kept("GET / HTTP/1.0\r\nconnection: Keep-Alive\r\n\r\n"), Ok(Some(Persistence::Keep)));
        assert_eq!(kept("GET / HTTP/2.0\r\n\r\n"), Err(BadHead::Version));
        assert_eq!(kept("GET / HTTP/1.1\r\n"), Ok(None));
    }

    #[test]
    fn hostile_heads() {
        let bad = |head: &[u8]| parse(head).err();
        assert_eq!(bad(b"GET / HTTP/1.1\r\nA B: c\r\n\r\n"), Some(BadHead::Malformed));
        assert_eq!(bad(b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n"), Some(BadHead::Length));
        assert_eq!(bad(b"\x16\x03\x01\x02\x00\x01\x00"), Some(BadHead::Malformed));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(FIELDS_MAX + 1));
        assert_eq!(bad(many.as_bytes()), Some(BadHead::TooLarge));
        let large = format!("GET / HTTP/1.1\r\nA: {}", "x".repeat(HEAD_MAX));
        assert_eq!(bad(large.as_bytes()), Some(BadHead::TooLarge));
        assert_eq!(bad(format!("GET /{}", "x".repeat(HEAD_MAX)).as_bytes()), Some(BadHead::TargetTooLong));
        let body =
            parse(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap().unwrap().0;
        assert!(body.has_body && body.method == Method::Other);
    }

    proptest! {
        #[test]
        fn total(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn decoded_paths_have_no_nul_and_no_empty_part(target in "/[a./%0-9A-F?\\\\]{0,30}") {
            if let Ok(path) = get(&target) {
                prop_assert!(!path.contains('\0') && !path.contains("//") && !path.starts_with('/'));
            }
        }
    }
}
