//! What an image's versions are called: channels, tags, and what channels named before.
//! A text file whose last line proves the rest; layout in `docs/store-format.md`.

use std::fmt::Write as _;
use std::path::Path;

use goldwire_stdx::from_hex;

use super::{Store, StoreError, StoreResult};
use crate::tree::Root;

/// The label of the version that came last. It cannot be moved.
pub const LATEST: &str = "latest";

const HEADER: &str = "goldwire-image-1";
const LENGTH_MAX: u64 = 4 << 20;
const VERSIONS_MAX: usize = 10_000;
const LABELS_MAX: usize = 1000;
const NAME_MAX: usize = 64;
/// What a channel named before is kept so many times.
const MOVED_MAX: usize = 64;

/// A version of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageVersion {
    /// The version.
    pub root: Root,
    /// When it came here, seconds since 1970.
    pub since: i64,
}

/// A name that can be moved from version to version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Channel {
    /// Its name.
    pub name: String,
    /// The version that it names from `since` on.
    pub root: Root,
    /// From when on, seconds since 1970. Until then, and until the version is here, it names what it named before.
    pub since: i64,
}

/// What a channel named before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// The channel.
    pub channel: String,
    /// The version that it named.
    pub root: Root,
    /// Until when, seconds since 1970.
    pub until: i64,
}

/// The names of an image's versions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageNames {
    /// The versions, in the order in which they came.
    pub versions: Vec<ImageVersion>,
    /// Names that stay, with their versions.
    pub tags: Vec<(String, Root)>,
    /// Names that move.
    pub channels: Vec<Channel>,
    /// What channels named before, oldest first.
    pub moved: Vec<Moved>,
}

impl ImageNames {
    /// The version of a label at a time, seconds since 1970.
    pub fn find(&self, label: &str, at: i64) -> Option<Root> {
        if label == LATEST {
            return self.versions.last().map(|version| version.root);
        }
        let tag = self.tags.iter().find(|(name, _)| name == label).map(|(_, root)| *root);
        tag.or_else(|| self.served(label, at))
    }

    /// The version that a channel names at a time: what it was moved to, or before that time comes, and before that version
    /// does, what it named before.
    pub fn served(&self, channel: &str, at: i64) -> Option<Root> {
        let moved_to = self.channels.iter().find(|moved| moved.name == channel)?;
        if !self.is_pending(moved_to, at) {
            return Some(moved_to.root);
        }
        self.moved.iter().rev().find(|moved| moved.channel == channel).map(|moved| moved.root)
    }

    /// Whether a channel, at a time, does not name yet what it was moved to.
    fn is_pending(&self, channel: &Channel, at: i64) -> bool {
        channel.since > at || !self.has(&channel.root)
    }

    /// Whether the version is one of the image's here.
    pub fn has(&self, root: &Root) -> bool {
        self.versions.iter().any(|version| version.root == *root)
    }

    /// All labels that name a version here.
    pub fn labels(&self) -> Vec<String> {
        let tags = self.tags.iter().map(|(name, _)| name.clone());
        let channels = self.channels.iter().map(|channel| channel.name.clone());
        let mut labels: Vec<String> = tags.chain(channels).collect();
        labels.sort_unstable();
        labels.push(LATEST.to_owned());
        labels
    }

    /// Notes that a version came. One that is here already stays where it is in the order.
    ///
    /// # Errors
    /// `TooMuch`.
    pub(crate) fn add(&mut self, root: Root, since: i64) -> StoreResult<()> {
        if self.versions.iter().any(|version| version.root == root) {
            return Ok(());
        }
        if self.versions.len() >= VERSIONS_MAX {
            return Err(too_many(VERSIONS_MAX, "versions"));
        }
        self.versions.push(ImageVersion { root, since });
        Ok(())
    }

    /// Moves a channel, or makes it. `since` may be a time that, at `now`, is to come.
    ///
    /// # Errors
    /// `Name`, `TooMuch`, `Unknown` for a version that is not the image's.
    pub fn move_channel(&mut self, name: &str, root: Root, since: i64, now: i64) -> StoreResult<()> {
        self.check_here(root)?;
        self.await_version(name, root, since, now)
    }

    /// As [`move_channel`](Self::move_channel), of a version that need not be here yet: until it comes, the channel names
    /// what it named before.
    ///
    /// # Errors
    /// `Name`, `TooMuch`.
    pub fn await_version(&mut self, name: &str, root: Root, since: i64, now: i64) -> StoreResult<()> {
        check_label(name, "a channel")?;
        if self.tags.iter().any(|(tag, _)| tag == name) {
            return Err(bad_name(name, "a channel", "a tag has it"));
        }
        let served = self.served(name, now);
        let was_pending =
            self.channels.iter().any(|channel| channel.name == name && self.is_pending(channel, now));
        // It names that already, and goes on to: what was to come is forgotten.
        let since = if served == Some(root) { since.min(now) } else { since };
        let is_full = self.channels.len() >= LABELS_MAX;
        match self.channels.iter_mut().find(|channel| channel.name == name) {
            Some(channel) => (channel.root, channel.since) = (root, since),
            None if is_full => return Err(too_many(LABELS_MAX, "channels")),
            None => self.channels.push(Channel { name: name.to_owned(), root, since }),
        }
        // A move that never came about is forgotten: only what was named is kept.
        if was_pending && let Some(at) = self.moved.iter().rposition(|moved| moved.channel == name) {
            self.moved.remove(at);
        }
        if let Some(before) = served.filter(|before| *before != root) {
            let until = since.max(now);
            self.moved.push(Moved { channel: name.to_owned(), root: before, until });
        }
        let kept = self.moved.iter().filter(|moved| moved.channel == name).count();
        let mut surplus = kept.saturating_sub(MOVED_MAX);
        self.moved.retain(|moved| {
            let is_surplus = moved.channel == name && surplus > 0;
            surplus -= usize::from(is_surplus);
            !is_surplus
        });
        Ok(())
    }

    /// Moves a channel back to what it named before, and says what that is; a channel that names nothing yet goes.
    ///
    /// # Errors
    /// `Unknown` if there is no such channel, or it named nothing else.
    pub fn roll_back(&mut self, name: &str, now: i64) -> StoreResult<Option<Root>> {
        let unknown = |name: String| StoreError::Unknown { name, candidates: Vec::new() };
        if !self.channels.iter().any(|channel| channel.name == name) {
            return Err(unknown(format!("channel {name}")));
        }
        let Some(served) = self.served(name, now) else {
            self.channels.retain(|channel| channel.name != name);
            return Ok(None);
        };
        let is_pending =
            self.channels.iter().any(|channel| channel.name == name && self.is_pending(channel, now));
        let at = self.moved.iter().rposition(|moved| moved.channel == name);
        let before = match at {
            // What was to come is taken back; what is served stays.
            Some(at) if is_pending => {
                self.moved.remove(at);
                served
            }
            Some(at) => self.moved.remove(at).root,
            None => return Err(unknown(format!("an older version of channel {name}"))),
        };
        if let Some(channel) = self.channels.iter_mut().find(|channel| channel.name == name) {
            (channel.root, channel.since) = (before, now);
        }
        Ok(Some(before))
    }

    /// Takes a channel away, with what it named before, and says what it named last.
    ///
    /// # Errors
    /// `Unknown` if there is no such channel.
    pub fn remove_channel(&mut self, name: &str) -> StoreResult<Root> {
        let at = self.channels.iter().position(|channel| channel.name == name);
        let candidates = || self.channels.iter().map(|channel| channel.name.clone()).collect();
        let at = at.ok_or_else(|| StoreError::Unknown {
            name: format!("channel {name}"),
            candidates: candidates(),
        })?;
        self.moved.retain(|moved| moved.channel != name);
        Ok(self.channels.remove(at).root)
    }

    /// Takes a tag away, and says what it named.
    ///
    /// # Errors
    /// `Unknown` if there is no such tag.
    pub fn remove_tag(&mut self, name: &str) -> StoreResult<Root> {
        let at = self.tags.iter().position(|(tag, _)| tag == name);
        let candidates = || self.tags.iter().map(|(tag, _)| tag.clone()).collect();
        let at =
            at.ok_or_else(|| StoreError::Unknown { name: format!("tag {name}"), candidates: candidates() })?;
        Ok(self.tags.remove(at).1)
    }

    /// Gives a version a name that stays.
    ///
    /// # Errors
    /// `Name` if it is taken, `TooMuch`, `Unknown`.
    pub fn tag(&mut self, name: &str, root: Root) -> StoreResult<()> {
        check_label(name, "a tag")?;
        self.check_here(root)?;
        match self.tags.iter().find(|(tag, _)| tag == name) {
            Some((_, tagged)) if *tagged == root => return Ok(()),
            Some(_) => return Err(bad_name(name, "a tag", "another version has it, and a tag never moves")),
            None => {}
        }
        if self.channels.iter().any(|channel| channel.name == name) {
            return Err(bad_name(name, "a tag", "a channel has it"));
        }
        if self.tags.len() >= LABELS_MAX {
            return Err(too_many(LABELS_MAX, "tags"));
        }
        self.tags.push((name.to_owned(), root));
        Ok(())
    }

    /// Whether a tag or a channel names the version, now or from a time on.
    pub fn is_named(&self, root: &Root, now: i64) -> bool {
        self.tags.iter().any(|(_, tagged)| tagged == root)
            || self
                .channels
                .iter()
                .any(|channel| channel.root == *root || self.served(&channel.name, now) == Some(*root))
    }

    /// Whether a channel would name the version after a rollback.
    pub fn is_before(&self, root: &Root) -> bool {
        let before = |channel: &Channel| self.moved.iter().rev().find(|moved| moved.channel == channel.name);
        self.channels.iter().filter_map(before).any(|before| before.root == *root)
    }

    /// Forgets a version, and that channels once named it.
    pub(super) fn forget(&mut self, root: &Root) {
        self.versions.retain(|version| version.root != *root);
        self.moved.retain(|moved| moved.root != *root);
    }

    fn check_here(&self, root: Root) -> StoreResult<()> {
        if self.has(&root) {
            return Ok(());
        }
        let name = format!("version {root} of the image");
        Err(StoreError::Unknown { name, candidates: Vec::new() })
    }

    /// The file's text.
    pub(crate) fn encode(&self) -> String {
        let mut text = format!("{HEADER}\n");
        // Writing to a string cannot fail.
        for version in &self.versions {
            let _ = writeln!(text, "version {} {}", version.root, version.since);
        }
        for (name, root) in &self.tags {
            let _ = writeln!(text, "tag {name} {root}");
        }
        for channel in &self.channels {
            let _ = writeln!(text, "channel {} {} {}", channel.name, channel.root, channel.since);
        }
        for moved in &self.moved {
            let _ = writeln!(text, "moved {} {} {}", moved.channel, moved.root, moved.until);
        }
        let digest = blake3::hash(text.as_bytes()).to_hex();
        let _ = writeln!(text, "blake3 {digest}");
        text
    }

    /// Reads the file's text.
    pub(crate) fn decode(bytes: &[u8], path: &Path) -> StoreResult<Self> {
        let bad = |at: usize, why: &str| StoreError::corrupt(path, "line", at as u64, why);
        let text = std::str::from_utf8(bytes).map_err(|error| bad(error.valid_up_to(), "it is not UTF-8"))?;
        let end = text.rfind("blake3 ").ok_or_else(|| bad(text.len(), "the digest is missing"))?;
        if text[end..] != format!("blake3 {}\n", blake3::hash(&bytes[..end]).to_hex()) {
            return Err(bad(end, "the digest does not fit what stands before it"));
        }
        let mut names = Self::default();
        let mut at = 0;
        for line in text[..end].split_inclusive('\n') {
            let words: Vec<&str> = line.trim_end_matches('\n').split(' ').collect();
            let root = |text: &str| from_hex(text).map(Root).ok_or_else(|| bad(at, "it names no version"));
            let time = |text: &str| text.parse::<i64>().map_err(|_| bad(at, "it names no time"));
            match words[..] {
                _ if at == 0 => {
                    if line.trim_end_matches('\n') != HEADER {
                        return Err(bad(0, "made by a newer goldwire, or something else"));
                    }
                }
                ["version", version, since] => {
                    names.versions.push(ImageVersion { root: root(version)?, since: time(since)? });
                }
                ["tag", name, version] => names.tags.push((name.to_owned(), root(version)?)),
                ["channel", name, version, since] => {
                    let (root, since) = (root(version)?, time(since)?);
                    names.channels.push(Channel { name: name.to_owned(), root, since });
                }
                ["moved", name, version, until] => {
                    let (root, until) = (root(version)?, time(until)?);
                    names.moved.push(Moved { channel: name.to_owned(), root, until });
                }
                _ => return Err(bad(at, "it is none that we know")),
            }
            at += line.len();
        }
        let labels = names.tags.iter().map(|(name, _)| name).chain(names.channels.iter().map(|c| &c.name));
        if labels.clone().any(|name| check_name(name, "a label").is_err()) {
            return Err(bad(0, "a channel or tag has a name that none can have"));
        }
        let is_too_much = names.versions.len() > VERSIONS_MAX
            || names.tags.len() > LABELS_MAX
            || names.channels.len() > LABELS_MAX
            || names.moved.len() > LABELS_MAX * MOVED_MAX;
        if is_too_much {
            return Err(bad(0, "it has more than goldwire writes"));
        }
        Ok(names)
    }
}

impl Store {
    /// The names of all images, sorted.
    ///
    /// # Errors
    /// `File`.
    pub fn images(&self) -> StoreResult<Vec<String>> {
        let entries = Self::entries(&self.images)?;
        let names = entries.into_iter().filter_map(|name| name.into_string().ok());
        let mut names: Vec<String> = names.filter(|name| check_image(name).is_ok()).collect();
        names.sort_unstable();
        Ok(names)
    }

    /// What the image's versions are called; `None` if there is no such image, or can be none.
    ///
    /// # Errors
    /// `Corrupt`, `File`.
    pub fn image(&self, name: &str) -> StoreResult<Option<ImageNames>> {
        if check_image(name).is_err() {
            return Ok(None);
        }
        let path = self.images.path().join(name);
        let bytes = self.images.read_bounded(name, LENGTH_MAX).map_err(StoreError::file("read", &path))?;
        bytes.map(|bytes| ImageNames::decode(&bytes, &path)).transpose()
    }

    /// Changes what an image's versions are called, under the writers' lock, by names and the time that it is (seconds since
    /// 1970). The image is made if there is none.
    ///
    /// # Errors
    /// `Name`, `Corrupt`, `File`; those of `change`, after which nothing is changed.
    pub fn rename<T>(
        &self,
        image: &str,
        change: impl FnOnce(&mut ImageNames, i64) -> StoreResult<T>,
    ) -> StoreResult<T> {
        check_image(image)?;
        let _lock = self.lock()?;
        let before = self.image(image)?;
        let mut names = before.clone().unwrap_or_default();
        let done = change(&mut names, now())?;
        if before.as_ref() != Some(&names) {
            self.write_names(image, &names)?;
        }
        Ok(done)
    }

    /// Writes an image's names. The caller holds the lock.
    pub(super) fn write_names(&self, image: &str, names: &ImageNames) -> StoreResult<()> {
        let path = self.images.path().join(image);
        if names.versions.is_empty() {
            let gone = self.images.remove_file(image).and_then(|()| self.images.sync());
            return gone.map_err(StoreError::file("remove", &path));
        }
        let done = self.images.replace(image, names.encode().as_bytes(), 0o644);
        done.map_err(StoreError::file("write", &path))
    }
}

/// Refuses what cannot name an image, a channel or a tag. Names are file names, parts of URLs and words of a command line.
pub(super) fn check_name(name: &str, what: &'static str) -> StoreResult<()> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let why = match name.as_bytes() {
        [] => "it is empty",
        bytes if bytes.len() > NAME_MAX => "it has more than 64 characters",
        [first, ..] if !first.is_ascii_alphanumeric() => "it does not begin with a letter or digit",
        bytes if !bytes.iter().copied().all(is_plain) => "only a-z, A-Z, 0-9 and . _ - may stand in it",
        _ => return Ok(()),
    };
    Err(bad_name(name, what, why))
}

/// Refuses what cannot name an image: `STORE/IMAGE` is a version, and must not be what else lies in a store.
pub(super) fn check_image(name: &str) -> StoreResult<()> {
    check_name(name, "an image")?;
    match super::ENTRIES.contains(&name) {
        true => Err(bad_name(name, "an image", "a store has a file or folder of that name")),
        false => Ok(()),
    }
}

fn check_label(name: &str, what: &'static str) -> StoreResult<()> {
    check_name(name, what)?;
    match name {
        LATEST => Err(bad_name(name, what, "it is always the version that came last")),
        _ => Ok(()),
    }
}

fn bad_name(name: &str, what: &'static str, why: &'static str) -> StoreError {
    StoreError::Name { name: name.to_owned(), what, why }
}

fn too_many(most: usize, what: &str) -> StoreError {
    StoreError::TooMuch { what: format!("an image has at most {most} {what}") }
}

/// Seconds since 1970.
pub(super) fn now() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs() as i64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: i64 = 1_796_000_000;

    fn names_of(count: u8) -> ImageNames {
        let mut names = ImageNames::default();
        for number in 1..=count {
            names.add(Root([number; 32]), number.into()).unwrap();
        }
        names
    }

    #[test]
    fn a_channel_moves_and_comes_back() {
        let mut names = names_of(3);
        let [one, two, three] = [1, 2, 3].map(|number| Root([number; 32]));
        names.move_channel("test", one, 10, NOW).unwrap();
        names.move_channel("test", two, 20, NOW).unwrap();
        names.move_channel("test", three, 30, NOW).unwrap();
        assert_eq!(names.find("test", NOW), Some(three));
        assert_eq!(names.roll_back("test", NOW).unwrap(), Some(two));
        assert_eq!(names.roll_back("test", NOW).unwrap(), Some(one));
        assert!(names.roll_back("test", NOW).is_err());
        assert_eq!(names.find("test", NOW), Some(one));
        assert_eq!(names.find("latest", NOW), Some(three));
        assert!(names.move_channel("latest", one, 0, NOW).is_err());
        assert!(names.move_channel("test", Root([9; 32]), 0, NOW).is_err());
    }

    /// Until its time comes a channel names what it named; a move that was to come can be taken back.
    #[test]
    fn a_move_waits_for_its_time() {
        let mut names = names_of(3);
        let [one, two, three] = [1, 2, 3].map(|number| Root([number; 32]));
        names.move_channel("production", one, 0, NOW).unwrap();
        let later = NOW + 1000;
        names.move_channel("production", two, later, NOW).unwrap();
        assert_eq!(names.find("production", NOW), Some(one));
        assert_eq!(names.served("production", later), Some(two));
        names.move_channel("production", three, later, NOW).unwrap();
        assert_eq!(names.find("production", NOW), Some(one), "{names:?}");
        assert_eq!(names.roll_back("production", NOW).unwrap(), Some(one));
        assert_eq!(names.served("production", later), Some(one));
        // The first move of a new channel names nothing until then.
        names.move_channel("new", two, later, NOW).unwrap();
        assert_eq!((names.find("new", NOW), names.served("new", later)), (None, Some(two)));
        assert_eq!(names.roll_back("new", NOW).unwrap(), None);
        assert!(names.channels.iter().all(|channel| channel.name != "new"));
        // To name later what it names already changes nothing, whatever was to come.
        names.move_channel("production", two, later, NOW).unwrap();
        names.move_channel("production", one, later + 5, NOW).unwrap();
        assert_eq!(
            (names.find("production", NOW), names.served("production", later + 9)),
            (Some(one), Some(one))
        );
    }

    /// A channel that is moved to what is not here names what it did until that comes, and then moves by itself.
    #[test]
    fn a_channel_waits_for_its_version() {
        let mut names = names_of(2);
        let [one, two, three, four] = [1, 2, 3, 4].map(|number| Root([number; 32]));
        names.move_channel("test", one, 10, NOW).unwrap();
        names.move_channel("test", two, 20, NOW).unwrap();
        assert!(names.move_channel("test", three, 30, NOW).is_err());
        for root in [three, four, three, three] {
            names.await_version("test", root, 30, NOW).unwrap();
            assert_eq!(names.find("test", NOW + 100), Some(two));
        }
        assert!(names.is_named(&two, NOW) && names.is_before(&two));
        let mut back = names.clone();
        assert_eq!(back.roll_back("test", NOW).unwrap(), Some(two));
        assert_eq!(back.roll_back("test", NOW).unwrap(), Some(one));
        // Two things are waited for.
        names.await_version("test", three, NOW + 50, NOW).unwrap();
        names.add(three, NOW).unwrap();
        assert_eq!((names.find("test", NOW), names.find("test", NOW + 50)), (Some(two), Some(three)));
        assert_eq!(names.roll_back("test", NOW + 60).unwrap(), Some(two));
        assert_eq!(names.roll_back("test", NOW + 60).unwrap(), Some(one));
        // One that names nothing yet, and what is here already.
        names.await_version("new", four, 0, NOW).unwrap();
        assert_eq!(names.find("new", NOW), None);
        assert_eq!(names.clone().roll_back("new", NOW).unwrap(), None);
        names.await_version("new", one, 0, NOW).unwrap();
        assert_eq!(names.find("new", NOW), Some(one));
        assert!(names.await_version("latest", four, 0, NOW).is_err());
        let text = names.encode();
        assert_eq!(ImageNames::decode(text.as_bytes(), Path::new("image")).unwrap(), names);
    }

    #[test]
    fn what_is_taken_away_names_nothing_and_leaves_the_rest() {
        let mut names = names_of(3);
        let [one, two, three] = [1, 2, 3].map(|number| Root([number; 32]));
        names.move_channel("other", one, 10, NOW).unwrap();
        names.move_channel("test", one, 10, NOW).unwrap();
        names.move_channel("test", two, 20, NOW).unwrap();
        names.tag("t", three).unwrap();
        for (name, is_channel) in
            [("t", true), ("test", false), ("latest", true), ("latest", false), ("x", true)]
        {
            let before = names.clone();
            let removed = if is_channel { names.remove_channel(name) } else { names.remove_tag(name) };
            assert!(matches!(removed, Err(StoreError::Unknown { .. })), "{name}");
            assert_eq!(names, before);
        }
        assert_eq!(names.remove_channel("test").unwrap(), two);
        assert_eq!(
            (names.find("test", NOW), names.is_before(&one), names.is_named(&two, NOW)),
            (None, false, false)
        );
        assert_eq!(names.find("other", NOW), Some(one));
        // A new one of that name has no past.
        names.move_channel("test", three, 30, NOW).unwrap();
        assert!(names.roll_back("test", NOW).is_err());
        assert_eq!(names.remove_tag("t").unwrap(), three);
        names.tag("t", one).unwrap();
        // One that only names later goes too.
        names.move_channel("soon", two, NOW + 10, NOW).unwrap();
        assert_eq!(names.remove_channel("soon").unwrap(), two);
        assert!(!names.is_named(&two, NOW + 20));
    }

    #[test]
    fn a_tag_stays() {
        let mut names = names_of(2);
        names.tag("2026-11", Root([1; 32])).unwrap();
        names.tag("2026-11", Root([1; 32])).unwrap();
        assert!(names.tag("2026-11", Root([2; 32])).is_err());
        assert!(names.move_channel("2026-11", Root([2; 32]), 0, NOW).is_err());
        for name in ["", "a b", "../a", ".a", "-a", "a/b", "ä", "a\n", &"a".repeat(65)] {
            assert!(names.tag(name, Root([2; 32])).is_err(), "{name:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_and_damage_is_refused(
            moves in proptest::collection::vec((0_u8..3, 1_u8..6, 0_i64..100), 0..30), flip in any::<usize>(),
        ) {
            let mut names = names_of(5);
            names.tag("tag", Root([1; 32])).unwrap();
            for (channel, version, since) in moves {
                names.move_channel(&format!("c{channel}"), Root([version; 32]), since, NOW).unwrap();
            }
            let mut bytes = names.encode().into_bytes();
            let path = Path::new("image");
            prop_assert_eq!(ImageNames::decode(&bytes, path).unwrap(), names);
            let at = flip % bytes.len();
            bytes[at] ^= 1;
            prop_assert!(ImageNames::decode(&bytes, path).is_err());
            prop_assert!(ImageNames::decode(&bytes[..at], path).is_err());
        }

        #[test]
        fn any_bytes_are_read_or_refused(text in "(goldwire-image-1\n)?((version|tag|channel|moved|x)( [a-f0-9]{1,64}){0,3}\n){0,5}") {
            let mut bytes = text.into_bytes();
            let digest = format!("blake3 {}\n", blake3::hash(&bytes).to_hex());
            bytes.extend(digest.as_bytes());
            let _ = ImageNames::decode(&bytes, Path::new("image"));
        }
    }
}
