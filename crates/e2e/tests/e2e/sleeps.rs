//! Where the code sleeps for a fixed time, and why nothing better is there. A test that sleeps where it could wait is
//! wrong on a busy machine and slow on every other; `goldwire_stdx::testing::until` waits.

use std::collections::BTreeMap;

use crate::workspace_rules::tracked;

/// File below `crates/`, how often it sleeps, and the reason.
const SLEEPS: &[(&str, usize, &str)] = &[
    ("stdx/src/testing.rs", 1, "`until` itself"),
    // The programs.
    ("control/src/boot/serve/mod.rs", 1, "the time in which probes have to see that a member goes"),
    ("goldwire/src/commands/boot/watch.rs", 1, "between two looks at a server that sends nothing by itself"),
    (
        "goldwire/src/commands/sync.rs",
        1,
        "until the window of time opens, with a look at the clock each second",
    ),
    (
        "netboot/examples/boot_storm.rs",
        4,
        "clients that power on over a time, and the pauses of DHCP and iPXE",
    ),
    ("netboot/src/balance/http/mod.rs", 1, "a pause while the system has no descriptor"),
    ("netboot/src/balance/http/pass.rs", 1, "a pause before all members are tried again"),
    (
        "netboot/src/http/connection.rs",
        2,
        "a pause while the system has no descriptor, and between two peeks",
    ),
    ("replicate/src/agent.rs", 1, "threads end in any order, and std joins without a time limit"),
    (
        "replicate/src/dial/mod.rs",
        2,
        "std joins threads without a time limit; a test's steps that come in time",
    ),
    ("replicate/src/dial/process.rs", 1, "std waits for processes without a time limit"),
    // Parts that tests play.
    ("e2e/tests/e2e/repack.rs", 1, "what is killed at any moment"),
    ("e2e/tests/e2e/store.rs", 2, "what is killed at any moment"),
    ("e2e/tests/e2e/strange/mod.rs", 1, "a file system that writes slowly"),
    (
        "e2e/tests/e2e/tool.rs",
        1,
        "std waits for processes without a time limit; a failure tells what was said",
    ),
    ("netboot/src/balance/tests/member.rs", 2, "a member that hangs, and one that is slow"),
    ("netboot/src/tftp/tests/flood.rs", 1, "a sender that is no faster than a real one"),
    // Time is what is tested, by the machine's clock.
    ("netboot/src/balance/tests/balancers.rs", 2, "how long haproxy and nginx avoid a member"),
    ("replicate/src/connection/tests.rs", 1, "a peer that is silent for less than it may be"),
    ("replicate/src/session/advance.rs", 1, "a pause that is longer than a step may take"),
    ("replicate/src/source/pace.rs", 1, "the pace looks at the rate once in a while"),
    ("stdx/src/stop.rs", 1, "somebody asks while others sleep; asked too early it holds as well"),
    // What must not come has no word to wait for. A test that sleeps too briefly passes; it never fails by itself.
    ("e2e/tests/e2e/boot_floods.rs", 1, "memory does not grow"),
    ("e2e/tests/e2e/boot_runbook.rs", 1, "members with different secrets do not hear each other"),
    ("netboot/src/member/heartbeat/driver.rs", 1, "who is configured no more is not heard"),
    ("replicate/src/agent/tests.rs", 1, "memory does not grow"),
];

#[test]
fn whoever_sleeps_says_why() {
    let own = ["sle", "ep("].concat();
    let mut found = BTreeMap::new();
    for (name, text) in tracked() {
        let Some(name) = name.strip_prefix("crates/").filter(|name| name.ends_with(".rs")) else { continue };
        let count = text.lines().filter(|line| !line.trim_start().starts_with("//")).map(|line| {
            let starts = |at: usize| !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
            line.match_indices(&own).filter(|(at, _)| starts(*at)).count()
        });
        let count: usize = count.sum();
        if count > 0 {
            found.insert(name.to_owned(), count);
        }
    }
    let listed: BTreeMap<_, _> = SLEEPS.iter().map(|(name, count, _)| ((*name).to_owned(), *count)).collect();
    assert_eq!(listed.len(), SLEEPS.len(), "a file is listed twice");
    assert_eq!(found, listed, "left is what sleeps, right is what is listed");
}
