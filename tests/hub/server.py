"""A small hub on loopback: the endpoints of huggingface.co that pulling a model uses, and the ways in which they fail.

Files in large-file storage are redirected to a second address, as the real hub redirects to its storage; small files are sent directly.
"""
from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
import urllib.parse
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Repo:
    files: dict[str, bytes]
    commit: str = "a" * 40
    branches: dict[str, str] = field(default_factory=dict)  # besides main
    stored_large: tuple[str, ...] = (".safetensors", ".bin", ".gguf")
    gated: bool = False
    license: str | None = "apache-2.0"

    def large(self, path: str) -> bool:
        return path.endswith(self.stored_large)

    def sibling(self, path: str) -> dict[str, Any]:
        body = self.files[path]
        git_id = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
        lfs = {"size": len(body), "sha256": hashlib.sha256(body).hexdigest(), "pointerSize": 134}
        return {"rfilename": path, "size": len(body), "blobId": git_id, **({"lfs": lfs} if self.large(path) else {})}


@dataclass
class Request:
    method: str
    address: str
    path: str
    range: str | None
    authorization: str | None


class Hub:
    """Two servers on ports of their own; what was asked is in `requests`, what goes wrong in the public fields."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.requests: list[Request] = []
        self.cut_after: dict[str, list[int]] = {}  # file -> after how many bytes each next answer breaks off
        self.refuse: dict[str, list[int]] = {}  # file -> status of each next answer
        self.retry_after: str | None = None  # the header of each refusal
        self.corrupt: dict[str, int] = {}  # file -> how many answers carry a wrong byte
        self.ignore_range = False
        self.chunked = False  # no Content-Length: an early end looks like the end
        self.endless = False  # an answer that never ends
        self.stall = threading.Event()  # set: data stops in the middle until it is cleared
        self.tokens = {"good-token"}
        self.edit_listing = lambda listing: listing
        self._servers = [self._serve("hub"), self._serve("storage")]

    def _serve(self, role: str) -> ThreadingHTTPServer:
        server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self, "role": role}))
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return server

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._servers[0].server_port}"

    @property
    def storage_url(self) -> str:
        return f"http://127.0.0.1:{self._servers[1].server_port}"

    def close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def asked(self, file: str) -> list[Request]:
        """The requests for the bytes of one file."""
        return [r for r in self.requests if r.path.endswith("/" + file) and (r.address == "storage" or "/resolve/" in r.path)]


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Quiet where the client left, which is what many tests are about."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    role: str
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Quiet: the log is hub.requests."""

    def do_GET(self) -> None:
        parsed = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(parsed.path)
        self.hub.requests.append(Request("GET", self.role, path, self.headers.get("Range"), self.headers.get("Authorization")))
        try:
            if self.role == "storage":
                name = next(name for name in self.hub.repos if path.startswith(f"/cdn/{name}/"))
                self._bytes(self.hub.repos[name], path.removeprefix(f"/cdn/{name}/"))
            elif path in ("/api/models", "/api/datasets"):
                query, prefix = urllib.parse.parse_qs(parsed.query).get("search", [""])[0], "datasets/" * path.endswith("datasets")
                names = [name.removeprefix(prefix) for name in self.hub.repos if name.startswith(prefix) and query[-4:].lower() in name.lower()]
                self._json([{"id": name, "modelId": name} for name in names])
            elif path.startswith("/api/models/"):
                self._api(path.removeprefix("/api/models/").split("/"))
            elif path.startswith("/api/datasets/"):
                self._api(path.removeprefix("/api/datasets/").split("/"), "datasets/")
            else:
                repo, _, rest = path[1:].partition("/resolve/")
                self._file(repo, *rest.split("/", 1))
        except ConnectionError:
            self.close_connection = True

    def _api(self, parts: list[str], prefix: str = "") -> None:
        repo = self.hub.repos.get(prefix + "/".join(parts[:2]))
        if self._bad_token():
            return
        if repo is None:
            self._json({"error": "Repository not found"}, 401, {"X-Error-Code": "RepoNotFound"})
        elif parts[2] == "refs":
            branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": c} for n, c in {"main": repo.commit, **repo.branches}.items()]
            self._json({"branches": branches, "converts": [], "tags": []})
        else:
            revision = "/".join(parts[3:])
            commit = {"main": repo.commit, **repo.branches, **{c: c for c in (repo.commit, *repo.branches.values())}}.get(revision)
            if commit is None:
                self._json({"error": "Invalid rev id"}, 404, {"X-Error-Code": "RevisionNotFound"})
            else:
                self._json(self.hub.edit_listing({
                    "id": "/".join(parts[:2]), "sha": commit, "gated": "manual" if repo.gated else False, "cardData": {"license": repo.license},
                    "siblings": [repo.sibling(file) for file in repo.files]}))

    def _bad_token(self) -> bool:
        sent = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if not sent or sent in self.hub.tokens | {"token-without-access"}:
            return False
        self._json({"error": "Invalid credentials"}, 401, {"X-Error-Message": "Invalid credentials in Authorization header"})
        return True

    def _file(self, name: str, commit: str, file: str) -> None:
        repo = self.hub.repos[name]
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if repo.gated and token not in self.hub.tokens:
            self._json({"error": "gated"}, 403 if token else 401, {"X-Error-Code": "GatedRepo"})
        elif file not in repo.files:
            self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        elif repo.large(file):
            self._json({}, 302, {"Location": f"{self.hub.storage_url}/cdn/{name}/{file}", "X-Repo-Commit": commit})
        else:
            self._bytes(repo, file)

    def _bytes(self, repo: Repo, file: str) -> None:
        hub, body = self.hub, repo.files[file]
        if hub.refuse.get(file):
            return self._json({"error": "no"}, hub.refuse[file].pop(0), {"Retry-After": hub.retry_after} if hub.retry_after else None)
        if hub.corrupt.get(file, 0):
            hub.corrupt[file] -= 1
            body = body[:-1] + bytes([body[-1] ^ 1])
        start = 0
        if self.headers.get("Range") and not hub.ignore_range:
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        cut = hub.cut_after[file].pop(0) if hub.cut_after.get(file) else None
        self.close_connection = cut is not None or hub.chunked
        if not hub.chunked:
            self.send_header("Content-Length", str(len(body) - start))
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.end_headers()
        rest = body[start:] if cut is None else body[start:start + cut]
        if hub.stall.is_set():
            self.wfile.write(rest[:len(rest) // 2])
            while hub.stall.is_set():
                time.sleep(0.01)
            rest = rest[len(rest) // 2:]
        self.wfile.write(rest)
        while hub.endless:
            self.wfile.write(rest)
        return None

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        for key, text in {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, text)
        self.end_headers()
        self.wfile.write(body)
