"""What becomes of edits on a model, method by method: how far each got, whether it is said, and what else moved.

    python -m benchmarks.landing --model DIR [--methods memit,alphaedit] [--records 50] [--skip 500]
                                 [--set editor.values.lr=0.15] [--only-written]

Records of CounterFact, in batches of ten, each batch looked at right after it is written. ``reached`` is the share of
the wanted change of the last edited layer, ``cosine`` that between both. ``said`` is an answer that begins with
the target, ``agreement`` the share of edits where landed and said are the same, both on the version right after the
batch. ``--only-written`` turns corrections off, so that what is measured is the write itself.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measuring import context, one_thread, store, timed
from benchmarks.records import counterfact
from errata import Editor
from errata.api import EditResult
from errata.editing.errors import UserError
from errata.editing.request import EditRequest
from errata.orchestrator.config.loading import overridden

BATCH = 10


def landing(
    model: str, method: str, requests: Sequence[EditRequest], settings: dict[str, Any], *, evaluate: bool
) -> dict[str, Any]:
    """Figures of one method on one model; the edits follow one another in batches of ten."""
    with Editor.from_pretrained(model, method=method, settings=settings, threads=1, progress=False) as editor:
        spent, results, said = 0.0, [], []
        for at in range(0, len(requests), BATCH):
            batch = requests[at : at + BATCH]
            seconds, done = timed(lambda: editor.edit(batch))  # noqa: B023
            spent += seconds
            results += done
            answers = editor.ask([request.text for request in batch], max_new_tokens=12)
            said += [
                answer.strip().startswith(request.target_new.strip())
                for request, answer in zip(batch, answers, strict=True)
            ]
        figures = _figures(results, said) | {"cpu_seconds_per_edit": spent / len(requests)}
        if evaluate:
            figures["evaluated"] = editor.evaluate(requests)
    return figures


def _figures(results: Sequence[EditResult], said: Sequence[bool]) -> dict[str, Any]:
    applied = [result for result in results if result.state == "applied"]
    landed = [result.outcome == "landed" for result in results]
    figures: dict[str, Any] = {
        "edits": len(results),
        "applied": len(applied),
        "landed": sum(landed),
        "weak": sum(result.outcome == "weak" for result in results),
        "said": sum(said),
        "agreement": sum(a == b for a, b in zip(landed, said, strict=True)) / len(results),
        "p_target": statistics.median(result.figures["p_target"] for result in applied) if applied else None,
    }
    for name in ("reached", "cosine"):
        values = [result.figures[name] for result in applied if name in result.figures]
        figures[name] = statistics.median(values) if values else None
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--methods", default="memit,alphaedit")
    parser.add_argument("--records", type=int, default=50)
    parser.add_argument("--skip", type=int, default=500)
    parser.add_argument("--data", help="CounterFact as JSON")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--only-written", action="store_true")
    parser.add_argument("--evaluate", action="store_true")
    parser.add_argument("--name", help="of the row in the results")
    options = parser.parse_args()
    one_thread()
    requests = counterfact(options.data, options.skip + options.records)[options.skip :]
    if not requests:
        parser.error(f"--skip {options.skip} leaves no record")
    settings = overridden({}, options.set)
    if options.only_written:
        settings = overridden(settings, ["verify.corrections=0"])
    rows: dict[str, Any] = {}
    for method in options.methods.split(","):
        own = {**settings, "editor": dict(settings.get("editor", {}))}
        try:
            rows[method] = landing(options.model, method, requests, own, evaluate=options.evaluate)
        except UserError as error:
            rows[method] = {"refused": str(error)}
        print(method, rows[method], flush=True)
    name = options.name or f"landing-{Path(options.model).name}"
    store(name, {"context": context(), "options": vars(options), "methods": rows})


if __name__ == "__main__":
    main()
