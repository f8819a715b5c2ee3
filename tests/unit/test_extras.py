"""A plain installation: what works without any extra, and the one line where one is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from errata.editing.errors import UserError
from errata.editing.extras import EXTRAS, Later, check_installed, lacking, require
from tests.helpers.small_run import make_run

ROOT = Path(__file__).parents[2]
LIBRARIES = sorted({library for libraries in EXTRAS.values() for library in libraries} - {"jinja2", "httpx"})
"""torch brings Jinja2 and transformers brings HTTPX; all others are really gone without their extra."""

BLOCKED = dedent("""
    import sys
    class Block:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in {libraries!r}:
                raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
    sys.meta_path.insert(0, Block())
    sys.argv = ["errata", *{arguments!r}]
    from errata.orchestrator.cli import main
    main()
""")


def plain(*arguments: str, libraries: list[str] | None = None, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """A command in a process in which the libraries of every extra cannot be imported."""
    script = BLOCKED.format(libraries=set(LIBRARIES if libraries is None else libraries), arguments=list(arguments))
    script = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n" + script
    return subprocess.run([sys.executable, "-c", script], cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("small")).directory


def test_what_reads_works_without_any_extra(run: Path, tmp_path: Path) -> None:
    for arguments, said in (
        (["--version"], "errata 0."),
        (["--help"], "Keep a language model's facts current"),
        (["models", "list"], "smollm2-135m-instruct"),
        (["log", str(run)], "France"),
        (["show", "lyon", "--run", str(run)], "Lyon"),
        (["diff", "v1", "v3", "--run", str(run)], "Paris"),
        (["verify", str(run)], "sound"),
        (["export", "head", "--format", "lora", "--run", str(run), "--output", str(tmp_path / "lora")], "rank"),
        (["run", "quickstart", "--dry-run"], "alphaedit"),
    ):
        done = plain(*arguments)
        assert done.returncode == 0 and said in done.stdout, (arguments, done.stdout[-500:], done.stderr[-1500:])


@pytest.mark.parametrize(
    ("arguments", "missing", "extra"),
    [
        (["run", "quickstart", "--output", "new"], ["ray"], "cluster"),
        (["serve", "service", "--output", "new"], ["fastapi"], "serve"),
        (["sweep", "experiments/revisiting-small", "--output", "new"], ["ray"], "cluster"),
    ],
)
def test_what_lacks_an_extra_says_so_in_one_line(
    arguments: list[str], missing: list[str], extra: str, tmp_path: Path
) -> None:
    done = plain(*arguments, libraries=missing, cwd=tmp_path)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2 and len(lines) == 1, done.stderr
    assert lines[0] == f"errata: this needs {missing[0]}, which is not installed; pip install 'errata-llm[{extra}]'"
    assert not list(tmp_path.iterdir()), "something was left half-written"


def test_a_library_of_no_extra_is_somebody_elses_bug() -> None:
    assert lacking(ModuleNotFoundError("no", name="no_such_thing")) is None
    with pytest.raises(ModuleNotFoundError, match="no_such_thing"):
        require("no_such_thing")


def test_a_module_for_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)  # as if it were not installed
    later = Later("faiss")
    for attempt in (lambda: later.IndexFlat, lambda: check_installed("faiss")):
        with pytest.raises(UserError, match=r"this needs faiss, .*errata-llm\[memory\]"):
            attempt()
    assert Later("json").loads("[1]") == [1]


def test_saving_a_model_imports_no_deepspeed(tmp_path: Path) -> None:
    script = dedent(f"""
        import sys
        from pathlib import Path
        from errata.editing.checkpoint.save import save_checkpoint
        from tests.helpers.tiny import tiny_hf, tiny_tokenizer
        save_checkpoint(tiny_hf("llama"), tiny_tokenizer(), Path({str(tmp_path / "model")!r}))
        assert "deepspeed" not in sys.modules
    """)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "accelerator" not in done.stdout + done.stderr
    assert (tmp_path / "model" / "model.safetensors").is_file() and (tmp_path / "model" / "tokenizer.json").is_file()
