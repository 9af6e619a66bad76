//! The tests that cross rooms: the built programs, real `sshd` processes as hosts, crashes, and the house rules.
//!
//! One binary with modules, because each further file in `tests/` would be another link of everything. What a
//! test needs and the machine lacks (sshd, root, qemu-img) makes it say `SKIPPED: …` and pass.

// What helps the tests.
#[cfg(test)]
mod disks;
#[cfg(test)]
mod hosts;
#[cfg(test)]
mod machine;
#[cfg(test)]
mod tool;

// The tests.
#[cfg(test)]
mod agent;
#[cfg(test)]
mod cli;
#[cfg(test)]
mod crash;
#[cfg(test)]
mod house;
#[cfg(test)]
mod property;
#[cfg(test)]
mod sync;
#[cfg(test)]
mod trouble;
