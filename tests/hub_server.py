"""A hub on loopback that serves one repository as the real one does, as far as `huggingface_hub` asks."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from s3_server import serving

COMMIT = "1" * 40


@dataclass
class Hub:
    url: str = ""
    served: Counter[str] = field(default_factory=Counter)  # files by name
    revisions: set[str] = field(default_factory=set)  # that were asked for


@contextmanager
def hub_server(folder: Path, repo: str) -> Iterator[Hub]:
    """Serves `folder` as `repo`, whatever the revision, which is commit COMMIT."""
    hub = Hub()
    files = [str(p.relative_to(folder)) for p in sorted(folder.rglob("*")) if p.is_file()]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def _serve(self) -> None:
            path = self.path.partition("?")[0]
            if path.startswith(f"/api/models/{repo}"):
                hub.revisions.add(path.rpartition("/")[2])
                info = {"id": repo, "sha": COMMIT, "siblings": [{"rfilename": f} for f in files]}
                if "/tree/" in path:
                    sizes = [
                        {"type": "file", "path": f, "oid": COMMIT, "size": (folder / f).stat().st_size} for f in files
                    ]
                    return self._answer(200, json.dumps(sizes).encode())
                return self._answer(200, json.dumps(info).encode(), Content_Type="application/json")
            prefix = f"/{repo}/resolve/{COMMIT}/"
            name = path.removeprefix(prefix)
            if not path.startswith(prefix) or name not in files:
                return self._answer(404, b"", X_Error_Code="EntryNotFound")
            body = (folder / name).read_bytes()
            hub.served[name] += self.command == "GET"
            tag = f'"{hashlib.sha256(body).hexdigest()}"'
            return self._answer(200, body, X_Repo_Commit=COMMIT, ETag=tag, Accept_Ranges="bytes")

        do_GET = do_HEAD = _serve  # named by http.server

        def log_message(self, *args: object) -> None:
            pass

    with serving(Handler) as hub.url:
        yield hub
