"""The pair of disks that every tool copies: v1, and v2 as it looks after an update.

Both are ext4 file systems on a whole disk, stored as dynamic VHD. v1 is filled from the machine's own
/usr (real programs, libraries, documents, locale data), because synthetic filler flatters or punishes
compressors and deduplicators in ways that real files do not. v2 is v1 after an update of a few packages.

**The update** follows the pair of the project's earlier measurements (1,519 files / 121 MiB, rewritten with
debugfs `rm` + `write`, one file after the other), so that results can be set beside those. There the disks
differed by 86 MiB in 4 KiB blocks, 205 MiB in 64 KiB, 858 MiB in 2 MiB, and a 4 KiB deduplicator with
zstd -3 had to send 32.3 MB. What decides these figures is where the files lie (packages are neighbours on
disk, so files are picked in runs) and how their content changes. Shares are of files:

  33 %  rebuilt   same length; a new build id, and 4 changed bytes every ~32 KiB (a version, an address)
  37 %  patched   as rebuilt, and 1 to 3 pieces of 16 B to 2 KiB inserted, so that all behind it is shifted
  18 %  edited    1 to 4 lines added or replaced: configuration, documents, scripts
  12 %  new       other content of about the same size, from files of /usr that are not on the disk

Changed blocks need not move: a file that is removed and written again mostly gets its old blocks back, as on
a disk that is nearly full. Nothing of this depends on the tools that are measured; the true change at
several granularities is printed beside the results so that a reader can judge the pair.

Everything is drawn from one seed and the file system's times and uuids are pinned, so that the bytes are
the same on each run as long as the machine's /usr is.
"""

import hashlib
import json
import os
import random
import shutil
import struct
import subprocess
from pathlib import Path

MIB = 1 << 20
VERSION = 6  # part of the cache key: raise it when this file changes what it makes

# Only what a distribution installs; /usr/local is the site's own.
ROOTS = ["/usr/bin", "/usr/sbin", "/usr/lib", "/usr/libexec", "/usr/share", "/usr/include"]
FILE_BYTES_MAX = 48 * MIB
# Shares of the four kinds of change, in files (see above).
KINDS = [("rebuilt", 0.33), ("patched", 0.37), ("edited", 0.18), ("new", 0.12)]
# An update touches some packages, and in these some files: the neighbourhood, in files, and the share in it.
NEIGHBOURHOOD_FILES = 64
NEIGHBOURHOOD_SHARE = 0.05

TIME_V1 = 1_700_000_000
TIME_V2 = 1_702_592_000
FS_UUID = "5b1d7c1e-6f0a-4a52-9d3c-8f1e2a4b6c8d"


class Pair:
    """The finished pair: paths and what is known about it."""

    def __init__(self, folder, facts):
        self.folder = Path(folder)
        self.facts = facts

    def vhd(self, version):
        return self.folder / version / "golden.vhd"

    def raw(self, version):
        """The raw form, made when a tool asks for it (borg): sparse, about as large as the VHD."""
        path = self.folder / version / "golden.raw"
        if not path.exists():
            partial = path.with_suffix(".partial")
            tool(["qemu-img", "convert", "-f", "vpc", "-O", "raw", str(self.vhd(version)), str(partial)])
            partial.rename(path)
        return path

    def drop_raw(self):
        for version in ("v1", "v2"):
            (self.folder / version / "golden.raw").unlink(missing_ok=True)


def obtain(work, quick, seed, say):
    """The pair from the cache below `work`, or made now."""
    scale = 10 if quick else 1
    wanted = {
        "version": VERSION,
        "seed": seed,
        "disk_bytes": 3072 * MIB // scale // MIB * MIB,
        "used_bytes": 2020 * MIB // scale,
        "update_files": 1519 // scale,
        "update_bytes": 121 * MIB // scale,
    }
    return Pair(*cached(Path(work), "pair", wanted, build, say))


def cached(work, what, wanted, build, say):
    """The folder of what `build(folder, wanted, say)` makes, from the cache below `work` or made now, and its facts."""
    key = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:12]
    folder = work / f"{what}-{key}"
    if (folder / "facts.json").exists():
        say(f"{what}: cached in {folder}")
        return folder, json.loads((folder / "facts.json").read_text())
    building = work / f"{what}-{key}.building"
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        facts = build(building, wanted, say)
        (building / "facts.json").write_text(json.dumps(facts, indent=1))
        shutil.rmtree(folder, ignore_errors=True)
        building.rename(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return folder, facts


def build(folder, wanted, say):
    for version in ("v1", "v2"):
        (folder / version).mkdir()
    rng = random.Random(wanted["seed"])
    say("pair: choosing files from /usr")
    chosen, spare = choose_files(wanted["used_bytes"], rng)
    filler = wanted["used_bytes"] - sum(-(-f.size // 4096) * 4096 + 300 for f in chosen)
    if filler > 16 * MIB:
        say(f"pair: /usr is too small, {filler // MIB} MiB are seeded data")
        chosen += make_filler(folder / "filler", filler, wanted["seed"])

    v1_raw, v2_raw = folder / "v1.raw", folder / "v2.raw"
    say(f"pair: writing v1, {len(chosen)} files")
    make_filesystem(v1_raw, wanted["disk_bytes"])
    debugfs(v1_raw, script_v1(chosen), TIME_V1)
    shutil.rmtree(folder / "filler", ignore_errors=True)

    copy_sparse(v1_raw, v2_raw)
    updated = choose_update(chosen, wanted["update_files"], wanted["update_bytes"], rng)
    say(f"pair: writing v2, {len(updated)} files rewritten")
    kinds = rewrite(v2_raw, updated, spare, folder / "update", wanted["seed"])
    shutil.rmtree(folder / "update")

    say("pair: counting what differs")
    facts = dict(wanted)
    facts["files"] = len(chosen)
    facts["rewritten_files"] = len(updated)
    facts["rewritten_bytes"] = sum(f.size for f in updated)
    facts["rewritten_kinds"] = kinds
    facts.update(true_change(v1_raw, v2_raw))

    for version, raw, stamp in (("v1", v1_raw, TIME_V1), ("v2", v2_raw, TIME_V2)):
        vhd = folder / version / "golden.vhd"
        tool(["qemu-img", "convert", "-f", "raw", "-O", "vpc", "-o", "force_size", str(raw), str(vhd)])
        raw.unlink()
        pin_vhd(vhd, stamp, version)
        os.utime(vhd, (stamp, stamp))
        facts[f"{version}_vhd_bytes"] = vhd.stat().st_size
    return facts


class File:
    """A file of the disk: where its bytes come from, and where it is on the disk."""

    __slots__ = ("source", "folder", "name", "size")

    def __init__(self, source, folder, name, size):
        self.source, self.folder, self.name, self.size = source, folder, name, size


def choose_files(budget, rng):
    """(files for the disk in the order of their folders, a few other files as a supply of new content)."""
    packages = {}
    for root in ROOTS:
        for folder, names, files in os.walk(root):
            names.sort()
            for name in sorted(files):
                path = f"{folder}/{name}"
                try:
                    stat = os.lstat(path)
                except OSError:
                    continue
                # debugfs reads commands: what would need quoting is left out.
                plain = path.isascii() and not any(c in path for c in " \"'\\\t\n#")
                if plain and (stat.st_mode & 0o170000) == 0o100000 and 0 < stat.st_size <= FILE_BYTES_MAX:
                    if os.access(path, os.R_OK):
                        package = "/".join(path.split("/")[:5])
                        packages.setdefault(package, []).append(File(path, folder, name, stat.st_size))
    salt = rng.getrandbits(64)
    # A stable draw of whole packages: a machine that gains one file keeps nearly the same disk.
    order = sorted(packages, key=lambda p: hashlib.sha256(f"{salt} {p}".encode()).digest())
    chosen, spare, used, spare_bytes = [], [], 0, 0
    for package in order:
        for f in packages[package]:
            size = -(-f.size // 4096) * 4096 + 300  # with its share of inodes and folders
            if used + size <= budget:
                chosen.append(f)
                used += size
            elif spare_bytes < budget // 10:
                spare.append(f)
                spare_bytes += size
    chosen.sort(key=lambda f: (f.folder, f.name))
    spare.sort(key=lambda f: f.source)
    return chosen, spare or chosen


def make_filler(folder, budget, seed):
    """Files of mixed compressibility for machines with a small /usr: text, records and noise in thirds."""
    folder.mkdir()
    rng = random.Random(seed + 1)
    words = [bytes(rng.choice(b"etaoinshrdlucmfwypvbgkqjxz") for _ in range(rng.randint(2, 9))) for _ in range(4000)]
    files, left, number = [], budget, 0
    while left > 0:
        size = min(left, rng.choice([6_000, 20_000, 60_000, 250_000, 1_500_000]))
        kind = number % 3
        if kind == 0:
            data = b" ".join(rng.choices(words, k=size // 6))[:size]
        elif kind == 1:
            data = b"".join(struct.pack("<IIHH", i, rng.getrandbits(12), 7, rng.getrandbits(4)) for i in range(size // 12 + 1))[:size]
        else:
            data = rng.randbytes(size)
        path = folder / f"f{number:06}"
        path.write_bytes(data)
        files.append(File(str(path), f"/usr/filler/{number // 200:03}", path.name, len(data)))
        left -= max(len(data), 4096)
        number += 1
    return files


def choose_update(files, count, budget, rng):
    """`count` files of together `budget` bytes, a few in each of some neighbourhoods."""
    picked, size = {}, 0
    starts = list(range(0, len(files), NEIGHBOURHOOD_FILES))
    rng.shuffle(starts)
    # Keeping every prefix near the wanted mean size makes both totals come out right whatever /usr holds.
    slack = budget // 60
    # One pass over a share of the neighbourhoods is enough on the full pair; the small one needs more.
    for start in starts * 16:
        for index in range(start, min(start + NEIGHBOURHOOD_FILES, len(files))):
            if len(picked) == count:
                break
            if index in picked or rng.random() > NEIGHBOURHOOD_SHARE:
                continue
            expected = budget * (len(picked) + 1) / count
            if size + files[index].size <= expected + slack and size + files[index].size >= expected - 2 * slack:
                picked[index] = files[index]
                size += files[index].size
    return [picked[i] for i in sorted(picked)]


# --- the file system ------------------------------------------------------------------------------


def make_filesystem(raw, size):
    with open(raw, "wb") as f:
        f.truncate(size)
    tool(
        ["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-U", FS_UUID,
         "-E", f"hash_seed={FS_UUID},lazy_itable_init=0", "-O", "^metadata_csum_seed", str(raw)],
        env={"E2FSPROGS_FAKE_TIME": str(TIME_V1)},
    )


def script_v1(files):
    lines, made, current = [], set(), None
    for f in files:
        if f.folder != current:
            parts = f.folder.strip("/").split("/")
            for depth in range(1, len(parts) + 1):
                folder = "/" + "/".join(parts[:depth])
                if folder not in made:
                    made.add(folder)
                    lines += [f"cd {os.path.dirname(folder)}", f"mkdir {parts[depth - 1]}"]
            lines.append(f"cd {f.folder}")
            current = f.folder
        lines.append(f"write {f.source} {f.name}")
    return lines


def rewrite(raw, files, spare, scratch, seed, now=TIME_V2):
    """Rewrites each file as `rm` + `write`, in the order of the disk, as a package manager walks a package."""
    scratch.mkdir()
    counts = {kind: 0 for kind, _ in KINDS}
    lines = []
    for number, f in enumerate(files):
        rng = random.Random(f"{seed} {f.folder}/{f.name}")
        kind = rng.choices([k for k, _ in KINDS], [share for _, share in KINDS])[0]
        counts[kind] += 1
        # The disk itself is the truth: /usr's own file may have changed since v1 was made in this run.
        path = scratch / f"{number:05}"
        path.write_bytes(changed(Path(f.source).read_bytes() if os.path.exists(f.source) else rng.randbytes(f.size), kind, spare, rng))
        lines += [f"cd {f.folder}", f"rm {f.name}", f"write {path} {f.name}"]
    debugfs(raw, lines, now)
    return counts


def changed(old, kind, spare, rng):
    """The content of a file after the update."""
    if kind == "new":
        wanted = max(1, int(len(old) * rng.uniform(0.9, 1.1)))
        data = bytearray()
        while len(data) < wanted:
            try:
                data += Path(rng.choice(spare).source).read_bytes()
            except OSError:
                data += rng.randbytes(4096)
        return bytes(data[:wanted])

    data = bytearray(old)
    if kind == "edited":
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(data) + 1)
            line = b"# changed by the update %d: %s\n" % (rng.getrandbits(32), rng.randbytes(8).hex().encode())
            if rng.random() < 0.5:
                data[at:at] = line
            else:
                data[at : at + len(line)] = line
        return bytes(data)

    # An ELF file's build id and a gzip's time are near the front; short files have only this.
    front = min(len(data), 20)
    at = rng.randrange(max(1, min(len(data), 1024) - front + 1))
    data[at : at + front] = rng.randbytes(front)
    at = rng.randrange(32 << 10)
    while at + 4 <= len(data):
        data[at : at + 4] = rng.randbytes(4)
        at += int(rng.expovariate(1 / (32 << 10))) + 4
    if kind == "patched":
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(data) + 1)
            size = int(2 ** rng.uniform(4, 11))
            # New code looks like old code: most of an insertion resembles what is elsewhere in the file.
            start = rng.randrange(max(1, len(data) - size + 1))
            piece = bytearray(data[start : start + size] or rng.randbytes(size))
            for i in range(0, len(piece), 7):
                piece[i] = rng.getrandbits(8)
            data[at:at] = piece
    return bytes(data)


def debugfs(raw, lines, now):
    script = raw.with_suffix(".debugfs")
    script.write_text("\n".join(lines) + "\n")
    try:
        out = tool(["debugfs", "-w", "-f", str(script), str(raw)], env={"E2FSPROGS_FAKE_TIME": str(now)})
    finally:
        script.unlink()
    # debugfs goes on after a failed command and exits 0; its answers are the only sign.
    bad = [l for l in out.splitlines() if l.strip() and not l.startswith(("debugfs", "Allocated inode:"))]
    if bad:
        raise RuntimeError(f"debugfs: {len(bad)} complaints, the first: {bad[0]}")


def pin_vhd(path, stamp, salt):
    """Replaces the random uuid and the clock in the VHD footer (end of file, and its copy at 0)."""
    with open(path, "r+b") as f:
        for at in (0, path.stat().st_size - 512):
            f.seek(at)
            footer = bytearray(f.read(512))
            if footer[:8] != b"conectix":
                raise RuntimeError(f"{path}: no VHD footer at {at}")
            footer[24:28] = struct.pack(">I", stamp - 946_684_800)
            footer[68:84] = hashlib.sha256(f"goldwire bench {salt}".encode()).digest()[:16]
            footer[64:68] = bytes(4)
            footer[64:68] = struct.pack(">I", ~sum(footer) & 0xFFFFFFFF)
            f.seek(at)
            f.write(footer)


def copy_sparse(source, target):
    tool(["cp", "--sparse=always", str(source), str(target)])


# --- what truly differs ----------------------------------------------------------------------------


def true_change(v1_raw, v2_raw):
    """Bytes in blocks that differ at the same offset, per block size; and what a simple 4 KiB deduplicator
    (blocks of v1 at any offset are free) would have to send, plain and through zstd -3."""
    sizes = [4 << 10, 64 << 10, 2 << 20]
    counts = dict.fromkeys(sizes, 0)
    known, fresh = set(), []
    with open(v1_raw, "rb") as a, open(v2_raw, "rb") as b:
        while True:
            x, y = a.read(2 << 20), b.read(2 << 20)
            if not y:
                break
            if any_data(x):
                known.update(hashlib.blake2b(x[i : i + 4096], digest_size=12).digest() for i in range(0, len(x), 4096))
            if x == y:
                continue
            for size in sizes:
                for i in range(0, len(y), size):
                    if x[i : i + size] != y[i : i + size]:
                        counts[size] += size
                        if size == 4096:
                            fresh.append(y[i : i + size])
    moved = [d for d in fresh if d.count(0) != len(d) and hashlib.blake2b(d, digest_size=12).digest() not in known]
    facts = {"change_4k": counts[4 << 10], "change_64k": counts[64 << 10], "change_2m": counts[2 << 20], "fresh_4k": 4096 * len(moved)}
    if shutil.which("zstd"):
        done = subprocess.run(["zstd", "-3", "-c"], input=b"".join(moved), capture_output=True, timeout=300, check=True)
        facts["fresh_4k_zstd"] = len(done.stdout)
    return facts


def any_data(block):
    return block.count(0) != len(block)


def describe(facts):
    """The lines that tell a reader what the pair is."""
    kinds = ", ".join(f"{n} {k}" for k, n in facts["rewritten_kinds"].items())
    lines = [
        f"disk {facts['disk_bytes'] / MIB:.0f} MiB ext4, {facts['files']} files; VHD v1 {facts['v1_vhd_bytes'] / 1e6:.0f} MB, v2 {facts['v2_vhd_bytes'] / 1e6:.0f} MB",
        f"update: {facts['rewritten_files']} files / {facts['rewritten_bytes'] / MIB:.1f} MiB rewritten ({kinds})",
        f"true change: {facts['change_4k'] / MIB:.0f} MiB @4K, {facts['change_64k'] / MIB:.0f} MiB @64K, {facts['change_2m'] / MIB:.0f} MiB @2M",
        f"4 KiB blocks of v2 that v1 has nowhere: {facts['fresh_4k'] / 1e6:.1f} MB"
        + (f", {facts['fresh_4k_zstd'] / 1e6:.1f} MB through zstd -3" if "fresh_4k_zstd" in facts else ""),
    ]
    return lines


def tool(command, env=None, timeout=1800):
    """Runs a program to its end and returns what it printed; its words are the error when it fails."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", timeout=timeout, env={**os.environ, "LC_ALL": "C", **(env or {})},
    )
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed ({done.returncode}): {done.stdout.strip()[-400:]}")
    return done.stdout
