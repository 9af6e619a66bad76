//! The boot policy: a file of devices, groups and profiles, and the decision for each device. And what happened: the
//! timeline, the metrics, the log.
//!
//! Three types, one direction: what was written (`file`), what is true ([`Settings`] and [`Rules`]), and what answers
//! ([`Policy`]). A file is good as a whole or not used; all that is wrong with it is told at once.

mod agreement;
mod check;
mod explain;
mod file;
mod here;
mod load;
mod media;
pub mod metrics;
mod policy;
mod ports;
mod profiles;
mod rate;
mod reload;
mod rules;
pub mod serve;
mod settings;
pub mod telemetry;
#[cfg(test)]
mod tests;
pub mod timeline;
#[cfg(test)]
mod token_rule;
mod url;
mod value;

pub use explain::{Answer, Considered, Explanation, Question, explain};
pub use here::{Here, check_here};
pub use load::{Loaded, load, parse};
pub use policy::Policy;
pub use reload::{Reload, Reloader, Watch};
pub use rules::Rules;
pub use settings::{
    Dhcp, DhcpMode, Heartbeat, Http, Media, MemberSettings, Reservation, Server, Settings, Subnet, Tftp, Tls,
};

pub use crate::config::{LoadError, Place, Problem, Problems, Secret, Severity};
