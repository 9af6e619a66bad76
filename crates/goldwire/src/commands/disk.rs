//! `goldwire disk …`: looking at images on this machine.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use goldwire_disk::{Folders, Image, OpenOptions, Severity};
use goldwire_replicate::{Effort, Seeds, SyncJob, WriteRules};
use goldwire_stdx::{ByteSize, watched};
use goldwire_store::{
    BuildOptions, CHUNK_SIZE, Progress, TreeCache, Version, beside, for_each_difference, keep_beside,
};
use serde_json::json;

use crate::agents::agents;
use crate::args::{CheckArgs, CompareArgs, ConvertArgs, InfoArgs, TreeArgs};
use crate::commands::{key, sync};
use crate::exit::{Code, report};
use crate::progress::Mode;
use crate::time::format_time;

/// How often a terminal shows how far reading is.
const SHOW_EVERY: Duration = Duration::from_millis(200);

/// Parents may lie in the image's own folder.
fn open(path: &Path) -> anyhow::Result<Image> {
    let folder = std::fs::canonicalize(path).ok().and_then(|path| path.parent().map(Path::to_owned));
    let gate = std::sync::Arc::new(Folders(folder.into_iter().collect()));
    Ok(goldwire_disk::open(path, &OpenOptions { gate, ..OpenOptions::default() })?)
}

/// Whether digests that were kept earlier will do.
#[derive(Clone, Copy)]
enum Trust {
    /// As long as the file has not changed since.
    Kept,
    /// No: whoever can change an image can change what is kept beside it.
    OnlyBytes,
}

/// The image's tree, with a progress line while it is made.
fn tree_of(path: &Path, image: &Image, trust: Trust) -> anyhow::Result<TreeCache> {
    let progress = Progress::default();
    let stop = AtomicBool::new(false);
    let options = BuildOptions { threads: None, stop: &stop, progress: &progress };
    let is_shown = io::stderr().is_terminal();
    let mut was_shown = false;
    let work = || match trust {
        Trust::Kept => TreeCache::of(image, &options),
        Trust::OnlyBytes => TreeCache::rebuild(image, &options),
    };
    let tree = watched(SHOW_EVERY, work, || {
        if is_shown {
            let done = progress.bytes_done.load(Ordering::Relaxed);
            let total = progress.bytes_total.load(Ordering::Relaxed).max(1);
            let percent = done as f64 * 100.0 / total as f64;
            let _ = write!(io::stderr(), "\r{}: reading, {percent:.0}%  ", path.display());
            was_shown = true;
        }
    });
    if was_shown {
        let _ = write!(io::stderr(), "\r\x1b[K");
    }
    tree?.with_context(|| path.display().to_string())
}

/// Runs `show` for every image; one that fails is reported and the others still follow.
fn for_each(images: &[PathBuf], mut show: impl FnMut(&Path) -> anyhow::Result<Code>) -> anyhow::Result<Code> {
    let mut worst = Code::Well;
    for path in images {
        let code = show(path).unwrap_or_else(|error| {
            let _ = writeln!(io::stderr(), "error: {}", report(&error));
            Code::Nothing
        });
        if worst == Code::Well || code == Code::Nothing {
            worst = code;
        }
    }
    Ok(worst)
}

pub(crate) fn info(args: &InfoArgs) -> anyhow::Result<Code> {
    for_each(&args.images, |path| {
        let image = open(path)?;
        let kept = TreeCache::load(&image);
        let info = &image.info;
        let file_length: u64 = image.chain.iter().take(1).map(|link| link.identity.length).sum();
        let mut stdout = io::stdout().lock();
        if args.json {
            let chain: Vec<_> = image
                .chain
                .iter()
                .map(|link| json!({"path": link.path, "format": link.format.name(), "file_length": link.identity.length}))
                .collect();
            let details: serde_json::Map<_, _> =
                info.details.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
            let value = json!({
                "path": path, "format": info.format.name(), "size": info.size, "file_length": file_length,
                "uuid": info.uuid.map(|uuid| uuid.to_string()), "created": info.created,
                "hidden": info.hidden, "chain": chain, "details": details,
                "root": kept.map(|tree| tree.root.to_string()),
            });
            writeln!(stdout, "{value}")?;
            return Ok(Code::Well);
        }
        writeln!(stdout, "{}", path.display())?;
        let mut row = |name: &str, value: String| writeln!(stdout, "  {name:<14} {value}");
        row("format", info.format.name().to_owned())?;
        row("disk size", format!("{} ({} bytes)", ByteSize(info.size), info.size))?;
        row("file length", format!("{} ({file_length} bytes)", ByteSize(file_length)))?;
        if let Some(uuid) = info.uuid {
            row("uuid", uuid.to_string())?;
        }
        if let Some(created) = info.created {
            row("created", format_time(created))?;
        }
        if let Some(hidden) = info.hidden {
            row("hidden", hidden.to_string())?;
        }
        for (name, value) in &info.details {
            row(name, value.clone())?;
        }
        for parent in image.chain.iter().skip(1) {
            row("parent", format!("{} ({})", parent.path.display(), parent.format.name()))?;
        }
        row(
            "root",
            kept.map_or("not computed; see goldwire disk tree".into(), |tree| tree.root.to_string()),
        )?;
        Ok(Code::Well)
    })
}

pub(crate) fn check(args: &CheckArgs) -> anyhow::Result<Code> {
    let required = args.require_signature.as_deref().map(key::public).transpose()?;
    for_each(&args.images, |path| {
        let findings = goldwire_disk::check(path, &OpenOptions::default())?;
        let mut errors = findings.iter().filter(|finding| finding.severity == Severity::Error).count();
        let mut signature = None;
        if let Some(required) = required {
            let image = open(path)?;
            let tree = tree_of(path, &image, Trust::OnlyBytes)?;
            let is_signed =
                beside(path, &tree.root)?.is_some_and(|(version, _)| version.signer == Some(required));
            errors += usize::from(!is_signed);
            signature = Some(is_signed);
        }
        let mut stdout = io::stdout().lock();
        if args.json {
            let findings: Vec<_> = findings
                .iter()
                .map(|finding| {
                    json!({"severity": severity(finding.severity), "field": finding.field,
                           "offset": finding.offset, "message": finding.message})
                })
                .collect();
            let value =
                json!({"path": path, "errors": errors, "findings": findings, "signature_fits": signature});
            writeln!(stdout, "{value}")?;
        } else {
            for finding in &findings {
                let at = finding.offset.map_or(String::new(), |offset| format!(" at byte {offset}"));
                writeln!(
                    stdout,
                    "{}: {}: {}{at}: {}",
                    path.display(),
                    severity(finding.severity),
                    finding.field,
                    finding.message
                )?;
            }
            if signature == Some(false) {
                writeln!(
                    stdout,
                    "{}: error: the content is not what the required key signed",
                    path.display()
                )?;
            }
            let verdict = if errors == 0 { "no errors".to_owned() } else { format!("{errors} errors") };
            writeln!(stdout, "{}: {verdict}", path.display())?;
        }
        Ok(if errors == 0 { Code::Well } else { Code::Findings })
    })
}

fn severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    }
}

pub(crate) fn convert(args: ConvertArgs) -> anyhow::Result<Code> {
    if args.source.host.is_some() || args.target.host.is_some() {
        bail!("convert works on this machine; use goldwire sync between hosts");
    }
    // A conversion is a sync from here to here: the same verification, the same safety, the same resume.
    let job = SyncJob {
        write: WriteRules {
            format: args.format.map(Into::into),
            replace: args.replace,
            ..WriteRules::default()
        },
        seeds: Seeds::Without,
        effort: Effort { level: Some(0), ..Effort::default() },
        ..SyncJob::new(args.source, vec![args.target], agents(&[])?)
    };
    let unlimited = "off".parse().map_err(anyhow::Error::msg)?;
    sync::run_job(&job, if args.json { Mode::Json } else { Mode::People }, &unlimited, None)
}

pub(crate) fn compare(args: &CompareArgs) -> anyhow::Result<Code> {
    let (left, right) = (open(&args.left)?, open(&args.right)?);
    let (left_tree, right_tree) =
        (tree_of(&args.left, &left, Trust::Kept)?, tree_of(&args.right, &right, Trust::Kept)?);
    let is_same = left_tree.root == right_tree.root;
    let (mut first, mut differing) = (None, 0_u64);
    if !is_same {
        for_each_difference(&left_tree.tree, &right_tree.tree, |index| {
            first = first.or(Some(index * CHUNK_SIZE as u64));
            differing += 1;
        })?;
    }
    let (left_size, right_size) = (left.device.size(), right.device.size());
    let mut stdout = io::stdout().lock();
    if args.json {
        let value = json!({
            "identical": is_same, "left_root": left_tree.root.to_string(), "right_root": right_tree.root.to_string(),
            "left_size": left_size, "right_size": right_size, "chunks_differing": differing,
            "first_difference_in_chunk_at": first,
        });
        writeln!(stdout, "{value}")?;
    } else if is_same {
        writeln!(stdout, "identical: root {}", left_tree.root)?;
    } else {
        if left_size != right_size {
            writeln!(stdout, "sizes differ: {left_size} and {right_size} bytes")?;
        }
        match first {
            Some(first) => {
                writeln!(stdout, "{differing} chunks of 64 KiB differ, the first at byte {first}")?
            }
            None => writeln!(stdout, "what both have is the same")?,
        }
    }
    Ok(if is_same { Code::Well } else { Code::Findings })
}

pub(crate) fn tree(args: &TreeArgs) -> anyhow::Result<Code> {
    let secret = args.sign.as_deref().map(key::secret).transpose()?;
    for_each(&args.images, |path| {
        let image = open(path)?;
        // A signature vouches for bytes, not for digests that somebody kept.
        let trust = if secret.is_some() { Trust::OnlyBytes } else { Trust::Kept };
        let tree = tree_of(path, &image, trust)?;
        let mut version = match beside(path, &tree.root)? {
            Some((version, _)) => version,
            None => Version {
                root: tree.root,
                size: image.device.size(),
                chunks_used: tree.chunks_used,
                created: image
                    .chain
                    .first()
                    .map_or(0, |link| link.identity.modified_ns.div_euclid(1_000_000_000) as i64),
                parent: None,
                name: path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
                note: String::new(),
                signer: None,
            },
        };
        if let Some(secret) = &secret {
            version.note = args.note.clone().unwrap_or(version.note);
            version.parent = args.parent.or(version.parent);
            let bytes = version.encode(Some(secret))?;
            keep_beside(path, &bytes)?;
            version.signer = Some(secret.public());
        }
        let mut stdout = io::stdout().lock();
        if args.json {
            let value = json!({
                "path": path, "root": version.root.to_string(), "size": version.size,
                "bytes_used": version.chunks_used * CHUNK_SIZE as u64, "created": version.created,
                "parent": version.parent.map(|parent| parent.to_string()), "note": version.note,
                "signer": version.signer.map(|signer| signer.to_string()), "was_cached": tree.was_cached,
            });
            writeln!(stdout, "{value}")?;
        } else {
            let signed = version.signer.map_or(String::new(), |signer| format!("  signed by {signer}"));
            writeln!(stdout, "{}  {}{signed}", tree.root, path.display())?;
        }
        Ok(Code::Well)
    })
}
