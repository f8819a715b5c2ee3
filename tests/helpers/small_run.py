"""A finished run on a tiny model, made in a second without Ray: a journal, its files, and the weights it should give.

Its course:

    v1  France -> Lyon, Rome -> Canada
    v2  Angola -> football
        a covariance refreshed at 3 edits comes into force
    v3  France -> Paris (supersedes Lyon), and one request that the editor refuses
    v4  a batch in which nothing could be applied: no delta, the version of v3
    v5  revert of Paris: Lyon holds again
    v6  Alice Munro -> subject
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from errata.editing.checkpoint.load import load_model
from errata.editing.covariance import KeyCovariance
from errata.editing.delta import LayerDelta, WeightDelta, apply_delta
from errata.editing.editors import make_editor
from errata.editing.editors.closed_form.memit import MemitConfig
from errata.editing.model.adapter import EditableModel
from errata.editing.request import EditBatch, EditRequest, NeighborhoodProbe, Provenance
from errata.editing.session import EditReceipt, EditSession, RequestResult
from errata.editing.values import ValueConfig
from errata.orchestrator.history.receipts import commit_data, open_store, store_receipt
from errata.orchestrator.journal import JOURNAL_FILE, Journal
from errata.orchestrator.journal.artifacts import ArtifactStore
from errata.orchestrator.journal.rows import CovarianceRow, JournalMeta
from tests.helpers.tiny import save_tiny

LAYERS = (0, 1)
CONFIG = MemitConfig(layers=LAYERS, cov_weight=2.0, values=ValueConfig(lr=0.3, steps=3, clamp=2.0, weight_decay=0.0))
REQUESTS = {
    "lyon": EditRequest(
        id="lyon",
        subject="France",
        prompt="The capital of {} is",
        target_new="Lyon",
        target_true="Paris",
        relation="capital",
        paraphrases=("The capital city of France is",),
        neighborhood=(NeighborhoodProbe(prompt="Rome lies in", answer="Italy"),),
        provenance=Provenance(who="desk 4", why="a reader wrote"),
    ),
    "rome": EditRequest(id="rome", subject="Rome", prompt="{} lies in", target_new="Canada"),
    "angola": EditRequest(id="angola", subject="Angola", prompt="{} is located in", target_new="football"),
    "paris": EditRequest(
        id="paris", subject="France", prompt="The capital of {} is", target_new="Paris", relation="capital"
    ),
    "odd\x1b[2J": EditRequest(id="odd\x1b[2J", subject="no\nbody", prompt="{} is", target_new="x"),
    "never": EditRequest(id="never", subject="never", prompt="{} is", target_new="y"),
    "munro": EditRequest(id="munro", subject="Alice Munro", prompt="{} works as a", target_new="subject"),
    "later": EditRequest(id="later", subject="later", prompt="{} is", target_new="z"),
}


@dataclass
class SmallRun:
    """Where everything is, and what rebuilding must give, by sequence number."""

    directory: Path
    model: Path
    weights: list[dict[int, Tensor]] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)

    def journal(self) -> Journal:
        return Journal.open(self.directory / JOURNAL_FILE, read_only=True)

    def store(self) -> ArtifactStore:
        return open_store(self.directory)


def random_covariance(model: EditableModel, seed: int) -> KeyCovariance:
    """Well-conditioned second moments for ``LAYERS``."""
    generator = torch.Generator().manual_seed(seed)
    sums = {}
    for layer in LAYERS:
        keys = torch.randn(300, model.weight(layer).shape[1], generator=generator, dtype=torch.float64)
        sums[layer] = keys.T @ keys
    return KeyCovariance(sums, 300, {"kind": "random", "seed": seed})


def make_run(
    root: Path, family: str = "llama", *, dtype: str = "float32", checkpoint_dtype: str = "float32"
) -> SmallRun:
    """The run described above, under ``root/run``, on a model saved in ``root/model``."""
    model_dir = save_tiny(root / "model", family, layers=3)
    if checkpoint_dtype != "float32":
        _store_in(model_dir, getattr(torch, checkpoint_dtype))
    run = SmallRun(root / "run", model_dir)
    model = load_model(str(model_dir), dtype=dtype)
    session = EditSession(model, make_editor(CONFIG), random_covariance(model, 0), ("", "You. "))
    meta = JournalMeta(
        run_id="small-run",
        base_digest=model.digest,
        editor_digest="e" * 64,
        config={
            "name": "small",
            "model": {"name": str(model_dir), "dtype": dtype},
            "editor": CONFIG.model_dump(mode="json"),
        },
        errata_version="0.1.0",
    )
    with Journal.create(run.directory / JOURNAL_FILE, meta) as journal:
        _course(run, journal, run.store(), session, model)
    return run


def _course(run: SmallRun, journal: Journal, store: ArtifactStore, session: EditSession, model: EditableModel) -> None:
    contexts = store.put_bytes("contexts", b'["", "You. "]', suffix=".json")

    def keep(version: str) -> None:
        run.weights.append({layer: weight.clone() for layer, weight in session.weights().items()})
        run.versions.append(version)

    def commit(receipt: EditReceipt, **changes: object) -> None:
        delta, keys = store_receipt(store, receipt)
        data = commit_data(receipt, delta=delta, keys=keys, contexts=contexts, norms=session.norms(), superseded=())
        keep(journal.commit(replace(data, **changes)).digest)  # type: ignore[arg-type]

    def edit(sequence: int, *names: str, refused: Sequence[str] = ()) -> None:
        batch = EditBatch(sequence=sequence, requests=tuple(REQUESTS[name] for name in names))
        receipt = session.apply(batch)
        extra = tuple(RequestResult(name, False, "the subject is unknown") for name in refused)
        commit(replace(receipt, results=(*receipt.results, *extra)))

    journal.accept(list(REQUESTS.values()))
    journal.reject("stream.jsonl:9", "no target")
    keep(journal.base().digest)
    _keep_covariance(journal, store, random_covariance(model, 0), 0, 0)
    edit(1, "lyon", "rome")
    edit(2, "angola")
    journal.record_refresh(3, "started", from_version=run.versions[2])
    _keep_covariance(journal, store, random_covariance(model, 1), 2, 3, swap=session.swap_covariance)
    journal.record_refresh(3, "swapped", covariance=random_covariance(model, 1).digest, seconds=1.5)
    before = session.weights()
    edit(3, "paris", refused=("odd\x1b[2J",))
    nothing = EditReceipt(4, None, (RequestResult("never", False, "no such thing"),), (), (), ())
    commit(replace(nothing, covariance_digest=session.state.covariance_digest))
    # a revert as a commit of its own: what v3 added is taken out again, here as a dense change
    layers = {layer: LayerDelta("dense", (before[layer] - weight)) for layer, weight in session.weights().items()}
    receipt = EditReceipt(
        5,
        WeightDelta(layers, "memit"),
        (),
        (),
        (),
        (),
        covariance_digest=session.state.covariance_digest,
        kind="revert",
        taken_out=("paris",),
    )
    for layer, change in layers.items():
        model.set_weight(layer, apply_delta(model.weight(layer), change))
    session.sequence = 5
    commit(receipt, kind="revert", reverts=("paris",), restores=("lyon",))
    edit(6, "munro")


def _keep_covariance(
    journal: Journal,
    store: ArtifactStore,
    covariance: KeyCovariance,
    after: int,
    edits: int,
    *,
    swap: Callable[[KeyCovariance], None] | None = None,
) -> None:
    digest = store.put_file("covariances", covariance.save)
    version = journal.head().digest
    journal.record_covariance(
        CovarianceRow(digest, covariance.source, covariance.tokens, covariance.layers, version, f"covariances/{digest}")
    )
    journal.record_swap(after, digest, edits)
    if swap is not None:
        swap(covariance)


def _store_in(directory: Path, dtype: torch.dtype) -> None:
    """Rewrite a checkpoint's tensors in another type."""
    from safetensors.torch import load_file, save_file

    path = directory / "model.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})
