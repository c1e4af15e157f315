"""A hub on this machine: it speaks the real one's protocol as far as models and data sets need it, and can break off.

`ROOT/models/OWNER/NAME` and `ROOT/datasets/OWNER/NAME` hold the files of the one commit, `ROOT/exports/OWNER/NAME`
those of `refs/convert/parquet`. POST /_rules takes {regular expression of "METHOD PATH": a status, or "drop"}.
"""

import hashlib
import json
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "c" * 40
EXPORT = "e" * 40


class _Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    root: Path
    rules: dict[str, int | str]

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        path = unquote(url.path)
        if path == "/_rules":
            self.rules.clear()
            self.rules.update(json.loads(body))
            return self._send(200, b"{}")
        for pattern, action in self.rules.items():
            if re.search(pattern, f"{self.command} {path}"):
                if action == "drop":
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True
                    return None
                return self._send(int(action), b"{}")
        path = path.replace("refs/convert/parquet", EXPORT)
        if match := re.match(r"/(datasets/)?(\w+/\w+)/resolve/([^/]+)/(.+)", path):
            return self._send_file("datasets" if match[1] else "models", match[2], match[3], match[4])
        if match := re.match(r"/api/(models|datasets)/(\w+/\w+)(?:/(revision|tree|paths-info)/(.*))?$", path):
            asked = parse_qs(url.query) | parse_qs(body.decode())
            return self._send_facts(match[1], match[2], match[3], match[4] or "main", asked)
        return self._send(404, b"{}")

    do_HEAD = do_POST = do_GET

    def _send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _folder(self, kind: str, name: str, revision: str) -> tuple[Path, str]:
        is_export = revision.startswith(EXPORT)
        return self.root / ("exports" if is_export else kind) / name, EXPORT if is_export else COMMIT

    def _send_file(self, kind: str, name: str, revision: str, file: str) -> None:
        folder, commit = self._folder(kind, name, revision)
        if not folder.is_dir():
            return self._send(404, b"{}", X_Error_Code="RepoNotFound")
        if not (folder / file).is_file():
            return self._send(404, b"{}", X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        content = (folder / file).read_bytes()
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        return self._send(200, content, X_Repo_Commit=commit, ETag=etag, X_Linked_Size=str(len(content)))

    def _send_facts(self, kind: str, name: str, verb: str | None, rest: str, asked: Mapping[str, list[str]]) -> None:
        folder, commit = self._folder(kind, name, rest)
        if not folder.is_dir():
            return self._send(404, b"{}", X_Error_Code="RepoNotFound")
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        names = [str(file.relative_to(folder)) for file in files]
        if verb in (None, "revision"):
            facts = {"_id": "1", "id": name, "sha": commit, "private": False, "gated": False, "disabled": False}
            facts |= {"tags": [], "downloads": 0, "likes": 0, "siblings": [{"rfilename": each} for each in names]}
            return self._send(200, json.dumps(facts).encode())
        inside = rest.removeprefix(COMMIT).removeprefix(EXPORT).strip("/")
        paths = asked.get("paths") or [str(path.relative_to(folder)) for path in (folder / inside).rglob("*")]
        listed = [
            {"type": "directory", "oid": "d" * 40, "size": 0, "path": path}
            if (folder / path).is_dir()
            else {"type": "file", "oid": "f" * 40, "size": (folder / path).stat().st_size, "path": path}
            for path in paths
            if (folder / path).exists()
        ]
        return self._send(200, json.dumps(listed).encode())


@contextmanager
def running_hub(root: Path) -> Iterator[str]:
    """The address of a hub with these files."""
    handler = type("Hub", (_Hub,), {"root": root, "rules": {}})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
