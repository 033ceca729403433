"""A stand-in for the W&B server over HTTP, enough for runs with config, summary, history, files and tables.

It keeps what clients send in memory. `refuse_keys=True` answers every request as a server does that does not know the
API key; `fails_from` names an operation from which on every request fails with status 500, `hangs_from` one from which
on none is answered. Operations it does not know are listed in `unknown` and answered with nothing.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PROJECT = {"id": "cHJvamVjdA==", "name": "sah", "entity": {"id": "ZW50aXR5", "name": "local"}}
VIEWER = {"id": "viewer", "username": "local", "entity": "local", "flags": "{}", "teams": {"edges": []}}
NOW = "2026-01-01T00:00:00"


def project_node() -> dict[str, Any]:
    """A project, as lists of projects and reports name it."""
    return {
        "id": PROJECT["id"],
        "name": "sah",
        "entityName": "local",
        "createdAt": NOW,
        "isBenchmark": False,
        "user": None,
    }


class FakeWandbServer:
    """The server; use it as a context manager."""

    def __init__(self, refuse_keys: bool = False, fails_from: str | None = None, hangs_from: str | None = None) -> None:
        self.refuse_keys = refuse_keys
        self.fails_from = fails_from
        self.hangs_from = hangs_from
        self.broken = False
        self.closed = threading.Event()
        self.runs: dict[str, dict[str, Any]] = {}
        self.operations: list[str] = []
        self.unknown: list[str] = []
        self.files: dict[str, bytes] = {}
        self.artifacts: dict[str, dict[str, str]] = {}
        """Name to type and state; `COMMITTED` once the client has sent all files."""
        self.reports: dict[str, dict[str, Any]] = {}
        self._server = _QuietServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> FakeWandbServer:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closed.set()
        self._server.shutdown()
        self._server.server_close()

    def stream(self, run: str, body: dict[str, Any]) -> None:
        """Take in what the run's file stream sends: history, summary, exit code."""
        state = self.runs.setdefault(run, {})
        for name, chunk in (body.get("files") or {}).items():
            if name == "wandb-history.jsonl":
                # Lines have numbers: the real server replaces a line that comes again.
                lines, start = state.setdefault("history", []), chunk["offset"]
                lines[start : start + len(chunk["content"])] = [json.loads(line) for line in chunk["content"]]
            elif name == "wandb-summary.json":
                state["summary"] = json.loads(chunk["content"][-1])
        if body.get("complete"):
            state["exitcode"] = body.get("exitcode")

    def reply(self, operation: str, query: str, values: dict[str, Any]) -> dict[str, Any]:
        """Answer a GraphQL operation."""
        self.operations.append(operation)
        if operation == "UpsertBucket":
            return self._upsert_run(values)
        if operation == "RunResumeStatus":
            return {"model": self._resume_status(values["name"])}
        if operation == "CreateRunFiles":
            names = values.get("files", [])
            files = [{**self._upload(f"{values['run']}/{name}"), "name": name} for name in names]
            return {"createRunFiles": {"runID": values["run"], "uploadHeaders": [], "files": files}}
        if operation == "Viewer" or "viewer" in query:
            return {"viewer": VIEWER, "serverInfo": None}
        if operation == "ServerFeaturesQuery":
            return {"serverInfo": {"features": []}}
        if operation == "ArtifactType":
            return {"project": {"artifact": None}}
        if operation == "CreateArtifact":
            given = values["input"]
            name = given["artifactCollectionName"]
            self.artifacts[name] = {"type": given["artifactTypeName"], "state": "PENDING"}
            artifact = {"id": base64.b64encode(name.encode()).decode(), "digest": given["digest"], "state": "PENDING"}
            artifact["artifactSequence"] = {"id": "s", "latestArtifact": None}
            return {"createArtifact": {"artifact": artifact}}
        if operation == "CreateArtifactManifest":
            upload = self._upload("artifact/wandb_manifest.json")
            return {"createArtifactManifest": {"artifactManifest": {"id": "m", "file": {**upload, "id": "f"}}}}
        if operation == "CreateArtifactFiles":
            edges = [{"node": self._artifact_file(spec)} for spec in values["input"]["artifactFiles"]]
            return {"createArtifactFiles": {"files": {"edges": edges}}}
        if operation == "CommitArtifact":
            self.artifacts[base64.b64decode(values["artifactID"]).decode()]["state"] = "COMMITTED"
            return {"commitArtifact": {"artifact": {"id": values["artifactID"], "digest": "d"}}}
        if operation == "GetProjects" or operation == "Projects":
            edges = [{"node": project_node(), "cursor": "a"}]
            return {"models": {"edges": edges, "pageInfo": {"endCursor": "a", "hasNextPage": False}}}
        if operation == "ProjectInternalId":
            return {"project": {"id": PROJECT["id"], "internalId": PROJECT["id"]}}
        if operation == "upsertView":
            return self._upsert_report(values)
        self.unknown.append(f"{operation}: {query} {values}")
        return {}

    def _upsert_run(self, values: dict[str, Any]) -> dict[str, Any]:
        name = values.get("name") or values["id"]
        known = name in self.runs
        run = self.runs.setdefault(name, {})
        for key in ("displayName", "groupName", "jobType", "tags", "project", "entity"):
            if values.get(key) is not None:
                run[key] = values[key]
        if values.get("config"):
            run["config"] = json.loads(values["config"])
        bucket = {"id": name, "name": name, "displayName": run.get("displayName") or name, "description": ""}
        bucket |= {"config": None, "sweepName": None, "project": PROJECT, "historyLineCount": 0}
        return {"upsertBucket": {"bucket": bucket, "inserted": not known}}

    def _upsert_report(self, values: dict[str, Any]) -> dict[str, Any]:
        report_id = values["id"] or f"report-{len(self.reports)}"
        known = report_id in self.reports
        self.reports[report_id] = {**values, "spec": json.loads(values["spec"])}
        view = {key: values.get(key) for key in ("name", "type", "displayName", "description", "spec")}
        view |= {"id": report_id, "project": project_node(), "updatedAt": NOW}
        return {"upsertView": {"view": view, "inserted": not known}}

    def _resume_status(self, name: str) -> dict[str, Any]:
        run = self.runs.get(name)
        bucket = None
        if run is not None:
            bucket = {
                "id": name,
                "name": name,
                "displayName": run.get("displayName"),
                "summaryMetrics": json.dumps(run.get("summary", {})),
                "config": json.dumps(run.get("config", {})),
                "tags": run.get("tags", []),
                "historyLineCount": len(run.get("history", [])),
                "logLineCount": 0,
                "eventsLineCount": 0,
                "historyTail": json.dumps([json.dumps(row) for row in run.get("history", [])[-1:]]),
                "eventsTail": "[]",
                "notes": None,
                "wandbConfig": json.dumps({"t": 1}),
            }
        return {**PROJECT, "bucket": bucket}

    def _upload(self, name: str) -> dict[str, Any]:
        return {
            "name": name.rpartition("/")[2],
            "uploadUrl": f"{self.url}/upload/{name}",
            "uploadHeaders": [],
        }

    def _artifact_file(self, spec: dict[str, Any]) -> dict[str, Any]:
        upload = self._upload(f"artifact/{spec['name']}")
        return {
            **upload,
            "id": "f",
            "name": spec["name"],
            "displayName": spec["name"],
            "storagePath": spec["name"],
            "uploadMultipartUrls": None,
            "artifact": {"id": "YXJ0aWZhY3Q="},
        }


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news."""


def _handler(fake: FakeWandbServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_PUT(self) -> None:
            fake.files[self.path] = self._body()
            self._send({})

        def do_GET(self) -> None:
            self._send({}, 404)

        def do_POST(self) -> None:
            data = self._body()
            if self.path != "/graphql" and not self.path.endswith("/file_stream"):
                self._send({}, 404)
                return
            body = json.loads(data or b"{}")
            asked = body.get("query", "")
            fake.broken |= any(at is not None and at in asked for at in (fake.fails_from, fake.hangs_from))
            if fake.broken and fake.hangs_from is not None:
                fake.closed.wait(120)
                return
            if fake.refuse_keys:
                self._send({"errors": [{"message": "user is not logged in"}]}, 401)
            elif fake.broken:
                self._send({"errors": [{"message": "out of order"}]}, 500)
            elif self.path.endswith("/file_stream"):
                fake.stream(self.path.split("/")[-2], body)
                self._send({"exitcode": None, "limits": {}})
            else:
                named = re.search(r"(?:query|mutation)\s+(\w+)", body["query"])
                operation = named[1] if named else "?"
                self._send({"data": fake.reply(operation, body["query"], body.get("variables") or {})})

        def _body(self) -> bytes:
            data = self.rfile.read(int(self.headers.get("content-length", 0)))
            return gzip.decompress(data) if self.headers.get("content-encoding") == "gzip" else data

        def _send(self, answer: dict[str, Any], code: int = 200) -> None:
            data = json.dumps(answer).encode()
            self.send_response(code)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    return Handler
