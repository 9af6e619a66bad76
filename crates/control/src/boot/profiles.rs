//! Profiles, devices and groups: from what was written to rules.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use goldwire_netboot::content::{DISK_PATH, ISO_PATH};
use goldwire_netboot::script::{self, Context};
use goldwire_netboot::{
    Architecture, Boot, Device, Firmware, Mac, Member, MenuEntry, Place, ProtectedFiles, Script, Template,
    What,
};
use goldwire_stdx::Uuid;
use toml::Spanned;

use super::file::{self, File};
use super::rules::{DeviceRule, GroupRule, Kind, Profile, Rules, script_of};
use super::settings::Server;
use super::{check, url};
use crate::config::Several;
use crate::config::{Collector, did_you_mean};

/// Menus show no more; the screen has 25 lines.
const MENU_MAX: usize = 64;
/// iPXE counts in milliseconds, and takes none of them for ever.
const TIMEOUTS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(24 * 3600);
/// Most bytes of a template; what is made of one is bounded more closely.
const TEMPLATE_MAX: u64 = 1 << 20;
/// The programs of Debian's `ipxe` package. `snponly.efi` uses the driver of the firmware that loaded it.
const PROGRAMS: [(&str, &str); 2] = [("bios", "ipxe/undionly.kpxe"), ("efi-x64", "ipxe/snponly.efi")];

/// Makes rules of a file. What is wrong goes into `problems`; the result is used only if that holds no error.
pub(super) fn rules(file: &File, path: &Path, server: &Server, problems: &mut Collector<'_>) -> Rules {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut maker = Maker {
        written: &file.profiles,
        templates: file.server.templates.as_ref().map(|templates| folder.join(templates.get_ref())),
        server,
        has_media: file.media.is_some() || file.unread.media,
        unread: &file.unread,
        problems,
        made: file.profiles.iter().map(|_| Made::Not).collect(),
    };
    let programs = Arc::new(maker.programs(&file.ipxe, None));
    let profiles: Vec<Profile> = (0..file.profiles.len()).map(|at| maker.profile(at, &programs)).collect();
    let mut rules = Rules {
        file: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        profiles,
        ..Rules::default()
    };
    if let Some(name) = &file.default_profile {
        let at = profile_named(name, file, &rules, problems);
        rules.default = at.map(|at| (at, problems.line_of(name.span().start)));
    }
    devices(file, &mut rules, problems);
    groups(file, &mut rules, problems);
    protect(file, &mut rules, problems);
    if !problems.has_error() {
        try_scripts(file, &rules, problems);
    }
    rules
}

/// Turns written profiles into profiles; menus need others first.
struct Maker<'a, 'b, 'c> {
    written: &'a [(Spanned<String>, file::Profile)],
    templates: Option<PathBuf>,
    server: &'a Server,
    /// Whether boot media are served.
    has_media: bool,
    unread: &'a file::Unread,
    problems: &'b mut Collector<'c>,
    /// Each profile's kind, once a menu or its own turn asked for it.
    made: Vec<Made>,
}

/// What tells a device of a file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum NamedBy {
    /// A script, whose expressions are filled.
    Script,
    /// A reply of DHCP, as it is written.
    Reply {
        /// Whether iPXE itself would load it.
        is_for_ipxe: bool,
    },
}

enum Made {
    Not,
    /// A menu that waits for its entries.
    Open,
    /// Told already.
    Wrong,
    Done(Arc<Kind>),
}

impl Maker<'_, '_, '_> {
    fn profile(&mut self, at: usize, programs: &Arc<BTreeMap<String, String>>) -> Profile {
        let (name, written) = &self.written[at];
        let kind = self.make(at).unwrap_or(Arc::new(Kind::Local));
        let own = (!written.ipxe.is_empty()).then(|| Arc::new(self.programs(&written.ipxe, Some(programs))));
        Profile {
            name: name.get_ref().clone(),
            kind,
            programs: own.unwrap_or_else(|| programs.clone()),
            is_secure: written.secure.as_ref().is_some_and(|secure| *secure.get_ref()),
            has_token: written.token.as_ref().is_some_and(|token| *token.get_ref()),
            root_path: written.root_path.as_ref().map(|path| path.get_ref().clone()),
        }
    }

    /// A profile's kind, made once so that its problems are told once; none if it is wrong.
    fn make(&mut self, at: usize) -> Option<Arc<Kind>> {
        if matches!(self.made[at], Made::Not) {
            self.made[at] = Made::Open;
            self.made[at] = self.kind(at).map_or(Made::Wrong, |kind| Made::Done(Arc::new(kind)));
        }
        match &self.made[at] {
            Made::Done(kind) => Some(kind.clone()),
            _ => None,
        }
    }

    fn kind(&mut self, at: usize) -> Option<Kind> {
        let (name, written) = &self.written[at];
        let is = |switch: Option<bool>| switch.unwrap_or(false);
        let kinds = [
            ("file or files", written.file.is_some() || !written.files.is_empty()),
            ("script", written.script.is_some()),
            ("script-text", written.script_text.is_some()),
            ("kernel", written.kernel.is_some()),
            ("san", written.san.is_some()),
            ("menu", written.menu.is_some()),
            ("url", written.url.is_some()),
            ("local", is(written.local)),
            ("ignore", is(written.ignore)),
        ];
        let given: Vec<&str> = kinds.iter().filter(|(_, given)| *given).map(|(kind, _)| *kind).collect();
        match given.as_slice() {
            [_] => {}
            [] => {
                let message = format!("the profile {:?} says nothing to boot", name.get_ref());
                let hint = "one of file, files, script, script-text, kernel, san, menu, url, local = true, ignore = true";
                self.problems.error_with_hint(name.span(), message, Some(hint.into()));
                return None;
            }
            several => {
                let message =
                    format!("the profile {:?} says {} at once", name.get_ref(), several.join(" and "));
                self.problems.error(name.span(), message);
                return None;
            }
        }
        self.check_companions(written, given[0]);
        if is(written.ignore) {
            return Some(Kind::Ignore);
        }
        if is(written.local) {
            return Some(Kind::Local);
        }
        if let Some(url) = &written.url {
            // Without a URL, the root path alone says what iPXE boots.
            let is_for_root_path = url.get_ref().is_empty() && written.root_path.is_some();
            if !is_for_root_path && let Err((message, hint)) = url::check_handed_out(url.get_ref()) {
                self.problems.error_with_hint(url.span(), message, Some(hint));
            }
            return Some(Kind::Url(url.get_ref().clone()));
        }
        if let Some(template) = self.template(at) {
            let variables = variables(&written.variables, self.problems);
            let script = Script { name: name.get_ref().clone(), template: template?, variables };
            return Some(Kind::Script(Arc::new(script)));
        }
        if let Some(file) = &written.file {
            self.check_file(file.get_ref(), file.span(), NamedBy::Reply { is_for_ipxe: true });
        }
        let by_arch = self.by_arch(&written.files);
        for path in written.files.values() {
            self.check_file(path.get_ref(), path.span(), NamedBy::Reply { is_for_ipxe: true });
        }
        Some(Kind::Files { any: written.file.as_ref().map(|file| file.get_ref().clone()), by_arch })
    }

    /// Keys that mean something only beside another.
    fn check_companions(&mut self, written: &file::Profile, kind: &str) {
        let companions = [
            ("initrd", written.initrd.as_ref().map(Spanned::span), "kernel"),
            ("arguments", written.arguments.as_ref().map(Spanned::span), "kernel"),
            ("initiator", written.initiator.as_ref().map(Spanned::span), "san"),
            ("timeout", written.timeout.as_ref().map(Spanned::span), "menu"),
        ];
        for (key, span, of) in companions {
            if let Some(span) = span.filter(|_| kind != of) {
                self.problems.error(span, format!("{key} belongs to a profile with {of}"));
            }
        }
    }

    /// The template of a profile that is a script; none for other kinds, and none within if it has a mistake.
    fn template(&mut self, at: usize) -> Option<Option<Template>> {
        let (_, written) = &self.written[at];
        if let Some(kernel) = &written.kernel {
            self.check_file(kernel.get_ref(), kernel.span(), NamedBy::Script);
            let initrds = written.initrd.as_ref().map(|list| list.get_ref().0.clone()).unwrap_or_default();
            for initrd in &initrds {
                self.check_file(initrd, written.initrd.as_ref().map_or(0..0, Spanned::span), NamedBy::Script);
            }
            let arguments = written.arguments.as_ref().map(|text| text.get_ref().clone()).unwrap_or_default();
            return Some(Some(Template::Kernel { kernel: kernel.get_ref().clone(), initrds, arguments }));
        }
        if let Some(san) = &written.san {
            let disks = san.get_ref().0.clone();
            if disks.is_empty() {
                self.problems.error(san.span(), "san needs at least one disk");
            }
            for disk in &disks {
                self.check_file(disk, san.span(), NamedBy::Script);
            }
            let initiator = written.initiator.as_ref().map(|name| name.get_ref().clone());
            return Some(Some(Template::San { disks, initiator }));
        }
        if let Some(text) = &written.script_text {
            return Some(self.own_text("script-text", text.get_ref(), text.span()));
        }
        if let Some(name) = &written.script {
            return Some(self.named_template(name));
        }
        let menu = written.menu.as_ref()?;
        Some(self.menu(at, menu))
    }

    fn own_text(&mut self, name: &str, text: &str, span: Range<usize>) -> Option<Template> {
        let checked = script::check_template(name, text);
        checked.map_err(|reason| self.problems.error(span, format!("the script {name}: {reason}"))).ok()?;
        Some(text.into())
    }

    fn named_template(&mut self, name: &Spanned<String>) -> Option<Template> {
        let Some(folder) = &self.templates else {
            if !self.unread.server {
                self.problems.error(name.span(), "script names a template, and server.templates is not set");
            }
            return None;
        };
        let known: Vec<String> = fs::read_dir(folder)
            .map(|entries| {
                let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
                names.collect()
            })
            .unwrap_or_default();
        let file = [name.get_ref().clone(), format!("{}.ipxe", name.get_ref())];
        let Some(file) = file.iter().find(|file| known.contains(file)) else {
            let message = format!("no template {:?} in {}", name.get_ref(), folder.display());
            let hint = did_you_mean(name.get_ref(), known.iter().map(|file| file.trim_end_matches(".ipxe")));
            self.problems.error_with_hint(name.span(), message, hint);
            return None;
        };
        let path = folder.join(file);
        match goldwire_stdx::read_text_bounded(&path, TEMPLATE_MAX) {
            Ok(text) => self.own_text(file, &text, name.span()),
            Err(error) => {
                self.problems.error(name.span(), format!("read {}: {error}", path.display()));
                None
            }
        }
    }

    fn menu(&mut self, at: usize, menu: &Spanned<Several<String>>) -> Option<Template> {
        let (name, written) = &self.written[at];
        let names = &menu.get_ref().0;
        if names.is_empty() || names.len() > MENU_MAX {
            self.problems
                .error(menu.span(), format!("a menu has 1 to {MENU_MAX} entries, not {}", names.len()));
        }
        let mut entries = Vec::new();
        for entry in names.iter().take(MENU_MAX) {
            if self.unread.profiles.contains(entry) {
                continue;
            }
            let Some(found) = self.written.iter().position(|(known, _)| known.get_ref() == entry) else {
                let hint =
                    did_you_mean(entry, self.written.iter().map(|(known, _)| known.get_ref().as_str()));
                self.problems.error_with_hint(menu.span(), format!("no profile is called {entry:?}"), hint);
                continue;
            };
            if matches!(self.made[found], Made::Open) {
                let message = format!("the menu {:?} leads back to {entry:?}", name.get_ref());
                self.problems.error(menu.span(), message);
                continue;
            }
            let Some(kind) = self.make(found) else { continue };
            let Some(script) = script_of(entry, &kind) else {
                let message = format!("the profile {entry:?} ignores devices; a menu cannot offer that");
                self.problems.error(menu.span(), message);
                continue;
            };
            let title = self.written[found].1.title.as_ref().map_or(entry, Spanned::get_ref).clone();
            entries.push(MenuEntry { profile: entry.clone(), title, script });
        }
        if let Some(wait) = written.timeout.as_ref().filter(|wait| !TIMEOUTS.contains(&wait.get_ref().0.0)) {
            let hint = "without timeout it waits for ever";
            self.problems.error_with_hint(wait.span(), "a menu waits for 1s to 24h", Some(hint.into()));
        }
        let timeout_seconds = written
            .timeout
            .as_ref()
            .map_or(0, |wait| wait.get_ref().0.0.as_secs().min(TIMEOUTS.end().as_secs()))
            as u32;
        let title = written.title.as_ref().map_or_else(|| "Boot".into(), |title| title.get_ref().clone());
        Some(Template::Menu { title, entries, timeout_seconds })
    }

    /// The programs of `own` over those of everybody.
    fn programs(
        &mut self,
        own: &BTreeMap<Spanned<String>, Spanned<String>>,
        everybody: Option<&BTreeMap<String, String>>,
    ) -> BTreeMap<String, String> {
        let usual = || PROGRAMS.iter().map(|(arch, path)| ((*arch).to_owned(), (*path).to_owned())).collect();
        let mut programs: BTreeMap<String, String> = everybody.map_or_else(usual, Clone::clone);
        if everybody.is_none() {
            let missing: Vec<&String> = programs.values().filter(|path| !self.exists(path)).collect();
            for path in missing {
                let folder = self.server.ipxe.display();
                self.problems.warning(None, format!("no {} in {folder}", path.trim_start_matches("ipxe/")));
            }
        }
        for path in own.values() {
            self.check_file(path.get_ref(), path.span(), NamedBy::Reply { is_for_ipxe: false });
        }
        programs.extend(self.by_arch(own));
        programs
    }

    fn by_arch(&mut self, files: &BTreeMap<Spanned<String>, Spanned<String>>) -> BTreeMap<String, String> {
        let mut by_arch = BTreeMap::new();
        for (arch, path) in files {
            if Architecture::from_name(arch.get_ref()).is_none() {
                let hint = did_you_mean(arch.get_ref(), Architecture::names());
                let known = || format!("known are {}", Architecture::names().collect::<Vec<_>>().join(", "));
                let message = format!("no architecture is called {:?}", arch.get_ref());
                self.problems.error_with_hint(arch.span(), message, hint.or_else(|| Some(known())));
            }
            by_arch.insert(arch.get_ref().clone(), path.get_ref().clone());
        }
        by_arch
    }

    /// A place in the boot tree: no way out of it, and there. For scripts it may be elsewhere.
    fn check_file(&mut self, place: &str, span: Range<usize>, named_by: NamedBy) {
        let is_for_ipxe = named_by == NamedBy::Reply { is_for_ipxe: true };
        if named_by != NamedBy::Script && (!Place::of(place).is_in_tree() || place.contains("{{")) {
            let hint = "url hands out a URL; kernel, initrd and san take expressions and URLs";
            let message = format!("{place:?} has to be a path below server.root, as it is");
            self.problems.error_with_hint(span, message, Some(hint.into()));
            return;
        }
        if let Err((message, hint)) = url::check_outside(place) {
            self.problems.error_with_hint(span, message, Some(hint));
            return;
        }
        if !Place::of(place).is_in_tree() {
            return;
        }
        if place.is_empty() || place.chars().any(char::is_control) {
            let hint = "write its path below server.root, such as linux/vmlinuz";
            self.problems.error_with_hint(span, format!("{place:?} names no file"), Some(hint.into()));
        } else if place.starts_with('/') || place.split('/').any(|part| part == "..") {
            self.problems.error(span, format!("{place:?} has to be a path below server.root"));
        } else if is_for_ipxe && place.starts_with("ipxe/") {
            self.problems.error_with_hint(
                span,
                format!("iPXE would load itself for ever: {place} is iPXE"),
                Some("a profile says what iPXE boots; write the program under ipxe = { ... }".into()),
            );
        } else if [ISO_PATH, DISK_PATH].contains(&place) && !self.has_media {
            let message = format!("{place} is a boot medium, and none is served");
            self.problems.warning_with_hint(
                Some(span),
                message,
                "the table [media] has them made and served",
            );
        } else if !place.contains("{{") && !self.exists(place) {
            self.problems.warning(Some(span), format!("no such file in the boot tree: {place}"));
        }
    }

    /// Whether a file is there; whether it may be, as long as the folders are not known.
    fn exists(&self, place: &str) -> bool {
        if self.unread.server {
            return true;
        }
        if [ISO_PATH, DISK_PATH].contains(&place) {
            return true;
        }
        match place.strip_prefix("ipxe/") {
            Some(program) => is_below(&self.server.ipxe, program) || is_below(&self.server.root, place),
            None => is_below(&self.server.root, place),
        }
    }
}

/// Whether a file is there and no link leads out of the folder, which the servers do not follow.
fn is_below(folder: &Path, place: &str) -> bool {
    let (Ok(folder), Ok(file)) = (folder.canonicalize(), folder.join(place).canonicalize()) else {
        return false;
    };
    file.is_file() && file.starts_with(folder)
}

fn profile_named(
    name: &Spanned<String>,
    file: &File,
    rules: &Rules,
    problems: &mut Collector<'_>,
) -> Option<u32> {
    let at = rules.profiles.iter().position(|profile| profile.name == *name.get_ref());
    if at.is_none() && !file.unread.profiles.contains(name.get_ref()) {
        let hint = did_you_mean(name.get_ref(), rules.profile_names());
        problems.error_with_hint(name.span(), format!("no profile is called {:?}", name.get_ref()), hint);
    }
    at.and_then(|at| u32::try_from(at).ok())
}

fn variables(
    written: &BTreeMap<Spanned<String>, Spanned<String>>,
    problems: &mut Collector<'_>,
) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    for (name, value) in written {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if !name.get_ref().chars().all(is_name) || name.get_ref().starts_with(|c: char| c.is_ascii_digit()) {
            problems.error(name.span(), "a variable's name has letters, digits and _ only");
        }
        if value.get_ref().chars().any(char::is_control) {
            problems.error(value.span(), "a variable is one line of text");
        }
        variables.insert(name.get_ref().clone(), value.get_ref().clone());
    }
    variables
}

fn devices(file: &File, rules: &mut Rules, problems: &mut Collector<'_>) {
    let names: HashMap<String, u32> =
        rules.profiles.iter().zip(0..).map(|(profile, at)| (profile.name.clone(), at)).collect();
    for table in &file.devices {
        let device = table.get_ref();
        let at = rules.devices.len() as u32;
        let line = problems.line_of(table.span().start) as u32;
        if device.mac.is_none() && device.uuid.is_none() {
            problems.error(table.span(), "a device needs mac or uuid");
        }
        if let Some(mac) = &device.mac
            && let Some(other) = rules.by_mac.insert(mac.get_ref().0, at)
        {
            let first = rules.devices[other as usize].line;
            problems
                .error(mac.span(), format!("{} has a [[device]] already, in line {first}", mac.get_ref().0));
        }
        if let Some(uuid) = &device.uuid
            && let Some(other) = rules.by_uuid.insert(uuid.get_ref().0, at)
        {
            let first = rules.devices[other as usize].line;
            problems.error(
                uuid.span(),
                format!("{} has a [[device]] already, in line {first}", uuid.get_ref().0),
            );
        }
        check::check_host_name(&device.name, problems);
        let profile = device.profile.as_ref().and_then(|name| match names.get(name.get_ref()) {
            Some(at) => Some(*at),
            None => profile_named(name, file, rules, problems),
        });
        let variables = variables(&device.variables, problems);
        rules.devices.push(DeviceRule {
            name: device.name.as_ref().map(|name| name.get_ref().as_str().into()),
            profile,
            line,
            variables: (!variables.is_empty()).then_some(variables),
        });
    }
}

fn groups(file: &File, rules: &mut Rules, problems: &mut Collector<'_>) {
    for (number, table) in file.groups.iter().enumerate() {
        let group = table.get_ref();
        let line = problems.line_of(table.span().start);
        let Some(profile) = &group.profile else {
            problems.error(table.span(), "a group needs a profile");
            continue;
        };
        check_names("architecture", &group.arch, &Architecture::names().collect::<Vec<_>>(), problems);
        check_names("firmware", &group.firmware, &FIRMWARES.map(Firmware::name), problems);
        fn list<T: Clone>(written: &Option<Spanned<Several<T>>>) -> Option<Vec<T>> {
            written.as_ref().map(|list| list.get_ref().0.clone())
        }
        let rule = GroupRule {
            name: group.name.as_ref().map_or_else(|| (number + 1).to_string(), |name| name.get_ref().clone()),
            profile: profile_named(profile, file, rules, problems).unwrap_or(0),
            line,
            macs: list(&group.mac).map(|macs| macs.into_iter().collect::<HashSet<Mac>>()),
            ouis: list(&group.oui),
            uuids: list(&group.uuid).map(|uuids| uuids.into_iter().collect::<HashSet<Uuid>>()),
            archs: list(&group.arch),
            firmwares: list(&group.firmware),
            subnets: list(&group.subnet),
            circuit_ids: list(&group.circuit_id),
            remote_ids: list(&group.remote_id),
            vendor_classes: list(&group.vendor_class),
            user_classes: list(&group.user_class),
        };
        if rule.has_no_key() {
            problems.error_with_hint(
                table.span(),
                "a group without a key matches every device",
                Some("default-profile is for everybody else".into()),
            );
        }
        rules.groups.push(rule);
    }
}

const FIRMWARES: [Firmware; 7] = [
    Firmware::BiosPxe,
    Firmware::EfiPxe,
    Firmware::HttpClient,
    Firmware::Ipxe,
    Firmware::Gpxe,
    Firmware::RaspberryPi,
    Firmware::Other,
];

fn check_names(
    what: &str,
    written: &Option<Spanned<Several<String>>>,
    known: &[&str],
    problems: &mut Collector<'_>,
) {
    let Some(written) = written else { return };
    for name in written.get_ref().0.iter().filter(|name| !known.contains(&name.as_str())) {
        let hint = did_you_mean(name, known.iter().copied());
        let hint = hint.or_else(|| Some(format!("known are {}", known.join(", "))));
        problems.error_with_hint(written.span(), format!("no {what} is called {name:?}"), hint);
    }
}

/// Files that only a token opens: those of profiles with `token`.
fn protect(file: &File, rules: &mut Rules, problems: &mut Collector<'_>) {
    let mut open: HashMap<&str, &str> = HashMap::new();
    let (mut names, mut prefixes) = (Vec::new(), Vec::new());
    for (name, profile) in &file.profiles {
        let is_protected = profile.token.as_ref().is_some_and(|token| *token.get_ref());
        let initrds = profile.initrd.iter().chain(&profile.san).flat_map(|list| &list.get_ref().0);
        let single = [&profile.file, &profile.kernel].into_iter().flatten().map(Spanned::get_ref);
        let files = profile.files.values().map(Spanned::get_ref).chain(single).chain(initrds);
        for place in files.filter(|place| Place::of(place).is_in_tree()) {
            match (is_protected, place.split_once("{{")) {
                (false, _) => {
                    open.insert(place, name.get_ref());
                }
                (true, None) => names.push(place),
                (true, Some((prefix, _))) if ProtectedFiles::new([""; 0], [prefix]).cover_all_of("") => {
                    problems.error(
                        name.span(),
                        format!("{place:?} could be any file; with token, a path begins with a fixed part"),
                    );
                }
                (true, Some((prefix, _))) => prefixes.push(prefix),
            }
        }
        // One that cannot be read has been told.
        if is_protected && file.server.secret_file.is_none() && !file.unread.server {
            let span = profile.token.as_ref().map_or(0..0, Spanned::span);
            problems.error(span, "token needs server.secret-file, with which tokens are signed");
        }
    }
    rules.protected = Arc::new(ProtectedFiles::new(names, prefixes));
    for (place, name) in open {
        if rules.protected.covers(place) {
            let span = file
                .profiles
                .iter()
                .find(|(known, _)| known.get_ref() == name)
                .map(|(known, _)| known.span());
            let message =
                format!("{place} needs a token in another profile, so {name:?} needs token = true too");
            problems.error(span.unwrap_or(0..0), message);
        }
    }
}

/// Renders every script once for an invented device, so that a mistake in a template is found now and not by a device.
fn try_scripts(file: &File, rules: &Rules, problems: &mut Collector<'_>) {
    let mut known: BTreeMap<String, String> = BTreeMap::new();
    for device in file.devices.iter().map(Spanned::get_ref) {
        known.extend(
            device.variables.iter().map(|(name, value)| (name.get_ref().clone(), value.get_ref().clone())),
        );
    }
    let mut device = Device::new(Some(Mac([2, 0, 0, 0, 0, 1])), Firmware::Ipxe);
    device.uuid = Some(Uuid([1; 16]));
    device.subnet = Some(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let context = Context { path_of: Arc::new(str::to_owned), script_path: "s/-/-/-/boot.ipxe".into() };
    for ((name, written), profile) in file.profiles.iter().zip(&rules.profiles) {
        let Kind::Script(script) = &*profile.kind else { continue };
        let boot = Boot {
            profile: profile.name.clone(),
            what: What::Script(script.clone()),
            members: vec![Member {
                name: "member".into(),
                address: IpAddr::V4(Ipv4Addr::LOCALHOST),
                http_port: 80,
                https_port: None,
                https_name: None,
            }],
            is_secure: false,
            has_token: false,
            root_path: None,
            host_name: Some("host".into()),
        };
        // A device's own values are its own affair; here it only counts that there are some.
        let script = super::rules::with_variables(script, Some(&known), false);
        let failed = ["bios", "efi-x64"].into_iter().find_map(|arch| {
            device.arch = Architecture::from_name(arch);
            script::render(&script, &device, &boot, &context).err()
        });
        if let Some(error) = failed {
            let span = [&written.script, &written.script_text, &written.kernel].into_iter().flatten().next();
            problems.error(span.map_or_else(|| name.span(), Spanned::span), error.to_string());
        }
    }
}
