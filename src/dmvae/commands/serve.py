"""`dmvae serve`: a run as an interactive page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dmvae.commands.parser import Parser
from dmvae.commands.trust import require_no_code
from dmvae.jobs import jobs_of, recipes_of
from dmvae.runtime import distributed
from dmvae.runtime.console import console
from dmvae.serve.folder import Folder, Networks, links_out
from dmvae.serve.server import Site, application, is_local, listen

if TYPE_CHECKING:
    import uvicorn

PORT = 7860


def serve(command: str, arguments: list[str]) -> None:
    """Serve a run folder until Ctrl-C."""
    parser = Parser(prog=f"dmvae {command}", description="Show a run, finished or not, as an interactive page.")
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (%(default)s: this machine alone)")
    parser.add_argument("--port", type=int, default=PORT, help="port; 0 takes any free one (%(default)s)")
    parser.add_argument("--no-data", action="store_true", help="do not open the data set that the recipe names")
    parser.add_argument(
        "--trust",
        action="store_true",
        help="run the code that the run's recipes name; follow links that lead out of it",
    )
    known = parser.parse_args(arguments)
    try:
        import uvicorn
    except ImportError as error:
        raise ValueError(f'serve: {error.name} is not installed: pip install "dmvae[app]"') from error
    networks = Networks(distributed.start())
    site = Site(lambda: read(known.run_dir, networks, data=not known.no_data, trust=known.trust))
    local = is_local(known.host)
    with listen(known.host, known.port) as door:
        host, port = door.getsockname()[:2]
        console.print(
            f"{site.folder.run.name}: http://{f'[{host}]' if ':' in host else host}:{port}/  (Ctrl-C ends it)"
        )
        if not local:
            console.print(f"whoever reaches port {port} of this machine sees this run, and can keep the machine busy")
        uvicorn.Server(configured(site, local=local)).run(sockets=[door])


def configured(site: Site, *, local: bool) -> uvicorn.Config:
    """The settings of the server: it prints warnings and errors only."""
    import uvicorn

    app = application(site, local=local)
    return uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, lifespan="off")


def read(run_dir: Path, networks: Networks, *, data: bool, trust: bool) -> Folder:
    """The run as it is now. Raises ValueError for a folder that is not a run's and, unless `trust`, for one that names
    code or holds links that lead out of it."""
    if not run_dir.exists():
        raise ValueError(f"{run_dir}: no such folder; give that of run.dir")
    recipes = recipes_of(run_dir)
    if not trust:
        require_no_code(recipes)
        for link in links_out(run_dir):
            raise ValueError(
                f"{link} leads out of the run, to {link.resolve()}: remove it, or add --trust if you trust the folder"
            )
    return Folder(run_dir, jobs_of(run_dir), networks, data=data)
