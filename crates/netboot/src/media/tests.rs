use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Instant;

use goldwire_stdx::testing;

use super::*;

fn member(port: u16) -> Member {
    // 10.0.2.2 is the host's loopback as a guest of QEMU's user network sees it.
    Member {
        name: "boot".into(),
        address: "10.0.2.2".parse().unwrap(),
        http_port: port,
        https_port: Some(port),
        https_name: Some("boot.example".into()),
    }
}

/// A PE file of one section that contains `text`: as much of a program as the writer looks at.
fn program(machine: u16, text: &str) -> Vec<u8> {
    let mut bytes = vec![0; 0x200];
    bytes[0x3c] = 0x40;
    bytes[0x40..0x44].copy_from_slice(b"PE\0\0");
    bytes[0x44..0x46].copy_from_slice(&machine.to_le_bytes());
    bytes[0x46] = 1; // sections
    bytes[0x54] = 240; // size of the optional header
    let optional = 0x58;
    bytes[optional..optional + 2].copy_from_slice(&0x20b_u16.to_le_bytes());
    bytes[optional + 17] = 0x10; // entry 0x1000
    bytes[optional + 32] = 32;
    bytes[optional + 36] = 32;
    let section = optional + 240;
    bytes[section + 13] = 0x10; // at 0x1000
    bytes[section + 21] = 0x02; // in the file at 0x200
    let mut body = [b"\0", text.as_bytes(), b"\0"].concat();
    body.resize(body.len().next_multiple_of(32), 0);
    for at in [8, 16] {
        bytes[section + at..section + at + 4].copy_from_slice(&(body.len() as u32).to_le_bytes());
    }
    bytes.extend(body);
    bytes
}

/// An `ipxe.lkrn` as far as the writer looks at it.
fn kernel() -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..100_000_u32).map(|n| n.to_le_bytes()[1]).collect();
    bytes[0x1f1] = 5;
    bytes[0x202..0x206].copy_from_slice(b"HdrS");
    bytes
}

/// A folder with such programs.
fn folder(files: &[(&str, Vec<u8>)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    folder
}

fn settings(programs: &tempfile::TempDir) -> MediaSettings {
    MediaSettings { programs: programs.path().into(), ..MediaSettings::new(vec![member(8080)]) }
}

fn run(program: &Path, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .env("MTOOLS_SKIP_CHECK", "1")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program:?} {arguments:?}: {text}");
    text
}

#[test]
fn the_script_asks_every_member() {
    let mut settings = MediaSettings::new(vec![member(80), member(8081)]);
    settings.timeout = Duration::from_secs(3);
    let text = script::render(&settings).unwrap();
    let fetches: Vec<&str> = text.lines().filter(|line| line.starts_with("chain")).collect();
    let path = "s/${gw-mac}/${gw-arch}/${gw-uuid}/boot.ipxe ||";
    assert_eq!(
        fetches,
        [
            format!("chain --autofree --timeout 3000 http://10.0.2.2/{path}"),
            format!("chain --autofree --timeout 3000 http://10.0.2.2:8081/{path}")
        ]
    );
    assert!(text.starts_with("#!ipxe\n") && text.contains("\ndhcp || goto failed\n"));
}

#[test]
fn a_fixed_address_in_a_vlan() {
    let mut settings = MediaSettings::new(vec![member(80)]);
    settings.address = Address::Fixed {
        address: Ipv4Addr::new(10, 1, 2, 3),
        prefix: 22,
        gateway: Some(Ipv4Addr::new(10, 1, 0, 1)),
        dns: None,
    };
    settings.vlan = Some(40);
    settings.interface = Some("net1".into());
    let text = script::render(&settings).unwrap();
    let (_, start) = text.split_once(":network\n").unwrap();
    assert!(
        start.starts_with(
            "ifopen net1 || goto failed\n\
             isset ${net1-40/mac} || vcreate --tag 40 net1 || goto no_vlan\n\
             ifopen net1-40 || goto failed\n\
             set net1-40/ip 10.1.2.3\n\
             set net1-40/netmask 255.255.252.0\n\
             set net1-40/gateway 10.1.0.1\n\
             set gw-mac ${net1-40/mac:hexhyp}\n"
        ),
        "{text}"
    );
}

#[test]
fn nothing_gets_into_the_script_that_ipxe_would_expand() {
    let good = MediaSettings::new(vec![member(80)]);
    let mut name = good.clone();
    name.is_secure = true;
    name.members[0].https_name = Some("a.example/${x} || shell".into());
    let interface = MediaSettings { interface: Some("net0 || shell".into()), ..good.clone() };
    let vlan = MediaSettings { vlan: Some(4095), ..good.clone() };
    let nobody = MediaSettings { members: Vec::new(), ..good.clone() };
    let mut plain = MediaSettings { is_secure: true, ..good.clone() };
    plain.members[0].https_port = None;
    for settings in [name, interface, vlan, nobody, plain] {
        assert!(matches!(script::render(&settings), Err(MediaError::Setting { .. })), "{settings:?}");
    }
}

#[test]
fn the_same_settings_give_the_same_bytes() {
    let programs = folder(&[("ipxe.lkrn", kernel()), ("ipxe.efi", program(0x8664, "autoexec.ipxe"))]);
    let settings = settings(&programs);
    let (first, second) = (iso(&settings).unwrap(), iso(&settings).unwrap());
    assert!(first.bytes == second.bytes && first.report.digest == second.report.digest);
    assert!(disk(&settings).unwrap().bytes == disk(&settings).unwrap().bytes);
    let other = MediaSettings { vlan: None, members: vec![member(81)], ..settings };
    assert_ne!(iso(&other).unwrap().report.digest, first.report.digest);
}

#[test]
fn what_a_program_cannot_do_is_refused() {
    let programs = folder(&[("ipxe.efi", program(0x8664, "autoexec.ipxe"))]);
    let good = settings(&programs);
    assert_eq!(iso(&good).unwrap().report.programs, [("ipxe.efi".into(), ScriptDelivery::Autoexec)]);
    let vlan = MediaSettings { vlan: Some(7), ..good.clone() };
    let secure = MediaSettings { is_secure: true, ..good };
    for settings in [vlan, secure] {
        assert!(matches!(iso(&settings), Err(MediaError::Program { .. })));
    }
    let able = folder(&[("ipxe.efi", program(0x8664, "autoexec.ipxe\0vcreate\0https"))]);
    assert!(iso(&MediaSettings { vlan: Some(7), is_secure: true, ..settings(&able) }).is_ok());
    // ARM64 without autoexec.ipxe: there is nothing that could type.
    let old = folder(&[("arm64/ipxe.efi", program(0xaa64, "file"))]);
    assert!(matches!(iso(&settings(&old)), Err(MediaError::Program { .. })));
    let none = folder(&[]);
    assert!(matches!(iso(&settings(&none)), Err(MediaError::NoPrograms { .. })));
    let broken = folder(&[("ipxe.lkrn", vec![0; 4096])]);
    assert!(matches!(iso(&settings(&broken)), Err(MediaError::Program { .. })));
}

#[test]
fn signed_programs_are_laid_out_and_not_touched() {
    let loader = program(0x8664, "autoexec.ipxe");
    let shim = program(0x8664, "shim");
    let programs = folder(&[
        ("x86_64-sb/ipxe.efi", loader.clone()),
        ("x86_64-sb/shimx64.efi", shim.clone()),
        ("arm64/ipxe.efi", program(0xaa64, "autoexec.ipxe")),
        // For a BIOS: not in an EFI tree, and not told as if it were.
        ("ipxe.lkrn", kernel()),
    ]);
    let goal = tempfile::tempdir().unwrap();
    let report = write_esp(&settings(&programs), goal.path()).unwrap();
    assert_eq!(
        report.programs,
        [
            ("x86_64-sb/ipxe.efi".into(), ScriptDelivery::Shim),
            ("arm64/ipxe.efi".into(), ScriptDelivery::Autoexec)
        ]
    );
    let boot = goal.path().join("EFI/BOOT");
    assert_eq!(fs::read(boot.join("BOOTX64.EFI")).unwrap(), shim);
    for name in ["ipxe.efi", "grubx64.efi"] {
        assert_eq!(fs::read(boot.join(name)).unwrap(), loader);
    }
    assert!(boot.join("BOOTAA64.EFI").is_file() && boot.join("autoexec.ipxe").is_file());
    // A second time it is in the delivery; an old loader behind a shim would start nothing.
    assert!(matches!(write_esp(&settings(&programs), goal.path()), Err(MediaError::Exists { .. })));
    assert!(write_esp(&MediaSettings { replaces: true, ..settings(&programs) }, goal.path()).is_ok());
    let old = folder(&[("ipxe.efi", program(0x8664, "file")), ("shimx64.efi", shim)]);
    assert!(matches!(iso(&settings(&old)), Err(MediaError::Program { .. })));
}

#[test]
fn a_file_is_whole_or_not_there() {
    let programs = folder(&[("ipxe.lkrn", kernel())]);
    let mut settings = settings(&programs);
    let goal = tempfile::tempdir().unwrap();
    let path = goal.path().join("boot.iso");
    let report = write_iso(&settings, &path).unwrap();
    assert_eq!(report.size, fs::metadata(&path).unwrap().len());
    assert_eq!(report.notes.len(), 1, "{report:?}");
    assert!(matches!(write_usb(&settings, &path), Err(MediaError::Exists { .. })));
    settings.replaces = true;
    write_usb(&settings, &path).unwrap();
    // Not through a link to a device, nor onto a folder.
    let link = goal.path().join("link");
    std::os::unix::fs::symlink("/dev/null", &link).unwrap();
    assert!(matches!(write_usb(&settings, &link), Err(MediaError::NoFile { .. })));
    assert!(matches!(write_usb(&settings, Path::new("/dev/null")), Err(MediaError::NoFile { .. })));
    let names: Vec<_> = fs::read_dir(goal.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "no temporary file is left: {names:?}");
}

#[test]
fn the_loaders_are_what_their_source_says() {
    let (Some(assembler), Some(linker), Some(copy)) =
        (testing::program("as"), testing::program("ld"), testing::program("objcopy"))
    else {
        return;
    };
    if !cfg!(target_arch = "x86_64") {
        return testing::excuse(testing::Excuse::OtherProcessor);
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let source = |name: &str| format!("{}/src/media/{name}", env!("CARGO_MANIFEST_DIR"));
    run(&assembler, &["--32", "-o", &path("l.o"), &source("loader.S")]);
    let link = ["-m", "elf_i386", "-Ttext", "0x7c00", "-e", "start", "--oformat", "binary", "-o"];
    run(&linker, &[&link[..], &[&path("l.bin"), &path("l.o")]].concat());
    assert!(fs::read(path("l.bin")).unwrap() == loader::ASSEMBLED);
    run(&assembler, &["--64", "-o", &path("t.o"), &source("keystroke_stub.S")]);
    run(&copy, &["-O", "binary", "-j", ".text", &path("t.o"), &path("t.bin")]);
    assert!(fs::read(path("t.bin")).unwrap() == keystroke_stub::ASSEMBLED);
}

#[test]
fn fsck_and_mtools_agree_with_the_file_system() {
    let (Some(fsck), Some(mtype)) = (testing::program("fsck.vfat"), testing::program("mtype")) else {
        return;
    };
    let goal = tempfile::tempdir().unwrap();
    // From next to nothing to more than clusters of 512 bytes can hold.
    for size in [0, 511, 512, 3_000_000, 40_000_000] {
        let file = |path: &str, bytes| fat::File { path: path.into(), bytes };
        let files = [
            file("EFI/BOOT/BOOTX64.EFI", vec![7; size]),
            file("EFI/BOOT/a name of more than thirteen characters.ipxe", b"long\n".to_vec()),
            file("autoexec.ipxe", b"#!ipxe\n".to_vec()),
            file("empty", Vec::new()),
        ];
        let path = goal.path().join("fat.img");
        fs::write(&path, fat::image(&files, 0x1234_abcd).unwrap()).unwrap();
        let path = path.to_str().unwrap();
        let said = run(&fsck, &["-n", "-v", path]);
        assert!(said.contains("16 bit entries"), "{said}");
        assert!(!said.contains("Dirty") && said.contains(" 7 files"), "{said}");
        assert_eq!(run(&mtype, &["-i", path, "::autoexec.ipxe"]), "#!ipxe\n");
        let long = "::EFI/BOOT/a name of more than thirteen characters.ipxe";
        assert_eq!(run(&mtype, &["-i", path, long]), "long\n");
    }
}

#[test]
fn xorriso_finds_what_an_iso_must_have() {
    let Some(xorriso) = testing::program("xorriso") else { return };
    let programs = folder(&[("ipxe.lkrn", kernel()), ("ipxe.efi", program(0x8664, "autoexec.ipxe"))]);
    let goal = tempfile::tempdir().unwrap();
    let path = goal.path().join("boot.iso");
    let mut settings = settings(&programs);
    let authority = rcgen::generate_simple_self_signed(["ca".to_owned()]).unwrap();
    settings.ca = Some(authority.cert.pem().into_bytes());
    write_iso(&settings, &path).unwrap();
    let path = path.to_str().unwrap();
    let said = run(&xorriso, &["-indev", path, "-report_el_torito", "plain", "-report_system_area", "plain"]);
    let images: Vec<Vec<&str>> = said
        .lines()
        .filter(|line| line.starts_with("El Torito boot img"))
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(images.len(), 2, "{said}");
    assert!(images[0].contains(&"BIOS") && images[1].contains(&"UEFI"), "{said}");
    assert!(
        said.lines().any(|line| line.starts_with("MBR partition") && line.contains("0x80  0xef")),
        "{said}"
    );
    // Every file comes out as it went in, and the EFI image is a sound file system.
    let out = goal.path().join("out");
    run(&xorriso, &["-osirrox", "on", "-indev", path, "-extract", "/", out.to_str().unwrap()]);
    let script = fs::read_to_string(out.join("autoexec.ipxe"))
        .or_else(|_| fs::read_to_string(out.join("AUTOEXEC.IPXE")));
    assert_eq!(script.unwrap(), script::render(&settings).unwrap());
    let efi =
        ["efi.img", "EFI.IMG"].map(|name| out.join(name)).into_iter().find(|path| path.is_file()).unwrap();
    if let Some(fsck) = testing::program("fsck.vfat") {
        run(&fsck, &["-n", efi.to_str().unwrap()]);
    }
}

#[test]
fn mtools_finds_the_partition_of_a_disk_image() {
    let Some(mtype) = testing::program("mtype") else { return };
    let programs = folder(&[("ipxe.lkrn", kernel()), ("ipxe.efi", program(0x8664, "autoexec.ipxe"))]);
    let goal = tempfile::tempdir().unwrap();
    let path = goal.path().join("boot.img");
    write_usb(&settings(&programs), &path).unwrap();
    let partition = format!("{}@@1M", path.display());
    let script = run(&mtype, &["-i", &partition, "::EFI/BOOT/autoexec.ipxe"]);
    assert_eq!(script, script::render(&settings(&programs)).unwrap());
    if let Some(sfdisk) = testing::program("sfdisk") {
        run(&sfdisk, &["--verify", path.to_str().unwrap()]);
    }
}

/// Firmware for a guest.
#[derive(Clone, Copy)]
enum Board {
    Bios,
    Uefi,
}

/// Answers every request with a script that says where it runs; gives the port, and each path as it is asked for.
fn boot_server() -> (u16, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, paths) = mpsc::channel();
    goldwire_stdx::spawn("test", move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            let mut request = String::new();
            stream.read_line(&mut request).unwrap();
            let mut line = String::new();
            while stream.read_line(&mut line).is_ok_and(|length| length > 2) {
                line.clear();
            }
            let body = "#!ipxe\necho MARK ${net0/ip}\nsleep 1\nreboot\n";
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            let _ = stream.get_mut().write_all((head + body).as_bytes());
            if sender.send(request).is_err() {
                break;
            }
        }
    })
    .unwrap();
    (port, paths)
}

/// Boots a machine from a medium whose first boot server is dead; gives what the second was asked for and the serial
/// console. None if something is not installed.
fn boots(board: Board, is_iso: bool, is_stick: bool, address: Address) -> Option<(String, String)> {
    const LIMIT: Duration = Duration::from_secs(400);
    let qemu = testing::program("qemu-system-x86_64")?;
    let (code, variables) = testing::uefi()?;
    if !testing::file(PROGRAMS) {
        return None;
    }
    // A port that nobody listens on any more refuses.
    let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (port, paths) = boot_server();
    let mut settings = MediaSettings::new(vec![member(dead), member(port)]);
    settings.address = address;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("medium");
    if is_iso { write_iso(&settings, &path) } else { write_usb(&settings, &path) }.unwrap();
    let mut command = Command::new(qemu);
    command.args("-accel tcg -m 256 -nodefaults -display none -no-reboot -serial stdio".split(' '));
    command.args("-netdev user,id=n0 -device virtio-net-pci,netdev=n0,romfile=".split(' '));
    match board {
        Board::Bios => command.args(["-M", "pc,graphics=off"]),
        Board::Uefi => {
            let store = folder.path().join("variables");
            fs::copy(variables, &store).unwrap();
            command.args(
                "-M q35 -object rng-random,filename=/dev/urandom,id=rng -device virtio-rng-pci,rng=rng"
                    .split(' '),
            );
            command.args([
                "-drive",
                &format!("if=pflash,format=raw,unit=0,readonly=on,file={}", code.display()),
            ]);
            command.args(["-drive", &format!("if=pflash,format=raw,unit=1,file={}", store.display())])
        }
    };
    let drive = format!("if=none,id=d,format=raw,readonly=on,file={}", path.display());
    command.args(["-drive", &drive]);
    match (is_stick, board) {
        (false, Board::Bios) => command.args(["-device", "ide-cd,drive=d,bootindex=0"]),
        (false, Board::Uefi) => command.args(["-device", "ide-cd,drive=d,bus=ide.0,bootindex=0"]),
        (true, _) => command.args(["-device", "qemu-xhci", "-device", "usb-storage,drive=d,bootindex=0"]),
    };
    let mut guest =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
    let mut console = guest.stdout.take().unwrap();
    let reader = goldwire_stdx::spawn("test", move || {
        let mut bytes = Vec::new();
        let _ = console.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
    .unwrap();
    // The script ends the guest; what hangs is ended here.
    let start = Instant::now();
    goldwire_stdx::testing::until("the guest ends", || {
        if start.elapsed() > LIMIT {
            let _ = guest.kill();
        }
        guest.try_wait().unwrap().is_some()
    });
    let console = reader.join().unwrap();
    let asked = paths.try_iter().collect::<Vec<_>>().concat();
    assert!(console.contains(&format!("goldwire: http://10.0.2.2:{dead}")), "{console}");
    Some((asked, console))
}

#[track_caller]
fn check(board: Board, is_iso: bool, is_stick: bool) {
    let Some((asked, console)) = boots(board, is_iso, is_stick, Address::Dhcp) else { return };
    let arch = if matches!(board, Board::Bios) { "bios" } else { "efi-x64" };
    assert!(asked.starts_with(&format!("GET /s/52-54-00-12-34-56/{arch}/")), "{asked}\n{console}");
    assert!(console.contains("MARK 10.0.2.15"), "{console}");
}

#[test]
fn seabios_boots_the_iso_from_a_drive() {
    check(Board::Bios, true, false);
}

#[test]
fn seabios_boots_the_iso_from_a_stick() {
    check(Board::Bios, true, true);
}

#[test]
fn seabios_boots_the_disk_image() {
    check(Board::Bios, false, true);
}

#[test]
fn ovmf_boots_the_iso_from_a_drive() {
    check(Board::Uefi, true, false);
}

#[test]
fn ovmf_boots_the_iso_from_a_stick() {
    check(Board::Uefi, true, true);
}

#[test]
fn ovmf_boots_the_disk_image() {
    check(Board::Uefi, false, true);
}

#[test]
fn a_fixed_address_needs_no_dhcp() {
    let address = Address::Fixed {
        address: Ipv4Addr::new(10, 0, 2, 77),
        prefix: 24,
        gateway: Some(Ipv4Addr::new(10, 0, 2, 2)),
        dns: None,
    };
    let Some((asked, console)) = boots(Board::Bios, false, true, address) else { return };
    assert!(asked.starts_with("GET /s/") && console.contains("MARK 10.0.2.77"), "{asked}\n{console}");
    assert!(!console.contains("Configuring"), "{console}");
}
