"""Where a bench works, and on what machine."""

import datetime
import os
import platform
import tempfile
from pathlib import Path

GIB = 1 << 30


def free_bytes(folder):
    state = os.statvfs(folder)
    free = state.f_bavail * state.f_frsize
    if is_tmpfs(folder):
        # What is written there is memory, which others may want as well.
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = min(free, int(line.split()[1]) * 1024 - GIB)
    return free


def is_tmpfs(folder):
    best = ("", "")
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount, kind = line.split()[:3]
        if os.path.realpath(folder).startswith(mount) and len(mount) >= len(best[0]):
            best = (mount, kind)
    return best[1] == "tmpfs"


def default_work(wanted):
    """A folder in memory if `wanted` bytes are free there, so that no disk's speed is measured, else on a disk."""
    for folder in ("/dev/shm", tempfile.gettempdir()):
        if os.path.isdir(folder) and os.access(folder, os.W_OK) and free_bytes(folder) >= wanted:
            return Path(folder) / f"gwbench-{os.getuid()}"
    return Path(tempfile.gettempdir()) / f"gwbench-{os.getuid()}"


def machine(work, cpu_method, versions):
    """What a reader of the figures wants to know."""
    model = next((l.split(":", 1)[1].strip() for l in Path("/proc/cpuinfo").read_text().splitlines() if l.startswith("model name")), platform.machine())
    memory_kib = next(int(l.split()[1]) for l in Path("/proc/meminfo").read_text().splitlines() if l.startswith("MemTotal:"))
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "cores": len(os.sched_getaffinity(0)),
        "cpu": model,
        "memory_gib": round(memory_kib / (1 << 20), 1),
        "kernel": platform.release(),
        "work_on": "tmpfs" if is_tmpfs(work) else "disk",
        "load_before": round(os.getloadavg()[0], 2),
        "niceness": os.nice(0),
        "cpu_method": cpu_method,
        "versions": versions,
    }


def describe(facts):
    """The same as lines."""
    busy = "; THE MACHINE WAS BUSY, timings are not to be quoted" if facts["load_before"] > 0.5 else ""
    return [
        f"{facts['date']}; {facts['cores']} cores ({facts['cpu']}), {facts['memory_gib']} GiB, Linux {facts['kernel']}, work on {facts['work_on']}",
        f"load before the first run {facts['load_before']}, niceness {facts['niceness']}{busy}",
        "; ".join(f"{name}: {text}" for name, text in facts["versions"].items()),
    ]
