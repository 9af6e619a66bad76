//! New disks, laid out as XenServer's libvhd lays them out.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use goldwire_stdx::Uuid;

use super::bat::Bat;
use super::batmap::{self, Batmap};
use super::dynamic::Dynamic;
use super::footer::{DiskKind, EPOCH, FOOTER_SIZE, Footer, NO_OFFSET};
use super::header::{BLOCK_SIZE, HEADER_SIZE, Header, Layout};
use super::writer::{Writer, next_place};
use crate::host::HostFile;
use crate::image::{Access, CreateOptions, Format};
use crate::raw::Flat;
use crate::{BlockDevice, Error, ErrorKind, Result};

/// The largest disk: what XenServer takes (`MAX_VHD_SIZE` of its storage manager), a little less than the table's
/// 32-bit sectors could address.
pub(crate) const SIZE_MAX: u64 = 2040 << 30;

/// Lays out an empty disk in the new, empty `file` and makes it durable.
pub(crate) fn create(file: File, path: &Path, options: &CreateOptions) -> Result<Arc<dyn BlockDevice>> {
    create_host(HostFile::new(file, path), options)
}

pub(super) fn create_host(host: HostFile, options: &CreateOptions) -> Result<Arc<dyn BlockDevice>> {
    let invalid = |message: String| Error::new(ErrorKind::Invalid, host.path(), message);
    if !options.size.is_multiple_of(512) {
        return Err(invalid(format!("a VHD of {} bytes would not have whole sectors", options.size))
            .with_hint(
                "a raw disk is padded by `truncate -s %512 FILE`; XenServer uses multiples of 2 MiB, Azure of 1 MiB",
            ));
    }
    if options.size > SIZE_MAX {
        return Err(invalid(format!(
            "a VHD holds at most {SIZE_MAX} bytes (2040 GiB), not {}",
            options.size
        ))
        .with_hint("use qcow2 or raw"));
    }
    if options.uuid == Uuid([0; 16]) {
        return Err(invalid("a VHD needs a uuid; the nil one means a raw parent to XenServer".to_owned()));
    }
    match options.format {
        Format::VhdFixed => create_fixed(host, options),
        _ => create_dynamic(host, options),
    }
}

/// Seconds since 2000. Not in the future: `vhd-util check` refuses disks from there, and clocks of two sites
/// differ.
fn timestamp(created: i64) -> u32 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    created.min(now).saturating_sub(EPOCH).clamp(0, i64::from(u32::MAX)) as u32
}

fn create_fixed(host: HostFile, options: &CreateOptions) -> Result<Arc<dyn BlockDevice>> {
    let time = timestamp(options.created);
    let footer = Footer::new(DiskKind::Fixed, options.size, NO_OFFSET, options.uuid, time);
    host.write(footer.bytes(), options.size, "the footer")?;
    host.sync()?;
    Ok(Arc::new(Flat::new(host, options.size, Access::Write)))
}

fn create_dynamic(host: HostFile, options: &CreateOptions) -> Result<Arc<dyn BlockDevice>> {
    let blocks = options.size.div_ceil(BLOCK_SIZE) as u32;
    // An empty table would leave a reader without a place to look.
    let entries = blocks.max(1);
    let layout = Layout {
        size: options.size,
        block_size: BLOCK_SIZE,
        bitmap_size: BLOCK_SIZE / 512 / 8,
        blocks,
        header_offset: FOOTER_SIZE,
        table_offset: FOOTER_SIZE + HEADER_SIZE,
        table_size: (u64::from(entries) * 4).next_multiple_of(512),
    };
    let time = timestamp(options.created);
    let footer = Footer::new(DiskKind::Dynamic, options.size, FOOTER_SIZE, options.uuid, time);
    let header = Header::new(layout.table_offset, entries);
    let bat = Bat::new(blocks, layout.table_size);
    let mut batmap = Batmap::new(layout.batmap_header_offset(), options.size, entries);
    let end = layout.batmap_header_offset() + batmap::HEADER_SIZE + batmap.map_size();
    let next = next_place(end, layout.bitmap_size);

    host.write(footer.bytes(), 0, "the footer's copy")?;
    host.write(header.bytes(), FOOTER_SIZE, "the dynamic header")?;
    let table = vec![0xff; layout.table_size as usize];
    host.write(&table, layout.table_offset, "the block allocation table")?;
    batmap.write(&host)?;
    host.write(footer.bytes(), next, "the footer")?;
    host.sync()?;
    Ok(Arc::new(Dynamic::created(host, layout, bat, Writer::new(footer, next, batmap))))
}
