"""``errata preserve``: what versions of a run kept of the model's abilities."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import model_validator

from errata.editing.closed import Closed
from errata.editing.errors import UserError
from errata.orchestrator.cli.options import show_result, takes

if TYPE_CHECKING:
    from torch import Tensor

    from errata.actors.settings import RayConfig
    from errata.editing.request import EditRequest
    from errata.evaluation.endpoint import EndpointConfig
    from errata.evaluation.preservation.battery import Suite
    from errata.evaluation.preservation.suites import BatteryConfig
    from errata.orchestrator.journal import Journal
    from errata.orchestrator.journal.rows import RequestRow
    from errata.orchestrator.measuring.preserve import Ask, Asked
    from errata.orchestrator.measuring.retention import Lifetime
    from errata.orchestrator.progress import Display
    from errata.retrieval.embedder import HashEmbedderConfig, SentenceEmbedderConfig

_DEFAULT = ("v0", "head")
_RETENTION = "retention"


class Strength(StrEnum):
    """How generated programs are isolated."""

    auto = "auto"
    namespaces = "namespaces"
    limits = "limits"


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("preserve")(preserve)


class PreserveOptions(Closed):
    """What is measured, on which versions of which run, and where it goes."""

    versions: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[VERSION]...",
            help="head, v3, a digest, or timeline for all of its versions; the first is the reference. "
            "Default: v0 head.",
        ),
    ] = None
    run: Annotated[
        str | None,
        typer.Option("--run", metavar="DIR", help="Directory or name of the run, also bare; the newest by default."),
    ] = None
    tasks: Annotated[
        str,
        typer.Option(
            help="Comma-separated: lm-evaluation-harness's names, humaneval, perplexity, edits, retention, fluency, "
            "uncertainty, rubric."
        ),
    ] = "perplexity,fluency"
    limit: Annotated[
        int | None, typer.Option(min=1, help="Items of each task, drawn at random with the seed; all by default.")
    ] = None
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Directory of benchmark files; missing ones come from the hub.")
    ] = None
    text: Annotated[
        list[str] | None, typer.Option("--text", metavar="NAME=FILE", help="Held-out text of a domain; repeatable.")
    ] = None
    fewshot: Annotated[
        list[str] | None, typer.Option("--fewshot", metavar="TASK=N", help="Worked examples of a task; repeatable.")
    ] = None
    task_files: Annotated[
        Path | None, typer.Option("--task-files", metavar="DIR", help="Further task files for the harness.")
    ] = None
    chat: Annotated[bool, typer.Option("--chat", help="Put questions through the model's chat template.")] = False
    samples: Annotated[int, typer.Option(min=1, help="Completions of each HumanEval problem.")] = 1
    sandbox: Annotated[Strength, typer.Option(help="How generated programs are isolated.")] = Strength.auto
    rephrase_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="OpenAI-compatible endpoint that rephrases questions, for the task uncertainty."
        ),
    ] = None
    rephrase_model: Annotated[str | None, typer.Option(metavar="NAME", help="Model at that endpoint.")] = None
    rephrase_key_env: Annotated[
        str | None, typer.Option(metavar="VARIABLE", help="Environment variable with the key for that endpoint.")
    ] = None
    judge_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="OpenAI-compatible endpoint that scores continuations, for the task rubric."),
    ] = None
    judge_model: Annotated[str | None, typer.Option(metavar="NAME", help="Model at that endpoint.")] = None
    judge_key_env: Annotated[
        str | None, typer.Option(metavar="VARIABLE", help="Environment variable with the key for that endpoint.")
    ] = None
    wordings: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Wordings of the edits' questions, for the task uncertainty."),
    ] = None
    keep_levels: Annotated[
        bool,
        typer.Option(
            "--keep-levels", help="Of these only those that are as near to their question as their level asks."
        ),
    ] = False
    system: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="System prompt, through the chat template, for the task uncertainty; or: cautious."
        ),
    ] = None
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Processes that share the items; more than one uses Ray. The run's own number by default."
        ),
    ] = None
    address: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Ray to work on, or local; the run's own by default.")
    ] = None
    device: Annotated[str | None, typer.Option(help="Torch device of the workers; the run's own by default.")] = None
    seed: Annotated[int, typer.Option(min=0, help="Seed for drawing items and sampling text.")] = 0
    model: Annotated[
        str | None, typer.Option("--model", help="Where the run's base model is, if not where its configuration says.")
    ] = None
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Also write the result to this file, as JSON.")
    ] = None
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False

    @model_validator(mode="after")
    def _fits_together(self) -> PreserveOptions:
        if not self.names:
            raise ValueError(f"--tasks {self.tasks!r} names no task")
        for option, directory in (("--data", self.data), ("--task-files", self.task_files)):
            if directory is not None and not directory.is_dir():
                raise ValueError(f"{option} {str(directory)!r} is not a directory")
        for name, value in _pairs("--fewshot", self.fewshot):
            if not value.isdigit():
                raise ValueError(f"--fewshot {name}={value}: want a number of examples, such as {name}=5")
        for _ in _pairs("--text", self.text):
            pass
        if self.rephrase_url is not None and not self.rephrase_model:
            raise ValueError(f"--rephrase-url {self.rephrase_url!r} needs --rephrase-model")
        if self.wordings is not None and self.rephrase_url is not None:
            raise ValueError("give one of --wordings and --rephrase-url")
        if "rubric" in self.names and not (self.judge_url and self.judge_model):
            raise ValueError("--tasks rubric needs --judge-url and --judge-model, a chat model that scores")
        if self.judge_url is not None and not self.judge_url.startswith(("http://", "https://")):
            raise ValueError(f"--judge-url {self.judge_url!r} must begin with http:// or https://")
        if self.keep_levels and self.wordings is None:
            raise ValueError("--keep-levels needs --wordings FILE")
        return self

    @property
    def names(self) -> list[str]:
        """The tasks by name."""
        return [name.strip() for name in self.tasks.split(",") if name.strip()]

    def battery(self) -> BatteryConfig:
        """What is asked of every version."""
        from errata.evaluation.preservation.sandbox import SandboxConfig
        from errata.evaluation.preservation.suites import BatteryConfig
        from errata.evaluation.uncertainty import SpuqConfig
        from errata.evaluation.wordings import CAUTIOUS
        from errata.orchestrator.config.presets import find_data

        # retention puts the edits' suite to more versions than are named
        names = tuple(dict.fromkeys("edits" if name == _RETENTION else name for name in self.names))
        texts = {name: Path(value) for name, value in _pairs("--text", self.text)}
        if "perplexity" in names and not texts:
            texts = {"prose": Path(find_data("configs/text/heldout.txt"))}
        return BatteryConfig(
            tasks=names,
            data=self.data,
            task_files=self.task_files,
            fewshot={name: int(value) for name, value in _pairs("--fewshot", self.fewshot)},
            chat=self.chat,
            texts=texts,
            samples=self.samples,
            sandbox=SandboxConfig(strength=self.sandbox.value),
            spuq=SpuqConfig()
            if self.system is None
            else SpuqConfig(chat=True, system=CAUTIOUS if self.system == "cautious" else self.system),
            rubric=self._judge(),
            seed=self.seed,
        )

    def _judge(self) -> EndpointConfig | None:
        from errata.evaluation.endpoint import EndpointConfig

        if not self.judge_url or not self.judge_model:
            return None
        return EndpointConfig(
            base_url=self.judge_url, model=self.judge_model, api_key_env=self.judge_key_env, max_tokens=256
        )


@takes(PreserveOptions)
def preserve(options: PreserveOptions) -> None:
    """Measure versions of a run on benchmarks, and compare them item by item."""
    battery = options.battery()
    from errata.orchestrator.history import rebuild
    from errata.orchestrator.history.log import find_run
    from errata.orchestrator.history.receipts import open_store
    from errata.orchestrator.journal import JOURNAL_FILE, Journal
    from errata.orchestrator.measuring import preserve as preserving
    from errata.orchestrator.measuring.points import named_versions
    from errata.orchestrator.measuring.retention import lifetime_lines
    from errata.orchestrator.progress import Display
    from errata.orchestrator.report.preserved import keep_preserved

    directory = find_run(options.run)
    with Journal.open(directory / JOURNAL_FILE, read_only=True) as journal, Display() as display:
        chosen = named_versions(journal, options.versions or _DEFAULT)
        asked = list(dict.fromkeys(preserving.Asked(v.sequence, v.digest) for v in chosen))
        by_digest = {version.digest: version for version in chosen}
        checkpoint = rebuild.open_base(journal, options.model)
        base = {layer: checkpoint.map(layer) for layer in rebuild.edited_layers(journal)}
        store = open_store(directory)
        rows = _held(journal, battery)
        requests = tuple(row.request for row in rows)
        if options.rephrase_url and options.rephrase_model and "uncertainty" in battery.tasks:
            wordings = _rephrased(
                directory, requests, options.rephrase_url, options.rephrase_model, options.rephrase_key_env
            )
            battery = battery.model_copy(update={"wordings": wordings})
        if options.wordings is not None and "uncertainty" in battery.tasks:
            wordings = _from_file(options.wordings, requests, journal.meta.config, keep_levels=options.keep_levels)
            battery = battery.model_copy(update={"wordings": wordings})
        ray = _ray_of(journal.meta.config, options)
        with _workers(journal, str(checkpoint.directory), battery, requests, ray) as (suites, ask):
            report = preserving.preserve(
                directory,
                asked,
                suites,
                ask,
                lambda v: rebuild.weights_at(journal, store, base, by_digest[v.digest]),
                limit=options.limit,
                seed=options.seed,
                progress=display.update,
            )
            if _RETENTION in options.names:
                lives = _lifetimes(directory, journal, base, suites, ask, rows, options.limit, options.seed, display)
                report = replace(report, lifetimes=lives)
        edits = {version.digest: version.edits for version in [*chosen, journal.head()]}
        keep_preserved(directory, preserving.kept_versions(report, edits, journal.head()))
    lines = [*preserving.report_lines(report), *(lifetime_lines(report.lifetimes) if report.lifetimes else ())]
    show_result(report, lines, output=options.output, as_json=options.as_json)


def _pairs(option: str, given: Sequence[str] | None) -> Iterator[tuple[str, str]]:
    for item in given or ():
        name, equals, value = item.partition("=")
        if not (name and equals and value):
            raise ValueError(f"{option} {item!r} is not of the form NAME=VALUE")
        yield name, value


def _held(journal: Journal, battery: BatteryConfig) -> list[RequestRow]:
    """The edits that hold at the head, where a task asks about them."""
    from errata.evaluation.preservation.suites import ABOUT_EDITS
    from errata.orchestrator.history.log import History

    if not set(ABOUT_EDITS) & set(battery.tasks):
        return []
    return list(History(journal).held(journal.head().sequence).values())


def _rephrased(
    directory: Path, requests: Sequence[EditRequest], url: str, model: str, key_env: str | None
) -> dict[str, tuple[str, ...]]:
    """Wordings of every question from a chat model; what it said is kept in the run's directory."""
    from pydantic import ValidationError

    from errata.evaluation.endpoint import ChatEndpoint, EndpointConfig
    from errata.evaluation.uncertainty import rephrased
    from errata.orchestrator.measuring.preserve import FOLDER

    try:
        cache = directory / FOLDER / "rephrased.jsonl"
        config = EndpointConfig(base_url=url, model=model, api_key_env=key_env, max_tokens=512, cache=cache)
    except ValidationError as error:
        raise UserError(f"--rephrase-url {url!r} must begin with http:// or https://") from error
    endpoint = ChatEndpoint(config)
    try:
        return {name: tuple(wordings) for name, wordings in rephrased(endpoint, requests).items()}
    finally:
        endpoint.close()


def _from_file(
    path: Path, requests: Sequence[EditRequest], config: Mapping[str, Any], *, keep_levels: bool
) -> dict[str, tuple[str, ...]]:
    """Wordings of the edits' questions that somebody wrote down; those that keep to their levels, if that is asked."""
    from errata.evaluation.wordings import filtered, read_wordings
    from errata.retrieval.embedder import build_embedder

    wordings, questions = read_wordings(path, requests)
    if keep_levels:
        wordings = filtered(wordings, questions, build_embedder(_embedder(config)))
        if not wordings:
            raise UserError(f"--wordings {str(path)!r}: of no question two wordings keep to their levels")
    return {name: tuple(text for _, text in own) for name, own in wordings.items()}


def _lifetimes(
    directory: Path,
    journal: Journal,
    base: Mapping[int, Tensor],
    suites: Mapping[str, Suite],
    ask: Ask,
    rows: Sequence[RequestRow],
    limit: int | None,
    seed: int,
    display: Display,
) -> tuple[Lifetime, ...]:
    from errata.evaluation.preservation.battery import sampled
    from errata.orchestrator.history import rebuild
    from errata.orchestrator.history.receipts import open_store
    from errata.orchestrator.measuring.preserve import Asked
    from errata.orchestrator.measuring.retention import lifetimes

    versions = {version.sequence: version for version in journal.versions()}
    asked = {sequence: Asked(sequence, version.digest) for sequence, version in versions.items()}
    last = asked[journal.head().sequence]

    def walk() -> Iterator[tuple[Asked, Callable[[], Mapping[int, Tensor]]]]:
        weights = dict(base)
        yield asked[0], lambda: base
        for version, delta in rebuild.changes(journal, open_store(directory), 0, last.sequence):
            weights = rebuild.advance(weights, delta)
            yield asked[version.sequence], partial(dict, weights)

    fates = lifetimes(
        directory,
        suites["edits"],
        [asked[row.applied_in or 0] for row in rows],
        {version.digest: version.edits for version in versions.values()},
        last,
        walk(),
        ask,
        items=sampled(suites["edits"].items, limit, seed),
        progress=display.update,
    )
    return tuple(fates)


def _ray_of(config: Mapping[str, Any], options: PreserveOptions) -> RayConfig:
    """Where the run's own evaluations run, with what the options say otherwise; one process for a run that does not
    tell."""
    from errata.actors.settings import RayConfig

    section = config.get("ray")
    known = {key: section[key] for key in RayConfig.model_fields if key in section} if section else {}
    ray = RayConfig.model_validate(known)
    workers = options.workers or (max(1, ray.evaluation_workers) if known else 1)
    evaluation = ray.evaluation.model_copy(update={"device": options.device or ray.evaluation.device})
    changes = {"evaluation_workers": workers, "evaluation": evaluation, "address": options.address or ray.address}
    return ray.model_copy(update=changes)


@contextmanager
def _workers(
    journal: Journal, directory: str, battery: BatteryConfig, requests: Sequence[EditRequest], ray: RayConfig
) -> Iterator[tuple[Any, Ask]]:
    """The suites, and what puts them to a version: this process, or several through Ray."""
    from errata.actors.connection import connect, disconnect
    from errata.actors.preservation import PreservationPool, PreservationWorker
    from errata.actors.settings import ModelSpec
    from errata.evaluation.preservation.suites import build_suites
    from errata.orchestrator.history import rebuild

    embedder = _embedder(journal.meta.config)
    spec = ModelSpec(name=directory, dtype=rebuild.run_dtype(journal), digest=journal.meta.base_digest)
    if ray.evaluation_workers == 1 and ray.address == "local":
        worker = PreservationWorker(spec, ray.evaluation, battery, requests, embedder)
        yield worker.suites, worker.ask
        return
    # in this process the suites only count and score
    suites, held = build_suites(battery, requests=requests, embedder=embedder.model_dump(mode="json"))
    owns = connect(ray)
    pool = PreservationPool(ray, spec, battery, requests, embedder)
    try:
        yield suites, pool.ask
    finally:
        pool.close()
        if owns:
            disconnect()
        del held


def _embedder(config: Mapping[str, Any]) -> SentenceEmbedderConfig | HashEmbedderConfig:
    """The embedder of the run's memory: answers are compared by what compares statements."""
    from errata.orchestrator.config.evaluation import MemoryConfig

    section = config.get("memory")
    embedder = section.get("embedder") if isinstance(section, dict) else None
    return MemoryConfig.model_validate({} if embedder is None else {"embedder": embedder}).embedder
