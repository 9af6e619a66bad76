//! Machines with real firmware: QEMU without hardware acceleration on a port of the lab's switch, judged by what they
//! say on the serial console.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use crate::lab::{Lab, PATIENCE};
use crate::plain_rom::PlainRom;
use crate::transcript::Transcript;

/// What the machine is made of.
#[derive(Clone, Debug)]
pub(crate) enum Firmware {
    /// SeaBIOS and a network card whose ROM is iPXE.
    BiosIpxe,
    /// SeaBIOS and a network card whose ROM knows PXE and nothing else, as far as a server can tell.
    BiosPxe,
    /// OVMF, which brings PXE and its own drivers.
    UefiPxe,
    /// OVMF with PXE switched off: UEFI HTTP Boot.
    UefiHttp,
    /// OVMF and a network card whose ROM is iPXE.
    UefiIpxe,
    /// SeaBIOS, and iPXE with this script in its memory; the card has no ROM.
    BiosScript(PathBuf),
    /// SeaBIOS, and this medium in its drive; the card has no ROM.
    BiosMedium(PathBuf),
    /// OVMF, and this medium in its drive; the card has no ROM.
    UefiMedium(PathBuf),
}

impl Firmware {
    fn is_uefi(&self) -> bool {
        matches!(self, Self::UefiPxe | Self::UefiHttp | Self::UefiIpxe | Self::UefiMedium(_))
    }

    fn card(&self) -> &'static str {
        match self {
            Self::BiosIpxe | Self::UefiIpxe => "virtio-net-pci",
            // The frames of a virtio card carry a header of the host's before them when they pass a filter.
            Self::BiosPxe => "e1000",
            Self::UefiPxe
            | Self::UefiHttp
            | Self::BiosScript(_)
            | Self::BiosMedium(_)
            | Self::UefiMedium(_) => "virtio-net-pci,romfile=",
        }
    }
}

/// A running machine.
pub(crate) struct Guest {
    command: Command,
    qemu: Child,
    serial: Arc<Transcript>,
    name: String,
    mac: String,
    _plain_rom: Option<PlainRom>,
}

impl Guest {
    /// Plugs a machine into the switch and turns it on.
    pub(crate) fn start(lab: &Lab, firmware: &Firmware) -> Self {
        let port = lab.add_tap();
        let mac = format!("52:54:00:77:00:{port:02x}");
        let mut command = lab.command("sw", "qemu-system-x86_64");
        command
            .args(["-accel", "tcg", "-cpu", "max", "-m", "256", "-rtc", "base=utc"])
            // A machine that could not boot begins again, as those in racks do.
            .args(["-boot", "reboot-timeout=1000"])
            .args(["-nodefaults", "-display", "none", "-serial", "stdio"])
            .arg("-smbios")
            .arg(format!("type=1,uuid=01234567-89ab-cdef-0123-4567890000{port:02x},serial=SN{port:02x}"))
            .arg("-netdev")
            .arg(format!("tap,id=n0,ifname=tap{port},script=no,downscript=no"));
        let is_from_network =
            !matches!(firmware, Firmware::BiosScript(_) | Firmware::BiosMedium(_) | Firmware::UefiMedium(_));
        let order = if is_from_network { ",bootindex=0" } else { "" };
        command.arg("-device").arg(format!("{},netdev=n0,mac={mac}{order}", firmware.card()));
        if firmware.is_uefi() {
            // What the firmware writes down is forgotten with the machine.
            let variables = lab.folder().join(format!("variables{port}"));
            let (code, new) = goldwire_stdx::testing::uefi().unwrap();
            fs::copy(new, &variables).unwrap();
            command
                .args(["-M", "q35", "-object", "rng-random,filename=/dev/urandom,id=rng0"])
                .args(["-device", "virtio-rng-pci,rng=rng0"])
                .arg("-drive")
                .arg(format!("if=pflash,format=raw,unit=0,readonly=on,file={}", code.display()))
                .arg("-drive")
                .arg(format!("if=pflash,format=raw,unit=1,file={}", variables.display()))
                .args(["-fw_cfg", "name=opt/org.tianocore/IPv6PXESupport,string=n"]);
        } else {
            // Without graphics SeaBIOS puts its console on the serial port.
            command.args(["-M", "pc,graphics=off"]);
        }
        let mut plain_rom = None;
        match firmware {
            Firmware::UefiHttp => {
                command.args(["-fw_cfg", "name=opt/org.tianocore/IPv4PXESupport,string=n"]);
            }
            Firmware::BiosPxe => plain_rom = Some(PlainRom::start(lab.folder(), port, &mut command)),
            Firmware::BiosScript(path) => {
                command.args(["-kernel", "/usr/lib/ipxe/ipxe.lkrn", "-initrd"]).arg(path);
            }
            Firmware::BiosMedium(path) | Firmware::UefiMedium(path) => {
                command
                    .arg("-drive")
                    .arg(format!("if=none,id=cd0,media=cdrom,readonly=on,format=raw,file={}", path.display()))
                    .args(["-device", "ide-cd,drive=cd0,bootindex=0"]);
            }
            Firmware::BiosIpxe | Firmware::UefiPxe | Firmware::UefiIpxe => {}
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let name = format!("guest {port}: {firmware:?} {mac}");
        let (qemu, serial) = turn_on(&mut command, lab, &name);
        Self { command, qemu, serial, name, mac, _plain_rom: plain_rom }
    }

    /// Turns it off and on again.
    pub(crate) fn power_cycle(&mut self, lab: &Lab) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
        (self.qemu, self.serial) = turn_on(&mut self.command, lab, &self.name);
    }

    /// Waits until these words are on its serial console.
    #[track_caller]
    pub(crate) fn wait_for(&self, words: &str) {
        assert!(self.serial.wait(words, PATIENCE), "{} never said {words:?}", self.mac);
    }

    /// Whether these words are on its serial console so far.
    pub(crate) fn has_said(&self, words: &str) -> bool {
        self.serial.has(words)
    }
}

fn turn_on(command: &mut Command, lab: &Lab, name: &str) -> (Child, Arc<Transcript>) {
    let mut qemu = command.spawn().unwrap();
    let mut keyboard = qemu.stdin.take().unwrap();
    let mut is_skipped = false;
    // Any key but Ctrl-B ends iPXE's wait of two seconds for that key.
    let skip_banner = move |line: &str| {
        let is_there = line.contains("Press Ctrl-B for the iPXE command");
        if is_there && !is_skipped {
            let _ = keyboard.write_all(b"x").and_then(|()| keyboard.flush());
        }
        is_skipped = is_there;
    };
    let serial = Transcript::follow(name, lab.start_time(), qemu.stdout.take().unwrap(), skip_banner);
    lab.keep(&serial);
    (qemu, serial)
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}
