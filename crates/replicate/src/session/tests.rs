//! What a target is asked for, and what is believed of what it says.

use super::inbox::inbox;
use super::*;
use crate::install::Agents;
use crate::job::Route;
use crate::wire::Counters;
use goldwire_store::Root;

fn version() -> Version {
    Version {
        root: Root([7; 32]),
        size: 1 << 20,
        chunks_used: 1,
        created: 0,
        parent: None,
        name: "win11.raw".into(),
        note: String::new(),
        signer: None,
    }
}

fn with_session<T>(job: &SyncJob, work: impl FnOnce(&Session<'_>) -> T) -> T {
    let throttle = Arc::new(Throttle::default());
    let peers = Peers::new(Arc::clone(&throttle));
    work(&Session { job, peers: &peers, throttle, observe: &|_| () })
}

fn job() -> SyncJob {
    let agents = Agents { local: Vec::new(), programs: Vec::new(), echo_stderr: false };
    let place = |text: &str| text.parse().unwrap();
    SyncJob::new(place("evil:/images/win11.raw"), vec![place("sr/"), place("host:/sr/")], agents)
}

/// Whatever root a target claims, only the one that was asked for is success.
#[test]
fn a_target_that_holds_something_else_has_not_done_it() {
    for (root, is_right) in [([7; 32], true), ([0; 32], false), ([8; 32], false)] {
        let (said, events) = inbox();
        let outcome = Outcome { path: "p".into(), root, counters: Counters::default(), already_there: true };
        said.put(Event::Phase(crate::wire::Phase::Comparing));
        said.put(Event::Done(outcome));
        let finished = with_session(&job(), |session| session.finished(0, &events, &version()));
        assert_eq!(finished.is_ok(), is_right, "{finished:?}");
    }
}

/// The file name, and the bits beyond permissions, are never the source's choice.
#[test]
fn a_target_is_asked_for_what_the_user_wrote() {
    let image = Candidate {
        path: "/images/win11.raw".into(),
        format: "raw".into(),
        size: 0,
        file_length: 0,
        uuid: None,
        hidden: false,
        has_parent: false,
        modified: 0,
        created: None,
    };
    let ready = SourceReady {
        version: Vec::new(),
        other_descriptor: None,
        format: crate::wire::WireFormat::Raw,
        name: "payroll.raw".into(),
        mode: 0o6777,
        tree_was_cached: false,
    };
    let asked = |job: &SyncJob| with_session(job, |session| session.target_job(0, &image, &ready, b"d"));
    let plain = TargetJob {
        path: "sr/".into(),
        name: "win11.raw".into(),
        is_name_given: false,
        must_be_store: false,
        version: b"d".to_vec(),
        required: None,
        format: None,
        source_format: crate::wire::WireFormat::Raw,
        seeds: Vec::new(),
        find_seeds: true,
        replace: false,
        dry_run: false,
        mode: None,
        source_mode: 0o777,
        owner: None,
        wait_seconds: 0,
        // 64 MiB for two are more than one may have.
        window_bytes: 24 << 20,
        threads: None,
    };
    assert_eq!(asked(&job()), plain);
    let mut named = job();
    named.write.name = Some("{uuid}.vhd".into());
    let expected = TargetJob { name: "{uuid}.vhd".into(), is_name_given: true, ..plain.clone() };
    assert_eq!(asked(&named), expected, "the target knows its folder");
    let mut many = job();
    many.targets = vec![many.targets[0].clone(); 8];
    assert_eq!(asked(&many).window_bytes, 8 << 20);
    many.targets = vec![many.targets[0].clone(); 800];
    assert_eq!(asked(&many).window_bytes, 4 << 20);
    let mut signed = job();
    let key = goldwire_store::SecretKey::from_random([1; 32]).public();
    signed.trust.require_signature = Some(key);
    for (older, may_be_older) in [(Older::Refuse, false), (Older::Allow, true)] {
        signed.trust.older = older;
        let required = RequiredSignature { signer: *key.as_bytes(), may_be_older };
        assert_eq!(asked(&signed).required, Some(required));
    }
    let mut seeded = job();
    for (seeds, named, find_seeds) in [
        (Seeds::Named(vec!["/old".into()]), vec!["/old".to_owned()], false),
        (Seeds::Without, Vec::new(), false),
    ] {
        seeded.seeds = seeds;
        assert_eq!((asked(&seeded).seeds, asked(&seeded).find_seeds), (named, find_seeds));
    }
}

/// What goes to the targets is the source's descriptor, byte for byte, or one that we made and may make.
#[test]
fn a_descriptor_is_passed_on_signed_anew_or_refused() {
    use goldwire_store::SecretKey;
    let [ours, theirs] = [1, 2].map(|seed| SecretKey::from_random([seed; 32]));
    let ready = |key: Option<&SecretKey>| SourceReady {
        version: Version { note: "old".into(), ..version() }.encode(key).unwrap(),
        other_descriptor: None,
        format: crate::wire::WireFormat::Raw,
        name: "payroll.raw".into(),
        mode: 0,
        tree_was_cached: false,
    };
    let described = |job: &SyncJob, key: Option<&SecretKey>| {
        let ready = ready(key);
        with_session(job, |session| session.describe(&ready)).map(|(version, bytes)| {
            assert_eq!(Version::decode(&bytes).unwrap(), version);
            let is_as_it_came = bytes == ready.version;
            (version.note, version.signer, is_as_it_came)
        })
    };
    let old = || "old".to_owned();
    assert_eq!(described(&job(), None), Ok((old(), None, true)));
    assert_eq!(described(&job(), Some(&theirs)), Ok((old(), Some(theirs.public()), true)));

    let mut requiring = job();
    requiring.trust.require_signature = Some(theirs.public());
    assert!(described(&requiring, Some(&theirs)).is_ok());
    for (key, who) in [(None, "nobody".to_owned()), (Some(&ours), ours.public().to_string())] {
        let refused = described(&requiring, key).unwrap_err().to_string();
        assert!(refused.contains(&format!("signed by {who}")), "{refused}");
    }
    let changed = SourceReady { other_descriptor: Some("/x/.goldwire/versions/a.gwv".into()), ..ready(None) };
    let refused = with_session(&requiring, |session| session.describe(&changed)).unwrap_err().to_string();
    let root = version().root;
    let says = format!("the content, root {root}, is not what /x/.goldwire/versions/a.gwv describes");
    assert!(refused.contains(&says), "{refused}");
    assert!(!refused.contains("nobody") && refused.contains("--sign"), "{refused}");
    requiring.trust.require_name = Some("win11.raw".into());
    assert!(described(&requiring, Some(&theirs)).is_ok());
    requiring.trust.require_name = Some("win10.raw".into());
    assert!(described(&requiring, Some(&theirs)).unwrap_err().to_string().contains("not \"win10.raw\""));

    let mut noting = job();
    noting.write.note = Some("new".into());
    assert_eq!(described(&noting, None), Ok(("new".into(), None, false)));
    assert!(described(&noting, Some(&theirs)).unwrap_err().to_string().contains("would undo"));
    noting.trust.sign = Some(SecretKey::from_random([1; 32]));
    assert_eq!(described(&noting, Some(&theirs)), Ok(("new".into(), Some(ours.public()), false)));
    noting.write.note = None;
    assert_eq!(described(&noting, None), Ok((old(), Some(ours.public()), false)));
    noting.write.note = Some("x".repeat(5000));
    assert!(described(&noting, None).is_err());

    let damaged = SourceReady { version: b"GWVERS".to_vec(), ..ready(None) };
    assert!(with_session(&job(), |session| session.describe(&damaged)).is_err());
}

#[test]
fn with_a_required_signature_nothing_goes_by_way_of_the_source() {
    let mut job = job();
    job.trust.require_signature = Some(goldwire_store::SecretKey::from_random([1; 32]).public());
    job.reach.route = Route::Direct;
    let (sent, received) = std::io::pipe().unwrap();
    let connection = Connection::start(sent, received, Arc::new(Throttle::default()), |_| ()).unwrap();
    let server = Arc::new(RemoteServer::new(connection.clone()));
    let shared: Arc<dyn Server> = server.clone();
    let source =
        Source { connection, process: Process::none(), server, events: inbox().1, streams: Arc::default() };
    let refused = with_session(&job, |session| session.reach_target(1, &source, &shared).err());
    assert!(refused.unwrap().to_string().contains("--route relay"));
}
