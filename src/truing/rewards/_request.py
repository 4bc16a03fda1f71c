"""One POST over http.client: pinned addresses, a deadline, a size cap, no proxy, no redirect.

The name in the URL is still what the Host header, SNI and the certificate's check use.
"""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from truing.rewards._address import Target

PIECE = 1 << 16
HEAD_BYTES = 1 << 20
"""What status, headers and the lengths of pieces may take beside the body."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds to connect, between two pieces of an answer, and in all; bytes of an answer."""

    connect: float
    read: float
    total: float
    response_bytes: int


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, Retry-After if given, and the body of a 200."""

    status: int
    retry_after: str | None
    body: bytes


class TooLargeError(Exception):
    """The answer is larger than the cap; the rest was not read."""


def post(
    target: Target,
    addresses: Sequence[str],
    body: bytes,
    headers: Mapping[str, str],
    limits: Limits,
) -> Answer:
    """The endpoint's answer. Raises OSError, HTTPException (both: try again) or TooLargeError."""
    connection = _Pinned(target, addresses, limits)
    try:
        connection.request("POST", target.path, body, {**headers, "Connection": "close"})
        with connection.getresponse() as response:
            content = _body(response, limits.response_bytes) if response.status == 200 else b""
        return Answer(response.status, response.headers["Retry-After"], content)
    finally:
        connection.hang_up()


def _body(response: http.client.HTTPResponse, most: int) -> bytes:
    content = bytearray()
    while piece := response.read(PIECE):
        content += piece
        if len(content) > most:
            raise TooLargeError
    if response.length:
        raise http.client.IncompleteRead(b"", response.length)
    return bytes(content)


class _Pinned(http.client.HTTPConnection):
    """Connects to the addresses it is given, never to what the name means by now."""

    def __init__(self, target: Target, addresses: Sequence[str], limits: Limits) -> None:
        super().__init__(target.host, target.port)
        self.secure = target.scheme == "https"
        if self.secure:
            self.default_port = http.client.HTTPS_PORT
        self.addresses, self.limits = addresses, limits
        self.most = limits.response_bytes + HEAD_BYTES
        self.deadline = time.monotonic() + limits.total
        self.timed: _Timed | None = None

    def connect(self) -> None:
        """The first address that answers. Raises OSError of the last one."""
        for index, address in enumerate(self.addresses):
            plain = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
            try:
                plain.settimeout(_within(self.limits.connect, self.deadline))
                plain.connect((address, self.port))
                open_socket = self._encrypted(plain) if self.secure else plain
            except OSError:
                plain.close()
                if index + 1 == len(self.addresses):
                    raise
            else:
                self.sock = self.timed = _Timed(
                    open_socket, self.limits.read, self.deadline, self.most
                )
                return

    def hang_up(self) -> None:
        """Close the socket itself."""
        if self.timed is not None:
            self.timed.inner.close()

    def _encrypted(self, plain: socket.socket) -> socket.socket:
        return ssl.create_default_context().wrap_socket(plain, server_hostname=self.host)


class _Timed:
    """What http.client wants of a socket; every read and write ends before the deadline, and no
    more than `most` bytes come in, whatever lengths the answer claims for its pieces."""

    def __init__(self, inner: socket.socket, seconds: float, deadline: float, most: int) -> None:
        self.inner, self.seconds, self.deadline = inner, seconds, deadline
        self.left = most

    def sendall(self, data: bytes) -> None:
        self.inner.settimeout(_within(float("inf"), self.deadline))
        self.inner.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self))

    def close(self) -> None:
        """Nothing yet: http.client closes what it has no more use for while the answer is read."""


class _Reader(io.RawIOBase):
    def __init__(self, timed: _Timed) -> None:
        self.timed = timed

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self.timed.inner.settimeout(_within(self.timed.seconds, self.timed.deadline))
        count = self.timed.inner.recv_into(buffer)
        self.timed.left -= count
        if self.timed.left < 0:
            raise TooLargeError
        return count


def _within(seconds: float, deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the request took longer than it may in all")
    return min(seconds, left)
