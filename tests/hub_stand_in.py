"""A stand-in of the model hub's HTTP interface on loopback: one repository, its faults, and a log of requests."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

REPO = "somebody/tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Repository:
    """What the stand-in serves, and how it misbehaves.

    Attributes:
        files: content by path.
        claimed: sizes that differ from the content's.
        status: an HTTP status and error code for every file, e.g. (403, "GatedRepo").
        cut: paths whose next download breaks off in the middle.
        broken: paths whose download fails.
        log: "METHOD path" of each request, with " from N" for a range.
    """

    files: dict[str, bytes]
    claimed: dict[str, int] = field(default_factory=dict)
    status: tuple[int, str] | None = None
    cut: set[str] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)
    log: list[str] = field(default_factory=list)

    def fetched(self) -> list[str]:
        """Paths of the files whose content was asked for, in order."""
        return [line.split("/resolve/")[1].split("/", 1)[1] for line in self.log if line.startswith("GET /somebody")]

    def size(self, path: str) -> int:
        return self.claimed.get(path, len(self.files[path]))


class Handler(BaseHTTPRequestHandler):
    repository: Repository
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        start = self.headers.get("Range")
        self.repository.log.append(f"{self.command} {path}" + (f" from {start[6:-1]}" if start else ""))
        if not path.removeprefix("/api/models").startswith(f"/{REPO}"):
            return self.fail(401, "RepoNotFound")
        if match := re.fullmatch(rf"/api/models/{REPO}(?:/revision/(.+))?", path):
            if match[1] not in (None, "main", COMMIT):
                return self.fail(404, "RevisionNotFound")
            return self.send(json.dumps({"id": REPO, "sha": COMMIT, "siblings": []}).encode(), "application/json")
        if match := re.fullmatch(rf"/api/models/{REPO}/tree/(.+)", path):
            if match[1] != COMMIT:
                return self.fail(404, "RevisionNotFound")
            return self.send(
                json.dumps([self.entry(name) for name in self.repository.files]).encode(), "application/json"
            )
        name = path.removeprefix(f"/{REPO}/resolve/{COMMIT}/")
        if self.repository.status is not None:
            return self.fail(*self.repository.status)
        if name not in self.repository.files:
            return self.fail(404, "EntryNotFound")
        if self.command == "GET" and name in self.repository.broken:
            return self.fail(500, "")
        return self.send_file(name, int(start[6:-1]) if start else 0)

    def entry(self, name: str) -> dict[str, object]:
        content = self.repository.files[name]
        return {
            "type": "file",
            "path": name,
            "size": self.repository.size(name),
            "oid": hashlib.sha1(content).hexdigest(),
        }

    def send_file(self, name: str, start: int) -> None:
        content = self.repository.files[name][start:]
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{hashlib.sha256(self.repository.files[name]).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(self.repository.size(name) - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        if name in self.repository.cut:
            self.repository.cut.discard(name)
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            self.close_connection = True
            return
        self.wfile.write(content)

    def send(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def fail(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def serve(repository: Repository) -> ThreadingHTTPServer:
    """A server of the repository on a free port of loopback; the caller runs and closes it."""
    return ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"repository": repository}))
