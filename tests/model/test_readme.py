"""README's ten lines of Python, and the examples, on the model that they name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
NAMES = ("edit_a_fact", "ways_of_knowing", "hundred_edits")

pytestmark = [pytest.mark.timeout(1800)]


def ran(*command: str, cwd: Path, **environment: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_the_python_of_the_readme_prints_the_new_fact(smollm2: Path, tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert "import errata" in code and len(code.strip().splitlines()) <= 11
    out = ran(sys.executable, "-c", code, cwd=tmp_path)
    before, after = re.findall(r"(?:before|after): (.*)", out)
    assert before.startswith("Paris") and after.startswith("Rome") and after.endswith("(landed)"), out


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_its_script(name: str) -> None:
    import nbformat

    from examples.notebooks import notebook

    kept = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
    assert kept == notebook((EXAMPLES / f"{name}.py").read_text()), "run: python examples/notebooks.py"


SAID = {
    "edit_a_fact": r"before: Paris.*\napplied landed .*\nafter: Rome.*\nthe unedited model: Paris.*\nreverted: Paris",
    "ways_of_knowing": r"(?s)edited_memory +1\.00",
    "hundred_edits": r"facts: .* applied, .* landed\n.* is reverted\n",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_an_example_runs_as_a_script(name: str, smollm2: Path, minilm: Path, tmp_path: Path) -> None:
    out = ran(sys.executable, str(EXAMPLES / f"{name}.py"), cwd=tmp_path, EXAMPLE_EDITS="6")
    assert re.search(SAID[name], out), out


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_an_example_runs_as_a_notebook(
    name: str, smollm2: Path, minilm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("EXAMPLE_EDITS", "6")
    read = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
    done = NotebookClient(read, timeout=1500, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [
        output.text for cell in done.cells if cell.cell_type == "code" for output in cell.outputs if "text" in output
    ]
    assert re.search(SAID[name], "".join(outputs)), outputs
