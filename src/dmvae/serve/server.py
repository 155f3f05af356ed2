"""The page over HTTP: a fixed list of addresses. All of them only read, and none is a path to a file."""

from __future__ import annotations

import errno
import ipaddress
import re
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dmvae.config import Values
from dmvae.serve import views
from dmvae.serve.folder import Folder

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

HERE = Path(__file__).parent
FILES = {
    "/": (HERE / "page.html", "text/html"),
    "/page.js": (HERE / "page.js", "text/javascript"),
    "/page.css": (HERE / "page.css", "text/css"),
    "/report.css": (HERE.parent / "report" / "page.css", "text/css"),
}
HEADERS = {
    # the browser contacts no other machine, whatever a run's texts contain
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
HOST = re.compile(r"(\[.*\]|[^:]*)(?::\d+)?")
"""A Host header: a name or an address (IPv6 in brackets), and optionally a port."""


class Site:
    """The run folder as last read, and its map.

    read: reads the folder anew; raises ValueError where it cannot be shown.
    """

    def __init__(self, read: Callable[[], Folder]) -> None:
        self.read, self.folder = read, read()
        self._mapping = threading.Lock()
        self._map: tuple[object, Values] = (None, {})

    def overview(self) -> Values:
        """`views.overview`, after reading the folder anew, so that each load of the page shows the run's progress."""
        self.folder = self.read()
        return views.overview(self.folder)

    def latents(self) -> Values:
        """The map, kept until one of its files changes: computing it takes seconds."""
        folders = (self.folder.run.folders(stage) for stage in ("reference", "evaluate"))
        files = [
            f / name for by in folders for f in by.values() for name in ("map.safetensors", "pictures.safetensors")
        ]
        key = tuple((file, file.stat().st_mtime_ns) for file in files if file.is_file())
        with self._mapping:
            if self._map[0] != key:
                self._map = (key, views.latents(self.folder))
            return self._map[1]


def application(site: Site, *, local: bool) -> Starlette:
    """The ASGI application; needs starlette. local: answer only requests whose Host is this machine, against sites that
    make their own name resolve to it (DNS rebinding)."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.responses import JSONResponse, Response, StreamingResponse
    from starlette.routing import Route

    def answer(view: Callable[[Asked], Values]) -> Callable[[Request], Response]:
        return lambda request: JSONResponse(view(Asked(request.query_params)))

    def samples(request: Request) -> Response:
        asked = Asked(request.query_params)
        values = views.samples(
            site.folder,
            asked.text("method"),
            asked.whole("label") if asked.values.get("label") else None,
            count=asked.whole("count", 1, views.MOST["count"]),
            guidance=asked.number("guidance", 0, 100),
            steps=asked.whole("steps", 1, views.MOST["steps"]),
            seed=asked.whole("seed"),
            sampler=asked.text("sampler"),
        )
        return StreamingResponse(views.lines(values), media_type="application/x-ndjson")

    def refused(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": str(error)}, 400)

    def file(path: Path, kind: str) -> Callable[[Request], Response]:
        return lambda request: Response(path.read_text(encoding="utf-8"), media_type=kind)

    shown: dict[str, Callable[[Asked], Values]] = {
        "run": lambda asked: site.overview(),
        "map": lambda asked: site.latents(),
        "point": lambda asked: views.point(
            site.folder, asked.text("method"), asked.whole("place"), bool(asked.whole("reference", 0, 1))
        ),
        "image": lambda asked: views.image(site.folder, asked.whole("index")),
        "copies": lambda asked: views.copies(site.folder, asked.text("method"), asked.whole("index")),
        "between": lambda asked: views.between(
            site.folder, asked.text("method"), asked.whole("a"), asked.whole("b"), asked.text("path")
        ),
        "progress": lambda asked: views.progress(site.folder),
        "curves": lambda asked: views.curves(site.folder, asked.text("stage")),
        "results": lambda asked: views.results(site.folder),
    }
    routes = [Route(path, file(*known)) for path, known in FILES.items()]
    routes += [Route(f"/api/{name}", answer(view)) for name, view in shown.items()]
    routes += [Route("/api/samples", samples)]
    errors = dict.fromkeys((ValueError, FloatingPointError, OSError), refused)
    return Starlette(routes=routes, middleware=[Middleware(Guard, local=local)], exception_handlers=errors)


class Asked:
    """The query values of a request. Each method raises ValueError for one that is missing or out of range."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self.values = values

    def text(self, name: str) -> str:
        if name not in self.values:
            raise ValueError(f"{name} is missing")
        return str(self.values[name])

    def number(self, name: str, low: float, high: float) -> float:
        try:
            value = float(self.text(name))
        except ValueError as error:
            told = f"{self.values[name]!r} is no number" if self.values.get(name) else "a number is missing"
            raise ValueError(f"{name}: {told}") from error
        if not low <= value <= high:  # also refuses NaN
            raise ValueError(f"{name} is {value:.12g}: use {low:.12g} to {high:.12g}")
        return value

    def whole(self, name: str, low: int = 0, high: int = 2**31) -> int:
        value = self.number(name, low, high)
        if value != int(value):
            raise ValueError(f"{name} is {value:g}: use a whole number")
        return int(value)


class Guard:
    """Refuse requests from other sites' pages, and send the security headers `HEADERS`."""

    def __init__(self, app: ASGIApp, local: bool) -> None:
        self.app, self.local = app, local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        asked = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host = HOST.fullmatch(asked.get("host", ""))

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                more = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *more]}
            await send(message)

        foreign = scope["path"].startswith("/api/") and asked.get("sec-fetch-site", "none") not in (
            "none",
            "same-origin",
        )
        if foreign or (self.local and not (host and is_local(host[1].strip("[]")))):
            await guarded({"type": "http.response.start", "status": 403, "headers": []})
            await guarded({"type": "http.response.body", "body": b"this page is not for other sites\n"})
            return None
        return await self.app(scope, receive, guarded)


def is_local(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any free one. Raises ValueError where the port is taken or invalid, or the
    address is not this machine's."""
    if not 0 <= port <= 65535:
        raise ValueError(f"--port {port}: use 0 to 65535")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ValueError(f"port {port} of {host} is taken; use another: --port {port + 1}, or 0 for any") from error
        raise ValueError(f"--host {host} --port {port}: {error.strerror or error}; name another") from error
