//! `goldwire boot serve`: ports are bound, root is dropped, everything is started, and then signals decide.

use std::time::SystemTime;

use goldwire_control::boot::serve::{Bound, StateFolder};
use goldwire_control::boot::{self};
use goldwire_stdx::{Context, Report};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tracing::{error, info, warn};

use super::{log, say};
use crate::args::boot::ServeArgs;
use crate::exit::Code;
use crate::privileges;

pub(crate) fn run(args: &ServeArgs) -> Result<Code, Report> {
    log(&args.log, args.log_format)?;
    privileges::open_many_files();
    let loaded = boot::load(&args.config)?;
    if !loaded.warnings.is_empty() {
        say(&loaded.warnings.to_string());
    }
    let here = boot::check_here(&loaded.settings, SystemTime::now());
    if let Some(faults) = here.faults.into_iter().reduce(joined) {
        return Err(faults);
    }
    for warning in here.warnings {
        say(&format!("warning: {}", warning.log_line()));
    }
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM]).context("listen for signals")?;
    let user = loaded.settings.server.user.clone();
    let account = user.as_deref().map(privileges::account).transpose()?.flatten();
    // All that root does is to make the folder if it is missing and to bind ports. What lies in the folder is opened by
    // whoever owns it.
    StateFolder::prepare(&loaded.settings, account.as_ref().map(privileges::Account::ids))?;
    let bound = Bound::bind(loaded)?;
    if let Some(account) = &account {
        privileges::drop_to(account)?;
        can_read_again(args, &account.name)?;
    }
    let running = bound.start(&args.config)?;
    if let Err(error) = running.reload_certificate() {
        warn!("a renewed certificate will need a restart: {}", error.log_line());
    }
    info!(name = running.name(), "ready");
    for signal in signals.forever() {
        if signal != SIGHUP {
            break;
        }
        // It logs what comes of it.
        running.reload();
        match running.reload_certificate() {
            Ok(true) => info!("the new certificate is in use"),
            Ok(false) => {}
            Err(error) => error!("the old certificate stays in use: {}", error.log_line()),
        }
    }
    info!("stopping");
    running.stop();
    Ok(Code::Success)
}

/// The boot file and the secret are read again while the server runs, and only the user does that.
fn can_read_again(args: &ServeArgs, user: &str) -> Result<(), Report> {
    match boot::load(&args.config) {
        Ok(_) => Ok(()),
        Err(error) => Err(Report::new(format!("{user} could not read the boot file again when it changes: {error}")).hint(format!(
                "let the group of {user} read what it names: chgrp GROUP FILE && chmod g+r FILE; or leave server.user out"
            ))),
    }
}

/// Everything that is missing, at once.
fn joined(mut all: Report, next: Report) -> Report {
    all.chain = vec![format!("{}; {}", all.line(), next.line())];
    all.hints.extend(next.hints);
    all
}
