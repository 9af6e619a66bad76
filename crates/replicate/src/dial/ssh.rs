//! The `ssh` command: the user's, with what suits a bulk transfer.

use std::process::{Command, Stdio};

use goldwire_stdx::shell_word;

/// Settings of the user's that are meant for his own sessions and would come between us and the agent, as `scp` sets
/// them. Each is set only if this `ssh` says that it knows it.
const OURS: [(&str, &str); 4] = [
    ("remotecommand", "RemoteCommand=none"),
    ("clearallforwardings", "ClearAllForwardings=yes"),
    ("permitlocalcommand", "PermitLocalCommand=no"),
    ("stdinnull", "StdinNull=no"),
];

/// The command that reaches `destination`: the user's, then what suits a bulk transfer. Ciphers are only put in
/// another order, the fast ones of this machine first: what the user's settings do not allow stays forbidden.
pub(crate) fn ssh_command(user_command: &[String], destination: &str) -> Vec<String> {
    let mut command = user_command.to_vec();
    if let Some(settings) = settings_for(user_command, destination) {
        command.extend(options_for(
            &settings,
            if has_aes_instructions() { Aes::InHardware } else { Aes::InSoftware },
        ));
    }
    command.extend(["-T".into(), "--".into(), destination.into()]);
    command
}

/// A command of [`ssh_command`] as the user may type it to try by hand: his own options, without ours.
pub(super) fn as_typed(command: &[String]) -> String {
    let mut words = command.to_vec();
    let destination = words.pop();
    words.truncate(words.len().saturating_sub(2));
    let is_ours = |option: &str| {
        OURS.iter().any(|(_, ours)| *ours == option)
            || option.starts_with("Ciphers=")
            || option == "Compression=no"
    };
    while let [.., dash, option] = &*words
        && dash == "-o"
        && is_ours(option)
    {
        words.truncate(words.len() - 2);
    }
    words.extend(destination);
    let words: Vec<_> = words.iter().map(|word| shell_word(word)).collect();
    words.join(" ")
}

/// What `ssh -G` says of `destination`: a keyword and its value on each line (OpenSSH 6.8 and later).
fn settings_for(user_command: &[String], destination: &str) -> Option<String> {
    let (program, arguments) = user_command.split_first()?;
    let output = Command::new(program)
        .args(arguments)
        .args(["-G", "--", destination])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok()
}

/// Whether this machine has instructions for AES.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Aes {
    InHardware,
    InSoftware,
}

fn options_for(settings: &str, aes: Aes) -> Vec<String> {
    let value = |keyword: &str| {
        settings
            .lines()
            .find_map(|line| line.split_once(' ').filter(|(known, _)| *known == keyword).map(|(_, v)| v))
    };
    let mut options: Vec<String> = OURS
        .iter()
        .filter(|(keyword, _)| value(keyword).is_some())
        .flat_map(|(_, option)| ["-o".to_owned(), (*option).to_owned()])
        .collect();
    if let Some(allowed) = value("ciphers").filter(|_| aes == Aes::InHardware) {
        let (mut fast, slow): (Vec<&str>, Vec<&str>) =
            allowed.trim().split(',').partition(|cipher| cipher.contains("-gcm@openssh.com"));
        fast.extend(slow);
        let ciphers = format!("Ciphers={}", fast.join(","));
        options.extend(["-o".into(), ciphers, "-o".into(), "Compression=no".into()]);
    }
    options
}

fn has_aes_instructions() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_settings_that_this_ssh_knows_are_set_and_no_cipher_is_added() {
        let old = "user root\nciphers aes128-ctr,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com\n";
        let options = options_for(old, Aes::InHardware);
        assert_eq!(options[1], "Ciphers=aes256-gcm@openssh.com,aes128-ctr,chacha20-poly1305@openssh.com");
        assert_eq!(options.len(), 4);
        assert_eq!(options_for(old, Aes::InSoftware), [""; 0]);
        let new =
            "clearallforwardings no\npermitlocalcommand yes\nremotecommand tmux attach\nstdinnull yes\n";
        let options = options_for(new, Aes::InHardware).join(" ");
        for option in
            ["RemoteCommand=none", "ClearAllForwardings=yes", "PermitLocalCommand=no", "StdinNull=no"]
        {
            assert!(options.contains(option), "{options}");
        }
    }

    /// Also with an `ssh` that is none of OpenSSH's, to which nothing of ours is added.
    #[test]
    fn a_command_to_try_by_hand_keeps_the_users_options_and_has_none_of_ours() {
        for (typed, words) in [
            ("ssh h", &["ssh"][..]),
            ("ssh -p 2222 -o User=root h", &["ssh", "-p", "2222", "-o", "User=root"]),
            ("/opt/no-ssh -i '/my keys/k' h", &["/opt/no-ssh", "-i", "/my keys/k"]),
            (r"ssh -o 'ProxyCommand=it'\''s $x' h", &["ssh", "-o", "ProxyCommand=it's $x"]),
        ] {
            let users: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            assert_eq!(as_typed(&ssh_command(&users, "h")), typed);
            let mut command = users;
            command
                .extend(options_for("ciphers aes128-gcm@openssh.com\nremotecommand no\n", Aes::InHardware));
            command.extend(["-T", "--", "h"].map(str::to_owned));
            assert_eq!(as_typed(&command), typed);
        }
    }
}
