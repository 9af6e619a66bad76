//! Any record.

use std::net::Ipv4Addr;

use proptest::prelude::*;

use goldwire_stdx::Uuid;

use crate::dhcp::lease::{ClientId, Hardware, MemberId, Record, RecordState, RelayAgent, Time};

pub(in crate::dhcp::lease) fn any_holder() -> impl Strategy<Value = ClientId> {
    let hardware = (any::<u8>(), 0_u8..=16, any::<[u8; 16]>());
    let uuid = proptest::option::of(any::<[u8; 16]>());
    (hardware, uuid, proptest::collection::vec(any::<u8>(), 0..=255), any::<bool>()).prop_filter_map(
        "nothing tells who it is",
        |((kind, length, address), uuid, client_id, is_boot)| {
            ClientId::new(Hardware::new(kind, length, address), uuid.map(Uuid), &client_id, is_boot)
        },
    )
}

pub(in crate::dhcp::lease) fn any_record() -> impl Strategy<Value = Record> {
    let state =
        prop_oneof![Just(RecordState::Granted), Just(RecordState::Released), Just(RecordState::Declined)];
    let relay_agent = proptest::collection::vec(any::<u8>(), 0..=255);
    (any::<u32>(), state, any_holder(), relay_agent, any::<[u64; 5]>()).prop_map(
        |(address, state, client, relay_agent, [member, member_sequence, changed, expires, grace_until])| {
            Record {
                address: Ipv4Addr::from(address),
                state,
                client,
                relay_agent: RelayAgent::new(&relay_agent),
                member: MemberId(member),
                member_sequence,
                changed: Time(changed),
                expires: Time(expires),
                grace_until: Time(grace_until),
            }
        },
    )
}
