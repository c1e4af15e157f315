"""A server with the hub's endpoints for making a model and committing to it."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Numbers = dict[str, Any]


@dataclass
class Hub:
    """What it has been sent."""

    url: str = ""
    refuse: int | None = None
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    created: list[Numbers] = field(default_factory=list)
    objects: dict[str, bytes] = field(default_factory=dict)  # large files by their SHA-256
    files: dict[str, bytes] = field(default_factory=dict)
    """The committed files."""

    def commit(self, lines: list[Numbers]) -> None:
        """Put files into the model, and take files out of it."""
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.files[value["path"]] = self.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del self.files[value["path"]]

    def answer(self, method: str, path: str, body: bytes) -> object:
        """The answer to a request: bytes, or what becomes JSON."""
        if self.refuse is not None:
            return {"error": "Invalid username or password."}
        if method == "PUT":
            self.objects[hashlib.sha256(body).hexdigest()] = body
            return {}
        if path == "/api/repos/create":
            self.created.append(json.loads(body))
            return {"url": f"{self.url}/me/prefix", "id": "me/prefix"}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if "/preupload/" in path:
            names = [one["path"] for one in json.loads(body)["files"]]
            kinds = {True: "lfs", False: "regular"}
            files = [{"path": n, "uploadMode": kinds[n.endswith(".safetensors")], "shouldIgnore": False} for n in names]
            return {"files": files}
        if path.startswith("/api/models/me/prefix/revision/main"):
            siblings = [{"rfilename": name} for name in self.files]
            return {"sha": "a" * 40, "id": "me/prefix", "modelId": "me/prefix", "siblings": siblings}
        if "/tree/" in path:
            sizes = {name: len(content) for name, content in self.files.items()}
            return [{"type": "file", "path": n, "size": size, "oid": f"{n:a<40.40}"} for n, size in sizes.items()]
        if "/resolve/" in path:
            return self.files[path.partition("/resolve/")[2].partition("/")[2]]
        if path.endswith("/info/lfs/objects/batch"):
            wanted = json.loads(body)["objects"]
            upload = [
                {**one, "actions": {"upload": {"href": f"{self.url}/put/{one['oid']}", "header": {}}}} for one in wanted
            ]
            return {"transfer": "basic", "objects": upload}
        if "/commit/" in path:
            self.commit([json.loads(line) for line in body.splitlines()])
            return {"commitUrl": f"{self.url}/me/prefix/commit/{'a' * 40}", "commitOid": "a" * 40, "hookOutput": ""}
        return {"sha": "a" * 40, "id": "me/prefix", "siblings": []}


@contextmanager
def serving() -> Iterator[Hub]:
    """Serve a hub on this machine, and let it be looked at."""
    state = Hub()

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Transfer-Encoding") == "chunked":
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            state.requests.append((f"{self.command} {self.path}", self.headers.get("Authorization")))
            answer = state.answer(self.command, self.path, body)
            reply = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(state.refuse or 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("X-Repo-Commit", "a" * 40)
            self.send_header("ETag", f'"{hashlib.sha256(reply).hexdigest()}"')
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(b"" if self.command == "HEAD" else reply)

        do_GET = do_POST = do_PUT = do_HEAD = _serve

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
