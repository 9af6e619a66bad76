"""DHCP servers side by side: goldwire, dnsmasq and Kea, each with leases that survive it, on one veth pair.

Every server gets the same pool of 3.9 million addresses in a network namespace of its own and is asked through a
relay's address by perfdhcp (Kea's own tool). For each, two figures:

* exchanges per second: the highest rate found at which at most 1 % of either half of the exchange is lost and the
  offered rate is truly reached. Rates double until one fails; then the gap is halved. A server begins every
  attempt with the leases of the attempts before it, as in life.
* delay: DISCOVER to ACK of one client after the other, while perfdhcp makes 100 exchanges per second besides; once
  more while another process writes 1 MiB after the other to the same file system and syncs each, where the disk of
  a busy server stands.

What "durable" means differs. goldwire syncs every batch before it acknowledges; Kea (memfile) and dnsmasq write
their files and leave the rest to the kernel, so a power cut loses what they acknowledged last.

`run()` is called by bench/netboot; alone: `python3 bench/lib/netboot_dhcp.py PROGRAM [--seconds N]`. Needs root, Linux, and
Debian's kea-dhcp4-server, kea-admin, dnsmasq-base and iproute2. A server that is missing is shown as such.
"""

import argparse
import json
import os
import random
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SERVER, RELAY, OTHER_RELAY = "10.0.0.1", "10.0.0.2", "10.0.0.3"
FIRST, LAST = "10.1.0.0", "10.60.255.255"
LEASE_S = 4000
DROPS_MAX = 0.01
REACHED_MIN = 0.95
RATE_FIRST = 100
RATE_MAX = 51200
HALVINGS = 3
CLIENTS = 4_000_000
PATH = "/usr/sbin:/usr/local/sbin:/sbin:" + os.environ.get("PATH", "")


class Missing(Exception):
    """A program that is not installed."""


def find(name, package):
    path = shutil.which(name, path=PATH)
    if not path:
        raise Missing(f"{name} is not installed (Debian: {package})")
    return path


def goldwire(folder, program):
    if not os.access(program, os.X_OK):
        raise Missing(f"{program} is no program: cargo build --release -p goldwire")
    (folder / "tree").mkdir()
    path = folder / "boot.toml"
    path.write_text(f"""\
default-profile = "local"
server = {{ state = "{folder / 'state'}", root = "{folder / 'tree'}" }}
http = {{ listen = [] }}
tftp = {{ listen = [] }}
dhcp = {{ mode = "server", interfaces = ["s0"] }}
profile.local = {{ local = true }}

[[member]]
name = "bench"
address = "{SERVER}"

[[subnet]]
network = "10.0.0.0/8"
pools = "{FIRST}-{LAST}"
lease = "{LEASE_S}s"
""")
    return [program, "boot", "serve", "--config", str(path)]


def dnsmasq(folder, _):
    program = find("dnsmasq", "dnsmasq-base")
    return [
        program, "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--interface=s0", "--bind-interfaces",
        f"--dhcp-range={FIRST},{LAST},255.0.0.0,{LEASE_S}s", "--dhcp-lease-max=10000000", "--no-ping",
        "--dhcp-authoritative", f"--dhcp-leasefile={folder / 'leases'}", "--pid-file=", "--user=root",
        "--log-facility=/dev/null", "--quiet-dhcp",
    ]


def kea(folder, _):
    program = find("kea-dhcp4", "kea-dhcp4-server")
    config = {"Dhcp4": {
        "interfaces-config": {"interfaces": ["s0"], "dhcp-socket-type": "udp"},
        "lease-database": {"type": "memfile", "persist": True, "name": str(folder / "leases.csv")},
        "valid-lifetime": LEASE_S,
        "subnet4": [{"subnet": "10.0.0.0/8", "pools": [{"pool": f"{FIRST} - {LAST}"}]}],
        "multi-threading": {"enable-multi-threading": True, "thread-pool-size": os.cpu_count() or 1},
        "loggers": [{"name": "kea-dhcp4", "severity": "FATAL", "output_options": [{"output": "/dev/null"}]}],
    }}
    path = folder / "kea.json"
    path.write_text(json.dumps(config))
    return [program, "-c", str(path)]


SERVERS = {"goldwire": goldwire, "dnsmasq": dnsmasq, "Kea": kea}


class Lan:
    """Two network namespaces and a link between them."""

    def __enter__(self):
        self.server, self.client = f"gwb{os.getpid()}s", f"gwb{os.getpid()}c"
        try:
            for name in (self.server, self.client):
                self.ip("netns", "add", name)
            self.ip("-n", self.server, "link", "add", "s0", "type", "veth", "peer", "name", "c0", "netns", self.client)
            self.ip("-n", self.server, "addr", "add", f"{SERVER}/8", "dev", "s0")
            for address in (RELAY, OTHER_RELAY):
                self.ip("-n", self.client, "addr", "add", f"{address}/8", "dev", "c0")
            for name, device in ((self.server, "s0"), (self.server, "lo"), (self.client, "c0"), (self.client, "lo")):
                self.ip("-n", name, "link", "set", device, "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for name in (self.server, self.client):
            subprocess.run(["ip", "netns", "del", name], stderr=subprocess.DEVNULL, check=False, timeout=30)

    def ip(self, *words):
        done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=30, check=False)
        if done.returncode:
            raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")

    def inside(self, name, command):
        return ["ip", "netns", "exec", name, *command]


class Running:
    """A server that runs in the server's namespace."""

    def __init__(self, lan, name, folder, program):
        self.lan, self.folder = lan, folder
        self.command = lan.inside(lan.server, SERVERS[name](folder, program))

    def __enter__(self):
        env = {**os.environ, "KEA_PIDFILE_DIR": str(self.folder), "KEA_LOCKFILE_DIR": str(self.folder)}
        self.log = open(self.folder / "log", "w+b")
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, env=env
        )
        try:
            deadline = time.monotonic() + 15
            while not exchange(self.lan, 1, 2)["delays_s"]:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"it does not answer: {self.said()}")
        except BaseException:
            self.__exit__()
            raise
        return self

    def said(self):
        self.log.flush()
        return (self.folder / "log").read_text(errors="replace")[-300:]

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


def perfdhcp(lan, rate, seconds, seed):
    """Offers `rate` exchanges per second; returns (exchanges per second, the worse share of drops)."""
    command = lan.inside(lan.client, [
        find("perfdhcp", "kea-admin"), "-4", "-l", RELAY, "-r", str(rate), "-R", str(CLIENTS), "-p", str(seconds),
        "-W", "1000000", "-s", str(seed), "-b", f"mac=02:{seed & 255:02x}:00:00:00:00", SERVER,
    ])
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, check=False)
    drops = [float(word) for word in re.findall(r"drops ratio: ([\d.e+-]+) %", done.stdout)]
    received = [int(word) for word in re.findall(r"received packets: (\d+)", done.stdout)]
    if len(drops) < 2 or len(received) < 2 or not received[1]:
        return 0.0, 1.0
    # Its own rate counts the second for which it waits for the last answers, too.
    return received[1] / seconds, max(drops[:2]) / 100


def search(lan, seconds, say):
    """The highest rate that holds, as truly reached; and every attempt."""
    attempts = []

    def holds(rate):
        reached, drops = perfdhcp(lan, rate, seconds, len(attempts) + 1)
        is_held = drops <= DROPS_MAX and reached >= REACHED_MIN * rate
        attempts.append({"offered": rate, "reached": reached, "drops": drops, "holds": is_held})
        say(f"    {rate}/s: {reached:.0f}/s, {drops:.2%} lost, {'holds' if is_held else 'fails'}")
        return is_held

    low, high = 0, RATE_FIRST
    while high <= RATE_MAX and holds(high):
        low, high = high, high * 2
    for _ in range(HALVINGS):
        middle = (low + high) // 2
        if middle in (low, high):
            break
        if holds(middle):
            low = middle
        else:
            high = middle
    # A client that falls behind cannot show a higher rate: what it has reached without drops counts as well.
    clean = [attempt["reached"] for attempt in attempts if attempt["drops"] <= DROPS_MAX]
    return max(clean, default=0.0), attempts


def exchange(lan, count, timeout_s):
    """Delays of `count` exchanges, one after the other, from the client's namespace."""
    command = lan.inside(lan.client, [sys.executable, __file__, "--client", str(count)])
    done = subprocess.run(command, capture_output=True, text=True, timeout=count * timeout_s + 30, check=False)
    if done.returncode:
        raise RuntimeError(f"the client failed: {done.stderr[-300:]}")
    return json.loads(done.stdout)


def delays(lan, count):
    """The same, while 100 exchanges per second go on besides."""
    load = subprocess.Popen(lan.inside(lan.client, [
        find("perfdhcp", "kea-admin"), "-4", "-l", RELAY, "-r", "100", "-R", str(CLIENTS), "-p", "600", "-b", "mac=02:fe:00:00:00:00", SERVER,
    ]), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        time.sleep(1)
        return exchange(lan, count, 2)
    finally:
        load.kill()
        load.wait()


def client(count):
    """Runs inside the client's namespace: DISCOVER, OFFER, REQUEST, ACK, through a relay's address."""
    relay = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    relay.bind((OTHER_RELAY, 67))
    relay.settimeout(1)
    found, lost = [], 0
    for _ in range(count):
        mac = bytes([2, 0xfd]) + random.randbytes(4)
        xid = random.getrandbits(32)
        start = time.monotonic()
        offer = ask(relay, mac, xid, bytes([53, 1, 1]))
        address = offer and offer[16:20]
        server = offer and option(offer, 54)
        ack = server and ask(relay, mac, xid, bytes([53, 1, 3, 50, 4]) + address + bytes([54, 4]) + server)
        if ack and option(ack, 53) == b"\x05":
            found.append(time.monotonic() - start)
        else:
            lost += 1
    print(json.dumps({"delays_s": found, "lost": lost}))


def ask(relay, mac, xid, options):
    head = struct.pack("!4BIHH4s4s4s4s16s", 1, 1, 6, 1, xid, 0, 0, b"", b"", b"", socket.inet_aton(OTHER_RELAY), mac)
    relay.sendto(head + bytes(192) + b"\x63\x82\x53\x63" + options + b"\xff", (SERVER, 67))
    try:
        while True:
            answer = relay.recv(2048)
            if answer[4:8] == struct.pack("!I", xid):
                return answer
    except (TimeoutError, ConnectionError):
        return None


def option(message, wanted):
    at = 240
    while at + 1 < len(message) and message[at] != 255:
        if message[at] == 0:
            at += 1
            continue
        if message[at] == wanted:
            return message[at + 2:at + 2 + message[at + 1]]
        at += 2 + message[at + 1]
    return None


class BusyDisk:
    """A process that writes to the folder's file system, and syncs."""

    def __init__(self, folder):
        self.folder = folder

    def __enter__(self):
        self.process = subprocess.Popen([sys.executable, __file__, "--write", str(self.folder / "others")])
        time.sleep(1)
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.folder / "others", ignore_errors=True)


def write(folder):
    """Runs in a process of its own: a file of 1 MiB after the other, each with a name of its own, some hundred kept."""
    folder.mkdir()
    content = os.urandom(1 << 20)
    number = 0
    while True:
        with open(folder / str(number), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        (folder / str(number - 100)).unlink(missing_ok=True)
        number += 1


def percentile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * share))] if values else None


def measure(program, work, seconds=4, exchanges=1000, servers=None, say=print):
    """Measures every server, one after the other; `work` is a folder on the disk whose speed counts. Returns a
    dictionary by server's name: `rate`, `p50_s`, `p99_s`, `lost`, the same three with `busy_` before them, and
    `attempts`; or `reason` where one did not run."""
    if os.geteuid() != 0:
        raise RuntimeError("network namespaces need root")
    results = {}
    with Lan() as lan:
        for name in servers or SERVERS:
            say(f"  {name}")
            with tempfile.TemporaryDirectory(prefix=f"dhcp-{name.lower()}-", dir=work) as folder:
                folder = Path(folder)
                try:
                    with Running(lan, name, folder, program):
                        result = delays(lan, exchanges)
                        with BusyDisk(folder):
                            busy = delays(lan, exchanges)
                        rate, attempts = search(lan, seconds, say)
                except (Missing, RuntimeError, OSError, subprocess.TimeoutExpired) as error:
                    results[name] = {"reason": str(error)}
                    say(f"    did not run: {error}")
                    continue
            results[name] = {"rate": rate, "attempts": attempts}
            for prefix, found in (("", result), ("busy_", busy)):
                results[name][f"{prefix}lost"] = found["lost"]
                for share in (50, 99):
                    results[name][f"{prefix}p{share}_s"] = percentile(found["delays_s"], share / 100)
    return results


def table(results):
    """The results as lines of text, with goldwire's ratios to each."""
    own = results.get("goldwire", {}).get("rate")
    lines = [
        f"{'':<10} {'':>8} {'':>12} {'delay, ms':>17} {'disk busy, ms':>17}",
        f"{'server':<10} {'DORA/s':>8} {'goldwire is':>12} {'p50':>8} {'p99':>8} {'p50':>8} {'p99':>8}",
    ]
    for name, result in results.items():
        if "reason" in result:
            lines.append(f"{name:<10} did not run: {result['reason']}")
            continue
        ratio = f"{own / result['rate']:.1f} x" if own and result["rate"] else "-"
        times = [result[key] for key in ("p50_s", "p99_s", "busy_p50_s", "busy_p99_s")]
        cells = " ".join(f"{value * 1000:8.2f}" if value is not None else f"{'-':>8}" for value in times)
        lines.append(f"{name:<10} {result['rate']:>8.0f} {ratio:>12} {cells}")
    return lines


def run(goldwire, quick):
    """Measures all, prints the table, returns the figures; a `reason` instead where nothing can be measured."""
    print("DHCP: exchanges per second over a veth pair, and how long one takes")
    try:
        results = measure(goldwire, tempfile.gettempdir(), 2 if quick else 4, 200 if quick else 1000)
    except RuntimeError as error:
        print(f"not measured: {error}")
        return {"reason": str(error)}
    print("\n".join(table(results)))
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", nargs="?", default="target/release/goldwire", help="goldwire (default %(default)s)")
    parser.add_argument("--client", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=int, default=4, help="length of each attempt")
    parser.add_argument("--exchanges", type=int, default=1000, help="exchanges whose delay is measured")
    parser.add_argument("--only", help="servers, with commas between")
    parser.add_argument("--work", default=tempfile.gettempdir(), help="folder for leases; its disk's speed counts")
    arguments = parser.parse_args()
    if arguments.client:
        client(arguments.client)
        return
    if arguments.write:
        write(arguments.write)
        return
    servers = arguments.only.split(",") if arguments.only else None
    figures = measure(arguments.program, arguments.work, arguments.seconds, arguments.exchanges, servers)
    print("\n".join(table(figures)))


if __name__ == "__main__":
    main()
