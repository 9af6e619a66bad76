//! Variables of a device, and what else is not the template's own text, in iPXE scripts: no value adds a line, a command
//! or a setting, and none hides one.
#![no_main]

use std::collections::BTreeMap;
use std::sync::Arc;

use goldwire_netboot::script::{Context, render};
use goldwire_netboot::{
    Architecture, Boot, Device, Firmware, Mac, Member, MenuEntry, Script, Template, What,
};
use libfuzzer_sys::fuzz_target;

/// What an administrator might write around a variable.
const TEXTS: [&str; 22] = [
    "echo {{ vars.a }}",
    "echo {{ vars.a }}{{ vars.b }}",
    "echo {{ vars.a }} {{ vars.b }} || shell",
    "echo x{{ vars.a }}x$",
    "echo {{ vars.a | words }} {{ vars.b | words }} || shell",
    "echo {{ vars.a | words }}{{ vars.b | words }} || shell",
    "echo {{ vars.a | e }} {{ vars.b | escape }}",
    "echo {{ vars.a | upper }} {{ vars.b | lower | trim }}",
    "echo {{ vars.a ~ vars.b }}",
    "echo {{ vars.a | words ~ vars.b }}",
    "echo {{ (vars.a | words) + vars.b }}",
    "echo {{ [vars.a, vars.b] }}",
    "echo {{ [vars.a, vars.b] | join(' ') | words }}",
    "echo {{ vars.a | replace('x', vars.b) }}",
    "echo {{ vars.a | default(vars.b) }}",
    "echo {{ vars.a | percent }} {{ vars.b | percent }}",
    "{{ fetch(vars.a, vars.b) }}",
    "echo {{ url(vars.a) }} {{ urls(vars.b) }}",
    "echo {% for part in vars.a | list %}{{ part }}{% endfor %}",
    "echo {% set x %}{{ vars.a }} {{ vars.b }}{% endset %}{{ x }}",
    "{% macro line(x) %}echo {{ x }}{% endmacro %}{{ line(vars.a) }}",
    "echo {{ vars.a | urlencode }} {{ vars.b | first }}",
];

fuzz_target!(|input: &[u8]| {
    let Some((&which, rest)) = input.split_first() else { return };
    let Ok(rest) = std::str::from_utf8(rest) else { return };
    let (a, b) = rest.split_once('\u{1}').unwrap_or((rest, "b"));
    let template = template(usize::from(which & 0x7f));
    let is_menu = which & 0x80 != 0;
    let Ok(hostile) = rendered(&template, is_menu, a, b) else { return };
    // How many commands there are depends on nothing but which values are empty and which are disks.
    let plain = |text: &str| match text {
        _ if text.trim().is_empty() => "",
        _ if text.starts_with("iscsi:") => "iscsi:x",
        _ if text.contains("://") => "x://x",
        _ => "x",
    };
    let Ok(tame) = rendered(&template, is_menu, plain(a), plain(b)) else { return };
    assert_eq!(shape(&hostile), shape(&tame), "{a:?} {b:?}:\n{hostile}\n{tame}");
});

fn template(which: usize) -> Template {
    let kernel = Template::Kernel {
        kernel: "lab/{{ vars.a }}".into(),
        initrds: vec!["{{ vars.b }}".into()],
        arguments: "root={{ vars.a }} {{ vars.b }} hostname={{ name }}".into(),
    };
    match which.checked_sub(TEXTS.len()) {
        None => Template::Text(format!("#!ipxe\n{}\n:failed\nshell\n", TEXTS[which]).into()),
        Some(0) => kernel,
        Some(1) => Template::Chain { program: "{{ vars.a }}{{ vars.b }}".into() },
        Some(2) => Template::San {
            disks: vec!["{{ vars.a }}".into(), "iscsi:{{ vars.b }}".into()],
            initiator: Some("iqn.2026-11.example:{{ vars.a }}".into()),
        },
        Some(_) => kernel,
    }
}

fn rendered(template: &Template, is_menu: bool, a: &str, b: &str) -> Result<String, ()> {
    let variables = BTreeMap::from([("a".into(), a.into()), ("b".into(), b.into())]);
    let mut script = Script { name: "fuzz".into(), template: template.clone(), variables };
    if is_menu {
        // What a menu shows is the administrator's; it is no more than text all the same.
        let entry = MenuEntry { profile: "p".into(), title: a.into(), script: Arc::new(script.clone()) };
        script.template = Template::Menu { title: b.into(), entries: vec![entry], timeout_seconds: 5 };
    }
    let mut device = Device::new(Some(Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56])), Firmware::Ipxe);
    device.arch = Some(Architecture::EFI_X64);
    let boot = Boot {
        profile: "fuzz".into(),
        what: What::File(String::new()),
        members: vec![Member {
            name: "a".into(),
            address: [10, 0, 0, 1].into(),
            http_port: 80,
            https_port: None,
            https_name: None,
        }],
        is_secure: false,
        has_token: false,
        root_path: None,
        host_name: Some("seat-17".into()),
    };
    let context = Context { path_of: Arc::new(str::to_owned), script_path: "s/-/-/-/boot.ipxe".into() };
    render(&script, &device, &boot, &context).map_err(|_| ())
}

/// The script's lines as iPXE takes them apart (`src/image/script.c`, `src/core/exec.c`): the commands' names with what
/// stands between them, and the settings that are expanded.
fn shape(script: &str) -> Vec<Vec<&str>> {
    assert!(script.lines().all(|line| !line.ends_with('\\')), "{script}");
    let is_space = |c: char| matches!(c, ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c');
    let lines = script.split(['\n', '\r']);
    lines
        .map(|line| {
            let mut shape = Vec::new();
            let mut is_start = true;
            for word in line.split(is_space).filter(|word| !word.is_empty()) {
                if word.starts_with('#') {
                    shape.push("#");
                    break;
                }
                let is_end = matches!(word, "||" | "&&" | ";");
                if is_start || is_end {
                    shape.push(word);
                }
                is_start = is_end;
                shape.extend(word.split("${").skip(1));
            }
            shape
        })
        .collect()
}
