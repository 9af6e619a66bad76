//! The table `[media]`: boot media that are served. It is there or not, and that turns them on or off.

use std::path::Path;

use goldwire_netboot::media::{CA_MAX, MediaError, ScriptDelivery, check};
use goldwire_stdx::Hints;

use super::file::File;
use super::settings::{Media, Server, Settings};
use crate::config::Collector;

/// IEEE 802.1Q has twelve bits for a tag, and the first and the last are taken.
const VLANS: std::ops::RangeInclusive<u16> = 1..=4094;
const INSTALL: &str = "install the package ipxe, or name the folder with its programs as media.programs";

/// What the table says; without it, what `goldwire boot media` starts from.
pub(super) fn media(file: &File, folder: &Path, server: &Server, problems: &mut Collector<'_>) -> Media {
    let usual =
        Media { is_served: false, programs: server.ipxe.clone(), is_secure: false, vlan: None, ca: None };
    let Some(written) = &file.media else { return usual };
    let written = written.get_ref();
    if let Some(vlan) = written.vlan.as_ref().filter(|vlan| !VLANS.contains(vlan.get_ref())) {
        problems.error(vlan.span(), "a VLAN has a tag from 1 to 4094");
    }
    let ca = written.trust.as_ref().and_then(|trust| {
        let path = folder.join(trust.get_ref());
        let read = goldwire_stdx::read_bounded(&path, CA_MAX);
        read.map_err(|error| problems.error(trust.span(), format!("read {}: {error}", path.display()))).ok()
    });
    Media {
        is_served: true,
        programs: written.programs.as_ref().map_or(usual.programs, |path| folder.join(path.get_ref())),
        is_secure: written.secure.unwrap_or(false),
        vlan: written.vlan.as_ref().map(|vlan| *vlan.get_ref()),
        ca,
    }
}

/// Whether the media can be made here. iPXE's programs may be missing where a file is checked and there where it is
/// used, so that is a warning; servers of a group serve all else without them.
pub(super) fn check_media(settings: &Settings, file: &File, problems: &mut Collector<'_>) {
    let Some(table) = &file.media else { return };
    // Who has no members, or none that is right, has been told.
    if settings.members.is_empty() || problems.has_error() {
        return;
    }
    let span = table.span();
    match check(&settings.medium()) {
        Ok(programs) => {
            let is_bios = |(_, delivery): &(String, ScriptDelivery)| *delivery == ScriptDelivery::Loader;
            let folder = settings.media.programs.display();
            for (is_there, program, firmware) in [
                (programs.iter().any(is_bios), "ipxe.lkrn", "a BIOS"),
                (!programs.iter().all(is_bios), "ipxe.efi", "UEFI"),
            ] {
                if !is_there {
                    let message = format!("no {program} in {folder}: boot media do not boot on {firmware}");
                    problems.warning_with_hint(Some(span.clone()), message, INSTALL);
                }
            }
        }
        Err(MediaError::Setting { wrong, hint }) => {
            problems.error_with_hint(span, format!("boot media: {wrong}"), Some(hint));
        }
        Err(error @ MediaError::Ca { .. }) => {
            let span = table.get_ref().trust.as_ref().map_or(span, |trust| trust.span());
            problems.error_with_hint(span, error.to_string(), error.hints().into_iter().next());
        }
        Err(error) => {
            let message = format!(
                "boot media cannot be made and are not served: {}",
                goldwire_stdx::Report::of(&error).line()
            );
            problems.warning_with_hint(Some(span), message, INSTALL);
        }
    }
}
