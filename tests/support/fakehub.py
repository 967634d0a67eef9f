"""A model hub on this machine: what the hub's clients ask of it, answered from a folder.

    ROOT/models/org/name/config.json …      ROOT/datasets/org/name/config/split.jsonl …

Set HF_ENDPOINT to `url`. Every repository has one commit, `COMMIT`, which `main` stands for.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_API = re.compile(
    r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+))?(.*)"
)
_FILE = re.compile(r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@contextmanager
def serve(root: Path, gated: int | None = None) -> Iterator[tuple[str, list[str]]]:
    """The hub's address, and the paths that were asked for, in order.

    gated: the status by which files are refused, as of models that one must ask for.
    """
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            self._answer(body)

        def log_message(self, format: str, *args: Any) -> None:
            asked.append(self.path)

        def _answer(self, body: str = "") -> None:
            path = unquote(urlparse(self.path).path)
            refused = gated if _FILE.fullmatch(path) else None
            content = None if refused else _content(root, path, body)
            self.send_response(refused or (404 if content is None else 200))
            self.send_header("Content-Length", str(len(content or b"")))
            if content is None:
                self.send_header("X-Error-Code", "GatedRepo" if refused else "EntryNotFound")
            else:
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if content is not None and self.command != "HEAD":
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()


def _content(root: Path, path: str, body: str) -> bytes | None:
    if found := _API.fullmatch(path):
        kind, name, verb, _, inside = found.groups()
        folder = root / kind / name
        return (
            json.dumps(_about(folder, name, verb, inside, body)).encode()
            if folder.is_dir()
            else None
        )
    if found := _FILE.fullmatch(path):
        kind, name, _, file = found.groups()
        place = root / (kind or "models") / name / file
        return place.read_bytes() if place.is_file() else None
    return None


def _about(folder: Path, name: str, verb: str | None, inside: str, body: str) -> Any:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if verb == "tree":
        at = folder / inside.strip("/")
        return [_entry(folder, path) for path in sorted(at.rglob("*"))]
    if verb == "paths-info":
        wanted = [folder / path for path in parse_qs(body).get("paths", [])]
        return [_entry(folder, path) for path in wanted if path.exists()]
    siblings = [{"rfilename": str(path.relative_to(folder))} for path in files]
    return {"id": name, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}


def _entry(folder: Path, path: Path) -> dict[str, Any]:
    kind = "directory" if path.is_dir() else "file"
    oid = hashlib.sha1(str(path).encode()).hexdigest()
    return {
        "type": kind,
        "path": str(path.relative_to(folder)),
        "size": path.stat().st_size,
        "oid": oid,
    }
