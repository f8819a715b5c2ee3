"""A long life: a hundred thousand edits of twenty thousand facts by the real loop, and what grows with them.

    python -m benchmarks.long_life                       # under an hour
    python -m benchmarks.long_life --edits 5000 --facts 1000
    python -m benchmarks.long_life --dir life --minutes 30   # goes on where it stopped, or was killed

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
from contextlib import contextmanager, nullcontext
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
_REVERTS = 5
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


class Notes:
    """What was measured so far, in a file that a kill leaves whole: one line for each batch, tenth, end and start."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
        with path.open("wb") as file:  # without what a kill left of a line
            file.write(b"".join(line + b"\n" for line in lines))

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The rows of a kind, in their order."""
        return [row["data"] for row in self.rows if row["kind"] == kind]

    def add(self, kind: str, data: dict[str, Any]) -> None:
        """Note one more."""
        self.rows.append({"kind": kind, "data": data})
        with self._path.open("ab") as file:
            file.write(json.dumps(self.rows[-1]).encode() + b"\n")
        if kind != "batch":
            print(json.dumps(data), flush=True)


def write_all(life: Life, notes: Notes, until: float = float("inf")) -> None:
    """Write what waits, and note (wall, CPU) seconds of every batch; CPU of orchestrator, editor and memory together.

    Args:
        until: when to stop, by the monotonic clock.
    """
    watched = processes()

    def cpu() -> float:
        times = [process.cpu_times() for process in watched.values()]
        return sum(t.user + t.system for t in times)

    before = (time.perf_counter(), cpu())
    while time.monotonic() < until and (version := life.pipeline.write_next(ended=True)) is not None:
        now = (time.perf_counter(), cpu())
        notes.add("batch", {"sequence": version.sequence, "wall_s": now[0] - before[0], "cpu_s": now[1] - before[1]})
        before = now


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
    spread = journal.applied_spread(count + 2)
    chosen = spread[1:-1] or spread
    times = []
    clock = time.process_time if local else time.perf_counter
    for row in chosen:
        begun = clock()
        life.pipeline.revert([row.id], reason="measured")
        times.append(clock() - begun)
    return times


def measure(
    root: Path,
    edits: int,
    facts: int,
    batch: int,
    snapshots: int,
    *,
    local: bool = False,
    minutes: float = float("inf"),
) -> dict[str, Any]:
    """The whole life, or as much of it as the minutes allow; what is in ``root`` is gone on with."""
    until = time.monotonic() + 60 * minutes
    model = root / "model" if (root / "model" / "config.json").exists() else save_model(root / "model")
    config, output, notes = settings(model, batch, snapshots), root / "run", Notes(root / "notes.jsonl")
    given = {"edits": edits, "facts": facts, "batch": batch, "snapshots": snapshots, "local": local}
    for begun in notes.of("start"):
        if begun["life"] != given:
            raise SystemExit(f"{root} holds another life: {begun['life']}; asked for is {given}")
    notes.add("start", {"life": given, "at": time.time()})

    def live(life: Life, upto: int) -> bool:
        """Accept and write the stream up to some record; whether that was reached in time."""
        counts = life.run.journal.counts()
        intake_s, done = 0.0, counts.requests
        records = islice(UpdatingStream(edits, facts), done, upto)
        while part := [EditRequest.model_validate(record) for record in islice(records, _AT_ONCE)]:
            begun = time.perf_counter()
            life.run.intake.accept(part)
            intake_s += time.perf_counter() - begun
        write_all(life, notes, until)
        if life.run.journal.counts().accepted:
            return False
        head, before = life.run.journal.head(), max((row["batches"] for row in notes.of("tenth")), default=0)
        spent = [row for row in notes.of("batch") if before < row["sequence"] <= head.sequence]
        row = {
            "edits": head.edits,
            "batches": head.sequence,
            "batch_wall_s": median([row["wall_s"] for row in spent]),
            "batch_mean_wall_s": sum(row["wall_s"] for row in spent) / len(spent),
            "batch_cpu_s": sum(row["cpu_s"] for row in spent) / len(spent),
            "intake_s": intake_s,
            "resident_MiB": resident(),
            "journal_MiB": (output / JOURNAL_FILE).stat().st_size / 2**20,
            **questions(life, output),
        }
        notes.add("tenth", row)
        return True

    def end() -> None:
        with living(config, output, local=local) as life:
            times = reverts(life, _REVERTS, local=local)
            head = life.run.journal.head()
            row = {
                "edits": head.edits,
                "batches": head.sequence,
                "restart_s": life.restart_s,
                "restore_s": life.restore_s,
                "revert_s": median(times),
                "reverts_s": times,
            }
        notes.add("end", row)

    if not notes.of("tenth"):
        with living(config, output, local=local) as life:
            live(life, edits // TENTHS)
    if notes.of("tenth") and not notes.of("end"):
        end()
    if 0 < len(notes.of("tenth")) < TENTHS:
        with living(config, output, local=local) as life:
            while len(notes.of("tenth")) < TENTHS and time.monotonic() < until:
                if not live(life, (len(notes.of("tenth")) + 1) * (edits // TENTHS)):
                    break
    if notes.of("end") and notes.of("batch")[-1]["sequence"] > notes.of("end")[-1]["batches"]:
        end()
    result = {"edits": edits, "facts": facts, "batch": batch, "starts": len(notes.of("start"))}
    result |= {"tenths": notes.of("tenth"), "ends": notes.of("end")}
    return result | {"ratios": ratios(result)}


def ratios(result: dict[str, Any]) -> dict[str, Any]:
    """What must stay bounded: the end, or as far as the life came, against the beginning."""
    tenths, ends = result["tenths"], result["ends"]
    if len(tenths) < 3 or len(ends) < 2:
        return {}
    first, second, last, early, late = tenths[0], tenths[1], tenths[-1], ends[0], ends[-1]
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
    parser.add_argument("--dir", type=Path, help="where the life is; the same command again goes on with it")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so long, and measure the end")
    parser.add_argument("--json", type=Path, help="where to write; by default benchmarks/results/")
    given = parser.parse_args()
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() if given.dir is None else nullcontext(given.dir) as directory:
        Path(directory).mkdir(parents=True, exist_ok=True)
        result = measure(
            Path(directory),
            given.edits,
            given.facts,
            given.batch,
            given.snapshots,
            local=given.local,
            minutes=given.minutes,
        )
    result["wall_s"] = time.perf_counter() - begun
    print(json.dumps(result["ratios"], indent=1))
    print(store("long_life", {"context": context(), "local": given.local, **result}, given.json))


if __name__ == "__main__":
    main()
