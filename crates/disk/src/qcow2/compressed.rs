//! Inflating one compressed cluster.
//!
//! The stream's end is not recorded: it lies somewhere in the last sector of the descriptor, and what follows it
//! there may belong to the next cluster. Decoding therefore stops when one cluster of output is full, whether or
//! not the stream says that it is finished, and anything less than a full cluster is corrupt.

use std::io::Read;

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};

use super::header::Compression;

/// Binary logarithm of the largest zstd window: four times the largest cluster, as much as the highest ordinary
/// compression level asks for when it does not know the size. A hostile frame could otherwise ask for 128 MiB.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;

/// The `cluster_size` bytes that `input` begins with when it is inflated.
pub(super) fn inflate(
    compression: Compression,
    input: &[u8],
    cluster_size: usize,
) -> Result<Vec<u8>, &'static str> {
    let mut output = vec![0; cluster_size];
    match compression {
        Compression::Deflate => inflate_deflate(input, &mut output)?,
        Compression::Zstd => inflate_zstd(input, &mut output).map_err(|_| "the zstd stream is damaged")?,
    }
    Ok(output)
}

/// QEMU writes raw deflate with a window of 4 KiB (12 bits). The window only bounds how far back a match may
/// reach; we hold the whole cluster, so that any window works and no stream that QEMU reads is refused.
fn inflate_deflate(input: &[u8], output: &mut [u8]) -> Result<(), &'static str> {
    let mut decoder = Box::<DecompressorOxide>::default();
    let flags = TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
    let (status, _, written) = decompress(&mut decoder, input, output, 0, flags);
    match status {
        TINFLStatus::Done | TINFLStatus::HasMoreOutput if written == output.len() => Ok(()),
        TINFLStatus::Done => Err("the deflate stream holds less than a cluster"),
        _ => Err("the deflate stream is damaged"),
    }
}

fn inflate_zstd(input: &[u8], output: &mut [u8]) -> std::io::Result<()> {
    let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
    decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
    decoder.read_exact(output)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_may_be_followed_by_its_neighbour() {
        let cluster: Vec<u8> = (0..4096u32).map(|i| (i / 7) as u8).collect();
        let mut deflate = miniz_oxide::deflate::compress_to_vec(&cluster, 6);
        let mut zstd = zstd::bulk::compress(&cluster, 3).unwrap();
        for (compression, stream) in [(Compression::Deflate, &mut deflate), (Compression::Zstd, &mut zstd)] {
            let complete = stream.len();
            stream.extend_from_slice(b"the next cluster begins here");
            assert_eq!(inflate(compression, stream, 4096).as_deref(), Ok(&cluster[..]));
            assert!(inflate(compression, &stream[..complete - 8], 4096).is_err());
            assert!(inflate(compression, &stream[..complete], 8192).is_err());
        }
    }

    #[test]
    fn output_stops_at_one_cluster() {
        let bomb = vec![0; 1 << 20];
        let deflate = miniz_oxide::deflate::compress_to_vec(&bomb, 6);
        assert_eq!(inflate(Compression::Deflate, &deflate, 512), Ok(vec![0; 512]));
        let zstd = zstd::bulk::compress(&bomb, 3).unwrap();
        assert_eq!(inflate(Compression::Zstd, &zstd, 512), Ok(vec![0; 512]));
    }
}
