//! What a version is apart from its content: its descriptor, who signed it, and where both lie beside an image.

mod beside;
mod describe;
mod descriptor;
mod requirement;
mod signature;

pub use beside::{BesideError, beside, keep_beside, signed_for_other, wrong_signer};
pub use describe::describe;
pub use descriptor::{Version, VersionError};
pub use requirement::Requirement;
pub use signature::{PublicKey, SecretKey};
