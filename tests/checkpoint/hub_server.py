"""A local server of the hub's routes: what a repository holds, and its files with ETag and Range."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_INFO = re.compile(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/?]+))?")
_TREE = re.compile(r"/api/models/([^/]+/[^/]+)/tree/([^/?]+)")
_FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass(slots=True)
class Hub:
    """Repositories by name, each with its files. What was requested, and how many bytes of files were sent."""

    repositories: dict[str, dict[str, bytes]]
    url: str = ""
    token: str | None = None
    gated: frozenset[str] = frozenset()
    spoiled: set[str] = field(default_factory=set)
    """Files that arrive with another byte than they have."""
    cut_after: int | None = None
    """Bytes of a file after which the connection is closed."""
    requests: list[tuple[str, str]] = field(default_factory=list)
    bytes_sent: int = 0

    def names(self, repository: str) -> list[str]:
        """Its files."""
        return sorted(self.repositories[repository])

    def entry(self, repository: str, name: str) -> dict[str, object]:
        """A file as the API lists it: large ones have an LFS pointer."""
        data = self.repositories[repository][name]
        entry: dict[str, object] = {"rfilename": name, "size": len(data), "blobId": hashlib.sha1(data).hexdigest()}
        if is_large(name):
            entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        return entry


def is_large(name: str) -> bool:
    """Whether a file is kept by LFS."""
    return name.endswith((".safetensors", ".gguf", ".bin"))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        match = _INFO.fullmatch(path) or _TREE.fullmatch(path) or _FILE.fullmatch(path)
        repository = match[1] if match else ""
        if repository not in self.hub.repositories:
            return self._refuse(404, "RepoNotFound", "Repository not found")
        if repository in self.hub.gated and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return self._refuse(403, "GatedRepo", "Access to this model is restricted")
        if (match[2] or "main") not in ("main", COMMIT):
            return self._refuse(404, "RevisionNotFound", "Invalid rev id")
        if _INFO.fullmatch(path):
            files = [self.hub.entry(repository, name) for name in self.hub.names(repository)]
            return self._json({"id": repository, "modelId": repository, "sha": COMMIT, "siblings": files})
        if _TREE.fullmatch(path):
            return self._json([_tree_entry(self.hub.entry(repository, name)) for name in self.hub.names(repository)])
        return self._file(repository, match[3])

    def _json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self._head(200, {"Content-Type": "application/json", "Content-Length": str(len(body))})
        if self.command == "GET":
            self.wfile.write(body)

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._head(status, {"X-Error-Code": code, "X-Error-Message": message, "Content-Length": "0"})

    def _file(self, repository: str, name: str) -> None:
        data = self.hub.repositories[repository].get(name)
        if data is None:
            return self._refuse(404, "EntryNotFound", "Entry not found")
        etag = (hashlib.sha256 if is_large(name) else hashlib.sha1)(data).hexdigest()
        first, last = 0, len(data)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted:
            first, last = int(wanted[1]), min(int(wanted[2]) + 1 if wanted[2] else last, last)
            headers["Content-Range"] = f"bytes {first}-{last - 1}/{len(data)}"
        headers["Content-Length"] = str(last - first)
        self._head(206 if wanted else 200, headers)
        if self.command == "GET":
            body = data[first:last]
            if name in self.hub.spoiled:
                body = body[:-1] + bytes([body[-1] ^ 1])
            if is_large(name) and self.hub.cut_after is not None and len(body) > self.hub.cut_after:
                body, self.close_connection = body[: self.hub.cut_after], True
            self.wfile.write(body)
            self.hub.bytes_sent += len(body)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


def _tree_entry(entry: dict[str, object]) -> dict[str, object]:
    lfs = entry.get("lfs")
    tree = {"type": "file", "path": entry["rfilename"], "size": entry["size"], "oid": entry["blobId"]}
    return tree if lfs is None else tree | {"lfs": {"oid": lfs["sha256"], "size": entry["size"], "pointerSize": 134}}  # type: ignore[index]


@contextmanager
def running_hub(repositories: dict[str, dict[str, bytes]], **fields: object) -> Iterator[Hub]:
    """Serve these repositories as long as the context lasts."""
    hub = Hub(repositories, **fields)  # type: ignore[arg-type]
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
