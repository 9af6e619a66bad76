//! The rules of a boot file in the form in which they are asked: found by MAC or UUID at once, groups in their order.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use goldwire_netboot::{
    Device, Firmware, Mac, MenuEntry, Network, Place, ProtectedFiles, Script, Template, What,
};
use goldwire_stdx::Uuid;

use super::value::{Oui, Pattern};

/// What each device boots. Made from a boot file, never changed.
#[derive(Debug, Default)]
pub struct Rules {
    /// The file's name, for the rule's text.
    pub(super) file: String,
    pub(super) profiles: Vec<Profile>,
    pub(super) devices: Vec<DeviceRule>,
    pub(super) by_mac: HashMap<Mac, u32>,
    pub(super) by_uuid: HashMap<Uuid, u32>,
    pub(super) groups: Vec<GroupRule>,
    /// The profile of everybody else, and the line that says so.
    pub(super) default: Option<(u32, usize)>,
    /// Files that need a token.
    pub(super) protected: Arc<ProtectedFiles>,
}

/// What a profile says.
#[derive(Debug)]
pub(super) struct Profile {
    pub(super) name: String,
    pub(super) kind: Arc<Kind>,
    /// The iPXE that other firmware loads first, by architecture.
    pub(super) programs: Arc<BTreeMap<String, String>>,
    pub(super) is_secure: bool,
    pub(super) has_token: bool,
    pub(super) root_path: Option<String>,
}

/// What is booted in the end.
#[derive(Debug)]
pub(super) enum Kind {
    /// A file, the same for all or by architecture.
    Files { any: Option<String>, by_arch: BTreeMap<String, String> },
    /// A script.
    Script(Arc<Script>),
    /// A URL, or a file name of somebody else's.
    Url(String),
    /// The own disk.
    Local,
    /// No answer.
    Ignore,
}

/// A `[[device]]`.
#[derive(Debug)]
pub(super) struct DeviceRule {
    pub(super) name: Option<Box<str>>,
    /// None leaves the profile to the groups.
    pub(super) profile: Option<u32>,
    pub(super) line: u32,
    pub(super) variables: Option<BTreeMap<String, String>>,
}

/// A `[[group]]`: every key that is given has to match.
#[derive(Debug)]
pub(super) struct GroupRule {
    pub(super) name: String,
    pub(super) profile: u32,
    pub(super) line: usize,
    pub(super) macs: Option<HashSet<Mac>>,
    pub(super) ouis: Option<Vec<Oui>>,
    pub(super) uuids: Option<HashSet<Uuid>>,
    pub(super) archs: Option<Vec<String>>,
    pub(super) firmwares: Option<Vec<String>>,
    pub(super) subnets: Option<Vec<Network>>,
    pub(super) circuit_ids: Option<Vec<Pattern>>,
    pub(super) remote_ids: Option<Vec<Pattern>>,
    pub(super) vendor_classes: Option<Vec<Pattern>>,
    pub(super) user_classes: Option<Vec<Pattern>>,
}

/// Which rules a device meets.
pub(super) struct Found<'a> {
    pub(super) device: Option<&'a DeviceRule>,
    pub(super) profile: Option<&'a Profile>,
    pub(super) rule: String,
}

impl Rules {
    /// How many devices are listed.
    pub fn device_count(&self) -> usize {
        self.devices.len()
    }

    /// Names of the profiles, in the file's order.
    pub fn profile_names(&self) -> impl Iterator<Item = &str> {
        self.profiles.iter().map(|profile| profile.name.as_str())
    }

    pub(super) fn find(&self, device: &Device) -> Found<'_> {
        let listed = self.device_of(device);
        let mut rules = Vec::new();
        let mut profile = None;
        if let Some(rule) = listed {
            rules.push(self.title_of_device(rule));
            profile = rule.profile;
        }
        if profile.is_none() {
            if let Some(group) = self.groups.iter().find(|group| group.mismatch(device).is_none()) {
                rules.push(self.title_of_group(group));
                profile = Some(group.profile);
            } else if let Some((default, line)) = self.default {
                rules.push(format!("default-profile ({}:{line})", self.file));
                profile = Some(default);
            } else if rules.is_empty() {
                rules.push("no rule".into());
            }
        }
        let profile = profile.and_then(|at| self.profiles.get(at as usize));
        Found { device: listed, profile, rule: rules.join(", ") }
    }

    /// By MAC first: a UUID may be the same for many machines of a careless maker.
    pub(super) fn device_of(&self, device: &Device) -> Option<&DeviceRule> {
        let by_mac = device.mac.and_then(|mac| self.by_mac.get(&mac));
        let at = by_mac.or_else(|| device.uuid.and_then(|uuid| self.by_uuid.get(&uuid)))?;
        self.devices.get(*at as usize)
    }

    pub(super) fn title_of_device(&self, rule: &DeviceRule) -> String {
        match &rule.name {
            Some(name) => format!("device {name} ({}:{})", self.file, rule.line),
            None => format!("device ({}:{})", self.file, rule.line),
        }
    }

    pub(super) fn title_of_group(&self, group: &GroupRule) -> String {
        format!("group {} ({}:{})", group.name, self.file, group.line)
    }

    /// Whether a group asks for what only DHCP tells.
    pub(super) fn depends_on_dhcp(&self) -> bool {
        self.groups.iter().any(|group| {
            group.subnets.is_some()
                || group.circuit_ids.is_some()
                || group.remote_ids.is_some()
                || group.vendor_classes.is_some()
                || group.user_classes.is_some()
        })
    }
}

impl GroupRule {
    pub(super) fn has_no_key(&self) -> bool {
        self.macs.is_none()
            && self.ouis.is_none()
            && self.uuids.is_none()
            && self.archs.is_none()
            && self.firmwares.is_none()
            && self.subnets.is_none()
            && self.circuit_ids.is_none()
            && self.remote_ids.is_none()
            && self.vendor_classes.is_none()
            && self.user_classes.is_none()
    }

    /// The first key that does not match; none if the group is the device's.
    pub(super) fn mismatch(&self, device: &Device) -> Option<&'static str> {
        fn any<T>(wanted: Option<&Vec<T>>, matches: impl Fn(&T) -> bool) -> bool {
            wanted.is_none_or(|wanted| wanted.iter().any(matches))
        }
        let arch = device.arch.and_then(|arch| arch.name());
        let keys = [
            ("mac", self.macs.as_ref().is_none_or(|macs| device.mac.is_some_and(|mac| macs.contains(&mac)))),
            ("oui", any(self.ouis.as_ref(), |oui| device.mac.is_some_and(|mac| mac.0.starts_with(&oui.0)))),
            (
                "uuid",
                self.uuids.as_ref().is_none_or(|uuids| device.uuid.is_some_and(|uuid| uuids.contains(&uuid))),
            ),
            ("arch", any(self.archs.as_ref(), |name| arch == Some(name.as_str()))),
            ("firmware", any(self.firmwares.as_ref(), |name| device.firmware.name() == name)),
            (
                "subnet",
                any(self.subnets.as_ref(), |net| device.subnet.is_some_and(|address| net.contains(address))),
            ),
            ("circuit-id", any(self.circuit_ids.as_ref(), |pattern| pattern.matches(&device.circuit_id))),
            ("remote-id", any(self.remote_ids.as_ref(), |pattern| pattern.matches(&device.remote_id))),
            (
                "vendor-class",
                any(self.vendor_classes.as_ref(), |pattern| pattern.matches(&device.vendor_class)),
            ),
            ("user-class", any(self.user_classes.as_ref(), |pattern| pattern.matches(&device.user_class))),
        ];
        keys.into_iter().find(|(_, matches)| !matches).map(|(key, _)| key)
    }
}

/// What a device loads next of a profile that boots something.
pub(super) fn next_of(profile: &Profile, device: &Device, own: Option<&DeviceRule>) -> Result<What, String> {
    let program = || {
        by_arch(&profile.programs, device)
            .map(|path| What::File(path.to_owned()))
            .ok_or_else(|| format!("no iPXE for {}", arch_key(device).unwrap_or("an unknown architecture")))
    };
    match &*profile.kind {
        Kind::Script(script) if device.firmware == Firmware::Ipxe => {
            Ok(What::Script(with_variables(script, own.and_then(|rule| rule.variables.as_ref()), true)))
        }
        // gPXE runs scripts that begin with #!gpxe and knows no --timeout: it loads iPXE first.
        Kind::Script(_) => program(),
        Kind::Files { any, by_arch: files } => {
            let file = by_arch(files, device).or(any.as_deref());
            file.map(|path| What::File(path.to_owned())).ok_or_else(|| {
                format!("no file for {}", arch_key(device).unwrap_or("an unknown architecture"))
            })
        }
        Kind::Url(url) if device.firmware.takes_url() || Place::of(url).is_in_tree() => {
            Ok(What::Literal(url.clone()))
        }
        Kind::Url(_) => program(),
        Kind::Local | Kind::Ignore => Err("nothing to load".into()),
    }
}

/// The architecture's name in `files` and `ipxe`. A Raspberry Pi says that it is a BIOS.
fn arch_key(device: &Device) -> Option<&'static str> {
    match device.firmware {
        Firmware::RaspberryPi => Some("rpi"),
        Firmware::BiosPxe if device.arch.is_none() => Some("bios"),
        _ => device.arch.and_then(|arch| arch.name()),
    }
}

/// UEFI boots the same programs by HTTP and by TFTP, so `efi-x64` speaks for `http-x64` too.
fn by_arch<'a>(files: &'a BTreeMap<String, String>, device: &Device) -> Option<&'a str> {
    let key = arch_key(device)?;
    let efi = key.strip_prefix("http-").map(|processor| format!("efi-{processor}"));
    files.get(key).or_else(|| files.get(&efi?)).map(String::as_str)
}

/// What a profile does as an entry of a menu.
pub(super) fn script_of(name: &str, kind: &Kind) -> Option<Arc<Script>> {
    let template = match kind {
        Kind::Script(script) => return Some(script.clone()),
        Kind::Files { any: Some(program), by_arch } if by_arch.is_empty() => {
            Template::Chain { program: program.clone() }
        }
        Kind::Files { any, by_arch } => {
            let choices =
                by_arch.iter().map(|(arch, path)| format!("{arch:?}: {path:?}")).collect::<Vec<_>>();
            let otherwise = any.as_ref().map_or(String::new(), |path| format!("|default({path:?})"));
            // `safe` only lets spaces through: fetch encodes the path.
            Template::Chain {
                program: format!("{{{{ ({{{}}}[arch]{otherwise})|safe }}}}", choices.join(", ")),
            }
        }
        Kind::Url(url) => Template::Chain { program: url.clone() },
        Kind::Local => Template::Local,
        Kind::Ignore => return None,
    };
    Some(Arc::new(Script { name: name.to_owned(), template, variables: BTreeMap::new() }))
}

/// The script with more variables, in menus too. Those of a device go over the script's own.
pub(super) fn with_variables(
    script: &Arc<Script>,
    more: Option<&BTreeMap<String, String>>,
    is_over: bool,
) -> Arc<Script> {
    let Some(more) = more else { return script.clone() };
    let mut script = Script::clone(script);
    for (name, value) in more {
        if is_over || !script.variables.contains_key(name) {
            script.variables.insert(name.clone(), value.clone());
        }
    }
    if let Template::Menu { entries, .. } = &mut script.template {
        for MenuEntry { script, .. } in entries {
            *script = with_variables(script, Some(more), is_over);
        }
    }
    Arc::new(script)
}
