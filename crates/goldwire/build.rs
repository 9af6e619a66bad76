//! Embeds the agent for other hosts, if the build was given one: `make build` makes it first and names it in
//! `GOLDWIRE_AGENT`. A plain `cargo build` embeds nothing and finds `goldwire-agent` beside the program instead.

use std::path::PathBuf;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-env-changed=GOLDWIRE_AGENT");
    let agent = match env::var_os("GOLDWIRE_AGENT") {
        Some(path) => {
            println!("cargo::rerun-if-changed={}", PathBuf::from(&path).display());
            match fs::read(&path) {
                Ok(bytes) => bytes,
                Err(error) => {
                    println!("cargo::error=GOLDWIRE_AGENT: read {}: {error}", PathBuf::from(&path).display());
                    return;
                }
            }
        }
        None => Vec::new(),
    };
    let written = env::var_os("OUT_DIR").map(|folder| fs::write(PathBuf::from(folder).join("agent"), agent));
    if !matches!(written, Some(Ok(()))) {
        println!("cargo::error=the agent could not be written to OUT_DIR");
    }
}
