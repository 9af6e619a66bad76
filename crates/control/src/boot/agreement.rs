//! What the members of a group must agree on, as one digest that heartbeats carry: rules and profiles, subnets, templates,
//! and the files that profiles name. What is about one server (its folders, ports, secret, who else is a member) is not
//! in it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use goldwire_netboot::Place;
use toml::{Table, Value};

/// The tables that members must agree on.
const SHARED: [&str; 6] = ["default-profile", "device", "group", "ipxe", "profile", "subnet"];
/// Keys of profiles that name files of the boot tree, as one text, a list, or a table of texts.
const FILES: [&str; 4] = ["file", "files", "initrd", "kernel"];
/// A file up to this size is hashed whole. Of a larger one its two ends and its size tell versions apart, without reading
/// gigabytes at each start.
const WHOLE_MAX: u64 = 4 << 20;
/// Most of one template that is looked at; what is longer is no template.
const TEMPLATE_MAX: u64 = 1 << 20;

const CONTEXT: &str = "goldwire 2026-11 what a boot group agrees on";

/// What is said about one boot file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Agreement {
    /// The tables in a canonical form: JSON with sorted keys, whatever the file's own order and spelling.
    tables: String,
    /// Templates by path.
    templates: Vec<PathBuf>,
    /// Files by what profiles call them.
    files: Vec<String>,
}

impl Agreement {
    /// Of a boot file's text, whose templates lie in `templates`.
    pub(super) fn of(source: &str, templates: Option<&Path>) -> Self {
        let Ok(all) = source.parse::<Table>() else { return Self::default() };
        let shared: Table = all.into_iter().filter(|(key, _)| SHARED.contains(&key.as_str())).collect();
        let (mut files, mut scripts) = (Vec::new(), Vec::new());
        for profile in shared.get("profile").and_then(Value::as_table).into_iter().flat_map(Table::values) {
            for value in FILES.iter().filter_map(|key| profile.get(key)) {
                collect(value, &mut files);
            }
            if let (Some(folder), Some(name)) = (templates, profile.get("script").and_then(Value::as_str)) {
                scripts.push(folder.join(format!("{name}.ipxe")));
            }
        }
        // What is rendered for a device, or lies elsewhere, is no file of the tree.
        files.retain(|place| !place.contains("{{") && Place::of(place).is_in_tree());
        files.sort();
        files.dedup();
        // A table of TOML keeps its keys sorted, and so does its JSON.
        Self { tables: serde_json::to_string(&shared).unwrap_or_default(), templates: scripts, files }
    }

    /// The digest, with the files as they are below `root` now. A missing file differs from any other.
    pub(super) fn digest(&self, root: &Path) -> [u8; 16] {
        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
        let mut add = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
        };
        add(self.tables.as_bytes());
        for template in &self.templates {
            add(&goldwire_stdx::read_bounded(template, TEMPLATE_MAX).unwrap_or_default());
        }
        for name in &self.files {
            add(name.as_bytes());
            add(&ends_of(&root.join(name.trim_start_matches('/'))).unwrap_or_default());
        }
        let mut half = [0; 16];
        half.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        half
    }
}

fn collect(value: &Value, files: &mut Vec<String>) {
    match value {
        Value::String(place) => files.push(place.clone()),
        Value::Array(places) => places.iter().for_each(|place| collect(place, files)),
        Value::Table(places) => places.values().for_each(|place| collect(place, files)),
        _ => {}
    }
}

/// What tells this file's content from another's.
fn ends_of(path: &Path) -> Option<Vec<u8>> {
    let file = File::open(path).ok()?;
    let data = file.metadata().ok().filter(std::fs::Metadata::is_file)?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(&data.len().to_le_bytes());
    let half = (WHOLE_MAX / 2).min(data.len());
    let mut bytes = vec![0; half as usize];
    for at in [0, data.len() - half] {
        file.read_exact_at(&mut bytes, at).ok()?;
        hasher.update(&bytes);
    }
    Some(hasher.finalize().as_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const RULES: &str = "default-profile = \"a\"\n[profile.a]\nkernel = \"k\"\ninitrd = [\"i\"]\n\
                         [profile.b]\nscript = \"own\"\n[[group]]\nprofile = \"b\"\narch = \"bios\"\n";

    fn digest(text: &str, folder: &Path) -> [u8; 16] {
        Agreement::of(text, Some(folder)).digest(folder)
    }

    /// What is rendered for a device or lies elsewhere is no file here, and members need not have the same.
    #[test]
    fn only_files_of_the_tree_are_agreed_on() {
        let text = "[profile.a]\nkernel = \"k\"\n\
                    initrd = [\"of/{{mac}}\", \"http://10.0.0.9/i\", \"iscsi:10.0.0.9::::x\", \"i\"]\n";
        assert_eq!(Agreement::of(text, None).files, ["i", "k"]);
    }

    #[test]
    fn members_that_differ_in_what_is_about_one_server_agree() {
        let folder = tempfile::tempdir().unwrap();
        let one = "[server]\nname = \"one\"\nstate = \"/a\"\n[http]\nlisten = [\"10.0.0.1:80\"]\n".to_owned();
        let two =
            "[server]\nname = \"two\"\n[[member]]\nname = \"three\"\naddress = \"10.0.0.3\"\n".to_owned();
        let rules = RULES.replacen("default-profile = \"a\"\n", "", 1);
        let file = |own: &str| format!("default-profile = \"a\"\n{own}{rules}");
        assert_eq!(digest(&file(&one), folder.path()), digest(&file(&two), folder.path()));
        // The same rules in another order and spelling.
        let respelt = "default-profile = 'a'\n[profile]\nb = { script = \"own\" }\na = { initrd = ['i'], kernel = 'k' }\n\
                       [[group]]\narch = 'bios'\nprofile = 'b'\n";
        assert_eq!(digest(RULES, folder.path()), digest(respelt, folder.path()));
    }

    #[test]
    fn other_rules_other_templates_and_other_files_differ() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let mut seen = vec![digest(RULES, folder.path())];
        let mut is_new = |what: &str, text: &str| {
            let now = digest(text, folder.path());
            assert!(!seen.contains(&now), "{what}");
            seen.push(now);
        };
        is_new("another argument", &RULES.replace("kernel = \"k\"", "kernel = \"k\"\narguments = \"x\""));
        is_new("another group", &RULES.replace("bios", "efi-x64"));
        is_new("another default", &RULES.replace("default-profile = \"a\"", "default-profile = \"b\""));
        fs::write(path("own.ipxe"), "#!ipxe\n").unwrap();
        is_new("a template", RULES);
        fs::write(path("own.ipxe"), "#!ipxe\nshell\n").unwrap();
        is_new("another template", RULES);
        fs::write(path("k"), "one").unwrap();
        is_new("a file that was missing", RULES);
        fs::write(path("k"), "two").unwrap();
        is_new("a file of other content", RULES);
        let large = fs::File::create(path("i")).unwrap();
        for length in [WHOLE_MAX, WHOLE_MAX + 1, 9 * WHOLE_MAX] {
            large.set_len(length).unwrap();
            is_new("a large file of another size", RULES);
        }
        large.write_all_at(b"x", 9 * WHOLE_MAX - 1).unwrap();
        is_new("a large file with another end", RULES);
    }
}
