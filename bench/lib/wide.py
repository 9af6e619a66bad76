"""The wide disk: 2 TiB, sparse, as wide for goldwire as one with 100 GiB allocated, yet small enough to keep.

What makes a disk heavy for goldwire is the number of 64 KiB chunks that are not zero (each has an id in the
tree), and the number of extents. 100 GiB are 1,638,400 chunks. To have them all without writing 100 GiB, only
one 4 KiB page of each chunk is written, and the rest of the chunk stays a hole: 6.4 GiB of file. Every page is
different, so every chunk has an id of its own. The chunks lie in runs of 32 (2 MiB, the unit in which a VHD
allocates), and the runs are spread evenly over the 2 TiB, so that no part of the tree is empty.
`fallocate` would not do: unwritten extents read as zeros, and chunks of zeros have no id.

As each chunk is an extent of its own, a sparse reader sees 1.6 million extents: the worst case of 100 GiB
rather than the usual one.

A file of 1.6 million extents is unkind to the file system below: to delete one can take a quarter of an hour where
freed blocks are discarded at once. When the bench is root, the source therefore lives in an ext4 of its own inside a
preallocated file, which goes in one piece. The target gets a file system that promises room for the 100 GiB in full, so
that a tool that asks for them finds them: a tmpfs if memory suffices (twice 6.4 GiB, old disk and new), otherwise an
ext4 whose first part is preallocated. What is really written is watched, and the run is stopped before memory or disk
is full.
"""

import contextlib
import os
import random
import struct
import subprocess
from pathlib import Path

from .pair import tool

GIB = 1 << 30
CHUNK = 64 << 10
PAGE = 4 << 10
RUN_CHUNKS = 32
DISK_BYTES = 2048 * GIB
FREE_BYTES_MIN = 4 * GIB
MEMORY_BYTES_MIN = 3 * GIB // 2


def chunk_offsets(allocated_gib):
    runs = allocated_gib * GIB // (CHUNK * RUN_CHUNKS)
    stride = DISK_BYTES // runs // CHUNK * CHUNK
    for run in range(runs):
        for chunk in range(RUN_CHUNKS):
            yield run * stride + chunk * CHUNK


def page(rng_page, number, generation):
    return struct.pack("<QQ", number, generation) + rng_page[16:]


def write(path, allocated_gib):
    body = random.Random(7).randbytes(PAGE)
    with open(path, "wb", buffering=0) as f:
        f.truncate(DISK_BYTES)
        for number, offset in enumerate(chunk_offsets(allocated_gib)):
            os.pwrite(f.fileno(), page(body, number, 1), offset)


def update(path, allocated_gib):
    """Changes one chunk in a hundred."""
    body = random.Random(8).randbytes(PAGE)
    with open(path, "r+b", buffering=0) as f:
        for number, offset in enumerate(chunk_offsets(allocated_gib)):
            if number % 100 == 0:
                os.pwrite(f.fileno(), page(body, number, 2), offset)


def compare(result, wanted):
    """None, or what is wrong: walks the data of both sparse files, so that neither may hold more."""
    if not Path(result).exists():
        return f"{Path(result).name} is not there"
    with open(result, "rb", buffering=0) as a, open(wanted, "rb", buffering=0) as b:
        if os.fstat(a.fileno()).st_size != os.fstat(b.fileno()).st_size:
            return f"size {os.fstat(a.fileno()).st_size}, not {os.fstat(b.fileno()).st_size}"
        for one, other in ((a, b), (b, a)):
            for offset, length in extents(one.fileno()):
                if os.pread(one.fileno(), length, offset) != os.pread(other.fileno(), length, offset):
                    return f"differs in the {length} bytes at {offset}"
    return None


def extents(fd):
    at = 0
    while True:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            return
        end = os.lseek(fd, at, os.SEEK_HOLE)
        while at < end:
            yield at, min(end - at, 4 << 20)
            at += min(end - at, 4 << 20)


@contextlib.contextmanager
def folders(folder, allocated_gib):
    """(a folder for the source, one for the targets, a note): on file systems of their own, if possible."""
    source, target = Path(folder) / "source", Path(folder) / "target"
    source.mkdir()
    target.mkdir()
    mounted = []
    data = allocated_gib * GIB // 16
    try:
        if os.geteuid() != 0:
            yield source, target, "both disks on the work file system: a target that asks for its full size may refuse"
            return
        mount_ext4(source, int(1.3 * data) + GIB, int(1.3 * data) + GIB)
        mounted.append(source)
        if available_memory() >= 2.2 * data + 4 * GIB:
            size = f"size={2 * allocated_gib + 20}G,mode=755"
            tool(["mount", "-t", "tmpfs", "-o", size, "gwbench", str(target)], timeout=60)
            note = "target on a tmpfs of its own"
        else:
            mount_ext4(target, (2 * allocated_gib + 20) * GIB, int(2.4 * data) + GIB)
            note = "target on an ext4 of its own"
        mounted.append(target)
        yield source, target, note
    finally:
        for path in reversed(mounted):
            for attempt in (["umount"], ["umount", "-l"]):
                if subprocess.run([*attempt, str(path)], timeout=300, stderr=subprocess.DEVNULL).returncode == 0:
                    break
        for path in (source, target):
            path.with_suffix(".ext4").unlink(missing_ok=True)


def mount_ext4(mount, size, preallocated):
    backing = mount.with_suffix(".ext4")
    with open(backing, "wb") as f:
        f.truncate(size)
        os.posix_fallocate(f.fileno(), 0, preallocated)
    tool(["mkfs.ext4", "-q", "-m", "0", "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1", str(backing)])
    tool(["mount", "-o", "loop,nodiscard", str(backing), str(mount)], timeout=60)


def available_memory():
    with open("/proc/meminfo") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith("MemAvailable:"))


def guard(folder):
    """For measure.run: stops a run that would fill the disk."""

    def check():
        state = os.statvfs(folder)
        if state.f_bavail * state.f_frsize < FREE_BYTES_MIN:
            return "stopped: it writes far more than the disk's data (whole chunks?), the disk is nearly full"
        if available_memory() < MEMORY_BYTES_MIN:
            return "stopped: it writes far more than the disk's data (whole chunks?), memory is nearly full"
        return None

    return check
