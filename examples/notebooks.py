"""Write each example as a notebook: ``python examples/notebooks.py``. Cells are marked ``# %%`` in the scripts."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import nbformat

HERE = Path(__file__).parent
EXAMPLES = ("edit_a_fact", "ways_of_knowing", "hundred_edits")
_MARK = re.compile(r"^# %%( \[markdown\])?\n", re.MULTILINE)


def cells(script: str) -> list[tuple[str, str]]:
    """(``markdown`` or ``code``, text) of a script's cells; its docstring is the first one."""
    found = [("markdown", ast.get_docstring(ast.parse(script)) or "")]
    parts = _MARK.split(script)[1:]
    for kind, text in zip(parts[::2], parts[1::2], strict=True):
        if kind:
            text = re.sub(r"^# ?", "", text, flags=re.MULTILINE)
        found.append(("markdown" if kind else "code", text.strip()))
    return found


def notebook(script: str) -> Any:
    """The script as a notebook without outputs; the same script gives the same bytes."""
    make = {"markdown": nbformat.v4.new_markdown_cell, "code": nbformat.v4.new_code_cell}
    made = [make[kind](text, id=f"cell-{number}") for number, (kind, text) in enumerate(cells(script))]
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return nbformat.v4.new_notebook(cells=made, metadata=kernel)


def main() -> None:
    for name in EXAMPLES:
        script = (HERE / f"{name}.py").read_text(encoding="utf-8")
        (HERE / f"{name}.ipynb").write_text(nbformat.writes(notebook(script)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
