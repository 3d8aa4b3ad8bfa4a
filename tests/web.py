"""A web server on this machine that serves bytes from memory, and errs as told."""

import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Web(ThreadingHTTPServer):
    """Serves ``files`` by path, correctly (ranges, ETag), except for the requests that ``faults`` are meant for."""

    daemon_threads = True

    def __init__(self, scheme="http"):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"{scheme}://127.0.0.1:{self.server_port}"
        self.files = {}
        self.etag = '"one"'
        self.faults = []
        """One function of the handler per request to come, in order."""
        self.requests = []
        """(path, Range, If-Range) of each request."""
        self.body_bytes = 0
        """Bytes of bodies sent in all."""
        self.arrived = threading.Event()
        """Set when a held request has got its part."""
        self.release = threading.Event()
        """Lets held requests go on."""


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        web = self.server
        web.requests.append((self.path, self.headers["Range"], self.headers["If-Range"]))
        fault = web.faults.pop(0) if web.faults else serve
        with suppress(ConnectionError):  # the client had enough
            fault(self)
        self.close_connection = True

    def log_message(self, *_):
        pass

    def head(self, status=200, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def body(self, data):
        for start in range(0, len(data), 1 << 16):
            self.wfile.write(data[start : start + (1 << 16)])
            self.server.body_bytes += len(data[start : start + (1 << 16)])

    def asked(self):
        """Return the file, and where the body starts by the rules of RFC 9110."""
        data, given, version = self.server.files.get(self.path), self.headers["Range"], self.headers["If-Range"]
        begin = int(given[6:-1]) if given and version in (None, self.server.etag) else 0
        return data, begin


def serve(handler, *, first=None, then=None):
    """Answer as a server should; after ``first`` bytes of body do ``then`` and end."""
    data, begin = handler.asked()
    if data is None:
        status(404)(handler)
        return
    size, etag = len(data), handler.server.etag
    if begin >= size:
        handler.head(416, Content_Range=f"bytes */{size}", Content_Length=0)
    elif begin:
        span = f"bytes {begin}-{size - 1}/{size}"
        handler.head(206, Content_Range=span, Content_Length=size - begin, ETag=etag)
    else:
        handler.head(Content_Length=size, ETag=etag)
    handler.body(data[begin:] if first is None else data[begin : begin + first])
    if then:
        then(handler)


def cut(first):
    """Break the connection after so many bytes."""
    return lambda handler: serve(handler, first=first)


def hold(first):
    """Fall silent after so many bytes, and go on when released."""

    def then(handler):
        handler.server.arrived.set()
        handler.server.release.wait(60)
        data, begin = handler.asked()
        handler.body(data[begin + first :])

    return lambda handler: serve(handler, first=first, then=then)


def status(code):
    """Answer with an error."""

    def fault(handler):
        handler.head(code, Content_Type="text/html", Content_Length=5)
        handler.wfile.write(b"<html")

    return fault


def hang_up(handler):
    """Close without a word."""


def page(content_type):
    """Send a web page with status 200, as login pages of networks do, padded to the file's length."""

    def fault(handler):
        data, _ = handler.asked()
        handler.head(Content_Type=content_type, Content_Length=len(data))
        handler.body(b"\n <!DOCTYPE html><title>Please log in</title>".ljust(len(data)))

    return fault


def whole(handler):
    """Ignore the range."""
    data = handler.server.files[handler.path]
    handler.head(Content_Length=len(data))
    handler.body(data)


def announce(length, *, send=None):
    """Lie about the length."""

    def fault(handler):
        data, _ = handler.asked()
        handler.head(Content_Length=length)
        handler.body(data if send is None else send)

    return fault


def unannounced(data):
    """Send without any length: the end of the connection is the end of the body."""

    def fault(handler):
        handler.head()
        handler.body(data)

    return fault


def chunked(data):
    """Send in chunks, as HTTP/1.1 does where the length is unknown."""

    def fault(handler):
        handler.protocol_version = "HTTP/1.1"
        handler.head(Transfer_Encoding="chunked")
        handler.wfile.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data))

    return fault


def partial(span, data, **headers):
    """Answer 206 with this Content-Range and body, whatever was asked."""

    def fault(handler):
        handler.head(206, Content_Length=len(data), **({"Content_Range": span} if span else {}), **headers)
        handler.body(data)

    return fault


def redirect(to, code=302):
    """Send elsewhere."""
    return lambda handler: handler.head(code, Location=to, Content_Length=0)


@contextmanager
def serving(web):
    """Serve in a thread."""
    thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield web
    finally:
        web.release.set()
        web.shutdown()
        web.server_close()
        thread.join()
