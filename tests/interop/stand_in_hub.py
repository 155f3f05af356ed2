"""A stand-in for a hub's HTTP interface: it takes what `push_to_hub` sends, and serves it again, and
a data set's files, which lie in its top folder."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit
from zlib import crc32

COMMIT = "0" * 40


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def _answer(self, body, status=200, **headers):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_POST(self):
        path, body, files = urlsplit(self.path).path, self._body(), self.server.files
        if path == "/api/repos/create":
            self._answer({"url": f"{self.server.url}/me/it", "name": "me/it", "id": "me/it"})
        elif path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            asked = json.loads(body)["files"]
            kept = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None} for f in asked]
            self._answer({"files": kept})
        elif "/commit/" in path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"{self.server.url}/me/it/commit/{COMMIT}"
            self._answer({"commitUrl": url, "commitOid": COMMIT, "success": True})
        else:
            self._answer({"error": f"no such address: {path}"}, 404)

    def do_GET(self):
        path, files = unquote(urlsplit(self.path).path), self.server.files
        if "/resolve/" in path:
            name = path.split("/resolve/")[1].partition("/")[2]
            if name in files:
                about = {"ETag": f'"{crc32(files[name])}"', "X_Repo_Commit": COMMIT}
                return self._answer(files[name], **about)
            return self._answer({"error": "none"}, 404, X_Error_Code="EntryNotFound")
        if "/tree/" in path:
            if "/" in path.split("/tree/")[1]:
                return self._answer({"error": "none"}, 404, X_Error_Code="EntryNotFound")
            return self._answer([{"type": "file", "path": n, "size": len(data), "oid": n} for n, data in files.items()])
        if path.startswith(("/api/models/", "/api/datasets/")):
            found = {"id": "me/it", "sha": COMMIT, "private": False, "siblings": [{"rfilename": n} for n in files]}
            return self._answer(found)
        return self._answer({"error": f"no such address: {path}"}, 404)

    do_HEAD = do_GET


def start():
    """The running server; `.url`, `.files` by name, `.shutdown()`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url, server.files = f"http://127.0.0.1:{server.server_port}", {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
