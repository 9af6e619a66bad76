"""A small HTTP server with byte ranges, for zsync: `python3 httpd.py FOLDER COUNT_FILE`.

Prints its port. Serves GET with single and multiple ranges (RFC 9110 14), keeps connections alive, sends files
with sendfile. On every closed connection it adds the kernel's byte counts to COUNT_FILE, so that HTTP is
counted at the same level as the ssh connections (TCP payload)."""

import json
import os
import socket
import struct
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TCP_INFO_BYTES_ACKED = 120


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Headers and ranges leave in one segment instead of one each.
    wbufsize = 1 << 16

    def do_GET(self):
        path = os.path.join(self.server.folder, os.path.basename(self.path))
        try:
            file = open(path, "rb")
        except OSError:
            self.send_error(404)
            return
        with file:
            size = os.fstat(file.fileno()).st_size
            try:
                ranges = parse_ranges(self.headers.get("Range"), size)
            except ValueError:
                self.send_error(416)
                return
            if ranges is None:
                self.send_response(200)
                self.head(size)
                self.body(file, 0, size)
            elif len(ranges) == 1:
                first, last = ranges[0]
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
                self.head(last - first + 1)
                self.body(file, first, last - first + 1)
            else:
                self.multipart(file, size, ranges)

    def multipart(self, file, size, ranges):
        boundary = "goldwire-bench-part"
        heads = [f"\r\n--{boundary}\r\nContent-Type: application/octet-stream\r\nContent-Range: bytes {a}-{b}/{size}\r\n\r\n".encode() for a, b in ranges]
        tail = f"\r\n--{boundary}--\r\n".encode()
        self.send_response(206)
        self.send_header("Content-Type", f"multipart/byteranges; boundary={boundary}")
        self.head(sum(map(len, heads)) + sum(b - a + 1 for a, b in ranges) + len(tail))
        for head, (first, last) in zip(heads, ranges):
            self.wfile.write(head)
            self.wfile.write(os.pread(file.fileno(), last - first + 1, first))
        self.wfile.write(tail)

    def head(self, length):
        self.send_header("Content-Length", str(length))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()

    def body(self, file, offset, length):
        self.wfile.flush()
        while length:
            sent = os.sendfile(self.connection.fileno(), file.fileno(), offset, length)
            if not sent:
                self.close_connection = True
                return
            offset, length = offset + sent, length - sent

    def finish(self):
        super().finish()
        # Seen from the client, as for ssh: what it sent is what we received.
        info = self.connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        acked, received = struct.unpack_from("@QQ", info, TCP_INFO_BYTES_ACKED)
        with self.server.lock, open(self.server.counts, "a") as f:
            f.write(json.dumps({"sent": received, "received": acked}) + "\n")

    def log_message(self, *_):
        pass


def parse_ranges(header, size):
    """[(first, last)], or None for the whole file."""
    if not header or not header.startswith("bytes="):
        return None
    ranges = []
    for part in header[6:].split(","):
        first, _, last = part.strip().partition("-")
        begin = int(first) if first else max(0, size - int(last))
        end = min(int(last), size - 1) if first and last else size - 1
        if begin > end:
            raise ValueError(part)
        ranges.append((begin, end))
    return ranges


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.folder, server.counts, server.lock = sys.argv[1], sys.argv[2], threading.Lock()
    print(server.server_address[1], flush=True)
    server.serve_forever()
