"""A directory listing over HTTP on loopback that can be told to fail."""

import re
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Web(ThreadingHTTPServer):
    """A directory listing over HTTP that counts requests and can be told to fail."""

    daemon_threads = True

    def __init__(self, folder: Path, ranges: bool) -> None:
        self.ranges, self.gets, self.faults, self.lock = ranges, [], {"refuse": 0, "cut": 0}, threading.Lock()
        super().__init__(("127.0.0.1", 0), partial(_WebHandler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def fails(self, how: str) -> bool:
        """Whether this request meets one of the faults still to come."""
        with self.lock:
            self.faults[how] -= 1
            return self.faults[how] >= 0


class _WebHandler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Web

    def do_GET(self) -> None:
        self.server.gets.append(self.path)
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            super().do_GET()
        elif self.server.fails("refuse"):
            self.send_response(429)
            self.send_header("Retry-After", "20")
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self._part(path.read_bytes())

    def _part(self, body: bytes) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")) if self.server.ranges else None
        part = body[int(asked[1]) : int(asked[2]) + 1] if asked else body
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if self.server.fails("cut"):
            self.close_connection = True
            part = part[: len(part) // 2]
        self.wfile.write(part)

    def log_message(self, format: str, *args: object) -> None:
        pass
