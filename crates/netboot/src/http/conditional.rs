//! Conditional requests (RFC 9110 §13): whether what is there is what the client means.

use super::date;
use super::request::Request;
use crate::content::{Content, Digest};

/// What the conditions come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// They hold.
    Go,
    /// The client has it: 304.
    NotModified,
    /// It is not what the client means: 412.
    Failed,
    /// It depends on a digest that is not known yet. An honest "later" lets a client that resumes a large file after a
    /// fail-over try again, where 412 would end its boot.
    NotReady,
}

/// Judges a request's conditions in the order of §13.2.2.
pub(super) fn judge(request: &Request, content: &Content) -> Verdict {
    if let Some(list) = &request.if_match {
        match matches(list, content.digest, Comparison::Strong) {
            Some(true) => {}
            Some(false) => return Verdict::Failed,
            None => return Verdict::NotReady,
        }
    } else if let Some(since) = &request.if_unmodified_since
        && is_modified_since(since, content) == Some(true)
    {
        return Verdict::Failed;
    }
    if let Some(list) = &request.if_none_match {
        if matches(list, content.digest, Comparison::Weak) == Some(true) {
            return Verdict::NotModified;
        }
    } else if let Some(since) = &request.if_modified_since
        && is_modified_since(since, content) == Some(false)
    {
        return Verdict::NotModified;
    }
    Verdict::Go
}

/// Whether a range may be taken from what is there: `If-Range` (§13.1.5) names it exactly, or is absent.
pub(super) fn range_applies(request: &Request, content: &Content) -> bool {
    let Some(condition) = &request.if_range else { return true };
    if condition.starts_with('"') {
        return matches(condition, content.digest, Comparison::Strong) == Some(true);
    }
    let exact = date::parse(condition).map(date::seconds_of);
    exact.is_some() && exact == content.modified.map(date::seconds_of)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Strong,
    Weak,
}

/// Whether a list of entity tags names this content; nothing if that cannot be known yet.
fn matches(list: &str, digest: Option<Digest>, comparison: Comparison) -> Option<bool> {
    if list == "*" {
        return Some(true);
    }
    let own = digest?.to_string();
    let mut rest = list;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let (is_weak, quoted) = rest.strip_prefix("W/").map_or((false, rest), |quoted| (true, quoted));
        let Some((tag, behind)) = quoted.strip_prefix('"').and_then(|tag| tag.split_once('"')) else {
            return Some(false);
        };
        if tag == own && (comparison == Comparison::Weak || !is_weak) {
            return Some(true);
        }
        rest = behind;
    }
}

fn is_modified_since(since: &str, content: &Content) -> Option<bool> {
    Some(date::seconds_of(content.modified?) > date::seconds_of(date::parse(since)?))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::content::Body;
    use crate::event::Stage;

    const OLD: &str = "Sun, 06 Nov 1994 08:49:36 GMT";
    const SAME: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

    fn content(digest: Option<Digest>) -> Content {
        Content {
            body: Body::Memory(b"abc".as_slice().into()),
            length: 3,
            digest,
            media_type: "",
            modified: Some(UNIX_EPOCH + Duration::new(784_111_777, 5)),
            stage: Stage::Kernel,
        }
    }

    fn request(headers: &str) -> Request {
        let head = format!("GET / HTTP/1.1\r\nHost: a\r\n{headers}\r\n\r\n");
        super::super::request::parse(head.as_bytes()).unwrap().unwrap().0
    }

    #[test]
    fn the_table_of_conditions() {
        let own = Digest::of(b"abc");
        let cases = [
            ("X: y".into(), Verdict::Go),
            (format!("If-Match: \"{own}\""), Verdict::Go),
            (format!("If-Match: \"x\" , \"{own}\""), Verdict::Go),
            (format!("If-Match: \"x\"\r\nIf-Match: \"{own}\""), Verdict::Go),
            (format!("If-Match: W/\"{own}\""), Verdict::Failed),
            ("If-Match: *".into(), Verdict::Go),
            ("If-Match: \"x\"".into(), Verdict::Failed),
            (format!("If-Match: {own}"), Verdict::Failed),
            (format!("If-Unmodified-Since: {SAME}"), Verdict::Go),
            (format!("If-Unmodified-Since: {OLD}"), Verdict::Failed),
            ("If-Unmodified-Since: nonsense".into(), Verdict::Go),
            (format!("If-Match: \"{own}\"\r\nIf-Unmodified-Since: {OLD}"), Verdict::Go),
            (format!("If-None-Match: \"{own}\""), Verdict::NotModified),
            (format!("If-None-Match: W/\"{own}\""), Verdict::NotModified),
            ("If-None-Match: *".into(), Verdict::NotModified),
            ("If-None-Match: \"x\"".into(), Verdict::Go),
            (format!("If-Modified-Since: {SAME}"), Verdict::NotModified),
            (format!("If-Modified-Since: {OLD}"), Verdict::Go),
            (format!("If-None-Match: \"x\"\r\nIf-Modified-Since: {SAME}"), Verdict::Go),
        ];
        for (headers, verdict) in cases {
            assert_eq!(judge(&request(&headers), &content(Some(own))), verdict, "{headers}");
        }
        assert_eq!(judge(&request("If-Match: \"x\""), &content(None)), Verdict::NotReady);
        assert_eq!(judge(&request("If-None-Match: \"x\""), &content(None)), Verdict::Go);
    }

    #[test]
    fn ranges_of_exactly_this() {
        let own = Digest::of(b"abc");
        let applies = |headers: &str, digest| range_applies(&request(headers), &content(digest));
        assert!(applies("X: y", Some(own)) && applies(&format!("If-Range: \"{own}\""), Some(own)));
        assert!(applies(&format!("If-Range: {SAME}"), Some(own)));
        for headers in [
            format!("If-Range: W/\"{own}\""),
            "If-Range: \"x\"".into(),
            format!("If-Range: {OLD}"),
            "If-Range: x".into(),
        ] {
            assert!(!applies(&headers, Some(own)), "{headers}");
        }
        assert!(!applies(&format!("If-Range: \"{own}\""), None));
    }
}
