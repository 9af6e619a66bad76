//! With our own HTTP and TFTP servers as members.

use super::member::content;
use super::*;
use crate::content::{Body, Content, ContentError, Contents, Digest, Requester};
use crate::event::{NoopObserver, Stage};
use crate::{http, tftp};

/// One file under every name.
struct OneFile(Arc<[u8]>);

impl Contents for OneFile {
    fn open(&self, _path: &str, _asker: &Requester) -> Result<Content, ContentError> {
        Ok(Content {
            body: Body::Memory(Arc::clone(&self.0)),
            length: self.0.len() as u64,
            digest: Some(Digest([7; 16])),
            media_type: "application/octet-stream",
            modified: None,
            stage: Stage::Kernel,
        })
    }
}

fn http_member(contents: &Arc<OneFile>, observer: Arc<dyn Observer>) -> http::Running {
    let settings = http::Settings {
        listeners: vec![http::Listener::plain("127.0.0.1:0".parse().unwrap())],
        ..http::Settings::default()
    };
    let contents = Arc::clone(contents) as Arc<dyn Contents>;
    http::bind(settings, contents, observer, Arc::default()).unwrap().run().unwrap()
}

#[test]
fn a_member_that_is_killed_in_the_middle_of_a_download_is_not_missed() {
    if !has("curl", "--version") {
        return;
    }
    let contents = Arc::new(OneFile(content(32 << 20).into()));
    let rest = Arc::new(Seen::default());
    let first = http_member(&contents, Arc::new(NoopObserver));
    let second = http_member(&contents, Arc::clone(&rest) as _);
    let front = front_of(&[(first.addresses()[0], 0), (second.addresses()[0], 0)], |_| {});
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("got");
    let mut curl = Command::new("curl")
        .args(["-sSf", "--max-time", "120", "--limit-rate", "8M", &front.url("/f"), "-o"])
        .arg(&target)
        .spawn()
        .unwrap();
    goldwire_stdx::testing::until("the download runs", || {
        assert!(curl.try_wait().unwrap().is_none(), "curl has ended");
        std::fs::metadata(&target).is_ok_and(|file| file.len() >= 1 << 20)
    });
    first.stop(Duration::ZERO);
    assert!(curl.wait().unwrap().success());
    assert!(std::fs::read(&target).unwrap() == contents.0[..], "other bytes");
    assert_eq!(front.seen.lines(1), ["/f 33554432 complete"]);
    // The second one sent the end of it, and only that.
    let rest = rest.lines(1);
    let bytes: u64 = rest[0].split(' ').nth(1).unwrap().parse().unwrap();
    assert!(0 < bytes && bytes < 32 << 20, "{rest:?}");
    second.stop(Duration::ZERO);
}

#[test]
fn our_tftp_server_is_reached_in_both_its_modes() {
    if !has("curl", "--version") {
        return;
    }
    let contents = Arc::new(OneFile(content(300_000).into()));
    for mode in [tftp::Mode::SinglePort, tftp::Mode::PortPerTransfer] {
        let settings = tftp::Settings {
            listen: vec!["127.0.0.1:0".parse().unwrap()],
            clients: tftp::Clients { mode, ..tftp::Clients::default() },
            ..tftp::Settings::default()
        };
        let context = tftp::Context {
            fitness: Arc::default(),
            contents: Arc::clone(&contents) as _,
            observer: Arc::new(NoopObserver),
            mac_of: Arc::new(|_| None),
        };
        let member = tftp::bind(settings).unwrap().run(context).unwrap();
        let http: SocketAddr = "127.0.0.1:9".parse().unwrap();
        let front = front_of(&[(http, member.addresses()[0].port())], |_| {});
        let url = format!("tftp://{}/f", front.tftp());
        assert!(curl(&["--tftp-blksize", "1400", &url]) == (0, contents.0.to_vec()), "{mode:?}");
        assert_eq!(front.seen.lines(1), ["f 300000 complete"]);
        member.stop();
    }
}
