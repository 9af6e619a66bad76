//! What was typed, as close to the actual arguments as possible.

pub(crate) mod boot;
pub(crate) mod store;

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use goldwire_replicate::wire::{SourceFormat, WireFormat};
use goldwire_replicate::{Endpoint, Route};
use goldwire_stdx::Uuid;

pub(crate) use self::boot::BootCommand;
pub(crate) use self::store::{
    BetweenArgs, ChannelArgs, DiffArgs, ExportArgs, ImageArgs, ImageCommand, ImageListArgs, ImportArgs,
    PromoteArgs, PruneArgs, PublishArgs, PullArgs, PushArgs, RepackArgs, RollbackArgs, RunArgs, StoreCommand,
    StoreInitArgs, StoreLookArgs, StoreRequireArgs, TagArgs, VersionArgs,
};
use crate::schedule::Schedule;

/// Golden disk images, over the wire: one image, byte-identical at every site.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, arg_required_else_help = true, max_term_width = 110)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Bring a disk image to one or more places, verified, as a delta.
    Sync(Box<SyncArgs>),
    /// Look at, check, convert and compare disk images.
    #[command(subcommand)]
    Disk(DiskCommand),
    /// Versions of a site's images: publish, name, write out, take away.
    Image(ImageArgs),
    /// The store in which a site's images are kept.
    #[command(subcommand)]
    Store(StoreCommand),
    /// Boot machines over the network, whichever server is alive.
    #[command(subcommand)]
    Boot(BootCommand),
    /// Keys that sign versions.
    #[command(subcommand)]
    Key(KeyCommand),
    /// Print shell completions.
    Completions {
        /// The shell to complete for.
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a folder.
    Man {
        /// An existing folder.
        folder: PathBuf,
    },
    /// Work as an agent; started by goldwire itself.
    #[command(hide = true)]
    Agent {
        /// Speak the protocol over standard input and output.
        #[arg(long, required = true)]
        stdio: bool,
        /// What `sync` was given, for the hosts that are reached from here.
        #[arg(long, value_name = "FILE")]
        agent_program: Vec<PathBuf>,
    },
}

const SYNC_HELP: &str = "\
Exit codes: 0 every target has the version, 1 nothing was done, 2 wrong usage, 3 some targets failed, \
4 stopped (the same command continues).

Signals: INT and TERM stop in order and leave resumable work, USR1 pauses, USR2 resumes.

Examples:
  goldwire sync Win10.vhd backup:/images/
  goldwire sync --match 'Win10-baseDisk*.vhd' --youngest master:/run/sr-mount/SR host1:/run/sr-mount/SR1 \
host2:/run/sr-mount/SR2
  goldwire sync --dry-run --seed old.vhd master:/images/new.vhd site2:/images/new.vhd";

#[derive(Debug, Parser)]
#[command(after_help = SYNC_HELP)]
pub(crate) struct SyncArgs {
    /// The image: PATH, [USER@]HOST:PATH or ssh://[USER@]HOST[:PORT]/PATH; a folder together with --match.
    pub(crate) source: Endpoint,
    /// Where it goes: PATH or [USER@]HOST:PATH; a folder keeps the image's name.
    #[arg(required = true)]
    pub(crate) targets: Vec<Endpoint>,

    /// Take the image in the source folder whose file name matches (`*`, `?`, `[a-z]`).
    #[arg(long = "match", value_name = "PATTERN", help_heading = "Which image")]
    pub(crate) pattern: Option<String>,
    /// Of several images, take the one modified last.
    #[arg(long, conflicts_with = "uuid", help_heading = "Which image")]
    pub(crate) youngest: bool,
    /// Of several images, take the one with this VHD uuid.
    #[arg(long, help_heading = "Which image")]
    pub(crate) uuid: Option<Uuid>,
    /// What the image is, whatever its bytes and its name look like; by default its content says.
    #[arg(long, value_enum, value_name = "FORMAT", help_heading = "Which image")]
    pub(crate) source_format: Option<SourceFormatArg>,
    /// Parents may lie in this folder of the source host, too, if the image says that they are there; a block device may be
    /// named itself.
    #[arg(long, value_name = "FOLDER", help_heading = "Which image")]
    pub(crate) parents: Vec<String>,

    /// Take chunks from this image at each target. Without it, the previous version is looked for in the target's
    /// folder.
    #[arg(long, value_name = "IMAGE", help_heading = "What is written")]
    pub(crate) seed: Vec<String>,
    /// Look for no seed; fetch everything.
    #[arg(long, conflicts_with = "seed", help_heading = "What is written")]
    pub(crate) no_seed: bool,
    /// Put the new version in the place of an existing file once it is verified.
    #[arg(long, help_heading = "What is written")]
    pub(crate) replace: bool,
    /// The container to write; by default that of the target's file name, else the source's.
    #[arg(long, value_enum, help_heading = "What is written")]
    pub(crate) format: Option<FormatArg>,
    /// The file name in target folders; `{uuid}` stands for a uuid made from the content and the folder.
    #[arg(long, value_parser = parse_name, help_heading = "What is written")]
    pub(crate) name: Option<String>,
    /// Permission bits of the new file, octal; by default those of the file it replaces, else the source's.
    #[arg(long, value_parser = parse_mode, help_heading = "What is written")]
    pub(crate) mode: Option<u32>,
    /// Numeric owner of the new file, UID:GID; by default that of the file it replaces.
    #[arg(long, value_name = "UID:GID", value_parser = parse_owner, help_heading = "What is written")]
    pub(crate) owner: Option<(u32, u32)>,

    /// The ssh to use, with options, split as a shell would.
    #[arg(long, value_name = "COMMAND", default_value = "ssh", help_heading = "Way")]
    pub(crate) ssh_command: String,
    /// The ssh that the source host uses to reach targets.
    #[arg(long, value_name = "COMMAND", default_value = "ssh -o BatchMode=yes", help_heading = "Way")]
    pub(crate) remote_ssh_command: String,
    /// Whether data goes from host to host, through this machine, or whichever works.
    #[arg(long, value_enum, default_value_t = RouteArg::Auto, help_heading = "Way")]
    pub(crate) route: RouteArg,
    /// A goldwire-agent for another kind of machine.
    #[arg(long, value_name = "FILE", help_heading = "Way")]
    pub(crate) agent_program: Vec<PathBuf>,

    /// Most bytes per second that a sending machine may send: 20MB, or by time of day: `08:00,10M 18:00,off`.
    #[arg(long, value_name = "LIMIT", default_value = "off", help_heading = "Politeness")]
    pub(crate) bwlimit: Schedule,
    /// Stop after this time and leave the rest for the next run: 90s, 30m, 2h.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = "Politeness")]
    pub(crate) max_time: Option<Duration>,
    /// Wait this long for another sync to the same target to end; without it that is an error.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = "Politeness")]
    pub(crate) wait: Option<Duration>,
    /// Give a host up that answers and comes no further for this long; by default one hour.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = "Politeness")]
    pub(crate) stall_time: Option<Duration>,
    /// Nice value of the agents, 0 to 19.
    #[arg(long, value_parser = within::<u8>(0..=19), help_heading = "Politeness")]
    pub(crate) nice: Option<u8>,
    /// I/O class of the agents: idle, or best-effort with a level from 0 to 7.
    #[arg(long, value_name = "CLASS", value_parser = parse_ionice, help_heading = "Politeness")]
    pub(crate) ionice: Option<(u8, u8)>,
    /// zstd level of what is sent, 0 for none; by default it adapts to the link.
    #[arg(long, value_name = "LEVEL", allow_hyphen_values = true,
          value_parser = within::<i32>(-7..=19), help_heading = "Politeness")]
    pub(crate) compress_level: Option<i32>,
    /// Threads per agent; by default as many as the machine has cores, at most 8.
    #[arg(long, value_parser = within::<u16>(1..=64), help_heading = "Politeness")]
    pub(crate) threads: Option<u16>,

    /// Sign the version with this key file.
    #[arg(long, value_name = "KEY", help_heading = "Signatures")]
    pub(crate) sign: Option<PathBuf>,
    /// Refuse a source whose version is not signed by this public key (file, or the key itself).
    #[arg(long, value_name = "KEY", help_heading = "Signatures")]
    pub(crate) require_signature: Option<String>,
    /// With --require-signature, replace a version that the key signed by one that was created earlier.
    #[arg(long, requires = "require_signature", help_heading = "Signatures")]
    pub(crate) allow_older: bool,
    /// Only a version of this name: the one in its descriptor, which a signature covers.
    #[arg(long, value_name = "NAME", help_heading = "Signatures")]
    pub(crate) require_name: Option<String>,
    /// Free text to keep with the version.
    #[arg(long, help_heading = "Signatures")]
    pub(crate) note: Option<String>,

    /// Say what would move, and move nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print events for programs, one JSON object a line.
    #[arg(long)]
    pub(crate) json: bool,
    /// Print only errors and the summary.
    #[arg(long, short, conflicts_with = "json")]
    pub(crate) quiet: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DiskCommand {
    /// Show what an image is: format, sizes, uuid, parents.
    Info(InfoArgs),
    /// Check an image's structure; exit code 5 if it has errors.
    Check(CheckArgs),
    /// Write an image in another container, verified by reading it back.
    Convert(Box<ConvertArgs>),
    /// Compare what two images hold, whatever their containers; exit code 5 if they differ.
    Compare(CompareArgs),
    /// Print an image's root digest; sign it.
    Tree(TreeArgs),
    /// Take away what syncs left beside images: unfinished work, and what was kept of images that are gone.
    Tidy(TidyArgs),
}

/// How the images of a `disk` command are opened.
#[derive(Debug, Parser)]
pub(crate) struct OpenArgs {
    /// What the images are, whatever their bytes and their names look like; by default their content says.
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub(crate) source_format: Option<SourceFormatArg>,
    /// Parents may lie in this folder and below it, too, if the image says that they are there, and not only in the
    /// image's own; a block device may be named itself.
    #[arg(long, value_name = "FOLDER")]
    pub(crate) parents: Vec<PathBuf>,
}

#[derive(Debug, Parser)]
pub(crate) struct InfoArgs {
    /// The images.
    #[arg(required = true)]
    pub(crate) images: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) open: OpenArgs,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Parser)]
pub(crate) struct CheckArgs {
    /// The images.
    #[arg(required = true)]
    pub(crate) images: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) open: OpenArgs,
    /// Also require that the content is what this public key signed.
    #[arg(long, value_name = "KEY")]
    pub(crate) require_signature: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Parser)]
pub(crate) struct ConvertArgs {
    /// The image to read.
    pub(crate) source: Endpoint,
    /// The file to write.
    pub(crate) target: Endpoint,
    #[command(flatten)]
    pub(crate) open: OpenArgs,
    /// The container to write; by default that of the target's file name.
    #[arg(long, value_enum)]
    pub(crate) format: Option<FormatArg>,
    /// Replace an existing file.
    #[arg(long)]
    pub(crate) replace: bool,
    /// Print events for programs, one JSON object a line.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Parser)]
pub(crate) struct CompareArgs {
    /// One image.
    pub(crate) left: PathBuf,
    /// The other.
    pub(crate) right: PathBuf,
    #[command(flatten)]
    pub(crate) open: OpenArgs,
    /// What the second image is, if it is not what --source-format says of the first.
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub(crate) right_format: Option<SourceFormatArg>,
    /// Read both wholly, also where digests were kept that still fit.
    #[arg(long)]
    pub(crate) read: bool,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Parser)]
pub(crate) struct TreeArgs {
    /// The images.
    #[arg(required = true)]
    pub(crate) images: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) open: OpenArgs,
    /// Sign each version with this key file and keep the descriptor beside the image.
    #[arg(long, value_name = "KEY")]
    pub(crate) sign: Option<PathBuf>,
    /// Free text to keep with the version.
    #[arg(long, requires = "sign")]
    pub(crate) note: Option<String>,
    /// The root of the version that this one was made from.
    #[arg(long, value_name = "ROOT", requires = "sign", value_parser = parse_root)]
    pub(crate) parent: Option<goldwire_store::Root>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Parser)]
pub(crate) struct TidyArgs {
    /// The folders with the images.
    #[arg(required = true)]
    pub(crate) folders: Vec<PathBuf>,
    /// Also take away digests and descriptors, with their signatures, of images that are there.
    #[arg(long)]
    pub(crate) all: bool,
    /// Say what would be taken away, and take nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print JSON, one object a line.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Make a key pair: FILE (secret) and FILE.pub.
    New(KeyNewArgs),
}

#[derive(Debug, Parser)]
pub(crate) struct KeyNewArgs {
    /// Where to write the secret key; must not exist.
    pub(crate) file: PathBuf,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum FormatArg {
    /// Sparse raw file.
    Raw,
    /// Dynamic VHD.
    Vhd,
    /// Fixed VHD.
    VhdFixed,
    /// QCOW2 version 3.
    Qcow2,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum SourceFormatArg {
    /// A plain disk, byte for byte.
    Raw,
    /// A VHD of any kind.
    Vhd,
    /// QCOW2.
    Qcow2,
}

impl From<SourceFormatArg> for SourceFormat {
    fn from(format: SourceFormatArg) -> Self {
        match format {
            SourceFormatArg::Raw => Self::Raw,
            SourceFormatArg::Vhd => Self::Vhd,
            SourceFormatArg::Qcow2 => Self::Qcow2,
        }
    }
}

impl From<FormatArg> for WireFormat {
    fn from(format: FormatArg) -> Self {
        match format {
            FormatArg::Raw => Self::Raw,
            FormatArg::Vhd => Self::VhdDynamic,
            FormatArg::VhdFixed => Self::VhdFixed,
            FormatArg::Qcow2 => Self::Qcow2,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum RouteArg {
    /// From the source host to the target host.
    Direct,
    /// Through this machine.
    Relay,
    /// Direct if the source reaches the target, else through this machine.
    Auto,
}

impl From<RouteArg> for Route {
    fn from(route: RouteArg) -> Self {
        match route {
            RouteArg::Direct => Self::Direct,
            RouteArg::Relay => Self::Relay,
            RouteArg::Auto => Self::Auto,
        }
    }
}

/// A number of a range, which the refusal names as people do: clap's own leaves the end out.
pub(crate) fn within<N: FromStr + PartialOrd + Display + Clone>(
    range: RangeInclusive<N>,
) -> impl Fn(&str) -> Result<N, String> + Clone {
    move |text| {
        let number = text.parse().ok().filter(|number| range.contains(number));
        number.ok_or_else(|| format!("write a number from {} to {}", range.start(), range.end()))
    }
}

fn parse_root(text: &str) -> Result<goldwire_store::Root, String> {
    goldwire_stdx::from_hex(text)
        .map(goldwire_store::Root)
        .ok_or_else(|| "a root has 64 hexadecimal digits".into())
}

/// `{uuid}` is the only thing that is put into a name.
fn parse_name(text: &str) -> Result<String, String> {
    let rest = text.replace("{uuid}", "");
    match rest.contains(['{', '}']) {
        true => Err("only {uuid} stands for something in a name; braces are nothing else".into()),
        false => Ok(text.to_owned()),
    }
}

fn parse_mode(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| *mode <= 0o777)
        .ok_or_else(|| "permission bits are three octal digits, such as 640".into())
}

fn parse_owner(text: &str) -> Result<(u32, u32), String> {
    let parsed =
        text.split_once(':').and_then(|(user, group)| Some((user.parse().ok()?, group.parse().ok()?)));
    parsed.ok_or_else(|| "an owner is two numbers, such as 0:0".into())
}

fn parse_ionice(text: &str) -> Result<(u8, u8), String> {
    match text.split_once(':').unwrap_or((text, "4")) {
        ("idle", _) => Ok((3, 0)),
        ("best-effort", level) => match level.parse() {
            Ok(level @ 0..=7) => Ok((2, level)),
            _ => Err("the level is 0 to 7".into()),
        },
        _ => Err("write idle, best-effort or best-effort:0 to best-effort:7".into()),
    }
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    let error = || "write a time such as 90s, 30m, 2h or 1h30m".to_owned();
    let mut seconds = 0_u64;
    let mut rest = text.trim();
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let number: u64 = rest[..digits].parse().map_err(|_| error())?;
        let (factor, length) = match rest[digits..].chars().next() {
            None | Some('s') => (1, 1),
            Some('m') => (60, 1),
            Some('h') => (3600, 1),
            Some('d') => (86_400, 1),
            Some(_) => return Err(error()),
        };
        seconds = number.checked_mul(factor).and_then(|more| seconds.checked_add(more)).ok_or_else(error)?;
        rest = rest[digits..].get(length..).unwrap_or("");
    }
    if seconds == 0 { Err(error()) } else { Ok(Duration::from_secs(seconds)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn a_number_out_of_its_range_is_told_the_range() {
        for (option, well, wrong, says) in [
            ("--threads", ["1", "64"], ["0", "65"], "from 1 to 64"),
            ("--nice", ["0", "19"], ["-1", "20"], "from 0 to 19"),
            ("--compress-level", ["-7", "19"], ["-8", "x"], "from -7 to 19"),
        ] {
            let parse =
                |value| Args::try_parse_from(["goldwire", "sync", &format!("{option}={value}"), "a", "b"]);
            assert!(well.into_iter().all(|value| parse(value).is_ok()), "{option}");
            for value in wrong {
                let refused = parse(value).unwrap_err();
                assert!(refused.to_string().contains(says) && refused.exit_code() == 2, "{refused}");
            }
        }
    }

    #[test]
    fn a_port_that_is_none_is_wrong_usage() {
        for port in ["99999", "0", "", "x", "-1"] {
            let place = format!("ssh://host:{port}/a");
            let refused = Args::try_parse_from(["goldwire", "sync", &place, "b"]).unwrap_err();
            assert!(refused.to_string().contains("from 1 to 65535") && refused.exit_code() == 2, "{refused}");
        }
    }

    #[test]
    fn times_parse() {
        assert_eq!(parse_duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse_duration("45"), Ok(Duration::from_secs(45)));
        for wrong in ["", "0s", "x", "5x", "h", "99999999999999999999h"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn owners_modes_and_classes_parse() {
        assert_eq!(parse_owner("0:107"), Ok((0, 107)));
        assert_eq!(parse_mode("640"), Ok(0o640));
        assert!(parse_mode("1777").is_err() && parse_mode("9").is_err() && parse_owner("root").is_err());
        assert_eq!(parse_ionice("idle"), Ok((3, 0)));
        assert_eq!(parse_ionice("best-effort:7"), Ok((2, 7)));
        assert!(parse_ionice("best-effort:8").is_err() && parse_ionice("realtime").is_err());
    }
}
