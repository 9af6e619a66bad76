"""Measures goldwire's TFTP server beside tftpd-hpa, atftpd and dnsmasq.

One file, one client program for all servers (the crate's example `tftp_load`, which compares every byte), over
loopback, so what is measured is each server's work for a packet. Servers take turns in every cell, so that what
else the machine does meets all of them. Peers run with their best settings; one that does not know windows is
measured with what it negotiates, which is no window: a cell that it thus answers as another one is not run again.
The clients have a thread for each core, as the servers may have, so that they are not the narrow place.
"""

import contextlib
import dataclasses
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lib import netboot_serve

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


def start_tftpd_hpa(folder, _cache):
    program = find("in.tftpd")
    if not program or os.geteuid() != 0:
        return Server("tftpd-hpa", reason="in.tftpd is not installed" if not program else "needs root, for chroot")
    port = netboot_serve.free_port(socket.SOCK_DGRAM)
    command = [program, "--foreground", "--secure", "--address", f"127.0.0.1:{port}", "--ipv4", folder]
    return Server("tftpd-hpa", f"127.0.0.1:{port}", spawn(command))


def start_atftpd(folder, cache):
    program = find("atftpd") or unpack("atftpd", "usr/sbin/atftpd", cache)
    if not program:
        return Server("atftpd", reason="atftpd is not installed and cannot be downloaded")
    port = netboot_serve.free_port(socket.SOCK_DGRAM)
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


PEERS = {"tftpd-hpa": start_tftpd_hpa, "atftpd": start_atftpd, "dnsmasq": start_dnsmasq}


def spawn(command, **pipes):
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, **pipes}
    return subprocess.Popen([str(word) for word in command], start_new_session=True, stderr=subprocess.DEVNULL, **pipes)


def find(program):
    try:
        return netboot_serve.program(program)
    except netboot_serve.Missing:
        return None


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
    command = [netboot_serve.example("tftp_load"), server.address, file.name, file, block, window, clients]
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
            server.reason = ""
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
        lines.append(f"{block:5} {window:6} {clients:7}  " + "  ".join(shown) + f"   {ratio:8.2f}  {'met' if is_ok else 'NOT met'}")
    lines.append("MB/s of file data, median. * without a window, which it does not know. ! a client had to repeat itself.")
    return lines, is_met


def compare(goldwire, repeat, size, cache):
    """Measures all: cells, and names in the order of the table. Raises Missing."""
    netboot_serve.example("tftp_load")
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="gwbench-tftp-", dir=memory) as folder, contextlib.ExitStack() as stack:
        folder = Path(folder)
        folder.chmod(0o755)
        root = folder / "root"
        root.mkdir()
        file = root / "boot.img"
        file.write_bytes(os.urandom(size))
        file.chmod(0o644)
        port = netboot_serve.free_port(socket.SOCK_DGRAM)
        ours = stack.enter_context(netboot_serve.serving(goldwire, folder, root, tftp=port))
        servers = [Server("goldwire", f"127.0.0.1:{port}", ours)]
        for start in PEERS.values():
            servers.append(start(root, cache))
            stack.callback(servers[-1].stop)
        for server in servers:
            if not server.reason:
                wait_until_up(server, file)
            if server.reason:
                print(f"  {server.name}: did not run: {server.reason}")
        return measure(servers, file, repeat, lambda text: print(text, file=sys.stderr)), [server.name for server in servers]


def run(goldwire, quick):
    """Prints the table; returns its figures, or why there are none."""
    repeat, size = (1, 2 * MIB) if quick else (3, 20 * MIB)
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "goldwire-bench"
    print(f"TFTP: a file of {size // MIB} MiB, MB/s of its data, all clients together, median of {repeat}")
    try:
        cells, names = compare(goldwire, repeat, size, cache)
    except (netboot_serve.Missing, RuntimeError, OSError) as error:
        print(f"did not run: {error}")
        return {"reason": str(error)}
    lines, is_met = table(cells, names)
    print("\n".join(lines))
    print("bar: at least the best of the others in every cell: " + ("met" if is_met else "NOT met"))
    figures = [
        {"block": block, "clients": clients, "window": window, **{name: row[name].median for name in names}}
        for (block, clients, window), row in cells.items()
    ]
    return {"cells": figures, "met": is_met}
