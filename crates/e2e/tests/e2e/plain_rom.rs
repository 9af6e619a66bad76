//! Makes a network card's iPXE ROM look like one that knows PXE and nothing else.
//!
//! No package has such a ROM. iPXE's is a complete PXE ROM too, it loads and runs `undionly.kpxe` over its PXE
//! interface, but it tells the server what it is (options 77 and 175). A filter between card and switch renames these
//! options until the first TFTP request; what asks afterwards is the program that was loaded.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

/// iPXE's user class and encapsulated options, and private codes (RFC 3942) that no server knows.
const RENAMED: [(u8, u8); 2] = [(77, 230), (175, 231)];
const DHCP_SERVER: u16 = 67;
const TFTP: u16 = 69;
/// Bytes of a DHCP message before its options.
const OPTIONS: usize = 240;

/// The filter. It ends when QEMU does.
pub(crate) struct PlainRom;

impl PlainRom {
    /// Starts a filter for the machine with network `n0` that `qemu` will be.
    pub(crate) fn start(folder: &Path, port: u8, qemu: &mut Command) -> Self {
        let (from_card, to_switch) =
            (folder.join(format!("card{port}")), folder.join(format!("switch{port}")));
        let listeners = (UnixListener::bind(&from_card).unwrap(), UnixListener::bind(&to_switch).unwrap());
        qemu.arg("-chardev").arg(format!("socket,id=from,path={}", from_card.display()));
        qemu.arg("-chardev").arg(format!("socket,id=to,path={}", to_switch.display()));
        qemu.args(["-object", "filter-redirector,id=plain,netdev=n0,queue=rx,outdev=from,indev=to"]);
        goldwire_stdx::spawn("plain_rom", move || {
            // An error means that QEMU has ended.
            let _ = pass_on(&listeners.0, &listeners.1);
        })
        .unwrap();
        Self
    }
}

fn pass_on(from_card: &UnixListener, to_switch: &UnixListener) -> io::Result<()> {
    let (mut card, mut switch) = (from_card.accept()?.0, to_switch.accept()?.0);
    let mut is_rom = true;
    loop {
        // QEMU puts the length before each frame.
        let mut length = [0; 4];
        card.read_exact(&mut length)?;
        let mut frame = vec![0; u32::from_be_bytes(length) as usize];
        card.read_exact(&mut frame)?;
        if let Some((port, payload)) = udp(&mut frame) {
            is_rom &= port != TFTP;
            if is_rom && port == DHCP_SERVER {
                rename(payload);
            }
        }
        switch.write_all(&[&length[..], &frame].concat())?;
    }
}

/// The destination port and the payload of an IPv4 UDP frame, whose checksum is taken out.
fn udp(frame: &mut [u8]) -> Option<(u16, &mut [u8])> {
    if frame.get(12..14)? != [8, 0] || frame.get(23)? != &17 {
        return None;
    }
    let header = 14 + usize::from(frame[14] & 15) * 4;
    let udp = frame.get_mut(header..)?;
    let (header, payload) = udp.split_at_mut_checked(8)?;
    // RFC 768: zero is "no checksum".
    header[6..].fill(0);
    Some((u16::from_be_bytes([header[2], header[3]]), payload))
}

fn rename(message: &mut [u8]) {
    let mut at = OPTIONS;
    while let Some([code, length, ..]) = message.get_mut(at..).filter(|rest| rest.first() != Some(&255)) {
        for (old, new) in RENAMED {
            if *code == old {
                *code = new;
            }
        }
        at += 2 + usize::from(*length);
    }
}
