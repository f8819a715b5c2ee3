"""The three forms: what a reader sees is what was measured, and text from the data cannot become markup."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from typer.testing import CliRunner

from errata.editing.errors import UserError
from errata.orchestrator.cli import app
from errata.orchestrator.experiments.collect import collect
from errata.orchestrator.experiments.curves import panels_of, styles_of
from errata.orchestrator.experiments.tables import compare
from errata.orchestrator.experiments.write import render
from tests.helpers.charts import charts_of

from .conftest import fact, write_sweep_record

ODD = "<b>50% & $x_1$ | *#{}~^\\</b>"


@pytest.fixture
def sweep_directory(tmp_path, make_run):
    """Two methods of which one has an odd name, at two lengths, two seeds, with a timeline."""
    cells = {}
    for edits in (1, 2):
        for method, editor in (("MEMIT", "memit"), (ODD, "rect")):
            for seed in (0, 1):
                name = f"{editor}-{edits}-{seed}"
                value = 0.2 * edits + 0.1 * seed + (0.3 if editor == "rect" else 0.0)
                make_run(
                    name,
                    {
                        "base": {"reliability": 0.01},
                        "edited": {"reliability": value, "locality": None},
                        "edited_memory": {"reliability": 0.9},
                    },
                    settings={"editor.type": editor, "seed": seed, "stream.limit": edits},
                    facts=[fact(n) for n in range(edits)],
                    timeline=[(0, 0.0), (edits, value)],
                )
                cells[name] = {"method": method, "edits": str(edits), "seed": str(seed)}
    return write_sweep_record(tmp_path, cells, about=f"About {ODD}")


def test_markdown(sweep_directory):
    text = render(compare(collect([sweep_directory])), "markdown")
    lines = text.splitlines()
    assert lines[0] == "# demo" and "## edits 1" in lines and "## edits 2" in lines
    assert "|  | Rel. ↑ | PPL ↓ | s/edit ↓ |" in lines
    assert "| MEMIT | 25.0 ± 5.0 | 25 ± 0 | 0.5 ± 0 |" in lines
    assert "| MEMIT + memory | **90.0 ± 0.0** | – | 0.5 ± 0 |" in lines
    odd = next(line for line in lines if line.startswith("| \\<b\\>50%"))
    assert odd.count("|") - odd.count("\\|") == 5  # the name's own bar does not split the row
    assert len({line.count("|") - line.count("\\|") for line in lines if line.startswith("|")}) == 1


def test_latex_is_escaped_and_balanced(sweep_directory):
    text = render(compare(collect([sweep_directory])), "latex")
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 2
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 2
    assert r"\textless{}b\textgreater{}50\% \& \$x\_1\$ \textbar{} *\#\{\}\textasciitilde{}" in text
    body = re.sub(r"(?<!\\)%.*", "", text)
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len({len(re.findall(r"(?<!\\)&", row)) for row in rows}) == 1
    assert len(re.findall(r"(?<!\\)\{", body)) == len(re.findall(r"(?<!\\)\}", body))
    assert len(re.findall(r"(?<!\\)\$", body)) % 2 == 0
    assert r"\textbf{55.0 $\pm$ 5.0}" not in text and r"\textbf{90.0 $\pm$ 0.0}" in text


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX on this machine")
def test_latex_compiles(sweep_directory, tmp_path):
    text = render(compare(collect([sweep_directory])), "latex")
    document = f"\\documentclass{{article}}\\usepackage{{booktabs}}\\begin{{document}}{text}\\end{{document}}"
    (tmp_path / "t.tex").write_text(document)
    subprocess.run(["pdflatex", "-halt-on-error", "t.tex"], cwd=tmp_path, check=True, capture_output=True)


class Page(HTMLParser):
    """Tags, and the text of table cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.outside: list[str] = []
        self.text = ""
        self.charts = charts_of(text)
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.outside += [v for k, v in attrs if k in ("src", "href") and v]

    def handle_data(self, data):
        self.text += data


def test_the_page_stands_alone_and_shows_tables_and_curves(sweep_directory):
    page = Page(render(compare(collect([sweep_directory])), "html"))
    assert page.outside == [] and page.tags.count("script") == 1 and "b" not in page.tags
    assert page.tags.count("table") == 2
    assert page.text.count(ODD) >= 4 and f"About {ODD}" in page.text
    assert "25.0 ± 5.0" in page.text
    # one chart of the ends, one timeline for each length
    assert len(page.charts) >= 3
    assert sum("spread" in line for chart in page.charts for line in chart["series"]) >= 2


def test_curves_hold_the_measured_points(sweep_directory):
    ends, short, long = panels_of(compare(collect([sweep_directory])))
    assert ends.title.startswith("At the end") and short.title.endswith("edits 1") and long.title.endswith("edits 2")
    (chart,) = Page(str(ends.charts[0].chart)).charts
    assert {line["label"]: line["points"] for line in chart["series"]}["MEMIT"] == [[1, 0.25], [2, 0.45]]
    assert [chart.title for chart in short.charts] == ["Rel. ↑"]
    (first,) = Page(str(short.charts[0].chart)).charts
    assert [0, 0.0] in {line["label"]: line["points"] for line in first["series"]}["MEMIT"]


def test_methods_are_told_apart_by_color_and_mark_and_their_ways_by_dashes():
    labels = ["unedited", "memory, k 1", "memory, k 2", "A", "A + memory", "A, routed", "B", "B + memory", "B, routed"]
    assert styles_of(labels) == {
        "unedited": "c0 ring",
        "memory, k 1": "c1 dashed square",
        "memory, k 2": "c1 dashed diamond",
        "A": "c2 dot",
        "A + memory": "c2 dashed dot",
        "A, routed": "c2 dotted dot",
        "B": "c3 square",
        "B + memory": "c3 dashed square",
        "B, routed": "c3 dotted square",
    }
    many = styles_of([f"M{n}" for n in range(40)])
    assert {style.split()[0] for style in many.values()} == {f"c{n}" for n in range(2, 10)}  # not those of the others
    assert len(set(many.values())) == 40


def test_nothing_over_edits_means_no_curves(make_run):
    run = make_run("r", {"edited": {"reliability": 0.5}})
    comparison = compare(collect([run]))
    assert panels_of(comparison) == [] and Page(render(comparison, "html")).charts == []


def test_compare_prints_and_writes(sweep_directory, tmp_path):
    runner = CliRunner()
    shown = runner.invoke(app, ["compare", str(sweep_directory)])
    assert shown.exit_code == 0 and shown.stdout.startswith("# demo")
    target = tmp_path / "t.tex"
    written = runner.invoke(app, ["compare", str(sweep_directory), "--output", str(target)])
    assert written.exit_code == 0 and target.read_text().startswith("% needs")
    by = runner.invoke(app, ["compare", str(sweep_directory), "--by", "method", "--by", "edits"])
    assert by.stdout.count("\n## ") == 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--format", "pdf"], "--format 'pdf'; allowed: markdown"),
        (["--output", "no/such/t.md"], "there is no directory"),
    ],
)
def test_compare_refuses_what_it_cannot_do(sweep_directory, arguments, said, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["compare", str(sweep_directory), *arguments])
    assert isinstance(result.exception, UserError) and said in str(result.exception)
