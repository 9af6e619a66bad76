//! `goldwire disk tidy`: takes away what syncs left beside images.

use std::io::{self, Write};

use goldwire_replicate::{Extent, Leftover, Tidying, tidy};
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
            let what = match left.what {
                Leftover::Work => "unfinished work",
                Leftover::Lock => "lock",
                Leftover::Digests => "digests",
                Leftover::Descriptor => "descriptor",
                Leftover::Scratch => "scratch",
            };
            if args.json {
                let line = json!({"path": json_path(&left.path), "what": what, "bytes": left.bytes, "removed": !args.dry_run});
                writeln!(stdout, "{}", json_line(&line))?;
            } else {
                let path = printable_bytes(left.path.as_os_str().as_encoded_bytes());
                let done = if args.dry_run { "would remove" } else { "removed" };
                writeln!(stdout, "{done} {what}, {}: {path}", ByteSize(left.bytes))?;
            }
        }
        // What was taken away is said in any case.
        tidied.failure.map_or(Ok(Code::Success), |failure| Err(failure.into()))
    })
}
