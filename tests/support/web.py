"""A web server on the loopback for one test: files with ranges and marks, that can cut, lie or fall silent; and a small Hub."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Web:
    """``files``: path → bytes. ``cut``: bytes after which each answer is cut off, one entry an answer. ``silent``: never answers."""

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.cut: list[int] = []
        self.status: dict[str, int] = {}
        self.moved: dict[str, str] = {}                    # path → path that it redirects to
        self.ranges_allowed = True
        self.silent = threading.Event()
        self.closing = threading.Event()
        self.asked: list[tuple[str, str, str]] = []        # path, Range, Authorization
        self.posted: list[tuple[str, Any]] = []            # path, what was sent there (of a commit its lines)
        self.address = ""

    def put_model(self, name: str, files: dict[str, bytes], commit: str = "c0ffee", revision: str = "main") -> None:
        """Serve a Hub repository with its listing."""
        siblings = []
        for file, content in files.items():
            self.files[f"/{name}/resolve/{commit}/{file}"] = content
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            entry = {"rfilename": file, "size": len(content), "blobId": blob}
            if file.endswith(".safetensors"):
                entry["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
            siblings.append(entry)
        self.files[f"/api/models/{name}/revision/{revision}"] = json.dumps({"id": name, "sha": commit, "siblings": siblings}).encode()
        self.files[f"/api/models/{name}/tree/{commit}"] = json.dumps([
            {"type": "file", "path": each["rfilename"], "size": each["size"], "oid": each["blobId"]} for each in siblings]).encode()


@contextlib.contextmanager
def serving() -> Iterator[Web]:
    """A running `Web`; its threads have ended when this does."""
    web = Web()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, wanted = self.path.partition("?")[0], self.headers.get("Range", "")
            web.asked.append((path, wanted, self.headers.get("Authorization", "")))
            if web.silent.is_set():
                web.closing.wait(30)
                return
            if path in web.moved:
                self.send_response(302)
                self.send_header("Location", web.address + web.moved[path])
                self.send_header("Content-Length", "0")
                return self.end_headers()
            content = web.files.get(path)
            if content is None or path in web.status:
                return self.refuse(path)
            start, mark = 0, f'"{hashlib.sha256(content).hexdigest()}"'
            if wanted and web.ranges_allowed and self.headers.get("If-Range", mark) == mark:
                start = int(wanted.removeprefix("bytes=").rstrip("-"))
                if start >= len(content):
                    return self.send_error(416)
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            else:
                self.send_response(200)
            self.send_header("ETag", mark)
            self.send_header("Content-Length", str(len(content) - start))
            self.send_header("X-Repo-Commit", path.partition("/resolve/")[2].partition("/")[0])
            self.end_headers()
            if self.command == "HEAD":
                return
            body = content[start:]
            self.wfile.write(body[:web.cut.pop(0)] if web.cut else body)
            self.close_connection = True

        do_HEAD = do_GET

        def do_POST(self) -> None:
            """The Hub's way of taking files in: a repository is made, the files are announced, and come with the commit."""
            body = self.rfile.read(int(self.headers["Content-Length"]))
            path, lines = self.path.partition("?")[0], [json.loads(line) for line in body.splitlines()]
            web.asked.append((path, "", self.headers.get("Authorization", "")))
            web.posted.append((self.path, lines))
            last = path.split("/")[-2]
            answer = {"url": f"{web.address}/{lines[0].get('organization')}/{lines[0].get('name')}"}
            if last == "preupload":
                answer = {"files": [{"path": each["path"], "uploadMode": "regular", "shouldIgnore": False} for each in lines[0]["files"]]}
            elif last == "commit":
                answer = {"commitOid": "a" * 40, "commitUrl": f"{web.address}{path.removeprefix('/api/models').rpartition('/')[0]}/1"}
            elif path.endswith("/discussions"):            # a proposal is opened first, and then filled
                answer = {"num": 7, "title": lines[0]["title"], "isPullRequest": lines[0]["pullRequest"], "createdAt": "2026-01-01T00:00:00.000Z",
                          "changes": {"base": "refs/heads/main"}, "filesWithConflicts": [], "status": "draft", "events": [],
                          "repo": {"name": "/".join(path.split("/")[3:5]), "type": "model"}}
                web.files[f"{path}/7"] = json.dumps(answer).encode()
            content = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def refuse(self, path: str) -> None:
            """As the Hub does, which says whether it is the repository that is not there, or only this state of it."""
            self.send_response(web.status.get(path, 404))
            if path.startswith("/api/models/") and path not in web.status:
                known = any(other.startswith(path.partition("/revision/")[0] + "/") for other in web.files)
                self.send_header("X-Error-Code", "RevisionNotFound" if known else "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments) -> None:
            """Tests are quiet."""

        def handle(self) -> None:
            with contextlib.suppress(ConnectionError):     # the client has left: that is what is being tested
                super().handle()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.block_on_close = False, True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, name="web")
    thread.start()
    web.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield web
    finally:
        web.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def hub_here(monkeypatch) -> Iterator[Web]:
    """The Hub on this computer, for what goes through `huggingface_hub`."""
    import huggingface_hub.constants as there

    with serving() as web:
        monkeypatch.setattr(there, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(there, "ENDPOINT", web.address)
        monkeypatch.setattr(there, "HUGGINGFACE_CO_URL_TEMPLATE", web.address + "/{repo_id}/resolve/{revision}/{filename}")
        yield web
