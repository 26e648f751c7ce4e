"""A model hub on loopback: as much of the Hugging Face Hub's interface as uploads and downloads of a folder need.

The interface: huggingface.co/docs/hub/api. Files are kept in memory; nothing asks for a token.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml


@dataclass
class Repository:
    """files: contents by path. private: as it was asked for. revision: changes with each commit."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    revision: str = "0" * 40


@dataclass
class StandInHub:
    """repositories: by OWNER/NAME. unknown: requests that it has no answer for. heads: of the model cards that it was
    asked to check."""

    port: int = 0
    repositories: dict[str, Repository] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    heads: list[dict[str, Any]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def _handler(hub: StandInHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            """Nothing on stderr."""

        def body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def send(self, content: bytes, status: int = 200, **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def send_json(self, value: Any, status: int = 200) -> None:
            self.send(json.dumps(value).encode(), status, Content_Type="application/json")

        def missing(self, code: str) -> None:
            hub.unknown.append(f"{self.command} {self.path}")
            self.send(b"{}", 404, X_Error_Code=code, X_Error_Message=code)

        def do_POST(self) -> None:
            words = urlsplit(self.path).path.strip("/").split("/")
            if words == ["api", "repos", "create"]:
                asked = json.loads(self.body())
                name = f"{asked.get('organization') or 'me'}/{asked['name']}"
                known = name in hub.repositories
                private = bool(asked.get("private")) or asked.get("visibility") == "private"
                hub.repositories.setdefault(name, Repository(private))
                answer = {"url": f"{hub.url}/{name}", "name": name, "id": "1"}
                self.send_json(answer, 409 if known else 200)
                return
            if words == ["api", "validate-yaml"]:
                head = json.loads(self.body())["content"].split("---\n")[1]
                hub.heads.append(yaml.safe_load(head))
                self.send_json({"errors": [], "warnings": []})
                return
            name = "/".join(words[2:4])
            if words[:2] != ["api", "models"] or name not in hub.repositories:
                self.body()
                self.missing("RepoNotFound")
            elif words[4] == "preupload":
                asked = json.loads(self.body())["files"]
                files = [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in asked]
                self.send_json({"files": files})
            else:
                self.commit(hub.repositories[name], name)

        def commit(self, repository: Repository, name: str) -> None:
            lines = [json.loads(line) for line in self.body().splitlines()]
            for line in lines:
                if line["key"] == "file":
                    repository.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            repository.revision = hashlib.sha1(repr(sorted(repository.files.items())).encode()).hexdigest()
            url = f"{hub.url}/{name}/commit/{repository.revision}"
            self.send_json({"success": True, "commitOid": repository.revision, "commitUrl": url, "hookOutput": ""})

        def do_GET(self) -> None:
            words = [unquote(word) for word in urlsplit(self.path).path.strip("/").split("/")]
            api = words[:2] == ["api", "models"]
            name = "/".join(words[2:4] if api else words[:2])
            repository = hub.repositories.get(name)
            if repository is None:
                self.missing("RepoNotFound")
                return
            revision, files = repository.revision, repository.files
            if api and "tree" in words:
                self.send_json([entry(path, content) for path, content in files.items()])
            elif api:
                siblings = [{"rfilename": path} for path in files]
                self.send_json({"id": name, "sha": revision, "private": repository.private, "siblings": siblings})
            elif words[2:3] == ["resolve"] and "/".join(words[4:]) in files:
                content = files["/".join(words[4:])]
                self.send(content, ETag=f'"{blob_id(content)}"', X_Repo_Commit=revision)
            else:
                self.missing("EntryNotFound")

        do_HEAD = do_GET  # noqa: N815 -- the name that http.server asks for

    return Handler


def entry(path: str, content: bytes) -> dict[str, Any]:
    """A file in the listing of a repository."""
    return {"type": "file", "path": path, "size": len(content), "oid": blob_id(content)}


def blob_id(content: bytes) -> str:
    """git's name of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def standing_in() -> Iterator[StandInHub]:
    """A hub that answers until the end of the block."""
    hub = StandInHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
