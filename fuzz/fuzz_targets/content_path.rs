//! Paths that anybody may ask a library for, by HTTP or TFTP. Whatever their spelling, nothing outside the folders is
//! opened, nothing hidden, nothing that the policy denies.
#![no_main]

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use goldwire_netboot::content::{
    Body, ContentError, Contents, Library, LibrarySettings, Requester, TokenKey, UrlBuilder,
};
use goldwire_netboot::{Action, Boot, BootPolicy, Decision, Device, Mac, Member, Proof, Protocol, What};
use libfuzzer_sys::fuzz_target;

const OPEN: &[u8] = b"for everybody";
const SIGNED: &[u8] = b"for who has a token";
const SECRET: &[u8] = b"for nobody";

/// Wants a token below `signed/`, and denies `secret/`.
struct Policy;

impl BootPolicy for Policy {
    fn decide(&self, _device: &Device) -> Decision {
        let boot = Boot {
            profile: "fuzz".into(),
            what: What::File("a/b.efi".into()),
            members: vec![Member {
                name: "a".into(),
                address: [10, 0, 0, 1].into(),
                http_port: 80,
                https_port: None,
                https_name: None,
            }],
            is_secure: false,
            has_token: true,
            root_path: None,
            host_name: None,
        };
        Decision { rule: "fuzz".into(), action: Action::Boot(Box::new(boot)) }
    }

    fn may_fetch(&self, path: &str, _address: IpAddr, _mac: Option<Mac>, proof: Proof) -> bool {
        assert!(!path.starts_with('/') && !path.split('/').any(|part| matches!(part, "" | "." | "..")));
        !path.starts_with("secret/") && (proof == Proof::Token || !path.starts_with("signed/"))
    }
}

static LIBRARY: LazyLock<Library> = LazyLock::new(|| {
    let around = std::env::temp_dir().join(format!("content-path-{}", std::process::id()));
    let root = around.join("root");
    let write = |path: PathBuf, bytes: &[u8]| {
        fs::create_dir_all(path.parent().expect("a file has a folder")).expect("make a folder");
        fs::write(path, bytes).expect("write a file");
    };
    write(root.join("a/b.efi"), OPEN);
    write(root.join("Boot/BCD"), OPEN);
    write(root.join("signed/a"), SIGNED);
    for path in ["outside", "root/.hidden", "root/secret/a", "root/Boot/.a", "extra/.a"] {
        write(around.join(path), SECRET);
    }
    write(around.join("extra/a"), OPEN);
    symlink("../outside", root.join("out")).expect("make a link");
    symlink(&around, root.join("up")).expect("make a link");
    symlink("a", root.join("in")).expect("make a link");
    let settings =
        LibrarySettings { root, extra: vec![("x".into(), around.join("extra"))], fitness: Arc::default() };
    let urls = UrlBuilder::new(TokenKey::from_secret(b"fuzz"), Duration::from_secs(600));
    Library::open(&settings, Arc::new(Policy), urls).expect("open the folders")
});

fuzz_target!(|input: &[u8]| {
    let Ok(path) = std::str::from_utf8(input) else { return };
    let requester =
        Requester { address: Ipv4Addr::new(10, 0, 0, 7).into(), mac: None, protocol: Protocol::Http };
    match LIBRARY.open(path, &requester) {
        Ok(content) => {
            let mut bytes = vec![0; content.length as usize];
            assert_eq!(content.read_at(&mut bytes, 0).expect("it can be read"), bytes.len());
            match content.body {
                // Nobody here holds a good token.
                Body::File(_) => assert_eq!(bytes, OPEN, "{path:?}"),
                Body::Memory(_) => assert!(bytes.starts_with(b"#!ipxe\n"), "{path:?}"),
            }
        }
        // A name cannot make the disk fail.
        Err(ContentError::Failed { source, .. }) => panic!("{path:?}: {source}"),
        Err(_) => {}
    }
});
