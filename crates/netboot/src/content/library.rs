//! The boot tree as devices see it: files of a folder and of named other folders, scripts that are rendered for who
//! asks, and boot media.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use rustix::fs::Stat;

use super::digests::{Digests, Identity};
use super::guard::Guard;
use super::medium::{MediaStore, MediumName};
use super::path::{AUTOEXEC, Asked, Named, canonical_script, parse};
use super::small::Small;
use super::tree::{Found, Tree};
use super::url_builder::{Digest, UrlBuilder};
use super::{Body, Content, ContentError, Contents, Requester};
use crate::device::Device;
use crate::event::Stage;
use crate::media::Media;
use crate::member::Fitness;
use crate::percent::{Plain, percent_encode};
use crate::policy::{Action, Boot, BootPolicy, Decision, Proof, ProtectedFiles, Script, What};
use crate::script::{Context, render};

/// What every script's media type is; iPXE tells a script by its first line, people by this.
const TEXT: &str = "text/plain; charset=utf-8";

/// Which folders are served.
#[derive(Clone, Debug)]
pub struct LibrarySettings {
    /// The boot tree.
    pub root: PathBuf,
    /// Other folders, each under a name at the top: `("ipxe", "/usr/lib/ipxe")` serves that as `ipxe/…`. What the boot
    /// tree has under the same name comes first.
    pub extra: Vec<(String, PathBuf)>,
    /// Hears when the disk of one of them does not answer.
    pub fitness: Arc<Fitness>,
}

/// Why a library cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    /// A folder cannot be opened.
    #[error("open the folder {path}")]
    Open {
        /// Where it should be.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The thread that reads large files cannot be started.
    #[error("start a thread")]
    Thread(#[source] io::Error),
}

impl goldwire_stdx::Hints for LibraryError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::Open { .. } => {
                vec![
                    "make the boot tree's folder, or name another one as server.root in the boot file".into(),
                ]
            }
            Self::Thread(_) => Vec::new(),
        }
    }
}

/// Answers for paths (see [`UrlBuilder`] for their forms) from folders and a policy.
///
/// A file that is replaced (written under another name, then renamed) stays whole for who is fetching it. One that is
/// overwritten in place does not.
pub struct Library {
    shelves: Arc<Shelves>,
    policy: Arc<dyn BootPolicy>,
    urls: UrlBuilder,
    media: MediaStore,
}

/// The folders, with what is known of the files in them.
struct Shelves {
    root: Arc<Tree>,
    extra: Vec<(String, Arc<Tree>)>,
    digests: Digests,
    small: Small,
    guard: Guard,
}

impl Library {
    /// Opens the folders.
    pub fn open(
        settings: &LibrarySettings,
        policy: Arc<dyn BootPolicy>,
        urls: UrlBuilder,
    ) -> Result<Self, LibraryError> {
        let tree = |path: &PathBuf| {
            Tree::open(path).map(Arc::new).map_err(|source| LibraryError::Open { path: path.clone(), source })
        };
        let extra = settings.extra.iter().map(|(name, path)| Ok((name.clone(), tree(path)?)));
        let shelves = Shelves {
            root: tree(&settings.root)?,
            extra: extra.collect::<Result<_, _>>()?,
            digests: Digests::new(&settings.fitness).map_err(LibraryError::Thread)?,
            small: Small::default(),
            guard: Guard::default(),
        };
        Ok(Self { shelves: Arc::new(shelves), policy, urls, media: MediaStore::default() })
    }

    /// Starts to read every file in the background, so that large ones have their ETags when they are asked for.
    pub fn warm(&self) {
        let trees = self.shelves.trees().map(|(_, tree)| Arc::clone(tree));
        self.shelves.digests.warm(trees.collect());
    }

    /// Serves these boot media from now on, or none: at [`ISO_PATH`](super::ISO_PATH) and
    /// [`DISK_PATH`](super::DISK_PATH). Both stay in memory.
    pub fn set_media(&self, media: Option<Media>) {
        self.media.put(media);
    }

    /// The iPXE script of a device, as it would be served to it now.
    ///
    /// # Errors
    /// If the policy gives it none, no member lives, or the template has a mistake.
    pub fn script_of(&self, device: &Device) -> Result<String, ContentError> {
        self.script_from(self.policy.decide(device), device)
    }

    /// The script that follows from a decision: the one that was judged.
    fn script_from(&self, decision: Decision, device: &Device) -> Result<String, ContentError> {
        match decision.action {
            Action::Boot(boot) => match &boot.what {
                What::Script(template) => self.render(template, device, &boot),
                What::File(path) => {
                    let path = percent_encode(&self.urls.path_to(path, &boot, device), Plain::UNRESERVED);
                    Ok(format!("#!ipxe\nchain --autofree --timeout 8000 /{path}\n"))
                }
                What::Literal(url) => elsewhere(url),
            },
            // The next boot option of the firmware, which is the machine's own disk.
            Action::LocalDisk => Ok("#!ipxe\nexit 0\n".to_owned()),
            Action::Ignore => Err(ContentError::Forbidden("the policy ignores this device")),
        }
    }

    /// Scripts name files by their content where it is known, so that a member whose file differs refuses it instead of
    /// giving a device half of two versions.
    fn render(&self, template: &Script, device: &Device, boot: &Boot) -> Result<String, ContentError> {
        let (shelves, urls) = (Arc::clone(&self.shelves), self.urls.clone());
        let (for_boot, for_device) = (boot.clone(), device.clone());
        let protected = self.policy.protected_files();
        let path_of = move |path: &str| {
            let path = path.trim_start_matches('/');
            // Not even the digest of what only a token opens is for a script without one.
            let is_for_this = |found: &Found| {
                for_boot.has_token || shelves.is_protected(&found.stat, &protected) == Some(false)
            };
            let found = shelves.find(path).ok().flatten().filter(is_for_this);
            let found = found.and_then(|found| shelves.content(found).ok());
            let pinned = match found.and_then(|content| content.digest) {
                Some(digest) => format!("c/{digest}/{path}"),
                None => path.to_owned(),
            };
            urls.path_to(&pinned, &for_boot, &for_device)
        };
        let script_path = self.urls.path_to(&canonical_script(device), boot, device);
        render(template, device, boot, &Context { path_of: Arc::new(path_of), script_path })
    }

    fn proof(&self, asked: &Asked, requester: &Requester) -> Proof {
        match &asked.token {
            Some(token) if self.urls.is_good(token, &asked.path, requester.mac) => Proof::Token,
            _ => Proof::Nothing,
        }
    }

    fn may_fetch(&self, path: &str, asked: &Asked, requester: &Requester) -> Result<(), ContentError> {
        let proof = self.proof(asked, requester);
        let mac = match &asked.what {
            Named::Script(device) => requester.mac.or(device.mac),
            _ => requester.mac,
        };
        match self.policy.may_fetch(path, requester.address, mac, proof) {
            true => Ok(()),
            false => Err(refused(asked, proof)),
        }
    }

    /// By what the file is, after [`may_fetch`](Self::may_fetch) has judged its name.
    fn may_have(&self, stat: &Stat, asked: &Asked, requester: &Requester) -> Result<(), ContentError> {
        let proof = self.proof(asked, requester);
        if proof == Proof::Token {
            return Ok(());
        }
        match self.shelves.is_protected(stat, &self.policy.protected_files()) {
            Some(false) => Ok(()),
            Some(true) => Err(refused(asked, proof)),
            None => Err(ContentError::Forbidden("it cannot be told now which files only a token opens")),
        }
    }

    fn file(
        &self,
        name: &str,
        pinned: Option<Digest>,
        asked: &Asked,
        requester: &Requester,
    ) -> Result<Content, ContentError> {
        let Some(found) = self.shelves.find(name)? else {
            let is_autoexec = name.rsplit('/').next().is_some_and(|last| last.eq_ignore_ascii_case(AUTOEXEC));
            if !is_autoexec || pinned.is_some() {
                return Err(ContentError::NotFound);
            }
            self.may_fetch(AUTOEXEC, asked, requester)?;
            return Ok(script(autoexec()));
        };
        // By the name that it has, not by the spelling in which it was asked for: a rule about `secret/` is one about
        // `SECRET/` too.
        self.may_fetch(&found.name, asked, requester)?;
        self.may_have(&found.stat, asked, requester)?;
        pinned_or(pinned, self.shelves.content(found)?)
    }

    /// What [`file`](Self::file) would say; nothing where it would ask a disk.
    fn file_at_once(
        &self,
        name: &str,
        pinned: Option<Digest>,
        asked: &Asked,
        requester: &Requester,
    ) -> Option<Result<Content, ContentError>> {
        // Which files are protected is asked of the disk.
        if !self.policy.protected_files().is_empty() {
            return None;
        }
        let content = self.shelves.content_at_once(name)?;
        if let Err(error) = self.may_fetch(name, asked, requester) {
            return Some(Err(error));
        }
        Some(pinned_or(pinned, content))
    }

    fn medium(
        &self,
        name: MediumName,
        asked: &Asked,
        requester: &Requester,
    ) -> Result<Content, ContentError> {
        let content = self.media.get(name).ok_or(ContentError::NotFound)?;
        self.may_fetch(name.path(), asked, requester)?;
        Ok(content)
    }

    fn script(&self, device: &Device, asked: &Asked, requester: &Requester) -> Result<Content, ContentError> {
        self.may_fetch(&canonical_script(device), asked, requester)?;
        let mut device = device.clone();
        device.subnet = Some(requester.address);
        // One decision is judged and rendered, that of the device which the whole path names: a part of the path, such as
        // the MAC alone, can stand for a device of another rule.
        let decision = self.policy.decide(&device);
        let proof = self.proof(asked, requester);
        if matches!(&decision.action, Action::Boot(boot) if boot.has_token) && proof == Proof::Nothing {
            return Err(refused(asked, proof));
        }
        Ok(script(self.script_from(decision, &device)?))
    }
}

fn refused(asked: &Asked, proof: Proof) -> ContentError {
    ContentError::Forbidden(match (&asked.token, proof) {
        (Some(_), Proof::Nothing) => "the token is wrong or old and the policy does not allow it without",
        _ => "the policy does not allow it",
    })
}

impl Shelves {
    /// The folders with the names under which they are served; the boot tree's is empty.
    fn trees(&self) -> impl Iterator<Item = (&str, &Arc<Tree>)> {
        let extra = self.extra.iter().map(|(name, tree)| (name.as_str(), tree));
        std::iter::once(("", &self.root)).chain(extra)
    }

    /// Whether only a token opens this file, whatever name it was reached by; nothing while that cannot be told.
    fn is_protected(&self, stat: &Stat, protected: &Arc<ProtectedFiles>) -> Option<bool> {
        self.guard.protects(stat, protected, self.trees().map(|(name, tree)| (name, &**tree)))
    }

    fn find(&self, name: &str) -> Result<Option<Found>, ContentError> {
        let failed = |tree: &Tree, source| ContentError::Failed {
            path: tree.path().join(name).display().to_string(),
            source,
        };
        if let Some(found) = self.root.find(name).map_err(|error| failed(&self.root, error))? {
            return Ok(Some(found));
        }
        let Some((first, below)) = name.split_once('/') else { return Ok(None) };
        let Some((root, tree)) = self.extra.iter().find(|(root, _)| root.eq_ignore_ascii_case(first)) else {
            return Ok(None);
        };
        let found = tree.find(below).map_err(|error| failed(tree, error))?;
        Ok(found.map(|found| Found { name: format!("{root}/{}", found.name), ..found }))
    }

    fn content(&self, found: Found) -> Result<Content, ContentError> {
        let file = Arc::new(found.file);
        let digest = self
            .digests
            .of(&file, &found.stat)
            .map_err(|source| ContentError::Failed { path: found.name.clone(), source })?;
        Ok(content_of(file, &found.stat, &found.name, digest))
    }

    /// A file of the boot tree whose name is spelled right and whose digest is known, if no disk has to be asked.
    fn content_at_once(&self, name: &str) -> Option<Content> {
        if let Some(content) = self.small.get(&self.root, name) {
            return Some(content);
        }
        let found = self.root.find_at_once(name)?;
        let digest = self.digests.known(&found.stat)?;
        let content = content_of(Arc::new(found.file), &found.stat, name, Some(digest));
        Some(self.small.keep(name, Identity::of(&found.stat), content))
    }
}

fn content_of(file: Arc<File>, stat: &Stat, name: &str, digest: Option<Digest>) -> Content {
    let seconds = u64::try_from(stat.st_mtime).unwrap_or(0);
    Content {
        length: Identity::of(stat).size(),
        body: Body::File(file),
        digest,
        media_type: media_type(name),
        modified: UNIX_EPOCH.checked_add(Duration::from_secs(seconds)),
        stage: stage(name),
    }
}

/// A content that was asked for by its digest has to have it.
fn pinned_or(pinned: Option<Digest>, content: Content) -> Result<Content, ContentError> {
    match (pinned, content.digest) {
        (Some(wanted), Some(digest)) if wanted != digest => Err(ContentError::NotFound),
        (Some(_), None) => Err(ContentError::NotReady),
        _ => Ok(content),
    }
}

impl Contents for Library {
    fn open(&self, path: &str, requester: &Requester) -> Result<Content, ContentError> {
        let asked = parse(path).ok_or(ContentError::NotFound)?;
        match &asked.what {
            Named::File(name) => self.file(name, None, &asked, requester),
            Named::Pinned(digest, name) => self.file(name, Some(*digest), &asked, requester),
            Named::Script(device) => self.script(device, &asked, requester),
            Named::Medium(name) => self.medium(*name, &asked, requester),
        }
    }

    fn open_at_once(&self, path: &str, requester: &Requester) -> Option<Result<Content, ContentError>> {
        let asked = parse(path)?;
        match &asked.what {
            Named::File(name) => self.file_at_once(name, None, &asked, requester),
            Named::Pinned(digest, name) => self.file_at_once(name, Some(*digest), &asked, requester),
            Named::Medium(name) => Some(self.medium(*name, &asked, requester)),
            Named::Script(_) => None,
        }
    }
}

/// What an unmodified iPXE ≥ 2.0 runs, which cannot be told anything but by this file: asks for an address (its own
/// fetch of this file used the firmware's) and goes on with its machine's script, on the server that this came from.
/// That server is in `cwuri`, kept before DHCP is asked: iPXE takes paths as those of the next server that a DHCP answer
/// names, which beside a proxy is somebody else's. There is no name in it: firmware that loaded iPXE by HTTP Boot may
/// have lost its DNS server on the way (https://github.com/ipxe/ipxe/issues/1200).
///
/// A script that needs a token is refused by that path: who fetches this file has shown none that is good for a script,
/// so it holds none. Our answer to the DHCP question has the token, for the machine that asked. A proxy's answer comes
/// first: beside it, the DHCP server's may name something else. Machines that need no token do not depend on either.
fn autoexec() -> String {
    "#!ipxe
# Goes on with the script of this machine, from the server that this came from.
set here ${cwuri}
set tries:int32 0
:again
dhcp || goto wait
set machine -
isset ${uuid} && set machine ${uuid} ||
isset ${netX/mac} && set card ${netX/mac:hexhyp} || set card ${net0/mac:hexhyp}
chain --timeout 5000 ${here}/s/${card}/${platform}-${buildarch}/${machine}/boot.ipxe && exit 0 ||
isset ${proxydhcp/filename} && set bootfile ${proxydhcp/filename} || set bootfile ${filename}
isset ${bootfile} && chain --timeout 5000 ${bootfile} && exit 0 ||
:wait
inc tries
iseq ${tries} 10 && exit 1 ||
echo No script from the boot server yet, trying again
sleep ${tries}
goto again
"
    .to_owned()
}

/// A script that goes on with what lies elsewhere. A URL that could be more than one word to iPXE is no URL.
fn elsewhere(url: &str) -> Result<String, ContentError> {
    if url.is_empty() || url.chars().any(|c| c.is_whitespace() || c.is_control()) {
        let reason = "the URL to go on with is empty or has spaces".to_owned();
        return Err(ContentError::Script { name: "elsewhere".into(), reason });
    }
    Ok(format!("#!ipxe\nchain --autofree {url}\n"))
}

fn script(text: String) -> Content {
    let bytes: Arc<[u8]> = text.into_bytes().into();
    Content {
        length: bytes.len() as u64,
        digest: Some(Digest::of(&bytes)),
        body: Body::Memory(bytes),
        media_type: TEXT,
        modified: None,
        stage: Stage::Script,
    }
}

/// By the name's end. UEFI HTTP Boot tells programs and RAM disks apart by these types (UEFI 2.10, 24.7.2).
fn media_type(name: &str) -> &'static str {
    match extension(name).as_str() {
        "efi" => "application/efi",
        "iso" => "application/vnd.efi-iso",
        "img" => "application/vnd.efi-img",
        "ipxe" | "gpxe" | "cfg" | "txt" | "ks" | "conf" | "seed" | "sh" | "yaml" | "yml" => TEXT,
        _ => "application/octet-stream",
    }
}

fn stage(name: &str) -> Stage {
    match extension(name).as_str() {
        "ipxe" | "gpxe" => Stage::Script,
        "efi" | "bin" | "kpxe" | "kkpxe" | "kkkpxe" | "pxe" | "0" | "com" | "n12" => Stage::Bootstrap,
        // Not `img`: an initial RAM disk is called so more often than a disk is.
        "iso" | "raw" | "vhd" | "vhdx" | "qcow2" => Stage::San,
        _ => Stage::Kernel,
    }
}

fn extension(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or(name);
    last.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase()).unwrap_or_default()
}

#[cfg(test)]
#[path = "library_tests.rs"]
mod tests;
