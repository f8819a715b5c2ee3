"""A long life: a hundred thousand edits of twenty thousand facts by the real loop, and what grows with them.

    python -m benchmarks.long_life                       # under an hour
    python -m benchmarks.long_life --edits 5000 --facts 1000

A tiny random model, so that what is measured is everything around the model: Ray and its actors, the journal, files,
memory, snapshots. Four fifths of the edits update a fact that is known. By tenths of the life: wall and CPU seconds of
a batch, resident memory of the editor's, the memory's and the orchestrator's process, seconds of `errata log -n 20` and
of a question to the memory. After the first tenth and at the end: seconds of a restart and of a revert.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import psutil

from benchmarks.measuring import context, median, store
from errata.actors.local import LocalParts
from errata.actors.settings import RoleConfig
from errata.editing.checkpoint.load import checkpoint_digest, load_model
from errata.editing.editors import make_editor
from errata.editing.request import EditRequest
from errata.evaluation.datasets.updating import UpdatingStream
from errata.orchestrator.config.loading import build_config
from errata.orchestrator.config.run import RunConfig
from errata.orchestrator.history.log import History
from errata.orchestrator.history.receipts import open_store
from errata.orchestrator.journal import JOURNAL_FILE, Journal
from errata.orchestrator.journal.intake import Admission, Intake
from errata.orchestrator.progress import Display
from errata.orchestrator.run.assembly import make_pipeline
from errata.orchestrator.run.opening import OpenRun, check_run, open_journal, open_run
from errata.orchestrator.run.pipeline import Pipeline
from errata.orchestrator.tracking.tracker import NullTracker

TENTHS = 10
_AT_ONCE = 2000
_ACTORS = {"editor": "EditorActor", "memory": "RetrievalActor"}


def save_model(directory: Path) -> Path:
    """A random model of some hundred thousand weights with a tokenizer of bytes, as a checkpoint."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    from errata.editing.checkpoint.save import save_checkpoint

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={"<|end|>": 0, **{c: i + 1 for i, c in enumerate(letters)}}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = AutoConfig.for_model(
        "llama", **sizes, num_key_value_heads=2, vocab_size=len(fast), eos_token_id=0, bos_token_id=None
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, 0.5 if "embed" in name else 0.12)
    directory.mkdir(parents=True, exist_ok=True)
    save_checkpoint(model, fast, directory)
    return directory


def settings(model: Path, batch: int, snapshots: int) -> RunConfig:
    """A run of the cheapest edits that go the whole way."""
    return build_config(
        {
            "name": "long-life",
            "model": {"name": str(model)},
            "editor": {"type": "alphaedit", "layers": [1, 2], "tau": 5.0, "values": {"steps": 1, "lr": 0.5}},
            "contexts": {"count": 0},
            "stream": {},
            "batching": {"size": batch},
            "verify": {"enabled": False},
            "covariance": {"source": "identity"},
            "snapshots": {"every": snapshots},
            "evaluation": {"every": None, "held_out": None},
            "memory": {"embedder": {"type": "hash"}},
            "ray": {"generation_workers": 1, "evaluation_workers": 0},
        }
    )


@dataclass
class Life:
    """One open run of the life."""

    run: OpenRun
    pipeline: Pipeline
    restart_s: float
    """Wall seconds from nothing but a cluster to a pipeline that can write."""
    restore_s: float
    """Of these, without making the actors."""


@contextmanager
def living(config: RunConfig, output: Path, *, local: bool = False) -> Iterator[Life]:
    """The run in ``output``, begun or gone on with; ``local`` has every part in this process."""
    if local:
        with _living_here(config, output) as life:
            yield life
        return
    display = Display(quiet=True)
    checked = check_run(config, output, resume=None, needs_stream=False)
    with open_run(checked, display, completed="FINISHED", patience=10.0) as run:
        started = time.perf_counter()
        pipeline = make_pipeline(config, run.journal, run.store, run.cluster, tracker=run.tracker, display=display)
        pipeline.editor.map_widths()
        pipeline.memory.search(["?"], 1)
        made = time.perf_counter()
        pipeline.start()
        done = time.perf_counter()
        try:
            yield Life(run, pipeline, done - started, done - made)
        finally:
            pipeline.close()


@contextmanager
def _living_here(config: RunConfig, output: Path) -> Iterator[Life]:
    digest = checkpoint_digest(Path(config.model.name))
    model = load_model(config.model.name, digest=digest)
    output.mkdir(parents=True, exist_ok=True)
    with open_journal(config, output, digest) as journal:
        files = open_store(output)
        files.sweep()
        admission = Admission.of(config.model.name)
        spec, role = config.model_spec(digest), RoleConfig()
        parts: Any = LocalParts(model, spec, make_editor(config.editor).layers, role)
        run = OpenRun(
            config=config,
            output=output,
            model_digest=digest,
            journal=journal,
            intake=Intake(journal, admission),
            admission=admission,
            store=files,
            source=None,
            tracker=NullTracker(),  # type: ignore[arg-type]
            cluster=parts,
        )
        started = time.process_time()
        display = Display(quiet=True)
        pipeline = make_pipeline(config, journal, files, parts, tracker=run.tracker, display=display)
        made = time.process_time()
        pipeline.start()
        pipeline.memory.search(["?"], 1)
        done = time.process_time()
        try:
            yield Life(run, pipeline, done - started, done - made)
        finally:
            pipeline.close()


def processes() -> dict[str, psutil.Process]:
    """The processes whose memory counts, by what they are."""
    by_name = {"orchestrator": psutil.Process()}
    for child in by_name["orchestrator"].children(recursive=True):
        title = " ".join(child.cmdline())
        by_name |= {name: child for name, actor in _ACTORS.items() if title.startswith(f"ray::{actor}")}
    return by_name


def resident() -> dict[str, float]:
    """MiB of each process that are its own or shared code: anonymous memory, so that mapped files do not count."""
    return {name: sum(m.private_dirty for m in p.memory_maps()) / 2**20 for name, p in processes().items()}


def write_all(life: Life) -> list[tuple[float, float]]:
    """(wall, CPU) seconds of every batch until nothing waits; CPU of orchestrator, editor and memory together."""
    watched = processes()

    def cpu() -> float:
        times = [process.cpu_times() for process in watched.values()]
        return sum(t.user + t.system for t in times)

    spent = []
    before = (time.perf_counter(), cpu())
    while life.pipeline.write_next(ended=True) is not None:
        now = (time.perf_counter(), cpu())
        spent.append((now[0] - before[0], now[1] - before[1]))
        before = now
    return spent


def questions(life: Life, output: Path) -> dict[str, float]:
    """Seconds of what people ask, the best of five."""

    def best(call: Any) -> float:
        times = []
        for _ in range(5):
            begun = time.perf_counter()
            call()
            times.append(time.perf_counter() - begun)
        return min(times)

    with Journal.open(output / JOURNAL_FILE, read_only=True) as reader:
        return {
            "log_s": best(lambda: History(reader).log(20)),
            "show_s": best(lambda: History(reader).show("head", 20)),
            "query_s": best(lambda: life.pipeline.memory.search(["Where does Alice Munro 3 work?"], 3)),
        }


def reverts(life: Life, count: int, *, local: bool = False) -> list[float]:
    """Seconds of reverts of single edits from all over the history, none of them next to another."""
    journal = life.run.journal
    chosen = journal.applied_spread(count + 2)[1:-1]
    times = []
    clock = time.process_time if local else time.perf_counter
    for row in chosen:
        begun = clock()
        life.pipeline.revert([row.id], reason="measured")
        times.append(clock() - begun)
    return times


def measure(root: Path, edits: int, facts: int, batch: int, snapshots: int, *, local: bool = False) -> dict[str, Any]:
    """The whole life."""
    config, output = settings(save_model(root / "model"), batch, snapshots), root / "run"
    records = iter(UpdatingStream(edits, facts))
    result: dict[str, Any] = {"edits": edits, "facts": facts, "batch": batch, "tenths": [], "ends": []}

    def live(life: Life, count: int) -> None:
        intake_s = 0.0
        left = count
        while left > 0:
            part = [EditRequest.model_validate(record) for record in islice(records, min(left, _AT_ONCE))]
            begun = time.perf_counter()
            life.run.intake.accept(part)
            intake_s += time.perf_counter() - begun
            left -= len(part)
            if not part:
                break
        spent = write_all(life)
        head = life.run.journal.head()
        row = {
            "edits": head.edits,
            "batches": head.sequence,
            "batch_wall_s": median([wall for wall, _ in spent]),
            "batch_mean_wall_s": sum(wall for wall, _ in spent) / len(spent),
            "batch_cpu_s": sum(cpu for _, cpu in spent) / len(spent),
            "intake_s": intake_s,
            "resident_MiB": resident(),
            "journal_MiB": (output / JOURNAL_FILE).stat().st_size / 2**20,
            **questions(life, output),
        }
        result["tenths"].append(row)
        print(json.dumps(row), flush=True)

    def end() -> None:
        with living(config, output, local=local) as life:
            times = reverts(life, 3, local=local)
            row = {
                "edits": life.run.journal.head().edits,
                "restart_s": life.restart_s,
                "restore_s": life.restore_s,
                "revert_s": median(times),
                "reverts_s": times,
            }
        result["ends"].append(row)
        print(json.dumps(row), flush=True)

    with living(config, output, local=local) as life:
        live(life, edits // TENTHS)
    end()
    with living(config, output, local=local) as life:
        for _ in range(TENTHS - 1):
            live(life, edits // TENTHS)
    end()
    return result | {"ratios": ratios(result)}


def ratios(result: dict[str, Any]) -> dict[str, Any]:
    """What must stay bounded: the end against the beginning."""
    tenths, (early, late) = result["tenths"], result["ends"]
    first, second, last = tenths[0], tenths[1], tenths[-1]
    return {
        "batch_wall": last["batch_mean_wall_s"] / second["batch_mean_wall_s"],
        "batch_cpu": last["batch_cpu_s"] / second["batch_cpu_s"],
        "resident": {name: last["resident_MiB"][name] / first["resident_MiB"][name] for name in last["resident_MiB"]},
        **{name: last[f"{name}_s"] / first[f"{name}_s"] for name in ("log", "show", "query")},
        **{name: late[f"{name}_s"] / early[f"{name}_s"] for name in ("restart", "restore", "revert")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edits", type=int, default=100_000)
    parser.add_argument("--facts", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--snapshots", type=int, default=50, help="commits between two snapshots")
    parser.add_argument(
        "--local", action="store_true", help="every part in this process, without Ray; restarts in CPU seconds"
    )
    parser.add_argument("--json", type=Path, help="where to write; by default benchmarks/results/")
    given = parser.parse_args()
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        result = measure(Path(directory), given.edits, given.facts, given.batch, given.snapshots, local=given.local)
    result["wall_s"] = time.perf_counter() - begun
    print(json.dumps(result["ratios"], indent=1))
    print(store("long_life", {"context": context(), "local": given.local, **result}, given.json))


if __name__ == "__main__":
    main()
