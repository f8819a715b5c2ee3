"""A stand-in of the model hub on this machine: repositories in a folder, created, committed to and read over HTTP."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_standin"
COMMIT = "0" * 39 + "1"


class StandInHub:
    """Address and folder of a running stand-in; ``private`` names repositories that want the token to be read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.private: set[str] = set()
        self.created: list[dict[str, Any]] = []
        self.messages: list[str] = []
        self.endpoint = ""

    def repository(self, name: str) -> Path:
        return self.folder / name


@contextmanager
def stand_in_hub(folder: Path) -> Iterator[StandInHub]:
    """Serve a folder as a hub until the block ends."""
    hub = StandInHub(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(hub: StandInHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        # ------------------------------------------------------------ answers

        def _json(self, body: Any, status: int = 200, **headers: str) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            for name, value in {
                "Content-Type": "application/json",
                "Content-Length": str(len(data)),
                **headers,
            }.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def _refuse(self, status: int, code: str) -> None:
            self._json({"error": code}, status, X_Error_Code=code, X_Error_Message=code)

        def _authorized(self) -> bool:
            return self.headers.get("Authorization") == f"Bearer {TOKEN}"

        def _body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        # ------------------------------------------------------------ reading

        def do_HEAD(self) -> None:
            self._read()

        def do_GET(self) -> None:
            self._read()

        def _read(self) -> None:
            path = unquote(urlsplit(self.path).path)
            if path == "/api/whoami-v2":
                if self._authorized():
                    self._json({"type": "user", "name": "somebody", "orgs": []})
                else:
                    self._refuse(401, "Unauthorized")
                return
            if path.startswith("/api/models/"):
                self._about(path.removeprefix("/api/models/"))
                return
            name, mark, rest = path.strip("/").partition("/resolve/")
            _, _, file = rest.partition("/")
            if not mark or not self._may_read(name):
                return
            found = hub.repository(name) / file
            if not found.is_file():
                self._refuse(404, "EntryNotFound")
                return
            data = found.read_bytes()
            self.send_response(200)
            self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def _may_read(self, name: str) -> bool:
            if not hub.repository(name).is_dir():
                self._refuse(401 if not self._authorized() else 404, "RepoNotFound")
                return False
            if name in hub.private and not self._authorized():
                self._refuse(401, "GatedRepo")
                return False
            return True

        def _about(self, rest: str) -> None:
            parts = rest.split("/")
            name = "/".join(parts[:2])
            if not self._may_read(name):
                return
            folder = hub.repository(name)
            files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
            if len(parts) > 2 and parts[2] == "tree":
                self._json(
                    [{"type": "file", "path": f, "size": (folder / f).stat().st_size, "oid": "0"} for f in files]
                )
                return
            about = {"id": name, "modelId": name, "sha": COMMIT, "private": name in hub.private, "tags": []}
            self._json({**about, "siblings": [{"rfilename": file} for file in files]})

        # ------------------------------------------------------------ writing

        def do_POST(self) -> None:
            body = self._body()
            path = unquote(urlsplit(self.path).path)
            if not self._authorized():
                self._refuse(401, "Unauthorized")
            elif path == "/api/repos/create":
                asked = json.loads(body)
                name = "/".join(filter(None, (asked.get("organization") or "somebody", asked["name"])))
                hub.created.append({**asked, "repo": name})
                hub.repository(name).mkdir(parents=True, exist_ok=True)
                if asked.get("private"):
                    hub.private.add(name)
                self._json({"url": f"{hub.endpoint}/{name}", "name": name, "id": name})
            elif "/preupload/" in path:
                files = json.loads(body)["files"]
                # everything inline: the commit carries the bytes
                self._json(
                    {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
                )
            elif "/commit/" in path:
                self._commit("/".join(path.split("/")[3:5]), body)
            else:
                self._json({})

        def _commit(self, name: str, body: bytes) -> None:
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "header":
                    hub.messages.append(entry["value"]["summary"])
                elif entry["key"] == "file":
                    file = hub.repository(name) / entry["value"]["path"]
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(base64.b64decode(entry["value"]["content"]))
            url = f"{hub.endpoint}/{name}/commit/{COMMIT}"
            self._json({"success": True, "commitOid": COMMIT, "commitUrl": url, "hookOutput": ""})

    return Handler
