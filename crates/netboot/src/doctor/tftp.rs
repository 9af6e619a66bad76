//! Fetches the beginning of a file by TFTP as firmware does: asks for the size, breaks off, asks again and takes the
//! first block (RFC 1350, 2347–2349, 7440).

use std::io;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use super::{Client, Finding, Problem};

const PORT: u16 = 69;
/// What a BIOS can load: what is free below 640 KiB.
const BASE_MEMORY_MAX: u64 = 500 * 1024;
/// Largest block asked for, with its header.
const PACKET_MAX: usize = 2048;
const TRIES: u32 = 3;
const NOT_FOUND: u16 = 1;

/// What came back.
enum Answer {
    Options(Vec<(String, String)>),
    Data(Vec<u8>),
    Error(u16, String),
    /// Something from an address that was not asked.
    Elsewhere(IpAddr),
    Nothing,
}

/// Fetches the beginning; gives what was found and the first block.
pub(super) fn probe(
    client: Client,
    server: Ipv4Addr,
    file: &str,
    timeout: Duration,
) -> io::Result<(Vec<Finding>, Option<Vec<u8>>)> {
    let asked: &[(&str, &str)] = match client {
        Client::EfiPxe => &[("tsize", "0"), ("blksize", "1468"), ("windowsize", "4")],
        Client::BiosPxe => &[("tsize", "0"), ("blksize", "1456")],
        _ => &[("blksize", "1432"), ("tsize", "0")],
    };
    let place = format!("tftp://{server}/{file}");
    let mut findings = Vec::new();
    let failed = |problem, what| Finding::error(problem, client, what);
    let mut size = None;
    for (round, options) in [asked, &asked[usize::from(client != Client::Ipxe)..]].into_iter().enumerate() {
        let (socket, answer) = ask(server, &request(file, options), timeout)?;
        match answer {
            Answer::Nothing => findings.push(failed(Problem::TftpTimeout, format!("no answer to {place}"))),
            Answer::Elsewhere(other) => findings.push(failed(
                Problem::TftpTimeout,
                format!("{place} is answered by {other}, and firmware only listens to whom it asked"),
            )),
            Answer::Error(NOT_FOUND, text) => {
                findings.push(failed(Problem::TftpNotFound, format!("{place}: {text}")));
            }
            Answer::Error(number, text) => {
                findings.push(failed(Problem::TftpError, format!("{place}: error {number}, {text}")));
            }
            Answer::Options(given) => {
                if let Some((name, value)) = given.iter().find(|option| !is_allowed(option, options)) {
                    let what = format!("{place} is answered with {name}={value}, which was not asked for");
                    findings.push(failed(Problem::TftpOptions, what));
                    return Ok((findings, None));
                }
                size = size.or(given
                    .iter()
                    .find(|(name, _)| name == "tsize")
                    .and_then(|(_, value)| value.parse().ok()));
                if round == 0 {
                    abort(&socket);
                    continue;
                }
                // Acknowledging the options starts the data.
                socket.send(&[0, 4, 0, 0])?;
                let data = match receive(&socket, server, timeout)? {
                    Answer::Data(data) => Some(data),
                    _ => None,
                };
                abort(&socket);
                match data {
                    Some(data) => return Ok((arrived(findings, client, &place, size), Some(data))),
                    None => findings
                        .push(failed(Problem::TftpTimeout, format!("{place} stops before its first block"))),
                }
            }
            Answer::Data(data) => {
                abort(&socket);
                if round == 0 {
                    findings.push(Finding::warning(
                        "tftp-no-options",
                        format!("{server} ignores the options of RFC 2347"),
                        "blocks of 512 bytes: slow, and the size is not known before the end",
                        "use a TFTP server with tsize and blksize",
                    ));
                    continue;
                }
                return Ok((arrived(findings, client, &place, size), Some(data)));
            }
        }
        return Ok((findings, None));
    }
    Ok((findings, None))
}

fn arrived(mut findings: Vec<Finding>, client: Client, place: &str, size: Option<u64>) -> Vec<Finding> {
    let length = size.map_or(String::new(), |size| format!(", {size} bytes"));
    findings.push(Finding::ok("tftp", format!("{place} can be fetched{length}")));
    if client == Client::BiosPxe && size.is_some_and(|size| size > BASE_MEMORY_MAX) {
        findings.push(Finding::warning(
            "PXE-E79",
            format!("{place} is larger than a BIOS has room for"),
            "PXE-E79: NBP is too big to fit in free base memory",
            "give BIOS clients undionly.kpxe or another small program",
        ));
    }
    findings
}

/// RFC 2347: only what was asked for; blksize and windowsize not larger than asked (RFC 2348, 7440).
fn is_allowed((name, value): &(String, String), asked: &[(&str, &str)]) -> bool {
    let Some((_, most)) = asked.iter().find(|(known, _)| name == known) else { return false };
    match (name.as_str(), value.parse::<u64>(), most.parse::<u64>()) {
        ("tsize", Ok(_), _) => true,
        (_, Ok(value), Ok(most)) => value <= most,
        _ => false,
    }
}

fn request(file: &str, options: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = vec![0, 1];
    for text in [file, "octet"].into_iter().chain(options.iter().flat_map(|(name, value)| [*name, *value])) {
        bytes.extend(text.bytes().filter(|byte| *byte != 0));
        bytes.push(0);
    }
    bytes
}

/// Sends a request from a fresh port until something comes; the socket is then bound to whoever answered.
fn ask(server: Ipv4Addr, request: &[u8], timeout: Duration) -> io::Result<(UdpSocket, Answer)> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    for _ in 0..TRIES {
        // An unreachable network shows here or as silence; both are silence to the firmware.
        let _ = socket.send_to(request, (server, PORT));
        match receive(&socket, server, timeout / TRIES)? {
            Answer::Nothing => {}
            answer => return Ok((socket, answer)),
        }
    }
    Ok((socket, Answer::Nothing))
}

fn receive(socket: &UdpSocket, server: Ipv4Addr, timeout: Duration) -> io::Result<Answer> {
    let end = Instant::now() + timeout;
    let mut packet = [0; PACKET_MAX];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Answer::Nothing);
        }
        socket.set_read_timeout(Some(left))?;
        let Ok((length, from)) = socket.recv_from(&mut packet) else { continue };
        if from.ip() != IpAddr::V4(server) {
            return Ok(Answer::Elsewhere(from.ip()));
        }
        // Not connected before the first answer: it may come from another port, and from another address by mistake.
        if socket.peer_addr().is_err() {
            socket.connect(from)?;
        }
        match packet[..length] {
            [0, 3, _, _, ref data @ ..] => return Ok(Answer::Data(data.to_vec())),
            [0, 5, high, low, ref text @ ..] => {
                let text = String::from_utf8_lossy(text).trim_end_matches('\0').to_owned();
                return Ok(Answer::Error(u16::from_be_bytes([high, low]), text));
            }
            [0, 6, ref text @ ..] => {
                let parts: Vec<String> = text
                    .split(|byte| *byte == 0)
                    .map(|part| String::from_utf8_lossy(part).to_ascii_lowercase())
                    .collect();
                let pairs = parts.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect();
                return Ok(Answer::Options(pairs));
            }
            _ => {}
        }
    }
}

/// What EDK2 sends when it has seen enough.
fn abort(socket: &UdpSocket) {
    let _ = socket.send(b"\0\x05\0\x08User aborted the transfer\0");
}
