"""A live report of folders with unfinished runs, served to this machine only.

The page polls ``/state`` and reloads when the folders' content has changed.
"""

import hashlib
import os
import socket
import sys
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from ocr_eval.common.errors import UserError
from ocr_eval.common.messages import say, warn
from ocr_eval.records.find import find_runs
from ocr_eval.records.select import parse_condition
from ocr_eval.report.page import MEASURES, build_page
from ocr_eval.specs.run import Scoring

LOOPBACK = "127.0.0.1"
#: Files that define the state: progress and end of a run.
_WATCHED = ("metrics.jsonl", "status.json", "result.json")
#: Seconds that a client may take for each part of its request, and most clients at once.
_PATIENCE, _MOST_CLIENTS = 10, 64


class Report:
    """The page of some folders, rebuilt only when something in them has changed."""

    def __init__(self, folders: Sequence[Path], scoring: Scoring, filters: Sequence[str] = ()) -> None:
        self._folders, self._scoring = list(folders), scoring
        self._conditions = [parse_condition("--filter", text) for text in filters]
        self._made: tuple[str, bytes] | None = None
        self._making = threading.Lock()

    def state(self) -> str:
        """A digest of the names, sizes and modification times of the watched files."""
        digest = hashlib.sha256()
        for root in self._folders:
            for place, folders, names in os.walk(root):
                folders.sort()
                for name in sorted(set(_WATCHED) & set(names)):
                    try:
                        stat = Path(place, name).stat()
                    except FileNotFoundError:
                        continue
                    digest.update(f"{place}/{name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        return digest.hexdigest()[:16]

    def page(self) -> bytes:
        """The page in its current state."""
        with self._making:
            state = self.state()
            if self._made is None or self._made[0] != state:
                found = find_runs(*self._folders, scoring=self._scoring, measures=MEASURES).where(self._conditions)
                self._made = state, build_page(found, self._scoring, token=state)[0].encode()
            return self._made[1]


class _Server(ThreadingHTTPServer):
    """A server that copes with slow clients, many clients, and clients that disconnect."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._clients: deque[socket.socket] = deque()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread; beyond ``_MOST_CLIENTS`` the oldest client is dropped."""
        self._clients.append(request)
        if len(self._clients) > _MOST_CLIENTS:
            with suppress(OSError):
                self._clients.popleft().shutdown(socket.SHUT_RDWR)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Forget a client that was answered or has disconnected."""
        with suppress(ValueError):
            self._clients.remove(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print one line, unless the client disconnected."""
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError | TimeoutError):
            warn(f"a request could not be answered: {error}")


def make_server(report: Report, port: int) -> ThreadingHTTPServer:
    """A server on the loopback interface, not yet started.

    Raises:
        UserError: the port is taken.
    """

    class Handler(BaseHTTPRequestHandler):
        timeout = _PATIENCE

        def do_GET(self) -> None:
            port = self.server.server_port  # type: ignore[attr-defined]
            if self.headers.get("Host") not in (f"{LOOPBACK}:{port}", f"localhost:{port}"):
                # guards against DNS rebinding: another site's page could reach the port under its own host name
                self._answer(403, b"This report is served to this machine only.\n", "text/plain")
            elif self.path == "/":
                self._page()
            elif self.path == "/state":
                self._answer(200, report.state().encode(), "text/plain")
            else:
                self._answer(404, b"There is one page here: /\n", "text/plain")

        def _page(self) -> None:
            try:
                self._answer(200, report.page(), "text/html")
            except (UserError, OSError) as error:
                self._answer(500, f"{error}\n".encode(), "text/plain")

        def _answer(self, code: int, content: bytes, kind: str) -> None:
            self.send_response(code)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("X-Frame-Options", "DENY")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: object) -> None:
            """Requests are not logged."""

    try:
        return _Server((LOOPBACK, port), Handler)
    except OSError as error:
        raise UserError(f"Port {port} cannot be used ({error.strerror}). Choose another with --port.") from error


def serve_report(folders: Sequence[Path], scoring: Scoring, port: int, filters: Sequence[str] = ()) -> None:
    """Serve until interrupted.

    Raises:
        UserError: a folder does not exist, a filter is invalid, or the port is taken.
    """
    report = Report(folders, scoring, filters)
    report.page()
    with make_server(report, port) as server:
        print(f"http://{LOOPBACK}:{server.server_port}/", flush=True)
        say("Serving to this machine only; press Ctrl-C to stop.")
        server.serve_forever()
