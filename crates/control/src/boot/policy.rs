//! The boot policy: what the rules say, with the members that live.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use goldwire_netboot::{
    Action, Boot, BootPolicy, Decision, Device, Firmware, LiveMembers, Mac, Proof, ProtectedFiles, What,
};

use super::rules::{Found, Kind, Rules, next_of};

/// Answers from memory. The rules can be replaced while devices ask.
pub struct Policy {
    rules: RwLock<Arc<Rules>>,
    members: Arc<dyn LiveMembers>,
    heard: Mutex<Heard>,
}

impl Policy {
    /// A policy of these rules over these members.
    pub fn new(rules: Rules, members: Arc<dyn LiveMembers>) -> Self {
        Self { rules: RwLock::new(Arc::new(rules)), members, heard: Mutex::new(Heard::default()) }
    }

    /// The rules as they are now.
    pub fn rules(&self) -> Arc<Rules> {
        self.rules.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the rules. Questions that are being answered end with the old ones.
    pub fn replace(&self, rules: Rules) {
        *self.rules.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(rules);
    }

    /// How many devices are remembered from DHCP.
    #[cfg(test)]
    pub(super) fn remembered(&self) -> usize {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.young.len() + heard.old.len()
    }

    /// The device with what DHCP told about it, where the protocol that asks now does not tell it: a script is fetched
    /// without option 82, and still has to be the script of the group that DHCP's answer came from.
    fn completed(&self, rules: &Rules, device: &Device) -> Device {
        let mut device = device.clone();
        if let Some(mac) = device.mac.filter(|_| rules.depends_on_dhcp()) {
            let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
            if device.vendor_class.is_empty() {
                heard.complete(mac, &mut device);
            } else if device.firmware != Firmware::Other {
                heard.keep(mac, &device);
            }
        }
        device
    }

    fn action(&self, found: &Found<'_>, device: &Device) -> Result<Action, String> {
        let Some(profile) = found.profile else { return Ok(Action::LocalDisk) };
        match &*profile.kind {
            Kind::Ignore => return Ok(Action::Ignore),
            Kind::Local => return Ok(Action::LocalDisk),
            _ => {}
        }
        // An operating system boots nothing, and still has its host name from here.
        let what = match device.firmware {
            Firmware::Other => What::Literal(String::new()),
            _ => next_of(profile, device, found.device)?,
        };
        let key = match (device.mac, device.uuid) {
            (Some(mac), _) => mac.0.to_vec(),
            (None, Some(uuid)) => uuid.0.to_vec(),
            (None, None) => Vec::new(),
        };
        Ok(Action::Boot(Box::new(Boot {
            profile: profile.name.clone(),
            what,
            members: self.members.ordered_for(&key, device.subnet),
            is_secure: profile.is_secure,
            has_token: profile.has_token,
            root_path: profile.root_path.clone(),
            host_name: found.device.and_then(|rule| rule.name.as_deref()).map(str::to_owned),
        })))
    }
}

impl BootPolicy for Policy {
    fn decide(&self, device: &Device) -> Decision {
        let rules = self.rules();
        let device = self.completed(&rules, device);
        let found = rules.find(&device);
        match self.action(&found, &device) {
            Ok(action) => Decision { rule: found.rule, action },
            // It cannot boot what it should; its own disk is better than nothing, and an address harms nobody.
            Err(reason) => Decision { rule: format!("{}: {reason}", found.rule), action: Action::LocalDisk },
        }
    }

    fn may_fetch(&self, path: &str, address: IpAddr, mac: Option<Mac>, proof: Proof) -> bool {
        let rules = self.rules();
        let profile_of = |mac: Mac| {
            let mut device = Device::new(Some(mac), Firmware::Ipxe);
            device.subnet = Some(address);
            rules.find(&self.completed(&rules, &device)).profile
        };
        let is_ignored = |mac| profile_of(mac).is_some_and(|profile| matches!(*profile.kind, Kind::Ignore));
        // A script holds the tokens of all files behind it. Whether it needs one itself says the decision that it is
        // rendered from, which is judged where it is rendered.
        let owner = path.strip_prefix("s/").and_then(|rest| rest.split('/').next()?.parse().ok());
        let needs_token = !path.starts_with("s/") && rules.protected.covers(path);
        !mac.into_iter().chain(owner).any(is_ignored) && (proof == Proof::Token || !needs_token)
    }

    fn protected_files(&self) -> Arc<ProtectedFiles> {
        Arc::clone(&self.rules().protected)
    }
}

/// What DHCP told about devices, for those that come back by another protocol.
#[derive(Default)]
struct Heard {
    young: HashMap<Mac, Told>,
    old: HashMap<Mac, Told>,
}

struct Told {
    subnet: Option<IpAddr>,
    vendor_class: Vec<u8>,
    user_class: Vec<u8>,
    circuit_id: Vec<u8>,
    remote_id: Vec<u8>,
}

impl Heard {
    /// Devices in each of two generations, so that a flood of invented addresses takes 64 MiB at most (255 bytes for
    /// each of four options) and a boot storm of 32,768 devices still finds its own.
    const GENERATION_MAX: usize = 32_768;

    fn keep(&mut self, mac: Mac, device: &Device) {
        if self.young.len() >= Self::GENERATION_MAX && !self.young.contains_key(&mac) {
            self.old = std::mem::take(&mut self.young);
        }
        let bounded = |bytes: &[u8]| bytes[..bytes.len().min(255)].to_vec();
        let told = Told {
            subnet: device.subnet,
            vendor_class: bounded(&device.vendor_class),
            user_class: bounded(&device.user_class),
            circuit_id: bounded(&device.circuit_id),
            remote_id: bounded(&device.remote_id),
        };
        self.young.insert(mac, told);
    }

    fn complete(&self, mac: Mac, device: &mut Device) {
        let Some(told) = self.young.get(&mac).or_else(|| self.old.get(&mac)) else { return };
        device.subnet = told.subnet.or(device.subnet);
        device.vendor_class.clone_from(&told.vendor_class);
        device.user_class.clone_from(&told.user_class);
        device.circuit_id.clone_from(&told.circuit_id);
        device.remote_id.clone_from(&told.remote_id);
    }
}
