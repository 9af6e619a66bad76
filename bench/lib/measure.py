"""Measuring one run: wall clock, CPU of everything that took part, peak memory of every process.

All processes of a run, the sshd listeners and what they start included, live in one cgroup of the bench's own
(version 2 of the interface, which needs no controller for this). The cgroup's `cpu.stat` gives the CPU time of
all of them exactly, including those too short-lived to be seen otherwise, and its `cgroup.procs` lists them.

Where no cgroup can be made (not root), the bench makes itself the reaper of orphans, so that every process of
a run stays its descendant, and sums what it saw of each. A process that ends between two looks then loses up
to one interval of CPU time; the table says which method was used.

Peak memory is VmHWM (the kernel's own high-water mark), read every 20 ms: growth during the last 20 ms of a
process's life can be missed.
"""

import ctypes
import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

INTERVAL_S = 0.02
TICKS = os.sysconf("SC_CLK_TCK")
CONNECT_NAME = "gwb-connect"  # our own ProxyCommand (connect.py): not part of any tool
PR_SET_CHILD_SUBREAPER = 36


@dataclass
class Run:
    """What one run cost."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    sent: int = 0  # bytes on the wire, both directions; `sent` by the side that opened the connection
    received: int = 0
    connections: int = 0
    processes: dict = field(default_factory=dict)  # name -> {"rss": largest, "cpu_s": sum, "count": n}
    returncode: int = 0
    stdout: str = ""
    stderr: str = ""
    notes: list = field(default_factory=list)

    @property
    def moved(self):
        return self.sent + self.received

    @property
    def largest(self):
        """(name, bytes) of the process that needed most memory."""
        if not self.processes:
            return ("?", 0)
        name = max(self.processes, key=lambda n: self.processes[n]["rss"])
        return name, self.processes[name]["rss"]


class Failed(Exception):
    """A run that did not come to its end; the text is the reason that is shown."""


class Group:
    """The processes that are measured."""

    def __init__(self):
        self.path = None
        self.standing = set()  # listeners that live across runs
        self.helpers = set()  # our own meter and delay processes: never counted
        self.children = []

    def __enter__(self):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        for root in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"):
            if not os.path.exists(f"{root}/cgroup.controllers"):
                continue
            own = Path("/proc/self/cgroup").read_text().split("0::", 1)[-1].split("\n")[0]
            # Beside our own group where that is allowed (a delegated user slice), else at the root.
            for base in (root, root + own.rstrip("/")):
                path = Path(base) / f"goldwire-bench-{os.getpid()}"
                try:
                    path.mkdir()
                    subprocess.run(["sh", "-c", f"echo $$ > {path}/cgroup.procs"], check=True, stderr=subprocess.DEVNULL, timeout=10)
                    (path / "cpu.stat").read_text()
                    self.path = path
                    return self
                except (OSError, subprocess.SubprocessError):
                    try:
                        path.rmdir()
                    except OSError:
                        pass
        return self

    def __exit__(self, *_):
        self.standing = set()
        self.clear(0)
        if self.path:
            for _ in range(50):
                try:
                    self.path.rmdir()
                    return
                except OSError:
                    time.sleep(0.1)

    @property
    def method(self):
        return "cgroup (exact)" if self.path else "sampled every 20 ms"

    def spawn(self, argv, standing=True, **popen):
        """Starts a process inside the group."""
        if self.path:
            argv = ["sh", "-c", f'echo $$ > {self.path}/cgroup.procs && exec "$@"', "sh", *argv]
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True, **popen)
        self.children.append(process)
        if standing:
            self.standing.add(process.pid)
        return process

    def pids(self):
        if self.path:
            try:
                return [int(p) for p in (self.path / "cgroup.procs").read_text().split()]
            except OSError:
                return []
        parents = {}
        for pid in os.listdir("/proc"):
            if pid.isdigit():
                stat = read_stat(int(pid))
                if stat:
                    parents.setdefault(stat["ppid"], []).append(int(pid))
        found, todo = [], [p for p in parents.get(os.getpid(), []) if p not in self.helpers]
        while todo:
            pid = todo.pop()
            found.append(pid)
            todo += parents.get(pid, [])
        return found

    def cpu_s(self):
        if not self.path:
            return None
        for line in (self.path / "cpu.stat").read_text().splitlines():
            if line.startswith("usage_usec "):
                return int(line.split()[1]) / 1e6
        return None

    def working(self):
        """Processes that belong to a run, not to the standing servers."""
        return [p for p in self.pids() if p not in self.standing and not is_zombie(p)]

    def clear(self, patience_s):
        """Waits for a run's processes to end, then ends the rest by pid; returns the names of those."""
        deadline = time.monotonic() + patience_s
        while self.working() and time.monotonic() < deadline:
            self.reap()
            time.sleep(0.02)
        left = {p: (read_stat(p) or {"name": "?"})["name"] for p in self.working()}
        for stop in (signal.SIGTERM, signal.SIGKILL):
            for pid in self.working():
                try:
                    os.kill(pid, stop)
                except ProcessLookupError:
                    pass
            for _ in range(50):
                self.reap()
                if not self.working():
                    break
                time.sleep(0.02)
        self.reap()
        return sorted(left.values())

    def reap(self):
        """Collects ended children, the adopted orphans too; Popen objects are asked first, as they keep the
        exit status."""
        self.children = [c for c in self.children if c.poll() is None]
        known = {c.pid for c in self.children} | self.helpers
        for pid in children_of(os.getpid()):
            if pid not in known and is_zombie(pid):
                try:
                    os.waitpid(pid, os.WNOHANG)
                except ChildProcessError:
                    pass


class Sampler(threading.Thread):
    """Looks at every process of the group until told to stop."""

    def __init__(self, group, guard=None):
        super().__init__(daemon=True)
        self.group, self.guard = group, guard
        self.stopping = threading.Event()
        self.seen = {}  # (pid, start) -> {"cpu": ticks, "names": {name: rss}}
        self.before = {}
        self.alarm = None
        for pid in group.pids():
            stat = read_stat(pid)
            if stat:
                self.before[(pid, stat["start"])] = stat["cpu"]

    def run(self):
        rounds = 0
        while not self.stopping.wait(INTERVAL_S):
            self.look()
            rounds += 1
            if self.guard and rounds % 10 == 0 and not self.alarm:
                self.alarm = self.guard()

    def look(self):
        for pid in self.group.pids():
            stat = read_stat(pid)
            if not stat:
                continue
            entry = self.seen.setdefault((pid, stat["start"]), {"cpu": 0, "names": {}, "at": {}})
            entry["cpu"] = stat["cpu"]
            name = stat["name"]
            if name not in entry["names"]:
                entry["at"][name] = host_of(pid)
            entry["names"][name] = max(peak_rss(pid), entry["names"].get(name, 0))

    def summary(self):
        result = {}
        for key, entry in self.seen.items():
            cpu = (entry["cpu"] - self.before.get(key, 0)) / TICKS
            if key in self.before and cpu == 0:
                continue  # a standing listener that did nothing
            # A process that was `sh` before it became `rsync` is called by its last name, but what the
            # earlier program needed is not the later one's peak (exec starts a new high-water mark).
            name = list(entry["names"])[-1]
            if name == CONNECT_NAME:
                continue
            line = result.setdefault(name + entry["at"][name], {"rss": 0, "cpu_s": 0.0, "count": 0})
            line["rss"] = max(line["rss"], entry["names"][name])
            line["cpu_s"] = round(line["cpu_s"] + cpu, 2)
            line["count"] += 1
        return result


def run(group, meter, argv, timeout_s, env=None, cwd=None, guard=None, parallel=None):
    """Runs `argv` (or all of `parallel` at once) to the end and returns what it cost. `guard()` may return a
    reason to stop."""
    meter.take()
    commands = parallel or [argv]
    # ssh starts its ProxyCommand with $SHELL; bash takes the socket it gets there for a login from the network
    # and would run the user's ~/.bashrc inside the measured group.
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "SHELL": "/bin/sh", **(env or {})}
    environment.pop("BASH_ENV", None)
    environment.pop("ENV", None)
    sampler = Sampler(group, guard)
    cpu_before = group.cpu_s()
    result = Run()
    outputs = [(tempfile.TemporaryFile(), tempfile.TemporaryFile()) for _ in commands]
    sampler.start()
    begin = time.monotonic()
    reason = None
    try:
        processes = [
            group.spawn(c, standing=False, stdout=o, stderr=e, env=environment, cwd=cwd) for c, (o, e) in zip(commands, outputs)
        ]
        for process in processes:
            while reason is None:
                try:
                    process.wait(0.2)
                    break
                except subprocess.TimeoutExpired:
                    if time.monotonic() - begin > timeout_s:
                        reason = f"stopped after {timeout_s:.0f} s"
                    elif sampler.alarm:
                        reason = sampler.alarm
        result.wall_s = time.monotonic() - begin
        left = group.clear(0 if reason else 5)
        if left and not reason:
            result.notes.append(f"still running 5 s after the end: {', '.join(left)}")
    except BaseException:
        group.clear(0)
        raise
    finally:
        sampler.stopping.set()
        sampler.join()
    for connection in meter.take():
        result.sent += connection["sent"]
        result.received += connection["received"]
        result.connections += 1
        result.cpu_s -= connection["helper_cpu"]
    result.processes = sampler.summary()
    cpu_after = group.cpu_s()
    if cpu_after is None:
        result.cpu_s = sum(p["cpu_s"] for p in result.processes.values())
    else:
        result.cpu_s += cpu_after - cpu_before
    result.returncode = max((p.returncode or 0 for p in processes), key=abs) if not reason else -1
    for out, err in outputs:
        result.stdout += read_tail(out)
        result.stderr += read_tail(err)
    if reason:
        raise Failed(f"{reason}; {last_words(result)}".rstrip("; "))
    if result.returncode:
        raise Failed(f"exit {result.returncode}: {last_words(result)}")
    return result


def last_words(result):
    # goldwire's own words first: its events say what failed and why.
    for line in result.stdout.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and "message" in event:
            return ": ".join([str(event["message"]), *map(str, event.get("causes") or [])])[:300]
    text = " / ".join(l.strip() for l in result.stderr.strip().splitlines()[-3:])
    return text[-300:] or " ".join(result.stdout.split())[-200:]


def read_tail(stream, limit=4 << 20):
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - limit))
    with stream:
        return stream.read().decode(errors="replace")


def read_stat(pid):
    try:
        with open(f"/proc/{pid}/stat", "rb") as f:
            text = f.read()
    except OSError:
        return None
    # The name stands in parentheses and may hold spaces and parentheses itself.
    end = text.rindex(b")")
    fields = text[end + 2 :].split()
    return {
        "name": text[text.index(b"(") + 1 : end].decode(errors="replace"),
        "state": fields[0],
        "ppid": int(fields[1]),
        "cpu": int(fields[11]) + int(fields[12]),
        "start": int(fields[19]),
    }


def is_zombie(pid):
    stat = read_stat(pid)
    return stat is None or stat["state"] in (b"Z", b"X")


def children_of(pid):
    found = []
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return found
    for task in tasks:
        try:
            found += [int(p) for p in Path(f"/proc/{pid}/task/{task}/children").read_text().split()]
        except OSError:
            pass
    return found


def host_of(pid):
    """"@host1" for what sshd started at a host of the bench (it sets GWBENCH_HOST there), else ""."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as f:
            for word in f.read().split(b"\0"):
                if word.startswith(b"GWBENCH_HOST="):
                    return "@" + word[13:].decode(errors="replace")
    except OSError:
        pass
    return ""


def peak_rss(pid):
    try:
        with open(f"/proc/{pid}/status", "rb") as f:
            for line in f:
                if line.startswith(b"VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0
