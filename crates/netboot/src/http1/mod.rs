//! HTTP/1 messages (RFC 9112), read in one way by everybody: by the boot server, the balancer that stands before it, the
//! health checks and the doctor. Two that read one head differently can be made to take one request for two.
//!
//! Total and bounded; httparse splits the lines, this decides what a head means.

mod client;

pub(crate) use client::{Exchange, exchange};

/// Longest head, of a request or an answer. Firmware sends 200 to 400 bytes; a browser with cookies 8 KiB.
pub const HEAD_MAX: usize = 16 << 10;
/// Most fields of a head.
pub(crate) const FIELDS_MAX: usize = 96;
/// Longest request target.
pub(crate) const TARGET_MAX: usize = 4096;

/// Fields that concern one connection only (RFC 9110 §7.6.1), and those that a front writes itself.
const HOP_BY_HOP: [&str; 10] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "expect",
];

/// Fields that are for all recipients. RFC 9110 §7.6.1 forbids `Connection` to name one; who does it all the same would
/// have a front change what is asked for, or take the host from a request that needs one.
const END_TO_END: [&str; 25] = [
    "accept",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "age",
    "allow",
    "authorization",
    "cache-control",
    "content-encoding",
    "content-length",
    "content-range",
    "content-type",
    "cookie",
    "date",
    "etag",
    "expires",
    "host",
    "last-modified",
    "location",
    "range",
    "retry-after",
    "user-agent",
    "vary",
    "via",
    "x-forwarded-for",
];

/// The fields of a head, as they came and in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fields(Vec<(String, Vec<u8>)>);

impl Fields {
    fn of(headers: &[httparse::Header<'_>]) -> Self {
        Self(headers.iter().map(|field| (field.name.to_owned(), field.value.to_vec())).collect())
    }

    /// Each name with its value.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.0.iter().map(|(name, value)| (name.as_str(), &value[..]))
    }

    /// Every value of a name.
    pub(crate) fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.iter().filter(move |(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// The first value of a name, if it is text.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        let (_, value) = self.iter().find(|(known, _)| known.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(value).ok().map(str::trim)
    }

    /// What `Connection` lists, in lower case.
    pub(crate) fn listed(&self) -> Vec<String> {
        let all = self.values("connection").map(String::from_utf8_lossy);
        all.flat_map(|value| {
            value.split(',').map(|word| word.trim().to_ascii_lowercase()).collect::<Vec<_>>()
        })
        .collect()
    }

    fn persistence(&self, version: Version) -> Persistence {
        let listed = self.listed();
        let says = |word: &str| listed.iter().any(|listed| listed == word);
        match version {
            _ if says("close") => Persistence::Close,
            Version::Http10 if !says("keep-alive") => Persistence::Close,
            Version::Http10 | Version::Http11 => Persistence::Keep,
        }
    }

    /// How the body behind these fields ends (RFC 9112 §6.3); none if they do not say. A length that cannot be read, two
    /// of them, or a length beside a coding are each read differently by somebody.
    fn framing(&self) -> Result<Option<Framing>, Ambiguous> {
        let mut codings = self.values("transfer-encoding");
        let mut lengths = self.values("content-length");
        match (codings.next(), lengths.next()) {
            (None, None) => Ok(None),
            (Some(coding), None)
                if codings.next().is_none() && coding.trim_ascii().eq_ignore_ascii_case(b"chunked") =>
            {
                Ok(Some(Framing::Chunked))
            }
            (Some(_), _) => Err(Ambiguous),
            (None, Some(length)) => {
                let text = std::str::from_utf8(length).map_err(|_| Ambiguous)?;
                let length = number(text.trim()).ok_or(Ambiguous)?;
                if lengths.next().is_some() {
                    return Err(Ambiguous);
                }
                Ok(Some(if length == 0 { Framing::Empty } else { Framing::Length(length) }))
            }
        }
    }
}

/// Whether a field, by its name in lower case, ends at the next hop: where `Connection` lists these.
pub(crate) fn is_hop_by_hop(lower: &str, listed: &[String]) -> bool {
    let is_named = || listed.iter().any(|word| word == lower);
    HOP_BY_HOP.contains(&lower) || is_named() && !END_TO_END.contains(&lower) && !lower.starts_with("if-")
}

/// The versions of HTTP/1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    Http11,
}

/// Methods, as far as they are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// GET.
    Get,
    /// HEAD.
    Head,
    /// Any other.
    Other,
}

impl Method {
    /// By its name, whose case matters (RFC 9110 §9.1).
    pub(crate) fn of(name: &str) -> Self {
        match name {
            "GET" => Self::Get,
            "HEAD" => Self::Head,
            _ => Self::Other,
        }
    }
}

/// Whether a connection goes on after an exchange (RFC 9112 §9.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persistence {
    /// Another request may follow.
    Keep,
    /// It is closed.
    Close,
}

impl Persistence {
    /// This, unless something else rules it out.
    pub(crate) fn and(self, is_possible: impl FnOnce() -> bool) -> Self {
        if self == Self::Keep && is_possible() { Self::Keep } else { Self::Close }
    }

    /// What `Connection` has to say to a peer of this version; nothing where that is understood.
    pub(crate) fn field(self, version: Version) -> Option<&'static str> {
        match (self, version) {
            (Self::Close, _) => Some("close"),
            (Self::Keep, Version::Http10) => Some("keep-alive"),
            (Self::Keep, Version::Http11) => None,
        }
    }
}

/// The length of a body can be read in two ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ambiguous;

/// How a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    Empty,
    /// After so many bytes.
    Length(u64),
    /// After the last chunk.
    Chunked,
    /// With the connection.
    UntilClose,
}

/// Why the head of a request is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadHead {
    /// It breaks the grammar.
    #[error("the request's head is malformed")]
    Malformed,
    /// The length of its body can be read in two ways, or in none.
    #[error("the request's length is ambiguous")]
    Length,
    /// It names no host, two, or one that is none (RFC 9112 §3.2).
    #[error("the request has to name one host")]
    Host,
    /// The path has a broken percent sign, a NUL or is no UTF-8, or the target has no path.
    #[error("the request's target is malformed")]
    Target,
    /// The target is longer than 4096 bytes.
    #[error("the request's target is too long")]
    TargetTooLong,
    /// More than 96 fields or 16 KiB.
    #[error("the request's head is too large")]
    TooLarge,
    /// Neither HTTP/1.0 nor HTTP/1.1.
    #[error("the request is of another version than HTTP/1")]
    Version,
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RequestHead {
    /// How.
    pub(crate) method: Method,
    /// A path or a whole URL.
    pub(crate) target: String,
    /// Of what the client speaks.
    pub(crate) version: Version,
    /// What the client wants of the connection.
    pub(crate) persistence: Persistence,
    /// Whether a body follows the head.
    pub(crate) has_body: bool,
    /// Its fields.
    pub(crate) fields: Fields,
}

impl RequestHead {
    /// Reads a head from the beginning of what came: with its length, or nothing while it is not whole.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Option<(Self, usize)>, BadHead> {
        let mut headers = [httparse::EMPTY_HEADER; FIELDS_MAX];
        let mut head = httparse::Request::new(&mut headers);
        let window = &bytes[..bytes.len().min(HEAD_MAX)];
        let length = match head.parse(window) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) if bytes.len() >= HEAD_MAX => {
                // Which of the two it is decides between 414 and 431.
                let is_target = !window.iter().take(TARGET_MAX + 16).any(|c| *c == b'\n');
                return Err(if is_target { BadHead::TargetTooLong } else { BadHead::TooLarge });
            }
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(httparse::Error::TooManyHeaders) => return Err(BadHead::TooLarge),
            Err(httparse::Error::Version) => return Err(BadHead::Version),
            Err(_) => return Err(BadHead::Malformed),
        };
        let (Some(method), Some(target), Some(minor)) = (head.method, head.path, head.version) else {
            return Err(BadHead::Malformed);
        };
        if target.len() > TARGET_MAX {
            return Err(BadHead::TargetTooLong);
        }
        let version = version_of(minor);
        let fields = Fields::of(head.headers);
        let framing = fields.framing().map_err(|Ambiguous| BadHead::Length)?;
        if framing == Some(Framing::Chunked) && version == Version::Http10 {
            // RFC 9112 §6.1: HTTP/1.0 knows no codings, and whoever stands in between may have passed one on unread.
            return Err(BadHead::Length);
        }
        let mut hosts = fields.values("host");
        let (host, second) = (hosts.next(), hosts.next());
        drop(hosts);
        match (host, second) {
            (None, _) if version == Version::Http10 => {}
            (Some(host), None) if is_host(host) => {}
            _ => return Err(BadHead::Host),
        }
        let head = Self {
            method: Method::of(method),
            target: target.to_owned(),
            version,
            persistence: fields.persistence(version),
            has_body: !matches!(framing, None | Some(Framing::Empty)),
            fields,
        };
        Ok(Some((head, length)))
    }
}

/// By the minor number; httparse knows no others.
fn version_of(minor: u8) -> Version {
    if minor == 1 { Version::Http11 } else { Version::Http10 }
}

/// Whether this can be a host with its port (RFC 9112 §3.2): nothing that ends a name or begins something else.
fn is_host(value: &[u8]) -> bool {
    value.trim_ascii().iter().all(|c| c.is_ascii_graphic() && !b"/\\@,?#<>\"".contains(c))
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ResponseHead {
    /// 100 to 599.
    pub(crate) status: u16,
    /// What stands behind the status.
    pub(crate) reason: String,
    /// Its fields.
    pub(crate) fields: Fields,
    /// How its body ends.
    pub(crate) framing: Framing,
    /// What becomes of the connection.
    pub(crate) persistence: Persistence,
}

impl ResponseHead {
    /// Reads a head, with its length; nothing while it is not whole. `asked` is the method that it answers. An error is
    /// a sentence.
    pub(crate) fn decode(bytes: &[u8], asked: Method) -> Result<Option<(Self, usize)>, &'static str> {
        let mut headers = [httparse::EMPTY_HEADER; FIELDS_MAX];
        let mut response = httparse::Response::new(&mut headers);
        let window = &bytes[..bytes.len().min(HEAD_MAX)];
        let length = match response.parse(window) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) if bytes.len() < HEAD_MAX => return Ok(None),
            Ok(_) | Err(httparse::Error::TooManyHeaders) => return Err("its answer's head is too long"),
            Err(_) => return Err("its answer is not HTTP"),
        };
        // RFC 9110 §15: others are invalid, and one of two digits could not be passed on.
        let status =
            response.code.filter(|code| (100..600).contains(code)).ok_or("its answer is not HTTP")?;
        let reason = response.reason.unwrap_or("").to_owned();
        let version = version_of(response.version.unwrap_or(0));
        let fields = Fields::of(response.headers);
        let framing = if asked == Method::Head || matches!(status, 100..=199 | 204 | 304) {
            Framing::Empty
        } else {
            let framing = fields.framing().map_err(|Ambiguous| "its answer's length is ambiguous")?;
            framing.unwrap_or(Framing::UntilClose)
        };
        let persistence = fields.persistence(version).and(|| framing != Framing::UntilClose);
        Ok(Some((Self { status, reason, fields, framing, persistence }, length)))
    }
}

/// Decimal digits and nothing else.
pub(crate) fn number(text: &str) -> Option<u64> {
    (!text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit())).then(|| text.parse().ok())?
}

/// Writes a field.
pub(crate) fn put(bytes: &mut Vec<u8>, name: &str, value: &[u8]) {
    bytes.extend_from_slice(name.as_bytes());
    bytes.extend_from_slice(b": ");
    bytes.extend_from_slice(value);
    bytes.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests;
