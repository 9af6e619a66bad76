//! What a path asks for: text ⇄ [`Asked`]. Pure, total and bounded; nothing here touches a file.

use goldwire_stdx::Uuid;

use super::medium::MediumName;
use super::token::Token;
use super::url_builder::{Digest, script_path};
use crate::device::{Architecture, Device, Firmware, Mac};

/// Longest path. Firmware holds 255 characters of URL at most; the rest is room for deep trees.
pub(super) const LENGTH_MAX: usize = 1024;
/// Longest part between slashes: what Linux file systems hold.
const COMPONENT_MAX: usize = 255;
/// Most parts.
const COMPONENTS_MAX: usize = 32;
/// The script that iPXE ≥ 2.0 fetches by itself from the folder it was loaded from.
pub(super) const AUTOEXEC: &str = "autoexec.ipxe";

/// What is asked for, and the token that came with it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Asked {
    pub(super) token: Option<Token>,
    /// The path below the token, in one spelling: what a token signs.
    pub(super) path: String,
    pub(super) what: Named,
}

/// What a path names.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Named {
    /// A file of the boot tree.
    File(String),
    /// The same, if it has this content.
    Pinned(Digest, String),
    /// The script of a device.
    Script(Box<Device>),
    /// A boot medium.
    Medium(MediumName),
}

/// Why a text is no path below a boot tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadPath {
    #[error("the name is too long")]
    Long,
    #[error("the name is not UTF-8")]
    NotText,
    #[error("there are control characters in the name")]
    Control,
    #[error("the name leads out of the tree")]
    LeadsOut,
    #[error("the name is of something hidden")]
    Hidden,
    #[error("the name is empty")]
    Empty,
}

/// The parts of a path, however a client spells it: with backslashes, leading, doubled or no slashes, `.` in between.
fn parts(path: &str) -> Vec<&str> {
    path.split(['/', '\\']).filter(|part| !matches!(*part, "" | ".")).collect()
}

/// The one spelling of a path, wherever it leads.
pub(crate) fn one_spelling(path: &str) -> String {
    parts(path).join("/")
}

/// The one spelling of a path that names something below a tree: nothing that leads out, is hidden, has control characters
/// or breaks a limit. What case means and which links may be followed is not decided here.
pub(crate) fn clean(path: &str) -> Result<String, BadPath> {
    if path.len() > LENGTH_MAX {
        return Err(BadPath::Long);
    }
    if path.chars().any(char::is_control) {
        return Err(BadPath::Control);
    }
    let parts = parts(path);
    if parts.len() > COMPONENTS_MAX || parts.iter().any(|part| part.len() > COMPONENT_MAX) {
        return Err(BadPath::Long);
    }
    if parts.contains(&"..") {
        return Err(BadPath::LeadsOut);
    }
    if parts.iter().any(|part| part.starts_with('.')) {
        return Err(BadPath::Hidden);
    }
    if parts.is_empty() { Err(BadPath::Empty) } else { Ok(parts.join("/")) }
}

/// Reads a path; nothing for what [`clean`] refuses, and for what is none of our forms below a reserved name.
pub(super) fn parse(path: &str) -> Option<Asked> {
    let path = clean(path).ok()?;
    match path.split('/').collect::<Vec<_>>().as_slice() {
        ["t" | "T", token, below @ ..] if !below.is_empty() && !matches!(below[0], "t" | "T") => {
            // A token that cannot be read is a token that is not good, as is one that is missing.
            Some(Asked { token: token.parse().ok(), path: below.join("/"), what: name(below)? })
        }
        parts => Some(Asked { token: None, path: path.clone(), what: name(parts)? }),
    }
}

fn name(parts: &[&str]) -> Option<Named> {
    match parts {
        // Below the file that named it: the only way for a script to name the server that it came from.
        [.., file, "s" | "S", mac, arch, uuid, "boot.ipxe"] if file.eq_ignore_ascii_case(AUTOEXEC) => {
            name(&["s", mac, arch, uuid, "boot.ipxe"])
        }
        ["c" | "C", digest, name @ ..] if !name.is_empty() => {
            Some(Named::Pinned(Digest(goldwire_stdx::from_hex(digest)?), name.join("/")))
        }
        ["s" | "S", mac, arch, uuid, "boot.ipxe"] => {
            let mut device = Device::new(known(mac, |text| text.parse::<Mac>().ok())?, Firmware::Ipxe);
            device.arch = known(arch, architecture)?;
            // A machine without one says zeros or ones (SMBIOS 3.6, 7.2.1), or nothing.
            device.uuid = known(uuid, |text| text.parse::<Uuid>().ok())?
                .filter(|uuid| uuid.0 != [0; 16] && uuid.0 != [0xff; 16]);
            Some(Named::Script(Box::new(device)))
        }
        ["m" | "M", "goldwire.iso"] => Some(Named::Medium(MediumName::Iso)),
        ["m" | "M", "goldwire.img"] => Some(Named::Medium(MediumName::Disk)),
        // Reserved, whatever follows.
        ["c" | "C" | "m" | "M" | "s" | "S" | "t" | "T", _, ..] => None,
        parts => Some(Named::File(parts.join("/"))),
    }
}

/// The device that a path names: whose script it is, or for whom its token was made. Anybody can ask for any path, so
/// this says what happened and decides nothing.
pub(crate) fn mac_in(path: &str) -> Option<Mac> {
    let asked = parse(path)?;
    match &asked.what {
        Named::Script(device) if device.mac.is_some() => device.mac,
        _ => asked.token.and_then(|token| token.mac()),
    }
}

/// The script's path in its own spelling.
pub(super) fn canonical_script(device: &Device) -> String {
    script_path(device)
}

/// `-` is nothing known; what cannot be read is no path.
fn known<T>(text: &str, read: impl Fn(&str) -> Option<T>) -> Option<Option<T>> {
    if text == "-" { Some(None) } else { read(text).map(Some) }
}

/// One of our names, or iPXE's `${platform}-${buildarch}`.
fn architecture(text: &str) -> Option<Architecture> {
    let name = match text {
        "pcbios-i386" | "pcbios-x86_64" => "bios",
        "efi-i386" => "efi-ia32",
        "efi-x86_64" => "efi-x64",
        "efi-arm" => "efi-arm32",
        "efi-loong64" => "efi-loongarch64",
        other => other,
    };
    Architecture::from_name(name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(path: &str) -> Option<String> {
        match parse(path)?.what {
            Named::File(name) => Some(name),
            _ => None,
        }
    }

    #[test]
    fn one_file_in_every_spelling() {
        for path in
            ["a/b.efi", "/a/b.efi", "//a///b.efi", "\\a\\b.efi", "a\\/b.efi", "./a/./b.efi", "a/b.efi/"]
        {
            assert_eq!(file(path).as_deref(), Some("a/b.efi"), "{path}");
        }
    }

    #[test]
    fn ways_out_are_no_paths() {
        let long = "x".repeat(COMPONENT_MAX + 1);
        let deep = "x/".repeat(COMPONENTS_MAX + 1);
        let paths = [
            "",
            "/",
            ".",
            "..",
            "../a",
            "a/..",
            "a/../b",
            "..\\a",
            "a\\..\\..\\b",
            "/../a",
            "a/...",
            ".hidden",
            "a/.git/config",
            "a\0b",
            "a\nb",
            "a\u{7f}b",
            &long,
            &deep,
            "t/..//a",
            "c/../a",
        ];
        for path in paths {
            assert_eq!(parse(path), None, "{path:?}");
        }
        for (path, reason) in [
            ("/", BadPath::Empty),
            ("a/../.b", BadPath::LeadsOut),
            ("a/.git/config", BadPath::Hidden),
            ("..\n", BadPath::Control),
            (&deep, BadPath::Long),
        ] {
            assert_eq!(clean(path), Err(reason), "{path:?}");
        }
    }

    #[test]
    fn scripts_of_devices() {
        let script = |path: &str| match parse(path)?.what {
            Named::Script(device) => Some(canonical_script(&device)),
            _ => None,
        };
        let own = "s/52-54-00-12-34-56/efi-x64/01234567-89ab-cdef-0123-456789000001/boot.ipxe";
        assert_eq!(script(own).as_deref(), Some(own));
        let of_ipxe = "/s/52-54-00-12-34-56/efi-x86_64/01234567-89ab-cdef-0123-456789000001/boot.ipxe";
        assert_eq!(script(of_ipxe).as_deref(), Some(own));
        assert_eq!(script("s/-/-/-/boot.ipxe").as_deref(), Some("s/-/-/-/boot.ipxe"));
        let of_autoexec = format!("a/autoexec.ipxe/{own}");
        assert_eq!(script(&of_autoexec).as_deref(), Some(own));
        assert_eq!(script(&format!("t/x/a/AUTOEXEC.ipxe/{own}")).as_deref(), Some(own));
        assert_eq!(script(&format!("a/other.ipxe/{own}")), None);
        let zeros = "s/-/pcbios-i386/00000000-0000-0000-0000-000000000000/boot.ipxe";
        assert_eq!(script(zeros).as_deref(), Some("s/-/bios/-/boot.ipxe"));
        for path in ["s/x/-/-/boot.ipxe", "s/-/what/-/boot.ipxe", "s/-/-/-/other", "s/-/-/boot.ipxe", "s/a"] {
            assert_eq!(parse(path), None, "{path}");
        }
        assert_eq!(file("s").as_deref(), Some("s"));
    }

    #[test]
    fn the_device_that_a_path_names() {
        let own = Some(Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]));
        assert_eq!(mac_in("/s/52-54-00-12-34-56/efi-x64/-/boot.ipxe"), own);
        // A token: when it ends, the MAC address, the tag.
        let token = format!("{}525400123456{}", "0".repeat(8), "f".repeat(32));
        assert_eq!(mac_in(&format!("t/{token}/linux/vmlinuz")), own);
        assert_eq!(mac_in(&format!("t/{token}/s/-/-/-/boot.ipxe")), own);
        for path in ["linux/vmlinuz", "s/-/-/-/boot.ipxe", "s/52-54/-/-/boot.ipxe", "t/x/linux", ".."] {
            assert_eq!(mac_in(path), None, "{path}");
        }
    }

    #[test]
    fn media_and_nothing_else_below_their_name() {
        for (path, name) in [("m/goldwire.iso", MediumName::Iso), ("/M//goldwire.img", MediumName::Disk)] {
            assert_eq!(parse(path).map(|asked| asked.what), Some(Named::Medium(name)), "{path}");
        }
        for path in ["m/other.iso", "m/goldwire.iso/x", "m/a/goldwire.iso"] {
            assert_eq!(parse(path), None, "{path}");
        }
        assert_eq!(file("m").as_deref(), Some("m"));
        assert_eq!(file("media/goldwire.iso").as_deref(), Some("media/goldwire.iso"));
    }

    #[test]
    fn pinned_and_signed() {
        let digest = "00112233445566778899aabbccddeeff";
        let Some(Asked { what: Named::Pinned(pinned, name), token: None, .. }) =
            parse(&format!("c/{digest}/a/b"))
        else {
            panic!("not pinned")
        };
        assert_eq!((pinned.to_string().as_str(), name.as_str()), (digest, "a/b"));
        assert_eq!(parse("c/00/a"), None);
        let asked = parse(&format!("t/{}//c/{digest}/a", "0".repeat(52))).unwrap();
        assert!(asked.token.is_some() && asked.path == format!("c/{digest}/a"));
        assert_eq!(parse("t/x/a").map(|asked| (asked.token, asked.path)), Some((None, "a".into())));
        assert_eq!(parse("t/x/t/x/a"), None);
    }

    proptest! {
        #[test]
        fn no_spelling_leads_out(path in "([./\\\\a-cmst]|\\.\\.|é|\u{0}){0,24}") {
            if let Some(asked) = parse(&path) {
                let name = match asked.what {
                    Named::File(name) | Named::Pinned(_, name) => name,
                    Named::Script(_) | Named::Medium(_) => return Ok(()),
                };
                prop_assert!(name.split('/').all(|part| !part.is_empty() && !part.starts_with('.')));
                prop_assert!(!name.contains(['\0', '\\']));
            }
        }
    }
}
