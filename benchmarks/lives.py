"""The lives of one real model: thousands of edits with and without repair, norm anchors or protection, side by side.

    python -m benchmarks.lives alphaedit alphaedit+repair --edits 2000 --dir lives     # goes on where it stopped
    python -m benchmarks.lives --table --dir lives

SmolLM2 in this process, without Ray. The edits are CounterFact's, then ZsRE's, as far as there are any. At every point:
what the model says of all edits so far, by age, after the bare prompt; of the first 500, and of those of them that the
newest look of repair has not asked; generalization and specificity of fixed facts; perplexity by domain; norms; seconds
of editing and of repair. A life is a run like any other, kept in ``DIR/LIFE``.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.measuring import context, one_thread, store
from benchmarks.records import MODEL, ROOT
from errata import Editor
from errata.editing.request import EditRequest
from errata.evaluation.datasets import ValidRecord, open_dataset
from errata.orchestrator.journal.reading import JournalReader
from errata.orchestrator.measuring.repairs import repair_figures

FIRST: Final = 500
FIXED: Final = 40
"""Facts, spread over the first ``FIRST``, whose paraphrases and neighborhood are asked at every point."""
VALUES: Final = {"lr": 0.5, "steps": 15, "clamp": 0.75, "weight_decay": 0.5, "kl_factor": 0.0625}


@dataclass(frozen=True)
class Kind:
    """One way to live."""

    method: str
    editor: Mapping[str, Any]
    repair: bool = False


KINDS: Final[Mapping[str, Kind]] = {
    "alphaedit": Kind("alphaedit", {"values": VALUES}),
    "alphaedit+repair": Kind("alphaedit", {"values": VALUES}, repair=True),
    "memit": Kind("memit", {"values": VALUES}),
    "rome": Kind("rome", {"layers": [5], "values": VALUES}),
    "alphaedit+anchors": Kind("alphaedit", {"values": VALUES, "norm_anchors": True}),
    "ultraedit": Kind("ultraedit", {}),
}


def shared() -> Path:
    """Where data sets are, as `benchmarks.records` finds them."""
    return Path(os.environ.get("ERRATA_SHARED_DATA", str(ROOT.parent / "shared" / "data")))


def requests(count: int) -> list[EditRequest]:
    """CounterFact's edits, then ZsRE's, one for each fact; at most so many."""
    files = ["counterfact/counterfact.json", "zsre_mend/zsre_mend_eval.json", "zsre_mend/zsre_mend_train.json"]
    chosen: dict[str, EditRequest] = {}
    for name in files:
        if len(chosen) >= count or not (shared() / name).exists():
            continue
        for record in open_dataset(shared() / name):
            if isinstance(record, ValidRecord) and len(chosen) < count:
                chosen.setdefault(record.request.fact_key, record.request)
    return list(chosen.values())


def domains() -> dict[str, list[str]]:
    """Texts by domain, some thousand tokens each: prose, and what data sets of mathematics and programs hold."""
    prose = (ROOT / "configs" / "text" / "heldout.txt").read_text(encoding="utf-8").split("\n\n")
    texts = {"prose": [part for part in prose if part.strip()][:20]}
    wiki, math, code = (
        shared() / n for n in ("wikitext/wiki.test.raw", "gsm8k/test.jsonl", "humaneval/HumanEval.jsonl.gz")
    )
    if wiki.exists():
        lines = wiki.read_text(encoding="utf-8").splitlines()
        texts["wikitext"] = [line.strip() for line in lines if len(line) > 400][:20]
    if math.exists():
        rows = [json.loads(line) for line in math.read_text(encoding="utf-8").splitlines()[:40]]
        texts["mathematics"] = [f"{row['question']}\n{row['answer']}" for row in rows]
    if code.exists():
        with gzip.open(code, "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in list(file)[:30]]
        texts["code"] = [row["prompt"] + row["canonical_solution"] for row in rows]
    return texts


def unsampled(journal: JournalReader, numbers: Sequence[int]) -> set[int]:
    """Of some requests those that the newest look of repair has not asked."""
    events = journal.event_page(-1, kind="repair")
    asked = {seq for event in events if event.data["at"] == events[0].data["at"] for seq in event.data["asked"]}
    return set(numbers) - asked


def point(editor: Editor, wanted: Sequence[EditRequest], texts: Mapping[str, list[str]]) -> dict[str, Any]:
    """Everything that is measured of the model as it is."""
    pipeline = editor._pipeline
    journal, begun = pipeline.journal, time.perf_counter()
    head = journal.head()
    rows = journal.requests("applied")
    outcomes = pipeline.editor.ask([row.request for row in rows])
    says = {row.seq: outcome.landed for row, outcome in zip(rows, outcomes, strict=True)}
    edits_at = {version.sequence: version.edits for version in journal.versions()}
    groups: dict[int, list[bool]] = {}
    for row in rows:
        age = head.edits - edits_at[row.applied_in or 0]
        groups.setdefault(age // 250 * 250, []).append(says[row.seq])
    first = [row.seq for row in rows if row.seq <= FIRST]
    left = unsampled(journal, first)
    fixed = [request for request in wanted[: min(FIRST, head.edits)] if request.neighborhood]
    fixed = fixed[:: max(1, len(fixed) // FIXED)][:FIXED]
    figures = editor.evaluate(fixed, arms=("edited",))["edited"]
    weights = pipeline.editor.weights()
    edit_s = sum(version.seconds for version in journal.versions() if version.kind == "edit")
    repair = repair_figures((event.data for event in journal.events("repair")), edit_s)
    return {
        "edits": head.edits,
        "said": share(list(says.values())),
        "said_first": share([says[seq] for seq in first]),
        "said_unsampled": share([says[seq] for seq in left]),
        "unsampled": len(left),
        "by_age": {str(age): [share(group), len(group)] for age, group in sorted(groups.items())},
        "landed_when_written": Counter(row.outcome for row in rows)["landed"] / max(1, len(rows)),
        **{name: figures[name] for name in ("efficacy", "generalization", "specificity")},
        "perplexity": pipeline.evaluators.perplexities(texts, weights),
        "norms": {str(layer): norm for layer, norm in head.norms.items()},
        "edit_s": edit_s,
        "repair": None if repair is None else {k: v for k, v in repair.items() if k not in ("ages", "points")},
        "repair_points": [] if repair is None else repair["points"],
        "point_s": time.perf_counter() - begun,
    }


def share(values: Sequence[bool]) -> float | None:
    """Share of what is true; None of nothing."""
    return sum(values) / len(values) if values else None


def live(name: str, directory: Path, edits: int, step: int, minutes: float, repair: Mapping[str, Any]) -> bool:
    """Go on with a life for so long; whether it is at its end."""
    kind, until = KINDS[name], time.monotonic() + 60 * minutes
    wanted, texts = requests(edits), domains()
    points = directory / f"{name}.jsonl"
    settings: dict[str, Any] = {
        "editor": dict(kind.editor),
        "contexts": {"count": 1, "length": 10},
        "covariance": {"source": "self_generated", "tokens": 7500},
        "evaluation": {"held_out": None, "every": None},
        "snapshots": {"every": 10},
        "memory": {"embedder": {"type": "hash"}},
    }
    if kind.repair:
        settings["repair"] = dict(repair)
    output = directory / name
    known = [json.loads(line) for line in points.read_text().splitlines()] if points.exists() else []
    done = {row["edits"] for row in known}
    layers = kind.editor.get("layers")
    plain = {"editor": {k: v for k, v in settings["editor"].items() if k != "layers"}}
    with Editor.from_pretrained(
        MODEL,
        method=kind.method,
        journal=output,
        layers=layers,
        settings={**settings, **plain},
        threads=1,
        progress=False,
    ) as editor:
        journal = editor._pipeline.journal
        while True:
            at = journal.counts().requests
            if at % step == 0 or at >= len(wanted):
                editor.edit([])  # what a stop left over, repairs among it
                if at and journal.head().edits not in done:
                    row = point(editor, wanted, texts)
                    done.add(row["edits"])
                    with points.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(row) + "\n")
                    print(
                        name, json.dumps({k: row[k] for k in ("edits", "said", "said_first", "specificity", "edit_s")})
                    )
            if at >= len(wanted):
                return True
            if time.monotonic() > until:
                return False
            editor.edit(wanted[at : at + 10])


def table(directory: Path) -> dict[str, list[dict[str, Any]]]:
    """The points of every life that is there."""
    return {
        name: [json.loads(line) for line in (directory / f"{name}.jsonl").read_text().splitlines()]
        for name in KINDS
        if (directory / f"{name}.jsonl").exists()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lives", nargs="*", help=f"of {', '.join(KINDS)}")
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--edits", type=int, default=2000)
    parser.add_argument("--step", type=int, default=250, help="edits between two points")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so long; the next call goes on")
    parser.add_argument("--every", type=int, default=250)
    parser.add_argument("--sample", type=int, default=100)
    parser.add_argument("--most", type=float, default=0.2)
    parser.add_argument("--table", action="store_true", help="write benchmarks/results/lives.json from what is there")
    given = parser.parse_args()
    one_thread()
    given.dir.mkdir(parents=True, exist_ok=True)
    repair = {"every": given.every, "sample": given.sample, "target": 0.95, "most": given.most}
    for name in given.lives:
        if name not in KINDS:
            parser.error(f"there is no life {name!r}; allowed: {', '.join(KINDS)}")
        live(name, given.dir, given.edits, given.step, given.minutes, repair)
    if given.table:
        print(store("lives", {"context": context(), "repair": repair, "lives": table(given.dir)}))


if __name__ == "__main__":
    main()
