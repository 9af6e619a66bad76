//! `goldwire disk tidy`: takes away what syncs left beside images.

use std::io::{self, Write};

use goldwire_replicate::{Extent, Leftover, Reason, Tidying, tidy};
use goldwire_stdx::{ByteSize, Report, printable_bytes};
use serde_json::json;

use super::disk::for_each;
use super::{json_line, json_path};
use crate::args::TidyArgs;
use crate::exit::Code;

pub(crate) fn run(args: &TidyArgs) -> Result<Code, Report> {
    let extent = if args.all { Extent::Everything } else { Extent::Leftovers };
    let tidying = if args.dry_run { Tidying::Look } else { Tidying::Remove };
    for_each(&args.folders, |folder| {
        let mut stdout = io::stdout().lock();
        let tidied = tidy(folder, extent, tidying);
        for left in tidied.left {
            let what = what(left.what);
            if args.json {
                let line = json!({"path": json_path(&left.path), "what": what, "bytes": left.bytes, "removed": !args.dry_run});
                writeln!(stdout, "{}", json_line(&line))?;
            } else {
                let path = printable_bytes(left.path.as_os_str().as_encoded_bytes());
                let done = if args.dry_run { "would remove" } else { "removed" };
                writeln!(stdout, "{done} {what}, {}: {path}", ByteSize(left.bytes))?;
            }
        }
        for spared in tidied.spared {
            let (what, why) = (what(spared.what), why(spared.reason));
            if args.json {
                let line = json!({"path": json_path(&spared.path), "what": what, "removed": false, "left_alone": why});
                writeln!(stdout, "{}", json_line(&line))?;
            } else {
                let path = printable_bytes(spared.path.as_os_str().as_encoded_bytes());
                writeln!(stdout, "left alone {what}, {why}: {path}")?;
            }
        }
        // What was taken away is said in any case.
        tidied.failure.map_or(Ok(Code::Success), |failure| Err(failure.into()))
    })
}

fn what(leftover: Leftover) -> &'static str {
    match leftover {
        Leftover::Work => "unfinished work",
        Leftover::Lock => "lock",
        Leftover::Digests => "digests",
        Leftover::Descriptor => "descriptor",
        Leftover::Scratch => "scratch",
        Leftover::Folder => "folder",
    }
}

fn why(reason: Reason) -> String {
    match reason {
        Reason::Held => "a running sync holds it".into(),
        Reason::OtherUser(user) => format!("it is user {user}'s, who tidies it himself"),
    }
}
