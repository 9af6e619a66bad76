"""What happens on the wire: counting bytes, and adding latency.

**Counting.** A counting proxy would copy every byte once more, on the same two cores that are measured, and
so slow down the fast tools most. Instead each ssh connection is opened by `connect.py`, which hands the
socket to ssh and a duplicate of it to the meter below. The meter never reads or writes: when the connection
ends, it asks the kernel (TCP_INFO: bytes acknowledged by the peer, bytes received). This is exact to the byte
at the level of the SSH transport (TCP payload: encryption, MACs, padding, window messages included; IP and TCP
headers are not) and costs nothing while data flows.

The duplicate must not keep a connection alive that ssh has dropped: when ssh has ended and no other process
holds the socket (a ControlMaster may), the meter shuts it down, which is what the kernel would have done.

**Latency.** `Delay` is a TCP proxy that delivers each byte a fixed time after it came, without limiting how
many are under way. Connections to it are counted in the same manner.

Both run as processes of their own (`python3 wire.py meter|delay …`), outside the measured group.
"""

import collections
import json
import os
import select
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

TCP_INFO_BYTES_ACKED = 120  # offset of tcpi_bytes_acked in struct tcp_info; tcpi_bytes_received follows


class Meter:
    """The bench's handle on the meter process."""

    def __init__(self, work):
        self.path = os.path.join(str(work), "meter.sock")
        if len(self.path) > 100:
            raise RuntimeError(f"{self.path}: too long for a socket's name, choose a shorter --work")
        self.process = None

    def __enter__(self):
        if os.path.exists(self.path):
            os.unlink(self.path)
        self.process = start_helper(["meter", self.path])
        return self

    def __exit__(self, *_):
        stop_helper(self.process)
        if os.path.exists(self.path):
            os.unlink(self.path)

    def take(self):
        """Waits for the connections to end and returns their counts since the last call: a list of
        {alias, sent, received, open, helper_cpu}; `sent` is from the side that opened the connection."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
            s.settimeout(30)
            s.connect(self.path)
            s.sendall(b"take\n")
            answer = b""
            while not answer.endswith(b"\n"):
                part = s.recv(1 << 16)
                if not part:
                    raise RuntimeError("the meter went away")
                answer += part
        return json.loads(answer)


class Delay:
    """Delay lines in front of TCP ports: `ports` maps each alias to the port of its line."""

    def __init__(self, ports, one_way_s):
        self.real = ports
        self.one_way_s = one_way_s
        self.ports = {}
        self.process = None

    def __enter__(self):
        self.process = start_helper(["delay", str(self.one_way_s), json.dumps(self.real)])
        self.ports = json.loads(self.process.stdout.readline())
        return self

    def __exit__(self, *_):
        stop_helper(self.process)


def start_helper(arguments):
    process = subprocess.Popen(
        [sys.executable, "-I", "-u", os.path.abspath(__file__), *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )
    if arguments[0] == "meter" and process.stdout.readline() != "ready\n":
        stop_helper(process)
        raise RuntimeError("the meter did not start")
    return process


def stop_helper(process):
    if process and process.poll() is None:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)
    if process:
        process.stdin.close()
        process.stdout.close()


# --- the meter process --------------------------------------------------------------------------------


class Connection:
    def __init__(self, alias, pid, helper_cpu, sock):
        self.alias, self.helper_cpu, self.sock = alias, helper_cpu, sock
        self.inode = os.fstat(sock.fileno()).st_ino
        try:
            self.pidfd = os.pidfd_open(pid)
        except OSError:
            self.pidfd = None
        self.counted = (0, 0)
        self.deadline = None

    def counts(self):
        """(sent, received) since they were last reported."""
        info = self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        sent, received = struct.unpack_from("@QQ", info, TCP_INFO_BYTES_ACKED)
        before, self.counted = self.counted, (sent, received)
        return sent - before[0], received - before[1]

    def tick(self):
        """True when the connection is over."""
        poll = select.poll()
        poll.register(self.sock, select.POLLRDHUP)
        closed_by_peer = bool(poll.poll(0))
        owner_gone = self.pidfd is None or bool(select.select([self.pidfd], [], [], 0)[0])
        if owner_gone and not held_elsewhere(self.inode):
            if closed_by_peer:
                return True
            if self.deadline is None:
                self.deadline = time.monotonic() + 2
                try:
                    self.sock.shutdown(socket.SHUT_WR)
                except OSError:
                    return True
            return time.monotonic() > self.deadline
        return False

    def close(self):
        self.sock.close()
        if self.pidfd is not None:
            os.close(self.pidfd)


def held_elsewhere(inode):
    wanted, me = f"socket:[{inode}]", os.getpid()
    for pid in os.listdir("/proc"):
        if pid.isdigit() and int(pid) != me:
            try:
                for fd in os.listdir(f"/proc/{pid}/fd"):
                    if os.readlink(f"/proc/{pid}/fd/{fd}") == wanted:
                        return True
            except OSError:
                pass
    return False


def meter_main(path):
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen(64)
    print("ready", flush=True)
    live, done, waiting, deadline = [], [], None, 0.0
    while True:
        # Idle between runs, attentive while somebody waits for the counts.
        if select.select([listener], [], [], 0.01 if waiting else 0.05)[0]:
            client, _ = listener.accept()
            client.settimeout(5)
            word, fds, _, _ = socket.recv_fds(client, 4096, 1)
            fields = word.decode().split()
            if fields and fields[0] == "conn":
                live.append(Connection(fields[1], int(fields[2]), float(fields[3]), socket.socket(fileno=fds[0])))
                client.sendall(b"k")
                client.close()
            elif fields and fields[0] == "take":
                waiting, deadline = client, time.monotonic() + 3
        for connection in [c for c in live if c.tick()]:
            live.remove(connection)
            done.append(report(connection, False))
            connection.close()
        if waiting and (not live or time.monotonic() > deadline):
            answer = done + [report(c, True) for c in live]
            done = []
            try:
                waiting.sendall(json.dumps(answer).encode() + b"\n")
            finally:
                waiting.close()
                waiting = None


def report(connection, is_open):
    sent, received = connection.counts()
    return {"alias": connection.alias, "sent": sent, "received": received, "open": is_open, "helper_cpu": connection.helper_cpu}


# --- the delay process --------------------------------------------------------------------------------


class Line:
    """One direction of one connection: bytes leave `delay` seconds after they came."""

    # Enough for 50 ms at 10 Gbit/s; beyond it the receiver is slower than the sender, not the line.
    QUEUE_BYTES_MAX = 64 << 20

    def __init__(self, source, target, delay):
        self.source, self.target, self.delay = source, target, delay
        self.opened = time.monotonic()
        self.queue, self.queued = collections.deque(), 0
        self.ready = threading.Condition()

    def run(self):
        writer = threading.Thread(target=self.write, daemon=True)
        writer.start()
        first = True
        try:
            while True:
                data = self.source.recv(256 << 10)
                due = time.monotonic() + self.delay
                if first and due - self.delay - self.opened < 0.005:
                    due = 0.0  # it came during the handshake (see serve_delayed) and has waited long enough
                first = False
                with self.ready:
                    while self.queued > self.QUEUE_BYTES_MAX:
                        self.ready.wait()
                    self.queue.append((due, data))
                    self.queued += len(data)
                    self.ready.notify_all()
                if not data:
                    break
        except OSError:
            with self.ready:
                self.queue.append((time.monotonic() + self.delay, b""))
                self.ready.notify_all()
        writer.join()

    def write(self):
        try:
            while True:
                with self.ready:
                    while not self.queue:
                        self.ready.wait()
                    due, data = self.queue.popleft()
                wait = due - time.monotonic()
                if wait > 0:
                    time.sleep(wait)
                if not data:
                    self.target.shutdown(socket.SHUT_WR)
                    return
                self.target.sendall(data)
                with self.ready:
                    self.queued -= len(data)
                    self.ready.notify_all()
        except OSError:
            # The receiver is gone; tell the sender, so that its reader ends too.
            try:
                self.source.shutdown(socket.SHUT_RD)
            except OSError:
                pass
            with self.ready:
                self.queued = -(1 << 62)
                self.ready.notify_all()


def serve_delayed(client, port, delay):
    # A real handshake takes a round trip before the caller may speak, and the server accepts half a round
    # trip later. The caller is already connected (to us), so the server's side starts 1.5 round trips late.
    time.sleep(3 * delay)
    try:
        server = socket.create_connection(("127.0.0.1", port), timeout=20)
    except OSError:
        client.close()
        return
    server.settimeout(None)
    for s in (client, server):
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    lines = [threading.Thread(target=Line(a, b, delay).run, daemon=True) for a, b in ((client, server), (server, client))]
    for line in lines:
        line.start()
    for line in lines:
        line.join()
    client.close()
    server.close()


def delay_main(one_way_s, ports):
    selector = selectors.DefaultSelector()
    lines = {}
    for alias, port in ports.items():
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        selector.register(listener, selectors.EVENT_READ, port)
        lines[alias] = listener.getsockname()[1]
    print(json.dumps(lines), flush=True)
    while True:
        for key, _ in selector.select():
            client, _ = key.fileobj.accept()
            threading.Thread(target=serve_delayed, args=(client, key.data, one_way_s), daemon=True).start()


if __name__ == "__main__":
    # A helper must not outlive the bench: its stdin closes when the bench is gone, however it ended.
    def leave_with_parent():
        sys.stdin.read()
        os._exit(0)

    threading.Thread(target=leave_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.argv[1] == "meter":
        meter_main(sys.argv[2])
    else:
        delay_main(float(sys.argv[2]), json.loads(sys.argv[3]))
