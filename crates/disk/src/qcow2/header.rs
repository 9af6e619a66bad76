//! The header and its extensions: bytes to [`Header`], and the one header that we write.
//!
//! ```text
//!   0 magic "QFI\xfb"            40 L1 offset               80 compatible features
//!   4 version                    48 refcount table offset   88 autoclear features
//!   8 backing name offset        56 refcount table clusters 96 refcount order
//!  16 backing name length        60 snapshot count         100 header length
//!  20 cluster bits               64 snapshots offset       104 compression type
//!  24 guest size                 72 incompatible features      extensions, backing name
//!  32 encryption  36 L1 entries     (from 72: version 3)
//! ```

use std::path::Path;

use super::host::HostFileExt as _;
use super::tables::Geometry;
use crate::host::HostFile;
use crate::{Error, ErrorKind, Result};

/// The first four bytes.
const MAGIC: &[u8; 4] = b"QFI\xfb";
/// QEMU opens no larger L1 table, so nothing that works has one.
const L1_BYTES_MAX: u64 = 32 << 20;
/// QEMU's limit for the refcount table.
const REFCOUNT_TABLE_BYTES_MAX: u64 = 8 << 20;
/// The format's limit for the name of the backing file.
const BACKING_NAME_LENGTH_MAX: u32 = 1023;
/// Length of the version 3 header that we write, without the optional compression type.
const LENGTH_V3: u32 = 104;

/// A snapshot's entry without its texts.
const SNAPSHOT_BYTES_MIN: u64 = 40;

const EXTENSION_END: u32 = 0;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXTENSION_BITMAPS: u32 = 0x2385_2875;

/// Incompatible feature bits.
pub(super) const DIRTY: u64 = 1 << 0;
pub(super) const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;
const COMPRESSION_TYPE: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;

/// How compressed clusters are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    /// Raw deflate; the format calls it zlib, but there is no zlib header.
    Deflate,
    /// Zstandard.
    Zstd,
}

/// A header that was understood. Everything in it is within its limits; nothing is compared with the file yet.
#[derive(Clone, Debug)]
pub(super) struct Header {
    /// 2 or 3.
    pub(super) version: u32,
    /// The backing file's name as bytes of a path; never empty.
    pub(super) backing_name: Option<Vec<u8>>,
    /// QEMU's name for the backing file's format, where the image records one.
    pub(super) backing_format: Option<String>,
    /// How tables and clusters are cut.
    pub(super) geometry: Geometry,
    /// Guest size in bytes.
    pub(super) size: u64,
    /// Entries of the L1 table; at least as many as `size` needs.
    pub(super) l1_entries: u32,
    /// Where the L1 table lies; cluster-aligned.
    pub(super) l1_offset: u64,
    /// Where the refcount table lies; cluster-aligned.
    pub(super) refcount_table_offset: u64,
    /// Length of the refcount table in clusters.
    pub(super) refcount_table_clusters: u32,
    /// Internal snapshots, which we do not look at.
    pub(super) snapshot_count: u32,
    /// Version 3 feature bits; all known or without effect for us.
    pub(super) incompatible: u64,
    /// Version 3 autoclear bits.
    pub(super) autoclear: u64,
    /// A refcount has `1 << refcount_order` bits.
    pub(super) refcount_order: u32,
    /// For compressed clusters.
    pub(super) compression: Compression,
    /// Whether persistent bitmaps occupy clusters that only their extension knows.
    pub(super) has_bitmaps: bool,
    /// Tables that we do not read, by field: an image that names one past its end was cut.
    pub(super) unread: Vec<Place>,
}

/// A part of the file that the header names.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// The field that names it.
    pub(super) field: &'static str,
    /// Where the field lies, in bytes of the file.
    pub(super) at: u64,
    /// Where the part begins.
    offset: u64,
    /// Bytes that it has at least.
    length: u64,
}

impl Place {
    /// What is wrong if the file has `host_length` bytes.
    pub(super) fn fault(&self, host_length: u64) -> Option<String> {
        let Self { offset, length, .. } = self;
        let is_inside = offset.checked_add(*length).is_some_and(|end| end <= host_length);
        (!is_inside).then(|| {
            format!("names {length} bytes at {offset}, but the file ends at {host_length}: it was cut")
        })
    }
}

impl Header {
    /// Reads the header, its extensions and the backing file's name.
    pub(super) fn read(host: &HostFile) -> Result<Self> {
        let mut start = [0; 24];
        host.read_whole(&mut start, 0, "header")?;
        if start.starts_with(MAGIC) && be32(&start, 4) == Some(1) {
            // Its fields lie elsewhere.
            return Parser { bytes: &start, path: host.path() }.header();
        }
        let cluster_bits = be32(&start, 20).unwrap_or(0);
        Geometry::check_cluster_bits(cluster_bits).map_err(|why| host.corrupt("cluster_bits", 20, why))?;
        // Extensions and the backing name have to lie in the first cluster.
        let mut bytes = vec![0; 1 << cluster_bits];
        let length = host.read_available(&mut bytes, 0, "header")?;
        bytes.truncate(length);
        Self::parse(&bytes, host.path())
    }

    /// Understands `bytes`, the first cluster of the file `path` or as much of it as there is.
    pub(super) fn parse(bytes: &[u8], path: &Path) -> Result<Self> {
        Parser { bytes, path }.header()
    }

    /// The parts of the file that the header names, apart from the L1 table.
    pub(super) fn places(&self) -> impl Iterator<Item = Place> {
        let refcounts = Place {
            field: "refcount_table_offset",
            at: 48,
            offset: self.refcount_table_offset,
            length: self.refcount_table_bytes(),
        };
        self.unread.iter().cloned().chain([refcounts])
    }

    /// Bytes of the L1 table.
    pub(super) fn l1_bytes(&self) -> u64 {
        u64::from(self.l1_entries) * 8
    }

    /// Bytes of the refcount table.
    pub(super) fn refcount_table_bytes(&self) -> u64 {
        u64::from(self.refcount_table_clusters) << self.geometry.cluster_bits()
    }

    /// The bytes of a plain version 3 header: 16-bit refcounts, no backing file, no features. What it does not
    /// mention is zero.
    pub(super) fn encode_plain(&self) -> Vec<u8> {
        let mut bytes = vec![0; LENGTH_V3 as usize + 8];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, MAGIC);
        put(4, &3u32.to_be_bytes());
        put(20, &self.geometry.cluster_bits().to_be_bytes());
        put(24, &self.size.to_be_bytes());
        put(36, &self.l1_entries.to_be_bytes());
        put(40, &self.l1_offset.to_be_bytes());
        put(48, &self.refcount_table_offset.to_be_bytes());
        put(56, &self.refcount_table_clusters.to_be_bytes());
        put(96, &self.refcount_order.to_be_bytes());
        put(100, &LENGTH_V3.to_be_bytes());
        // The eight zeros behind the header are the end of the extensions.
        bytes
    }
}

struct Parser<'a> {
    bytes: &'a [u8],
    path: &'a Path,
}

impl Parser<'_> {
    fn header(&self) -> Result<Header> {
        if self.bytes.get(..4) != Some(MAGIC) {
            return Err(self.corrupt("magic", 0, "is not that of a QCOW2 image"));
        }
        let version = self.u32(4, "version")?;
        if !(2..=3).contains(&version) {
            return Err(self.unsupported(format!("QCOW2 version {version}")));
        }
        let cluster_bits = self.u32(20, "cluster_bits")?;
        Geometry::check_cluster_bits(cluster_bits).map_err(|why| self.corrupt("cluster_bits", 20, why))?;
        match self.u32(32, "crypt_method")? {
            0 => {}
            1 => return Err(self.unsupported("AES encryption")),
            2 => return Err(self.unsupported("LUKS encryption")),
            other => return Err(self.unsupported(format!("encryption method {other}"))),
        }
        let (incompatible, autoclear, refcount_order, header_length) = self.version3_fields(version)?;
        let geometry = Geometry::new(cluster_bits, incompatible & EXTENDED_L2 != 0, version)
            .map_err(|why| self.corrupt("cluster_bits", 20, why))?;
        let size = self.u64(24, "size")?;
        let l1_entries = self.l1_entries(geometry, size)?;
        let backing_name = self.backing_name()?;
        let extensions = self.extensions(header_length)?;
        Ok(Header {
            version,
            backing_format: extensions.backing_format.filter(|_| backing_name.is_some()),
            backing_name,
            geometry,
            size,
            l1_entries,
            l1_offset: self.aligned(40, "l1_table_offset", geometry)?,
            refcount_table_offset: self.aligned(48, "refcount_table_offset", geometry)?,
            refcount_table_clusters: self.refcount_table_clusters(geometry)?,
            snapshot_count: self.u32(60, "nb_snapshots")?,
            incompatible,
            autoclear,
            refcount_order,
            compression: self.compression(incompatible, header_length)?,
            has_bitmaps: extensions.has_bitmaps,
            unread: extensions.bitmap_directory.into_iter().chain(self.snapshot_table()?).collect(),
        })
    }

    /// Incompatible bits, autoclear bits, refcount order and header length, which version 2 implies.
    fn version3_fields(&self, version: u32) -> Result<(u64, u64, u32, u32)> {
        if version == 2 {
            return Ok((0, 0, 4, 72));
        }
        let incompatible = self.u64(72, "incompatible_features")?;
        if incompatible & EXTERNAL_DATA != 0 {
            return Err(self
                .unsupported("an external data file (incompatible feature bit 2)")
                .with_hint("convert it with `qemu-img convert -O qcow2`"));
        }
        let unknown = incompatible & !(DIRTY | CORRUPT | COMPRESSION_TYPE | EXTENDED_L2);
        if unknown != 0 {
            let bit = unknown.trailing_zeros();
            return Err(self.unsupported(format!("incompatible feature bit {bit}")));
        }
        let refcount_order = self.u32(96, "refcount_order")?;
        if refcount_order > 6 {
            return Err(self.corrupt("refcount_order", 96, format!("is {refcount_order}, more than 6")));
        }
        let length = self.u32(100, "header_length")?;
        if length < LENGTH_V3 || !length.is_multiple_of(8) || length as usize > self.bytes.len() {
            let why =
                format!("is {length}; at least {LENGTH_V3}, a multiple of 8 and inside the file is right");
            return Err(self.corrupt("header_length", 100, why));
        }
        Ok((incompatible, self.u64(88, "autoclear_features")?, refcount_order, length))
    }

    fn l1_entries(&self, geometry: Geometry, size: u64) -> Result<u32> {
        let entries = self.u32(36, "l1_size")?;
        if u64::from(entries) * 8 > L1_BYTES_MAX {
            return Err(self.corrupt("l1_size", 36, format!("{entries} entries are more than 32 MiB")));
        }
        let needed = size.div_ceil(geometry.table_span());
        if u64::from(entries) < needed {
            let why = format!("{entries} entries, but {size} bytes of guest need {needed}");
            return Err(self.corrupt("l1_size", 36, why));
        }
        Ok(entries)
    }

    fn refcount_table_clusters(&self, geometry: Geometry) -> Result<u32> {
        let clusters = self.u32(56, "refcount_table_clusters")?;
        if clusters == 0 || u64::from(clusters) << geometry.cluster_bits() > REFCOUNT_TABLE_BYTES_MAX {
            let why = format!("is {clusters}; between one cluster and 8 MiB is right");
            return Err(self.corrupt("refcount_table_clusters", 56, why));
        }
        Ok(clusters)
    }

    fn aligned(&self, at: usize, field: &str, geometry: Geometry) -> Result<u64> {
        let offset = self.u64(at, field)?;
        // The tables' own entries hold 56 bits of offset; what lies beyond cannot be right here either.
        if !offset.is_multiple_of(geometry.cluster_size()) || offset >> 56 != 0 {
            return Err(self.corrupt(field, at, format!("{offset:#x} is no cluster's offset")));
        }
        Ok(offset)
    }

    fn snapshot_table(&self) -> Result<Option<Place>> {
        let count = self.u32(60, "nb_snapshots")?;
        let offset = self.u64(64, "snapshots_offset")?;
        let length = u64::from(count) * SNAPSHOT_BYTES_MIN;
        Ok((count != 0).then_some(Place { field: "snapshots_offset", at: 64, offset, length }))
    }

    fn compression(&self, incompatible: u64, header_length: u32) -> Result<Compression> {
        let code = if header_length > 104 { self.bytes.get(104).copied().unwrap_or(0) } else { 0 };
        if (incompatible & COMPRESSION_TYPE != 0) != (code != 0) {
            let why = format!("is {code}, which contradicts incompatible feature bit 3");
            return Err(self.corrupt("compression_type", 104, why));
        }
        match code {
            0 => Ok(Compression::Deflate),
            1 => Ok(Compression::Zstd),
            other => Err(self.unsupported(format!("compression type {other}"))),
        }
    }

    fn backing_name(&self) -> Result<Option<Vec<u8>>> {
        let offset = self.u64(8, "backing_file_offset")?;
        let length = self.u32(16, "backing_file_size")?;
        if offset == 0 || length == 0 {
            return Ok(None);
        }
        if length > BACKING_NAME_LENGTH_MAX {
            return Err(self.corrupt("backing_file_size", 16, format!("{length} is more than 1023")));
        }
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let name = self.bytes.get(start..start.saturating_add(length as usize));
        let name = name.ok_or_else(|| {
            self.corrupt("backing_file_offset", 8, "the name is not inside the first cluster")
        })?;
        if name.contains(&0) {
            return Err(self.corrupt("backing file name", start, "contains a zero byte"));
        }
        Ok(Some(name.to_vec()))
    }

    fn extensions(&self, header_length: u32) -> Result<Extensions> {
        let mut found = Extensions::default();
        let backing = usize::try_from(self.u64(8, "backing_file_offset")?).unwrap_or(usize::MAX);
        let end = if backing == 0 { self.bytes.len() } else { backing.min(self.bytes.len()) };
        let mut at = header_length as usize;
        while at.saturating_add(8) <= end {
            let kind = self.u32(at, "header extension")?;
            let length = self.u32(at + 4, "header extension")? as usize;
            if kind == EXTENSION_END {
                break;
            }
            let data = at + 8;
            if length > end - data {
                return Err(self.corrupt("header extension", at, format!("its {length} bytes do not fit")));
            }
            match kind {
                EXTENSION_BACKING_FORMAT => {
                    let name = String::from_utf8_lossy(&self.bytes[data..data + length]);
                    found.backing_format = Some(name.into_owned()).filter(|name| !name.is_empty());
                }
                EXTENSION_BITMAPS => {
                    found.has_bitmaps = true;
                    // nb_bitmaps u32, reserved u32, directory size u64, directory offset u64.
                    found.bitmap_directory = Some(Place {
                        field: "bitmap directory",
                        at: data as u64,
                        length: self.u64(data + 8, "bitmap directory size")?,
                        offset: self.u64(data + 16, "bitmap directory offset")?,
                    });
                }
                _ => {}
            }
            at = data + length.next_multiple_of(8);
        }
        Ok(found)
    }

    fn u32(&self, at: usize, field: &str) -> Result<u32> {
        be32(self.bytes, at).ok_or_else(|| self.corrupt(field, at, "the file ends before it"))
    }

    fn u64(&self, at: usize, field: &str) -> Result<u64> {
        be64(self.bytes, at).ok_or_else(|| self.corrupt(field, at, "the file ends before it"))
    }

    fn corrupt(&self, field: &str, at: usize, why: impl std::fmt::Display) -> Error {
        Error::corrupt(self.path, field, at as u64, why)
    }

    fn unsupported(&self, what: impl std::fmt::Display) -> Error {
        Error::new(ErrorKind::Unsupported, self.path, format!("{what} is not supported"))
    }
}

#[derive(Default)]
struct Extensions {
    backing_format: Option<String>,
    has_bitmaps: bool,
    bitmap_directory: Option<Place>,
}

/// The big-endian number at byte `at`, if it is there.
pub(super) fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The big-endian number at byte `at`, if it is there.
pub(super) fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}
