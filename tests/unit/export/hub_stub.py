"""The part of the Hub's HTTP API that an upload speaks to, on a local port."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_" + "StubTokenThatMustNotLeak" + "0" * 10


class HubStub(ThreadingHTTPServer):
    """Keeps what was uploaded: `files` of the last commit, `repos` created, `seen` requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, bool] = {}
        self.files: dict[str, bytes] = {}
        self.objects: dict[str, bytes] = {}
        self.messages: list[str] = []
        self.seen: list[str] = []
        self.refuse: tuple[str, int] | None = None  # a part of a path, and the status it is answered with
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> HubStub:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubStub

    def log_message(self, *text: object) -> None:
        pass

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def answer(self, content: Any, status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def handle_one(self) -> None:
        hub, path, body = self.server, self.path.split("?")[0], self.body()
        hub.seen.append(f"{self.command} {path}")
        if hub.refuse and hub.refuse[0] in path:
            return self.answer({"error": "refused by the stub"}, hub.refuse[1])
        if path.startswith("/store/"):
            hub.objects[path.removeprefix("/store/")] = body
            return self.answer({})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer({"error": "Invalid credentials"}, 401)
        if path == "/api/whoami-v2":
            return self.answer({"type": "user", "name": "me", "auth": {"accessToken": {"role": "write"}}})
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            hub.repos[name] = asked.get("visibility") == "private" or asked.get("private", False)
            return self.answer({"url": f"{hub.url}/{name}", "name": name})
        if path.endswith("/preupload/main"):
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return self.answer({"files": modes})
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**wanted, "actions": {"upload": {"href": f"{hub.url}/store/{wanted['oid']}"}}}
                for wanted in json.loads(body)["objects"]
            ]
            return self.answer({"transfer": "basic", "objects": objects})
        if path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                self.commit(line["key"], line["value"])
            return self.answer(
                {"success": True, "commitOid": "a" * 40, "commitUrl": f"{hub.url}/me/m/commit/a"}
            )
        return self.answer({"sha": "a" * 40, "siblings": [], "id": "me/m", "error": "not found"}, 404)

    def commit(self, key: str, value: dict[str, Any]) -> None:
        if key == "header":
            self.server.messages.append(value["summary"])
        elif key == "file":
            self.server.files[value["path"]] = base64.b64decode(value["content"])
        elif key == "lfsFile":
            self.server.files[value["path"]] = self.server.objects[value["oid"]]

    do_GET = do_POST = do_PUT = do_HEAD = handle_one  # noqa: N815 - the names http.server calls
