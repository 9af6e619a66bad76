//! What `boot explain` says.

use super::decisions::rules;
use super::*;

fn question(mac: &str) -> Question {
    Question {
        mac: mac.parse().unwrap(),
        uuid: None,
        arch: None,
        subnet: Some("10.0.0.0".parse().unwrap()),
        circuit_id: None,
        server: "10.0.0.11".parse().unwrap(),
    }
}

/// `UPDATE_GOLDEN=1 cargo test` writes the file anew.
#[test]
fn explain_shows_every_answer() {
    let text = explain(&rules(), &question("52:54:00:00:00:01"), &UrlBuilder::default()).to_string();
    let path = format!("{}/src/boot/golden/explain.txt", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, &text).unwrap();
    }
    assert_eq!(text, fs::read_to_string(&path).unwrap());
}

#[test]
fn explain_says_why_other_rules_lost() {
    let mut question = question("00:16:3e:00:00:05");
    question.arch = Some(Architecture::EFI_ARM64);
    let explanation = explain(&rules(), &question, &UrlBuilder::default());
    let outcomes: Vec<&str> = explanation.rules.iter().map(|rule| rule.outcome.as_str()).collect();
    assert_eq!(
        outcomes,
        [
            "none has this MAC address or UUID",
            "circuit-id does not match: it is not known",
            "arch does not match: it is efi-arm64",
            "nothing else matched: profile menu",
        ]
    );
    assert_eq!(explanation.rules.iter().filter(|rule| rule.is_winner).count(), 1);
    question.circuit_id = Some(b"rack-9".to_vec());
    question.arch = Some(Architecture::BIOS);
    let explanation = explain(&rules(), &question, &UrlBuilder::default());
    assert!(
        explanation.answers.iter().all(|answer| answer.profile.as_deref() == Some("pvs")),
        "{explanation}"
    );
    let json = serde_json::to_value(&explanation).unwrap();
    assert_eq!(json["answers"][0]["told"], "tftp://10.0.0.11/pvs/ARDBP32.BIN");
    assert_eq!(json["rules"][1]["is-winner"], true);
}
