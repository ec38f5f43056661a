#!/usr/bin/env python3
"""A server that speaks the REST interface of NVIDIA VSS as far as uploads need it, for the tests.

Speaks `v2` below `/` and `rtvi3` below `/v1`, strict as the real one is: unknown fields and ids, file names, media types.
Every file is kept in the folder that it is given, named after its id, beside `ID.json`.

    vss_server.py FOLDER [--token TOKEN]

prints the port that it listens on. `POST /faults` takes a JSON list; each `POST …/files` takes the first of it:
`"503"`, `"500"` (nothing is kept), `"kept-500"`, `"kept-hang"`, `"kept-cut"` (the file is kept, the answer does not come),
`"hang"`, `"cut"` (nothing is kept), `"400"` (the file is called undecodable), `"ok"`,
`"late"` (500, and the file is kept only when the next upload has been answered, and soon after somebody may have looked),
`"after-N"` (503 with `Retry-After: N`), `"bad-id"` and `"bad-size"` (it is kept, and the answer is wrong), `"conflict"` (it
is kept, and refused as being there already), `"redirect"` (to an address with another scheme).

Those that begin with `get-`, `list-` and `delete-` are taken by `GET …/files/ID`, `GET …/files` and `DELETE`: a status
(`"get-403"`, nothing is done), `"…-missing"` (as for an unknown id), `"…-hang"` (nothing is done) or `"…-ok"`.
`GET /log` tells what was asked.
"""

import argparse
import json
import pathlib
import re
import sys
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NAME = re.compile(r"^[A-Za-z0-9_.\- ]*$")
FIELDS = {
    "v2": {"purpose", "media_type", "file", "filename", "camera_id"},
    "rtvi3": {"purpose", "media_type", "file", "filename", "url", "id", "creation_time", "sensor_name"},
}
TIME = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")


class Refused(Exception):
    def __init__(self, status, code, message, headers=None):
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.headers = headers or {}


def invalid(message):
    return Refused(422, "InvalidParameters", message)


class Store:
    """Files, in the order in which they came."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = threading.Lock()
        self.faults, self.log = [], []
        # What is kept once the next upload is answered, and whether somebody has looked since.
        self.late, self.looked = None, threading.Event()
        self.files = {}
        for path in sorted(self.folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns):
            self.files[path.stem] = json.loads(path.read_text())

    def put(self, about, content):
        with self.lock:
            if about["id"] in self.files:
                raise Refused(409, "ResourceInUse", f"there is a file {about['id']}")
            (self.folder / about["id"]).write_bytes(content)
            # Whoever looks into the folder finds it whole.
            unfinished = self.folder / f"{about['id']}.part"
            unfinished.write_text(json.dumps(about))
            unfinished.rename(self.folder / f"{about['id']}.json")
            self.files[about["id"]] = about

    def fault(self, call):
        """The next of the faults that this call takes: `get`, `list`, `delete`, or `None` for an upload."""
        with self.lock:
            for index, fault in enumerate(self.faults):
                prefix = fault.partition("-")[0]
                if (prefix if prefix in ("get", "list", "delete") else None) == call:
                    return self.faults.pop(index).removeprefix(f"{call}-")
        return "ok"

    def get(self, name):
        try:
            uuid.UUID(name)
        except ValueError:
            raise invalid(f"{name} is no UUID") from None
        with self.lock:
            if name not in self.files:
                raise Refused(400, "BadParameter", f"No such resource {name}")
            return self.files[name]

    def delete(self, name):
        self.get(name)
        with self.lock:
            del self.files[name]
            (self.folder / f"{name}.json").unlink()
            (self.folder / name).unlink()


def form(kind, body):
    """The fields of a form: text, or (file name, bytes)."""
    boundary = re.search(r'boundary="?([^";]+)', kind)
    if not kind.startswith("multipart/form-data") or not boundary:
        raise invalid("not a form")
    parts = body.split(b"--" + boundary[1].encode())
    if not parts[-1].startswith(b"--"):
        raise invalid("the form has no end")
    fields = {}
    for part in parts[1:-1]:
        head, _, content = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        head = head.decode()
        name = re.search(r'[; ]name="([^"]*)"', head)[1]
        file = re.search(r'filename="([^"]*)"', head)
        content = content.removesuffix(b"\r\n")
        fields[name] = (file[1], content) if file else content.decode()
    return fields


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, body, headers=None):
        text = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def handle_any(self, method):
        length = int(self.headers.get("content-length") or 0)
        body = self.rfile.read(length)
        store = self.server.store
        path, _, query = self.path.partition("?")
        if path == "/faults":
            store.faults[:] = json.loads(body)
            return self.answer(200, None)
        if path == "/log":
            return self.answer(200, store.log)
        api = "rtvi3" if path.startswith("/v1/") else "v2"
        path = path.removeprefix("/v1")
        with store.lock:
            store.log.append(f"{method} {self.path}")
        try:
            if self.server.token and self.headers.get("authorization") != f"Bearer {self.server.token}":
                raise Refused(401, "Unauthorized", "no token, or a wrong one")
            self.route(api, method, path, query, body)
        except Refused as refused:
            self.answer(refused.status, {"code": refused.code, "message": refused.message}, refused.headers)

    def route(self, api, method, path, query, body):
        store = self.server.store
        if (method, path) == ("POST", "/files"):
            return self.upload(api, body)
        if (method, path) == ("GET", "/files"):
            if "purpose=vision" not in query:
                raise invalid("purpose is required")
            if self.stumble(store.fault("list"), "the list"):
                return None
            with store.lock:
                files = list(store.files.values())
            self.answer(200, {"data": files, "object": "list"})
            return store.looked.set()
        if path.startswith("/files/"):
            name = path.removeprefix("/files/")
            if self.stumble(store.fault(method.lower()), name):
                return None
            if method == "GET":
                return self.answer(200, store.get(name))
            store.delete(name)
            return self.answer(200, {"id": name, "object": "file", "deleted": True})
        if (method, path) == ("GET", "/models"):
            model = {"id": "vlm", "created": 0, "object": "model", "owned_by": "NVIDIA", "api_type": "internal"}
            return self.answer(200, {"object": "list", "data": [model]})
        if (method, path) == ("POST", "/summarize"):
            asked = json.loads(body)
            if set(asked) - {"id", "model", "prompt", "stream", "chunk_duration"}:
                raise invalid("unknown fields")
            if {"id", "model", "prompt"} - set(asked) or asked["model"] != "vlm":
                raise invalid("id, model and prompt are required")
            about = store.get(asked["id"])
            failed = "fail" in asked["prompt"]
            content = "Summarization failed: no GPU" if failed else f"{about['filename']}: {asked['prompt']}"
            message = {"content": content, "tool_calls": [], "role": "assistant"}
            return self.answer(200, {
                "id": str(uuid.uuid4()), "model": "vlm", "created": 0, "object": "summarization.completion",
                "media_info": {"type": "offset", "start_offset": 0, "end_offset": 1},
                "choices": [{"finish_reason": "stop", "index": 0, "message": message}],
                "usage": {"total_chunks_processed": 1, "query_processing_time": 1},
            })
        raise Refused(404, "NotFound", "no such path")

    def stumble(self, fault, what):
        """Whether a call that is no upload gets no answer; one that says no is raised."""
        if fault == "ok":
            return False
        if fault == "hang":
            self.vanish(fault)
            return True
        if fault == "missing":
            raise Refused(400, "BadParameter", f"No such resource {what}")
        raise Refused(int(fault), "Gateway", "somebody in between says no")

    def upload(self, api, body):
        store = self.server.store
        fault = store.fault(None)
        if fault.startswith("after-"):
            raise Refused(503, "ServerBusy", "not now", {"retry-after": fault.removeprefix("after-")})
        if fault == "redirect":
            port = self.server.server_port
            raise Refused(307, "", "", {"location": f"https://127.0.0.1:{port}{self.path}"})
        if fault in ("503", "500"):
            code = {"503": "ServerBusy", "500": "InternalServerError"}[fault]
            raise Refused(int(fault), code, "not now")
        if fault in ("hang", "cut"):
            return self.vanish(fault)
        fields = form(self.headers.get("content-type", ""), body)
        unknown = set(fields) - FIELDS[api]
        if unknown:
            raise invalid(f"unknown fields {sorted(unknown)}")
        if fields.get("purpose") != "vision" or fields.get("media_type") not in ("video", "image"):
            raise invalid("purpose and media_type are required")
        if not isinstance(fields.get("file"), tuple):
            raise invalid("a file is required")
        name, content = fields["file"]
        if not NAME.match(name) or not name:
            raise invalid(f"{name!r} cannot be the name of a file")
        if fault == "400" or not content:
            raise Refused(400, "InvalidFile", "the file cannot be decoded")
        about = {"id": str(uuid.uuid4()), "bytes": len(content), "filename": name, "purpose": "vision",
                 "media_type": fields["media_type"]}
        if api == "rtvi3":
            about["id"] = str(uuid.UUID(fields["id"])) if "id" in fields else about["id"]
            if "creation_time" in fields and not TIME.match(fields["creation_time"]):
                raise invalid(f"{fields['creation_time']} is no time")
        if fault == "late":
            store.late = (about, content)
            store.looked.clear()
            raise Refused(500, "InternalServerError", "it takes longer")
        store.put(about, content)
        if fault == "bad-id":
            return self.answer(200, about | {"id": "../../x?y"})
        if fault == "bad-size":
            return self.answer(200, about | {"bytes": len(content) - 1})
        if fault == "conflict":
            raise Refused(409, "ResourceInUse", f"there is a file {about['id']}")
        if fault == "kept-500":
            raise Refused(500, "InternalServerError", "lost the thread")
        if fault in ("kept-hang", "kept-cut"):
            return self.vanish(fault)
        late, store.late = store.late, None
        store.looked.clear()
        self.answer(200, about)
        if late:
            # After whoever looks at once, and without waiting long for one who does not.
            store.looked.wait(0.3)
            store.put(*late)

    def vanish(self, fault):
        if fault.endswith("hang"):
            # Until the other side has had enough.
            self.connection.settimeout(60)
            try:
                self.connection.recv(1)
            except OSError:
                pass
        self.close_connection = True

    def do_GET(self):
        self.handle_any("GET")

    def do_POST(self):
        self.handle_any("POST")

    def do_DELETE(self):
        self.handle_any("DELETE")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--token")
    arguments = parser.parse_args()
    server = ThreadingHTTPServer(("127.0.0.1", arguments.port), Handler)
    server.daemon_threads = True
    server.store, server.token = Store(arguments.folder), arguments.token
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    sys.exit(main())
