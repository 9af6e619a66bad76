//! Assembles VHDs byte by byte after the specification, with code of its own: what our encoder gets wrong must
//! not be right here by the same mistake.

/// Everything that the tests vary.
#[derive(Clone)]
pub(super) struct Vhd {
    pub(super) kind: u32,
    pub(super) size: u64,
    pub(super) block_size: u32,
    pub(super) entries: u32,
    pub(super) creator: [u8; 4],
    pub(super) version: u32,
    pub(super) geometry: u32,
    pub(super) uuid: [u8; 16],
    pub(super) hidden: u8,
    pub(super) timestamp: u32,
    pub(super) parent_uuid: [u8; 16],
    pub(super) parent_name: String,
    /// Platform code, data space, path.
    pub(super) locators: Vec<(&'static [u8; 4], u32, Vec<u8>)>,
    /// Block, bitmap, data.
    pub(super) blocks: Vec<(u32, Vec<u8>, Vec<u8>)>,
    /// 512, 511 or none.
    pub(super) footer_length: usize,
}

pub(super) const PARENT_UUID: [u8; 16] = *b"the parent uuid!";
pub(super) const CHILD_UUID: [u8; 16] = *b"the child's uuid";

impl Vhd {
    pub(super) fn dynamic(size: u64) -> Self {
        Self {
            kind: 3,
            size,
            block_size: 2 << 20,
            entries: size.div_ceil(2 << 20) as u32,
            creator: *b"win ",
            version: 0x000a_0000,
            geometry: 0x03c3_0811,
            uuid: PARENT_UUID,
            hidden: 0,
            timestamp: 0x2b00_0000,
            parent_uuid: [0; 16],
            parent_name: String::new(),
            locators: Vec::new(),
            blocks: Vec::new(),
            footer_length: 512,
        }
    }

    /// A child of `parent.vhd` in the same folder.
    pub(super) fn differencing(size: u64) -> Self {
        Self {
            kind: 4,
            uuid: CHILD_UUID,
            parent_uuid: PARENT_UUID,
            parent_name: "parent.vhd".to_owned(),
            locators: vec![(b"MacX", 512, b"file://./parent.vhd".to_vec())],
            ..Self::dynamic(size)
        }
    }

    /// A block whose sectors all hold `fill`, present where `bitmap` says so.
    pub(super) fn block(mut self, block: u32, bitmap: &[u8], fill: u8) -> Self {
        let size = self.block_size as usize;
        let mut bits = bitmap.to_vec();
        bits.resize((size / 512).div_ceil(8).next_multiple_of(512), 0);
        self.blocks.push((block, bits, vec![fill; size]));
        self
    }

    pub(super) fn footer(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(b"conectix");
        bytes.extend(2_u32.to_be_bytes());
        bytes.extend(0x0001_0000_u32.to_be_bytes());
        bytes.extend(if self.kind == 2 { u64::MAX } else { 512 }.to_be_bytes());
        bytes.extend(self.timestamp.to_be_bytes());
        bytes.extend(self.creator);
        bytes.extend(self.version.to_be_bytes());
        bytes.extend(b"Wi2k");
        bytes.extend(self.size.to_be_bytes());
        bytes.extend(self.size.to_be_bytes());
        bytes.extend(self.geometry.to_be_bytes());
        bytes.extend(self.kind.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(self.uuid);
        bytes.extend([0, self.hidden]);
        bytes.resize(512, 0);
        seal(&mut bytes, 64);
        bytes
    }

    fn header(&self, locator_offsets: &[u64]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(b"cxsparse");
        bytes.extend(u64::MAX.to_be_bytes());
        bytes.extend(1536_u64.to_be_bytes());
        bytes.extend(0x0001_0000_u32.to_be_bytes());
        bytes.extend(self.entries.to_be_bytes());
        bytes.extend(self.block_size.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(self.parent_uuid);
        bytes.extend([0; 8]);
        bytes.extend(self.parent_name.encode_utf16().flat_map(u16::to_be_bytes));
        bytes.resize(576, 0);
        for ((code, space, path), offset) in self.locators.iter().zip(locator_offsets) {
            bytes.extend(*code);
            bytes.extend(space.to_be_bytes());
            bytes.extend((path.len() as u32).to_be_bytes());
            bytes.extend([0; 4]);
            bytes.extend(offset.to_be_bytes());
        }
        bytes.resize(1024, 0);
        seal(&mut bytes, 36);
        bytes
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let table_offset = 1536;
        let locators_offset = table_offset + (self.entries as usize * 4).next_multiple_of(512);
        let offsets: Vec<u64> =
            (0..self.locators.len() as u64).map(|i| locators_offset as u64 + i * 512).collect();
        let mut table = vec![0xff; locators_offset - table_offset];
        let mut rest = Vec::new();
        for (_, _, path) in &self.locators {
            rest.extend(path);
            rest.resize(rest.len().next_multiple_of(512), 0);
        }
        for (block, bitmap, data) in &self.blocks {
            let sector = ((locators_offset + rest.len()) / 512) as u32;
            table[*block as usize * 4..*block as usize * 4 + 4].copy_from_slice(&sector.to_be_bytes());
            rest.extend(bitmap);
            rest.extend(data);
        }
        let footer = self.footer();
        [&footer, &self.header(&offsets), &table, &rest, &footer[..self.footer_length]].concat()
    }
}

/// Puts the checksum at `at`: the complement of the sum of all other bytes.
pub(super) fn seal(bytes: &mut [u8], at: usize) {
    bytes[at..at + 4].fill(0);
    let sum: u32 = bytes.iter().map(|&byte| u32::from(byte)).sum();
    bytes[at..at + 4].copy_from_slice(&(!sum).to_be_bytes());
}

pub(super) fn utf16le(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}
