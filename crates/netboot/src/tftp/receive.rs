//! The other end: a client that receives one file, without sockets and clock, for the tests, the load generator and
//! whoever wants to see what a firmware sees.

use super::wire::{
    BLOCK_SIZE_DEFAULT, BLOCK_SIZE_MIN, ErrorCode, Mode, OptionName, Options, Packet, Request, data_header,
};

/// Receives one file.
#[derive(Clone, Debug)]
pub struct Receiver {
    asked: Options,
    block_size: u16,
    window_size: u16,
    /// The highest block that came with all before it, without wrap-around.
    received: u64,
    /// Blocks since the last ACK.
    unacknowledged: u16,
    /// An ACK told already what is missing.
    is_gap_told: bool,
    is_started: bool,
}

/// What a packet changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// It was not expected, or the window goes on.
    Wait,
    /// This ACK is to be sent.
    Acknowledge([u8; 4]),
    /// The file is there; this last ACK is to be sent.
    Done([u8; 4]),
    /// The server broke off.
    Failed(ErrorCode, String),
    /// The server answered with options that were not asked for or with larger values (RFC 2347): it is to be sent this.
    Refuse(Vec<u8>),
}

impl Receiver {
    /// A client that asks for these options.
    pub fn new(asked: Options) -> Self {
        Self {
            asked,
            block_size: BLOCK_SIZE_DEFAULT,
            window_size: 1,
            received: 0,
            unacknowledged: 0,
            is_gap_told: false,
            is_started: false,
        }
    }

    /// The request to begin with.
    pub fn request(&self, file: &str) -> Vec<u8> {
        Packet::Read(Request { file: file.as_bytes(), mode: Mode::Octet, options: self.asked.clone() })
            .encode()
    }

    /// What is to be sent when nothing comes: the request while that is `None`, otherwise an ACK of what is there.
    pub fn reminder(&mut self) -> Option<[u8; 4]> {
        self.is_started.then(|| self.acknowledge())
    }

    /// Bytes of a block and blocks of a window, as agreed.
    pub fn agreed(&self) -> (u16, u16) {
        (self.block_size, self.window_size)
    }

    /// A packet came. New bytes of the file are given to `sink`, in order, with their offset.
    pub fn handle_packet(&mut self, packet: &Packet<'_>, sink: &mut dyn FnMut(u64, &[u8])) -> Step {
        match packet {
            Packet::OptionAck(options) if self.received == 0 => {
                if !self.is_started && !self.agree(options) {
                    let message = "the options were not asked for".into();
                    return Step::Refuse(
                        Packet::Error { code: ErrorCode::OPTION_NEGOTIATION, message }.encode(),
                    );
                }
                self.is_started = true;
                Step::Acknowledge(self.acknowledge())
            }
            Packet::Data { block, bytes } => self.handle_data(*block, bytes, sink),
            Packet::Error { code, message } => Step::Failed(*code, message.clone()),
            _ => Step::Wait,
        }
    }

    fn handle_data(&mut self, block: u16, bytes: &[u8], sink: &mut dyn FnMut(u64, &[u8])) -> Step {
        // The distance to the next block, as a signed number: negative for what came before.
        let distance = block.wrapping_sub(self.received as u16).wrapping_sub(1) as i16;
        if distance == 0 && bytes.len() <= usize::from(self.block_size) {
            self.is_started = true;
            self.is_gap_told = false;
            sink(self.received * u64::from(self.block_size), bytes);
            self.received += 1;
            self.unacknowledged += 1;
            if bytes.len() < usize::from(self.block_size) {
                return Step::Done(self.acknowledge());
            }
            if self.unacknowledged >= self.window_size {
                return Step::Acknowledge(self.acknowledge());
            }
            return Step::Wait;
        }
        // RFC 7440 §4: what is out of order is thrown away, and the last block that is there acknowledged, once for a
        // gap. The end of what is there coming again says that our ACK was lost.
        if distance == -1 || (distance > 0 && !self.is_gap_told && self.is_started) {
            self.is_gap_told = distance > 0;
            return Step::Acknowledge(self.acknowledge());
        }
        Step::Wait
    }

    fn agree(&mut self, options: &Options) -> bool {
        for (name, value) in options.iter() {
            let Some(asked) = self.asked.get(name) else { return false };
            let is_sane = match name {
                OptionName::BlockSize => (u64::from(BLOCK_SIZE_MIN)..=asked).contains(&value),
                OptionName::WindowSize => (1..=asked).contains(&value),
                OptionName::TimeoutS => value == asked,
                OptionName::TransferSize => true,
            };
            let small = u16::try_from(value).unwrap_or(u16::MAX);
            match name {
                _ if !is_sane => return false,
                OptionName::BlockSize => self.block_size = small,
                OptionName::WindowSize => self.window_size = small,
                OptionName::TimeoutS | OptionName::TransferSize => {}
            }
        }
        true
    }

    fn acknowledge(&mut self) -> [u8; 4] {
        self.unacknowledged = 0;
        let mut bytes = data_header(self.received as u16);
        bytes[1] = 4; // ACK instead of DATA; the rest is the same.
        bytes
    }
}
