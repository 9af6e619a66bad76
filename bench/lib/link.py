"""Lines of a given speed: every host behind one of its own.

The bench moves into a network namespace of its own (`enter`), where the kernel's token buckets (HTB) hold each host's
ssh connections to a rate, both ways separately. The kernel does it while it passes packets on: no proxy stands in the
data's way, and no core is taken from what is measured.
"""

import os
import shutil
import subprocess
import sys

MARK = "GWBENCH_OWN_NETWORK"


def enter():
    """Starts the program again in a network namespace of its own, if this may be done."""
    if MARK in os.environ or os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "ip", "tc"))):
        return
    tried = subprocess.run(["unshare", "--net", "true"], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=10)
    if tried.returncode == 0:
        os.environ[MARK] = "1"
        os.execvp("unshare", ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", sys.executable, *sys.argv])


def missing():
    """Why lines cannot be made here, or None."""
    return None if MARK in os.environ else "needs root, unshare, ip and tc for a network namespace of its own"


class Lines:
    """Every host of `ports` (name: port) behind a line of `rate` bits per second each way."""

    def __init__(self, ports, rate):
        self.ports, self.rate = ports, rate

    def __enter__(self):
        try:
            self._tc("qdisc", "add", "dev", "lo", "root", "handle", "1:", "htb")
            for number, port in enumerate(self.ports.values()):
                for direction, offset in (("dport", 0x100), ("sport", 0x200)):
                    flow = f"1:{offset + number:x}"
                    # The burst is a few of loopback's large packets.
                    self._tc(
                        "class", "add", "dev", "lo", "parent", "1:", "classid", flow, "htb", "rate", f"{self.rate}bit",
                        "burst", "256kb", "cburst", "256kb", "quantum", "65536",
                    )
                    # As deep as a router's buffer, not as deep as loopback's would be.
                    self._tc("qdisc", "add", "dev", "lo", "parent", flow, "pfifo", "limit", "32")
                    self._tc(
                        "filter", "add", "dev", "lo", "parent", "1:", "protocol", "ip", "u32", "match", "ip", direction, str(port), "0xffff", "flowid", flow
                    )
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        subprocess.run(["tc", "qdisc", "del", "dev", "lo", "root"], stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, timeout=10)

    @staticmethod
    def _tc(*arguments):
        done = subprocess.run(["tc", *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=10)
        if done.returncode:
            raise RuntimeError(f"tc {' '.join(arguments)}: {done.stderr.strip()}")
