"""The tools that keep versions of a disk: how each takes one in and gives one back.

A keeper has a place of its own below the run's folder. `put(number)` and `get(number, target)` are commands that are
measured; what they need before is not. All read the same sparse raw disks, from the page cache unless the bench was
told otherwise.
"""

import os
import shutil
from pathlib import Path

from .generations import CHUNK
from .peers import version_of


class Keeper:
    """One tool. `note` says what of it is not quite what the others do."""

    key = name = note = ""
    programs = ()

    def __init__(self, place, generations):
        self.place, self.generations = Path(place), generations
        self.env, self.cwd = {}, None

    @classmethod
    def unavailable(cls):
        missing = [p for p in cls.programs if not shutil.which(p)]
        return f"not installed: {', '.join(missing)}" if missing else None

    def raw(self, number):
        return str(self.generations.raw(number))

    def ready(self, run):
        """Makes the tool's own place; `run` runs a command that is not measured."""
        self.place.mkdir(parents=True)

    def put(self, number):
        raise NotImplementedError

    def get(self, number, target):
        raise NotImplementedError

    def found(self, target):
        """Where `get` has put the disk."""
        return Path(target)


class Goldwire(Keeper):
    key, name = "goldwire", "goldwire"
    note = "read back before a version has its name; what was there is proven before it is relied on"

    def __init__(self, place, generations, binary, env):
        super().__init__(place, generations)
        self.binary, self.env = str(binary), env

    @property
    def store(self):
        return self.place / "store"

    def ready(self, run):
        super().ready(run)
        run([self.binary, "store", "init", str(self.store)])

    def put(self, number):
        return [self.binary, "image", "publish", "golden", self.raw(number), "--store", str(self.store), "--note", f"generation {number}"]

    def get(self, number, target, root=None):
        return [self.binary, "image", "export", root or "golden", "--store", str(self.store), f"{target}"]

    def verify(self, root):
        return [self.binary, "image", "verify", root, "--store", str(self.store)]


class Borg(Keeper):
    programs = ("borg",)
    chunker, compression = "", ""

    def ready(self, run):
        super().ready(run)
        self.env = {
            "BORG_BASE_DIR": str(self.place / "base"), "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
            "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
        }
        run(["borg", "init", "-e", "none", str(self.repository)], env=self.env)

    @property
    def repository(self):
        return self.place / "repository"

    def put(self, number):
        self.cwd = str(self.generations.raw(number).parent)
        options = [*(["--chunker-params", self.chunker] if self.chunker else []), *(["-C", self.compression] if self.compression else [])]
        return ["borg", "create", *options, f"{self.repository}::{number}", "golden.raw"]

    def get(self, number, target):
        Path(target).mkdir()
        self.cwd = str(target)
        return ["borg", "extract", "--sparse", f"{self.repository}::{number}"]

    def found(self, target):
        return Path(target) / "golden.raw"


class BorgFixed(Borg):
    key, name, note = "borg-fixed", "borg, 64 KiB, plain", "chunks as ours, not compressed"
    chunker, compression = "fixed,65536", "none"


class BorgUsual(Borg):
    key, name, note = "borg", "borg as it comes", "chunks of about 2 MiB by content, lz4"


class Restic(Keeper):
    key, name, note = "restic", "restic as it comes", "chunks of about 1 MiB by content, zstd, encrypted"
    programs = ("restic",)

    def ready(self, run):
        super().ready(run)
        self.env = {
            "RESTIC_REPOSITORY": str(self.place / "repository"), "RESTIC_PASSWORD": "bench",
            "RESTIC_CACHE_DIR": str(self.place / "cache"),
        }
        run(["restic", "init"], env=self.env)

    def put(self, number):
        self.cwd = str(self.generations.raw(number).parent)
        return ["restic", "backup", "--force", "--tag", str(number), "golden.raw"]

    def get(self, number, target):
        return ["restic", "restore", "latest", "--tag", str(number), "--target", str(target), *(["--sparse"] if self.is_sparse() else [])]

    @staticmethod
    def is_sparse():
        """`restore --sparse` came with 0.15."""
        words = (version_of("restic", "version") or "").split()
        return len(words) > 1 and tuple(int(n) for n in words[1].split(".")[:2] if n.isdigit()) >= (0, 15)

    def found(self, target):
        # It may keep the path that it was given, or the whole one.
        return next(Path(target).rglob("golden.raw"), Path(target) / "golden.raw")


class Casync(Keeper):
    key, name, note = "casync", "casync, 64 KiB", "chunks of about 64 KiB by content, zstd"
    programs = ("casync",)

    @property
    def chunks(self):
        return self.place / "chunks.castr"

    def put(self, number):
        return ["casync", "make", "--chunk-size=65536", "--compression=zstd", f"--store={self.chunks}", str(self.place / f"{number}.caibx"), self.raw(number)]

    def get(self, number, target):
        return ["casync", "extract", f"--store={self.chunks}", str(self.place / f"{number}.caibx"), str(target)]


class Plain(Keeper):
    key, name, note = "cp", "files, cp --sparse", "a file for each version; nothing is shared, synced or checked"

    def put(self, number):
        return ["cp", "--sparse=always", self.raw(number), str(self.place / f"{number}.raw")]

    def get(self, number, target):
        return ["cp", "--sparse=always", str(self.place / f"{number}.raw"), str(target)]


PEERS = {keeper.key: keeper for keeper in (BorgFixed, BorgUsual, Restic, Casync, Plain)}


def allocated(folder):
    """Bytes of the medium that everything below `folder` takes; what has several names counts once."""
    seen, total = set(), 0
    for at, folders, files in os.walk(folder):
        for name in files + folders:
            data = os.lstat(os.path.join(at, name))
            if (data.st_dev, data.st_ino) not in seen:
                seen.add((data.st_dev, data.st_ino))
                total += data.st_blocks * 512
    return total


def runs_of(store, root):
    """The runs (first chunk, count, pack, first slot) of a version, from its map (docs/store-format.md)."""
    page, runs = 4096, []
    data = (Path(store) / "versions" / root / "map").read_bytes()
    for at in range(page, len(data), page):
        count = int.from_bytes(data[at + 8 : at + 12], "little")
        for start in range(at + 12, at + 12 + 20 * count, 20):
            runs.append(
                (
                    int.from_bytes(data[start : start + 8], "little"),
                    *(int.from_bytes(data[start + n : start + n + 4], "little") for n in (8, 12, 16)),
                )
            )
    return runs


def pieces(runs, size=1 << 20):
    """In how many pieces of packs an aligned read of `size` bytes lies, on average over those that touch data."""
    per_read = size // CHUNK
    touched = {}
    for first, count, _, _ in runs:
        for read in range(first // per_read, (first + count - 1) // per_read + 1):
            touched[read] = touched.get(read, 0) + 1
    return sum(touched.values()) / len(touched) if touched else 0.0
