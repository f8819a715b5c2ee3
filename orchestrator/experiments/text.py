"""Tables as Markdown and as LaTeX."""

from __future__ import annotations

from collections.abc import Sequence

from errata.orchestrator.experiments.tables import Block, Column, Figure, RunComparison, heading

MISSING = "–"
_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    "–": "--",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
}
_MARKDOWN = str.maketrans({character: f"\\{character}" for character in "\\`*_[]<>|#~"})


def to_markdown(comparison: RunComparison) -> str:
    """One table per block, with notes and the meaning of the columns below."""
    lines = [f"# {_plain(comparison.title)}", ""]
    if comparison.about:
        lines += [_plain(comparison.about), ""]
    for block in comparison.blocks:
        if block.title:
            lines += [f"## {_plain(block.title)}", ""]
        columns = columns_of(block, comparison)
        lines.append("| " + " | ".join(["", *(heading(column) for column in columns)]) + " |")
        lines.append("|---" + "|---:" * len(columns) + "|")
        for row in block.rows:
            cells = [_markdown_figure(row.figures.get(column.key), column) for column in columns]
            lines.append("| " + " | ".join([_plain(row.label), *cells]) + " |")
        lines.append("")
    lines += [_plain(reading(comparison)), ""]
    if comparison.notes:
        lines += [*(f"* {_plain(note)}" for note in comparison.notes), ""]
    return "\n".join(lines)


def to_latex(comparison: RunComparison) -> str:
    r"""One ``table`` per block; needs ``\usepackage{booktabs}``."""
    parts = ["% needs \\usepackage{booktabs}"]
    for block in comparison.blocks:
        columns = columns_of(block, comparison)
        title = ". ".join(part for part in (comparison.title, block.title) if part)
        lines = [
            r"\begin{table}[t]",
            r"\centering",
            rf"\caption{{{escape(title)}. {escape(reading(comparison, columns))}}}",
            rf"\begin{{tabular}}{{l{'r' * len(columns)}}}",
            r"\toprule",
            " & ".join(["", *(escape(heading(column)) for column in columns)]) + r" \\",
            r"\midrule",
        ]
        for number, row in enumerate(block.rows):
            if number and row.arm == "edited" and block.rows[number - 1].arm in ("base", "memory"):
                lines.append(r"\midrule")
            cells = [_latex_figure(row.figures.get(column.key), column) for column in columns]
            lines.append(" & ".join([escape(row.label), *cells]) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
        parts.append("\n".join(lines))
    parts += [f"% {' '.join(note.split())}" for note in comparison.notes]
    return "\n\n".join(parts) + "\n"


def columns_of(block: Block, comparison: RunComparison) -> list[Column]:
    """The columns that have a figure in this block."""
    return [c for c in comparison.columns if any(row.figures.get(c.key) is not None for row in block.rows)]


def number(figure: Figure, column: Column) -> str:
    """A mean, with its standard error where it has one, or its interval."""
    return " ".join(part for part in parts(figure, column) if part)


def parts(figure: Figure, column: Column) -> tuple[str, str]:
    """The mean, and how sure it is: its standard error or its interval; empty where neither is known."""
    sure = ""
    if figure.error is not None:
        sure = f"± {100 * figure.error:.1f}" if column.share else f"± {figure.error:.2g}"
    elif figure.interval is not None:
        low, high = map(column.text, figure.interval)
        sure = f"[{low}, {high}]"
    return column.text(figure.mean), sure


def reading(comparison: RunComparison, columns: Sequence[Column] | None = None) -> str:
    """How the tables are to be read, in a few sentences."""
    shown = comparison.columns if columns is None else columns
    said = "; ".join(f"{column.heading} {column.meaning}" for column in shown if column.meaning)
    rows = [row for block in comparison.blocks for row in block.rows]
    counts = sorted({f.count for row in rows for f in row.figures.values() if f is not None and f.error is not None})
    over = f" Means with standard errors over {' or '.join(map(str, counts))} repetitions." if counts else ""
    if any(f.interval is not None for row in rows for f in row.figures.values() if f is not None):
        over += " In brackets 95 % intervals over the facts that were asked about."
    shares = " Shares in percent." if any(column.share for column in shown) else ""
    measured = f" {comparison.measured}" if comparison.measured else ""
    return f"{said}.{shares}{over} All figures at the end of the stream.{measured}".lstrip(".")


def escape(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(_LATEX.get(character, character if character.isprintable() else " ") for character in text)


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, in one line."""
    return " ".join(text.split()).translate(_MARKDOWN)


def _markdown_figure(figure: Figure | None, column: Column) -> str:
    if figure is None:
        return MISSING
    return f"**{number(figure, column)}**" if figure.best else number(figure, column)


def _latex_figure(figure: Figure | None, column: Column) -> str:
    if figure is None:
        return escape(MISSING)
    text = escape(number(figure, column))
    return rf"\textbf{{{text}}}" if figure.best else text
