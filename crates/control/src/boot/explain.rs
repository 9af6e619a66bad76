//! Why a device boots what it boots: the rules in the order in which they were asked, and the very answers that each
//! firmware would get, made by the code that answers the network.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use goldwire_netboot::content::UrlBuilder;
use goldwire_netboot::dhcp::{BootReply, Message, MessageType, Role, add_boot, classify, code};
use goldwire_netboot::{Action, Architecture, BootPolicy, Device, Firmware, Mac, What};
use goldwire_stdx::Uuid;
use serde::Serialize;

use super::Policy;
use super::rules::Rules;

/// Who is asked about, as far as that is known.
#[derive(Clone, Debug)]
pub struct Question {
    /// Its hardware address.
    pub mac: Mac,
    /// Its SMBIOS UUID.
    pub uuid: Option<Uuid>,
    /// Only this architecture; none for all usual ones.
    pub arch: Option<Architecture>,
    /// An address of its subnet.
    pub subnet: Option<Ipv4Addr>,
    /// Option 82, sub-option 1.
    pub circuit_id: Option<Vec<u8>>,
    /// The address of the server that answers; it stands in option 54.
    pub server: Ipv4Addr,
}

/// Why a device boots what it boots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Explanation {
    /// The device's address.
    pub mac: String,
    /// Rules in the order in which they were asked. Where a group asks for the architecture or the firmware, this is
    /// what it says to the first of the answers.
    pub rules: Vec<Considered>,
    /// What each firmware gets.
    pub answers: Vec<Answer>,
}

/// A rule that was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Considered {
    /// The rule, with its line.
    pub rule: String,
    /// What came of it.
    pub outcome: String,
    /// Whether it names the profile.
    pub is_winner: bool,
}

/// What a program on the device gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Answer {
    /// Which program asks.
    pub firmware: String,
    /// The architecture that it says it has.
    pub arch: String,
    /// Who answers: `server`, `proxy`, or `binl` for port 4011.
    pub role: String,
    /// The rule that won for it.
    pub rule: String,
    /// The profile; absent where nothing is booted.
    pub profile: Option<String>,
    /// What it is told to load, or why nothing.
    pub told: String,
    /// Names of the members that can serve it, in its order.
    pub members: Vec<String>,
    /// Fields and options of the reply that speak of booting, as they go over the wire.
    pub fields: Vec<(String, String)>,
}

/// Plays every firmware of the device against the policy. Nothing is sent.
pub fn explain(policy: &Policy, question: &Question, urls: &UrlBuilder) -> Explanation {
    let mut answers = Vec::new();
    let mut rules = Vec::new();
    for (firmware, arch) in programs(question.arch) {
        let request = request(question, firmware, arch);
        let mut device = classify(&request, question.subnet.unwrap_or(question.server));
        // A Raspberry Pi is known by its maker's addresses only, and any MAC may be asked about.
        device.firmware = firmware;
        if rules.is_empty() {
            rules = considered(&policy.rules(), &device);
        }
        for role in [Role::Server, Role::Proxy] {
            let (answer, boot_reply) = answer(policy, &request, &device, urls, role, question.server);
            answers.push(answer);
            if boot_reply == Some(BootReply::AskBinl) {
                answers.push(self::answer(policy, &request, &device, urls, Role::Binl, question.server).0);
            }
        }
    }
    Explanation { mac: question.mac.to_string(), rules, answers }
}

/// Programs that a machine of this architecture may run; those of usual machines where it is not known.
fn programs(arch: Option<Architecture>) -> Vec<(Firmware, Architecture)> {
    let usual = [
        (Firmware::BiosPxe, "bios"),
        (Firmware::EfiPxe, "efi-x64"),
        (Firmware::HttpClient, "http-x64"),
        (Firmware::Ipxe, "bios"),
        (Firmware::Ipxe, "efi-x64"),
        (Firmware::Gpxe, "bios"),
        (Firmware::RaspberryPi, "rpi"),
    ];
    let named = |(firmware, name): (Firmware, &str)| Some((firmware, Architecture::from_name(name)?));
    let Some(name) = arch.and_then(Architecture::name) else {
        return usual.into_iter().filter_map(named).collect();
    };
    match name.split_once('-') {
        Some((_, processor)) => [
            (Firmware::EfiPxe, format!("efi-{processor}")),
            (Firmware::HttpClient, format!("http-{processor}")),
            (Firmware::Ipxe, format!("efi-{processor}")),
        ]
        .into_iter()
        .filter_map(|(firmware, name)| named((firmware, &name)))
        .collect(),
        None => usual.into_iter().filter(|(_, known)| *known == name).filter_map(named).collect(),
    }
}

/// The DISCOVER of a program, with what real ones send (seen of SeaBIOS with iPXE, OVMF and undionly).
fn request(question: &Question, firmware: Firmware, arch: Architecture) -> Message {
    let mut request = Message::request(MessageType::DISCOVER, question.mac, 1);
    let class = if firmware == Firmware::HttpClient { "HTTPClient" } else { "PXEClient" };
    // A Raspberry Pi says that it is a BIOS.
    let number = if firmware == Firmware::RaspberryPi { 0 } else { arch.0 };
    let options = &mut request.options;
    options.set(code::MESSAGE_SIZE_MAX, 1472_u16.to_be_bytes());
    let list = [1, 3, 6, 7, 12, 15, 17, 26, 43, 60, 66, 67, 97, 119, 128, 175, 203];
    options.set(code::PARAMETER_LIST, list);
    options.set(code::VENDOR_CLASS, format!("{class}:Arch:{number:05}:UNDI:003010"));
    options.set(code::CLIENT_ARCH, number.to_be_bytes());
    options.set(code::CLIENT_NDI, [1, 3, 16]);
    let smbios = question.uuid.map_or([0; 16], |uuid| uuid.swapped().0);
    options.set(code::CLIENT_UUID, [&[0][..], &smbios].concat());
    match firmware {
        Firmware::Ipxe => {
            options.set(code::USER_CLASS, *b"iPXE");
            options.set(code::IPXE, [0xeb, 3, 1, 0, 0, 19, 1, 1]);
        }
        Firmware::Gpxe => options.set(code::USER_CLASS, *b"gPXE"),
        _ => {}
    }
    if let Some(circuit_id) = question.circuit_id.as_ref().filter(|id| id.len() < 254) {
        let length = circuit_id.len() as u8;
        options.set(code::RELAY_AGENT, [&[1, length][..], circuit_id].concat());
    }
    request
}

fn answer(
    policy: &Policy,
    request: &Message,
    device: &Device,
    urls: &UrlBuilder,
    role: Role,
    server: Ipv4Addr,
) -> (Answer, Option<BootReply>) {
    let decision = policy.decide(device);
    let mut answer = Answer {
        firmware: device.firmware.name().into(),
        arch: device.arch.and_then(Architecture::name).unwrap_or("-").into(),
        role: name_of(role).into(),
        rule: decision.rule,
        profile: None,
        told: String::new(),
        members: Vec::new(),
        fields: Vec::new(),
    };
    let boot = match decision.action {
        Action::Boot(boot) => boot,
        Action::LocalDisk => {
            answer.told = "an address where we give them, and no boot file: its own disk".into();
            return (answer, None);
        }
        Action::Ignore => {
            answer.told = "no answer at all".into();
            return (answer, None);
        }
    };
    let kind = if role == Role::Binl { MessageType::ACK } else { MessageType::OFFER };
    let mut reply = Message::reply_to(request, kind);
    reply.options.set(code::SERVER_ID, server.octets());
    let boot_reply = add_boot(&mut reply, request, device, &boot, urls, role);
    answer.told = match (&boot_reply, &boot.what) {
        (BootReply::Url(url), What::Script(script)) => format!("{url} (the script {})", script.name),
        _ => boot_reply.to_string(),
    };
    answer.profile = Some(boot.profile);
    answer.members = boot.members.into_iter().map(|member| member.name).collect();
    answer.fields = fields(&reply);
    (answer, Some(boot_reply))
}

fn name_of(role: Role) -> &'static str {
    match role {
        Role::Server => "server",
        Role::Proxy | Role::ProxyWithoutBinl => "proxy",
        Role::Binl => "binl",
    }
}

/// What a reply says of booting, in words and bytes.
fn fields(reply: &Message) -> Vec<(String, String)> {
    let mut fields = Vec::new();
    let mut put = |name: &str, value: String| fields.push((name.to_owned(), value));
    if !reply.siaddr.is_unspecified() {
        put("siaddr", reply.siaddr.to_string());
    }
    if !reply.sname.is_empty() {
        put("sname", printable(&reply.sname));
    }
    if !reply.file.is_empty() {
        put("file", printable(&reply.file));
    }
    let names = [
        (code::HOST_NAME, "12 host name"),
        (code::ROOT_PATH, "17 root path"),
        (code::VENDOR_SPECIFIC, "43 vendor specific"),
        (code::VENDOR_CLASS, "60 vendor class"),
        (code::TFTP_SERVER, "66 TFTP server"),
        (code::BOOT_FILE, "67 boot file"),
        (code::IPXE, "175 iPXE"),
    ];
    for (code, value) in reply.options.iter() {
        if let Some((_, name)) = names.iter().find(|(known, _)| *known == code) {
            put(name, printable(value));
        }
    }
    fields
}

/// Text as text (less a NUL at its end), other bytes in hexadecimal.
fn printable(bytes: &[u8]) -> String {
    let text = bytes.strip_suffix(&[0]).unwrap_or(bytes);
    if !text.is_empty() && text.iter().all(|byte| (0x20..0x7f).contains(byte)) {
        String::from_utf8_lossy(text).into_owned()
    } else {
        goldwire_stdx::to_hex(bytes)
    }
}

/// Every rule down to the one that names the profile.
fn considered(rules: &Rules, device: &Device) -> Vec<Considered> {
    let mut considered = Vec::new();
    let mut put = |rule: String, outcome: String, is_winner: bool| {
        considered.push(Considered { rule, outcome, is_winner });
        is_winner
    };
    let profile = |at: u32| rules.profiles.get(at as usize).map_or("?", |profile| profile.name.as_str());
    match rules.device_of(device) {
        None => {
            put(
                format!("{} devices", rules.devices.len()),
                "none has this MAC address or UUID".into(),
                false,
            );
        }
        Some(rule) => {
            let title = rules.title_of_device(rule);
            let is_over = match rule.profile {
                Some(at) => put(title, format!("it is this device: profile {}", profile(at)), true),
                None => put(title, "it is this device; it names no profile".into(), false),
            };
            if is_over {
                return considered;
            }
        }
    }
    for group in &rules.groups {
        let title = rules.title_of_group(group);
        let is_over = match group.mismatch(device) {
            Some(key) => put(title, format!("{key} does not match: {}", value_of(key, device)), false),
            None => put(title, format!("all its keys match: profile {}", profile(group.profile)), true),
        };
        if is_over {
            return considered;
        }
    }
    match rules.default {
        Some((at, line)) => put(
            format!("default-profile ({}:{line})", rules.file),
            format!("nothing else matched: profile {}", profile(at)),
            true,
        ),
        None => put("no default-profile".into(), "an address, and no boot file".into(), true),
    };
    considered
}

/// What the device has where a group wants something else.
fn value_of(key: &str, device: &Device) -> String {
    let or_unknown = |text: Option<String>| text.unwrap_or_else(|| "it is not known".into());
    let is = |text: String| format!("it is {text}");
    match key {
        "mac" | "oui" => or_unknown(device.mac.map(|mac| is(mac.to_string()))),
        "uuid" => or_unknown(device.uuid.map(|uuid| is(uuid.to_string()))),
        "arch" => or_unknown(device.arch.and_then(Architecture::name).map(|name| is(name.into()))),
        "firmware" => is(device.firmware.name().into()),
        "subnet" => or_unknown(device.subnet.map(|address: IpAddr| is(address.to_string()))),
        "circuit-id" if !device.circuit_id.is_empty() => is(printable(&device.circuit_id)),
        "remote-id" if !device.remote_id.is_empty() => is(printable(&device.remote_id)),
        "vendor-class" if !device.vendor_class.is_empty() => is(printable(&device.vendor_class)),
        "user-class" if !device.user_class.is_empty() => is(printable(&device.user_class)),
        _ => "it is not known".into(),
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n\nrules, first to last:", self.mac)?;
        for rule in &self.rules {
            let mark = if rule.is_winner { "->" } else { "  " };
            writeln!(f, "  {mark} {}: {}", rule.rule, rule.outcome)?;
        }
        for answer in &self.answers {
            let who = match answer.role.as_str() {
                "server" => "from goldwire as DHCP server",
                "binl" => "from goldwire on port 4011",
                _ => "from goldwire as proxyDHCP",
            };
            writeln!(f, "\n{} ({}), {who}: {}", answer.firmware, answer.arch, answer.told)?;
            writeln!(f, "    by {}", answer.rule)?;
            if !answer.members.is_empty() {
                writeln!(f, "    members: {}", answer.members.join(", "))?;
            }
            for (name, value) in &answer.fields {
                writeln!(f, "    {name} = {value}")?;
            }
        }
        Ok(())
    }
}
