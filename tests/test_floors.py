"""The house: folders are floors, and a file imports only from its own floor and those below.

`python tests/test_floors.py [SRC]` counts the circles and the upward imports of any checkout.
"""

import ast
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src"
FLOORS = [
    *("ranges", "spelling", "registry", "config", "runtime", "flow", "models"),
    *("datasets", "encoders", "decoders", "generators", "losses", "transport", "tokenizers"),
    *("evaluation", "sections", "interop", "latents", "blank", "inputs", "training"),
    *(
        "references",
        "matching",
        "stages",
        "options",
        "recipe",
        "idle",
        "fitting",
        "checks",
        "jobs",
        "prolonging",
        "hindrances",
        "claims",
        "tidying",
        "pipeline",
        "report",
        "serve",
        "commands",
        "library",
    ),
    "cli",
    *("__init__", "__main__"),
]
"""Lowest first. `__init__` is the façade, which names what users import, and finds it on first use."""
LONGEST_FILE, LONGEST_FUNCTION = 350, 70
MOST_ANY, MOST_IGNORES = 87, 24
"""How often the package says `Any`, in imports too, and `type: ignore`: as often as when this was
last counted. Lower them when there are fewer."""


def modules(src: Path) -> dict[str, Path]:
    """Dotted name -> file, of every module of the package."""
    found = {}
    for path in sorted((src / "dmvae").rglob("*.py")):
        name = ".".join(path.relative_to(src).with_suffix("").parts)
        found[name.removesuffix(".__init__") if name != "dmvae.__init__" else name] = path
    return found


def named(nodes: Iterable[ast.AST], known: dict[str, Path]) -> set[str]:
    """The modules that the imports among these nodes name."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in known else "dmvae.__init__" if node.module == "dmvae" else node.module)
    return found


def imports(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """The package's modules that a file imports anywhere: in functions and under TYPE_CHECKING too."""
    found = named(ast.walk(ast.parse(path.read_text())), known)
    return {other for other in found if other in known and other != name}


def graph(src: Path) -> dict[str, set[str]]:
    known = modules(src)
    return {name: imports(name, path, known) for name, path in known.items()}


def floor(name: str) -> str:
    return name.split(".")[1]


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """The sets of modules that import each other, directly or through others."""

    def reach(start: str) -> set[str]:
        seen, ahead = set(), list(edges[start])
        while ahead:
            if (name := ahead.pop()) not in seen:
                seen.add(name)
                ahead += edges[name]
        return seen

    reached = {name: reach(name) for name in edges}
    groups = {frozenset({name, *(o for o in reached[name] if name in reached[o])}) for name in edges}
    return sorted(sorted(group) for group in groups if len(group) > 1)


def upward(edges: dict[str, set[str]]) -> list[str]:
    """Imports that lead from a floor to one above it, as "a -> b"."""
    height = {name: i for i, name in enumerate(FLOORS)}
    return [f"{a} -> {b}" for a in edges for b in sorted(edges[a]) if height[floor(a)] < height[floor(b)]]


def spans(path: Path) -> list[tuple[int, str]]:
    """(lines, name) of every function in a file."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, functions)]
    return [((node.end_lineno or 0) - node.lineno + 1, f"{path.name}:{node.name}") for node in nodes]


@pytest.fixture(scope="module")
def edges() -> dict[str, set[str]]:
    return graph(SRC)


def test_every_folder_has_its_floor(edges):
    assert {floor(name) for name in edges} <= set(FLOORS)


def test_no_file_is_part_of_a_circle(edges):
    assert circles(edges) == []


def test_no_floor_imports_one_above_it(edges):
    assert upward(edges) == []


def test_what_starts_a_run_waits_for_no_chart_nor_pipeline():
    """matplotlib takes half a second, diffusers' pipelines two, at every start of every stage of every rank."""
    known, seen, ahead = modules(SRC), {}, ["dmvae.commands.run"]
    while ahead:
        if (name := ahead.pop()) in known and name not in seen:
            seen[name] = named(ast.parse(known[name].read_text()).body, known)
            ahead += seen[name]
    assert len(seen) > 100
    late = ("matplotlib", "diffusers.pipelines")
    assert [name for name, found in seen.items() if any(other.startswith(late) for other in found)] == []


def test_files_and_functions_stay_readable():
    paths = [*modules(SRC).values(), *Path(__file__).parent.rglob("*.py")]
    files = [(len(path.read_text().splitlines()), str(path)) for path in paths]
    assert [name for lines, name in files if lines > LONGEST_FILE] == []
    functions = [span for path in modules(SRC).values() for span in spans(path)]
    assert [name for lines, name in functions if lines > LONGEST_FUNCTION] == []


def count(text: str, src: Path = SRC) -> int:
    """How often the package's files say it, as whole words."""
    return sum(len(re.findall(rf"\b{text}\b", path.read_text())) for path in modules(src).values())


def test_types_are_left_open_no_more_than_before():
    assert count("Any") <= MOST_ANY
    assert count("type: ignore") <= MOST_IGNORES


def test_a_circle_and_an_upward_import_are_found():
    bad = {"dmvae.flow.a": {"dmvae.stages.b"}, "dmvae.stages.b": {"dmvae.flow.a"}, "dmvae.config": set()}
    assert circles(bad) == [["dmvae.flow.a", "dmvae.stages.b"]]
    assert upward(bad) == ["dmvae.flow.a -> dmvae.stages.b"]


if __name__ == "__main__":
    src = Path(sys.argv[1]) if len(sys.argv) > 1 else SRC
    found = graph(src)
    names = {floor(name) for name in found}
    FLOORS += sorted(names - set(FLOORS))
    paths = list(modules(src).values())
    print(f"circles: {[len(group) for group in circles(found)]}")
    print(f"upward imports: {len(upward(found))}")
    print(f"longest file: {max((len(p.read_text().splitlines()), p.name) for p in paths)}")
    print(f"longest function: {max(span for p in paths for span in spans(p))}")
    print(f"Any: {count('Any', src)}")
    print(f"type: ignore: {count('type: ignore', src)}")
