"""Tables and bars, as text."""

from .pair import MIB


def table(rows, reference):
    """One scenario. `rows`: dicts with key, name, run or reason, verdict. Ratios are to the row `reference`."""
    base = next((r["run"] for r in rows if r["key"] == reference and r["run"]), None)
    header = ["tool", "moved MB", "out/in MB", "wall s", "CPU s", "peak MiB (process)", "x bytes", "x wall", "result"]
    lines = [header]
    for row in rows:
        run = row["run"]
        if run is None:
            lines.append([row["name"], "-", "-", "-", "-", "-", "-", "-", "did not run: " + row["reason"]])
            continue
        name, rss = run.largest
        lines.append(
            [
                row["name"],
                f"{run.moved / 1e6:.1f}" if run.moved else "local",
                f"{run.sent / 1e6:.1f}/{run.received / 1e6:.1f}" if run.moved else "",
                f"{run.wall_s:.2f}",
                f"{run.cpu_s:.2f}",
                f"{rss / MIB:.0f} ({name})",
                f"{run.moved / base.moved:.2f}" if base and base.moved and run.moved else "",
                f"{run.wall_s / base.wall_s:.2f}" if base and base.wall_s else "",
                row["verdict"],
            ]
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(header) - 1)]
    left = {0, 5}
    text = []
    for line in lines:
        cells = [c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths))]
        text.append("  ".join([*cells, line[-1]]).rstrip())
    text.insert(1, "-" * max(map(len, text)))
    return text


def details(rows):
    """What each process of each run needed, and remarks."""
    text = []
    for row in rows:
        run = row["run"]
        if not run:
            continue
        parts = [
            f"{name} {p['rss'] / MIB:.0f} MiB {p['cpu_s']:.2f} s"
            for name, p in sorted(run.processes.items(), key=lambda item: -item[1]["rss"])
            if p["rss"] >= MIB
        ]
        text.append(f"  {row['name']}: {'; '.join(parts)}")
        for note in [row["note"], *run.notes]:
            if note:
                text.append(f"      {note}")
    return text


class Bars:
    """The promises of the project's first issue, judged on what was measured. Timing never fails the bench."""

    def __init__(self, results, quick):
        self.results, self.quick = results, quick
        self.lines = []

    def run(self, key):
        for rows in self.results.values():
            for row in rows:
                if row["key"] == key and row["run"] and row["verdict"] == "ok":
                    return row["run"]
        return None  # a wrong result has no speed

    def judge(self, promise, ours, limit, unit, how):
        """`ours` and `limit` are numbers or None (not measured, or the result was wrong)."""
        if ours is None or limit is None:
            self.lines.append(f"  no figure     {promise}")
            return
        verdict = "met" if ours <= limit else "NOT met"
        self.lines.append(f"  {verdict:<12}  {promise}: {ours:.2f} {unit} against {limit:.2f} {unit} ({how})")

    def compare(self, what, ours, limit, unit, how):
        """A figure that puts a bar into proportion, and is none itself."""
        if ours is not None and limit is not None:
            self.lines.append(f"  (compare)     {what}: {ours:.2f} {unit} against {limit:.2f} {unit} ({how})")

    def all(self):
        wall = lambda key: (r := self.run(key)) and r.wall_s
        share = lambda value, factor: None if value is None else value * factor
        # The strictest reading: the quickest of the peer's variants is the one to beat.
        def fastest(prefixes):
            found = [(r["run"].wall_s, r["name"]) for rows in self.results.values() for r in rows if r["run"] and r["verdict"] == "ok" and r["key"] in prefixes]
            return min(found, default=(None, "not run"))

        rsync, name = fastest({"rsync full"})
        self.judge("full copy in at most half of rsync's wall time", wall("goldwire full"), share(rsync, 0.5), "s", f"half of {name}")

        floor, name = fastest({"floor cat", "floor zstd"})
        self.compare("what that bar asks of a copy that checks nothing", floor, share(rsync, 0.5), "s", f"{name} against half of rsync -W")

        scale = 0.1 if self.quick else 1.0
        how = "a tenth of the bar for the small pair" if self.quick else "bytes on the wire, both directions"
        for cache in ("warm", "cold"):
            run = self.run(f"goldwire delta {cache}")
            self.judge(f"delta with {cache} tree caches moves at most 30 MB", run and run.moved / 1e6, 30.0 * scale, "MB", how)
        rsync, name = fastest({f"{p} delta {k}" for p in ("rsync-z", "rsync-zlib", "rsync-zstd") for k in ("inplace", "plain")})
        for cache in ("warm", "cold"):
            self.judge(f"delta with {cache} tree caches in at most a quarter of rsync -z's wall time", wall(f"goldwire delta {cache}"), share(rsync, 0.25), "s", f"a quarter of {name}")
        self.compare("what that bar asks of a host that only copies its old disk and reads the copy", wall("floor delta"), share(rsync, 0.25), "s", f"{name}, a quarter")
        rsync, name = fastest({f"{p} delta plain" for p in ("rsync-z", "rsync-zlib", "rsync-zstd")})
        for cache in ("warm", "cold"):
            self.judge(f"the same against rsync -z that keeps the old disk until the new one is whole ({cache})", wall(f"goldwire delta {cache}"), share(rsync, 0.25), "s", f"a quarter of {name}")
        rsync, name = fastest({"rsync full link"})
        self.judge("full copy over a line in at most half of rsync's wall time", wall("goldwire fanout full 1 link"), share(rsync, 0.5), "s", f"half of {name}")
        rsync, name = fastest({f"{p} delta {k} link" for p in ("rsync-z", "rsync-zlib", "rsync-zstd") for k in ("inplace", "plain")})
        self.judge("delta over a line in at most a quarter of rsync -z's wall time", wall("goldwire delta warm link"), share(rsync, 0.25), "s", f"a quarter of {name}")
        for kind in ("full", "delta"):
            self.judge(f"fan-out over lines to 4 targets at most 1.5 x the time to one ({kind})", wall(f"goldwire fanout {kind} 4 link"), share(wall(f"goldwire fanout {kind} 1 link"), 1.5), "s", "1.5 x one target")
        for kind in ("full", "delta"):
            self.judge(f"fan-out to 4 targets at most 1.5 x the time to one ({kind})", wall(f"goldwire fanout {kind} 4"), share(wall(f"goldwire fanout {kind} 1"), 1.5), "s", "1.5 x one target")
        self.compare("what that bar asks of pipes that check nothing", wall("floor fanout 4"), share(wall("floor fanout 1"), 1.5), "s", "4 targets against 1.5 x one")
        for kind in ("full", "delta"):
            run = self.run(f"goldwire memory {kind}")
            ours = [p["rss"] for p in run.processes.values()] if run else []
            self.judge(f"each process within 256 MiB on the wide disk ({kind})", max(ours) / MIB if ours else None, 256.0, "MiB", "the largest, ssh included")
        return self.lines
