"""The house rules a reader relies on: who imports whom, who knows Ray, where a new editor is announced."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
MAY_IMPORT: dict[str, set[str]] = {
    "editing": set(),
    "retrieval": {"editing"},
    "evaluation": {"editing"},
    "actors": {"editing", "retrieval", "evaluation"},
    "orchestrator": {"editing", "retrieval", "evaluation", "actors"},
}
OUTSIDE = {"tests", "benchmarks", "configs", "k8s", "docs"} | set(MAY_IMPORT)  # rooms have no names of their own
EDITING_NEEDS_ONLY = {"torch", "transformers", "pydantic", "safetensors", "numpy", "regex"}
MAX_LINES = 600
FLOORS: tuple[frozenset[str], ...] = (
    frozenset({"cli"}),
    frozenset({"service", "doctor", "calibrate", "experiments"}),
    frozenset({"run"}),
    frozenset({"covariance"}),
    frozenset({"publish", "guard"}),
    frozenset({"history", "sources", "measuring"}),
    frozenset({"journal", "config", "tracking", "report", "progress"}),
)
"""The rooms of `orchestrator/`, top floor first: each imports from floors below its own, and from no other."""
MOST_FILES = 4
"""Python files that may lie in `orchestrator/` itself."""


def sources(*folders: str) -> list[Path]:
    return sorted(p for f in folders for p in (ROOT / f).rglob("*.py") if "__pycache__" not in p.parts)


def imported_modules(code: str, package: tuple[str, ...], name: str = "<code>") -> Iterator[tuple[int, str, bool]]:
    """(line, dotted module, whether at module level) of every import in `code`, also inside functions.

    `package` is the package the file lies in, `errata` first; relative imports are resolved against it. Strings
    given to `import_module` and `__import__` count, and imports under `if TYPE_CHECKING:` do too.
    """
    tree = ast.parse(code, filename=name)
    inner = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        top = id(node) not in inner
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, top
        elif isinstance(node, ast.ImportFrom):
            if node.level == 0:
                yield node.lineno, node.module or "", top
                continue
            base = package[: len(package) - node.level + 1]
            names = [node.module] if node.module else [alias.name for alias in node.names]
            for name in names:
                yield node.lineno, ".".join((*base, name)), top
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in {"import_module", "__import__"} and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value, top


def forbidden_imports(code: str, package: tuple[str, ...], name: str = "<code>") -> list[str]:
    """What in `code`, a file of `package` (`errata` first), breaks the direction of imports.

    A room is imported as `errata.<room>` alone: by its bare name there would be two copies of every class.
    """
    room = package[1]
    bad = []
    for line, module, top in imported_modules(code, package, name):
        root, _, rest = module.partition(".")
        if root == "errata":
            target = rest.split(".")[0]
            if target in MAY_IMPORT and target not in MAY_IMPORT[room] | {room}:
                bad.append(f"{line}: {room} imports {module}")
            continue
        wrong_ray = root == "ray" and room != "actors"
        heavy = room == "editing" and top and root not in EDITING_NEEDS_ONLY | sys.stdlib_module_names
        if wrong_ray or heavy or root in OUTSIDE:
            bad.append(f"{line}: {room} imports {module}")
    return bad


def test_imports_point_one_way_and_only_actors_know_ray() -> None:
    bad = []
    for path in sources(*MAY_IMPORT):
        relative = path.relative_to(ROOT)
        bad += [
            f"{relative}:{b}"
            for b in forbidden_imports(path.read_text(), ("errata", *relative.parent.parts), str(relative))
        ]
    assert not bad, "\n".join(bad)


@pytest.mark.parametrize(
    ("package", "code"),
    [
        ("orchestrator", "import ray"),
        ("orchestrator", "def f():\n    from ray.util import metrics"),
        ("editing.model", "from errata.retrieval import memory"),
        ("editing", "from editing.errors import UserError"),
        ("orchestrator", "import orchestrator.config"),
        ("editing", "import faiss"),
        ("editing.model", "from ... import actors"),
        ("retrieval", "from errata.evaluation.metrics import accuracy"),
        ("evaluation", "import importlib\nimportlib.import_module('errata.actors.cluster')"),
        ("actors", "async def f():\n    import errata.orchestrator.config.run as c"),
        ("actors", "from tests.helpers import tiny"),
    ],
)
def test_the_checker_sees_a_forbidden_import(package: str, code: str) -> None:
    assert forbidden_imports(code, ("errata", *package.split(".")))


@pytest.mark.parametrize(
    ("package", "code"),
    [
        ("actors", "import ray\nfrom errata.editing.errors import UserError"),
        ("editing.model", "from . import fetch\nfrom ..errors import UserError\nimport torch, json"),
        ("editing", "def export():\n    import peft"),
        ("orchestrator", "import mlflow\nfrom errata.actors import cluster"),
        ("retrieval", "import rays, raytrace"),
    ],
)
def test_the_checker_allows_what_is_allowed(package: str, code: str) -> None:
    assert forbidden_imports(code, ("errata", *package.split("."))) == []


def climbing_imports(code: str, package: tuple[str, ...], room: str, name: str = "<code>") -> list[str]:
    """What in `code`, a file of the room of `orchestrator/` called `room`, does not go down a floor."""
    floor_of = {each: number for number, floor in enumerate(FLOORS) for each in floor}
    bad = []
    for line, module, _ in imported_modules(code, package, name):
        parts = module.split(".")
        if parts[:2] != ["errata", "orchestrator"]:
            continue
        if len(parts) == 2:
            bad.append(f"{line}: {room} imports {module}; name the room")
        elif parts[2] != room and floor_of[parts[2]] <= floor_of[room]:
            bad.append(f"{line}: {room} imports {module}")
    return bad


def rooms_of_orchestrator() -> set[str]:
    """Folders and files, without the file that says what they are."""
    folders = {path.parent.name for path in (ROOT / "orchestrator").glob("*/__init__.py")}
    return folders | {path.stem for path in (ROOT / "orchestrator").glob("*.py")} - {"__init__"}


def test_imports_between_the_rooms_of_orchestrator_go_down() -> None:
    assert rooms_of_orchestrator() == frozenset().union(*FLOORS), "each room has a floor"
    bad = []
    for path in sources("orchestrator"):
        relative = path.relative_to(ROOT)
        room = relative.parts[1].removesuffix(".py")
        if room != "__init__":
            package = ("errata", *relative.parent.parts)
            bad += [f"{relative}:{b}" for b in climbing_imports(path.read_text(), package, room, str(relative))]
    assert not bad, "\n".join(bad)


@pytest.mark.parametrize(
    ("upper", "lower", "file"),
    [
        ("cli", "run", "cli/main.py"),
        ("service", "run", "service/launch.py"),
        ("run", "covariance", "run/pipeline.py"),
        ("covariance", "publish", "covariance/refresh.py"),
        ("guard", "history", "guard/guard.py"),
        ("measuring", "report", "measuring/judging.py"),
    ],
)
def test_an_import_turned_round_is_seen(upper: str, lower: str, file: str) -> None:
    """The arrow from a real file to the floor below is allowed; the same arrow the other way is not, however it is
    written."""
    modules = [
        module
        for _, module, _ in imported_modules((ROOT / "orchestrator" / file).read_text(), ("errata",))
        if module.startswith(f"errata.orchestrator.{lower}")
    ]
    assert modules, f"{file} no longer imports {lower}: take another file"
    up, down = ("errata", "orchestrator", upper), ("errata", "orchestrator", lower)
    assert climbing_imports(f"import {modules[0]}", up, upper) == []
    for code in (
        f"from errata.orchestrator.{upper} import x",
        f"def f():\n    import errata.orchestrator.{upper}.x",
        f"from ..{upper} import x",
        f"from .. import {upper}",
        f"import importlib\nimportlib.import_module('errata.orchestrator.{upper}.x')",
    ):
        assert climbing_imports(code, down, lower), code


def test_rooms_of_one_floor_do_not_import_each_other() -> None:
    package = ("errata", "orchestrator", "guard")
    assert climbing_imports("from errata.orchestrator.publish.policy import x", package, "guard")
    assert climbing_imports("from errata.orchestrator import publish", package, "guard"), "the room stands in the path"


def test_few_files_lie_in_orchestrator_itself_and_every_room_is_described() -> None:
    """The docstring of `orchestrator/__init__.py` has one line for each room: ``* `name` - what is there.``"""
    assert len(list((ROOT / "orchestrator").glob("*.py"))) <= MOST_FILES
    text = ast.get_docstring(ast.parse((ROOT / "orchestrator" / "__init__.py").read_text())) or ""
    described = re.findall(r"^\* ``(\w+)`` - \S.*\.$", text, re.MULTILINE)
    assert sorted(described) == sorted(rooms_of_orchestrator())


def test_the_components_of_a_run_see_their_sections_and_not_the_whole_configuration() -> None:
    """Those that may see it compose it, check it, cut it up, complete it, or write it down."""
    may = {
        *(f"cli/{name}.py" for name in ("covariance", "locate")),
        *(f"config/{name}.py" for name in ("defaults", "loading", "run")),
        "doctor.py",
        *(f"experiments/{name}.py" for name in ("config", "plan")),
        *(f"run/{name}.py" for name in ("assembly", "described", "launch", "offline", "opening", "outputs")),
        *(f"service/{name}.py" for name in ("launch", "publishing")),
    }
    whole = re.compile(r"\bRunConfig\b")
    seen = {str(p.relative_to(ROOT / "orchestrator")) for p in sources("orchestrator") if whole.search(p.read_text())}
    assert seen <= may, sorted(seen - may)


def import_graph(files: Iterator[tuple[str, str]]) -> dict[str, set[str]]:
    """Module -> modules of the same set that it imports, anywhere in its code; from (dotted module, code) pairs."""
    codes = dict(files)
    graph: dict[str, set[str]] = {module: set() for module in codes}
    for module, code in codes.items():
        package = tuple(module.split(".")[:-1])
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom):
                base = package[: len(package) - node.level + 1] if node.level else ()
                origin = ".".join((*base, *([node.module] if node.module else [])))
                named = {f"{origin}.{alias.name}" for alias in node.names} & set(codes)
                graph[module] |= named or {origin} & set(codes)
        graph[module] |= {name for _, name, _ in imported_modules(code, package) if name in codes and name != module}
    return graph


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle, in order; empty where there is none."""
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return list(error.args[1])
    return []


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_no_module_imports_itself_in_a_circle(room: str) -> None:
    """Imports inside functions count too: a circle that is hidden in one is still a circle."""

    def modules() -> Iterator[tuple[str, str]]:
        for path in sources(room):
            if path.name != "__init__.py":
                yield ".".join(("errata", *path.relative_to(ROOT).with_suffix("").parts)), path.read_text()

    assert circle_in(import_graph(modules())) == []


def test_a_circle_is_seen() -> None:
    hidden = "def f():\n    from errata.actors import a"
    files = [("errata.actors.a", "from .b import x"), ("errata.actors.b", hidden), ("errata.actors.c", "import ray")]
    assert set(circle_in(import_graph(iter(files)))) == {"errata.actors.a", "errata.actors.b"}
    assert circle_in(import_graph(iter(files[::2]))) == []


def test_the_package_itself_imports_nothing_and_its_api_no_actor() -> None:
    """`import errata` is free; the API is above the rooms, and what it imports of `actors` knows no Ray."""
    top = [m for _, m, top in imported_modules((ROOT / "errata/__init__.py").read_text(), ("errata",)) if top]
    assert set(top) <= {"__future__", "typing", "errata.api", "errata.editing.errors"}  # the last two for types alone
    for path in sorted((ROOT / "errata").glob("*.py")):
        used = [module for _, module, _ in imported_modules(path.read_text(), ("errata",), path.name)]
        assert not [m for m in used if m.split(".")[0] in OUTSIDE | {"ray"}], used
    free = [*sorted((ROOT / "actors/workers").glob("*.py")), ROOT / "actors/local.py", ROOT / "actors/parts.py"]
    assert len(free) > 5
    for path in free:
        package = ("errata", *path.relative_to(ROOT).parent.parts)
        used = [module for _, module, top in imported_modules(path.read_text(), package, path.name) if top]
        kept = ("errata.actors.workers", "errata.actors.settings", "errata.actors.local", "errata.actors.parts")
        assert not [m for m in used if m.split(".")[0] == "ray"], path
        assert not [m for m in used if m.startswith("errata.actors") and not m.startswith(kept)], (path, used)


def test_editing_imports_without_ray_faiss_or_mlflow() -> None:
    """Every module of `editing/` is imported in a fresh interpreter in which the others cannot be."""
    script = dedent("""
        import importlib, pkgutil, sys
        BLOCKED = {"ray", "faiss", "mlflow", "sentence_transformers", "redis", "fastapi", "typer"}
        class Block:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in BLOCKED:
                    raise ModuleNotFoundError(f"{name} is blocked", name=name)
        sys.meta_path.insert(0, Block())
        import errata.editing
        names = [m.name for m in pkgutil.walk_packages(errata.editing.__path__, "errata.editing.")]
        for name in names:
            importlib.import_module(name)
        assert "errata.editing.errors" in names
        loaded = BLOCKED & {m.split(".")[0] for m in sys.modules}
        assert not loaded, loaded
    """)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_every_editor_has_its_registry_entry() -> None:
    """Every concrete editor and every configuration in `editing/editors/` is announced, under its own `type`."""
    package = importlib.import_module("errata.editing.editors")
    modules = [
        importlib.import_module(".".join(["errata", *path.relative_to(ROOT).with_suffix("").parts]))
        for path in sorted((ROOT / "editing" / "editors").rglob("*.py"))
        if path.stem != "__init__"
    ]
    defined = {
        value
        for module in modules
        for value in vars(module).values()
        if inspect.isclass(value) and value.__module__ == module.__name__
    }

    def type_of(config: Any) -> object:
        return config.model_fields["type"].default  # no string in a base class that several methods share

    editors = {c for c in defined if issubclass(c, package.Editor) and not inspect.isabstract(c)}
    configs = {c for c in defined if issubclass(c, package.EditorConfig) and isinstance(type_of(c), str)}
    registered = package.REGISTRY
    regimes = {package.Retrieved}  # wraps a method that is registered, and is no method of its own
    assert editors and editors - regimes == {editor for _, editor in registered.values()}
    assert configs == {config for config, _ in registered.values()}
    assert all(type_of(config) == name for name, (config, _) in registered.items())


def test_no_source_file_is_too_long() -> None:
    lengths = {
        p.relative_to(ROOT): len(p.read_text().splitlines()) for p in sources(*MAY_IMPORT, "tests", "benchmarks")
    }
    too_long = {str(path): n for path, n in lengths.items() if n > MAX_LINES}
    assert not too_long, f"more than {MAX_LINES} lines: {too_long}"


def test_no_source_or_configuration_names_a_machine_path() -> None:
    machine_path = re.compile(r"(?<![\w.])/(?:home|root|work|Users)/")
    files = sources(*MAY_IMPORT, "tests", "benchmarks")
    files += sorted(p for p in (ROOT / "configs").rglob("*") if p.suffix in {".yaml", ".json", ".jsonl", ".md"})
    bad = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
        for path in files
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if machine_path.search(line)
    ]
    assert not bad, "\n".join(bad)
