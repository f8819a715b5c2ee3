"""A whole edit, split: target values, keys, residuals, the closed form, and taking the keys into the state.

    python -m benchmarks.whole_edit [--data counterfact.json]      # SmolLM2, AlphaEdit and MEMIT, batches of 1 and 10

The parts are the editor's own, called one after another and timed each; the change they give is compared with the one
the editor computes by itself. Keys and residuals are also read the published way, whole passes with logits for every
layer: one over all contexts, one more for the states at the last layer. Both ways must read the same keys.

``look`` is what the closed loop costs where nothing is corrected: the same batches written by a session that looks at
each before it is written, and by one that does not. Both must give the same change.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measuring import context, gemm_rate, one_thread, store, timed
from benchmarks.records import CONTEXT_LENGTH, CONTEXTS, LAYERS, counterfact, smollm2
from errata.editing.contexts import sample_contexts
from errata.editing.covariance import KeyCovariance
from errata.editing.delta import apply_delta
from errata.editing.editors.closed_form.alphaedit import AlphaEdit, AlphaEditConfig
from errata.editing.editors.closed_form.locate import LocateEditor
from errata.editing.editors.closed_form.memit import Memit, MemitConfig
from errata.editing.estimation.corpus import CorpusReading, run_corpus_unit
from errata.editing.keys import SubjectPass
from errata.editing.model.adapter import EditableModel
from errata.editing.request import EditBatch, EditRequest
from errata.editing.session import EditSession
from errata.editing.state import LifelongState
from errata.editing.values import ValueConfig
from errata.editing.verify import VerifyConfig

Clock = Callable[[Callable[[], Any]], tuple[float, Any]]
PARTS = ("values", "keys", "residuals", "solve", "state")


def split(
    model: EditableModel,
    editor: LocateEditor,
    requests: Sequence[EditRequest],
    state: LifelongState,
    contexts: Sequence[str],
    clock: Clock = timed,
) -> tuple[dict[str, float], LifelongState]:
    """Seconds of every part of one batch, and the state after it; the model's bytes are restored.

    Args:
        clock: runs a call and returns its seconds with its result; by default CPU seconds.

    Raises:
        AssertionError: the parts do not add up to what the editor computes.
    """
    spent = dict.fromkeys(PARTS, 0.0)
    spent["values"], values = clock(lambda: editor.find_values(model, requests, contexts, None))
    targets = torch.stack([value.state for value in values])
    wanted = targets.T.to(model.device)
    changes, keys = {}, {}
    spent["keys"], walk = clock(lambda: SubjectPass(model, requests, contexts))
    with model.patched(editor.layers):
        for place, layer in enumerate(editor.layers):
            seconds, columns = clock(lambda: walk.keys(layer, editor.key_average))  # noqa: B023
            spent["keys"] += seconds
            spread = editor.spread(len(editor.layers) - place)
            seconds, residual = clock(
                lambda: editor.residual(model, walk, wanted, layer, editor.layers[-1], spread)  # noqa: B023
            )
            spent["residuals"] += seconds

            def solve() -> None:
                changes[layer] = editor.change(model, layer, columns, residual, state)  # noqa: B023
                model.set_weight(layer, apply_delta(model.weight(layer), changes[layer]))  # noqa: B023

            spent["solve"] += clock(solve)[0]
            keys[layer] = columns
    whole, _ = editor.write(model, requests, targets, state, contexts)
    for layer, change in changes.items():
        mine, its = change.right, whole[layer].right
        if mine is None or its is None or not (torch.equal(change.left, whole[layer].left) and torch.equal(mine, its)):
            raise AssertionError(f"layer {layer}: the parts give another change than the editor")
    ids = [request.id for request in requests]
    facts = [request.fact_key for request in requests]
    spent["state"], advanced = clock(lambda: state.appended(keys, ids, facts))
    return spent, advanced


@torch.no_grad()
def published_reads(
    model: EditableModel, requests: Sequence[EditRequest], contexts: Sequence[str], layers: Sequence[int]
) -> tuple[dict[int, Tensor], Tensor]:
    """Keys (I, m) by layer and states (d, m) at the last one, as MEMIT's code reads them, 128 rows at a time."""
    runs = [model.text.encode_for_edit(c, r.prompt, r.subject) for r in requests for c in contexts]
    keys = {}
    state = torch.empty(0)
    for layer in layers:
        read, _ = _whole_passes(model, runs, layer, layers[-1])
        read = read.view(len(requests), len(contexts), -1)
        keys[layer] = (0.5 * read[:, 0] + 0.5 * read[:, 1:].mean(dim=1)).T
        state = _whole_passes(model, runs[:: len(contexts)], layer, layers[-1])[1].T
    return keys, state


def _whole_passes(
    model: EditableModel, runs: Sequence[tuple[list[int], int]], layer: int, last: int
) -> tuple[Tensor, Tensor]:
    """Of (tokens, subject): keys (n, I) of a layer and output (n, d) of another below the top, at the subjects."""
    keys, states = [], []
    for at in range(0, len(runs), 128):
        tokens, subjects = zip(*runs[at : at + 128], strict=True)
        rows = model.rows(tokens)
        mask = (rows.layout.segments >= 0).long()
        with model.map_inputs([layer]) as inputs:
            passed = model.hf(input_ids=rows.ids, attention_mask=mask, use_cache=False, output_hidden_states=True)
        places = torch.arange(len(subjects)), torch.tensor(subjects)
        keys.append(inputs[layer][places].float())
        states.append(passed.hidden_states[last + 1][places].float())
    return torch.cat(keys), torch.cat(states)


def reading_ratio(
    model: EditableModel,
    editor: LocateEditor,
    requests: Sequence[EditRequest],
    contexts: Sequence[str],
    repeats: int = 3,
) -> dict[str, float]:
    """CPU seconds per edit of reading keys and states both ways, the weights left alone, and how they differ.

    Raises:
        AssertionError: the two ways read other keys or states.
    """

    def shared() -> tuple[dict[int, Tensor], Tensor]:
        walk = SubjectPass(model, requests, contexts)
        keys = {}
        for layer in editor.layers:
            keys[layer] = walk.keys(layer, editor.key_average)
            state, _ = walk.states(editor.layers[-1])
        return keys, state

    seconds = [float("inf")] * 2
    results: list[tuple[dict[int, Tensor], Tensor]] = []
    for _ in range(repeats):
        results = []
        for way, read in enumerate((shared, lambda: published_reads(model, requests, contexts, editor.layers))):
            spent, result = timed(read)
            seconds[way] = min(seconds[way], spent)
            results.append(result)
    (keys, state), (published_keys, published_state) = results
    pairs = [(keys[layer], published_keys[layer]) for layer in editor.layers] + [(state, published_state)]
    apart = max(float((a - b).norm() / b.norm()) for a, b in pairs)
    if not apart < 1e-4:
        raise AssertionError(f"keys or states differ by {apart:.2g} from those of whole passes")
    return {
        "reads_s": seconds[0] / len(requests),
        "published_reads_s": seconds[1] / len(requests),
        "reads_ratio": seconds[1] / seconds[0],
    }


def measure(
    model: EditableModel,
    editor: LocateEditor,
    requests: Sequence[EditRequest],
    covariance: KeyCovariance,
    contexts: Sequence[str],
    *,
    batch: int,
    batches: int,
) -> dict[str, Any]:
    """Mean CPU seconds per edit of each part over some batches, after one edit that does not count."""
    state = editor.new_state(model, covariance)
    _, state = split(model, editor, requests[-1:], state, contexts)
    total = dict.fromkeys(PARTS, 0.0)
    for turn in range(batches):
        chosen = [requests[(turn * batch + i) % len(requests)] for i in range(batch)]
        spent, state = split(model, editor, chosen, state, contexts)
        total = {part: total[part] + spent[part] for part in PARTS}
    per_edit = {f"{part}_s": seconds / (batch * batches) for part, seconds in total.items()}
    return {
        "edits": batch * batches,
        "s_per_edit": sum(per_edit.values()),
        **per_edit,
        "published_passes_per_edit": len(editor.layers) * (len(contexts) + 1),
        **reading_ratio(model, editor, requests[:batch], contexts),
    }


def look_price(
    model: EditableModel,
    editor: LocateEditor,
    requests: Sequence[EditRequest],
    covariance: KeyCovariance,
    contexts: Sequence[str],
    *,
    batch: int,
    batches: int,
) -> dict[str, float]:
    """CPU seconds per edit without a look and with one, and the share that the look adds.

    Raises:
        AssertionError: to look at a batch changed it.
    """
    seconds, digests = [], []
    for verify in (None, VerifyConfig(corrections=0)):
        session = EditSession(model, editor, covariance, contexts, verify)
        with model.patched(editor.layers):
            session.apply(EditBatch(sequence=1, requests=tuple(requests[-1:])))  # does not count
            spent = 0.0
            for turn in range(batches):
                chosen = tuple(requests[turn * batch : (turn + 1) * batch])
                taken, receipt = timed(
                    lambda: session.apply(EditBatch(sequence=turn + 2, requests=chosen))  # noqa: B023
                )
                spent += taken
            digests.append(receipt.delta.digest if receipt.delta is not None else "")
        seconds.append(spent / (batch * batches))
    if digests[0] != digests[1]:
        raise AssertionError("a batch that was looked at is another one")
    return {"unseen_s": seconds[0], "seen_s": seconds[1], "look_share": seconds[1] / seconds[0] - 1}


def text_covariance(model: EditableModel, layers: Sequence[int], texts: Sequence[str]) -> KeyCovariance:
    """Second moments of some text: any will do here, as the time does not depend on it."""
    unit = run_corpus_unit(model, 0, 0, texts, layers, CorpusReading())
    return KeyCovariance(unit.sums, unit.tokens, {"kind": "benchmark"})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", help="CounterFact as JSON")
    parser.add_argument("--batches", type=int, default=2, help="batches of each size that count")
    parser.add_argument("--editors", nargs="+", default=["alphaedit", "memit"], choices=["alphaedit", "memit"])
    parser.add_argument("--json", type=Path, help="where to write; by default benchmarks/results/")
    options = parser.parse_args()
    one_thread()
    model = smollm2()
    requests = counterfact(options.data, 40)
    contexts = sample_contexts(model, count=CONTEXTS, length=CONTEXT_LENGTH, seed=0)
    texts = [f"{p} {r.target_new}." for r in counterfact(options.data, 200) for p in r.paraphrases]
    covariance = text_covariance(model, LAYERS, texts)
    rate = gemm_rate(1024, 576, 1536) / 1e9
    result: dict[str, Any] = {"context": context(model=model.name, gemm_Gflops=rate), "layers": list(LAYERS)}
    values = ValueConfig()
    editors: dict[str, LocateEditor] = {
        "alphaedit": AlphaEdit(AlphaEditConfig(layers=LAYERS, values=values)),
        "memit": Memit(MemitConfig(layers=LAYERS, values=values)),
    }
    for name in options.editors:
        for batch in (1, 10):
            row = measure(model, editors[name], requests, covariance, contexts, batch=batch, batches=options.batches)
            row |= look_price(
                model, editors[name], requests, covariance, contexts, batch=batch, batches=min(options.batches, 3)
            )
            result[f"{name}_batch_{batch}"] = row
            print(name, batch, {key: round(value, 4) for key, value in row.items()}, flush=True)
    print(store("whole_edit", result, options.json))


if __name__ == "__main__":
    main()
