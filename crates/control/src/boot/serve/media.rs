//! Boot media that are served: made at the start and whenever the boot file is read again, never by a request.

use goldwire_netboot::content::{DISK_PATH, ISO_PATH, Library};
use goldwire_netboot::media::Media;
use goldwire_stdx::{ByteSize, Report};
use tracing::{error, info};

use crate::boot::Settings;

/// Has the library serve what the boot file says. A server whose media cannot be made serves everything else, and the
/// media that it had.
pub(super) fn serve(settings: &Settings, library: &Library) {
    if !settings.media.is_served {
        return library.set_media(None);
    }
    match Media::make(&settings.medium()) {
        Ok(media) => {
            for (path, medium) in [(ISO_PATH, &media.iso), (DISK_PATH, &media.disk)] {
                let (size, digest) = (ByteSize(medium.report.size), medium.report.digest.to_hex());
                info!(path, %size, blake3 = %digest, "boot medium");
            }
            library.set_media(Some(media));
        }
        Err(error) => error!("boot media cannot be made: {}", Report::of(&error).line()),
    }
}
