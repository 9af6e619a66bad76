//! `goldwire image import`: versions that were carried here on a disk, in a store or as image files.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use goldwire_disk::{ErrorKind, FileIdentity};
use goldwire_replicate::image_name;
use goldwire_stdx::{Context, Folder, Report};
use goldwire_store::{Incoming, Root, Store, Version, describe, refuse_own};

use super::image::{image_of, notices_of, say_planned, say_put, tree_of};
use super::reading::{STOPPED, reading};
use super::{disk, shown};
use crate::args::ImportArgs;
use crate::errors::print_error;
use crate::exit::Code;

pub(super) fn run(store: &Arc<Store>, args: &ImportArgs) -> Result<Code, Report> {
    let mut import = Import { store, args, taken: 0, failed: 0 };
    // Before anything is read. What comes without --name is called by what is found.
    store.check_names(args.name.as_deref().unwrap_or("image"), args.channel.as_deref())?;
    match Store::is_one(&args.folder) {
        true => import.store()?,
        false => import.files()?,
    }
    Ok(match (import.taken, import.failed) {
        (_, 0) => Code::Success,
        (0, _) => Code::Nothing,
        _ => Code::Some,
    })
}

struct Import<'a> {
    store: &'a Arc<Store>,
    args: &'a ImportArgs,
    taken: usize,
    failed: usize,
}

impl Import<'_> {
    /// Takes the versions of a store, of each image in the order in which they came there.
    fn store(&mut self) -> Result<(), Report> {
        let from = Store::open(&self.args.folder)?;
        if from.uuid() == self.store.uuid() {
            return Err(Report::new(format!("{} is the store itself", shown(&self.args.folder))));
        }
        let mut versions: Vec<(String, Root)> = Vec::new();
        for which in &self.args.which {
            let root = from.find(which)?;
            let image = image_of(which);
            let name = match (&self.args.name, from.image(image)?) {
                (Some(name), _) => name.clone(),
                (None, Some(_)) => image.to_owned(),
                (None, None) => {
                    return Err(Report::new(format!("{which} names a version and no image"))
                        .hint("say what the image is called here: --name NAME"));
                }
            };
            versions.push((name, root));
        }
        if self.args.which.is_empty() {
            for image in from.images()? {
                let name = self.args.name.clone().unwrap_or_else(|| image.clone());
                let names = from.image(&image)?.unwrap_or_default();
                versions.extend(names.versions.iter().map(|version| (name.clone(), version.root)));
            }
        }
        if versions.is_empty() {
            return Err(Report::new(format!("{} has no versions", shown(&self.args.folder))));
        }
        for (at, (image, root)) in versions.iter().enumerate() {
            let is_last = versions[at + 1..].iter().all(|(other, _)| other != image);
            let done = self.version(&from, image, root, is_last);
            self.count(done.map_err(|report| report.context(format!("version {root} of {image}"))))?;
        }
        Ok(())
    }

    fn version(&self, from: &Store, image: &str, root: &Root, is_last: bool) -> Result<(), Report> {
        let (version, descriptor) = from.describe(root)?;
        let device = from.version(root)?;
        let tree = device.open_tree()?;
        // What it says of its chunks is what they are compared with.
        tree.verify(root)?;
        let incoming =
            Incoming { device: &device, tree: &tree, version: &version, descriptor: &descriptor, twin: None };
        self.put(image, is_last, &incoming).and_then(|put| self.say(image, is_last, &version, put, &[]))
    }

    /// Takes the images of a folder, none of which is a link, oldest first.
    fn files(&mut self) -> Result<(), Report> {
        let path = &self.args.folder;
        let folder = Folder::open(path).with_context(|| shown(path))?;
        refuse_own(&path.canonicalize()?)?;
        let entries = folder.entries().with_context(|| shown(path))?;
        let mut wanted: HashSet<&str> = self.args.which.iter().map(String::as_str).collect();
        let mut files = Vec::new();
        for entry in entries {
            let Some(name) = entry.to_str() else {
                if self.args.which.is_empty() {
                    let why = "its name is no text, and an image is called as its file";
                    self.count(Err(Report::new(why).context(shown(&path.join(entry)))))?;
                }
                continue;
            };
            if name.starts_with('.') {
                continue;
            }
            let is_named = wanted.remove(name);
            if !is_named && !self.args.which.is_empty() {
                continue;
            }
            match folder.read_file(name).and_then(|file| FileIdentity::of(&file)) {
                Ok(identity) => files.push((identity.modified_ns, name.to_owned(), identity)),
                // Folders, links, pipes.
                Err(_) if !is_named => {}
                Err(error) => self.count(Err(Report::from(error).context(shown(&path.join(name)))))?,
            }
        }
        if let Some(missing) = wanted.into_iter().min() {
            return Err(Report::new(format!("{} has no file {missing}", shown(path)))
                .hint("name files of the folder, or versions of a store"));
        }
        files.sort_by(|one, other| (one.0, &one.1).cmp(&(other.0, &other.1)));
        let mut images = Vec::new();
        for (_, name, identity) in files {
            let file = path.join(&name);
            let is_disk = match self.args.open.source_format {
                Some(_) => Ok(()),
                None => goldwire_disk::detect(&file).map(drop),
            };
            match is_disk {
                // What is no disk at all is passed over, unless somebody named it.
                Err(error) if error.kind() == ErrorKind::Invalid && self.args.which.is_empty() => {}
                Err(error) => self.count(Err(error.into()))?,
                Ok(()) => {
                    let image = self.args.name.clone().unwrap_or_else(|| image_name(&name).to_owned());
                    images.push((image, file, identity));
                }
            }
        }
        if images.is_empty() && self.failed == 0 {
            return Err(Report::new(format!("{} has no disk images, and is no store", shown(path))));
        }
        for (at, (image, file, identity)) in images.iter().enumerate() {
            let is_last = images[at + 1..].iter().all(|(other, ..)| other != image);
            let done = self.file(image, file, identity, is_last);
            self.count(done)?;
        }
        Ok(())
    }

    fn file(&self, image: &str, path: &Path, identity: &FileIdentity, is_last: bool) -> Result<(), Report> {
        self.store.check_names(image, self.channel(is_last))?;
        let opened = disk::open(path, &self.args.open)?;
        // Who owns the folder may have put a link to something else there since.
        if opened.chain.first().is_none_or(|first| first.identity != *identity) {
            return Err(Report::new(format!("{} was replaced while it was opened", shown(path))));
        }
        let twin = if self.args.dry_run { None } else { self.store.twin(image)? };
        let tree = tree_of(path, &opened, twin.as_ref(), self.args.threads, true)?;
        let (version, descriptor) = describe(path, &opened, &tree)?;
        let incoming = Incoming {
            device: opened.device.as_ref(),
            tree: &tree.tree,
            version: &version,
            descriptor: &descriptor,
            twin: twin.as_ref(),
        };
        let put = self.put(image, is_last, &incoming)?;
        self.say(image, is_last, &version, put, &notices_of(&opened)?)
    }

    /// The channel that names the version, if it is the last one of its image.
    fn channel(&self, is_last: bool) -> Option<&str> {
        self.args.channel.as_deref().filter(|_| is_last)
    }

    /// Stores a version; in a dry run nothing.
    fn put(
        &self,
        image: &str,
        is_last: bool,
        incoming: &Incoming<'_>,
    ) -> Result<Option<goldwire_store::Put>, Report> {
        let channel = self.channel(is_last);
        self.store.check_naming(image, channel, incoming.version)?;
        if self.args.dry_run {
            return Ok(None);
        }
        reading("storing", |options| self.store.publish(image, channel, incoming, options)).map(Some)
    }

    fn say(
        &self,
        image: &str,
        is_last: bool,
        version: &Version,
        put: Option<goldwire_store::Put>,
        notices: &[String],
    ) -> Result<(), Report> {
        match put {
            Some(put) => say_put(self.args.json, image, self.channel(is_last), version, &put, notices),
            None => say_planned(self.args.json, image, version, self.store.has(&version.root)?, notices),
        }
    }

    /// Counts what came and tells what did not; the others still come, unless somebody stops it.
    fn count(&mut self, done: Result<(), Report>) -> Result<(), Report> {
        match done {
            Ok(()) => self.taken += 1,
            Err(report) if report.kind == Some(STOPPED) => return Err(report),
            Err(report) => {
                self.failed += 1;
                print_error(report);
            }
        }
        Ok(())
    }
}
