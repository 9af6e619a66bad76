"""A 100 KiB bootstrap by HTTP: goldwire beside nginx, the same file, the same client, in one run.

nginx is set up as for static files (sendfile, tcp_nopush, two workers, keep-alive without end, no log). wrk asks from
1, 32 and 256 connections. The two take turns in short rounds, so that what else the machine does hits both; the ratio
is the median of the rounds' ratios. `measure()` returns rows.
"""

import contextlib
import hashlib
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

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


class Missing(Exception):
    """A program that the measurement needs is not there."""


def program(name, extra=()):
    path = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", *extra]))
    if not path:
        raise Missing(f"{name} is not installed")
    return path


@contextlib.contextmanager
def goldwire(binary, tree):
    """Starts our server on a folder; yields its address. The example of the crate until told of another way."""
    process = subprocess.Popen([binary, str(tree), "127.0.0.1:0"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        address = process.stdout.readline().strip()
        if not address:
            raise RuntimeError(f"{binary} did not start")
        yield address
    finally:
        process.stdin.close()
        stop(process)


@contextlib.contextmanager
def nginx(folder):
    """Starts nginx on `folder`/tree; yields its address."""
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
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        stop(process)


def stop(process):
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


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


def measure(binary, rounds=9, seconds=1, say=lambda text: None):
    """Rows of {connections, goldwire, nginx, ratio, met}: medians over `rounds`. Raises Missing."""
    for name in ("wrk", "nginx"):
        program(name)
    with tempfile.TemporaryDirectory(prefix="gwbench-http.") as folder:
        folder = Path(folder)
        folder.chmod(0o755)
        (folder / "tree").mkdir()
        content = os.urandom(SIZE)
        (folder / "tree" / NAME).write_bytes(content)
        time.sleep(2.5)  # a file this new has no digest that is remembered yet
        with goldwire(binary, folder / "tree") as ours, nginx(folder) as theirs:
            servers = {"goldwire": ours, "nginx": theirs}
            wrong = same_bytes(servers, content)
            if wrong:
                raise RuntimeError(wrong)
            rows = []
            for connections in CONNECTIONS:
                rates = {name: [] for name in servers}
                for turn in range(rounds):
                    order = list(servers.items())
                    for name, address in order if turn % 2 == 0 else reversed(order):
                        rates[name].append(wrk(address, connections, seconds))
                        say(f"{connections} connections, {name}: {rates[name][-1]:.0f} requests/s")
                medians = {name: statistics.median(values) for name, values in rates.items()}
                ratio = statistics.median(a / b for a, b in zip(rates["goldwire"], rates["nginx"]))
                rows.append({"connections": connections, **medians, "ratio": ratio, "met": ratio >= BAR})
            return rows


def table(rows):
    lines = [f"{'connections':>11}  {'goldwire/s':>10}  {'nginx/s':>10}  {'ratio':>5}  bar {BAR}"]
    for row in rows:
        verdict = "met" if row["met"] else "NOT met"
        lines.append(
            f"{row['connections']:>11}  {row['goldwire']:>10.0f}  {row['nginx']:>10.0f}  {row['ratio']:>5.2f}  {verdict}"
        )
    return lines


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: netboot_http.py PROGRAM [ROUNDS [SECONDS]]   (PROGRAM: target/release/examples/http_server)")
    numbers = [int(word) for word in sys.argv[2:4]]
    try:
        print("\n".join(table(measure(sys.argv[1], *numbers, say=lambda text: print(text, file=sys.stderr)))))
    except Missing as error:
        sys.exit(f"SKIPPED: {error}")
