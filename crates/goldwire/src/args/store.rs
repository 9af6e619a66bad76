//! What was typed after `image` and `store`.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use goldwire_replicate::Endpoint;
use goldwire_stdx::ByteSize;

use super::{FormatArg, OpenArgs, parse_duration};
use crate::schedule::Schedule;

#[derive(Debug, Args)]
pub(crate) struct StoreArg {
    /// The store: a folder, or a name from goldwire.toml; by default what GOLDWIRE_STORE says.
    #[arg(long, value_name = "STORE", global = true)]
    pub(crate) store: Option<String>,
    /// The file that names stores; by default goldwire.toml in this folder, ~/.config/goldwire or /etc/goldwire.
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum StoreCommand {
    /// Make a store of an empty or new folder.
    Init(StoreInitArgs),
    /// Read everything in a store and say what is wrong.
    Check(StoreLookArgs),
    /// Let a store take only what a key signed, or anything again.
    Require(StoreRequireArgs),
    /// Say how much is in a store, and how well the versions lie that channels name.
    Stat(StoreLookArgs),
    /// Put versions in order that are read in many pieces, and empty packs of holes that the file system cannot give back.
    Repack(RepackArgs),
}

#[derive(Debug, Parser)]
pub(crate) struct StoreInitArgs {
    /// The folder.
    pub(crate) folder: PathBuf,
    /// Take only versions that this key signed, and none older than what an image has: a file, or the key itself.
    #[arg(long, value_name = "KEY")]
    pub(crate) require: Option<String>,
}

#[derive(Debug, Parser)]
pub(crate) struct StoreRequireArgs {
    /// The store: a folder, or a name from goldwire.toml.
    pub(crate) store: String,
    /// The key that has to sign what comes from now on: a file, or the key itself.
    #[arg(required_unless_present = "none")]
    pub(crate) key: Option<String>,
    /// Take anything again.
    #[arg(long, conflicts_with = "key")]
    pub(crate) none: bool,
    /// The file that names stores; by default goldwire.toml in this folder, ~/.config/goldwire or /etc/goldwire.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

#[derive(Debug, Parser)]
pub(crate) struct StoreLookArgs {
    /// The store: a folder, or a name from goldwire.toml; by default what GOLDWIRE_STORE says.
    pub(crate) store: Option<String>,
    /// The file that names stores; by default goldwire.toml in this folder, ~/.config/goldwire or /etc/goldwire.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

const REPACK_HELP: &str = "\
A version that a channel names, or that is the newest of its image, is in order when a MiB of it is read in four pieces or
fewer, on average. Others may read, publish and prune meanwhile.

Examples:
  goldwire store repack --store /srv/images --dry-run
  goldwire store repack --store /srv/images --bwlimit '08:00,20M 18:00,off'
  goldwire store repack win11 --store /srv/images --max-space 20G";

#[derive(Debug, Parser)]
#[command(after_help = REPACK_HELP)]
pub(crate) struct RepackArgs {
    /// Only versions of these images; by default of all, and packs of holes.
    #[arg(value_name = "IMAGE")]
    pub(crate) images: Vec<String>,
    #[command(flatten)]
    pub(crate) store: StoreArg,
    /// Bytes by which the store may grow meanwhile; what is copied is given back bit by bit.
    #[arg(long, value_name = "SIZE", default_value = "4G")]
    pub(crate) max_space: ByteSize,
    /// Most bytes per second that are copied: 20MB, or by time of day: `08:00,10M 18:00,off`.
    #[arg(long, value_name = "LIMIT", default_value = "off")]
    pub(crate) bwlimit: Schedule,
    /// Say what is out of order, and change nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

const IMAGE_HELP: &str = "\
A version is named by IMAGE (the one that came last), IMAGE:CHANNEL, IMAGE:TAG, its root, or the beginning of its root.

Examples:
  goldwire store init /srv/images
  goldwire image publish win11 --store /srv/images --channel test Win11.vhd
  goldwire image promote win11 test production --store /srv/images
  goldwire image export win11:production --store /srv/images host1:/var/lib/libvirt/images/win11.qcow2
  goldwire image prune --store /srv/images --keep 3 --dry-run";

#[derive(Debug, Parser)]
#[command(after_help = IMAGE_HELP, arg_required_else_help = true)]
pub(crate) struct ImageArgs {
    #[command(flatten)]
    pub(crate) store: StoreArg,
    #[command(subcommand)]
    pub(crate) command: ImageCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Put a disk image into the store as the newest version of an image.
    Publish(PublishArgs),
    /// List images with their versions and names.
    List(ImageListArgs),
    /// Say what a version is.
    Show(VersionArgs),
    /// Read all of a version and prove it.
    Verify(VersionArgs),
    /// Write a version as a disk image, here or on other hosts, verified.
    Export(ExportArgs),
    /// Bring a version into other stores, as a delta, verified.
    Push(PushArgs),
    /// Bring a version from another store into this one, as a delta, verified.
    Pull(PullArgs),
    /// Take versions from a store or from images in a folder that was carried here, all of them proven by reading.
    Import(ImportArgs),
    /// Say how much of the disk differs between two versions, and where.
    Diff(DiffArgs),
    /// Let a channel name a version, at once or from a time on; or take the channel away.
    Channel(ChannelArgs),
    /// Let a channel name what another one names.
    Promote(PromoteArgs),
    /// Let a channel name what it named before.
    Rollback(RollbackArgs),
    /// Give a version a name that stays; or take that name away.
    Tag(TagArgs),
    /// Take away versions that nothing names, and give their space back.
    Prune(PruneArgs),
}

#[derive(Debug, Parser)]
pub(crate) struct PublishArgs {
    /// The image's name.
    pub(crate) name: String,
    /// The disk image, of any format that we read, or a block device: PATH or [USER@]HOST:PATH.
    pub(crate) file: PathBuf,
    /// Also let this channel name the new version.
    #[arg(long, value_name = "NAME")]
    pub(crate) channel: Option<String>,
    /// Sign the version with this secret key.
    #[arg(long, value_name = "KEY")]
    pub(crate) sign: Option<PathBuf>,
    /// What the version's descriptor says of it.
    #[arg(long, value_name = "TEXT")]
    pub(crate) note: Option<String>,
    /// Threads that read and hash; by default as many as there are cores.
    #[arg(long, value_name = "NUMBER")]
    pub(crate) threads: Option<NonZeroUsize>,
    #[command(flatten)]
    pub(crate) open: OpenArgs,
    #[command(flatten)]
    pub(crate) run: RunArgs,
}

#[derive(Debug, Parser)]
pub(crate) struct ImageListArgs {
    /// Only these images.
    pub(crate) images: Vec<String>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Parser)]
pub(crate) struct VersionArgs {
    /// The version.
    #[arg(value_name = "VERSION")]
    pub(crate) which: String,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Parser)]
pub(crate) struct ExportArgs {
    /// The version.
    #[arg(value_name = "VERSION")]
    pub(crate) which: String,
    /// Where it goes: PATH or [USER@]HOST:PATH; a folder keeps the image's name.
    #[arg(required = true)]
    pub(crate) targets: Vec<Endpoint>,
    /// The container to write; by default that of the target's file name, else raw.
    #[arg(long, value_enum)]
    pub(crate) format: Option<FormatArg>,
    /// Put the version in the place of an existing file once it is verified.
    #[arg(long)]
    pub(crate) replace: bool,
    #[command(flatten)]
    pub(crate) run: RunArgs,
}

/// How a version is brought somewhere.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The ssh to use, with options, split as a shell would.
    #[arg(long, value_name = "COMMAND", default_value = "ssh")]
    pub(crate) ssh_command: String,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print JSON, one object a line.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Parser)]
pub(crate) struct PushArgs {
    /// The version.
    #[arg(value_name = "VERSION")]
    pub(crate) which: String,
    /// The stores: FOLDER, [USER@]HOST:FOLDER, or a name from goldwire.toml.
    #[arg(required = true, value_name = "STORE")]
    pub(crate) stores: Vec<String>,
    /// What the image is called there; by default as it is here.
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    #[command(flatten)]
    pub(crate) way: BetweenArgs,
}

#[derive(Debug, Parser)]
pub(crate) struct PullArgs {
    /// The other store: FOLDER, [USER@]HOST:FOLDER, or a name from goldwire.toml.
    #[arg(value_name = "STORE")]
    pub(crate) from: String,
    /// The version there.
    #[arg(value_name = "VERSION")]
    pub(crate) which: String,
    /// What the image is called here; by default as it is there.
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    #[command(flatten)]
    pub(crate) way: BetweenArgs,
}

/// How a version goes from store to store.
#[derive(Debug, Args)]
pub(crate) struct BetweenArgs {
    /// Also let this channel of the receiving store name the version.
    #[arg(long, value_name = "NAME")]
    pub(crate) channel: Option<String>,
    /// Accept only a version that this key signed: a file, or the key itself.
    #[arg(long, value_name = "KEY")]
    pub(crate) require_signature: Option<String>,
    #[command(flatten)]
    pub(crate) run: RunArgs,
}

#[derive(Debug, Parser)]
pub(crate) struct ImportArgs {
    /// A store, as `image push` makes on a disk that is carried, or a folder of disk images.
    pub(crate) folder: PathBuf,
    /// Only these versions of the store, or these files of the folder.
    #[arg(value_name = "VERSION")]
    pub(crate) which: Vec<String>,
    /// What the image is called here; by default as it is there, or as its file without the ending.
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Also let this channel name what comes last of each image. The channels of the folder's store do not come along.
    #[arg(long, value_name = "NAME")]
    pub(crate) channel: Option<String>,
    /// Threads that read and hash; by default as many as there are cores.
    #[arg(long, value_name = "NUMBER")]
    pub(crate) threads: Option<NonZeroUsize>,
    /// Say what would come, and let nothing come.
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) open: OpenArgs,
    /// Print JSON, one object a version.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Parser)]
pub(crate) struct DiffArgs {
    /// One version.
    pub(crate) left: String,
    /// The other.
    pub(crate) right: String,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Parser)]
pub(crate) struct ChannelArgs {
    /// The image.
    pub(crate) image: String,
    /// The channel, which is made if there is none.
    pub(crate) channel: String,
    /// The version, which is one of the image; or the whole root of one that is still to come.
    #[arg(value_name = "VERSION", required_unless_present = "delete")]
    pub(crate) which: Option<String>,
    /// From when on: a time such as 2026-12-01T06:00:00+01:00. Until then the channel names what it named before.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub(crate) at: Option<i64>,
    /// Take the channel away, with what it named before. The versions stay until a prune.
    #[arg(long, conflicts_with_all = ["which", "at"])]
    pub(crate) delete: bool,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Parser)]
pub(crate) struct PromoteArgs {
    /// The image.
    pub(crate) image: String,
    /// The channel (or tag) whose version is taken.
    pub(crate) from: String,
    /// The channel that names it from now on.
    pub(crate) to: String,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Parser)]
pub(crate) struct RollbackArgs {
    /// The image.
    pub(crate) image: String,
    /// The channel.
    pub(crate) channel: String,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Parser)]
pub(crate) struct TagArgs {
    /// The image.
    pub(crate) image: String,
    /// The name.
    pub(crate) name: String,
    /// The version, which is one of the image.
    #[arg(value_name = "VERSION", required_unless_present = "delete")]
    pub(crate) which: Option<String>,
    /// Take the tag away. The version stays until a prune.
    #[arg(long, conflicts_with = "which")]
    pub(crate) delete: bool,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Parser)]
pub(crate) struct PruneArgs {
    /// Only versions of these images.
    pub(crate) images: Vec<String>,
    /// Keep the newest so many versions of each image, beside all that tags and channels name.
    #[arg(long, value_name = "NUMBER", default_value = "3")]
    pub(crate) keep: usize,
    /// Also keep versions that came less than so long ago, such as 30d.
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) keep_for: Option<Duration>,
    /// Do not keep what channels would only name after a rollback.
    #[arg(long)]
    pub(crate) no_rollback: bool,
    /// Say what would go, and let nothing go.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// A time with its zone, as seconds since 1970.
fn parse_time(text: &str) -> Result<i64, String> {
    let time: Result<jiff::Timestamp, _> = text.parse();
    time.map(jiff::Timestamp::as_second).map_err(|_| {
        "write a time with its zone, such as 2026-12-01T06:00:00+01:00 or 2026-12-01T05:00:00Z".into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_zone() {
        assert_eq!(parse_time("1970-01-01T01:00:00+01:00"), Ok(0));
        assert_eq!(parse_time("2026-12-01T05:00:00Z"), Ok(1_796_101_200));
        for wrong in ["", "tomorrow", "2026-12-01", "2026-12-01T05:00:00", "5"] {
            assert!(parse_time(wrong).is_err(), "{wrong}");
        }
    }
}
