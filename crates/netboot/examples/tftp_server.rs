//! Serves a folder by TFTP, for measuring: `tftp_server ROOT LISTEN [single-port|port-per-transfer] [segments|batch|single]`.
//! Says where it listens, and ends with its standard input.

use std::error::Error;
use std::fs::File;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::Arc;

use goldwire_netboot::content::{Asker, Body, Content, ContentError, Contents};
use goldwire_netboot::tftp::{self, Mode, SendMethod, Settings, Surroundings};
use goldwire_netboot::{Silent, Stage};

struct Folder(PathBuf);

impl Contents for Folder {
    fn open(&self, path: &str, _asker: &Asker) -> Result<Content, ContentError> {
        let file = File::open(self.0.join(path)).map_err(|_| ContentError::NotFound)?;
        let failed = |source| ContentError::Failed { path: path.to_owned(), source };
        let metadata = file.metadata().map_err(failed)?;
        Ok(Content {
            body: Body::File(Arc::new(file)),
            length: metadata.len(),
            digest: None,
            media_type: "application/octet-stream",
            modified: metadata.modified().ok(),
            stage: Stage::Bootstrap,
        })
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [root, listen, choices @ ..] = arguments.as_slice() else {
        return Err("tftp_server ROOT LISTEN [single-port|port-per-transfer] [segments|batch|single]".into());
    };
    let mut settings = Settings { listen: vec![listen.parse()?], ..Settings::default() };
    let mut method = None;
    for choice in choices {
        match choice.as_str() {
            "single-port" => settings.mode = Mode::SinglePort,
            "port-per-transfer" => settings.mode = Mode::PortPerTransfer,
            "segments" => method = Some(SendMethod::Segments),
            "batch" => method = Some(SendMethod::Batch),
            "single" => method = Some(SendMethod::Single),
            unknown => return Err(format!("{unknown} is no choice").into()),
        }
    }
    let mut bound = tftp::bind(settings)?;
    if let Some(method) = method {
        bound = bound.with_send_method(method);
    }
    let contents = Arc::new(Folder(root.into()));
    let running =
        bound.run(Surroundings { contents, observer: Arc::new(Silent), mac_of: Arc::new(|_| None) })?;
    for address in running.addresses() {
        writeln!(std::io::stdout(), "{address}")?;
    }
    std::io::stdin().read_to_end(&mut Vec::new())?;
    running.stop();
    Ok(())
}
