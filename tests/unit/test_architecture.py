"""The house rules a reader relies on: who imports whom, who knows Ray, where a new editor is announced."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
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
        importlib.import_module(f"errata.editing.editors.{path.stem}")
        for path in sorted((ROOT / "editing" / "editors").glob("*.py"))
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
    assert editors and editors == {editor for _, editor in registered.values()}
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
