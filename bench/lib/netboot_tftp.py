"""Measures goldwire's TFTP server beside tftpd-hpa, atftpd and dnsmasq: `python3 bench/lib/netboot_tftp.py`.

One file, one client program for all servers (the crate's example `tftp_load`, which compares every byte), over
loopback, so what is measured is each server's work for a packet. Servers take turns in every cell, so that what
else the machine does meets all of them. Peers run with their best settings; one that does not know windows is
measured with what it negotiates, which is no window: a cell that it thus answers as another one is not run again.
The clients have a thread for each core, as the servers may have, so that they are not the narrow place.
"""

import argparse
import contextlib
import dataclasses
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "target/release/examples"
MIB = 1 << 20
BLOCKS = [512, 1468]
WINDOWS = [1, 16, 64]
CLIENTS = [1, 32]
RUN_TIMEOUT_S = 300


@dataclasses.dataclass
class Server:
    """One that runs, or the reason why it does not."""

    name: str
    address: str = ""
    process: subprocess.Popen = None
    reason: str = ""

    def stop(self):
        if self.process:
            # in.tftpd leaves children behind, all of the session that was made for it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe:
                    pipe.close()


def start_goldwire(folder, _cache):
    """The one place that knows how goldwire is started."""
    command = [EXAMPLES / "tftp_server", folder, "127.0.0.1:0"]
    process = spawn(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    address = process.stdout.readline().decode().strip()
    return Server("goldwire", address, process, "" if address else "it did not start")


def start_tftpd_hpa(folder, _cache):
    program = find("in.tftpd")
    if not program or os.geteuid() != 0:
        return Server("tftpd-hpa", reason="in.tftpd is not installed" if not program else "needs root, for chroot")
    port = free_port()
    command = [program, "--foreground", "--secure", "--address", f"127.0.0.1:{port}", "--ipv4", folder]
    return Server("tftpd-hpa", f"127.0.0.1:{port}", spawn(command))


def start_atftpd(folder, cache):
    program = find("atftpd") or unpack("atftpd", "usr/sbin/atftpd", cache)
    if not program:
        return Server("atftpd", reason="atftpd is not installed and cannot be downloaded")
    port = free_port()
    user = "nobody.nogroup" if os.geteuid() == 0 else f"{os.getuid()}.{os.getgid()}"
    command = [program, "--daemon", "--no-fork", "--no-multicast", "--maxthread", "1000", "--verbose=0"]
    command += ["--user", user, "--bind-address", "127.0.0.1", "--port", str(port), folder]
    return Server("atftpd", f"127.0.0.1:{port}", spawn(command))


def start_dnsmasq(folder, _cache):
    program = find("dnsmasq")
    if not program or os.geteuid() != 0:
        return Server("dnsmasq", reason="dnsmasq is not installed" if not program else "needs root, for port 69")
    # It knows no other port, so it gets an address of its own.
    address = "127.0.77.1"
    command = [program, "--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=", "--port=0", "--bind-interfaces", "--quiet-tftp"]
    command += [f"--listen-address={address}", "--except-interface=none", "--enable-tftp", f"--tftp-root={folder}", "--tftp-max=1000", "--user=root"]
    return Server("dnsmasq", f"{address}:69", spawn(command))


STARTS = {"goldwire": start_goldwire, "tftpd-hpa": start_tftpd_hpa, "atftpd": start_atftpd, "dnsmasq": start_dnsmasq}


def spawn(command, **pipes):
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, **pipes}
    return subprocess.Popen([str(word) for word in command], start_new_session=True, stderr=subprocess.DEVNULL, **pipes)


def find(program):
    return shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def unpack(package, program, cache):
    """A Debian package that cannot be installed beside another one, unpacked into the cache."""
    folder = cache / package
    if not (folder / program).exists():
        if not find("apt-get") or not find("dpkg-deb"):
            return None
        folder.mkdir(parents=True, exist_ok=True)
        if subprocess.run(["apt-get", "download", "-q", package], cwd=folder, capture_output=True).returncode:
            return None
        for archive in folder.glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", archive, folder], check=True)
    return folder / program if (folder / program).exists() else None


def free_port():
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclasses.dataclass
class Cell:
    """What one server did for one block size, window and number of clients."""

    mb_s: list = dataclasses.field(default_factory=list)
    agreed: tuple = ()
    repeated: int = 0
    reason: str = ""

    @property
    def median(self):
        return statistics.median(self.mb_s) if self.mb_s else 0.0


def load(server, file, block, window, clients):
    """One run of the load: (MB/s, (block, window) agreed, repetitions), or RuntimeError."""
    command = [EXAMPLES / "tftp_load", server.address, file.name, file, block, window, clients]
    try:
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=RUN_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"not done after {RUN_TIMEOUT_S} s") from None
    if done.returncode:
        raise RuntimeError(done.stderr.strip().removeprefix("Error: ").strip('"') or "failed")
    seconds, size, block, window, repeated = done.stdout.split()
    return int(size) / float(seconds) / 1e6, (int(block), int(window)), int(repeated)


def wait_until_up(server, file):
    for _ in range(50):
        if server.process.poll() is not None:
            server.reason = "it did not start"
            return
        try:
            load(server, file, 1468, 1, 1)
            return
        except RuntimeError as error:
            server.reason = str(error)
            time.sleep(0.1)
    server.stop()


def measure(servers, file, repeat, say):
    """Every cell: {(block, clients, window): {server: Cell}}."""
    cells = {}
    for block in BLOCKS:
        for clients in CLIENTS:
            for window in WINDOWS:
                row = cells[block, clients, window] = {server.name: Cell() for server in servers}
                for number in range(repeat):
                    for server in servers:
                        one(server, file, (block, clients, window), row[server.name], cells, number)
                shown = (f"{name} {cell.median:.0f}" + (f" ({cell.reason})" if cell.reason else "") for name, cell in row.items())
                say(f"  block {block}, window {window}, {clients} client(s), MB/s: " + ", ".join(shown))
    return cells


def one(server, file, key, cell, cells, number):
    block, clients, window = key
    if server.reason or cell.reason:
        cell.reason = cell.reason or server.reason
        return
    # Who did not agree to a window of 16 does not agree to one of 64, and did what it does before.
    before = cells.get((block, clients, 16 if window > 16 else 1), {}).get(server.name)
    first = cells[block, clients, 1][server.name]
    if window > 16 and before.agreed and before.agreed[1] == 1:
        cell.mb_s, cell.agreed, cell.repeated = before.mb_s, before.agreed, before.repeated
        return
    if window > 1 and number > 0 and cell.agreed and cell.agreed[1] == 1 and first.mb_s:
        return
    try:
        mb_s, cell.agreed, repeated = load(server, file, block, window, clients)
        cell.mb_s.append(mb_s)
        cell.repeated += repeated
    except RuntimeError as error:
        cell.reason = str(error)


def table(cells, names):
    """Lines of text, and whether goldwire is at least as fast as the best in every cell."""
    peers = [name for name in names if name != "goldwire"]
    lines = [f"{'block':>5} {'window':>6} {'clients':>7}  " + "  ".join(f"{name:>10}" for name in names) + "   goldwire / best of the others"]
    lines.append("-" * len(lines[0]))
    is_met = True
    for (block, clients, window), row in cells.items():
        shown = []
        for name in names:
            cell = row[name]
            mark = "*" if cell.agreed and cell.agreed[1] != window else "!" if cell.repeated else " "
            shown.append(f"{cell.median:9.1f}{mark}" if cell.mb_s else f"{'-':>10}")
        best = max((row[name].median for name in peers), default=0.0)
        ratio = row["goldwire"].median / best if best else 0.0
        is_ok = ratio >= 1.0 and not row["goldwire"].reason
        is_met &= is_ok
        lines.append(f"{block:5} {window:6} {clients:7}  " + "  ".join(shown) + f"   {ratio:8.2f}  {'ok' if is_ok else 'MISSED'}")
    lines.append("MB/s of file data, median. * without a window, which it does not know. ! a client had to repeat itself.")
    return lines, is_met


def run(repeat, size, cache, say=print):
    """Measures all and says the table. Whether the bar is met."""
    for program in ("tftp_server", "tftp_load"):
        if not (EXAMPLES / program).exists():
            raise RuntimeError(f"{EXAMPLES / program} is missing: cargo build --release -p goldwire-netboot --examples")
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="gwbench-tftp-", dir=memory) as folder, contextlib.ExitStack() as stack:
        folder = Path(folder)
        folder.chmod(0o755)
        file = folder / "boot.img"
        file.write_bytes(os.urandom(size))
        file.chmod(0o644)
        servers = []
        for name, start in STARTS.items():
            server = start(folder, cache)
            servers.append(server)
            stack.callback(server.stop)
            if not server.reason:
                wait_until_up(server, file)
            if server.reason:
                say(f"  {name}: did not run: {server.reason}")
        say(f"TFTP, a file of {size / MIB:.0f} MiB over loopback, median of {repeat}, load before {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        cells = measure(servers, file, repeat, say)
    lines, is_met = table(cells, list(STARTS))
    for line in lines:
        say(line)
    say("bar: at least the best of the others in every cell: " + ("met" if is_met else "MISSED"))
    return is_met


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3, help="runs of every cell (default %(default)s)")
    parser.add_argument("--quick", action="store_true", help="2 MiB instead of 20: for trying, not for quoting")
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "goldwire-bench"
    parser.add_argument("--cache", type=Path, default=default, help="where downloaded peers stay (default %(default)s)")
    parser.add_argument("--realtime", action="store_true", help="run servers and clients before everything else on the machine (needs root): for a busy one")
    chosen = parser.parse_args()
    if chosen.realtime:
        # Inherited by all that is started; the bench itself only waits.
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
    return 0 if run(chosen.repeat, (2 if chosen.quick else 20) * MIB, chosen.cache) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except (RuntimeError, OSError) as e:
        print(f"bench/netboot tftp: {e}", file=sys.stderr)
        sys.exit(2)
