//! A server put together from a boot file on loopback ports.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::*;
use crate::boot;

struct Scene {
    folder: tempfile::TempDir,
    port: u16,
}

impl Scene {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("root")).unwrap();
        fs::write(folder.path().join("root/system"), "a kernel").unwrap();
        // A port that is free now; another test that takes it meanwhile is met by trying again.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Self { folder, port }
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("boot.toml")
    }

    fn write(&self, rest: &str) {
        let text = format!(
            "default-profile = \"a\"\n[server]\nname = \"m\"\nroot = \"root\"\nstate = \"{state}\"\n\
             [http]\nlisten = [\"127.0.0.1:{port}\"]\n[tftp]\nlisten = []\n[dhcp]\nmode = \"off\"\n\
             [[member]]\nname = \"m\"\naddress = \"127.0.0.1\"\nhttp-port = {port}\n{rest}",
            state = self.folder.path().join("state").display(),
            port = self.port,
        );
        fs::write(self.config(), text).unwrap();
    }

    fn start(&self) -> Running {
        let loaded = boot::load(&self.config()).unwrap();
        StateFolder::prepare(&loaded.settings, None).unwrap();
        Bound::bind(loaded).unwrap().start(&self.config()).unwrap()
    }

    fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], self.port))).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }
}

const PROFILE_A: &str = "[profile.a]\nkernel = \"system\"\narguments = \"one\"\n";

#[test]
fn it_serves_what_its_boot_file_says_and_takes_a_new_one_over() {
    let scene = Scene::new();
    scene.write(PROFILE_A);
    let running = scene.start();
    assert_eq!(running.name(), "m");
    assert!(scene.get("/system").ends_with("a kernel"));
    assert!(scene.get("/health").contains("200"));
    let script = "/s/52-54-00-12-34-56/bios/-/boot.ipxe";
    assert!(scene.get(script).contains("one"), "{}", scene.get(script));
    scene.write("[profile.a]\nkernel = \"system\"\narguments = \"two\"\n");
    running.reload();
    assert!(scene.get(script).contains("two"), "{}", scene.get(script));
    // A wrong file changes nothing.
    fs::write(scene.config(), "default-profile = 7").unwrap();
    running.reload();
    assert!(scene.get(script).contains("two"));
    assert!(scene.folder.path().join("state/timeline.jsonl").is_file());
    running.stop();
}

#[test]
fn a_second_server_on_one_state_folder_is_refused_and_binding_opens_nothing_there() {
    let scene = Scene::new();
    scene.write(PROFILE_A);
    let loaded = boot::load(&scene.config()).unwrap();
    StateFolder::prepare(&loaded.settings, None).unwrap();
    let bound = Bound::bind(loaded).unwrap();
    let state = scene.folder.path().join("state");
    assert_eq!(fs::read_dir(&state).unwrap().count(), 0, "root may still be root");
    let other = Scene::new();
    other.write(PROFILE_A);
    let text = fs::read_to_string(other.config()).unwrap();
    let own = other.folder.path().join("state").display().to_string();
    fs::write(other.config(), text.replace(&own, &state.display().to_string())).unwrap();
    let running = bound.start(&scene.config()).unwrap();
    let second = Bound::bind(boot::load(&other.config()).unwrap()).unwrap();
    let refused = second.start(&other.config()).err().unwrap();
    assert!(refused.to_string().contains("another server uses the state folder"), "{refused}");
    running.stop();
}

/// It was told that ports below 1024 need root: the cause was the same, and what it was about was not looked at.
#[test]
fn a_key_that_may_not_be_read_is_not_taken_for_a_port() {
    let denied = || std::io::Error::from(ErrorKind::PermissionDenied);
    let key = http::TlsError::Read { path: "/a/k.pem".into(), source: denied() };
    let report = explained(BindError::Tls(key));
    assert!(report.hints.len() == 1 && report.hints[0].contains("chgrp"), "{report}");
    let port = BindError::Listen { for_what: "for HTTP on 0.0.0.0:80".into(), port: 80, source: denied() };
    assert!(explained(port).hints[0].starts_with("ports below 1024"));
}

#[test]
fn a_port_that_is_taken_is_told_with_a_hint() {
    let scene = Scene::new();
    scene.write(PROFILE_A);
    let _taken = TcpListener::bind(("127.0.0.1", scene.port)).unwrap();
    let loaded = boot::load(&scene.config()).unwrap();
    let refused = Bound::bind(loaded).err().unwrap();
    assert!(refused.hints.iter().any(|hint| hint.contains("ss -tulpn")), "{refused}");
}

#[test]
fn a_stop_ends_everything_within_its_patience() {
    let scene = Scene::new();
    scene.write(PROFILE_A);
    let running = scene.start();
    let began = Instant::now();
    running.stop();
    assert!(began.elapsed() < PATIENCE + FAREWELL + Duration::from_secs(5));
    assert!(TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], scene.port))).is_err());
    assert!(Path::new(&scene.config()).exists());
}
