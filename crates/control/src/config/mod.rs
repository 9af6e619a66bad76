//! Configuration files: TOML whose mistakes are told as a compiler would, all at once, each with its place and with what
//! would be right. The boot file is one; no word of it is known here.

mod load;
mod problem;
mod table;
mod value;

pub use load::LoadError;
pub(crate) use load::read;
pub(crate) use problem::{Collector, did_you_mean};
pub use problem::{Place, Problem, Problems, Severity};
pub(crate) use table::{document, named_tables, table_of, tables_of, unknown_key};
pub use value::Secret;
pub(crate) use value::{Parsed, Several, Wait};
