//! Where what a device loads lies: in the boot tree, or elsewhere.

/// A place as profiles and scripts write it. What a template fills in later is part of its kind already: `{{ server }}/a`
/// is a path of the tree until it is filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place<'a> {
    /// A path of the boot tree, below its root.
    Tree(&'a str),
    /// A whole URL: a scheme, `://`, the rest (RFC 3986 §3).
    Url(&'a str),
    /// A disk over iSCSI: `iscsi:SERVER:PROTOCOL:PORT:LUN:NAME` (RFC 4173 §5), which is no URL with an authority.
    Iscsi(&'a str),
}

impl<'a> Place<'a> {
    /// What a text names.
    pub fn of(text: &'a str) -> Self {
        if text.get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case("iscsi:")) {
            Self::Iscsi(text)
        } else if text.contains("://") {
            Self::Url(text)
        } else {
            Self::Tree(text)
        }
    }

    /// Whether it is a path of the boot tree.
    pub fn is_in_tree(self) -> bool {
        matches!(self, Self::Tree(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind() {
        for text in ["", "a/b.efi", "iscsi", "iscsi/x", "iso:/a", "a:b", "http:/a", "é", "{{ server }}/a"] {
            assert_eq!(Place::of(text), Place::Tree(text));
        }
        for text in ["http://a/b", "HTTPS://x", "tftp://10.0.0.1/a", "{{ scheme }}://x/y"] {
            assert_eq!(Place::of(text), Place::Url(text));
        }
        for text in ["iscsi:10.0.0.5::::iqn.a:b", "ISCSI:x", "iscsi://10.0.0.5/x"] {
            assert_eq!(Place::of(text), Place::Iscsi(text));
        }
    }
}
