//! What a signature is asked to say. One rule for a file that is replaced, for a store, and for whoever sends to them.

use super::{PublicKey, Version};

/// Who must have signed a version, and whether it may be older than what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// The key.
    pub signer: PublicKey,
    /// Whether a version may take the place of one of the same key that was created later.
    pub may_be_older: bool,
}

impl Requirement {
    /// Whether the key signed the version.
    pub fn is_signed(&self, version: &Version) -> bool {
        version.signer == Some(self.signer)
    }

    /// Whether the version would take the place of `kept`, which the key signed too and which was created later: somebody
    /// may have put an old version, whose signature still holds, where the new one belongs.
    pub fn is_step_back(&self, version: &Version, kept: &Version) -> bool {
        !self.may_be_older
            && self.is_signed(kept)
            && kept.created > version.created
            && kept.root != version.root
    }
}
