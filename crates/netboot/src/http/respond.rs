//! What is answered to a request: the head's bytes and which parts of a content follow. Pure; the clock is an argument.

use std::fmt::Write as _;
use std::time::SystemTime;

use super::conditional::{Verdict, judge, range_applies};
use super::date;
use super::range::{self, Part, Wanted};
use super::request::{BadHead, Request};
use crate::content::{Content, ContentError};
use crate::http1::{Method, Persistence, Version};

/// An answer, ready to be sent.
#[derive(Debug)]
pub(super) struct Answer {
    /// The status code.
    pub(super) status: u16,
    /// The head, with its empty line.
    pub(super) head: Vec<u8>,
    /// What follows, in order.
    pub(super) pieces: Vec<Piece>,
    /// Whether the connection stays open.
    pub(super) persistence: Persistence,
}

/// A piece of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// These bytes.
    Bytes(Vec<u8>),
    /// A part of the content.
    Part(Part),
}

impl Answer {
    /// Bytes of the content itself that are sent.
    pub(super) fn content_length(&self) -> u64 {
        self.pieces.iter().map(|piece| if let Piece::Part(part) = piece { part.length } else { 0 }).sum()
    }

    /// Bytes that follow the head.
    pub(super) fn body_length(&self) -> u64 {
        let length = |piece: &Piece| match piece {
            Piece::Bytes(bytes) => bytes.len() as u64,
            Piece::Part(part) => part.length,
        };
        self.pieces.iter().map(length).sum()
    }
}

/// Answers with a content, as far as the request's conditions and ranges let it.
pub(super) fn content(
    request: &Request,
    content: &Content,
    persistence: Persistence,
    now: SystemTime,
) -> Answer {
    match judge(request, content) {
        Verdict::Go => {}
        Verdict::NotModified => {
            let mut head = Head::new(304, now);
            head.identity(content);
            return head.finish(Vec::new(), persistence, request.version);
        }
        Verdict::Failed => return text(request, 412, persistence, now),
        Verdict::NotReady => return busy(request, 2, persistence, now),
    }
    // A range is one of GET (§14.2); HEAD tells the whole's size, which is what firmware asks it for.
    let wanted = match &request.range {
        Some(value) if request.method == Method::Get && range_applies(request, content) => {
            range::parse(value, content.length)
        }
        _ => Wanted::Whole,
    };
    match wanted {
        Wanted::Whole => {
            let mut head = Head::new(200, now);
            head.identity(content);
            head.line("Content-Type", content.media_type);
            head.line("Accept-Ranges", "bytes");
            head.line("Content-Length", content.length);
            let whole = Piece::Part(Part { offset: 0, length: content.length });
            let is_sent = request.method == Method::Get && content.length > 0;
            head.finish(if is_sent { vec![whole] } else { Vec::new() }, persistence, request.version)
        }
        Wanted::Unsatisfiable => {
            let mut head = Head::new(416, now);
            head.line("Content-Range", format_args!("bytes */{}", content.length));
            head.text_body(request, persistence)
        }
        Wanted::Parts(parts) => {
            let mut head = Head::new(206, now);
            head.identity(content);
            head.line("Accept-Ranges", "bytes");
            let pieces = match parts.as_slice() {
                [part] => {
                    head.line("Content-Type", content.media_type);
                    head.line("Content-Range", content_range(part, content.length));
                    head.line("Content-Length", part.length);
                    vec![Piece::Part(*part)]
                }
                parts => head.multipart(parts, content),
            };
            head.finish(pieces, persistence, request.version)
        }
    }
}

/// Answers that there is no content, and why as far as it is the requester's business.
pub(super) fn failure(
    request: &Request,
    error: &ContentError,
    persistence: Persistence,
    now: SystemTime,
) -> Answer {
    match error {
        ContentError::NotFound => text(request, 404, persistence, now),
        ContentError::Forbidden(_) => text(request, 403, persistence, now),
        ContentError::NotReady => busy(request, 2, persistence, now),
        ContentError::Failed { .. } | ContentError::Script { .. } => text(request, 500, persistence, now),
    }
}

/// Answers with a status alone.
pub(super) fn text(request: &Request, status: u16, persistence: Persistence, now: SystemTime) -> Answer {
    let mut head = Head::new(status, now);
    if status == 405 {
        head.line("Allow", "GET, HEAD");
    }
    head.text_body(request, persistence)
}

/// Answers that the client shall come back after so many seconds.
pub(super) fn busy(request: &Request, seconds: u32, persistence: Persistence, now: SystemTime) -> Answer {
    let mut head = Head::new(503, now);
    // A number: iPXE takes a date for 5 seconds.
    head.line("Retry-After", seconds);
    head.text_body(request, persistence)
}

/// Answers with a page of our own.
pub(super) fn page(
    request: &Request,
    status: u16,
    media_type: &str,
    body: String,
    persistence: Persistence,
    now: SystemTime,
) -> Answer {
    Head::new(status, now).body(media_type, body, request.method, persistence, request.version)
}

/// Answers a head that is none; the connection ends, for what follows cannot be told from it.
pub(super) fn bad_head(error: BadHead, now: SystemTime) -> Answer {
    let status = match error {
        BadHead::Malformed | BadHead::Length | BadHead::Host | BadHead::Target => 400,
        BadHead::TargetTooLong => 414,
        BadHead::TooLarge => 431,
        BadHead::Version => 505,
    };
    let body = format!("{status} {}\n", reason(status));
    Head::new(status, now).body("text/plain", body, Method::Get, Persistence::Close, Version::Http11)
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        206 => "Partial Content",
        304 => "Not Modified",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        416 => "Range Not Satisfiable",
        431 => "Request Header Fields Too Large",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        _ => "Internal Server Error",
    }
}

fn content_range(part: &Part, length: u64) -> String {
    format!("bytes {}-{}/{length}", part.offset, part.offset + part.length - 1)
}

/// A head in the making. Nothing of the request is ever written into it.
struct Head {
    status: u16,
    text: String,
}

impl Head {
    fn new(status: u16, now: SystemTime) -> Self {
        let mut text = String::with_capacity(384);
        // Writing to a String cannot fail.
        let _ = write!(text, "HTTP/1.1 {status} {}\r\nDate: {}\r\n", reason(status), date::format(now));
        Self { status, text }
    }

    fn line(&mut self, name: &str, value: impl std::fmt::Display) {
        let _ = write!(self.text, "{name}: {value}\r\n");
    }

    /// What tells this content from another. Caches on the way ask again each time: a boot file under a plain name can
    /// change, and a 304 costs them nothing.
    fn identity(&mut self, content: &Content) {
        if let Some(digest) = content.digest {
            self.line("ETag", format_args!("\"{digest}\""));
        }
        if let Some(modified) = content.modified {
            self.line("Last-Modified", date::format(modified));
        }
        self.line("Cache-Control", "no-cache");
    }

    /// The parts with a head before each (RFC 9110 §14.6). The boundary is the content's own digest, which cannot
    /// occur in it by chance.
    fn multipart(&mut self, parts: &[Part], content: &Content) -> Vec<Piece> {
        let boundary =
            content.digest.map_or_else(|| "goldwire-parts".to_owned(), |digest| digest.to_string());
        let mut pieces = Vec::with_capacity(parts.len() * 2 + 1);
        let mut length = 0;
        for (index, part) in parts.iter().enumerate() {
            let break_before = if index == 0 { "" } else { "\r\n" };
            let head = format!(
                "{break_before}--{boundary}\r\nContent-Type: {}\r\nContent-Range: {}\r\n\r\n",
                content.media_type,
                content_range(part, content.length),
            );
            length += head.len() as u64 + part.length;
            pieces.push(Piece::Bytes(head.into_bytes()));
            pieces.push(Piece::Part(*part));
        }
        let end = format!("\r\n--{boundary}--\r\n");
        length += end.len() as u64;
        pieces.push(Piece::Bytes(end.into_bytes()));
        self.line("Content-Type", format_args!("multipart/byteranges; boundary={boundary}"));
        self.line("Content-Length", length);
        pieces
    }

    fn text_body(self, request: &Request, persistence: Persistence) -> Answer {
        let body = format!("{} {}\n", self.status, reason(self.status));
        self.body("text/plain", body, request.method, persistence, request.version)
    }

    fn body(
        mut self,
        media_type: &str,
        body: String,
        method: Method,
        persistence: Persistence,
        version: Version,
    ) -> Answer {
        self.line("Content-Type", media_type);
        self.line("Content-Length", body.len());
        self.line("Cache-Control", "no-store");
        let pieces = if method == Method::Head { Vec::new() } else { vec![Piece::Bytes(body.into_bytes())] };
        self.finish(pieces, persistence, version)
    }

    fn finish(mut self, pieces: Vec<Piece>, persistence: Persistence, version: Version) -> Answer {
        if let Some(value) = persistence.field(version) {
            self.line("Connection", value);
        }
        self.text.push_str("\r\n");
        Answer { status: self.status, head: self.text.into_bytes(), pieces, persistence }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::content::{Body, Digest};
    use crate::event::Stage;

    const TEXT: &[u8] = b"0123456789";

    fn ten() -> Content {
        Content {
            body: Body::Memory(TEXT.into()),
            length: 10,
            digest: Some(Digest::of(TEXT)),
            media_type: "application/efi",
            modified: Some(UNIX_EPOCH),
            stage: Stage::Bootstrap,
        }
    }

    fn ask(line: &str, headers: &str) -> (Request, String, String) {
        let head = format!("{line} HTTP/1.1\r\nHost: a\r\n{headers}\r\n");
        let request = super::super::request::parse(head.as_bytes()).unwrap().unwrap().0;
        let answer =
            content(&request, &ten(), Persistence::Keep, UNIX_EPOCH + Duration::from_secs(784_111_777));
        let mut body = Vec::new();
        for piece in &answer.pieces {
            match piece {
                Piece::Bytes(bytes) => body.extend(bytes),
                Piece::Part(part) => body.extend(&TEXT[part.offset as usize..][..part.length as usize]),
            }
        }
        assert_eq!(body.len() as u64, answer.body_length());
        (request, String::from_utf8(answer.head).unwrap(), String::from_utf8(body).unwrap())
    }

    #[test]
    fn the_whole() {
        let (_, head, body) = ask("GET /", "");
        let expected = format!(
            "HTTP/1.1 200 OK\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nETag: \"{}\"\r\n\
             Last-Modified: Thu, 01 Jan 1970 00:00:00 GMT\r\nCache-Control: no-cache\r\n\
             Content-Type: application/efi\r\nAccept-Ranges: bytes\r\nContent-Length: 10\r\n\r\n",
            Digest::of(TEXT)
        );
        assert_eq!((head, body.as_str()), (expected.clone(), "0123456789"));
        let (_, head, body) = ask("HEAD /", "Range: bytes=0-1\r\n");
        assert_eq!((head, body.as_str()), (expected, ""));
    }

    #[test]
    fn parts() {
        let (_, head, body) = ask("GET /", "Range: bytes=2-4\r\n");
        assert!(head.starts_with("HTTP/1.1 206 ") && head.contains("Content-Range: bytes 2-4/10\r\n"));
        assert!(head.contains("Content-Length: 3\r\n") && head.contains("ETag: "));
        assert_eq!(body, "234");
        let (_, head, body) = ask("GET /", "Range: bytes=0-0,-2\r\n");
        let boundary = Digest::of(TEXT);
        assert_eq!(
            body,
            format!(
                "--{boundary}\r\nContent-Type: application/efi\r\nContent-Range: bytes 0-0/10\r\n\r\n0\r\n\
                 --{boundary}\r\nContent-Type: application/efi\r\nContent-Range: bytes 8-9/10\r\n\r\n89\r\n--{boundary}--\r\n"
            )
        );
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())));
        let (_, head, _) = ask("GET /", "Range: bytes=10-\r\n");
        assert!(head.starts_with("HTTP/1.1 416 ") && head.contains("Content-Range: bytes */10\r\n"));
        let (_, head, body) = ask("GET /", "Range: bytes=0-1\r\nIf-Range: \"other\"\r\n");
        assert!(head.starts_with("HTTP/1.1 200 ") && body.len() == 10);
    }

    #[test]
    fn conditions() {
        let (_, head, body) = ask("GET /", "If-None-Match: *\r\n");
        assert!(head.starts_with("HTTP/1.1 304 ") && head.contains("ETag: ") && body.is_empty());
        assert!(!head.contains("Content-Length"));
        let (_, head, _) = ask("GET /", "If-Match: \"x\"\r\nRange: bytes=0-1\r\n");
        assert!(head.starts_with("HTTP/1.1 412 "));
    }
}
