"""A hub on this machine, for a process of its own: repositories are folders, and some answer with an error. No network is needed."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

COMMIT = "0123456789abcdef0123456789abcdef01234567"
Refusal = tuple[int, str, str]  # status, the hub's code, message
_NO_REPOSITORY: Refusal = (401, "RepoNotFound", "Repository Not Found")


class _Hub(ThreadingHTTPServer):
    def __init__(self, root: Path, refused: Mapping[str, Refusal]) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.root, self.refused = root, refused
        self.asked: list[str] = []


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Hub

    def log_message(self, *_: Any) -> None:
        return None

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlparse(self.path).path).strip("/")
        self.server.asked.append(path)
        if path.startswith("api/models/"):
            self._describe(*path.removeprefix("api/models/").split("/"))
        elif "/resolve/" in path:
            repository, _, rest = path.partition("/resolve/")
            self._send(repository, rest.partition("/")[2])
        else:
            self._refuse(404, "", "")

    def _describe(self, owner: str, name: str, *rest: str) -> None:
        folder = self.server.root / owner / name
        if not folder.is_dir():
            return self._refuse(*_NO_REPOSITORY)
        sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
        tree = [{"type": "file", "path": path, "size": size, "oid": "0"} for path, size in sizes.items()]
        about = {"id": f"{owner}/{name}", "sha": COMMIT, "siblings": [{"rfilename": path} for path in sizes]}
        return self._answer(200, json.dumps(tree if "tree" in rest else about).encode(), {"Content-Type": "application/json"})

    def _send(self, repository: str, file: str) -> None:
        if repository in self.server.refused:
            return self._refuse(*self.server.refused[repository])
        if not (self.server.root / repository).is_dir():
            return self._refuse(*_NO_REPOSITORY)
        path = self.server.root / repository / file
        if not path.is_file():
            return self._refuse(404, "EntryNotFound", "Entry not found")
        content = path.read_bytes()
        etag = hashlib.sha1(content, usedforsecurity=False).hexdigest()
        return self._answer(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._answer(status, b"", {"X-Error-Code": code, "X-Error-Message": message})

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def fake_hub(root: Path, refused: Mapping[str, Refusal]) -> Iterator[tuple[str, list[str]]]:
    """Serve ``root/owner/name`` as repositories; yield the address and the paths that are asked for.

    Args:
        root: of the repositories.
        refused: by repository, with what its files are refused.
    """
    server = _Hub(root, refused)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.asked
    finally:
        server.shutdown()
        server.server_close()
