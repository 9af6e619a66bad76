//! `goldwire image …`: the versions of a site's images.

use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use goldwire_disk::Image;
use goldwire_replicate::{Effort, Endpoint, Select, SyncJob, Trust, WriteRules};
use goldwire_stdx::{ByteSize, Context, Report, from_hex};
use goldwire_store::{
    CHUNK_SIZE, Channel, ImageNames, Incoming, Keep, LATEST, Put, Root, Store, StoreResult, TreeCache, Twin,
    Version, describe, for_each_difference, refuse_own, signed_for_other,
};
use serde_json::{Value, json};

use super::import;
use super::reading::reading;
use super::repack::{lying_json, lying_text};
use super::store::Named;
use super::{disk, json_line, key, shown, sync};
use crate::agents::agents;
use crate::args::{
    BetweenArgs, ChannelArgs, DiffArgs, ExportArgs, ImageArgs, ImageCommand, ImageListArgs, PromoteArgs,
    PruneArgs, PublishArgs, PullArgs, PushArgs, RollbackArgs, RunArgs, TagArgs, VersionArgs,
};
use crate::exit::Code;
use crate::progress::Mode;
use crate::time::format_time;

/// Ranges of a difference that are listed; the rest is counted.
const RANGES_SHOWN: usize = 20;
/// Hexadecimal digits of a root that people are shown.
const SHORT: usize = 12;

pub(crate) fn run(args: &ImageArgs) -> Result<Code, Report> {
    let named = Named { store: args.store.store.as_deref(), config: args.store.config.as_deref() };
    match &args.command {
        ImageCommand::Export(export) => return self::export(named, export),
        ImageCommand::Push(push) => return self::push(named, push),
        ImageCommand::Pull(pull) => return self::pull(named, pull),
        ImageCommand::Publish(publish) => {
            if let Some(far) = far(&publish.file)? {
                return publish_from(named, publish, far);
            }
        }
        _ => {}
    }
    let store = Arc::new(named.open()?);
    match &args.command {
        ImageCommand::Publish(args) => publish(&store, args),
        ImageCommand::List(args) => list(&store, args),
        ImageCommand::Show(args) => show(&store, args),
        ImageCommand::Verify(args) => verify(&store, args),
        ImageCommand::Import(args) => import::run(&store, args),
        ImageCommand::Diff(args) => diff(&store, args),
        ImageCommand::Channel(args) => channel(&store, args),
        ImageCommand::Promote(args) => promote(&store, args),
        ImageCommand::Rollback(args) => rollback(&store, args),
        ImageCommand::Tag(args) => tag(&store, args),
        ImageCommand::Prune(args) => prune(&store, args),
        ImageCommand::Export(_) | ImageCommand::Push(_) | ImageCommand::Pull(_) => Ok(Code::Nothing),
    }
}

fn publish(store: &Arc<Store>, args: &PublishArgs) -> Result<Code, Report> {
    // Before anything is read, and in the dry run too.
    store.check_names(&args.name, args.channel.as_deref())?;
    let secret = args.sign.as_deref().map(key::secret).transpose()?;
    let path = args.file.as_path();
    if let Ok(path) = path.canonicalize() {
        refuse_own(&path)?;
    }
    // What nobody signed, and nobody will, is not read for hours first.
    if secret.is_some() || signed_for_other(path, &Root([0; 32]))?.is_none() {
        store.check_signer(secret.as_ref().map(goldwire_store::SecretKey::public))?;
    }
    let image = disk::open(path, &args.open)?;
    // A signature vouches for bytes, not for digests that somebody kept.
    // What both have is proven on the way: the image's bytes are hashed, and those that are here are the same.
    let twin = if args.run.dry_run { None } else { store.twin(&args.name)? };
    let tree = tree_of(path, &image, twin.as_ref(), args.threads, secret.is_some())?;
    let (mut version, mut descriptor) = describe(path, &image, &tree)?;
    if secret.is_some() || args.note.is_some() {
        version.note = args.note.clone().unwrap_or(version.note);
        descriptor = version.encode(secret.as_ref())?;
        version.signer = secret.as_ref().map(goldwire_store::SecretKey::public);
    }
    let is_here = store.has(&version.root)?;
    store.check_naming(&args.name, args.channel.as_deref(), &version)?;
    if args.run.dry_run {
        say_planned(args.run.json, &args.name, &version, is_here, &image.notices)?;
        return Ok(Code::Success);
    }
    let incoming = Incoming {
        device: image.device.as_ref(),
        tree: &tree.tree,
        version: &version,
        descriptor: &descriptor,
        twin: twin.as_ref(),
    };
    let channel = args.channel.as_deref();
    let put = reading("storing", |options| store.publish(&args.name, channel, &incoming, options))?;
    let notices = notices_of(&image)?;
    say_put(args.run.json, &args.name, channel, &version, &put, &notices)?;
    Ok(Code::Success)
}

/// The tree of an image, from its bytes or from what was kept of it. What `twin` has of it is proven on the way.
pub(super) fn tree_of(
    path: &Path,
    image: &Image,
    twin: Option<&Twin>,
    threads: Option<NonZeroUsize>,
    reads_all: bool,
) -> Result<TreeCache, Report> {
    let look = |first, chunks: &[u8]| {
        if let Some(twin) = twin {
            twin.look(first, chunks);
        }
    };
    let tree = reading("reading", |options| {
        let options = &goldwire_store::BuildOptions { threads, ..*options };
        match reads_all {
            true => TreeCache::rebuild_looking(image, options, &look),
            false => TreeCache::of_looking(image, options, &look),
        }
    });
    tree.with_context(|| shown(path))
}

/// What there is to say of an image that was read: a file that changed between its hashing and now is not what its name
/// will say.
pub(super) fn notices_of(image: &Image) -> Result<Vec<String>, Report> {
    let mut notices = image.notices.clone();
    if let Some(changed) = image.changed()? {
        let notice = format!("{} changed while it was published", shown(&changed));
        let _ = writeln!(io::stderr(), "note: {notice}");
        notices.push(notice);
    }
    Ok(notices)
}

/// Says what a dry run found.
pub(super) fn say_planned(
    is_json: bool,
    image: &str,
    version: &Version,
    is_here: bool,
    notices: &[String],
) -> Result<(), Report> {
    let line = json!({
        "image": image, "root": version.root.to_string(), "is_here": is_here, "dry_run": true, "notices": notices,
    });
    say(is_json, &line, || {
        let what = if is_here { "is here already" } else { "would be stored" };
        format!("version {} of {image} {what}", short(&version.root))
    })
}

/// Says what was stored.
pub(super) fn say_put(
    is_json: bool,
    image: &str,
    channel: Option<&str>,
    version: &Version,
    put: &Put,
    notices: &[String],
) -> Result<(), Report> {
    let stored = put.chunks_new * CHUNK_SIZE as u64;
    let line = json!({
        "image": image, "root": version.root.to_string(), "channel": channel, "was_here": put.was_here,
        "size": version.size, "bytes_used": version.chunks_used * CHUNK_SIZE as u64, "bytes_stored": stored,
        "bytes_resumed": put.chunks_resumed * CHUNK_SIZE as u64, "notices": notices,
        "signer": version.signer.map(|signer| signer.to_string()),
    });
    say(is_json, &line, || {
        let root = short(&version.root);
        let channel = channel.map_or(String::new(), |channel| format!(", {channel} names it"));
        match put.was_here {
            true => format!("{image}: version {root} is here already{channel}"),
            false => format!("{image}: version {root} stored, {} of it new{channel}", ByteSize(stored)),
        }
    })
}

/// The place on another host that the user wrote, as a sync reads it.
fn far(file: &Path) -> Result<Option<Endpoint>, Report> {
    // A name that is no Unicode is one of this machine.
    let Some(text) = file.to_str() else { return Ok(None) };
    let place: Endpoint = text.parse().map_err(|why: String| Report::new(why))?;
    Ok(Some(place).filter(|place| place.host.is_some()))
}

/// From another host it is a sync of that file into the store here, and is told as one.
fn publish_from(named: Named<'_>, args: &PublishArgs, from: Endpoint) -> Result<Code, Report> {
    let (store, here) = named.here()?;
    store.check_names(&args.name, args.channel.as_deref())?;
    let sign = args.sign.as_deref().map(key::secret).transpose()?;
    if let Some(secret) = &sign {
        store.check_signer(Some(secret.public()))?;
    }
    let mut parent_folders = Vec::new();
    for folder in &args.open.parents {
        let folder = folder.to_str().ok_or_else(|| Report::new("the folder of --parents is not UTF-8"))?;
        parent_folders.push(folder.to_owned());
    }
    let targets = vec![in_store(&here, &args.name, args.channel.as_deref())];
    let job = SyncJob {
        select: Select {
            format: args.open.source_format.map(Into::into),
            parent_folders,
            show_time: format_time,
            ..Select::default()
        },
        trust: Trust { sign, ..Trust::default() },
        write: WriteRules { must_be_store: true, note: args.note.clone(), ..WriteRules::default() },
        effort: Effort {
            threads: args.threads.map(|threads| u16::try_from(threads.get()).unwrap_or(u16::MAX)),
            ..Effort::default()
        },
        dry_run: args.run.dry_run,
        ..SyncJob::new(from, targets, agents(&[])?)
    };
    sync_versions(job, &args.run)
}

fn list(store: &Store, args: &ImageListArgs) -> Result<Code, Report> {
    let here = store.images()?;
    if let Some(unknown) = args.images.iter().find(|image| !here.contains(image)) {
        return Err(Report::new(format!("there is no image {unknown}"))
            .hint(format!("here are: {}", here.join(", "))));
    }
    let mut stdout = io::stdout().lock();
    for image in here.iter().filter(|image| args.images.is_empty() || args.images.contains(image)) {
        let names = store.image(image)?.unwrap_or_default();
        if !args.json {
            writeln!(stdout, "{image}")?;
        }
        for channel in names.channels.iter().filter(|channel| !names.has(&channel.root)) {
            let label = pending(channel, false);
            if args.json {
                let line = json!({
                    "image": image, "root": channel.root.to_string(), "is_here": false, "labels": [label],
                });
                writeln!(stdout, "{}", json_line(&line))?;
                continue;
            }
            writeln!(stdout, "  {}  {label}", short(&channel.root))?;
        }
        for version in names.versions.iter().rev() {
            let described = match store.describe(&version.root) {
                Ok((described, _)) => described,
                // One that is damaged hides no other.
                Err(error) => {
                    let _ = writeln!(io::stderr(), "warning: {}", Report::from(error).line());
                    continue;
                }
            };
            let labels = labels_of(&names, &version.root);
            let used = described.chunks_used * CHUNK_SIZE as u64;
            if args.json {
                let line = json!({
                    "image": image, "root": version.root.to_string(), "is_here": true, "since": version.since, "size": described.size,
                    "bytes_used": used, "labels": labels, "note": described.note,
                    "signer": described.signer.map(|signer| signer.to_string()),
                });
                writeln!(stdout, "{}", json_line(&line))?;
                continue;
            }
            let note = match goldwire_stdx::printable(&described.note) {
                note if note.is_empty() => String::new(),
                note => format!("  {note}"),
            };
            let since = format_time(version.since);
            let root = short(&version.root);
            writeln!(
                stdout,
                "  {root}  {since}  {:>9}  {}{note}",
                ByteSize(used).to_string(),
                labels.join(", ")
            )?;
        }
    }
    Ok(Code::Success)
}

/// What names a version, and what will.
fn labels_of(names: &ImageNames, root: &Root) -> Vec<String> {
    let mut labels = Vec::new();
    let now = jiff::Timestamp::now().as_second();
    if names.find(LATEST, now) == Some(*root) {
        labels.push(LATEST.to_owned());
    }
    for channel in &names.channels {
        let is_served = names.find(&channel.name, now) == Some(*root);
        if is_served {
            labels.push(channel.name.clone());
        }
        if channel.root == *root && !is_served {
            labels.push(pending(channel, true));
        }
    }
    labels.extend(
        names.tags.iter().filter(|(_, tagged)| tagged == root).map(|(name, _)| format!("tag {name}")),
    );
    labels
}

/// A channel that does not name yet what it was moved to, with what it waits for.
fn pending(channel: &Channel, is_here: bool) -> String {
    match is_here {
        true => format!("{} (pending until {})", channel.name, format_time(channel.since)),
        false => format!("{} (pending: not here whole)", channel.name),
    }
}

fn show(store: &Store, args: &VersionArgs) -> Result<Code, Report> {
    let root = store.find(&args.which)?;
    let (version, _) = store.describe(&root)?;
    let runs = store.version(&root)?.runs();
    let mut named = Vec::new();
    for image in store.images()? {
        let names = store.image(&image)?.unwrap_or_default();
        if names.versions.iter().any(|version| version.root == root) {
            let labels = labels_of(&names, &root);
            named.push(if labels.is_empty() { image } else { format!("{image} ({})", labels.join(", ")) });
        }
    }
    let used = version.chunks_used * CHUNK_SIZE as u64;
    let line = json!({
        "root": root.to_string(), "size": version.size, "bytes_used": used, "created": version.created,
        "parent": version.parent.map(|parent| parent.to_string()), "name": version.name, "note": version.note,
        "signer": version.signer.map(|signer| signer.to_string()), "runs": runs, "images": named,
    });
    say(args.json, &line, || {
        let mut text = format!("version {root}\n  of       {}\n", named.join(", "));
        text += &format!("  size     {}, {} of it not zero\n", ByteSize(version.size), ByteSize(used));
        text += &format!("  created  {}\n", format_time(version.created));
        text += &format!("  lies in  {runs} runs\n");
        text += &format!("  from     {}", goldwire_stdx::printable(&version.name));
        if let Some(parent) = version.parent {
            text += &format!("\n  parent   {parent}");
        }
        if !version.note.is_empty() {
            text += &format!("\n  note     {}", goldwire_stdx::printable(&version.note));
        }
        if let Some(signer) = version.signer {
            text += &format!("\n  signed   by {signer}");
        }
        text
    })?;
    Ok(Code::Success)
}

fn verify(store: &Store, args: &VersionArgs) -> Result<Code, Report> {
    let root = store.find(&args.which)?;
    let version = store.version(&root)?;
    reading("reading", |options| version.verify(options))?;
    say(args.json, &json!({"root": root.to_string(), "verified": true}), || {
        format!("version {root} is whole")
    })?;
    Ok(Code::Success)
}

/// An export is a sync whose source is a version of the store: the same formats, verification and resume.
fn export(named: Named<'_>, args: &ExportArgs) -> Result<Code, Report> {
    let (source, image) = version_here(named, &args.which)?;
    let job = SyncJob {
        write: WriteRules {
            format: args.format.map(Into::into),
            usual_name: Some(format!("{image}.raw")),
            replace: args.replace,
            ..WriteRules::default()
        },
        dry_run: args.run.dry_run,
        ..SyncJob::new(source, args.targets.clone(), agents(&[])?)
    };
    sync_versions(job, &args.run)
}

/// A push is a sync whose targets are places in stores.
fn push(named: Named<'_>, args: &PushArgs) -> Result<Code, Report> {
    let (source, image) = version_here(named, &args.which)?;
    let image = args.name.as_deref().unwrap_or(&image);
    let mut targets = Vec::new();
    for store in &args.stores {
        targets.push(in_store(&named.endpoint(store)?, image, args.way.channel.as_deref()));
    }
    between(&args.way, source, targets)
}

/// A pull is a push by whoever receives.
fn pull(named: Named<'_>, args: &PullArgs) -> Result<Code, Report> {
    let (_, here) = named.here()?;
    let is_root = args.which.len() >= SHORT && args.which.bytes().all(|byte| byte.is_ascii_hexdigit());
    let image = match &args.name {
        Some(name) => name,
        None if is_root => {
            return Err(Report::new(format!("{} names a version and no image", args.which))
                .hint("say what the image is called here: --name NAME"));
        }
        None => image_of(&args.which),
    };
    let source = in_store(&named.endpoint(&args.from)?, &args.which, None);
    between(&args.way, source, vec![in_store(&here, image, args.way.channel.as_deref())])
}

fn between(way: &BetweenArgs, source: Endpoint, targets: Vec<Endpoint>) -> Result<Code, Report> {
    let job = SyncJob {
        trust: Trust {
            require_signature: way.require_signature.as_deref().map(key::public).transpose()?,
            ..Trust::default()
        },
        write: WriteRules { must_be_store: true, ..WriteRules::default() },
        dry_run: way.run.dry_run,
        ..SyncJob::new(source, targets, agents(&[])?)
    };
    sync_versions(job, &way.run)
}

fn sync_versions(mut job: SyncJob, run: &RunArgs) -> Result<Code, Report> {
    job.reach.ssh = sync::split(&run.ssh_command, "--ssh-command")?;
    job.reach.questions = sync::questions();
    let unlimited = "off".parse().map_err(|text: String| Report::new(text))?;
    sync::run_job(&job, if run.json { Mode::Json } else { Mode::People }, &unlimited, None)
}

/// The place of a version of the store that the user named, as a source of a sync, and its image's name.
fn version_here(named: Named<'_>, which: &str) -> Result<(Endpoint, String), Report> {
    let place = std::path::absolute(named.folder()?)?;
    let opened = Store::open(&place)?;
    // Said here in a sentence of this command, before anything begins.
    let root = opened.find(which)?;
    let mut image = image_of(which).to_owned();
    if opened.image(&image)?.is_none() {
        // It is a root, which names no image.
        for other in opened.images()? {
            let names = opened.image(&other)?.unwrap_or_default();
            if names.versions.iter().any(|version| version.root == root) {
                image = other;
                break;
            }
        }
    }
    let source = place.join(which);
    let source = source.to_str().ok_or_else(|| Report::new("the store's path is not UTF-8"))?;
    Ok((Endpoint { host: None, path: source.to_owned() }, image))
}

/// The image of which a version is named.
pub(super) fn image_of(which: &str) -> &str {
    which.split(':').next().unwrap_or(which)
}

/// What `STORE/NAME[:LABEL]` is on the store's host.
fn in_store(store: &Endpoint, name: &str, label: Option<&str>) -> Endpoint {
    let label = label.map_or(String::new(), |label| format!(":{label}"));
    Endpoint { path: format!("{}/{name}{label}", store.path.trim_end_matches('/')), ..store.clone() }
}

fn diff(store: &Store, args: &DiffArgs) -> Result<Code, Report> {
    let (left, right) = (store.find(&args.left)?, store.find(&args.right)?);
    let (one, other) = (store.version(&left)?, store.version(&right)?);
    let (mut chunks, mut ranges, mut more) = (0_u64, Vec::<(u64, u64)>::new(), 0_u64);
    for_each_difference(one.tree(), other.tree(), |chunk| {
        chunks += 1;
        let is_full = ranges.len() > RANGES_SHOWN;
        match ranges.last_mut() {
            Some((first, count)) if *first + *count == chunk => *count += 1,
            // The last of the list grows no more, but is not a new one for every chunk of a long run.
            _ if is_full => more += 1,
            _ => ranges.push((chunk, 1)),
        }
    })?;
    more += u64::from(ranges.len() > RANGES_SHOWN);
    ranges.truncate(RANGES_SHOWN);
    let bytes = chunks * CHUNK_SIZE as u64;
    let (one, other) = (one.tree().shape().size(), other.tree().shape().size());
    let at = |chunk: u64| chunk * CHUNK_SIZE as u64;
    let listed: Vec<Value> =
        ranges.iter().map(|(first, count)| json!({"offset": at(*first), "length": at(*count)})).collect();
    let line = json!({
        "left": left.to_string(), "right": right.to_string(), "left_size": one, "right_size": other,
        "bytes_differing": bytes, "ranges": listed, "ranges_are_all": more == 0,
    });
    say(args.json, &line, || {
        let mut text = match (bytes, one == other) {
            (0, true) => "they are the same".to_owned(),
            _ => format!("{} of 64 KiB chunks differ", ByteSize(bytes)),
        };
        if one != other {
            text += &format!("; the disks have {one} and {other} bytes");
        }
        for (first, count) in &ranges {
            text += &format!("\n  {} at byte {}", ByteSize(at(*count)), at(*first));
        }
        if more > 0 {
            text += "\n  …";
        }
        text
    })?;
    Ok(if left == right { Code::Success } else { Code::Findings })
}

fn channel(store: &Store, args: &ChannelArgs) -> Result<Code, Report> {
    let (image, channel) = (&args.image, &args.channel);
    let Some(which) = &args.which else {
        let root = rename(store, image, |names, _| names.remove_channel(channel))?;
        return deleted(args.json, image, "channel", channel, &root);
    };
    let now = jiff::Timestamp::now().as_second();
    let since = args.at.unwrap_or(now);
    // A whole root may name what is still on its way; anything shorter has to be here.
    let awaited = from_hex(which).map(Root);
    let root = match awaited {
        Some(root) if !store.has(&root)? && store.image(image)?.is_some() => root,
        _ => store.find(which)?,
    };
    let is_here = rename(store, image, |names, now| {
        match awaited.is_some() && !store.has(&root)? {
            true => names.await_version(channel, root, since, now)?,
            false => names.move_channel(channel, root, since, now)?,
        }
        Ok(names.has(&root))
    })?;
    moved(args.json, image, channel, Some(&root), || {
        let mut when = if since > now { format!(" from {} on", format_time(since)) } else { String::new() };
        if !is_here {
            when += ", once it is here whole";
        }
        format!("{image}:{channel} names version {}{when}", short(&root))
    })
}

fn promote(store: &Store, args: &PromoteArgs) -> Result<Code, Report> {
    let root = store.find(&format!("{}:{}", args.image, args.from))?;
    rename(store, &args.image, |names, now| names.move_channel(&args.to, root, now, now))?;
    moved(args.json, &args.image, &args.to, Some(&root), || {
        format!("{}:{} names version {}", args.image, args.to, short(&root))
    })
}

fn rollback(store: &Store, args: &RollbackArgs) -> Result<Code, Report> {
    let (image, channel) = (&args.image, &args.channel);
    let root = rename(store, image, |names, now| names.roll_back(channel, now))?;
    moved(args.json, image, channel, root.as_ref(), || match root {
        Some(root) => format!("{image}:{channel} names version {} again", short(&root)),
        None => format!("{image}:{channel} is gone: it named nothing yet"),
    })
}

fn tag(store: &Store, args: &TagArgs) -> Result<Code, Report> {
    let (image, name) = (&args.image, &args.name);
    let Some(which) = &args.which else {
        let root = rename(store, image, |names, _| names.remove_tag(name))?;
        return deleted(args.json, image, "tag", name, &root);
    };
    let root = store.find(which)?;
    rename(store, image, |names, _| names.tag(name, root))?;
    moved(args.json, image, name, Some(&root), || format!("{image}:{name} names version {}", short(&root)))
}

/// Changes what an image's versions are called; other writers are waited for in order.
fn rename<T: Send>(
    store: &Store,
    image: &str,
    change: impl FnOnce(&mut ImageNames, i64) -> StoreResult<T> + Send,
) -> Result<T, Report> {
    reading("waiting", |_| store.rename(image, change))
}

/// Says what a channel or a tag names now.
fn moved(
    is_json: bool,
    image: &str,
    name: &str,
    root: Option<&Root>,
    text: impl FnOnce() -> String,
) -> Result<Code, Report> {
    say(is_json, &json!({"image": image, "name": name, "root": root.map(ToString::to_string)}), text)?;
    Ok(Code::Success)
}

/// Says what a name named that is gone.
fn deleted(is_json: bool, image: &str, what: &str, name: &str, root: &Root) -> Result<Code, Report> {
    let line = json!({"image": image, "name": name, "named": root.to_string(), "deleted": true});
    say(is_json, &line, || format!("{what} {name} of {image} is gone; it named version {}", short(root)))?;
    Ok(Code::Success)
}

fn prune(store: &Store, args: &PruneArgs) -> Result<Code, Report> {
    let seconds = args.keep_for.map_or(0, |time| i64::try_from(time.as_secs()).unwrap_or(i64::MAX));
    let keep = Keep { count: args.keep, seconds, rollbacks: !args.no_rollback };
    let pruned = reading("pruning", |options| store.prune(&args.images, &keep, args.dry_run, options.stop))?;
    let mut lying = store.lying(&args.images)?;
    lying.retain(|lying| lying.pieces.is_out_of_order());
    let roots = |roots: &[Root]| roots.iter().map(ToString::to_string).collect::<Vec<_>>();
    let versions: Vec<Value> = pruned
        .versions
        .iter()
        .map(|(image, root)| json!({"image": image, "root": root.to_string()}))
        .collect();
    let line = json!({
        "versions": versions, "in_use": roots(&pruned.in_use), "chunks": pruned.chunks, "bytes": pruned.bytes,
        "packs": pruned.packs, "bytes_stuck": pruned.bytes_stuck, "dry_run": args.dry_run,
        "out_of_order": lying.iter().map(lying_json).collect::<Vec<_>>(),
    });
    say(args.json, &line, || {
        let done = if args.dry_run { "would remove" } else { "removed" };
        let mut text = String::new();
        for (image, root) in &pruned.versions {
            text += &format!("{done} version {} of {image}\n", short(root));
        }
        for root in &pruned.in_use {
            text += &format!("version {} is being read; the next prune takes it away\n", short(root));
        }
        let back = if args.dry_run { "would come back" } else { "came back" };
        text += &format!("{} {back}", ByteSize(pruned.bytes));
        if pruned.bytes_stuck > 0 {
            text += &format!(
                "\n{} are free in packs, and this file system cannot give them back; goldwire store repack does, once a \
                 pack is more than half free",
                ByteSize(pruned.bytes_stuck)
            );
        }
        for lying in &lying {
            text += &format!("\n{}: goldwire store repack puts it in order", lying_text(lying));
        }
        text
    })?;
    Ok(Code::Success)
}

/// The result, for people or for programs.
fn say(is_json: bool, json: &Value, text: impl FnOnce() -> String) -> Result<(), Report> {
    let line = if is_json { json_line(json) } else { text() };
    Ok(writeln!(io::stdout(), "{line}")?)
}

fn short(root: &Root) -> String {
    root.to_string()[..SHORT].to_owned()
}
