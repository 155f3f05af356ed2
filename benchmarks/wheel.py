"""Build the wheel, install it alone into a fresh environment, and try it there in an empty folder.

    python -m benchmarks.wheel

The environment sees the packages of the Python that runs this, but not its dmvae: nothing is downloaded but setuptools,
where it is not here or too old. With the oldest and the newest other Python of this machine that pyproject.toml allows,
every file is compiled and the commands that need no torch are tried; PyYAML and rich are downloaded for them.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
TRIALS = (
    ("--version",),
    ("recipes",),
    ("init", "demo"),
    ("run", "demo.yaml", "--help"),
    ("run", "smoke", "--dry-run"),
)
WITHOUT_TORCH = (("--version",), ("--help",), ("recipes",), ("run", "--help"))


def build(place: Path) -> Path:
    """The wheel, built below `place` from a copy of the sources: what an earlier build left must not slip in."""
    source = place / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(place)]
    if has_setuptools():
        pip.append("--no-build-isolation")
    subprocess.run([*pip, str(source)], check=True)
    (wheel,) = place.glob("*.whl")
    return wheel


def has_setuptools() -> bool:
    """Whether the setuptools that pyproject.toml asks for is here; a new environment may have an older one."""
    found = re.search(r'"setuptools>=(\d+)"', (ROOT / "pyproject.toml").read_text())
    assert found is not None
    try:
        return int(metadata.version("setuptools").partition(".")[0]) >= int(found[1])
    except metadata.PackageNotFoundError:
        return False


def oldest() -> int:
    """The minor version of the oldest Python 3 that the package is for."""
    found = re.search(r'requires-python = ">=3\.(\d+)"', (ROOT / "pyproject.toml").read_text())
    assert found is not None
    return int(found[1])


def others() -> dict[int, Path]:
    """Minor version -> interpreter: the oldest and the newest Python here, on the path or of pyenv, if they are not the
    one that runs this."""
    first = oldest()
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found: dict[int, Path] = {}
    for minor in range(first, first + 20):
        on_path = shutil.which(f"python3.{minor}")
        for path in (*sorted(pyenv.glob(f"3.{minor}.*/bin/python3.{minor}")), *([Path(on_path)] if on_path else [])):
            probe = [str(path), "-c", "import sys; assert sys.version_info.releaselevel == 'final'"]
            if subprocess.run(probe, capture_output=True).returncode == 0:  # a shim of pyenv may lead nowhere
                found.setdefault(minor, path)
    ends = {min(found), max(found)} if found else set()
    return {minor: found[minor] for minor in sorted(ends - {sys.version_info.minor})}


def try_without_torch(wheel: Path, minor: int, interpreter: Path, place: Path) -> None:
    """Compile every file of the wheel with another Python, and try the commands that need no torch."""
    subprocess.run([str(interpreter), "-m", "venv", "--without-pip", str(place)], check=True)
    (site,) = (place / "lib").glob("python*/site-packages")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(site), "--python-version", f"3.{minor}"]
    pip += ["--only-binary=:all:", "--upgrade"]
    subprocess.run([*pip, "pyyaml", "rich"], check=True)
    subprocess.run([*pip, "--no-deps", str(wheel)], check=True)
    python = str(place / "bin/python")
    subprocess.run([python, "-m", "compileall", "-q", str(site / "dmvae")], check=True)
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    for trial in WITHOUT_TORCH:
        subprocess.run([python, "-m", "dmvae", *trial], check=True, env=env, cwd=place, stdout=subprocess.DEVNULL)
        print(f"ok, Python 3.{minor}: dmvae", *trial)


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
        for minor, interpreter in others().items():
            try_without_torch(wheel, minor, interpreter, place / f"python3.{minor}")


if __name__ == "__main__":
    main()
