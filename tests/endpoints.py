"""Endpoints of the worst kind, on this machine: what each request gets is written down first."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

Reply = Callable[[http.server.BaseHTTPRequestHandler], None]


class Endpoint:
    """A server that gives its replies in order, the last one again and again."""

    def __init__(self, *replies: Reply) -> None:
        self.replies = list(replies)
        self.requests: list[Any] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/judge"

    def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        length = int(handler.headers["Content-Length"])
        self.requests.append(json.loads(handler.rfile.read(length)))
        self.headers.append(dict(handler.headers))
        self.paths.append(handler.path)
        reply = self.replies[min(len(self.requests), len(self.replies)) - 1]
        with suppress(OSError):  # the client may have gone
            reply(handler)


@contextmanager
def serving(*replies: Reply, secure: Any = None) -> Iterator[Endpoint]:
    """An endpoint in threads of its own; `secure` is an SSLContext."""
    endpoint = Endpoint(*replies)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            endpoint.answer(self)

        def log_message(self, *arguments: Any) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *arguments: Any) -> None:
            pass

    with Server(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        if secure is not None:
            server.socket = secure.wrap_socket(server.socket, server_side=True)
        endpoint.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield endpoint
        finally:
            server.shutdown()
            thread.join()


def reply(body: bytes, status: int = 200, **headers: str) -> Reply:
    """A whole answer."""

    def send(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return send


def scores(*values: Any) -> Reply:
    """The answer of an endpoint in order."""
    return reply(json.dumps({"scores": list(values)}).encode())
