//! The agent for other hosts, as `make agent` builds it: it has to run where the C library is ten years old.

use std::path::PathBuf;

use goldwire_stdx::testing;

use crate::machine::must;
use crate::sync::text;
use crate::tool::workspace;

/// The C library of the oldest control domain that we go to.
const GLIBC_MAX: (u32, u32) = (2, 17);

/// MiB that an agent may weigh: it crosses the line once per host and version.
const MIB_MAX: u64 = 8;

#[test]
fn runs_with_an_old_c_library_and_needs_no_other() {
    let named = std::env::var_os("GOLDWIRE_AGENT").map(PathBuf::from);
    let agent = named.unwrap_or_else(|| workspace().join("target/agent/goldwire-agent"));
    if !agent.is_file() {
        return testing::absent("target/agent/goldwire-agent, the agent for other hosts (make agent)");
    }
    if testing::program("readelf").is_none() {
        return;
    }
    assert!(must(text(&agent), ["--version"]).starts_with("goldwire-agent "));
    let size = std::fs::metadata(&agent).unwrap().len();
    assert!(size < MIB_MAX << 20, "{size} bytes");

    let versions = must("readelf", ["--wide", "--version-info", text(&agent)]);
    for version in versions.split("GLIBC_").skip(1) {
        let number = version.split(|c: char| !c.is_ascii_digit() && c != '.').next().unwrap();
        let mut parts = number.split('.').map(|part| part.parse().unwrap_or(0));
        let found = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
        assert!(found <= GLIBC_MAX, "GLIBC_{number} is too new");
    }
    let dynamic = must("readelf", ["--wide", "--dynamic", text(&agent)]);
    for line in dynamic.lines().filter(|line| line.contains("(NEEDED)")) {
        let library = line.split(['[', ']']).nth(1).unwrap();
        let parts_of_the_c_library =
            ["libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1", "libgcc_s.so.1"];
        let is_loader = library.starts_with("ld-linux");
        assert!(is_loader || parts_of_the_c_library.contains(&library), "it needs {library}");
    }
}
