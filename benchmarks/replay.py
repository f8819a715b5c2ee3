"""What a restart costs: replaying every commit against beginning at a snapshot, on SmolLM2 with AlphaEdit.

    python -m benchmarks.replay [--edits 1000] [--batch 10]

Keys and changes are random numbers of the right sizes: a replay reads them and computes nothing from the model. Both
ways include reading the files and checking their digests, and end in the same bits, which is checked first.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.measuring import context, one_thread, store, timed
from benchmarks.records import LAYERS, smollm2
from errata.editing.covariance import KeyCovariance
from errata.editing.delta import LayerDelta, WeightDelta
from errata.editing.editors.closed_form.alphaedit import AlphaEdit, AlphaEditConfig
from errata.editing.model.adapter import EditableModel
from errata.editing.session import EditReceipt, EditSession
from errata.orchestrator.history.receipts import commit_data, load_receipt, open_store, store_receipt
from errata.orchestrator.history.snapshots import load_snapshot, snapshots, store_snapshot
from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.rows import JournalMeta, Version


def receipt(model: EditableModel, sequence: int, size: int, covariance: str) -> EditReceipt:
    """A commit of ``size`` edits that nobody asked for."""
    generator = torch.Generator().manual_seed(sequence)
    layers, keys = {}, {}
    for layer in LAYERS:
        outer, inner = model.weight(layer).shape
        left = 1e-3 * torch.randn(outer, size, generator=generator)
        layers[layer] = LayerDelta("low_rank", left, 1e-3 * torch.randn(size, inner, generator=generator))
        keys[layer] = torch.randn(inner, size, generator=generator)
    names = tuple(f"{sequence}-{number}" for number in range(size))
    targets = torch.randn(size, model.hidden_size, generator=generator)
    return EditReceipt(
        sequence, WeightDelta(layers, "alphaedit"), (), names, names, (), keys, targets, covariance_digest=covariance
    )


def measure(model: EditableModel, root: Path, edits: int, batch: int) -> dict[str, float]:
    """Seconds of both ways to the newest commit, and sizes."""
    base = model.weights(LAYERS)
    covariance = KeyCovariance.identity({layer: weight.shape[1] for layer, weight in base.items()})
    editor = AlphaEdit(AlphaEditConfig(layers=tuple(LAYERS), tau=2.0))

    def session() -> EditSession:
        model.set_weights(base)
        return EditSession(model, editor, covariance, ("",))

    files = open_store(root)
    meta = JournalMeta(run_id="replay", base_digest=model.digest, editor_digest="", config={})
    with Journal.create(root / "journal.sqlite", meta) as journal:
        live = session()
        for sequence in range(1, edits // batch + 1):
            made = receipt(model, sequence, batch, covariance.digest)
            delta, keys = store_receipt(files, made)
            journal.commit(commit_data(made, delta=delta, keys=keys, contexts=None, norms={}))
            live.replay(made)
        head = journal.head()
        store_snapshot(journal, files, live.snapshot(), head)
        wanted = model.weights(LAYERS)
        versions: list[Version] = journal.versions()[1:]
        (row,) = snapshots(journal)

        def by_replay(one: EditSession) -> None:
            for version in versions:
                one.replay(load_receipt(files, version))

        def by_snapshot(one: EditSession) -> None:
            one.resume(load_snapshot(files, row))

        figures = {"edits": float(edits), "batch": float(batch)}
        ways: dict[str, Callable[[EditSession], None]] = {"replay": by_replay, "snapshot": by_snapshot}
        for name, way in ways.items():
            times = []
            for _ in range(3):
                fresh = session()
                times.append(timed(lambda way=way, fresh=fresh: way(fresh))[0])  # type: ignore[misc]
                assert all(torch.equal(model.weights(LAYERS)[layer], weight) for layer, weight in wanted.items())
                left, right = fresh.state.tensors(), live.state.tensors()
                assert all(torch.equal(left[key], right[key]) for key in right)
            figures[f"{name}_seconds"] = min(times)
    for kind in ("deltas", "keys", "snapshots"):
        figures[f"{kind}_megabytes"] = sum(path.stat().st_size for path in (root / kind).iterdir()) / 1e6
    figures["ratio"] = figures["replay_seconds"] / figures["snapshot_seconds"]
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edits", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=10)
    given = parser.parse_args()
    one_thread()
    model = smollm2()
    with tempfile.TemporaryDirectory() as directory:
        figures = measure(model, Path(directory), given.edits, given.batch)
    for name, value in figures.items():
        print(f"{name}: {value:.3g}")
    store("replay", {**context(), **figures})


if __name__ == "__main__":
    main()
