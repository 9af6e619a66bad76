//! What the table and the log promise, whatever happens.

mod crash;
mod damage;
mod generators;
mod table;
mod versions;

pub(crate) use crash::CrashingVolume;
pub(super) use generators::any_record;
