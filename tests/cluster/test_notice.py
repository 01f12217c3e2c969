"""The notice of a spot instance, from a stand-in for AWS's metadata to a cluster that drains its node."""

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from leapray.cluster.notice import noticed, watch


class Metadata(ThreadingHTTPServer):
    """Metadata as of EC2, version 2: a token first, then 404 until ``action`` is there."""

    action: str | None = None
    broken = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Metadata

    def do_PUT(self) -> None:
        known = self.path == "/latest/api/token" and self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
        self._answer(200 if known else 400, b"token")

    def do_GET(self) -> None:
        if self.headers["X-aws-ec2-metadata-token"] != "token":
            self._answer(401, b"")
        elif self.server.broken or self.path != "/latest/meta-data/spot/instance-action":
            self._answer(500, b"")
        elif self.server.action is None:
            self._answer(404, b"")
        else:
            self._answer(200, self.server.action.encode())

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    server = Metadata(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_nothing_is_noticed_until_aws_says_when(metadata: Metadata) -> None:
    assert noticed(metadata.url) is None
    metadata.action = json.dumps({"action": "terminate", "time": "2026-11-27T08:22:00Z"})
    assert noticed(metadata.url) == datetime(2026, 11, 27, 8, 22, tzinfo=UTC)


def test_a_watch_outlasts_failures_and_tells_once_how_long_is_left(metadata: Metadata) -> None:
    told: list[int] = []
    waits = 0

    def wait(_: float) -> None:
        nonlocal waits
        waits += 1
        metadata.broken = waits == 1
        if waits == 3:
            metadata.action = json.dumps({"action": "terminate", "time": (datetime.now(UTC) + timedelta(seconds=110)).isoformat()})

    watch(told.append, metadata.url, wait)
    assert waits == 3
    assert len(told) == 1
    assert 100 <= told[0] <= 110
    metadata.action = json.dumps({"action": "terminate", "time": "2020-01-01T00:00:00Z"})
    watch(told.append, metadata.url, wait)
    assert told[1] == 10


def test_a_watch_tells_again_where_the_cluster_did_not_listen(metadata: Metadata) -> None:
    metadata.action = json.dumps({"action": "terminate", "time": (datetime.now(UTC) + timedelta(seconds=110)).isoformat()})
    told: list[int] = []

    def tell(seconds: int) -> None:
        told.append(seconds)
        if len(told) == 1:
            raise ConnectionError("no head answers")

    watch(tell, metadata.url, lambda _: None)
    assert len(told) == 2
