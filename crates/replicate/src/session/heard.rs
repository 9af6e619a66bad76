//! What peers say, made fit to be shown. Every event of a peer passes here before anybody sees it.

use goldwire_stdx::printable;

use crate::wire::{Event, Failure, Frame};

/// Texts of one list that are shown. No honest list is longer.
const TEXTS_MAX: usize = 64;

/// The event in `frame`. Texts for people have lost what a terminal would obey; paths and names that are used again (of
/// candidates, of the source) are as they came, and made printable where they are shown.
pub(super) fn event(frame: &Frame) -> Event {
    let mut event = frame.message("event").unwrap_or_else(|error| Event::Failed(error.into()));
    match &mut event {
        Event::Notice(text) => clean(text),
        Event::Failed(Failure { chain, hints, .. }) => {
            chain.truncate(TEXTS_MAX);
            hints.truncate(TEXTS_MAX);
            chain.iter_mut().chain(hints).for_each(clean);
        }
        Event::Dialed(hello) => {
            clean(&mut hello.host);
            clean(&mut hello.version);
        }
        Event::Planned(plan) => {
            clean(&mut plan.path);
            plan.seeds.truncate(TEXTS_MAX);
            plan.seeds.iter_mut().for_each(clean);
        }
        Event::Done(outcome) => clean(&mut outcome.path),
        Event::Images { .. }
        | Event::Hashing { .. }
        | Event::Waiting
        | Event::SourceReady(_)
        | Event::Progress(_)
        | Event::Phase(_) => {}
    }
    event
}

fn clean(text: &mut String) {
    if let std::borrow::Cow::Owned(shown) = printable(text) {
        *text = shown;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Counters, FailureKind, Hello, Kind, Outcome, Plan};

    #[test]
    fn no_text_of_a_peer_reaches_a_terminal_raw() {
        let evil = || "a\x1b]0;x\x07\nroot@host# ".to_owned();
        let hello = Hello { protocol: 1, version: evil(), host: evil(), program: [0; 32] };
        let plan = Plan { path: evil(), seeds: vec![evil()], ..Plan::default() };
        let failure = Failure { kind: FailureKind::Other, chain: vec![evil(), evil()], hints: vec![evil()] };
        let outcome =
            Outcome { path: evil(), root: [0; 32], counters: Counters::default(), already_there: false };
        for event in [
            Event::Notice(evil()),
            Event::Failed(failure),
            Event::Dialed(hello),
            Event::Planned(plan),
            Event::Done(outcome),
        ] {
            let heard = format!("{:?}", super::event(&Frame::of(Kind::Event, 0, 0, &event)));
            // Debug escapes what it shows: a raw control character would stand there as one backslash.
            assert!(heard.contains("a\\\\u{1b}]0;x\\\\u{7}\\\\nroot"), "{heard}");
        }
    }
}
