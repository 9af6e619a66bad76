//! Fetches the beginning of a URL as firmware does, and looks whether every member gives the same.

use std::collections::HashMap;
use std::io;
use std::net::ToSocketAddrs;
use std::time::{Duration, Instant};

use super::{Client, Finding, Problem, script};
use crate::http1::{self, Exchange, ResponseHead};
use crate::member::Member;

/// What is read of a body; scripts are smaller.
const BODY_MAX: usize = 64 * 1024;
/// URLs of a script that are tried.
const LINKS_MAX: usize = 16;
/// Media types by which EDK2 knows what to do with a file (HttpBootSupport.c); otherwise the name's end decides.
const BOOT_TYPES: [&str; 3] = ["application/efi", "application/vnd.efi-iso", "application/vnd.efi-img"];
const BOOT_ENDS: [&str; 3] = [".efi", ".iso", ".img"];

struct Url {
    host: String,
    port: u16,
    path: String,
}

impl Url {
    fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix("http://")?;
        let (authority, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().ok()?),
            None => (authority, 80),
        };
        let is_plain = |c: char| c.is_ascii_graphic();
        (!host.is_empty() && host.chars().all(is_plain) && path.chars().all(is_plain)).then(|| Self {
            host: host.into(),
            port,
            path: path.into(),
        })
    }
}

struct Response {
    head: ResponseHead,
    body: Vec<u8>,
}

impl Response {
    fn status(&self) -> u16 {
        self.head.status
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head.fields.text(name)
    }
}

/// Looks at a URL that a firmware was given.
pub(super) fn check(client: Client, text: &str, members: &[Member], timeout: Duration) -> Vec<Finding> {
    let mut findings = Vec::new();
    let Some(url) = Url::parse(text) else {
        findings.push(Finding::warning(
            "url-not-examined",
            format!("{text} was not looked at"),
            "only plain http URLs without iPXE variables are followed",
            "try it with curl",
        ));
        return findings;
    };
    let fail = |problem, what: String| Finding::error(problem, client, what);
    let head = match exchange("HEAD", &url, None, timeout) {
        Ok(head) => head,
        Err(error) => {
            let problem = if is_lookup(&error) { Problem::NoDns } else { Problem::HttpUnreachable };
            findings.push(fail(problem, format!("{text}: {error}")));
            return findings;
        }
    };
    let part = match exchange("GET", &url, Some("bytes=0-1023"), timeout) {
        Ok(part) => part,
        Err(error) => {
            findings.push(fail(Problem::HttpUnreachable, format!("{text}: {error}")));
            return findings;
        }
    };
    match part.status() {
        200 | 206 => {}
        404 | 410 => findings.push(fail(Problem::HttpNotFound, format!("{text}: status {}", part.status()))),
        301..=308 => findings.push(Finding::warning(
            "redirect",
            format!("{text} is redirected to {}", part.header("location").unwrap_or("nowhere")),
            "UEFI HTTP Boot does not follow, and old iPXE has no https",
            "name the final URL",
        )),
        503 if client == Client::Ipxe => findings.push(Finding::warning(
            "busy",
            format!("{text}: status 503"),
            "iPXE waits and asks again as Retry-After says",
            "look again when the load is over",
        )),
        status => findings.push(fail(Problem::HttpStatus, format!("{text}: status {status}"))),
    }
    if !matches!(part.status(), 200 | 206) {
        return findings;
    }
    findings.push(Finding::ok("http", format!("{text} can be fetched")));
    if head.status() != 200 {
        findings.push(Finding::warning(
            "http-head",
            format!("{text}: HEAD gives status {}", head.status()),
            "UEFI HTTP Boot asks with HEAD first; iPXE's SAN boot knows the size by nothing else",
            "answer HEAD as GET, without the body",
        ));
    }
    match client {
        Client::HttpBoot => findings.extend(for_http_boot(&url, &head, &part)),
        _ => findings.extend(for_ipxe(client, text, &url, timeout)),
    }
    findings.extend(same_everywhere(&url, &head, members, timeout));
    findings
}

fn for_http_boot(url: &Url, head: &Response, part: &Response) -> Vec<Finding> {
    let mut findings = Vec::new();
    let media_type = part.header("content-type").unwrap_or_default();
    let media_type = media_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let path = url.path.split('?').next().unwrap_or_default().to_ascii_lowercase();
    if !BOOT_TYPES.contains(&media_type.as_str()) && !BOOT_ENDS.iter().any(|end| path.ends_with(end)) {
        let what = format!("{} has the type {media_type:?} and does not end in .efi, .iso or .img", url.path);
        findings.push(Finding::error(Problem::NotBootable, Client::HttpBoot, what));
    }
    let is_program = media_type == BOOT_TYPES[0] || path.ends_with(BOOT_ENDS[0]);
    if is_program && !part.body.starts_with(b"MZ") {
        let what = format!("{} is no UEFI program", url.path);
        findings.push(Finding::error(Problem::NotBootable, Client::HttpBoot, what));
    }
    if head.header("content-length").is_none() {
        findings.push(Finding::warning(
            "http-length",
            format!("{} has no Content-Length", url.path),
            "UEFI HTTP Boot wants the size before it fetches",
            "send Content-Length",
        ));
    }
    if part.status() != 206 || part.header("content-range").is_none() {
        findings.push(Finding::warning(
            "http-range",
            format!("{} cannot be fetched in parts", url.path),
            "UEFI HTTP Boot goes on after a broken connection by Range, five times",
            "answer Range with 206",
        ));
    }
    if !part.header("etag").is_some_and(|tag| tag.starts_with('"')) {
        findings.push(Finding::warning(
            "http-etag",
            format!("{} has no strong ETag", url.path),
            "a download that broke off is resumed only if it is surely the same file",
            "send a strong ETag made of the content",
        ));
    }
    findings
}

/// What iPXE is given has to be a script or a program, and what a script names has to be there.
fn for_ipxe(client: Client, text: &str, url: &Url, timeout: Duration) -> Vec<Finding> {
    let body = match exchange("GET", url, None, timeout) {
        Ok(whole) => whole.body,
        Err(error) => {
            return vec![Finding::error(Problem::HttpUnreachable, client, format!("{text}: {error}"))];
        }
    };
    let start = String::from_utf8_lossy(&body[..body.len().min(64)]).trim_start().to_ascii_lowercase();
    if start.is_empty() || start.starts_with('<') || start.starts_with('{') {
        return vec![Finding::error(
            Problem::NotBootable,
            client,
            format!("{text} is no script and no program"),
        )];
    }
    if !body.starts_with(b"#!ipxe") && !body.starts_with(b"#!gpxe") {
        return vec![Finding::ok("program", format!("{text} is no script; iPXE starts it as a program"))];
    }
    let mut findings = vec![Finding::ok("script", format!("{text} is an iPXE script"))];
    findings.extend(for_script(client, &String::from_utf8_lossy(&body), timeout));
    findings
}

/// Looks at what a script names. A URL that fails is a warning while there is another for the same file, and an error
/// when the machine needs the file and all fail.
fn for_script(client: Client, script: &str, timeout: Duration) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut looked_at: HashMap<&str, Option<Failure>> = HashMap::new();
    for line in script::fetches(script) {
        for link in &line.urls {
            if looked_at.len() < LINKS_MAX && !looked_at.contains_key(link) {
                looked_at.insert(link, fetch_fails(link, timeout));
            }
        }
        // What was not looked at may be there.
        let failures: Vec<(&str, &Failure)> =
            line.urls.iter().filter_map(|link| Some((*link, looked_at.get(link)?.as_ref()?))).collect();
        if line.is_needed && failures.len() == line.urls.len() {
            let missing: Vec<String> =
                failures.iter().map(|(link, failure)| format!("{link}: {}", failure.what)).collect();
            let what =
                format!("the script has no place left for a file that it needs: {}", missing.join(", "));
            // The last one's error is what the machine shows.
            let problem = failures.last().map_or(Problem::HttpStatus, |(_, failure)| failure.problem);
            findings.push(Finding::error(problem, client, what));
            continue;
        }
        findings.extend(failures.into_iter().map(|(link, failure)| {
            Finding::warning(
                "script-link",
                format!("{link}, named in the script: {}", failure.what),
                "the script fails there, or goes on to its next choice",
                failure.problem.hint(),
            )
        }));
    }
    findings
}

/// Why something cannot be fetched.
struct Failure {
    problem: Problem,
    what: String,
}

fn fetch_fails(link: &str, timeout: Duration) -> Option<Failure> {
    let url = Url::parse(link)?;
    let (problem, what) = match exchange("HEAD", &url, None, timeout) {
        Ok(head) if head.status() < 400 || matches!(head.status(), 405 | 503) => return None,
        Ok(head) => {
            let problem = match head.status() {
                404 | 410 => Problem::HttpNotFound,
                _ => Problem::HttpStatus,
            };
            (problem, format!("status {}", head.status()))
        }
        Err(error) if is_lookup(&error) => (Problem::NoDns, error.to_string()),
        Err(error) => (Problem::HttpUnreachable, error.to_string()),
    };
    Some(Failure { problem, what })
}

/// A download that goes on at another member needs the same bytes there, which the ETag tells.
fn same_everywhere(url: &Url, head: &Response, members: &[Member], timeout: Duration) -> Vec<Finding> {
    let is_here = |member: &Member| member.address.to_string() == url.host && member.http_port == url.port;
    if !members.iter().any(is_here) {
        return Vec::new();
    }
    let mut findings = Vec::new();
    for member in members.iter().filter(|member| !is_here(member)) {
        let there = Url { host: member.address.to_string(), port: member.http_port, path: url.path.clone() };
        let what = match exchange("HEAD", &there, None, timeout) {
            Err(error) => format!("member {} does not answer: {error}", member.name),
            Ok(other) if other.status() != head.status() => {
                format!("member {} answers {} with status {}", member.name, url.path, other.status())
            }
            Ok(other) if other.header("etag") != head.header("etag") => {
                format!("member {} has another ETag for {}", member.name, url.path)
            }
            Ok(_) => {
                findings.push(Finding::ok("member", format!("member {} gives the same", member.name)));
                continue;
            }
        };
        findings.push(Finding::warning(
            "member",
            what,
            "a machine that loses its server there cannot go on",
            "give every member the same boot tree",
        ));
    }
    findings
}

/// Whether a name could not be looked up.
fn is_lookup(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

/// One request on a connection of its own. All of it has to be done within `timeout`.
fn exchange(method: &str, url: &Url, range: Option<&str>, timeout: Duration) -> io::Result<Response> {
    let deadline = Instant::now() + timeout;
    let no_name = || io::Error::new(io::ErrorKind::NotFound, format!("{} cannot be looked up", url.host));
    let host = url.host.trim_matches(['[', ']']);
    let address =
        (host, url.port).to_socket_addrs().ok().and_then(|mut found| found.next()).ok_or_else(no_name)?;
    let authority = if url.port == 80 { url.host.clone() } else { format!("{}:{}", url.host, url.port) };
    let ask = Exchange {
        is_proxied: false,
        address,
        host: &authority,
        method,
        target: &url.path,
        range,
        agent: "goldwire-doctor",
        body_max: BODY_MAX,
    };
    http1::exchange(&ask, deadline).map(|(head, body)| Response { head, body })
}
