"""A Hub in this process: the part of its API that huggingface_hub uses to publish and to load models, over HTTP."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_fake"  # the one login


def _blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class FakeHub:
    """Repositories as {commit: {path: bytes}}; every request is kept in `asked`."""

    def __init__(self):
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}
        self.branches: dict[str, dict[str, str]] = {}
        self.private: dict[str, bool] = {}
        self.stored: dict[str, bytes] = {}  # large files by SHA-256
        self.messages: list[str] = []
        self.asked: list[str] = []  # "METHOD /path"
        self.failures: dict[str, tuple[int, str]] = {}  # part of a request -> status, message
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def _answer(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, content, headers = hub.answer(self, body)
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            do_GET = do_HEAD = do_POST = do_PUT = _answer

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def create(self, name: str, private: bool = False, files: dict[str, bytes] | None = None) -> str:
        """A repository with one commit; returns the commit."""
        self.commits[name], self.branches[name], self.private[name] = {}, {}, private
        return self.commit(name, "main", {".gitattributes": b"", **(files or {})})

    def commit(self, name: str, branch: str, files: dict[str, bytes]) -> str:
        """A new commit with these files."""
        contents = sorted((path, hashlib.sha256(data).hexdigest()) for path, data in files.items())
        commit = hashlib.sha1(json.dumps([name, len(self.commits[name]), contents]).encode()).hexdigest()
        self.commits[name][commit], self.branches[name][branch] = dict(files), commit
        return commit

    def answer(self, request, body):
        """Status, content and headers."""
        path = unquote(urlsplit(request.path).path)
        self.asked.append(f"{request.command} {path}")
        for part, (status, message) in self.failures.items():
            if part in self.asked[-1]:
                return status, {"error": message}, {"X-Error-Message": message}
        writes = request.command in ("POST", "PUT") and "validate-yaml" not in path and not path.startswith("/lfs/")
        if writes and request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid username or password."}, {}
        if path == "/api/validate-yaml":
            return 200, {"warnings": [], "errors": []}, {}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            status = 409 if name in self.commits else 200
            if status == 200:
                self.create(name, asked.get("visibility") == "private" or bool(asked.get("private")))
            return status, {"url": f"{self.url}/{name}"}, {}
        if path.startswith("/lfs/"):
            self.stored[path.removeprefix("/lfs/")] = body
            return 200, {}, {}
        if batch := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return 200, {"objects": [self._upload(found) for found in json.loads(body)["objects"]]}, {}
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._file(*found.groups())
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(\w+)/([^/]+))?(/.*)?", path)
        if found is None or found[1] not in self.commits or batch:
            return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        return self._repository(found[1], found[2] or "revision", found[3] or "main", body)

    def _repository(self, name, what, revision, body):
        commit = self.branches[name].get(revision, revision)
        if what == "branch":
            if revision in self.branches[name]:
                return 409, {"error": "Reference already exists"}, {}
            self.branches[name][revision] = self.branches[name]["main"]
            return 200, {}, {}
        if commit not in self.commits[name]:
            return 404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"}
        files = self.commits[name][commit]
        if what == "revision":
            siblings = [{"rfilename": path} for path in files]
            return 200, {"id": name, "sha": commit, "private": self.private[name], "siblings": siblings}, {}
        if what == "tree":
            return 200, [self._entry(*each) for each in files.items()], {}
        if what == "preupload":
            modes = {True: "lfs", False: "regular"}
            paths = [found["path"] for found in json.loads(body)["files"]]
            return (
                200,
                {
                    "files": [
                        {"path": path, "uploadMode": modes[path.endswith(".safetensors")], "shouldIgnore": False}
                        for path in paths
                    ]
                },
                {},
            )
        assert what == "commit"
        lines = [json.loads(line) for line in body.splitlines()]
        if lines[0]["value"].get("parentCommit") not in (None, commit):
            return 412, {"error": "A commit has happened since"}, {}
        files = dict(files)
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.stored[value["oid"]]
            else:
                del files[value["path"]]
        self.messages.append(lines[0]["value"]["summary"])
        made = self.commit(name, revision, files)
        return 200, {"commitUrl": f"{self.url}/{name}/commit/{made}", "commitOid": made}, {}

    def _upload(self, found):
        return {**found, "actions": {"upload": {"href": f"{self.url}/lfs/{found['oid']}"}}}

    def _entry(self, path, data):
        entry = {"type": "file", "path": path, "size": len(data), "oid": _blob(data)}
        if path.endswith(".safetensors"):
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return entry

    def _file(self, name, revision, path):
        commit = self.branches.get(name, {}).get(revision, revision)
        data = self.commits.get(name, {}).get(commit, {}).get(path)
        if data is None:
            return 404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"}
        etag = hashlib.sha256(data).hexdigest() if path.endswith(".safetensors") else _blob(data)
        return 200, data, {"ETag": f'"{etag}"', "X-Repo-Commit": commit}
