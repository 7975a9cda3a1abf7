"""A server of those routes of the Hugging Face Hub that upload and fetch a model."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route


class Hub:
    """Repositories by name, each with the bytes of its files; `fetched` are names of files."""

    def __init__(self):
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.fetched: list[str] = []
        self._stored: dict[str, bytes] = {}
        self.url = ""

    def commit(self, name: str) -> str:
        files = self.repositories[name]
        digests = {path: hashlib.sha1(data).hexdigest() for path, data in files.items()}
        return hashlib.sha1(json.dumps(digests, sort_keys=True).encode()).hexdigest()

    async def create(self, request: Request) -> Response:
        body = await request.json()
        name = "/".join(filter(None, (body.get("organization"), body["name"])))
        name = name if "/" in name else f"me/{name}"
        self.repositories.setdefault(name, {})
        return JSONResponse({"url": f"{self.url}/{name}", "id": name, "name": name})

    async def info(self, request: Request) -> Response:
        name = _name(request)
        if name not in self.repositories:
            missing = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
            return JSONResponse({"error": "Repository not found"}, 404, headers=missing)
        siblings = [{"rfilename": path} for path in self.repositories[name]]
        return JSONResponse(
            {"id": name, "modelId": name, "sha": self.commit(name), "siblings": siblings,
             "private": False, "tags": [], "downloads": 0, "likes": 0}
        )  # fmt: skip

    async def tree(self, request: Request) -> Response:
        return JSONResponse(
            [
                {
                    "type": "file",
                    "path": path,
                    "size": len(data),
                    "oid": hashlib.sha1(data).hexdigest(),
                }
                for path, data in self.repositories[_name(request)].items()
            ]
        )

    async def modes(self, request: Request) -> Response:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for file in (await request.json())["files"]
        ]
        return JSONResponse({"files": files})

    async def batch(self, request: Request) -> Response:
        objects = [
            {**one, "actions": {"upload": {"href": f"{self.url}/objects/{one['oid']}"}}}
            for one in (await request.json())["objects"]
        ]
        return JSONResponse({"transfer": "basic", "objects": objects})

    async def store(self, request: Request) -> Response:
        data = await request.body()
        assert hashlib.sha256(data).hexdigest() == request.path_params["oid"]
        self._stored[request.path_params["oid"]] = data
        return Response()

    async def change(self, request: Request) -> Response:
        name = _name(request)
        files = self.repositories[name]
        for line in (await request.body()).splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self._stored[value["oid"]]
        commit = self.commit(name)
        return JSONResponse(
            {"commitUrl": f"{self.url}/{name}/commit/{commit}", "commitOid": commit}
        )

    async def file(self, request: Request) -> Response:
        name, path = _name(request), request.path_params["path"]
        files = self.repositories.get(name)
        if files is None or path not in files:
            kind = "RepoNotFound" if files is None else "EntryNotFound"
            return Response(status_code=404, headers={"X-Error-Code": kind})
        if request.method == "GET":
            self.fetched.append(path)
        tag = hashlib.sha256(files[path]).hexdigest()
        headers = {"ETag": f'"{tag}"', "X-Repo-Commit": self.commit(name)}
        return Response(files[path], headers=headers)

    async def who(self, _request: Request) -> Response:
        return JSONResponse({"type": "user", "name": "me", "orgs": [], "auth": {}})

    async def valid(self, _request: Request) -> Response:
        return JSONResponse({"errors": [], "warnings": []})

    @contextmanager
    def serving(self):
        repository = "{owner}/{repo}"
        routes = [
            Route("/api/whoami-v2", self.who),
            Route("/api/validate-yaml", self.valid, methods=["POST"]),
            Route("/api/repos/create", self.create, methods=["POST"]),
            Route(f"/api/models/{repository}", self.info),
            Route(f"/api/models/{repository}/revision/{{revision}}", self.info),
            Route(f"/api/models/{repository}/tree/{{revision}}", self.tree),
            Route(f"/api/models/{repository}/preupload/{{revision}}", self.modes, methods=["POST"]),
            Route(f"/api/models/{repository}/commit/{{revision}}", self.change, methods=["POST"]),
            Route("/{owner}/{repo}.git/info/lfs/objects/batch", self.batch, methods=["POST"]),
            Route("/objects/{oid}", self.store, methods=["PUT"]),
            Route(f"/{repository}/resolve/{{revision}}/{{path:path}}", self.file),
        ]
        server = uvicorn.Server(
            uvicorn.Config(Starlette(routes=routes), host="127.0.0.1", port=0, log_level="critical")
        )
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
        self.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.force_exit = server.should_exit = True
            thread.join(10)


def _name(request: Request) -> str:
    return f"{request.path_params['owner']}/{request.path_params['repo']}"
