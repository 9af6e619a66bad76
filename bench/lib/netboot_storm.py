"""A boot storm: 2,000 simulated iPXE clients power on at once (DHCP, the script, 2 MiB of files over HTTP) against one
`goldwire boot serve`, and for scale against dnsmasq and nginx. Time to the last one, and fairness.

One more row has a larger initrd, of the size from which goldwire admits only so many transfers at a time and asks the
others to come back (`503` with `Retry-After`): here far fewer than usual, so that this machine's storm meets it.

Servers and clients have a network namespace each and a cable between them, so no port of the machine is needed or touched.
The load comes from `crates/netboot/examples/boot_storm.rs`, whose clients have an address of their own each, compare
every byte, and wait where the server says `503` with `Retry-After`, as iPXE does.
"""

import contextlib
import http.client
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lib.netboot_serve import Missing, cpu_s, example, program, stop

KIB, MIB = 1 << 10, 1 << 20
FILES = {"kernel": 1536 * KIB, "initrd": 512 * KIB}
LARGE_FILES = {**FILES, "initrd": 4 * MIB}  # admission counts transfers of at least this
LARGE_TRANSFERS = 16
COLUMNS = ["booted", "last_s", "p99_s", "median_s", "first_s", "jain", "dhcp_resent", "put_off", "http_failures", "cpu_s"]
START_S = 20
SERVER, RELAY = "10.64.0.1", "10.64.0.2"
CLIENTS = ["10.64.16.0/20", "10.64.32.0/19"]
PATIENCE_S = 120  # that a client may take

GOLDWIRE = """
default-profile = "storm"
[server]
name = "boot1"
state = "{work}/state"
root = "{work}/root"
[http]
listen = ["10.64.0.1:80"]
{http}
[tftp]
listen = []
[dhcp]
mode = "server"
interfaces = ["s0"]
[[subnet]]
network = "10.64.0.0/16"
pools = ["10.64.16.0-10.64.63.255"]
[[member]]
name = "boot1"
address = "10.64.0.1"
[profile.storm]
kernel = "kernel"
initrd = "initrd"
"""

NGINX = """
daemon off; worker_processes auto; pid {work}/nginx.pid; error_log {work}/nginx.log;
events {{ worker_connections 8192; }}
http {{ access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000; server {{ listen 10.64.0.1:80 backlog=4096; root {work}/root; }} }}
"""


def goldwire(binary, work, http=""):
    (work / "boot.toml").write_text(GOLDWIRE.format(work=work, http=http))
    return [[binary, "boot", "serve", "--config", str(work / "boot.toml")]]


def admitting(binary, work):
    return goldwire(binary, work, f"transfers-max = {LARGE_TRANSFERS}")


def foreign(_binary, work):
    (work / "nginx.conf").write_text(("user root;\n" if os.geteuid() == 0 else "") + NGINX.format(work=work))
    (work / "root/boot.ipxe").write_text("#!ipxe\nimgfetch /kernel\nimgfetch /initrd\nboot\n")
    dnsmasq = [
        program("dnsmasq"), "--no-daemon", "--conf-file=/dev/null", "--port=0", "--interface=s0", "--bind-interfaces", "--user=root", "--no-ping",
        "--dhcp-range=10.64.16.0,10.64.63.255,255.255.0.0,1h", f"--dhcp-leasefile={work}/leases", "--dhcp-lease-max=10000",
        "--dhcp-option-force=67,http://10.64.0.1/boot.ipxe",
    ]
    return [dnsmasq, [program("nginx"), "-p", str(work), "-c", str(work / "nginx.conf")]]


# What runs, and the files that its clients fetch.
ADMITTING = "goldwire, 4 MiB"
SERVERS = {"goldwire": (goldwire, FILES), ADMITTING: (admitting, LARGE_FILES), "dnsmasq and nginx": (foreign, FILES)}


@contextlib.contextmanager
def running(commands, work):
    """The servers, which are killed at the end; an unfinished start is an error."""
    processes = []
    try:
        for number, command in enumerate(commands):
            log = (work / f"server{number}.log").open("wb")
            processes.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True))
        deadline = time.monotonic() + START_S
        while not answers():
            dead = [c[0] for c, p in zip(commands, processes) if p.poll() is not None]
            if dead or time.monotonic() > deadline:
                logs = "".join((work / f"server{n}.log").read_text(errors="replace")[-600:] for n in range(len(processes)))
                raise RuntimeError(f"{dead[0] if dead else commands[-1][0]} did not start: {logs.strip()}")
            time.sleep(0.05)
        # DHCP has no harmless question; a server that answers HTTP has bound its other ports too or will soon.
        time.sleep(1)
        yield processes
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            stop(process)


def answers():
    connection = http.client.HTTPConnection(SERVER, 80, timeout=2)
    try:
        connection.request("GET", "/")
        connection.getresponse()
        return True
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


@contextlib.contextmanager
def lan():
    """Puts the server's end of a cable here, and gives the command that runs something at the clients' end."""
    holder = subprocess.Popen(["unshare", "--net", "sh", "-c", "echo; exec sleep infinity"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    try:
        holder.stdout.readline()
        there = ["nsenter", f"--net=/proc/{holder.pid}/ns/net"]
        ip = program("ip")
        # A route to all clients, and no neighbour for each: the kernel remembers only a thousand.
        for command in (
            [ip, "link", "set", "lo", "up"],
            [ip, "link", "add", "s0", "type", "veth", "peer", "name", "c0", "netns", str(holder.pid)],
            [ip, "addr", "add", f"{SERVER}/16", "dev", "s0"],
            [ip, "link", "set", "s0", "up"],
            [*there, ip, "addr", "add", f"{RELAY}/16", "dev", "c0"],
            [*there, ip, "link", "set", "lo", "up"],
            [*there, ip, "link", "set", "c0", "up"],
            *([ip, "route", "add", part, "via", RELAY] for part in CLIENTS),
            *([*there, ip, "route", "add", "local", part, "dev", "lo"] for part in CLIENTS),
        ):
            subprocess.run(command, check=True)
        yield there
    finally:
        stop(holder)


def storm(name, binary, clients, there):
    """One server, one storm: a dict of figures, or of why there are none."""
    start, files = SERVERS[name]
    with tempfile.TemporaryDirectory(prefix="gwbench-storm-") as folder:
        work = Path(folder)
        (work / "root").mkdir()
        work.chmod(0o755)
        for file, size in files.items():
            (work / "root" / file).write_bytes(os.urandom(size))
        command = [*there, str(example("boot_storm")), "--server", SERVER, "--relay", RELAY, "--clients", str(clients), "--patience-s", str(PATIENCE_S)]
        for file in files:
            command += ["--file", f"/{file}={work}/root/{file}"]
        try:
            with running(start(binary, work), work) as processes:
                result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S + 60, check=False)
                if result.returncode:
                    return {"reason": result.stderr.strip()[-300:]}
                return {**json.loads(result.stdout), "cpu_s": cpu_s({process.pid for process in processes})}
        except (Missing, RuntimeError, OSError, subprocess.TimeoutExpired) as error:
            return {"reason": str(error)}


def inside(binary, clients, rounds):
    """Within the namespace: for each server the storm of the median time to the last one."""
    # Each client holds a connection, on both ends.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    results = {name: [] for name in SERVERS}
    with lan() as there:
        for number in range(rounds):
            # dnsmasq takes a minute or two, whose length no repetition changes much.
            for name in SERVERS if number == 0 else ["goldwire", ADMITTING]:
                results[name].append(storm(name, binary, clients, there))
                print(f"  {name}: {results[name][-1]}", file=sys.stderr, flush=True)
    return {name: median(storms) for name, storms in results.items()}


def median(storms):
    """The storm in the middle; one that did not run, or in which a client did not boot, speaks for all."""
    failed = [figures for figures in storms if "last_s" not in figures or figures["failed"]]
    return failed[0] if failed else sorted(storms, key=lambda figures: figures["last_s"])[(len(storms) - 1) // 2]


def table(results):
    lines = ["".join(["server".ljust(20), *(column.rjust(14) for column in COLUMNS)])]
    for name, figures in results.items():
        cells = [f"{figures[c]:.2f}" if isinstance(figures.get(c), float) else str(figures.get(c, "-")) for c in COLUMNS]
        note = figures.get("reason", "")
        lines.append("".join([name.ljust(20), *(cell.rjust(14) for cell in cells), f"  {note}" if note else ""]).rstrip())
    return lines


def run(goldwire, quick):
    """Prints the table; returns its figures, or why there are none."""
    clients, rounds = (200, 1) if quick else (2000, 3)
    mib = sum(FILES.values()) / MIB
    print(f"Boot storm: {clients} clients at once, each: DHCP, the script, {mib:.0f} MiB of files; seconds since its power-on")
    # The servers end with the namespace of processes, however this one ends.
    space = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    space += [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    command = [*space, sys.executable, "-m", "lib.netboot_storm", os.path.realpath(goldwire), str(clients), str(rounds)]
    try:
        example("boot_storm")
        # The load says what it did on standard error, which is the user's; the figures come on standard output.
        with tempfile.TemporaryDirectory(prefix="gwbench-storm-") as work:
            os.chmod(work, 0o755)
            done = subprocess.run(
                command, cwd=Path(__file__).resolve().parents[1], env={**os.environ, "TMPDIR": work}, stdout=subprocess.PIPE, text=True, check=False
            )
        if done.returncode:
            raise RuntimeError(f"the network namespace could not be made or used (status {done.returncode})")
    except (Missing, RuntimeError, OSError) as error:
        print(f"did not run: {error}")
        return {"reason": str(error)}
    results = json.loads(done.stdout)
    print("\n".join(table(results)))
    ours, theirs = (results[name].get("last_s") for name in ("goldwire", "dnsmasq and nginx"))
    is_met = all(results[name].get("booted") == clients for name in ("goldwire", ADMITTING))
    large = results[ADMITTING]
    print(
        f"with an initrd of {LARGE_FILES['initrd'] // MIB} MiB and room for {LARGE_TRANSFERS} such transfers: asked to come back "
        f"{large.get('put_off', 0)} times, and {large.get('booted', 0)} of {clients} booted"
    )
    if ours and theirs:
        print(f"time to the last one: {ours / theirs:.2f} x that of dnsmasq and nginx")
    print(f"bar: every client boots, with the right bytes: {'met' if is_met else 'NOT met'}")
    return {"servers": results, "met": is_met}


if __name__ == "__main__":
    print(json.dumps(inside(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
