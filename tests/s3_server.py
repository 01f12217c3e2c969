"""An S3 server on loopback, moto's, behind a proxy that can be told to answer as a troubled store does."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ACCESS_KEY = "loopback-key"
_PIECES, _PIECE_SECONDS = 8, 0.01
_HOP_BY_HOP = {"connection", "transfer-encoding", "keep-alive", "content-length", "server", "date"}

Matches = Callable[[str, str], bool]
"""``matches(method, path)``: whether a fault is for this request."""


@dataclass
class Fault:
    """What the next ``times`` requests that match meet."""

    kind: str
    times: int
    matches: Matches
    status: int = 503
    code: str = "SlowDown"
    headers: dict[str, str] = field(default_factory=dict)


def _matching(method: str, path: str) -> Matches:
    return lambda asked, at: asked.startswith(method) and path in at


_ANY = _matching("", "")
_STORM = [
    Fault("answer", 1, _ANY, 429, "TooManyRequests", {"Retry-After": "1"}),
    Fault("answer", 1, _ANY, 503, "SlowDown"),
    Fault("reset", 1, _ANY),
    Fault("slow", 1, _ANY),
    Fault("answer", 1, _ANY, 500, "InternalError"),
    Fault("cut", 1, _ANY),
    Fault("lost", 1, _ANY),
]


class Endpoint:
    """The proxy. ``AWS_ENDPOINT_URL`` names it from the start; the store behind it is started when a test asks for it."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str]] = []
        self.faults: list[Fault] = []
        self.weather = 0
        self.store: tuple[str, int] | None = None
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"endpoint": self}))
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def environment(self) -> dict[str, str]:
        """Variables by which every S3 client finds this endpoint and nothing outside it."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": "loopback-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            # every fault is left to leapray, whose waits a test can see
            "AWS_MAX_ATTEMPTS": "1",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        }

    def answer(self, status: int, code: str, times: int = 1, method: str = "", path: str = "", **headers: str) -> None:
        """The next requests of this method whose path holds ``path`` get this status and S3 error code."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self._add(Fault("answer", times, _matching(method, path), status, code, named))

    def disturb(self, kind: str, times: int = 1, method: str = "", path: str = "") -> None:
        """``reset`` before the store hears of it or ``lost`` after, an answer ``cut``, ``slow``, or with too ``long`` a Content-Length."""
        self._add(Fault(kind, times, _matching(method, path)))

    def storm(self, every: int) -> None:
        """From now on every so many requests one fails, each time in another way."""
        self.weather = every

    def calm(self) -> None:
        """Forget all faults and requests."""
        with self.lock:
            self.faults, self.requests, self.weather = [], [], 0

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def _add(self, fault: Fault) -> None:
        with self.lock:
            self.faults.append(fault)

    def take(self, method: str, path: str) -> Fault | None:
        """Note a request; the fault that it meets, if any."""
        with self.lock:
            self.requests.append((method, path))
            for fault in self.faults:
                if fault.times and fault.matches(method, path):
                    fault.times -= 1
                    return fault
            count = len(self.requests)
            if self.weather and count % self.weather == 0:
                return _STORM[count // self.weather % len(_STORM)]
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    endpoint: Endpoint

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.endpoint.take(self.command, self.path)
        if fault and fault.kind == "reset":
            self._reset()
        elif fault and fault.kind == "answer":
            self._refuse(fault.status, fault.code, fault.headers)
        elif f"Credential={ACCESS_KEY}/" not in self.headers.get("Authorization", ""):
            self._refuse(403, "InvalidAccessKeyId", {})
        else:
            response, content = self._forward(body)
            if fault and fault.kind == "lost":
                self._reset()
            else:
                self._relay(response, content, fault.kind if fault else "")

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _handle  # noqa: N815

    def _forward(self, body: bytes) -> tuple[HTTPResponse, bytes]:
        assert self.endpoint.store is not None, "this test did not ask for the store"
        connection = HTTPConnection(*self.endpoint.store)
        connection.request(self.command, self.path, body, dict(self.headers))
        response = connection.getresponse()
        content = response.read()
        connection.close()
        return response, content

    def _relay(self, response: HTTPResponse, content: bytes, fault: str) -> None:
        length = (
            response.headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(content) + (100 if fault == "long" else 0))
        )
        self._head(response.status, response.getheaders(), length)
        if fault == "cut":
            self.wfile.write(content[: len(content) // 2])
            self._reset()
        elif fault == "slow":
            piece = max(1, -(-len(content) // _PIECES))
            for start in range(0, len(content), piece):
                threading.Event().wait(_PIECE_SECONDS)
                self.wfile.write(content[start : start + piece])
        else:
            self.wfile.write(content)
            self.close_connection |= fault == "long"

    def _refuse(self, status: int, code: str, headers: dict[str, str]) -> None:
        content = b"" if self.command == "HEAD" else f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
        self._head(status, [("Content-Type", "application/xml"), *headers.items()], str(len(content)))
        self.wfile.write(content)

    def _head(self, status: int, headers: Iterable[tuple[str, str]], length: str) -> None:
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()

    def _reset(self) -> None:
        """End the connection by RST."""
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass
