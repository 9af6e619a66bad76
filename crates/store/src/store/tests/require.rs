//! A store that takes only what one key signed.

use super::*;
use crate::version::{PublicKey, SecretKey};

fn key(number: u8) -> SecretKey {
    SecretKey::from_random([number; 32])
}

/// The key of the store, and a key of somebody else.
const OURS: u8 = 1;
const THEIRS: u8 = 2;

/// A version that is to come: its content, who signs it, and when it was created.
#[derive(Clone, Copy, Debug)]
struct Coming {
    content: u64,
    signer: Option<u8>,
    created: i64,
}

/// How it comes.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// From an image here.
    Publish,
    /// Over the wire, looked at before its chunks are asked for, as an honest target does.
    Receive,
    /// Over the wire, by a target that looks at nothing before the end.
    ReceiveBlindly,
    /// Named, if its content is here.
    Name,
}

impl Coming {
    fn descriptor(self, scene: &Scene) -> (Vec<u8>, TreeFile, Version, Vec<u8>) {
        let content = disk(self.content, 4 + self.content as usize, 1 << 40);
        let (tree, version) = scene.tree(&content);
        let version = Version { created: self.created, ..version };
        let descriptor = version.encode(self.signer.map(key).as_ref()).unwrap();
        (content, tree, Version::decode(&descriptor).unwrap(), descriptor)
    }

    fn come(self, scene: &Scene, image: &str, way: Way) -> StoreResult<Root> {
        let (content, tree, version, descriptor) = self.descriptor(scene);
        let (store, root) = (&scene.store, version.root);
        let device = MemDevice::with_content(content.clone());
        let progress = Progress::default();
        match way {
            Way::Publish => {
                let incoming = Incoming {
                    device: &device,
                    tree: &tree,
                    version: &version,
                    descriptor: &descriptor,
                    twin: None,
                };
                store.publish(image, None, &incoming, &options(&progress))?;
                return Ok(root);
            }
            Way::Receive => store.check_naming(image, None, &version)?,
            Way::ReceiveBlindly | Way::Name => {}
        }
        if store.has(&root)? || matches!(way, Way::Name) {
            store.name_version(image, None, &version, &descriptor)?;
            return Ok(root);
        }
        let reception = Reception::begin(store, &version)?;
        let (empty, _) = reception.tree()?;
        for level in 0..tree.shape().levels() {
            empty.set_ids(level, 0, &tree.ids(level, 0..tree.shape().count(level))?)?;
        }
        reception.lay_out(&empty, None, &options(&progress), |_| ())?;
        let mut chunks = content;
        chunks.resize(chunks.len().next_multiple_of(CHUNK_SIZE), 0);
        for (index, chunk) in chunks.chunks_exact(CHUNK_SIZE).enumerate() {
            if chunk.iter().any(|byte| *byte != 0) {
                reception.write(index as u64, chunk)?;
            }
        }
        assert_eq!(reception.read_back(&options(&progress))?.0, root);
        reception.publish(image, None, &descriptor)?;
        Ok(root)
    }
}

/// The rule once more, by plain facts: which images have which contents, and what is kept of these.
#[derive(Debug, Default)]
struct Model {
    required: bool,
    images: BTreeMap<String, Vec<u64>>,
    kept: BTreeMap<u64, Coming>,
}

impl Model {
    /// Whether it may come; if so it is noted.
    fn take(&mut self, image: &str, coming: Coming, way: Way) -> bool {
        let here = self.kept.get(&coming.content).copied();
        if matches!(way, Way::Name) && here.is_none() {
            return false;
        }
        let stays = here.filter(|kept| kept.signer.is_some()).unwrap_or(coming);
        let versions = self.images.entry(image.into()).or_default();
        let ours = |coming: &Coming| coming.signer == Some(OURS);
        let newer = versions.iter().map(|content| self.kept[content]).filter(ours).filter(|kept| {
            kept.content != coming.content && kept.created > coming.created.min(stays.created)
        });
        let may_come = !self.required || ours(&coming) && ours(&stays) && newer.count() == 0;
        if may_come {
            self.kept.insert(coming.content, stays);
            if !versions.contains(&coming.content) {
                versions.push(coming.content);
            }
        }
        may_come
    }
}

fn coming() -> impl Strategy<Value = Coming> {
    let signer = prop_oneof![1 => Just(None), 1 => Just(Some(THEIRS)), 4 => Just(Some(OURS))];
    (0_u64..5, signer, 0_i64..6).prop_map(|(content, signer, created)| Coming { content, signer, created })
}

fn way() -> impl Strategy<Value = Way> {
    prop_oneof![Just(Way::Publish), Just(Way::Receive), Just(Way::ReceiveBlindly), Just(Way::Name)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases(24)))]

    /// Every way in, of unsigned, foreign, older and right versions in any order, before and after the key is required:
    /// what the rule refuses leaves no name and no version, and what it takes is there under the signature.
    #[test]
    fn no_way_leads_around_the_required_key(
        steps in proptest::collection::vec((coming(), 0_u8..2, way()), 1..14), from in 0_usize..6,
    ) {
        let scene = Scene::new();
        let mut model = Model::default();
        for (number, (coming, image, way)) in steps.into_iter().enumerate() {
            if number == from {
                scene.store.require(Some(&key(OURS).public())).unwrap();
                model.required = true;
            }
            let image = format!("image{image}");
            let may_come = model.take(&image, coming, way);
            match coming.come(&scene, &image, way) {
                Ok(root) => {
                    prop_assert!(may_come, "{coming:?} came by {way:?}");
                    let (version, _) = scene.store.describe(&root).unwrap();
                    let stays = model.kept[&coming.content];
                    prop_assert_eq!(version.signer, stays.signer.map(|number| key(number).public()));
                }
                Err(StoreError::NotSigned { .. } | StoreError::SignedByAnother { .. } | StoreError::Older { .. }) => {
                    prop_assert!(!may_come, "{coming:?} was kept out by {way:?}");
                }
                Err(StoreError::Unknown { .. }) if matches!(way, Way::Name) => prop_assert!(!may_come),
                Err(error) => panic!("{coming:?} by {way:?}: {error}"),
            }
            let named = scene.store.image(&image).unwrap().unwrap_or_default().versions.len();
            prop_assert_eq!(named, model.images.get(&image).map_or(0, Vec::len));
            prop_assert_eq!(scene.store.versions().unwrap().len(), model.kept.len());
        }
        prop_assert_eq!(scene.check().problems, vec![]);
    }
}

const RIGHT: Coming = Coming { content: 1, signer: Some(OURS), created: 5 };

/// Cut, flipped, gone or a link: nothing comes in, what is here is read, and the check says it.
#[test]
fn a_damaged_requirement_takes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::init_requiring(&folder.path().join("store"), &key(OURS).public()).unwrap();
    let scene = Scene { folder, store: Arc::new(store) };
    let root = RIGHT.come(&scene, "a", Way::Receive).unwrap();
    let path = scene.store.path().join("require");
    let whole = std::fs::read(&path).unwrap();
    let mut damages: Vec<Option<Vec<u8>>> =
        (0..whole.len()).map(|length| Some(whole[..length].to_vec())).collect();
    damages.extend((0..whole.len() * 8).map(|bit| {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        Some(bytes)
    }));
    damages.extend([Some([&whole[..], &[0]].concat()), None]);
    let (content, tree, version, descriptor) =
        Coming { content: 2, signer: Some(OURS), created: 9 }.descriptor(&scene);
    let device = MemDevice::with_content(content);
    let incoming =
        Incoming { device: &device, tree: &tree, version: &version, descriptor: &descriptor, twin: None };
    for damage in &damages {
        match damage {
            Some(bytes) => std::fs::write(&path, bytes).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }
        let store = Arc::new(Store::open(scene.store.path()).unwrap());
        for store in [&store, &scene.store] {
            let refused = store.publish("a", None, &incoming, &options(&Progress::default()));
            assert!(
                matches!(refused, Err(StoreError::Corrupt { .. } | StoreError::File { .. })),
                "{damage:?}: {refused:?}"
            );
            assert!(store.name_version("b", None, &version, &descriptor).is_err());
        }
        store.version(&root).unwrap();
    }
    assert_eq!(scene.check().problems.len(), 1, "that of the requirement");
    std::os::unix::fs::symlink("format", &path).unwrap();
    assert!(scene.store.check_naming("a", None, &version).is_err());
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, &whole).unwrap();
    scene.store.publish("a", None, &incoming, &options(&Progress::default())).unwrap();
}

/// Programs that know nothing of it open no such store: its `format` is of a layout that they refuse. Set, changed, lifted;
/// also by others while the store is open; and cut between the steps of that it still holds.
#[test]
fn a_requirement_is_set_and_lifted_beside_open_stores() {
    let scene = Scene::new();
    let layout = || std::fs::read(scene.store.path().join("format")).unwrap()[8];
    let foreign = Coming { content: 1, signer: Some(THEIRS), created: 0 };
    let other = Store::open(scene.store.path()).unwrap();
    assert_eq!((layout(), scene.store.required().unwrap()), (1, None));
    other.require(Some(&key(OURS).public())).unwrap();
    assert_eq!((layout(), scene.store.required().unwrap()), (2, Some(key(OURS).public())));
    assert_eq!(Store::open(scene.store.path()).unwrap().uuid(), scene.store.uuid());
    assert!(foreign.come(&scene, "a", Way::Publish).is_err());
    other.require(Some(&key(THEIRS).public())).unwrap();
    foreign.come(&scene, "a", Way::Publish).unwrap();
    let format = scene.store.path().join("format");
    let (requiring, uuid) = (std::fs::read(&format).unwrap(), scene.store.uuid());
    std::fs::write(&format, format_of(uuid, false)).unwrap();
    assert_eq!(scene.store.required().unwrap(), Some(key(THEIRS).public()), "cut between two steps");
    std::fs::write(&format, requiring).unwrap();
    other.require(None).unwrap();
    assert_eq!((layout(), scene.store.required().unwrap()), (1, None));
    Coming { signer: None, content: 2, created: 0 }.come(&scene, "a", Way::Publish).unwrap();
    assert!(!scene.store.path().join("require").exists());
    assert!(matches!(scene.store.check_names("require", None), Err(StoreError::Name { .. })));
}

/// What is refused says what to do about it.
#[test]
fn a_refusal_says_who_signed_and_what_to_do() {
    use goldwire_stdx::Hints;
    let scene = Scene::new();
    let ours: PublicKey = key(OURS).public();
    RIGHT.come(&scene, "a", Way::Publish).unwrap();
    scene.store.require(Some(&ours)).unwrap();
    let refused = |coming: Coming| {
        let error = coming.come(&scene, "a", Way::Receive).unwrap_err();
        (error.to_string(), error.hints().join("\n"))
    };
    let (text, hint) = refused(Coming { signer: None, content: 2, created: 9 });
    assert!(
        text.contains(&ours.to_string()) && text.contains("signed by nobody") && hint.contains("--sign KEY")
    );
    let (text, _) = refused(Coming { signer: Some(THEIRS), content: 2, created: 9 });
    assert!(text.contains(&format!("signed by {}", key(THEIRS).public())), "{text}");
    let (text, hint) = refused(Coming { content: 2, created: 4, ..RIGHT });
    assert!(text.contains("created later") && hint.contains("rollback") && !hint.contains("--allow-older"));
}
