//! `goldwire disk …`: looking at images on this machine.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use goldwire_disk::{Finding, Image, OpenOptions, SameFolderOr, Severity};
use goldwire_replicate::wire::SourceFormat;
use goldwire_replicate::{Effort, Seeds, Select, SyncJob, WriteRules};
use goldwire_stdx::{ByteSize, Context, Report, printable, shell_path};
use goldwire_store::{
    BuildOptions, CHUNK_SIZE, Differences, Progress, PublicKey, Root, Store, TreeCache, Version, beside,
    describe, differences, keep_beside, signed_for_other, wrong_signer,
};
use serde_json::{Value, json};

use crate::agents::agents;
use crate::args::{CheckArgs, CompareArgs, ConvertArgs, InfoArgs, OpenArgs, SourceFormatArg, TreeArgs};
use crate::commands::reading::with_line;
use crate::commands::{json_line, json_path, key, shown, sync};
use crate::errors;
use crate::exit::Code;
use crate::progress::Mode;
use crate::time::format_time;

/// What the user said about the images.
fn options(args: &OpenArgs, format: Option<SourceFormatArg>) -> OpenOptions {
    OpenOptions {
        format: format.map(|format| SourceFormat::from(format).into()),
        gate: Arc::new(SameFolderOr(args.parents.clone())),
        ..OpenOptions::default()
    }
}

/// Opens an image and says what its reader should hear.
pub(super) fn open(path: &Path, args: &OpenArgs) -> Result<Image, Report> {
    open_as(path, args, args.source_format)
}

fn open_as(path: &Path, args: &OpenArgs, format: Option<SourceFormatArg>) -> Result<Image, Report> {
    let image = goldwire_disk::open(path, &options(args, format)).map_err(|error| not_opened(path, error))?;
    for notice in &image.notices {
        let _ = writeln!(io::stderr(), "note: {}", printable(notice));
    }
    Ok(image)
}

/// Why there is no image: what looks like one of a store's folder may be a version.
fn not_opened(path: &Path, error: goldwire_disk::Error) -> Report {
    let report = Report::from(error);
    match path.parent() {
        Some(store) if !path.exists() && Store::is_one(store) => report.hint(format!(
            "a version of a store is no file: `goldwire image show` and `goldwire image export` with --store {}",
            shell_path(store)
        )),
        _ => report,
    }
}

/// Whether digests that were kept earlier will do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trust {
    /// As long as the file has not changed since.
    Kept,
    /// No: whoever can change an image can change what is kept beside it.
    OnlyBytes,
}

/// The image's tree, with a progress line while it is made.
fn tree_of(path: &Path, image: &Image, trust: Trust) -> Result<TreeCache, Report> {
    let progress = Progress::default();
    let stop = AtomicBool::new(false);
    let options = BuildOptions { threads: None, stop: &stop, progress: &progress };
    let work = || match trust {
        Trust::Kept => TreeCache::of(image, &options),
        Trust::OnlyBytes => TreeCache::rebuild(image, &options),
    };
    with_line(&format!("{}: reading", shown(path)), &progress, work)?.with_context(|| shown(path))
}

/// Runs `show` for every image; one that fails is reported and the others still follow.
pub(super) fn for_each(
    images: &[PathBuf],
    mut show: impl FnMut(&Path) -> Result<Code, Report>,
) -> Result<Code, Report> {
    let mut worst = Code::Success;
    for path in images {
        let code = show(path).unwrap_or_else(|report| {
            errors::print_error(report);
            Code::Nothing
        });
        if worst == Code::Success || code == Code::Nothing {
            worst = code;
        }
    }
    Ok(worst)
}

pub(crate) fn info(args: &InfoArgs) -> Result<Code, Report> {
    for_each(&args.images, |path| {
        let image = open(path, &args.open)?;
        let kept = TreeCache::load(&image);
        let mut stdout = io::stdout().lock();
        if args.json {
            writeln!(stdout, "{}", json_line(&info_json(path, &image, kept.as_ref())))?;
        } else {
            print_info(&mut stdout, path, &image, kept.as_ref())?;
        }
        Ok(Code::Success)
    })
}

fn info_json(path: &Path, image: &Image, kept: Option<&TreeCache>) -> Value {
    let info = &image.info;
    let chain: Vec<_> = image
        .chain
        .iter()
        .map(|file| json!({"path": json_path(&file.path), "format": file.format.name(), "file_length": file.identity.length}))
        .collect();
    let details: serde_json::Map<_, _> =
        info.details.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
    json!({
        "path": json_path(path), "format": info.format.name(), "size": info.size, "file_length": file_length(image),
        "uuid": info.uuid.map(|uuid| uuid.to_string()), "created": info.created,
        "hidden": info.hidden, "chain": chain, "details": details, "notices": image.notices,
        "root": kept.map(|tree| tree.root.to_string()),
    })
}

fn file_length(image: &Image) -> u64 {
    image.chain.first().map_or(0, |file| file.identity.length)
}

fn print_info(out: &mut impl Write, path: &Path, image: &Image, kept: Option<&TreeCache>) -> io::Result<()> {
    let (info, file_length) = (&image.info, file_length(image));
    writeln!(out, "{}", shown(path))?;
    let mut row = |name: &str, value: String| writeln!(out, "  {name:<14} {}", printable(&value));
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
        row("parent", format!("{} ({})", shown(&parent.path), parent.format.name()))?;
    }
    row("root", kept.map_or("not computed; see goldwire disk tree".into(), |tree| tree.root.to_string()))
}

pub(crate) fn check(args: &CheckArgs) -> Result<Code, Report> {
    let required = args.require_signature.as_deref().map(key::public).transpose()?;
    for_each(&args.images, |path| {
        let findings = goldwire_disk::check(path, &options(&args.open, args.open.source_format));
        let mut findings = findings.map_err(|error| not_opened(path, error))?;
        let mut signature = None;
        if let Some(required) = required {
            let image = open(path, &args.open)?;
            let tree = tree_of(path, &image, Trust::OnlyBytes)?;
            let wrong = wrong_signature(path, &tree.root, required)?;
            signature = Some(wrong.is_none());
            findings.extend(wrong.map(|message| Finding {
                severity: Severity::Error,
                field: "signature".into(),
                offset: None,
                message,
            }));
        }
        let errors = findings.iter().filter(|finding| finding.severity == Severity::Error).count();
        let mut stdout = io::stdout().lock();
        if args.json {
            let findings: Vec<_> = findings
                .iter()
                .map(|finding| {
                    json!({"severity": severity(finding.severity), "field": finding.field,
                           "offset": finding.offset, "message": finding.message})
                })
                .collect();
            let value = json!({"path": json_path(path), "errors": errors, "findings": findings, "signature_fits": signature});
            writeln!(stdout, "{}", json_line(&value))?;
        } else {
            print_findings(&mut stdout, &shown(path), &findings)?;
            let verdict = match errors {
                0 => "no errors".to_owned(),
                1 => "1 error".to_owned(),
                _ => format!("{errors} errors"),
            };
            writeln!(stdout, "{}: {verdict}", shown(path))?;
        }
        Ok(if errors == 0 { Code::Success } else { Code::Findings })
    })
}

/// What is wrong with the signature of the content `root`, if `required` has to be whose it is.
fn wrong_signature(path: &Path, root: &Root, required: PublicKey) -> Result<Option<String>, Report> {
    let signer = beside(path, root)?.and_then(|(version, _)| version.signer);
    if signer == Some(required) {
        return Ok(None);
    }
    let other = signed_for_other(path, root)?.map(|other| other.display().to_string());
    Ok(Some(wrong_signer(root, signer, other.as_deref())))
}

fn print_findings(out: &mut impl Write, path: &str, findings: &[Finding]) -> io::Result<()> {
    for Finding { severity: level, field, offset, message } in findings {
        let at = offset.map_or(String::new(), |offset| format!(" at byte {offset}"));
        let text = format!("{}: {field}{at}: {message}", severity(*level));
        writeln!(out, "{path}: {}", printable(&text))?;
    }
    Ok(())
}

fn severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    }
}

pub(crate) fn convert(args: ConvertArgs) -> Result<Code, Report> {
    if args.source.host.is_some() || args.target.host.is_some() {
        return Err(Report::new("convert works on this machine; use goldwire sync between hosts"));
    }
    // A conversion is a sync from here to here: the same verification, the same safety, the same resume.
    let utf8 = |folder: &PathBuf| {
        let text = folder.to_str().map(str::to_owned);
        text.ok_or_else(|| Report::new(format!("the folder {} has a name that is not UTF-8", shown(folder))))
    };
    let folders = args.open.parents.iter().map(utf8).collect::<Result<_, Report>>()?;
    let mut job = SyncJob {
        select: Select {
            format: args.open.source_format.map(Into::into),
            parent_folders: folders,
            show_time: format_time,
            ..Select::default()
        },
        write: WriteRules {
            format: args.format.map(Into::into),
            replace: args.replace,
            ..WriteRules::default()
        },
        seeds: Seeds::Without,
        effort: Effort { level: Some(0), ..Effort::default() },
        ..SyncJob::new(args.source, vec![args.target], agents(&[])?)
    };
    job.reach.ssh.clear();
    let unlimited = "off".parse().map_err(|text: String| Report::new(text))?;
    sync::run_job(&job, if args.json { Mode::Json } else { Mode::People }, &unlimited, None)
}

pub(crate) fn compare(args: &CompareArgs) -> Result<Code, Report> {
    let left = open(&args.left, &args.open)?;
    let right = open_as(&args.right, &args.open, args.right_format.or(args.open.source_format))?;
    let trust = if args.read { Trust::OnlyBytes } else { Trust::Kept };
    let left_tree = tree_of(&args.left, &left, trust)?;
    let right_tree = tree_of(&args.right, &right, trust)?;
    let is_same = left_tree.root == right_tree.root;
    let differing =
        if is_same { Differences::default() } else { differences(&left_tree.tree, &right_tree.tree)? };
    let first = differing.first.map(|chunk| chunk * CHUNK_SIZE as u64);
    let (left_size, right_size) = (left.device.size(), right.device.size());
    let notices = [left.notices, right.notices].concat();
    let mut stdout = io::stdout().lock();
    if args.json {
        let value = json!({
            "identical": is_same, "left_root": left_tree.root.to_string(), "right_root": right_tree.root.to_string(),
            "left_size": left_size, "right_size": right_size, "chunks_differing": differing.chunks,
            "first_difference_in_chunk_at": first,
            "left_was_cached": left_tree.was_cached, "right_was_cached": right_tree.was_cached,
            "notices": notices,
        });
        writeln!(stdout, "{}", json_line(&value))?;
    } else if is_same {
        writeln!(stdout, "identical: root {}", left_tree.root)?;
    } else {
        if left_size != right_size {
            writeln!(stdout, "sizes differ: {left_size} and {right_size} bytes")?;
        }
        match first {
            Some(first) => {
                writeln!(stdout, "{} chunks of 64 KiB differ, the first at byte {first}", differing.chunks)?;
            }
            None => writeln!(stdout, "what both have is the same")?,
        }
    }
    for (path, tree) in [(&args.left, &left_tree), (&args.right, &right_tree)] {
        if tree.was_cached && !args.json {
            let kept = shown(tree.tree.path());
            let _ = writeln!(
                io::stderr(),
                "note: {} was not read: the digests in {kept} still fit it; --read reads it",
                shown(path)
            );
        }
    }
    Ok(if is_same { Code::Success } else { Code::Findings })
}

pub(crate) fn tree(args: &TreeArgs) -> Result<Code, Report> {
    let secret = args.sign.as_deref().map(key::secret).transpose()?;
    for_each(&args.images, |path| {
        let image = open(path, &args.open)?;
        // A signature vouches for bytes, not for digests that somebody kept.
        let trust = if secret.is_some() { Trust::OnlyBytes } else { Trust::Kept };
        let tree = tree_of(path, &image, trust)?;
        let (mut version, _) = describe(path, &image, &tree)?;
        if let Some(secret) = &secret {
            version.note = args.note.clone().unwrap_or(version.note);
            version.parent = args.parent.or(version.parent);
            keep_beside(path, &version.encode(Some(secret))?)?;
            version.signer = Some(secret.public());
        }
        let mut stdout = io::stdout().lock();
        if args.json {
            writeln!(stdout, "{}", json_line(&tree_json(path, &image, &version, &tree)))?;
        } else {
            let signed = version.signer.map_or(String::new(), |signer| format!("  signed by {signer}"));
            writeln!(stdout, "{}  {}{signed}", tree.root, shown(path))?;
        }
        Ok(Code::Success)
    })
}

fn tree_json(path: &Path, image: &Image, version: &Version, tree: &TreeCache) -> Value {
    json!({
        "path": json_path(path), "root": version.root.to_string(), "size": version.size,
        "bytes_used": version.chunks_used * CHUNK_SIZE as u64, "created": version.created,
        "parent": version.parent.map(|parent| parent.to_string()), "name": version.name, "note": version.note,
        "signer": version.signer.map(|signer| signer.to_string()), "was_cached": tree.was_cached,
        "notices": image.notices,
    })
}
