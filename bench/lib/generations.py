"""The generations of one disk that a store keeps: the first is the pair's v1 (see pair.py), each later one is the
one before it after an update of the same kind, with files, changes and times of its own. They are sparse raw disks,
which every tool here can read.
"""

import hashlib
import os
import random
import shutil
from pathlib import Path

from . import pair
from .pair import MIB

CHUNK = 64 << 10
VERSION = 1  # part of the cache key: raise it when this file changes what it makes
MONTH_S = 30 * 86_400


class Generations:
    """The finished disks: paths and what is known about them."""

    def __init__(self, folder, facts):
        self.folder = Path(folder)
        self.facts = facts

    def raw(self, number):
        """Generation `number`, from 1."""
        return self.folder / f"{number}" / "golden.raw"

    def __len__(self):
        return self.facts["generations"]


def obtain(work, count, scale, seed, kept, say):
    """`count` generations of a disk of 3 GiB / `scale`, from the cache below `work` or made now. `kept`: of how many of
    the newest the distinct chunks are counted beside those of all."""
    wanted = {
        "pair": pair.VERSION,
        "version": VERSION,
        "seed": seed,
        "generations": count,
        "kept": kept,
        "disk_bytes": 3072 * MIB // scale // MIB * MIB,
        "used_bytes": 2020 * MIB // scale,
        "update_files": max(1, 1519 // scale),
        "update_bytes": 121 * MIB // scale,
    }
    return Generations(*pair.cached(Path(work), "generations", wanted, build, say))


def build(folder, wanted, say):
    chosen, spare = pair.choose_files(wanted["used_bytes"], random.Random(wanted["seed"]))
    filler = wanted["used_bytes"] - sum(-(-f.size // 4096) * 4096 + 300 for f in chosen)
    if filler > 16 * MIB:
        say(f"generations: /usr is too small, {filler // MIB} MiB are seeded data")
        chosen += pair.make_filler(folder / "filler", filler, wanted["seed"])
    sets = []
    before = None
    for number in range(1, wanted["generations"] + 1):
        (folder / f"{number}").mkdir()
        raw = folder / f"{number}" / "golden.raw"
        stamp = pair.TIME_V1 + (number - 1) * MONTH_S
        if before is None:
            say(f"generations: writing 1, {len(chosen)} files")
            pair.make_filesystem(raw, wanted["disk_bytes"])
            pair.debugfs(raw, pair.script_v1(chosen), stamp)
        else:
            pair.copy_sparse(before, raw)
            rng = random.Random(wanted["seed"] * 1000 + number)
            updated = pair.choose_update(chosen, wanted["update_files"], wanted["update_bytes"], rng)
            if number % 10 == 0 or wanted["generations"] < 10:
                say(f"generations: writing {number}, {len(updated)} files rewritten")
            pair.rewrite(raw, updated, spare, folder / "update", wanted["seed"] * 1000 + number, stamp)
            shutil.rmtree(folder / "update")
        os.utime(raw, (stamp, stamp))
        sets.append(chunks_of(raw))
        before = raw
    shutil.rmtree(folder / "filler", ignore_errors=True)
    facts = dict(wanted)
    facts["files"] = len(chosen)
    facts["used_chunks"] = [count for count, _ in sets]
    facts["new_chunks"] = [len(after - (sets[at - 1][1] if at else set())) for at, (_, after) in enumerate(sets)]
    facts["distinct_chunks"] = len(set().union(*(found for _, found in sets)))
    facts["distinct_chunks_kept"] = len(set().union(*(found for _, found in sets[-wanted["kept"] :])))
    return facts


def chunks_of(raw):
    """(chunks that are not zero, the set of their digests). Holes are passed over."""
    used, found = 0, set()
    with open(raw, "rb") as f:
        end = os.fstat(f.fileno()).st_size
        at = 0
        while at < end:
            try:
                at = os.lseek(f.fileno(), at, os.SEEK_DATA) // CHUNK * CHUNK
            except OSError:
                break  # no data behind
            f.seek(at)
            block = f.read(min(4 * MIB, end - at))
            for start in range(0, len(block), CHUNK):
                chunk = block[start : start + CHUNK]
                if pair.any_data(chunk):
                    used += 1
                    found.add(hashlib.blake2b(chunk.ljust(CHUNK, b"\0"), digest_size=16).digest())
            at += len(block)
    return used, found


def describe(facts):
    """The lines that tell a reader what the generations are."""
    mib = lambda chunks: chunks * CHUNK / MIB
    new = facts["new_chunks"][1:]
    return [
        f"{facts['generations']} generations of a disk of {facts['disk_bytes'] / MIB:.0f} MiB ext4, {facts['files']} files; "
        f"{mib(facts['used_chunks'][0]):.0f} MiB of it in chunks of 64 KiB that are not zero",
        f"each update rewrites {facts['update_files']} files; new chunks of each: "
        + (f"{mib(min(new)):.0f} to {mib(max(new)):.0f} MiB" if new else "none"),
        f"distinct chunks of all: {mib(facts['distinct_chunks']):.1f} MiB",
    ]
