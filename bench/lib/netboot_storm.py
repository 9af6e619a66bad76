#!/usr/bin/env python3
"""A boot storm: 2,000 simulated iPXE clients power on at once (DHCP, the script, 2 MiB of files over HTTP) against one
`goldwire boot serve`, and for scale against dnsmasq and nginx. Time to the last one, and fairness.

Everything runs on the loopback of a network namespace of its own, so no port of the machine is needed or touched.
The load comes from `crates/netboot/examples/boot_storm.rs`, whose clients have an address of their own each, compare
every byte, and wait where the server says `503` with `Retry-After`, as iPXE does.

    bench/lib/netboot_storm.py --goldwire target/release/goldwire --storm target/release/examples/boot_storm

Exits 0 when every client booted with the right bytes, 1 when one did not, 2 when the bench itself cannot run.
"""

import argparse
import contextlib
import http.client
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

KIB, MIB = 1 << 10, 1 << 20
FILES = {"kernel": 1536 * KIB, "initrd": 512 * KIB}
COLUMNS = ["booted", "last_s", "p99_s", "median_s", "first_s", "jain", "dhcp_resent", "put_off", "http_failures", "cpu_s"]
START_S = 20
TICK = os.sysconf("SC_CLK_TCK")

GOLDWIRE = """
default-profile = "storm"
[server]
name = "boot1"
state = "{work}/state"
root = "{work}/root"
[http]
listen = ["127.0.0.1:80"]
[tftp]
listen = []
[dhcp]
mode = "server"
interfaces = ["lo"]
[[subnet]]
network = "127.0.0.0/16"
pools = ["127.0.16.0-127.0.63.255"]
[[member]]
name = "boot1"
address = "127.0.0.1"
[profile.storm]
kernel = "kernel"
initrd = "initrd"
"""

NGINX = """
daemon off; worker_processes auto; pid {work}/nginx.pid; error_log {work}/nginx.log;
events {{ worker_connections 8192; }}
http {{ access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000; server {{ listen 127.0.0.1:80 backlog=4096; root {work}/root; }} }}
"""


def goldwire(arguments, work):
    (work / "boot.toml").write_text(GOLDWIRE.format(work=work))
    return [[arguments.goldwire, "boot", "serve", "--config", str(work / "boot.toml")]], arguments.prefix


def foreign(arguments, work):
    (work / "nginx.conf").write_text(NGINX.format(work=work))
    (work / "root/boot.ipxe").write_text("#!ipxe\nimgfetch /kernel\nimgfetch /initrd\nboot\n")
    dnsmasq = [
        "dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--port=0", "--interface=lo", "--bind-interfaces", "--user=root", "--no-ping",
        "--dhcp-range=127.0.16.0,127.0.63.255,255.255.0.0,1h", f"--dhcp-leasefile={work}/leases", "--dhcp-lease-max=10000",
        "--dhcp-option-force=67,http://127.0.0.1/boot.ipxe",
    ]
    return [dnsmasq, ["nginx", "-p", str(work), "-c", str(work / "nginx.conf")]], ""


SERVERS = {"goldwire": (goldwire, []), "dnsmasq and nginx": (foreign, ["dnsmasq", "nginx"])}


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
                os.killpg(process.pid, 9)
            process.wait()


def answers():
    connection = http.client.HTTPConnection("127.0.0.1", 80, timeout=2)
    try:
        connection.request("GET", "/")
        connection.getresponse()
        return True
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def cpu_s(processes):
    """Of the servers and what they started."""
    total = 0
    groups = {process.pid for process in processes}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rsplit(")", 1)[1].split()
            if int(fields[2]) in groups:
                total += int(fields[11]) + int(fields[12])
    return total / TICK


def storm(name, arguments):
    """One server, one storm: a dict of figures, or of why there are none."""
    prepare, needed = SERVERS[name]
    missing = [program for program in needed if not shutil.which(program)]
    if missing:
        return {"reason": f"{missing[0]} is not installed"}
    with tempfile.TemporaryDirectory(prefix="goldwire-storm-") as folder:
        work = Path(folder)
        (work / "root").mkdir()
        work.chmod(0o755)
        for file, size in FILES.items():
            (work / "root" / file).write_bytes(os.urandom(size))
        commands, prefix = prepare(arguments, work)
        command = [arguments.storm, "--clients", str(arguments.clients), "--spread-s", str(arguments.spread), "--patience-s", str(arguments.patience)]
        for file in FILES:
            command += ["--file", f"{prefix}/{file}={work}/root/{file}"]
        try:
            with running(commands, work) as processes:
                result = subprocess.run(command, capture_output=True, text=True, check=False)
                if result.returncode:
                    return {"reason": result.stderr.strip()[-300:]}
                return {**json.loads(result.stdout), "cpu_s": cpu_s(processes)}
        except (RuntimeError, OSError) as e:
            return {"reason": str(e)}


def inside(arguments):
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    # Each client holds a connection, on both ends.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print(json.dumps({name: storm(name, arguments) for name in SERVERS}))


def measure(arguments):
    """Runs all servers, one after the other, in a namespace: name to figures."""
    space = ["unshare", "--net"] if os.getuid() == 0 else ["unshare", "--user", "--map-root-user", "--net"]
    command = [*space, sys.executable, __file__, "--inside", *arguments_of(arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(result.stderr.strip()[-500:])
    return json.loads(result.stdout)


def table(results, clients):
    mib = sum(FILES.values()) / MIB
    lines = [f"{clients} clients at once, each: DHCP, the script, {mib:.0f} MiB of files; seconds since its power-on"]
    lines.append("".join(["server".ljust(20), *(column.rjust(14) for column in COLUMNS)]))
    for name, figures in results.items():
        cells = [f"{figures[c]:.2f}" if isinstance(figures.get(c), float) else str(figures.get(c, "-")) for c in COLUMNS]
        note = figures.get("reason", "")
        lines.append("".join([name.ljust(20), *(cell.rjust(14) for cell in cells), f"  {note}" if note else ""]).rstrip())
    return lines


def arguments_of(arguments):
    words = []
    for name in ("goldwire", "storm", "clients", "spread", "patience", "prefix"):
        words += [f"--{name}", str(getattr(arguments, name))]
    return words


def parser():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--goldwire", default="target/release/goldwire", type=os.path.realpath)
    p.add_argument("--storm", default="target/release/examples/boot_storm", type=os.path.realpath)
    p.add_argument("--clients", default=2000, type=int)
    p.add_argument("--spread", default=0.0, type=float, help="seconds over which the clients power on")
    p.add_argument("--patience", default=120.0, type=float, help="seconds that a client may take")
    p.add_argument("--prefix", default="", help="where the boot tree begins in goldwire's URLs")
    p.add_argument("--json", action="store_true")
    p.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    return p


def main():
    arguments = parser().parse_args()
    if arguments.inside:
        return inside(arguments)
    try:
        results = measure(arguments)
    except (RuntimeError, OSError) as e:
        print(f"netboot_storm: {e}", file=sys.stderr)
        return 2
    print(json.dumps(results) if arguments.json else "\n".join(table(results, arguments.clients)))
    return 0 if results["goldwire"].get("booted") == arguments.clients else 1


if __name__ == "__main__":
    sys.exit(main())
