//! The members of a group and what is known of each.
//!
//! Writers (heartbeats, probes, a reloaded configuration) put a new list in place; readers take the list that is there,
//! which costs one uncontended lock and one reference count for each packet.

use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use super::fitness::Fitness;
use super::rank::Score;
use super::{LiveMembers, Member, MemberState};
use crate::event::{Event, EventKind, Observer};
use crate::network::Network;

/// Most members of a group, configured and found. A group answers for one site; each member hears every other one.
pub const MEMBERS_MAX: usize = 64;

/// Longest name of a member in bytes: a label of a host name (RFC 1035, 2.3.4).
pub const NAME_MAX: usize = 63;

/// One member and its part in the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberConfig {
    /// How devices reach it.
    pub member: Member,
    /// Port of its TFTP server.
    pub tftp_port: u16,
    /// Its share of the clients, relative to the others'; at least 1.
    pub weight: u32,
    /// Whether the administrator wants no new device to be given to it.
    pub is_draining: bool,
    /// The clients' subnets that it is there for. Clients of other subnets get it after all others; empty: it is for
    /// everybody.
    pub subnets: Vec<Network>,
    /// Whether it announced itself and stands in no configuration.
    pub is_found: bool,
}

impl MemberConfig {
    /// A configured member with the usual part in its group.
    pub fn new(member: Member) -> Self {
        Self { member, tftp_port: 69, weight: 1, is_draining: false, subnets: Vec::new(), is_found: false }
    }

    /// How near it is to a client: for its subnet, for everybody, for others.
    fn tier(&self, client: Option<IpAddr>) -> u8 {
        match client {
            _ if self.subnets.is_empty() => 1,
            Some(client) if self.subnets.iter().any(|subnet| subnet.contains(client)) => 0,
            Some(_) => 2,
            None => 1,
        }
    }
}

/// A member and what is known of it.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    /// The member.
    pub config: MemberConfig,
    /// What it is now.
    pub state: MemberState,
    /// Since when.
    pub since: SystemTime,
    /// Why, as a sentence.
    pub why: String,
    /// What heartbeats or probes say, without the administrator's wish.
    reported: MemberState,
}

/// Why a list of members is no group.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TableError {
    /// Two have one name.
    #[error("two members are named {0:?}")]
    Twice(String),
    /// A name is empty, too long, or has characters that would confuse a log.
    #[error("the member name {0:?} is not made of 1 to {NAME_MAX} letters, digits, '-', '_' and '.'")]
    Name(String),
    /// A weight of 0.
    #[error("the member {0:?} has weight 0: drain it, or leave it out")]
    Weight(String),
    /// More than [`MEMBERS_MAX`].
    #[error("a group has at most {MEMBERS_MAX} members")]
    TooMany,
    /// This process is not in the list.
    #[error("no member is named {0:?}, which is this one")]
    NotOne(String),
}

impl goldwire_stdx::Hints for TableError {}

/// The members of a group.
pub struct Table {
    known: RwLock<Arc<Vec<Known>>>,
    /// This process, if it is a member itself. It lives as long as it can be asked.
    own: Option<String>,
    observer: Arc<dyn Observer>,
    fitness: Arc<Fitness>,
}

impl Table {
    /// A group of configured members. `own` names the one that this process is; all others count as dead until they
    /// are heard.
    ///
    /// # Errors
    /// When the list is no group.
    pub fn new(
        configs: Vec<MemberConfig>,
        own: Option<String>,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, TableError> {
        let table = Self { known: RwLock::default(), own, observer, fitness: Arc::default() };
        table.configure(configs)?;
        Ok(table)
    }

    /// Puts another configuration in place. What is known of a member that stays is kept; found members stay unless
    /// they are configured now.
    ///
    /// # Errors
    /// When the list is no group; the former one stays.
    pub fn configure(&self, configs: Vec<MemberConfig>) -> Result<(), TableError> {
        check(&configs, self.own.as_deref())?;
        let mut guard = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let former = Arc::clone(&guard);
        let mut known: Vec<Known> = configs
            .into_iter()
            .map(|config| {
                let name = &config.member.name;
                let before = former.iter().find(|before| before.config.member.name == *name);
                let is_own = self.own.as_ref() == Some(name);
                let (reported, why) = match before {
                    Some(before) => (before.reported, before.why.clone()),
                    None if is_own => (MemberState::Alive, "it is this process".into()),
                    None => (MemberState::Dead, "nothing was heard of it yet".into()),
                };
                let state = effective(reported, &config);
                let since = before
                    .filter(|before| before.state == state)
                    .map_or_else(SystemTime::now, |before| before.since);
                Known { config, state, since, why, reported }
            })
            .collect();
        let found: Vec<Known> = former
            .iter()
            .filter(|before| before.config.is_found && find(&known, &before.config.member.name).is_none())
            .cloned()
            .collect();
        known.extend(found);
        known.truncate(MEMBERS_MAX);
        let changed: Vec<(String, MemberState)> = known
            .iter()
            .filter_map(|now| {
                let before = find(&former, &now.config.member.name).map(|at| former[at].state);
                (before.unwrap_or(MemberState::Dead) != now.state)
                    .then(|| (now.config.member.name.clone(), now.state))
            })
            .collect();
        *guard = Arc::new(known);
        drop(guard);
        for (name, state) in changed {
            self.tell(&name, state, "the configuration says so");
        }
        Ok(())
    }

    /// What heartbeats or probes say about a member, with the reason. Unknown names are ignored: the configuration may
    /// have changed meanwhile.
    pub fn report(&self, name: &str, state: MemberState, why: &str) {
        let mut guard = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let Some(at) = find(&guard, name) else { return };
        if guard[at].reported == state {
            return;
        }
        let known = &mut Arc::make_mut(&mut guard)[at];
        let before = known.state;
        known.reported = state;
        known.state = effective(state, &known.config);
        known.why = why.into();
        let now = known.state;
        if now != before {
            known.since = SystemTime::now();
        }
        drop(guard);
        if now != before {
            self.tell(name, now, why);
        }
    }

    /// Takes in a member that proved the key and announced itself, or what it announces anew. False when the table is
    /// full or the name belongs to a configured member.
    pub(crate) fn found(&self, config: MemberConfig) -> bool {
        let config = MemberConfig { is_found: true, ..config };
        if check(std::slice::from_ref(&config), None).is_err() {
            return false;
        }
        let mut guard = self.known.write().unwrap_or_else(PoisonError::into_inner);
        match find(&guard, &config.member.name) {
            Some(at) if !guard[at].config.is_found => return false,
            Some(at) if guard[at].config == config => {}
            Some(at) => Arc::make_mut(&mut guard)[at].config = config,
            None if guard.len() >= MEMBERS_MAX => return false,
            None => Arc::make_mut(&mut guard).push(Known {
                config,
                state: MemberState::Dead,
                since: SystemTime::now(),
                why: "it was found just now".into(),
                reported: MemberState::Dead,
            }),
        }
        true
    }

    /// Forgets a found member.
    pub(crate) fn forget(&self, name: &str) {
        let mut guard = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = find(&guard, name).filter(|at| guard[*at].config.is_found) {
            Arc::make_mut(&mut guard).remove(at);
        }
    }

    /// All members as they are now.
    pub(crate) fn all(&self) -> Arc<Vec<Known>> {
        Arc::clone(&self.known.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// This process's own name in the group.
    pub fn own(&self) -> Option<&str> {
        self.own.as_deref()
    }

    /// What of this process is stuck or fails.
    pub fn fitness(&self) -> &Arc<Fitness> {
        &self.fitness
    }

    /// What a member is now; dead when there is none of this name. This process drains while a part of it is stuck.
    pub fn state_of(&self, name: &str) -> MemberState {
        let known = self.all();
        let state = find(&known, name).map_or(MemberState::Dead, |at| known[at].state);
        let is_own = self.own() == Some(name);
        if is_own && state == MemberState::Alive && self.fitness.trouble().is_some() {
            return MemberState::Draining;
        }
        state
    }

    /// The live members for a client, the best first: see [`LiveMembers::ordered_for`].
    pub(crate) fn ranked_for(&self, key: &[u8], subnet: Option<IpAddr>) -> Vec<MemberConfig> {
        let known = self.all();
        let is_fit = self.fitness.trouble().is_none();
        let is_stuck = |known: &Known| !is_fit && self.own() == Some(known.config.member.name.as_str());
        let mut ranked: Vec<(u8, Score, &MemberConfig)> = known
            .iter()
            .filter(|known| known.state == MemberState::Alive && !is_stuck(known))
            .map(|Known { config, .. }| {
                (config.tier(subnet), Score::of(&config.member.name, config.weight, key), config)
            })
            .collect();
        ranked.sort_by(|(tier, score, config), (other_tier, other_score, other)| {
            tier.cmp(other_tier)
                .then(score.better_first(*other_score))
                .then_with(|| config.member.name.cmp(&other.member.name))
        });
        ranked.into_iter().map(|(_, _, config)| config.clone()).collect()
    }

    fn tell(&self, name: &str, state: MemberState, why: &str) {
        if state == MemberState::Dead {
            tracing::warn!(member = name, state = state.name(), why, "a boot member changed");
        } else {
            tracing::info!(member = name, state = state.name(), why, "a boot member changed");
        }
        self.observer.observe(&Event { mac: None, address: None, kind: EventKind::Member { name, state } });
    }
}

impl LiveMembers for Table {
    fn ordered_for(&self, key: &[u8], subnet: Option<IpAddr>) -> Vec<Member> {
        self.ranked_for(key, subnet).into_iter().map(|config| config.member).collect()
    }
}

/// What follows from what is heard and what the administrator wants.
fn effective(reported: MemberState, config: &MemberConfig) -> MemberState {
    if reported == MemberState::Alive && config.is_draining { MemberState::Draining } else { reported }
}

fn find(known: &[Known], name: &str) -> Option<usize> {
    known.iter().position(|known| known.config.member.name == name)
}

fn check(configs: &[MemberConfig], own: Option<&str>) -> Result<(), TableError> {
    if configs.len() > MEMBERS_MAX {
        return Err(TableError::TooMany);
    }
    for (at, MemberConfig { member, weight, .. }) in configs.iter().enumerate() {
        let is_plain = member.name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        if !is_plain || member.name.is_empty() || member.name.len() > NAME_MAX {
            return Err(TableError::Name(member.name.clone()));
        }
        if *weight == 0 {
            return Err(TableError::Weight(member.name.clone()));
        }
        if configs[..at].iter().any(|other| other.member.name == member.name) {
            return Err(TableError::Twice(member.name.clone()));
        }
    }
    match own {
        Some(own) if !configs.iter().any(|config| config.member.name == own) => {
            Err(TableError::NotOne(own.to_owned()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Seen(Mutex<Vec<(String, MemberState)>>);

    impl Observer for Seen {
        fn observe(&self, event: &Event<'_>) {
            if let EventKind::Member { name, state } = event.kind {
                self.0.lock().unwrap().push((name.into(), state));
            }
        }
    }

    fn config(name: &str) -> MemberConfig {
        MemberConfig::new(Member {
            name: name.into(),
            address: "10.0.0.1".parse().unwrap(),
            http_port: 80,
            https_port: None,
            https_name: None,
        })
    }

    fn group(configs: Vec<MemberConfig>) -> (Table, Arc<Seen>) {
        let seen = Arc::new(Seen::default());
        (Table::new(configs, Some("a".into()), Arc::clone(&seen) as _).unwrap(), seen)
    }

    fn names(table: &Table, key: &[u8], subnet: Option<&str>) -> Vec<String> {
        let subnet = subnet.map(|text| text.parse().unwrap());
        table.ordered_for(key, subnet).into_iter().map(|member| member.name).collect()
    }

    #[test]
    fn only_the_living_are_given_and_each_change_is_told_once() {
        let (table, seen) = group(["a", "b", "c"].map(config).into());
        assert_eq!(names(&table, b"x", None), ["a"]);
        table.report("b", MemberState::Alive, "heard");
        table.report("b", MemberState::Alive, "heard");
        table.report("c", MemberState::Draining, "it says so");
        table.report("nobody", MemberState::Alive, "heard");
        let mut order = names(&table, b"x", None);
        order.sort();
        assert_eq!(order, ["a", "b"]);
        table.report("b", MemberState::Dead, "silent");
        assert_eq!(names(&table, b"x", None), ["a"]);
        let reported = [
            ("a", MemberState::Alive),
            ("b", MemberState::Alive),
            ("c", MemberState::Draining),
            ("b", MemberState::Dead),
        ];
        assert_eq!(*seen.0.lock().unwrap(), reported.map(|(name, state)| (name.to_owned(), state)));
    }

    #[test]
    fn losing_a_member_moves_only_its_clients() {
        let (table, _) = group(["a", "b", "c", "d"].map(config).into());
        for name in ["b", "c", "d"] {
            table.report(name, MemberState::Alive, "heard");
        }
        let before: Vec<_> = (0..500_u32).map(|client| names(&table, &client.to_le_bytes(), None)).collect();
        table.report("c", MemberState::Dead, "silent");
        for (client, before) in before.iter().enumerate() {
            let left: Vec<_> = before.iter().filter(|name| *name != "c").cloned().collect();
            assert_eq!(names(&table, &(client as u32).to_le_bytes(), None), left);
        }
    }

    #[test]
    fn subnets_go_before_the_hash() {
        let (mut near, far) = (config("b"), config("c"));
        near.subnets = vec!["10.1.0.0/16".parse().unwrap()];
        let (table, _) = group(vec![config("a"), near, far]);
        table.report("b", MemberState::Alive, "heard");
        table.report("c", MemberState::Alive, "heard");
        for client in 0..50_u32 {
            assert_eq!(names(&table, &client.to_le_bytes(), Some("10.1.2.3"))[0], "b");
            assert_eq!(names(&table, &client.to_le_bytes(), Some("10.2.2.3"))[2], "b");
        }
    }

    #[test]
    fn a_new_configuration_keeps_what_is_known() {
        let (table, seen) = group(vec![config("a"), config("b"), config("c")]);
        table.report("b", MemberState::Alive, "heard");
        assert!(table.found(config("f")) && !table.found(config("a")));
        table.report("f", MemberState::Alive, "heard");
        let since = table.all()[1].since;
        let drained = MemberConfig { is_draining: true, ..config("a") };
        table.configure(vec![drained, config("b"), config("d")]).unwrap();
        assert_eq!(table.all()[1].since, since);
        let mut order = names(&table, b"x", None);
        order.sort();
        assert_eq!(order, ["b", "f"]);
        assert_eq!(seen.0.lock().unwrap().last(), Some(&("a".to_owned(), MemberState::Draining)));
        table.forget("b");
        table.forget("f");
        assert_eq!(names(&table, b"x", None), ["b"]);
    }

    #[test]
    fn what_is_no_group_is_refused() {
        let new = |configs: Vec<MemberConfig>, own: &str| {
            Table::new(configs, Some(own.into()), Arc::new(crate::event::NoopObserver)).err()
        };
        assert_eq!(new(vec![config("a"), config("a")], "a"), Some(TableError::Twice("a".into())));
        assert_eq!(new(vec![config("a b")], "a b"), Some(TableError::Name("a b".into())));
        assert_eq!(
            new(vec![MemberConfig { weight: 0, ..config("a") }], "a"),
            Some(TableError::Weight("a".into()))
        );
        assert_eq!(new(vec![config("a")], "b"), Some(TableError::NotOne("b".into())));
        let many = (0..=MEMBERS_MAX).map(|at| config(&at.to_string())).collect();
        assert_eq!(new(many, "0"), Some(TableError::TooMany));
    }
}
