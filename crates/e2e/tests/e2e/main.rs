//! The tests that cross rooms: the built programs, real `sshd` processes as hosts, real firmware as guests, crashes,
//! and the house rules.
//!
//! One binary with modules, because each further file in `tests/` would be another link of everything. What a
//! test needs of the machine (sshd, root, qemu) it asks of `goldwire_stdx::testing`.

// What helps the tests.
#[cfg(test)]
mod advertiser;
#[cfg(test)]
mod disks;
#[cfg(test)]
mod guest;
#[cfg(test)]
mod hosts;
#[cfg(test)]
mod lab;
#[cfg(test)]
mod machine;
#[cfg(test)]
mod marker;
#[cfg(test)]
mod plain_rom;
#[cfg(test)]
mod servers;
#[cfg(test)]
mod site;
#[cfg(test)]
mod strange;
#[cfg(test)]
mod tool;
#[cfg(test)]
mod transcript;

// The tests.
#[cfg(test)]
mod agent;
#[cfg(test)]
mod attacks;
#[cfg(test)]
mod attacks_kept;
#[cfg(test)]
mod boot;
#[cfg(test)]
mod boot_commands;
#[cfg(test)]
mod boot_floods;
#[cfg(test)]
mod boot_runbook;
#[cfg(test)]
mod boot_service;
#[cfg(test)]
mod cli;
#[cfg(test)]
mod crash;
#[cfg(test)]
mod documents;
#[cfg(test)]
mod evil;
#[cfg(test)]
mod kinds;
#[cfg(test)]
mod property;
#[cfg(test)]
mod questions;
#[cfg(test)]
mod repack;
#[cfg(test)]
mod sleeps;
#[cfg(test)]
mod store;
#[cfg(test)]
mod store_chains;
#[cfg(test)]
mod store_import;
#[cfg(test)]
mod store_names;
#[cfg(test)]
mod store_power;
#[cfg(test)]
mod store_require;
#[cfg(test)]
mod strange_targets;
#[cfg(test)]
mod sync;
#[cfg(test)]
mod test_script;
#[cfg(test)]
mod trouble;
#[cfg(test)]
mod workspace_rules;
