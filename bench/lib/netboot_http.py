"""A 100 KiB bootstrap by HTTP: goldwire beside nginx, the same file, the same client, in one run.

nginx is set up as for static files (sendfile, tcp_nopush, two workers, keep-alive without end, no log). wrk asks from
1, 32 and 256 connections. The two take turns in short rounds, so that what else the machine does hits both; the ratio
is the median of the rounds' ratios. CPU is the server's own, per request, which a busy machine changes less.
"""

import contextlib
import hashlib
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from lib.netboot_serve import Missing, cpu_s, free_port, program, serving, stop

SIZE = 100 << 10
NAME = "bootstrap.bin"
CONNECTIONS = (1, 32, 256)
BAR = 0.9  # of nginx's requests per second, in each row

NGINX = """\
daemon off;
worker_processes 2;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 2048; }}
http {{
  access_log off;
  sendfile on;
  tcp_nopush on;
  tcp_nodelay on;
  keepalive_timeout 75s;
  keepalive_requests 1000000000;
  client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
  uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
  server {{ listen 127.0.0.1:{port}; root {folder}/tree; }}
}}
"""


@contextlib.contextmanager
def nginx(folder):
    """Starts nginx on `folder`/tree; yields its port and process."""
    port = free_port()
    config = folder / "nginx.conf"
    text = NGINX.format(folder=folder, port=port)
    if os.geteuid() == 0:
        text = "user root;\n" + text
    config.write_text(text)
    process = subprocess.Popen([program("nginx"), "-c", str(config)], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(500):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if process.poll() is not None:
                raise RuntimeError(f"nginx did not start: {(folder / 'error.log').read_text()[-300:]}")
            time.sleep(0.02)
        yield port, process
    finally:
        process.terminate()
        stop(process)


def wrk(address, connections, seconds):
    """Requests per second; an error of any kind makes the figure void."""
    command = [program("wrk"), "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", f"http://{address}/{NAME}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60)
    rate = re.search(r"Requests/sec:\s+([0-9.]+)", done.stdout)
    if not rate or re.search(r"Socket errors|Non-2xx", done.stdout):
        raise RuntimeError(" ".join((done.stdout + done.stderr).split())[-300:])
    return float(rate[1])


def same_bytes(addresses, content):
    """None, or which server sent something else."""
    wanted = hashlib.sha256(content).digest()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for name, address in addresses.items():
        with opener.open(f"http://{address}/{NAME}", timeout=30) as answer:
            if hashlib.sha256(answer.read()).digest() != wanted:
                return f"{name} sent other bytes"
    return None


def measure(goldwire, rounds, seconds, say):
    """Rows of {connections, met, ratio, and for each server rate and cpu_us}: medians over `rounds`. Raises Missing."""
    for name in ("wrk", "nginx"):
        program(name)
    with tempfile.TemporaryDirectory(prefix="gwbench-http.") as folder, contextlib.ExitStack() as stack:
        folder = Path(folder)
        folder.chmod(0o755)
        (folder / "tree").mkdir()
        content = os.urandom(SIZE)
        (folder / "tree" / NAME).write_bytes(content)
        time.sleep(2.5)  # the digest of a file this new is not remembered yet
        port = free_port()
        ours = stack.enter_context(serving(goldwire, folder, folder / "tree", http=port))
        their_port, theirs = stack.enter_context(nginx(folder))
        servers = {"goldwire": (f"127.0.0.1:{port}", ours.pid), "nginx": (f"127.0.0.1:{their_port}", theirs.pid)}
        wrong = same_bytes({name: address for name, (address, _) in servers.items()}, content)
        if wrong:
            raise RuntimeError(wrong)
        return [row(servers, connections, rounds, seconds, say) for connections in CONNECTIONS]


def row(servers, connections, rounds, seconds, say):
    rates = {name: [] for name in servers}
    cpu_us = {name: [] for name in servers}
    for turn in range(rounds):
        order = list(servers.items())
        for name, (address, pid) in order if turn % 2 == 0 else reversed(order):
            before = cpu_s({pid})
            rate = wrk(address, connections, seconds)
            rates[name].append(rate)
            cpu_us[name].append((cpu_s({pid}) - before) / (rate * seconds) * 1e6)
            say(f"  {connections} connections, {name}: {rate:.0f} requests/s, {cpu_us[name][-1]:.1f} us CPU each")
    ratio = statistics.median(a / b for a, b in zip(rates["goldwire"], rates["nginx"]))
    figures = {name: {"rate": statistics.median(rates[name]), "cpu_us": statistics.median(cpu_us[name])} for name in servers}
    return {"connections": connections, **figures, "ratio": ratio, "met": ratio >= BAR}


def table(rows):
    lines = [f"{'connections':>11}  {'goldwire/s':>10}  {'nginx/s':>9}  {'ratio':>5}  {'CPU us, goldwire':>16}  {'nginx':>5}"]
    for row in rows:
        ours, theirs = row["goldwire"], row["nginx"]
        lines.append(
            f"{row['connections']:>11}  {ours['rate']:>10.0f}  {theirs['rate']:>9.0f}  {row['ratio']:>5.2f}"
            f"  {ours['cpu_us']:>16.1f}  {theirs['cpu_us']:>5.1f}"
        )
    return lines


def run(goldwire, quick):
    """Prints the table; returns its figures, or why there are none."""
    print(f"HTTP: a file of {SIZE >> 10} KiB, requests per second of kept connections")
    try:
        rows = measure(goldwire, 3 if quick else 15, 1, say=lambda text: print(text, file=sys.stderr))
    except (Missing, RuntimeError, OSError) as error:
        print(f"did not run: {error}")
        return {"reason": str(error)}
    print("\n".join(table(rows)))
    is_met = all(row["met"] for row in rows)
    print(f"bar: at least {BAR} x nginx at {', '.join(map(str, CONNECTIONS))} connections: {'met' if is_met else 'NOT met'}")
    return {"rows": rows, "met": is_met}
