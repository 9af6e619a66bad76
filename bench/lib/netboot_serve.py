"""Starts `goldwire boot serve` for a measurement: on loopback, with unprivileged ports, and only what is measured."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
START_S = 20
EXAMPLES = ["boot_storm", "tftp_load"]

CONFIG = """\
[server]
name = "bench"
state = "{folder}/state"
root = "{root}"
ipxe = "{root}"
[http]
listen = [{http}]
[tftp]
listen = [{tftp}]
[dhcp]
mode = "off"
[[member]]
name = "bench"
address = "127.0.0.1"
"""


class Missing(Exception):
    """A program that a measurement needs is not there."""


def program(name):
    """Where a system's program is, or Missing."""
    path = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))
    if not path:
        raise Missing(f"{name} is not installed")
    return path


def target():
    return Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))


def example(name):
    """Where one of our load generators is, or Missing."""
    path = target() / "release/examples" / name
    if not path.exists():
        raise Missing(f"{name} is not built: cargo build --locked --release -p goldwire-netboot --example {name}")
    return path


def build(goldwire=None):
    """Builds the load generators and, unless a program is given, goldwire; returns the program's path. Without cargo,
    what was built before is used, so that root's PATH need not have it."""
    path = Path(goldwire or target() / "release/goldwire")
    packages = ["-p", "goldwire-netboot", *(word for name in EXAMPLES for word in ("--example", name))]
    if not goldwire:
        packages += ["-p", "goldwire", "--bin", "goldwire"]
    if shutil.which("cargo"):
        # As `make build` does, so that its program is not replaced by one without the agent.
        agent = ROOT / "target/agent/goldwire-agent"
        env = {"GOLDWIRE_AGENT": str(agent)} if agent.exists() else {}
        command = ["cargo", "build", "--locked", "--release", *packages]
        subprocess.run(command, cwd=ROOT, env={**os.environ, **env}, check=True)
    elif not path.exists():
        raise Missing(f"there is neither cargo nor {path}")
    return str(path.resolve())


def free_port(kind=socket.SOCK_STREAM):
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def serving(goldwire, folder, root, http=None, tftp=None):
    """Serves the folder `root` on these ports of 127.0.0.1 and yields the process; `folder` takes its state."""
    quoted = lambda port: f'"127.0.0.1:{port}"' if port else ""
    config = folder / "boot.toml"
    config.write_text(CONFIG.format(folder=folder, root=root, http=quoted(http), tftp=quoted(tftp)))
    log = folder / "goldwire.log"
    # Its log says one line per device and stage, as it would into the journal.
    with log.open("wb") as out:
        command = [goldwire, "boot", "serve", "--config", config]
        command = [str(word) for word in command]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
    try:
        deadline = time.monotonic() + START_S
        while http and not is_open(http):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"goldwire did not start: {log.read_text(errors='replace')[-400:].strip()}")
            time.sleep(0.02)
        yield process
    finally:
        process.terminate()
        stop(process)


def is_open(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def stop(process):
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def cpu_s(groups):
    """Processor seconds so far of these processes and of their children."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rsplit(")", 1)[1].split()
            if int(path.parent.name) in groups or int(fields[1]) in groups:
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")
