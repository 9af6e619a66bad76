//! `goldwire store repack`: versions in order, and how well they lie.

use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use goldwire_stdx::{ByteSize, Report, TokenBucket};
use goldwire_store::{CHUNK_SIZE, Lying, OutOfOrder, RepackBounds, Repacked};
use serde_json::{Value, json};

use super::json_line;
use super::reading::{pause, reading, tell_waits};
use super::store::Named;
use crate::args::RepackArgs;
use crate::exit::Code;
use crate::schedule::Schedule;

pub(crate) fn run(args: &RepackArgs) -> Result<Code, Report> {
    let named = Named { store: args.store.store.as_deref(), config: args.store.config.as_deref() };
    let store = named.open()?;
    tell_waits(&store);
    let brake = Brake::new(args.bwlimit.clone());
    let done = reading("copying", |options| {
        let pace = |bytes| brake.wait(bytes);
        let bounds = RepackBounds { space: args.max_space.0, pace: &pace };
        store.repack(&args.images, &bounds, args.dry_run, options)
    })?;
    let line = if args.json { json_line(&as_json(&done, args.dry_run)) } else { as_text(&done) };
    writeln!(io::stdout(), "{line}")?;
    Ok(Code::Success)
}

/// How a version lies, for people.
pub(super) fn lying_text(lying: &Lying) -> String {
    format!("{}:{} is read in {:.2} pieces a MiB", lying.image, lying.label, lying.pieces.mean())
}

/// How a version lies, for programs.
pub(super) fn lying_json(lying: &Lying) -> Value {
    json!({
        "image": lying.image, "label": lying.label, "root": lying.root.to_string(),
        "pieces_per_mib": lying.pieces.mean(), "pieces": lying.pieces.ranges, "mib_with_data": lying.pieces.stretches,
        "out_of_order": lying.pieces.is_out_of_order(),
    })
}

fn as_json(done: &Repacked, is_dry: bool) -> Value {
    let versions = done.versions.iter().map(|version| {
        let left = version.left.map(|left| match left {
            OutOfOrder::DryRun => "dry_run",
            OutOfOrder::Space => "space",
            OutOfOrder::Shared => "shared",
        });
        json!({"before": lying_json(&version.before), "pieces_per_mib": version.after.mean(), "left": left})
    });
    json!({
        "versions": versions.collect::<Vec<_>>(), "chunks": done.chunks, "chunks_resumed": done.chunks_resumed,
        "bytes": done.bytes, "packs_emptied": done.packs_emptied, "packs_left": done.packs_left, "dry_run": is_dry,
    })
}

fn as_text(done: &Repacked) -> String {
    let mut text = String::new();
    for version in &done.versions {
        text += &lying_text(&version.before);
        text += &match version.left {
            None => format!(", now in {:.2}\n", version.after.mean()),
            Some(OutOfOrder::DryRun) => " and would be put in order\n".to_owned(),
            Some(OutOfOrder::Space) => {
                format!(", now in {:.2}: the rest takes more space than --max-space\n", version.after.mean())
            }
            Some(OutOfOrder::Shared) => format!(
                ", now in {:.2}: its chunks repeat or others have them in another order\n",
                version.after.mean()
            ),
        };
    }
    match (done.packs_emptied, done.packs_left) {
        (0, 0) => {}
        (emptied, 0) => text += &format!("{emptied} packs of holes emptied\n"),
        (emptied, left) => {
            text += &format!("{emptied} packs of holes emptied; {left} take more space than --max-space\n");
        }
    }
    text += &match (done.versions.is_empty(), done.chunks) {
        (true, 0) => "everything that channels name is in order".to_owned(),
        (_, chunks) => {
            format!("{} copied, {} came back", ByteSize(chunks * CHUNK_SIZE as u64), ByteSize(done.bytes))
        }
    };
    text
}

/// Lets nobody copy faster than a limit, which may change with the time of day.
struct Brake {
    limits: Schedule,
    began: Instant,
    bucket: Mutex<TokenBucket>,
}

impl Brake {
    fn new(limits: Schedule) -> Self {
        let bucket = Mutex::new(TokenBucket::new(limits.limit_now(), Duration::ZERO));
        Self { limits, began: Instant::now(), bucket }
    }

    /// Waits until so many bytes may be copied, or somebody wants to stop.
    fn wait(&self, bytes: u64) {
        let left = {
            let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
            let now = self.began.elapsed();
            if self.limits.changes() {
                bucket.set_rate(self.limits.limit_now(), now);
            }
            bucket.take(bytes, now)
        };
        if !left.is_zero() {
            pause(left);
        }
    }
}
