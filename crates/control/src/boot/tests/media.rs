//! The table `[media]`.

use super::*;

/// A folder with as much of iPXE's programs as can be told apart: a PE file for x86-64 that knows `autoexec.ipxe`.
fn programs() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut program = vec![0; 0x50];
    program[0x3c] = 0x40;
    program[0x40..0x46].copy_from_slice(b"PE\0\0\x64\x86");
    program.extend_from_slice(b"\0autoexec.ipxe\0");
    fs::write(folder.path().join("ipxe.efi"), program).unwrap();
    folder
}

#[test]
fn media_are_served_if_the_table_is_there() {
    let folder = programs();
    let read = |table: &str| {
        let text = format!("{MEMBER}[server]\nipxe = \"{}\"\n{table}", folder.path().display());
        parse(&text, &folder.path().join("boot.toml")).unwrap_or_else(|problems| panic!("{problems}"))
    };
    let without = read("");
    assert!(!without.settings.media.is_served);
    assert_eq!(without.settings.medium().programs, folder.path());
    assert!(!without.warnings.to_string().contains("media"), "{}", without.warnings);
    let certificate = rcgen::generate_simple_self_signed(["ca".to_owned()]).unwrap().cert.pem();
    fs::write(folder.path().join("ca.pem"), &certificate).unwrap();
    let with = read("[media]\nvlan = 7\ntrust = \"ca.pem\"\nprograms = \"none\"\n");
    let medium = with.settings.medium();
    assert!(with.settings.media.is_served);
    assert_eq!((medium.vlan, medium.ca.as_deref()), (Some(7), Some(certificate.as_bytes())));
    assert_eq!(medium.programs, folder.path().join("none"));
    assert_eq!(medium.members.len(), 1);
}

#[test]
fn missing_programs_of_media_are_told() {
    let folder = programs();
    let warnings = |place: &str| {
        let text = format!("{MEMBER}[media]\nprograms = \"{place}\"\n");
        let loaded = parse(&text, &folder.path().join("boot.toml")).unwrap();
        let about = loaded.warnings.list.into_iter().filter(|problem| problem.message.contains("boot media"));
        about
            .map(|problem| (problem.message, problem.hint.unwrap(), problem.place.unwrap().line))
            .collect::<Vec<_>>()
    };
    let hint = "install the package ipxe, or name the folder with its programs as media.programs";
    let here = folder.path().display();
    let none = format!(
        "boot media cannot be made and are not served: no iPXE in {here}/none: neither ipxe.lkrn (BIOS) nor ipxe.efi (UEFI)"
    );
    assert_eq!(warnings("none"), [(none, hint.into(), 4)]);
    let half = format!("no ipxe.lkrn in {here}/.: boot media do not boot on a BIOS");
    assert_eq!(warnings("."), [(half, hint.into(), 4)]);
}

#[test]
fn media_that_cannot_be_are_errors() {
    let folder = programs();
    fs::write(folder.path().join("large"), vec![b'x'; (64 << 10) + 1]).unwrap();
    fs::write(folder.path().join("text"), "not a certificate").unwrap();
    for (table, error) in [
        ("vlan = 4095", "a VLAN has a tag from 1 to 4094"),
        ("secure = true", "boot media: a has no https-port and shall be asked by https"),
        ("trust = \"large\"", "it has more than 64.0 KiB"),
        ("trust = \"text\"", "it is no certificate in PEM or DER form"),
        ("iso = true", "unknown key \"iso\""),
    ] {
        let text = format!("{MEMBER}[server]\nipxe = \".\"\n[media]\n{table}\n");
        let problems = parse(&text, &folder.path().join("boot.toml")).unwrap_err();
        let errors: Vec<_> =
            problems.list.iter().filter(|problem| problem.severity == Severity::Error).collect();
        assert!(errors.len() == 1 && errors[0].message.ends_with(error), "{problems}");
        assert_eq!(errors[0].place.as_ref().unwrap().line, if table.starts_with("secure") { 6 } else { 7 });
    }
}

#[test]
fn a_medium_can_be_a_profiles_file() {
    let profile = "[profile.p]\nfiles = { http-x64 = \"m/goldwire.iso\" }\n";
    let warnings = |text: &str| {
        let loaded = parse(text, Path::new("boot.toml")).unwrap();
        loaded.warnings.list.into_iter().map(|problem| problem.message).collect::<Vec<_>>()
    };
    let complaint = "m/goldwire.iso is a boot medium, and none is served";
    assert!(warnings(&format!("{MEMBER}{profile}")).contains(&complaint.to_owned()));
    let served = warnings(&format!("{MEMBER}{profile}[media]\n"));
    assert!(!served.iter().any(|message| message.contains("m/goldwire.iso")), "{served:?}");
}
