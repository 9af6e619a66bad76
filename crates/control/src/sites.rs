//! `goldwire.toml`: the one file of what the administrator has at his sites. So far it names stores.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use crate::config::{self, Collector, LoadError, Problems, document, named_tables, unknown_key};

/// Thousands of sites fit.
const LENGTH_MAX: u64 = 16 << 20;
const NAME: &str = "goldwire.toml";
const TOP: [&str; 1] = ["store"];

/// What the file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sites {
    stores: BTreeMap<String, String>,
}

/// `[store.NAME]`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StoreTable {
    place: Spanned<String>,
}

impl Sites {
    /// Where the file lies that is read when none is named: in this folder, in the user's, in the machine's, the first of
    /// them that is there.
    pub fn usual_place() -> Option<PathBuf> {
        let home = std::env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
        let of_user =
            std::env::var_os("XDG_CONFIG_HOME").filter(|folder| !folder.is_empty()).map(PathBuf::from);
        let of_user = of_user.or_else(|| home.map(|home| home.join(".config")));
        let of_user = of_user.map(|folder| folder.join("goldwire").join(NAME));
        let places = [Some(PathBuf::from(NAME)), of_user, Some(Path::new("/etc/goldwire").join(NAME))];
        places.into_iter().flatten().find(|place| place.exists())
    }

    /// Reads the file.
    ///
    /// # Errors
    /// `Read`, `Wrong`.
    pub fn load(path: &Path) -> Result<Self, LoadError> {
        let source = config::read("file of sites", path, LENGTH_MAX)?;
        Self::parse(&source, path).map_err(LoadError::Wrong)
    }

    /// Reads the file's text; `path` is for messages.
    ///
    /// # Errors
    /// All that is wrong.
    pub fn parse(source: &str, path: &Path) -> Result<Self, Problems> {
        let mut problems = Collector::new(path, source);
        let mut stores = BTreeMap::new();
        for (key, value) in document(source, &mut problems).into_iter().flatten() {
            let span = key.span();
            match key.get_ref().as_ref() {
                "store" => {
                    for (name, table) in named_tables::<StoreTable>("store", value, &mut problems).0 {
                        let place = table.place.get_ref().trim();
                        if place.is_empty() {
                            problems.error_with_hint(
                                table.place.span(),
                                "a store's place is a folder, here or on a host",
                                Some("write for example \"/srv/images\" or \"site1:/srv/images\"".into()),
                            );
                        }
                        if name.get_ref().contains(['/', ':']) {
                            let why = "a store's name has no slash and no colon: it would be a place";
                            problems.error(name.span(), why);
                        }
                        stores.insert(name.get_ref().clone(), place.to_owned());
                    }
                }
                unknown => unknown_key(span, unknown, &TOP, &mut problems),
            }
        }
        let problems = problems.finish();
        if problems.has_error() { Err(problems) } else { Ok(Self { stores }) }
    }

    /// The place of a store: FOLDER or HOST:FOLDER.
    pub fn store(&self, name: &str) -> Option<&str> {
        self.stores.get(name).map(String::as_str)
    }

    /// The names of the stores.
    pub fn stores(&self) -> impl Iterator<Item = &str> {
        self.stores.keys().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stores_have_places() {
        let text =
            "[store.master]\nplace = \"/srv/images\"\n\n[store.site1]\nplace = \"root@site1:/srv/images\"\n";
        let sites = Sites::parse(text, Path::new(NAME)).unwrap();
        assert_eq!(sites.store("site1"), Some("root@site1:/srv/images"));
        assert_eq!(sites.store("site2"), None);
        assert_eq!(sites.stores().collect::<Vec<_>>(), ["master", "site1"]);
    }

    /// All mistakes of a file are told at once, each with its line.
    #[test]
    fn mistakes_have_places() {
        let text = "[stor.master]\nplace = \"/srv\"\n[store.a]\nplace = \"\"\n[store.\"b/c\"]\nplace = \"/x\"\n\
                    [store.d]\nplase = \"/x\"\n[store.e]\nplace = 5\n";
        let said = Sites::parse(text, Path::new(NAME)).unwrap_err().to_string();
        for what in ["unknown key \"stor\"", "did you mean", ":4:", "no slash", "\"plase\"", ":10:"] {
            assert!(said.contains(what), "{what}: {said}");
        }
    }
}
