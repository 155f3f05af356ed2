"""Build the wheel, install it alone into a fresh environment, and try it there in an empty folder.

    python -m benchmarks.wheel

The environment sees the packages of the Python that runs this, but not its dmvae: nothing is downloaded but setuptools,
where it is not here.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
TRIALS = (
    ("--version",),
    ("recipes",),
    ("init", "demo"),
    ("run", "demo.yaml", "--help"),
    ("run", "smoke", "--dry-run"),
)


def build(place: Path) -> Path:
    """The wheel, built below `place` from a copy of the sources: what an earlier build left must not slip in."""
    source = place / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    isolation = ["--no-build-isolation"] if importlib.util.find_spec("setuptools") else []
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", *isolation, "--wheel-dir", str(place)]
    subprocess.run([*pip, str(source)], check=True)
    (wheel,) = place.glob("*.whl")
    return wheel


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        wheel = build(place)
        venv.create(place / "env", with_pip=False)
        (site,) = (place / "env/lib").glob("python*/site-packages")
        target = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
        subprocess.run(target, check=True)
        # the wheel's folder first: an editable dmvae beside the dependencies must not be what is tried
        paths = [str(site), *(path for path in sys.path if path.endswith("site-packages"))]
        env = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        python, empty = str(place / "env/bin/python"), place / "empty"
        empty.mkdir()
        where = [python, "-c", "import dmvae; print(dmvae.__file__)"]
        found = subprocess.run(where, check=True, capture_output=True, text=True, env=env, cwd=empty).stdout.strip()
        assert Path(found).is_relative_to(site), f"tried {found}, and not the wheel"
        for trial in TRIALS:
            command = [python, "-m", "dmvae", *trial]
            subprocess.run(command, check=True, env=env, cwd=empty, stdout=subprocess.DEVNULL)
            print("ok: dmvae", *trial)


if __name__ == "__main__":
    main()
