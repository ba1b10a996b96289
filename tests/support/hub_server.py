"""A hub of one process: what its client asks to write a repository, and to read it.

It holds the files of the last commit, takes them as text of that commit, and calls each
by its SHA-256, as the real one does with large files.
"""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "1" * 40


class Hub(ThreadingHTTPServer):
    """Its repositories, {name: {file: content}}, and what it was asked."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos, self.asked = {}, []
        self.token = None  # that writers must have

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def running(monkeypatch, tmp_path):
    """A hub that the client takes for the real one."""
    from huggingface_hub import constants

    with Hub() as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setenv("HF_TOKEN", "secret")
        yield hub
        hub.shutdown()


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        hub = self.server
        hub.asked.append((self.command, self.path))
        path = self.path.partition("?")[0].lstrip("/")
        if "/resolve/" not in path:
            self._answer(200 if not path else 404, b"")
            return
        repo, _, rest = path.partition("/resolve/")
        content = hub.repos.get(repo, {}).get(rest.partition("/")[2])
        if content is None:
            missing = "RepoNotFound" if repo not in hub.repos else "EntryNotFound"
            self._answer(404, b"", {"X-Error-Code": missing})
            return
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        self._answer(200, content, {"ETag": etag, "X-Repo-Commit": COMMIT})

    def do_POST(self):
        hub = self.server
        hub.asked.append((self.command, self.path))
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = self.path.partition("?")[0]
        if hub.token and self.headers["Authorization"] != f"Bearer {hub.token}":
            self._answer(401, b'{"error": "Invalid credentials"}')
        elif path == "/api/repos/create":
            asked = json.loads(body)
            repo = "/".join(filter(None, [asked.get("organization"), asked["name"]]))
            hub.repos.setdefault(repo, {})
            self._json({"url": f"{hub.address}/{repo}", "name": repo})
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            modes = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            self._json({"files": modes})
        elif "/commit/" in path:
            repo = path.removeprefix("/api/models/").partition("/commit/")[0]
            for line in body.splitlines():
                part = json.loads(line)
                if part["key"] == "file":
                    content = base64.b64decode(part["value"]["content"])
                    hub.repos[repo][part["value"]["path"]] = content
            url = f"{hub.address}/{repo}/commit/{COMMIT}"
            self._json({"success": True, "commitOid": COMMIT, "commitUrl": url})
        else:
            self._answer(404, b"")

    def _json(self, value):
        kind = {"Content-Type": "application/json"}
        self._answer(200, json.dumps(value).encode(), kind)

    def _answer(self, status, content, headers=None):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
