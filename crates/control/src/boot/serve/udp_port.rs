//! Which program has a UDP port, for who wonders why a server does not start.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Programs that are named at most.
const NAMED_MAX: usize = 3;

/// The programs that have a UDP port over IPv4 in our network namespace, as `goldwire (process 4711)`; ourselves not
/// among them. Empty where none is found: others' sockets are root's to see.
pub(super) fn holders_of(port: u16) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/net/udp").unwrap_or_default();
    let sockets = sockets_on(&table, port);
    let mut holders: Vec<(u32, PathBuf)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())))
        .filter(|(process, _)| *process != std::process::id())
        .filter(|(_, path)| has_one_of(path, &sockets))
        .collect();
    holders.sort();
    let named = |(process, path): &(u32, PathBuf)| {
        let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
        format!("{} (process {process})", name.trim())
    };
    holders.iter().take(NAMED_MAX).map(named).collect()
}

/// The inodes of the sockets on a port, from a table such as `/proc/net/udp` (proc_net(5)): the second field is the local
/// address in hexadecimal, the tenth the inode.
fn sockets_on(table: &str, port: u16) -> HashSet<u64> {
    let port = format!(":{port:04X}");
    let socket = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        fields.get(1)?.ends_with(&port).then(|| fields.get(9)?.parse().ok())?
    };
    table.lines().skip(1).filter_map(socket).collect()
}

fn has_one_of(process: &Path, sockets: &HashSet<u64>) -> bool {
    let files = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    files.filter_map(|file| fs::read_link(file.path()).ok()).any(|target| {
        let inode = target.to_str().and_then(|name| name.strip_prefix("socket:[")?.strip_suffix(']'));
        inode.and_then(|inode| inode.parse().ok()).is_some_and(|inode| sockets.contains(&inode))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Linux 6.1 prints it.
    const TABLE: &str = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
  318: 00000000:0043 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 36201 2 0000000000000000 0
  318: 0100007F:0043 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 36202 2 0000000000000000 0
  350: 00000000:4300 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 36203 2 0000000000000000 0
";

    #[test]
    fn the_sockets_of_a_port_are_found() {
        assert_eq!(sockets_on(TABLE, 67), HashSet::from([36201, 36202]));
        assert_eq!(sockets_on(TABLE, 69), HashSet::new());
        assert_eq!(sockets_on("nonsense\n1 2\n:0043 :0043\n", 67), HashSet::new());
    }
}
