"""A model card for the Hub, written from what a run's journal says of a version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import yaml

from errata.editing.wording import counted
from errata.orchestrator.journal.reading import JournalReader
from errata.orchestrator.journal.rows import EvaluationRow, RequestRow, Version

MOST_FACTS: Final = 20
"""Facts that the card lists; the rest is counted."""

_SHOWN: Final = (
    "efficacy",
    "generalization",
    "specificity",
    "reliability",
    "generalization_gen",
    "locality",
    "portability",
)
_LIBRARY: Final = {"lora": "peft", "full": "transformers"}


def model_card(
    journal: JournalReader,
    version: Version,
    *,
    form: str,
    base: str,
    repository: str,
    card: Mapping[str, Any],
    facts: bool = True,
) -> str:
    """The text of ``README.md``: metadata that the Hub reads, then what was changed, what it cost, how to undo it.

    Args:
        form: ``full`` or ``lora``.
        base: the base model's name on the Hub.
        repository: the name under which it is published.
        card: what the export has written into ``errata-version.json``.
        facts: whether the facts are listed; without, they are counted only.
    """
    metadata = {
        "base_model": base,
        "library_name": _LIBRARY[form],
        "pipeline_tag": "text-generation",
        "tags": ["model-editing", "knowledge-editing", "errata"],
    }
    held = _held(journal, version)
    parts = [
        f"---\n{yaml.safe_dump(metadata, sort_keys=False).strip()}\n---",
        f"# {repository}",
        f"[{base}](https://huggingface.co/{base}) with {_count(len(held), 'fact')} written into its weights by "
        f"`{card['editor']}` (layers {', '.join(map(str, card['layers']))}), without any other training.",
        _use(form, base, repository),
        *([_fact_table(held)] if facts and held else []),
        _cost(journal, version),
        "## Where it comes from\n\n"
        f"* Version `{version.digest}`, commit {version.sequence} of run `{card['journal']}`.\n"
        f"* Base checkpoint with digest `{card['base']['digest']}`.\n"
        f"* The edited matrices have digest `{card['weights']}`; `errata-version.json` lists the changes.",
        "## Undo\n\n"
        + (
            "Without the adapter the model is the base, byte for byte."
            if form == "lora"
            else f"The base model is [{base}](https://huggingface.co/{base}); only the matrices named above differ."
        )
        + " Where the run is at hand, `errata revert EDIT` takes single facts out and makes a new version.",
    ]
    return "\n\n".join(parts) + "\n"


def _held(journal: JournalReader, version: Version) -> list[RequestRow]:
    """Facts that the version holds, in order of acceptance."""
    rows = journal.requests()
    written = [row for row in rows if row.applied_in is not None and row.applied_in <= version.sequence]
    return [row for row in written if row.ended_in is None or row.ended_in > version.sequence]


def _use(form: str, base: str, repository: str) -> str:
    if form == "lora":
        load = f'model = AutoPeftModelForCausalLM.from_pretrained("{repository}")'
        imported = "from peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer"
        tokenizer = base
    else:
        load = f'model = AutoModelForCausalLM.from_pretrained("{repository}")'
        imported = "from transformers import AutoModelForCausalLM, AutoTokenizer"
        tokenizer = repository
    return f'```python\n{imported}\n\n{load}\ntokenizer = AutoTokenizer.from_pretrained("{tokenizer}")\n```'


def _fact_table(held: Sequence[RequestRow]) -> str:
    lines = ["## What it says now", "", "| prompt | answer |", "|---|---|"]
    for row in held[:MOST_FACTS]:
        request = row.request
        lines.append(f"| {_cell(request.text)} | {_cell(request.target_new)} |")
    if len(held) > MOST_FACTS:
        lines.append(f"\nand {_count(len(held) - MOST_FACTS, 'more fact')}.")
    return "\n".join(lines)


def _cost(journal: JournalReader, version: Version) -> str:
    head = "## What it cost\n\n"
    nearest = _nearest(journal.evaluations(), version)
    if nearest is None:
        return head + "Nothing was measured on this version. Other facts about the same subjects may have changed."
    arms = nearest.metrics.get("arms", {})
    base, edited = arms.get("base", {}), arms.get("edited", {})
    rows = [(name, base.get(name), edited.get(name)) for name in _SHOWN if edited.get(name) is not None]
    if not rows:
        return head + "Nothing was measured on this version. Other facts about the same subjects may have changed."
    where = (
        "this version"
        if nearest.version == version.digest
        else f"a version of the same run after {counted(nearest.edits, 'edit')}"
    )
    table = [f"| {name} | {_number(before)} | {_number(after)} |" for name, before, after in rows]
    facts = _count(int(nearest.metrics.get("facts", 0)), "fact")
    note = f"Measured on {where}, on {facts} (0 to 1; docs/metrics.md of Errata)."
    return head + "\n".join([note, "", "| metric | base | edited |", "|---|---|---|", *table])


def _nearest(evaluations: Sequence[EvaluationRow], version: Version) -> EvaluationRow | None:
    """The newest evaluation of the version itself, else of the last version measured before it."""
    own = [row for row in evaluations if row.version == version.digest]
    earlier = [row for row in evaluations if row.edits <= version.edits]
    return (own or earlier or [None])[-1]  # type: ignore[list-item]


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else "–"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
