"""The tools: how each is made ready, run and checked.

A runner yields `Step`s. `prepare` is never timed; `command` is measured; `verify` returns None or what is wrong.
All start from the same place: v2 at the master (this machine), an empty storage or v1 at host1.
"""

import json
import os
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Optional

from . import measure
from .pair import tool


@dataclass
class Step:
    key: str  # how bars and ratios refer to it
    name: str  # what the table says
    command: list
    prepare: Callable = lambda: None
    verify: Callable = lambda: None
    env: dict = field(default_factory=dict)
    cwd: Optional[str] = None
    parallel: Optional[list] = None
    counts: Optional[Path] = None  # byte counts that do not come from the ssh meter
    guard: Optional[Callable] = None
    note: str = ""


def version_of(program, *arguments):
    path = shutil.which(program)
    if not path:
        return None
    try:
        done = subprocess.run([path, *arguments], capture_output=True, text=True, timeout=20, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError):
        return None
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[0].strip() if lines else "?"


def same_bytes(result, wanted):
    """None, or what is wrong with a file that must be a copy."""
    if not Path(result).exists():
        return f"{Path(result).name} is not there"
    done = subprocess.run(["cmp", str(result), str(wanted)], capture_output=True, text=True, timeout=600)
    return None if done.returncode == 0 else (done.stdout + done.stderr).strip()


def same_disk(result, wanted):
    """None, or what is wrong with a VHD that must hold the same guest disk."""
    if not Path(result).exists():
        return f"{Path(result).name} is not there"
    done = subprocess.run(
        ["qemu-img", "compare", "-f", "vpc", "-F", "vpc", str(result), str(wanted)], capture_output=True, text=True, timeout=600
    )
    return None if done.returncode == 0 else (done.stdout + done.stderr).strip()


def place_v1(bench, host):
    """A host's storage with v1 and nothing else."""
    bench.hosts.empty(host)
    shutil.copy2(bench.pair.vhd("v1"), bench.hosts.sr(host) / "golden.vhd")


# --- rsync ------------------------------------------------------------------------------------------------

RSYNC_COMPRESSION = {"rsync": [], "rsync-z": ["-z"], "rsync-zlib": ["-z", "--zc=zlib"], "rsync-zstd": ["-z", "--zc=zstd"]}


def rsync_supports(option):
    if not option or len(option) == 1:
        return True
    text = subprocess.run(["rsync", "--version"], capture_output=True, text=True, timeout=20).stdout
    return option[1].removeprefix("--zc=") in text.partition("Compress list:")[2].split("\n\n")[0]


def rsync_command(bench, options, host, config=None):
    # -I: never skip because size and time agree.
    ssh = f"ssh -F {config or bench.config}"
    return ["rsync", "-I", "-t", *options, "-e", ssh, str(bench.pair.vhd("v2")), f"{host}:{bench.hosts.sr(host)}/golden.vhd"]


def rsync_full(bench, peer):
    compression = RSYNC_COMPRESSION[peer]
    yield Step(
        f"{peer} full", " ".join(["rsync", "-W", *compression]), rsync_command(bench, ["-W", *compression], "host1"),
        prepare=lambda: bench.hosts.empty("host1"),
        verify=lambda: same_bytes(bench.hosts.sr("host1") / "golden.vhd", bench.pair.vhd("v2")),
    )


def rsync_delta(bench, peer, ways=("inplace", "plain")):
    compression = RSYNC_COMPRESSION[peer]
    for key, options in (("inplace", ["--inplace", "--no-whole-file"]), ("plain", ["--no-whole-file"])):
        if key not in ways:
            continue
        if key == "plain" and peer not in ("rsync", "rsync-z"):
            continue  # where the bytes go does not depend on how they are compressed
        yield Step(
            f"{peer} delta {key}", " ".join(["rsync", *(["--inplace"] if key == "inplace" else []), *compression]),
            rsync_command(bench, [*options, *compression], "host1"),
            prepare=lambda: place_v1(bench, "host1"),
            verify=lambda: same_bytes(bench.hosts.sr("host1") / "golden.vhd", bench.pair.vhd("v2")),
        )


# --- what nothing over ssh can undercut -----------------------------------------------------------------------


def floor(bench):
    """Pipes that carry the disk over the same ssh and do nothing else: no hash, no check, no second look."""
    zstd = version_of("zstd", "--version")
    pipes = [("cat", "cat | ssh cat", "cat {source}", "cat")]
    if zstd:
        pipes.append(("zstd", "zstd -1 -T0 | ssh zstd -d", "zstd -q -1 -T0 -c {source}", "zstd -q -d -c"))
    for key, name, pack, unpack in pipes:
        target = bench.hosts.sr("host1") / "golden.vhd"
        command = f'{pack} | ssh -F {{config}} host1 "{unpack} > {{target}}"'
        values = {"source": shlex.quote(str(bench.pair.vhd("v2"))), "config": shlex.quote(str(bench.config)), "target": shlex.quote(str(target))}
        yield Step(
            f"floor {key}", name, ["bash", "-c", "set -o pipefail; " + command.format(**values)],
            prepare=lambda: bench.hosts.empty("host1"), verify=lambda: same_bytes(target, bench.pair.vhd("v2")),
            note="no check of any kind: the least that a full copy over this ssh costs",
        )


def floor_delta(bench):
    """A new file of the old one's size at the host, read once: what keeping the old disk and reading back cost alone."""
    folder = bench.hosts.sr("host1")
    old, new = (shlex.quote(str(folder / name)) for name in ("golden.vhd", "new.vhd"))
    yield Step(
        "floor delta", "ssh cp && cat > /dev/null", ["ssh", "-F", str(bench.config), "host1", f"cp {old} {new} && cat {new} > /dev/null"],
        prepare=lambda: place_v1(bench, "host1"), verify=lambda: same_bytes(folder / "new.vhd", bench.pair.vhd("v1")),
        note="moves and changes nothing: a copy of the old disk, read once",
    )


def floor_fanout(bench):
    """The same with one compression for 1 and 4 hosts."""
    if not version_of("zstd", "--version"):
        return
    source, config = shlex.quote(str(bench.pair.vhd("v2"))), shlex.quote(str(bench.config))
    for count in (1, 4):
        hosts = [f"host{n}" for n in range(1, count + 1)]
        targets = {host: bench.hosts.sr(host) / "golden.vhd" for host in hosts}
        pipes = " ".join(shlex.quote(str(bench.run_folder / f"pipe-{host}")) for host in hosts)
        script = [f"rm -f {pipes}", f"mkfifo {pipes}"]
        for host, pipe in zip(hosts, pipes.split()):
            script.append(f'ssh -F {config} {host} "zstd -q -d -c > {shlex.quote(str(targets[host]))}" < {pipe} &')
        script.append(f"zstd -q -1 -T0 -c {source} | tee {pipes} > /dev/null")
        script.append("wait")

        def verify(targets=targets):
            wrong = [(h, same_bytes(t, bench.pair.vhd("v2"))) for h, t in targets.items()]
            return "; ".join(f"{h}: {w}" for h, w in wrong if w) or None

        yield Step(
            f"floor fanout {count}", f"zstd -1 | tee | {count} x ssh zstd -d", ["bash", "-c", "\n".join(script)],
            prepare=lambda hosts=hosts: [bench.hosts.empty(host) for host in hosts], verify=verify, note="no check of any kind",
        )


# --- zsync ------------------------------------------------------------------------------------------------


def zsync_delta(bench, _peer):
    served = bench.run_folder / "zsync"
    served.mkdir()
    counts = served / "counts"
    os.link(bench.pair.vhd("v2"), served / "golden.vhd")
    # Under a name of its own, so that the table tells it from anything else in Python.
    interpreter = served / "httpd"
    interpreter.symlink_to(os.path.realpath(bench.python))
    server = bench.group.spawn(
        [str(interpreter), "-I", str(Path(__file__).with_name("httpd.py")), str(served), str(counts)], stdout=subprocess.PIPE, text=True
    )
    try:
        port = server.stdout.readline().strip()
        yield Step(
            "zsyncmake", "zsyncmake v2 (index)",
            ["zsyncmake", "-u", "golden.vhd", "-o", str(served / "golden.vhd.zsync"), str(served / "golden.vhd")],
        )
        yield Step(
            "zsync delta", "zsync (HTTP, not SSH)",
            ["zsync", "-q", "-i", str(bench.hosts.sr("host1") / "golden.vhd"), "-o", "new.vhd", f"http://127.0.0.1:{port}/golden.vhd.zsync"],
            prepare=lambda: (place_v1(bench, "host1"), counts.unlink(missing_ok=True)),
            verify=lambda: same_bytes(bench.hosts.sr("host1") / "new.vhd", bench.pair.vhd("v2")),
            cwd=str(bench.hosts.sr("host1")), counts=counts,
            note="runs at the target; the index is part of its bytes",
        )
    finally:
        bench.group.standing.discard(server.pid)
        server.terminate()
        server.wait(10)
        server.stdout.close()
        shutil.rmtree(served, ignore_errors=True)


# --- casync -----------------------------------------------------------------------------------------------


def casync_delta(bench, _peer):
    store = bench.hosts.sr("master") / "store.castr"
    index = bench.hosts.sr("master") / "golden.caibx"
    # casync takes the name of an ssh program, not a command line.
    ssh = bench.run_folder / "casync-ssh"
    ssh.write_text(f'#!/bin/sh\nexec ssh -F {bench.config} "$@"\n')
    ssh.chmod(0o755)
    try:
        yield Step(
            "casync make", "casync make v2 (index, chunks)",
            ["casync", "make", "--chunk-size=65536", "--compression=zstd", f"--store={store}", str(index), str(bench.pair.vhd("v2"))],
            prepare=lambda: bench.hosts.empty("master"),
        )
        yield Step(
            "casync delta", "casync extract --seed",
            ["casync", "extract", f"--store=master:{store}", f"--seed={bench.hosts.sr('host1') / 'golden.vhd'}",
             f"master:{index}", str(bench.hosts.sr("host1") / "new.vhd")],
            prepare=lambda: place_v1(bench, "host1"),
            verify=lambda: same_bytes(bench.hosts.sr("host1") / "new.vhd", bench.pair.vhd("v2")),
            env={"CASYNC_SSH_PATH": str(ssh)},
            note="runs at the target and pulls; index and chunk store made before, at the master",
        )
    finally:
        bench.hosts.empty("master")


# --- borg -------------------------------------------------------------------------------------------------


def borg_delta(bench, _peer):
    repository = bench.hosts.sr("host1") / "repo"
    environment = {
        "BORG_RSH": f"ssh -F {bench.config}",
        "BORG_BASE_DIR": str(bench.run_folder / "borg"),
        "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
        "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
    }
    create = ["borg", "create", "-C", "zstd,3", "--chunker-params", "fixed,65536"]
    for version in ("v1", "v2"):
        bench.pair.raw(version)

    def first():
        bench.hosts.empty("host1")
        shutil.rmtree(bench.run_folder / "borg", ignore_errors=True)
        for command in (["borg", "init", "-e", "none", f"host1:{repository}"], [*create, f"host1:{repository}::v1", "golden.raw"]):
            done = subprocess.run(
                command, env={**os.environ, **environment}, cwd=bench.pair.raw("v1").parent, timeout=bench.timeout_s,
                capture_output=True, text=True, stdin=subprocess.DEVNULL,
            )
            if done.returncode > 1:
                raise measure.Failed(f"borg: {done.stderr.strip()[-200:]}")

    # The archive's clean-up of its own cache folder is not part of what is compared, so v1 comes again for
    # every repetition.
    try:
        yield Step(
            "borg delta", "borg create (2nd)", [*create, f"host1:{repository}::v2", "golden.raw"],
            prepare=first, env=environment, cwd=str(bench.pair.raw("v2").parent),
            note="raw disk into a repository at the target; not a usable disk before the extract",
        )
        target = bench.hosts.sr("host1") / "golden.raw"
        yield Step(
            "borg extract", "borg extract (at target)", ["borg", "extract", "--sparse", f"{repository}::v2"],
            prepare=lambda: target.unlink(missing_ok=True),
            verify=lambda: same_bytes(target, bench.pair.raw("v2")),
            env={**environment, "BORG_BASE_DIR": str(bench.run_folder / "borg-target")}, cwd=str(bench.hosts.sr("host1")),
        )
    finally:
        bench.pair.drop_raw()
        bench.hosts.empty("host1")


# --- goldwire ---------------------------------------------------------------------------------------------


class Goldwire:
    """goldwire's command line, and its caches."""

    def __init__(self, bench, binary):
        self.bench = bench
        # A copy, with the agents that lie beside it: a build during the bench must not
        # change what is measured, or have agents installed again in a measured run.
        folder = bench.run_folder / "goldwire"
        folder.mkdir()
        beside = Path(binary).parent
        for file in {Path(binary), *beside.glob("goldwire-agent*")}:
            if file.is_file() and os.access(file, os.X_OK):
                shutil.copy2(file, folder / file.name)
        self.binary = str(folder / Path(binary).name)
        self.warnings = []
        self.agents_installed = False

    def command(self, source, targets, options=(), config=None):
        ssh = f"ssh -F {config or self.bench.config}"
        return [self.binary, "sync", "--ssh-command", ssh, "--remote-ssh-command", ssh, "--json", *options, str(source), *targets]

    def target(self, host):
        return f"{host}:{self.bench.hosts.sr(host)}/golden.vhd"

    def install_agents(self):
        """Two tiny syncs to every host, from the remote master and from here, so that no measured run pays for
        installing an agent; what they cost is said below the tables."""
        if self.agents_installed:
            return
        self.agents_installed = True
        bench = self.bench
        disk = bench.run_folder / "tiny.raw"
        disk.write_bytes(os.urandom(1 << 20))
        hosts = [h for h in bench.hosts.names if h != "master"]
        for way, source, options in (("from a master", f"master:{disk}", ["--route", "direct"]), ("from here", str(disk), [])):
            targets = [f"{h}:{bench.hosts.sr(h)}/tiny.raw" for h in hosts]
            try:
                command = self.command(source, targets, options)
                run = measure.run(bench.group, bench.meter, command, bench.timeout_s, env=bench.env)
                self.warnings.append(
                    f"goldwire: first contact with {len(hosts)} hosts {way} (a 1 MiB disk, agents installed where missing): "
                    f"{run.moved / 1e6:.1f} MB, {run.wall_s:.2f} s"
                )
            except measure.Failed as e:
                self.warnings.append(f"goldwire: the first contact {way} failed: {e}")
            for host in bench.hosts.names:
                bench.hosts.empty(host)
        disk.unlink()
        self.forget_trees(bench.run_folder)

    def forget_trees(self, *folders):
        for folder in folders:
            shutil.rmtree(Path(folder) / ".goldwire", ignore_errors=True)

    def index(self, image):
        """Makes the tree cache beside an image, as an earlier sync would have left it."""
        done = subprocess.run(
            [self.binary, "disk", "tree", str(image)], env={**os.environ, **self.bench.env}, timeout=self.bench.timeout_s,
            capture_output=True, text=True, stdin=subprocess.DEVNULL,
        )
        if done.returncode or not (Path(image).parent / ".goldwire").exists():
            why = done.stderr.strip().splitlines()[-1:] or ["no .goldwire folder appeared"]
            warning = f"goldwire: no warm tree for {Path(image).parent.name}/{Path(image).name}: {why[0][:200]}"
            if warning not in self.warnings:
                self.warnings.append(warning)

    @staticmethod
    def summary(stdout):
        """What it says of its own bytes, over all targets: shown beside our count, never instead of it."""
        total = 0
        for line in stdout.splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and event.get("event") == "done":
                total += sum(event.get(k) or 0 for k in ("wire_in", "wire_out"))
        return f"{total / 1e6:.1f} MB" if total else ""

    def sources(self, version):
        """How the source is named: as rsync's (a file of this machine), and as a remote master."""
        path = str(self.bench.pair.vhd(version))
        return {
            "": (path, []),
            " direct": (f"master:{path}", ["--route", "direct"]),
            " relay": (f"master:{path}", ["--route", "relay"]),
        }

    def full(self):
        bench = self.bench
        for way, (source, options) in self.sources("v2").items():
            def prepare():
                bench.hosts.empty("host1")
                self.forget_trees(bench.pair.vhd("v2").parent)

            yield Step(
                f"goldwire full{way}", f"goldwire{', master ->' + way if way else ''}",
                self.command(source, [self.target("host1")], options), prepare=prepare, env=bench.env,
                verify=lambda: same_disk(bench.hosts.sr("host1") / "golden.vhd", bench.pair.vhd("v2")),
                note="" if way else "no tree cache at the source",
            )

    def delta(self, config=None, ways=("", " direct", " relay"), caches=("warm", "cold")):
        bench = self.bench
        for cache in caches:
            for way in ways:
                source, options = self.sources("v2")[way]
                yield Step(
                    f"goldwire delta {cache}{way}", f"goldwire, {cache} trees{', master ->' + way if way else ''}",
                    self.command(source, [self.target("host1")], ["--replace", *options], config),
                    prepare=lambda cache=cache: self.ready_for_delta(["host1"], cache), env=bench.env,
                    verify=lambda: same_disk(bench.hosts.sr("host1") / "golden.vhd", bench.pair.vhd("v2")),
                )

    def ready_for_delta(self, hosts, cache):
        bench = self.bench
        source = bench.pair.vhd("v2")
        self.forget_trees(source.parent, bench.pair.vhd("v1").parent)
        for number, host in enumerate(hosts):
            if number == 0:
                place_v1(bench, host)
            else:
                # One file under several names: a replaced disk is renamed over, never written into, so the
                # hosts cannot see each other, and four hosts fit into memory.
                bench.hosts.empty(host)
                os.link(bench.hosts.sr(hosts[0]) / "golden.vhd", bench.hosts.sr(host) / "golden.vhd")
        if cache == "warm":
            self.index(source)
            for host in hosts:
                self.index(bench.hosts.sr(host) / "golden.vhd")

    def fanout(self, kind):
        bench = self.bench
        for count in (1, 4):
            hosts = [f"host{n}" for n in range(1, count + 1)]

            def prepare(hosts=hosts):
                if kind == "delta":
                    self.ready_for_delta(hosts, "warm")
                else:
                    for host in hosts:
                        bench.hosts.empty(host)
                    self.forget_trees(bench.pair.vhd("v2").parent)
                    self.index(bench.pair.vhd("v2"))

            def verify(hosts=hosts):
                wrong = [(h, same_disk(bench.hosts.sr(h) / "golden.vhd", bench.pair.vhd("v2"))) for h in hosts]
                return "; ".join(f"{h}: {w}" for h, w in wrong if w) or None

            yield Step(
                f"goldwire fanout {kind} {count}", f"goldwire {kind}, {count} target{'s' * (count > 1)}",
                self.command(bench.pair.vhd("v2"), [self.target(h) for h in hosts], ["--replace"] if kind == "delta" else []),
                prepare=prepare, verify=verify, env=bench.env,
            )


def rsync_fanout(bench):
    """What a script with rsync does: one process per target, all at once."""
    for count in (1, 4):
        hosts = [f"host{n}" for n in range(1, count + 1)]

        def prepare(hosts=hosts):
            for host in hosts:
                bench.hosts.empty(host)

        def verify(hosts=hosts):
            wrong = [(h, same_bytes(bench.hosts.sr(h) / "golden.vhd", bench.pair.vhd("v2"))) for h in hosts]
            return "; ".join(f"{h}: {w}" for h, w in wrong if w) or None

        yield Step(
            f"rsync fanout full {count}", f"rsync -W full, {count} at once", None,
            parallel=[rsync_command(bench, ["-W"], h) for h in hosts], prepare=prepare, verify=verify,
        )


FULL = {name: rsync_full for name in RSYNC_COMPRESSION}
DELTA = {**{name: rsync_delta for name in RSYNC_COMPRESSION}, "zsync": zsync_delta, "casync": casync_delta, "borg": borg_delta}
PROGRAMS = {
    **{name: ["rsync"] for name in RSYNC_COMPRESSION}, "zsync": ["zsync", "zsyncmake"], "casync": ["casync"], "borg": ["borg"],
}


def unavailable(peer):
    """Why a peer cannot be run here, or None."""
    missing = [p for p in PROGRAMS[peer] if not shutil.which(p)]
    if missing:
        return f"not installed: {', '.join(missing)}"
    if peer in RSYNC_COMPRESSION and not rsync_supports(RSYNC_COMPRESSION[peer]):
        return f"this rsync lacks {RSYNC_COMPRESSION[peer][1]}"
    return None


def versions(goldwire):
    rows = {
        "rsync": version_of("rsync", "--version"),
        "zsync": version_of("zsync", "-V"),
        "casync": version_of("casync", "--version"),
        "borg": version_of("borg", "--version"),
        "ssh": version_of("ssh", "-V"),
        "qemu-img": version_of("qemu-img", "--version"),
        "goldwire": version_of(str(goldwire), "--version") if Path(goldwire).exists() else None,
    }
    return {name: text or "not installed" for name, text in rows.items()}
