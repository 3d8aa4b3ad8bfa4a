"""A web server on this machine that answers range requests as object stores do, slowly or badly as told."""

import argparse
import re
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

CHANGED = "Thu, 01 Oct 2026 10:00:00 GMT"


class RangeServer(ThreadingHTTPServer):
    """Serves ``files`` (bytes by path)."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.host = f"127.0.0.1:{self.server_port}"
        self.url = f"http://{self.host}"
        self.files = {}
        self.etag = '"one"'
        self.latency = 0.0
        """Seconds before each answer."""
        self.ranges = True
        """Whether ranges are answered at all."""
        self.fault = None
        """Called with the number of each request, from 1: None = answer, "cut" = break off, "hang", or a status."""
        self.requests = []
        """(method, path with query, Range, Authorization) of each."""
        self.sent = 0
        """Bytes of bodies."""
        self.lock = threading.Lock()
        self.release = threading.Event()

    def handle_error(self, *_):
        """Say nothing: clients break off when they have enough."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self):
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else every answer waits 40 ms

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        web = self.server
        with web.lock:
            web.requests.append((self.command, self.path, self.headers["Range"], self.headers["Authorization"]))
            number = len(web.requests)
        time.sleep(web.latency)
        fault = web.fault(number) if web.fault else None
        with suppress(ConnectionError):
            if fault == "hang":
                web.release.wait(60)
                self.close_connection = True
            elif isinstance(fault, tuple):
                self.head(fault[0], Location=fault[1], Content_Length=0)
            elif isinstance(fault, int):
                self.refuse(fault)
            else:
                self.answer(cut=fault == "cut")

    def answer(self, *, cut):
        web = self.server
        data = web.files.get(self.path.partition("?")[0])
        if data is None:
            self.refuse(404)
            return
        begin, end, status = 0, len(data) - 1, 200
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"] or "")
        about = {"ETag": web.etag, "Last_Modified": CHANGED}
        if asked and web.ranges:
            begin, end, status = int(asked[1]), min(end, int(asked[2] or end)), 206
            if begin > end:
                self.head(416, Content_Range=f"bytes */{len(data)}", Content_Length=0)
                return
            about["Content_Range"] = f"bytes {begin}-{end}/{len(data)}"
        part = data[begin : end + 1]
        self.head(status, Content_Length=len(part), **about)
        if self.command == "HEAD":
            return
        if cut:
            part = part[: len(part) // 2]
        for start in range(0, len(part), 1 << 16):
            self.wfile.write(part[start : start + (1 << 16)])
            with web.lock:
                web.sent += len(part[start : start + (1 << 16)])
        if cut:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    def refuse(self, status):
        code, words = {
            404: ("NoSuchKey", "The specified key does not exist."),
            403: ("AccessDenied", "Access Denied"),
        }.get(status, ("InternalError", "We encountered an internal error."))
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{words}</Message></Error>".encode()
        self.head(status, Content_Type="application/xml", Content_Length=len(body))
        if self.command != "HEAD":
            self.wfile.write(body)

    def head(self, status, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()


@contextmanager
def serving():
    """Serve in threads."""
    web = RangeServer()
    thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield web
    finally:
        web.release.set()
        web.shutdown()
        web.server_close()
        thread.join()


@contextmanager
def serving_apart(*paths, latency=0.0):
    """Serve files in a process of its own, and give its address: some calls of rasterio hold up all other threads."""
    command = [sys.executable, __file__, "--latency", str(latency), *map(str, paths)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True) as process:
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def main():
    parser = argparse.ArgumentParser(description="Serve files by their names until stopped.")
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    args = parser.parse_args()
    with serving() as web:
        web.latency = args.latency
        web.files = {f"/{path.name}": path.read_bytes() for path in args.paths}
        print(web.url, flush=True)
        sys.stdin.read()  # ends with whoever started this


if __name__ == "__main__":
    main()
