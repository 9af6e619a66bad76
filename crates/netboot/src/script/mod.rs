//! iPXE scripts, made for one device from live members only.
//!
//! Built-in templates and the administrator's own are minijinja templates. Whatever an expression puts out is checked as
//! one word of iPXE's command line ([`word`]), so no variable can begin a command of its own. Every fetch goes through
//! all members in the device's order, each with a time limit: iPXE itself would wait for ever for a server that accepts
//! and says nothing. When all fail, the script waits, longer each time and differently for each device, asks for a new
//! script (which names the members that live by then) and never gives up.
//!
//! Scripts use what Debian's iPXE of 2019 has: no `param`, `imgverify`, `ntp`, `console`; and no `${next-server}` or
//! `${filename}`, which a router beside a proxyDHCP server may have set.

mod syntax;
#[cfg(test)]
mod tests;
mod word;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Object, ObjectRepr, Rest, Value, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Output, State, UndefinedBehavior, context};

pub(crate) use syntax::check;

use crate::content::ContentError;
use crate::device::Device;
use crate::member::Member;
use crate::percent::{Plain, percent_encode};
use crate::place::Place;
use crate::policy::{Boot, Script, Template};

/// iPXE gives up on a member that sends nothing for so long, in milliseconds. It counts inactivity, not total time.
/// UEFI's own limit is 5 s; a member's disk may need a moment more than that.
const TIMEOUT_MS: u32 = 8000;
/// More than any script needs; iPXE holds it in memory twice.
const LENGTH_MAX: usize = 256 << 10;
/// Instructions of a template. The largest built-in one, with 100 members and 50 menu entries, takes a tenth of it.
const FUEL: u64 = 1_000_000;
/// Menus within menus.
const DEPTH_MAX: usize = 8;
/// Entries of a menu and its sub-menus: each is rendered whole, and menus that share sub-menus multiply.
const PARTS_MAX: usize = 256;
/// An iBFT describes so many disks (ACPI 3.0 iBFT, §1.4.6: two target structures); with more paths iPXE refuses to boot
/// unless it is told to describe none.
const IBFT_TARGETS_MAX: usize = 2;

const BUILT_IN: [(&str, &str); 6] = [
    ("kernel.ipxe", include_str!("templates/kernel.ipxe")),
    ("chain.ipxe", include_str!("templates/chain.ipxe")),
    ("san.ipxe", include_str!("templates/san.ipxe")),
    ("menu.ipxe", include_str!("templates/menu.ipxe")),
    ("local.ipxe", include_str!("templates/local.ipxe")),
    ("failed.ipxe", include_str!("templates/failed.ipxe")),
];

/// What a script needs to know about who serves its files.
#[derive(Clone)]
pub struct Context {
    /// From a path of the boot tree to the path under which a member serves it: `c/DIGEST/…` where the digest is known,
    /// behind `t/TOKEN/` where the profile asks for it. Not percent-encoded.
    pub path_of: Arc<dyn Fn(&str) -> String + Send + Sync>,
    /// The path of this script, with a token if it needs one: where a device that failed gets a new one.
    pub script_path: String,
}

/// Renders the script of a device. Fails if the template has a mistake, a variable is missing or cannot stand in a
/// command, or no member lives.
pub fn render(
    script: &Script,
    device: &Device,
    boot: &Boot,
    context: &Context,
) -> Result<String, ContentError> {
    let failed = |reason: String| ContentError::Script { name: script.name.clone(), reason };
    // A profile that wants https is not handed out as http.
    let is_usable = |member: &&Member| !boot.is_secure || member.https_port.is_some();
    let bases: Vec<String> =
        boot.members.iter().filter(is_usable).map(|member| member.base_url(boot.is_secure)).collect();
    if bases.is_empty() {
        return Err(failed("no live member that it can reach".into()));
    }
    let scene = Scene { device, boot, context, bases, parts: Cell::new(0) };
    let text = scene.render(script, "", 0).map_err(|error| failed(explained(&error)))?;
    check(&text).map_err(|error| failed(error.to_string()))?;
    Ok(text)
}

/// Whether a template can be read, without rendering it; the line and what is wrong with it otherwise.
pub fn check_template(name: &str, text: &str) -> Result<(), String> {
    Environment::new().template_from_named_str(name, text).map(|_| ()).map_err(|error| explained(&error))
}

/// What all parts of a script have in common.
struct Scene<'a> {
    device: &'a Device,
    boot: &'a Boot,
    context: &'a Context,
    /// Begins of URLs, in the device's order.
    bases: Vec<String>,
    /// Scripts rendered so far.
    parts: Cell<usize>,
}

impl Scene<'_> {
    /// Renders a script whose labels all begin with `prefix`, so that several fit into one file.
    fn render(&self, script: &Script, prefix: &str, depth: usize) -> Result<String, Error> {
        self.parts.set(self.parts.get() + 1);
        if depth > DEPTH_MAX || self.parts.get() > PARTS_MAX {
            return Err(wrong(format!(
                "menus hold more than {PARTS_MAX} entries, or {DEPTH_MAX} menus in each other"
            )));
        }
        let environment = self.environment()?;
        let common = self.common(script, prefix);
        let filled = |text: &str| -> Result<String, Error> {
            written(&environment, &environment.template_from_named_str(&script.name, text)?, common.clone())
        };
        let (name, own) = match &script.template {
            Template::Kernel { kernel, initrds, arguments } => {
                let initrds = initrds.iter().map(|place| filled(place)).collect::<Result<Vec<_>, _>>()?;
                let arguments = words(&filled(arguments)?)?;
                ("kernel.ipxe", context! { kernel => filled(kernel)?, initrds, arguments })
            }
            Template::Chain { program } => ("chain.ipxe", context! { program => filled(program)? }),
            Template::San { disks, initiator } => {
                let disks = disks.iter().map(|disk| filled(disk)).collect::<Result<Vec<_>, _>>()?;
                let uris: Vec<String> = disks.iter().flat_map(|disk| self.urls(disk)).collect();
                let iscsi = uris.iter().filter(|uri| matches!(Place::of(uri), Place::Iscsi(_))).count();
                let is_described = iscsi == uris.len() && iscsi <= IBFT_TARGETS_MAX;
                let initiator = initiator.as_deref().map(filled).transpose()?;
                ("san.ipxe", context! { uris, is_described, initiator })
            }
            Template::Menu { title, entries, timeout_seconds } => {
                let mut lines = Vec::new();
                for (at, entry) in entries.iter().enumerate() {
                    let key = format!("{prefix}{}", at + 1);
                    let body = self.render(&entry.script, &format!("{key}-"), depth + 1)?;
                    let body = Checked::value(body.trim_start_matches("#!ipxe\n").to_owned());
                    lines.push(context! { key, title => entry.title.clone(), body });
                }
                let timeout = timeout_seconds * 1000;
                ("menu.ipxe", context! { title, entries => lines, timeout })
            }
            Template::Local => ("local.ipxe", context! {}),
            Template::Text(text) => return filled(text),
        };
        written(&environment, &environment.get_template(name)?, context! { ..own, ..common })
    }

    fn environment(&self) -> Result<Environment<'static>, Error> {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_formatter(format_value);
        environment.set_syntax(
            SyntaxConfig::builder()
                .trim_blocks(true)
                .lstrip_blocks(true)
                .keep_trailing_newline(true)
                .build()?,
        );
        environment.set_fuel(Some(FUEL));
        for (name, text) in BUILT_IN {
            environment.add_template(name, text)?;
        }
        environment.add_filter("words", |text: String| words(&text));
        environment.add_filter("percent", |text: String| percent_encode(&text, Plain::UNRESERVED));
        let places = Places::of(self);
        environment.add_function("url", {
            let places = places.clone();
            move |path: String| places.urls(&path).into_iter().next()
        });
        environment.add_function("urls", {
            let places = places.clone();
            move |path: String| places.urls(&path)
        });
        environment.add_function("fetch", move |path: String, name: String, rest: Rest<String>| {
            let failed = rest.first().map_or("failed", String::as_str);
            places.fallback(
                &format!("imgfetch --name {}", word::checked(&name).map_err(wrong)?),
                &path,
                failed,
            )
        });
        let places = Places { script: self.script_urls(), ..Places::of(self) };
        environment.add_function("again", move |failed: String| places.again(&failed));
        Ok(environment)
    }

    /// What every template may use.
    fn common(&self, script: &Script, prefix: &str) -> Value {
        let device = self.device;
        let empty = String::new;
        let variables: BTreeMap<String, String> = script.variables.clone();
        context! {
            prefix,
            profile => self.boot.profile.clone(),
            name => self.boot.host_name.clone().unwrap_or_else(empty),
            mac => device.mac.map_or_else(empty, |mac| mac.to_string()),
            mac_hyphenated => device.mac.map_or_else(empty, |mac| mac.hyphenated()),
            uuid => device.uuid.map_or_else(empty, |uuid| uuid.to_string()),
            arch => device.arch.and_then(|arch| arch.name()).unwrap_or(""),
            processor => device.arch.and_then(|arch| arch.processor()).unwrap_or(""),
            members => self.bases.clone(),
            pause => first_pause(device),
            timeout_ms => TIMEOUT_MS,
            vars => variables,
        }
    }

    fn urls(&self, place: &str) -> Vec<String> {
        Places::of(self).urls(place)
    }

    fn script_urls(&self) -> Vec<String> {
        let path = percent_encode(&self.context.script_path, Plain::UNRESERVED);
        self.bases.iter().map(|base| format!("{base}/{path}")).collect()
    }
}

/// Makes URLs and commands that try one after the other.
#[derive(Clone)]
struct Places {
    bases: Vec<String>,
    path_of: Arc<dyn Fn(&str) -> String + Send + Sync>,
    script: Vec<String>,
}

impl Places {
    fn of(scene: &Scene<'_>) -> Self {
        Self { bases: scene.bases.clone(), path_of: scene.context.path_of.clone(), script: Vec::new() }
    }

    /// Where a file is, in the device's order. What is a URI already stands as it is.
    fn urls(&self, place: &str) -> Vec<String> {
        let Place::Tree(name) = Place::of(place) else { return vec![place.to_owned()] };
        let path = percent_encode(&(self.path_of)(name), Plain::UNRESERVED);
        self.bases.iter().map(|base| format!("{base}/{path}")).collect()
    }

    /// The command with each URL of a place, until one succeeds.
    fn fallback(&self, command: &str, place: &str, failed: &str) -> Result<Value, Error> {
        fallback(command, &self.urls(place), failed)
    }

    /// Asks for the device's script anew. Replaces the running one: iPXE's stack would not hold a nest of them.
    fn again(&self, failed: &str) -> Result<Value, Error> {
        fallback("chain --replace --autofree", &self.script, failed)
    }
}

fn fallback(command: &str, urls: &[String], failed: &str) -> Result<Value, Error> {
    let failed = word::checked(failed).map_err(wrong)?;
    let mut line = String::new();
    for url in urls {
        let url = word::checked(url).map_err(wrong)?;
        line.push_str(&format!("{command} --timeout {TIMEOUT_MS} {url} || "));
    }
    Ok(Checked::value(format!("{line}goto {failed}")))
}

/// Seconds of the first pause after a failure: 2 to 9, by the device, so that a room of them that failed together does
/// not come back together.
fn first_pause(device: &Device) -> u32 {
    let key = device.mac.map(|mac| mac.0.to_vec()).or(device.uuid.map(|uuid| uuid.0.to_vec()));
    2 + key.map_or(0, |key| u32::from(blake3::hash(&key).as_bytes()[0]) % 8)
}

/// Checks a text of several words.
fn words(text: &str) -> Result<Value, Error> {
    let words = text.split_whitespace().map(word::checked).collect::<Result<Vec<_>, _>>().map_err(wrong)?;
    Ok(Checked::value(words.join(" ")))
}

/// Text that was checked already. Not one of minijinja's safe strings: those are safe in HTML, so `|e`, `~` and others
/// make them from any text, with its line ends.
#[derive(Debug)]
struct Checked(String);

impl Checked {
    fn value(text: String) -> Value {
        Value::from_object(Self(text))
    }
}

impl Object for Checked {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Puts out an expression's value as one word, or as what was checked already.
fn format_value(out: &mut Output<'_>, _state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    let mut put = |text: &str| out.write_str(text).map_err(|_| wrong("the script is too long".into()));
    if let Some(Checked(text)) = value.downcast_object_ref() {
        return put(text);
    }
    match value.kind() {
        ValueKind::Undefined => Err(Error::from(ErrorKind::UndefinedError)),
        ValueKind::None => Ok(()),
        ValueKind::Seq | ValueKind::Iterable => {
            let items = value.try_iter()?.map(|item| item.to_string()).collect::<Vec<_>>();
            let words =
                items.iter().map(|item| word::checked(item)).collect::<Result<Vec<_>, _>>().map_err(wrong)?;
            put(&words.join(" "))
        }
        _ => put(word::checked(&value.to_string()).map_err(wrong)?),
    }
}

fn written(
    environment: &Environment<'_>,
    template: &minijinja::Template<'_, '_>,
    values: Value,
) -> Result<String, Error> {
    let mut bounded = Bounded(Vec::new());
    let captured = template.render_captured_to(values.clone(), &mut bounded);
    if bounded.0.len() == LENGTH_MAX {
        return Err(wrong(format!("the script is longer than {} KiB", LENGTH_MAX >> 10)));
    }
    captured.map_err(|error| match error.kind() {
        ErrorKind::UndefinedError => undefined(&error, environment, template, &values).unwrap_or(error),
        _ => error,
    })?;
    String::from_utf8(bounded.0).map_err(|_| wrong("the script is not UTF-8".into()))
}

/// The engine says in which line a value is undefined, but not which: the names in it that stand for nothing.
fn undefined(
    error: &Error,
    environment: &Environment<'_>,
    template: &minijinja::Template<'_, '_>,
    values: &Value,
) -> Option<Error> {
    // An included template is one of ours.
    let number = error.line().filter(|_| error.name() == Some(template.name()))?;
    let line = template.source().lines().nth(number.checked_sub(1)?)?;
    let stands_for_something = |name: &str| {
        environment.globals().any(|(global, _)| global == name)
            || name
                .split('.')
                .try_fold(values.clone(), |value, key| value.get_attr(key).ok())
                .is_some_and(|value| !value.is_undefined())
    };
    let mut names: Vec<String> = template
        .undeclared_variables(true)
        .into_iter()
        .filter(|name| line.contains(name.as_str()) && !stands_for_something(name))
        .collect();
    names.sort_unstable();
    let is = if names.len() == 1 { "is" } else { "are" };
    (!names.is_empty()).then(|| wrong(format!("line {number}: {} {is} not defined", names.join(", "))))
}

/// Takes at most [`LENGTH_MAX`] bytes.
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(LENGTH_MAX - self.0.len());
        self.0.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn wrong(reason: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason)
}

/// An error of the template engine on one line, with the template's line.
fn explained(error: &Error) -> String {
    let reason = match (error.kind(), error.detail()) {
        (ErrorKind::InvalidOperation, Some(detail)) => detail.to_owned(),
        (kind, Some(detail)) => format!("{kind}: {detail}"),
        (kind, None) => kind.to_string(),
    };
    error.line().map_or_else(|| reason.clone(), |line| format!("line {line}: {reason}"))
}
