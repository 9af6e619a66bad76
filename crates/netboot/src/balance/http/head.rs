//! Heads of requests and answers as a front takes and passes them on (RFC 9110 §7.6).

use std::net::{IpAddr, SocketAddr};

use goldwire_stdx::printable;

use crate::content::without_tokens;
use crate::http1::{self, BadHead, Fields, Version, is_hop_by_hop, number, put};
pub use crate::http1::{Framing, Method, Persistence};

/// A request.
#[derive(Clone, Debug)]
pub struct RequestHead {
    /// GET or HEAD.
    pub method: Method,
    /// The path, or a whole URL.
    pub target: String,
    /// Of what the client speaks.
    pub(crate) version: Version,
    /// What the client wants of the connection.
    pub persistence: Persistence,
    fields: Fields,
}

/// Why a request is not passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// 400.
    Malformed(&'static str),
    /// 405.
    Method,
    /// 431.
    TooLong,
}

/// Who sent a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// A balancer that is trusted to say for whom it asks.
    Balancer,
    /// Anybody.
    Stranger,
}

/// An answer of a member.
#[derive(Clone, Debug)]
pub struct ResponseHead {
    /// 100 to 599.
    pub status: u16,
    reason: String,
    fields: Fields,
    /// How its body ends.
    pub framing: Framing,
    /// What the member does with the connection.
    pub persistence: Persistence,
}

/// The bytes of a file that an answer carries: enough to ask somebody else for the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Offset of the first one.
    pub first: u64,
    /// Offset of the last one.
    pub last: u64,
    /// Length of the whole file.
    pub total: u64,
    /// The strong ETag, with its quotes.
    pub(crate) etag: Vec<u8>,
}

impl RequestHead {
    /// The target for a log, whose reader shall not be able to fetch what the client may.
    pub(super) fn shown_target(&self) -> String {
        printable(&without_tokens(&self.target)).into_owned()
    }

    /// Reads a head, with its length; nothing while it is not complete.
    pub fn decode(bytes: &[u8]) -> Result<Option<(Self, usize)>, Refusal> {
        let read = http1::RequestHead::decode(bytes).map_err(|error| match error {
            BadHead::TargetTooLong | BadHead::TooLarge => Refusal::TooLong,
            BadHead::Host => Refusal::Malformed("a request has to name one host"),
            BadHead::Length => Refusal::Malformed("a request whose length is ambiguous"),
            BadHead::Malformed | BadHead::Target | BadHead::Version => {
                Refusal::Malformed("this is no HTTP request")
            }
        })?;
        let Some((head, length)) = read else { return Ok(None) };
        let http1::RequestHead { method, target, version, persistence, has_body, fields } = head;
        if method == Method::Other {
            return Err(Refusal::Method);
        }
        if !target.starts_with('/') && !target.to_ascii_lowercase().starts_with("http://") {
            return Err(Refusal::Malformed("the request's target is no path"));
        }
        // A body would have to be kept for another member; nothing that boots sends one with GET.
        if has_body {
            return Err(Refusal::Malformed("a request with a body"));
        }
        Ok(Some((Self { method, target, version, persistence, fields }, length)))
    }

    /// The path, if the target is one.
    pub(crate) fn is_for(&self, path: &str) -> bool {
        self.target == path
    }

    /// The request as a member gets it. Of an `X-Forwarded-For` that came, a [`Sender::Balancer`] tells
    /// the truth.
    pub fn forward(&self, client: IpAddr, member: SocketAddr, sender: Sender) -> Vec<u8> {
        self.forward_with(client, member, sender, None)
    }

    /// The request for what is missing of a part of which the first `done` bytes are there.
    pub fn forward_rest(
        &self,
        client: IpAddr,
        member: SocketAddr,
        sender: Sender,
        part: &Part,
        done: u64,
    ) -> Vec<u8> {
        self.forward_with(client, member, sender, Some((part, done)))
    }

    fn forward_with(
        &self,
        client: IpAddr,
        member: SocketAddr,
        sender: Sender,
        rest: Option<(&Part, u64)>,
    ) -> Vec<u8> {
        let method = if self.method == Method::Head { "HEAD" } else { "GET" };
        let mut bytes = format!("{method} {} HTTP/1.1\r\n", self.target).into_bytes();
        if self.fields.values("host").next().is_none() {
            put(&mut bytes, "Host", member.to_string().as_bytes());
        }
        let mut forwarded_for = Vec::new();
        let listed = self.fields.listed();
        for (name, value) in self.fields.iter() {
            let lower = name.to_ascii_lowercase();
            let is_condition = lower.starts_with("if-") || lower == "range";
            if lower == "x-forwarded-for" {
                if sender == Sender::Balancer {
                    forwarded_for.extend_from_slice(value);
                    forwarded_for.extend_from_slice(b", ");
                }
            } else if lower != "content-length"
                && !is_hop_by_hop(&lower, &listed)
                && !(rest.is_some() && is_condition)
            {
                put(&mut bytes, name, value);
            }
        }
        forwarded_for.extend_from_slice(client.to_string().as_bytes());
        put(&mut bytes, "X-Forwarded-For", &forwarded_for);
        if let Some((part, done)) = rest {
            put(&mut bytes, "Range", format!("bytes={}-{}", part.first + done, part.last).as_bytes());
            put(&mut bytes, "If-Match", &part.etag);
        }
        bytes.extend_from_slice(b"\r\n");
        bytes
    }
}

impl ResponseHead {
    /// Reads a head, with its length; nothing while it is not complete. `asked` is the method that it answers. An
    /// error is a sentence.
    pub fn decode(bytes: &[u8], asked: Method) -> Result<Option<(Self, usize)>, &'static str> {
        let Some((head, length)) = http1::ResponseHead::decode(bytes, asked)? else { return Ok(None) };
        let http1::ResponseHead { status, reason, fields, framing, persistence } = head;
        Ok(Some((Self { status, reason, fields, framing, persistence }, length)))
    }

    /// Whether another member might do better.
    pub(crate) fn is_failure(&self) -> bool {
        matches!(self.status, 500 | 502 | 503 | 504)
    }

    /// The head as the client gets it. `framing` is what the client's body is given.
    pub fn pass_on(&self, request: &RequestHead, framing: Framing, persistence: Persistence) -> Vec<u8> {
        let mut bytes = format!("HTTP/1.1 {} {}\r\n", self.status, self.reason).into_bytes();
        let listed = self.fields.listed();
        for (name, value) in self.fields.iter() {
            let lower = name.to_ascii_lowercase();
            // Where there is no body, a length tells what there would be (HEAD, 304).
            let is_told = lower != "content-length" || framing == Framing::Empty && self.status != 204;
            if is_told && !is_hop_by_hop(&lower, &listed) {
                put(&mut bytes, name, value);
            }
        }
        match framing {
            Framing::Length(length) => put(&mut bytes, "Content-Length", length.to_string().as_bytes()),
            Framing::Chunked => put(&mut bytes, "Transfer-Encoding", b"chunked"),
            Framing::Empty | Framing::UntilClose => {}
        }
        if let Some(value) = persistence.field(request.version) {
            put(&mut bytes, "Connection", value.as_bytes());
        }
        bytes.extend_from_slice(b"\r\n");
        bytes
    }

    /// Which bytes of which file this is, if somebody else could be asked for the rest of them.
    pub fn part(&self) -> Option<Part> {
        let Framing::Length(length @ 1..) = self.framing else { return None };
        let etag = self.fields.values("etag").next()?.trim_ascii();
        let is_strong = etag.len() > 2 && etag.starts_with(b"\"") && etag.ends_with(b"\"");
        if !is_strong {
            return None;
        }
        let (first, last, total) = match self.status {
            200 => (0, length - 1, length),
            206 => content_range(self.fields.values("content-range").next()?)?,
            _ => return None,
        };
        (last >= first && last - first == length - 1 && last < total).then(|| Part {
            first,
            last,
            total,
            etag: etag.to_vec(),
        })
    }

    /// Whether this is the rest of `part`, from behind its first `done` bytes on.
    pub fn is_rest_of(&self, part: &Part, done: u64) -> bool {
        let rest = Part { first: part.first + done, ..part.clone() };
        self.status == 206 && self.part().as_ref() == Some(&rest)
    }
}

/// `bytes 0-99/1000` with a known total.
fn content_range(value: &[u8]) -> Option<(u64, u64, u64)> {
    let text = std::str::from_utf8(value).ok()?.trim();
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    Some((number(first)?, number(last)?, number(total)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http1::{FIELDS_MAX, HEAD_MAX};

    fn request(text: &str) -> Result<RequestHead, Refusal> {
        RequestHead::decode(text.as_bytes()).map(|head| head.unwrap().0)
    }

    fn response(text: &str) -> Result<ResponseHead, &'static str> {
        ResponseHead::decode(text.as_bytes(), Method::Get).map(|head| head.unwrap().0)
    }

    #[test]
    fn a_log_holds_no_good_token() {
        let token = "000000000102030405060102030405060708090a0b0c0d0e0f10";
        let head = request(&format!("GET /t/{token}/linux HTTP/1.1\r\nHost: boot\r\n\r\n")).unwrap();
        let shown = head.shown_target();
        assert!(shown.ends_with("/linux") && !shown.contains("0a0b0c0d"), "{shown}");
    }

    #[test]
    fn a_member_gets_the_request_without_what_concerns_the_connection() {
        let head = request(concat!(
            "GET /a%20b HTTP/1.1\r\nHost: boot\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nRange: bytes=5-\r\n",
            "If-None-Match: \"x\"\r\nX-Forwarded-For: 6.6.6.6\r\nExpect: 100-continue\r\nUser-Agent: iPXE\r\n\r\n"
        ))
        .unwrap();
        let (client, member) = ("10.0.0.9".parse().unwrap(), "10.0.0.1:80".parse().unwrap());
        assert_eq!(head.persistence, Persistence::Close);
        let kept = "GET /a%20b HTTP/1.1\r\nHost: boot\r\n";
        assert_eq!(
            String::from_utf8(head.forward(client, member, Sender::Stranger)).unwrap(),
            format!(
                "{kept}Range: bytes=5-\r\nIf-None-Match: \"x\"\r\nUser-Agent: iPXE\r\nX-Forwarded-For: 10.0.0.9\r\n\r\n"
            )
        );
        let part = Part { first: 5, last: 99, total: 100, etag: b"\"t\"".to_vec() };
        assert_eq!(
            String::from_utf8(head.forward_rest(client, member, Sender::Balancer, &part, 10)).unwrap(),
            format!(
                "{kept}User-Agent: iPXE\r\nX-Forwarded-For: 6.6.6.6, 10.0.0.9\r\n\
                 Range: bytes=15-99\r\nIf-Match: \"t\"\r\n\r\n"
            )
        );
        let old = request("HEAD /x HTTP/1.0\r\n\r\n").unwrap();
        assert_eq!(
            (old.persistence, old.version, old.method),
            (Persistence::Close, Version::Http10, Method::Head)
        );
        assert!(
            old.forward(client, member, Sender::Stranger)
                .starts_with(b"HEAD /x HTTP/1.1\r\nHost: 10.0.0.1:80\r\n")
        );
    }

    #[test]
    fn requests_that_could_be_read_in_two_ways_are_refused() {
        for text in [
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
            "GET a HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
            "nonsense\r\n\r\n",
        ] {
            assert!(matches!(request(text), Err(Refusal::Malformed(_))), "{text:?}");
        }
        assert!(matches!(request("POST / HTTP/1.1\r\nHost: a\r\n\r\n"), Err(Refusal::Method)));
        let long = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "x".repeat(HEAD_MAX));
        assert!(matches!(RequestHead::decode(long.as_bytes()), Err(Refusal::TooLong)));
        let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: 1\r\n".repeat(FIELDS_MAX));
        assert!(matches!(RequestHead::decode(many.as_bytes()), Err(Refusal::TooLong)));
    }

    // `Connection: host` made the front drop the host, and a member refuse what came, or ask another site for it.
    #[test]
    fn no_list_of_the_client_drops_a_field_that_is_for_the_member() {
        let head = request(
            "GET /x HTTP/1.1\r\nHost: boot\r\nConnection: host, range, x-hop\r\nRange: bytes=0-1\r\nX-Hop: 1\r\n\r\n",
        );
        let bytes = head.unwrap().forward(
            "10.0.0.9".parse().unwrap(),
            "10.0.0.1:80".parse().unwrap(),
            Sender::Stranger,
        );
        let text = String::from_utf8(bytes).unwrap();
        assert_eq!(
            text,
            "GET /x HTTP/1.1\r\nHost: boot\r\nRange: bytes=0-1\r\nX-Forwarded-For: 10.0.0.9\r\n\r\n"
        );
    }

    #[test]
    fn a_status_that_is_none_is_no_answer() {
        for status in ["007", "099", "600", "999"] {
            assert!(response(&format!("HTTP/1.1 {status} X\r\n\r\n")).is_err(), "{status}");
        }
        assert_eq!(response("HTTP/1.1 599\r\n\r\n").unwrap().status, 599);
    }

    #[test]
    fn only_bytes_with_a_strong_name_can_be_continued() {
        let part = |status, fields: &str| {
            response(&format!("HTTP/1.1 {status} X\r\nContent-Length: 10\r\n{fields}\r\n")).unwrap().part()
        };
        let etag = b"\"x\"".to_vec();
        let whole = Part { first: 0, last: 9, total: 10, etag: etag.clone() };
        assert_eq!(part(200, "ETag: \"x\"\r\n"), Some(whole));
        let some = Part { first: 5, last: 14, total: 20, etag };
        assert_eq!(part(206, "ETag: \"x\"\r\nContent-Range: bytes 5-14/20\r\n"), Some(some.clone()));
        assert_eq!(part(200, "ETag: W/\"x\"\r\n"), None);
        assert_eq!(part(200, ""), None);
        assert_eq!(part(206, "ETag: \"x\"\r\nContent-Range: bytes 5-14/*\r\n"), None);
        assert_eq!(part(206, "ETag: \"x\"\r\nContent-Range: bytes 5-15/20\r\n"), None);
        assert_eq!(part(206, "ETag: \"x\"\r\nContent-Type: multipart/byteranges\r\n"), None);
        assert_eq!(part(404, "ETag: \"x\"\r\n"), None);
        let rest = response(
            "HTTP/1.1 206 X\r\nContent-Length: 7\r\nETag: \"x\"\r\nContent-Range: bytes 8-14/20\r\n\r\n",
        );
        let rest = rest.unwrap();
        assert!(rest.is_rest_of(&some, 3) && !rest.is_rest_of(&some, 2));
        assert!(!rest.is_rest_of(&Part { etag: b"\"y\"".to_vec(), ..some }, 3));
    }
}
