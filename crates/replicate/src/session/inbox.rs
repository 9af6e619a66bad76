//! What one peer has said and nobody has looked at yet. Putting something in never waits, since the thread that does it
//! hears other peers too; and there is never much in it, whatever the peer does.

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::wire::Event;

/// Events that tell how far something is, and wait to be shown. Later ones are dropped until somebody has looked.
const CHATTER_MAX: usize = 64;

/// Events that something waits for, in addition.
const ANSWERS_MAX: usize = 8;

/// The end of an inbox that takes.
#[derive(Clone)]
pub(super) struct Inbox(Sender<Event>);

/// Whether more can come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Yes.
    More,
    /// That was the last: it is done or failed, or nobody looks any more.
    Nothing,
}

pub(super) fn inbox() -> (Inbox, Receiver<Event>) {
    let (taken, events) = bounded(CHATTER_MAX + ANSWERS_MAX);
    (Inbox(taken), events)
}

impl Inbox {
    /// Takes an event. Whoever puts in nothing after [`Next::Nothing`] can always put in the last one.
    pub(super) fn put(&self, event: Event) -> Next {
        let is_last = matches!(event, Event::Done(_) | Event::Failed(_));
        let most = match event {
            Event::Done(_) | Event::Failed(_) => CHATTER_MAX + ANSWERS_MAX,
            Event::Images { .. } | Event::SourceReady(_) | Event::Dialed(_) | Event::Planned(_) => {
                CHATTER_MAX + ANSWERS_MAX - 1
            }
            Event::Hashing { .. }
            | Event::Progress(_)
            | Event::Phase(_)
            | Event::Notice(_)
            | Event::Waiting => CHATTER_MAX,
        };
        // Only this thread puts in, so that there is no less room than was seen.
        if self.0.len() < most
            && let Err(crossbeam_channel::TrySendError::Disconnected(_)) = self.0.try_send(event)
        {
            return Next::Nothing;
        }
        if is_last { Next::Nothing } else { Next::More }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Failure, Hello, Phase};

    #[test]
    fn a_flood_is_dropped_and_what_is_waited_for_still_comes() {
        let (inbox, events) = inbox();
        let hello = || {
            Event::Dialed(Hello {
                protocol: 0,
                version: String::new(),
                host: String::new(),
                program: [0; 32],
            })
        };
        for _ in 0..100_000 {
            assert_eq!(inbox.put(Event::Notice("flood".into())), Next::More);
        }
        assert_eq!(inbox.put(hello()), Next::More);
        for _ in 0..100_000 {
            inbox.put(Event::Phase(Phase::Comparing));
            inbox.put(hello());
        }
        assert_eq!(inbox.put(Event::Failed(Failure::stopped())), Next::Nothing);
        let got: Vec<Event> = events.try_iter().collect();
        assert_eq!(got.len(), CHATTER_MAX + ANSWERS_MAX);
        assert!(matches!(got[CHATTER_MAX], Event::Dialed(_)));
        assert!(matches!(got.last(), Some(Event::Failed(_))));
        assert_eq!(inbox.put(Event::Notice(String::new())), Next::More, "there is room again");
        drop(events);
        assert_eq!(inbox.put(Event::Notice(String::new())), Next::Nothing, "nobody looks");
    }
}
