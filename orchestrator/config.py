"""The root configuration: a composition of the components' own settings, closed and resolved once.

An unknown key or a bad value is one line that names the key, the value and what is allowed.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from actors.covariance import CorpusShare, EstimateJob
from actors.settings import ModelSpec, ParallelConfig, RayConfig
from editing.corpus import HUB, CorpusConfig, survey
from editing.digest import digest_json
from editing.editors import REGISTRY
from editing.errors import UserError
from editing.mixture import ComponentConfig, MixtureConfig
from editing.selfgen import SelfGenerationConfig
from evaluation.outcomes import ARMS, Arm
from orchestrator.guard.settings import GuardConfig
from orchestrator.presets import configs_root, find_config, find_data
from orchestrator.publish.settings import PublishConfig
from orchestrator.refresh_settings import RefreshConfig
from orchestrator.service.settings import ServiceConfig
from orchestrator.sources.redis_stream import RedisConfig
from orchestrator.texts import TextConfig
from retrieval.embedder import EmbedderConfig, SentenceEmbedderConfig
from retrieval.index import IndexConfig
from retrieval.scr import ScrConfig
from retrieval.statements import StatementConfig

# the union is read off the registry, so that a new editor needs no line here; the type checker sees the base class
EditorUnion: Any = Annotated[reduce(or_, (config for config, _ in REGISTRY.values())), Field(discriminator="type")]


_WHOLE_MAPS = ("ft_l", "ultraedit")
"""Editors that take gradients of the maps themselves, or read what goes into them by hooks of their own."""


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelConfig(_Closed):
    """The model that is kept current."""

    name: str
    """A directory, a URL that fsspec reads (``s3://...``), a hub name, or one known to ``errata models fetch``."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Of the forward pass; the numerics of editing are float32 or better whatever it is."""
    parallel: ParallelConfig | None = None
    """Spread each copy of the model over several processes; null for one device each (needs the extra `deepspeed`)."""


class ContextsConfig(_Closed):
    """Prefixes in front of the edit prompts while values and keys are computed."""

    count: int = Field(5, ge=0)
    """Prefixes besides the empty one, sampled once from the base model."""
    length: int = Field(10, ge=1)
    """Tokens of each."""


class StreamConfig(_Closed):
    """Where updates come from."""

    path: str = ""
    """JSON Lines or a JSON array, or ``hub:NAME[:SPLIT]``; empty where updates come from ``stream.redis``, or by HTTP
    only."""
    follow: bool = False
    """Go on reading what is appended to the file, as ``tail -F`` does, until the run is stopped."""
    redis: RedisConfig | None = None
    """A Redis stream instead of a file."""
    schema_: str = Field("auto", alias="schema")
    """Layout of the records; ``auto`` tells it from the first one."""
    target: str = "default"
    """Which answer is written where a layout offers several."""
    limit: int | None = Field(None, ge=1)
    """At most this many records; null for all."""
    skip: int = Field(0, ge=0)
    """Records passed over at the beginning."""
    probes: int | None = Field(None, ge=1)
    """At most this many paraphrases, neighbourhood and portability questions of each record; null for all."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    @property
    def endless(self) -> bool:
        """Whether it ends only when the run is stopped."""
        return self.follow or self.redis is not None

    @model_validator(mode="after")
    def _one_kind(self) -> StreamConfig:
        if self.redis is not None and (self.path or self.follow):
            raise ValueError("give a file (path, follow) or redis, not both")
        if self.follow and (not self.path or self.path.startswith(HUB)):
            raise ValueError(f"follow needs a file in path, got {self.path!r}")
        if self.endless and (self.limit is not None or self.skip):
            raise ValueError("limit and skip are for a file that is read once, not with follow or redis")
        return self


class BatchingConfig(_Closed):
    """How many updates are written together."""

    size: int = Field(10, ge=1)
    """Updates per commit; 1 writes them one by one."""
    max_age_seconds: float | None = Field(None, ge=0)
    """A batch is also written when its oldest update has waited that long; needs ``schedule: asap``."""
    distinct_subjects: bool = False
    """At most one update of a subject per batch: keys of one subject are nearly parallel, and split one direction."""


class SnapshotConfig(_Closed):
    """Stored states of the editor, from which a restart goes on instead of replaying every commit."""

    every: int | None = Field(None, ge=1)
    """Commits between two snapshots; null for none."""
    keep: int = Field(2, ge=1)
    """The newest ones that ``errata gc`` leaves."""


class CovarianceConfig(SelfGenerationConfig):
    """What is preserved, and how much is sampled to find out."""

    source: Literal["self_generated", "corpus", "mixture", "identity"] = "self_generated"
    """``self_generated`` samples from the model, ``corpus`` runs a text, ``mixture`` weighs several texts;
    ``identity`` preserves nothing in particular."""
    corpus: CorpusConfig | None = None
    """The text of ``source: corpus``."""
    mixture: MixtureConfig | None = None
    """Weights and components of ``source: mixture``."""
    store: str | None = None
    """Directory in which the first estimate is looked up, and kept for other runs; null to estimate anew."""
    seed: int = Field(0, ge=0)
    """Seed of the first estimate; a refresh adds the number of edits at which it was triggered."""
    tokens: int | None = Field(None, ge=1)
    """Budget in sampled tokens, or in those of a text; exclusive with ``sequences``."""
    sequences: int | None = Field(None, ge=1)
    """Budget in sequences, or in documents of a text."""
    units_per_block: int = Field(1, ge=1)
    """Units that a worker sums before it hands over; what a dying worker can lose."""

    @model_validator(mode="after")
    def _one_budget(self) -> CovarianceConfig:
        if self.source != "identity" and (self.tokens is None) == (self.sequences is None):
            raise ValueError(f"give one of tokens and sequences, got tokens={self.tokens}, sequences={self.sequences}")
        return self

    @model_validator(mode="after")
    def _source_is_described(self) -> CovarianceConfig:
        for kind in ("corpus", "mixture"):
            given = getattr(self, kind) is not None
            if given and self.source != kind:
                raise ValueError(f"section {kind!r} is of no use with source {self.source!r}; write source: {kind}")
            if not given and self.source == kind:
                raise ValueError(f"source {kind!r} needs a section {kind!r}")
        return self

    def job(self, layers: Sequence[int], version: str, *, seed_shift: int = 0) -> EstimateJob:
        """The estimate of this configuration for a version; every refresh draws with a seed of its own.

        A corpus is read once for it. A mixture has one job per component: ``component``.

        Raises:
            UserError: the corpus cannot be read.
        """
        if self.corpus is not None:
            return self._corpus_job(self.corpus, layers, version)
        generation = SelfGenerationConfig(**{k: getattr(self, k) for k in SelfGenerationConfig.model_fields})
        return EstimateJob(
            generation=generation,
            layers=tuple(layers),
            seed=self.seed + seed_shift,
            tokens=self.tokens,
            sequences=self.sequences,
            units_per_block=self.units_per_block,
            version=version,
        )

    def component(self, name: str, layers: Sequence[int], version: str) -> EstimateJob:
        """The estimate of one component of a mixture that is given as a text."""
        assert self.mixture is not None
        return self._corpus_job(self.mixture.components[name].corpus(), layers, version)

    def _corpus_job(self, corpus: CorpusConfig, layers: Sequence[int], version: str) -> EstimateJob:
        if not corpus.path.startswith(HUB):  # workers may have another working directory
            corpus = corpus.model_copy(update={"path": str(Path(corpus.path).expanduser().resolve())})
        found = survey(corpus)
        return EstimateJob(
            corpus=CorpusShare(reading=corpus, digest=found.digest, documents=found.documents),
            layers=tuple(layers),
            tokens=self.tokens,
            sequences=self.sequences,
            units_per_block=self.units_per_block,
            version=version,
        )


class MemoryConfig(_Closed):
    """The external memory and how it is consulted."""

    embedder: EmbedderConfig = SentenceEmbedderConfig()
    """What turns statements and questions into vectors: ``type: sentence`` or, without a model, ``hash``."""
    index: IndexConfig = IndexConfig()
    statement: StatementConfig = StatementConfig()
    """The sentence under which an edit is remembered."""
    scr: ScrConfig = ScrConfig()


class EvaluationConfig(_Closed):
    """What is measured, when, and on how many facts."""

    every: int | None = Field(None, ge=1)
    """Edits between two points of the timeline; null for the end only."""
    sample: int = Field(24, ge=1)
    """Facts of a timeline point: the same ones each time, from the first points' edits."""
    arms: tuple[Arm, ...] = ARMS
    """Ways of knowing that are asked; ``base`` is always among them."""
    max_new_tokens: int = Field(12, ge=1)
    """Length at which a generated answer ends."""
    stop_at_newline: bool = True
    """Whether a newline ends it too."""
    held_out: str | None = "configs/text/heldout.txt"
    """Text on which perplexity is measured; null for none."""
    texts: dict[str, TextConfig] = {}
    """More texts on which perplexity is measured at every point, each under its name: ``code``, ``math``."""
    latency_questions: int = Field(8, ge=0)
    """Questions asked one by one at the end to measure ``query_seconds``."""

    @model_validator(mode="after")
    def _has_base(self) -> EvaluationConfig:
        if "base" not in self.arms:
            raise ValueError(f"arms must include 'base', against which locality is measured; got {list(self.arms)}")
        return self


class TrackingConfig(_Closed):
    """MLflow."""

    uri: str | None = None
    """Server or database; null for a SQLite file in the output directory."""
    experiment: str = "errata"
    """MLflow experiment that the run belongs to."""
    parent: str | None = None
    """MLflow id of the run that this one belongs under; a sweep sets it for its cells."""


class RunConfig(_Closed):
    """One lifelong-editing run."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9._-]+$")
    """Name of the run and of its default directory."""
    seed: int = Field(0, ge=0)
    """Seed of the context prefixes."""
    model: ModelConfig
    editor: EditorUnion
    contexts: ContextsConfig = ContextsConfig()
    stream: StreamConfig
    batching: BatchingConfig = BatchingConfig()
    schedule: Literal["deterministic", "asap"] = "deterministic"
    """``deterministic``: batches form by count and covariances change over by edits; ``asap``: both by the clock."""
    snapshots: SnapshotConfig = SnapshotConfig()
    covariance: CovarianceConfig
    refresh: RefreshConfig = RefreshConfig()
    memory: MemoryConfig = MemoryConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    guard: GuardConfig = GuardConfig()
    publish: PublishConfig = PublishConfig()
    service: ServiceConfig = ServiceConfig()
    tracking: TrackingConfig = TrackingConfig()
    ray: RayConfig = RayConfig()

    @model_validator(mode="after")
    def _refresh_has_source(self) -> RunConfig:
        wanted = [name for name in ("every", "seconds", "drift") if getattr(self.refresh, name) is not None]
        if wanted and self.covariance.source in ("identity", "mixture"):
            raise ValueError(
                f"refresh.{wanted[0]} needs covariance.source 'self_generated' or 'corpus'; "
                + ("an identity never changes" if self.covariance.source == "identity" else "a mixture stays as it is")
            )
        return self

    @model_validator(mode="after")
    def _refresh_can_be_repeated(self) -> RunConfig:
        if self.refresh.seconds is not None and self.schedule == "deterministic":
            raise ValueError("refresh.seconds needs schedule 'asap'; 'deterministic' refreshes by edits or by drift")
        drift = self.refresh.drift
        if drift is None:
            return self
        if self.refresh.model != "live":
            raise ValueError("refresh.drift looks at the edited model and needs refresh.model 'live'")
        if drift.energy is None and self.covariance.corpus is not None and not self.covariance.corpus.nll_documents:
            raise ValueError("refresh.drift by nll alone needs covariance.corpus.nll_documents above 0")
        return self

    @model_validator(mode="after")
    def _spread_suits_editor(self) -> RunConfig:
        if self.model.parallel is not None and self.editor.type in _WHOLE_MAPS:
            raise ValueError(
                f"editor.type {self.editor.type!r} needs each edited map whole in one process; leave out model.parallel"
            )
        return self

    @model_validator(mode="after")
    def _age_needs_a_clock(self) -> RunConfig:
        if self.batching.max_age_seconds is not None and self.schedule == "deterministic":
            raise ValueError("batching.max_age_seconds needs schedule 'asap'; 'deterministic' forms batches by count")
        return self

    def dump(self) -> dict[str, Any]:
        """All values, defaults included, as plain data."""
        plain: dict[str, Any] = self.model_dump(mode="json", by_alias=True)
        return plain

    def to_yaml(self) -> str:
        """The resolved configuration; loading it gives an equal one."""
        return yaml.safe_dump(self.dump(), sort_keys=False, allow_unicode=True)

    def identity(self) -> dict[str, Any]:
        """What decides the results. Where it runs, how it is tracked and where the stream ends may change on resume."""
        return identity_of(self.dump())

    @property
    def digest(self) -> str:
        """Digest of ``identity``."""
        return digest_json(self.identity())

    def model_spec(self, digest: str | None = None) -> ModelSpec:
        """The model as actors load it."""
        return ModelSpec(name=self.model.name, dtype=self.model.dtype, digest=digest, parallel=self.model.parallel)


def identity_of(plain: Mapping[str, Any]) -> dict[str, Any]:
    """`RunConfig.identity` of a configuration kept as plain data, perhaps by an older release."""
    elsewhere = ("ray", "tracking", "name", "schedule", "snapshots", "guard", "publish", "service")
    kept = {key: value for key, value in plain.items() if key not in elsewhere}
    model = kept.get("model")
    if isinstance(model, Mapping):
        # runs of older releases know nothing of it
        kept["model"] = {key: value for key, value in model.items() if key != "parallel" or value}
    stream = kept.get("stream")
    if isinstance(stream, Mapping):
        left_out = ("limit", "follow", "redis", *(() if stream.get("probes") else ("probes",)))
        kept["stream"] = {key: value for key, value in stream.items() if key not in left_out}
    batching = kept.get("batching")
    if isinstance(batching, Mapping):
        # runs of older releases know nothing of subjects; when batches form is in the journal
        known = {key: value for key, value in batching.items() if key != "max_age_seconds"}
        kept["batching"] = {key: value for key, value in known.items() if key != "distinct_subjects" or value}
    refresh = kept.get("refresh")
    if isinstance(refresh, Mapping):
        # when the clock triggers a refresh is in the journal; of the rest runs of older releases know nothing
        unsaid = ["seconds"]
        unsaid += [] if refresh.get("drift") else ["drift"]
        unsaid += [] if refresh.get("mode") == "mixture" else ["mixture_weight"]
        kept["refresh"] = {key: value for key, value in refresh.items() if key not in unsaid}
    evaluation = kept.get("evaluation")
    if isinstance(evaluation, Mapping):
        # runs of older releases know nothing of them
        kept["evaluation"] = {key: value for key, value in evaluation.items() if key != "texts" or value}
    memory = kept.get("memory")
    if isinstance(memory, Mapping):
        plain_statement = StatementConfig().model_dump(mode="json")
        kept["memory"] = {k: v for k, v in memory.items() if k != "statement" or v != plain_statement}
    covariance = kept.get("covariance")
    if isinstance(covariance, Mapping):
        kept["covariance"] = {key: value for key, value in covariance.items() if key != "store"}
        if isinstance(server := covariance.get("server"), Mapping):
            kept["covariance"]["server"] = {"model": server.get("model")}  # not where it is and how it is asked
    return kept


def load_config(name_or_path: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a configuration file, apply ``dotted.key=value`` overrides in order, and check everything.

    Raises:
        UserError: the file is missing or no YAML mapping, what it extends is not there, an override has no ``=``,
            or a value does not fit.
    """
    path = find_config(name_or_path)
    data = read_composed(path)
    for override in overrides:
        apply_override(data, override)
    return build_config(data, source=path)


def read_composed(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Plain data of a configuration file, laid over the files that its key ``extends`` names, unchecked.

    ``extends`` holds one name or path, or a list of them, each over the ones before it: a file beside this one, or
    what `find_config` finds, such as the shipped ``models/gpt2-xl``. ``above`` are the files that led here.

    Raises:
        UserError: a file is missing, is no YAML mapping, or extends itself.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        line = f" line {where.line + 1}" if where is not None else ""
        raise UserError(f"{path}{line}: not valid YAML: {getattr(error, 'problem', None) or error}") from error
    if not isinstance(data, dict):
        raise UserError(f"{path}: a configuration is a mapping of keys, got {type(data).__name__}")
    names = data.pop("extends", [])
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: extends = {_short(names)}: want a name or a list of names")
    chain = (*above, path.resolve())
    below: dict[str, Any] = {}
    for name in names:
        beside = [path.parent / name, path.parent / f"{name}.yaml"]
        try:
            found = next((candidate for candidate in beside if candidate.is_file()), None) or find_config(name)
        except UserError as error:
            raise UserError(f"{path}: extends: {error}") from error
        if found.resolve() in chain:
            raise UserError(f"{path}: extends = {name!r}: a configuration cannot extend itself")
        below = overlaid(below, read_composed(found, chain))
    return overlaid(below, data)


def overlaid(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two mappings as one: sections are joined key by key, else the value above wins; null there drops a section."""
    joined = dict(below)
    for key, value in above.items():
        under = joined.get(key)
        if isinstance(under, Mapping) and isinstance(value, Mapping):
            joined[key] = overlaid(under, value)
        elif isinstance(under, Mapping) and value is None:
            del joined[key]
        else:
            joined[key] = value
    return joined


def check_config(data: Mapping[str, Any], source: Path | str | None = None) -> RunConfig:
    """Check plain data; the files it names are left as they are given. ``source`` is named in errors.

    Raises:
        UserError: a key is unknown or missing, or a value does not fit.
    """
    try:
        return RunConfig.model_validate(_with_shipped_weights(data))
    except ValidationError as error:
        raise UserError(explain(error, RunConfig, str(source) if source else "configuration")) from error


def build_config(data: Mapping[str, Any], source: Path | None = None) -> RunConfig:
    """Check plain data and resolve the data files it names; ``source`` is named in errors."""
    return with_found_files(check_config(data, source), source)


def with_found_files(config: RunConfig, source: Path | None = None) -> RunConfig:
    """The same configuration with the data files it names found: beside ``source``, or among the shipped ones."""
    beside = source.parent if source else None
    update: dict[str, Any] = {}
    if config.stream.path:
        update["stream"] = config.stream.model_copy(update={"path": find_data(config.stream.path, beside)})
    named = {key: path for key in ("sentinels", "held_out") if (path := getattr(config.guard, key)) is not None}
    if named:
        found_files = {key: find_data(path, beside) for key, path in named.items()}
        update["guard"] = config.guard.model_copy(update=found_files)
    if config.evaluation.held_out is not None:
        held_out = find_data(config.evaluation.held_out, beside)
        update["evaluation"] = config.evaluation.model_copy(update={"held_out": held_out})
    if config.evaluation.texts:
        evaluation = update.get("evaluation", config.evaluation)
        texts = {name: text.found(beside) for name, text in evaluation.texts.items()}
        update["evaluation"] = evaluation.model_copy(update={"texts": texts})
    if config.covariance.corpus is not None:
        text = config.covariance.corpus
        text = text.model_copy(update={"path": find_data(text.path, beside)})
        update["covariance"] = config.covariance.model_copy(update={"corpus": text})
    if config.covariance.mixture is not None:
        mixture = config.covariance.mixture
        found = {name: _found(part, beside) for name, part in mixture.components.items()}
        mixture = mixture.model_copy(update={"components": found})
        update["covariance"] = config.covariance.model_copy(update={"mixture": mixture})
    return config.model_copy(update=update)


def _found(component: ComponentConfig, beside: Path | None) -> ComponentConfig:
    places = {key: find_data(path, beside) for key in ("path", "file") if (path := getattr(component, key)) is not None}
    return component.model_copy(update=places)


def _with_shipped_weights(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same data with the name of shipped mixture weights replaced by the weights."""
    covariance = data.get("covariance")
    mixture = covariance.get("mixture") if isinstance(covariance, Mapping) else None
    if not isinstance(covariance, Mapping) or not isinstance(mixture, Mapping):
        return data
    name = mixture.get("weights")
    if not isinstance(name, str):
        return data
    root = configs_root() / "covariances"
    known = sorted(path.stem for path in root.glob("*.yaml"))
    if name not in known:
        raise UserError(f"covariance.mixture.weights = {name!r}: no such weights; shipped: {', '.join(known)}")
    weights = yaml.safe_load((root / f"{name}.yaml").read_text(encoding="utf-8"))["weights"]
    return {**data, "covariance": {**covariance, "mixture": {**mixture, "weights": weights}}}


def apply_override(data: dict[str, Any], override: str) -> None:
    """Set one ``dotted.key=value``; the value is read as YAML, so numbers, lists and null work.

    Raises:
        UserError: no ``=``, an empty key, or a key below something that is no mapping.
    """
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise UserError(f"--set {override!r}: want dotted.key=value")
    try:
        value = yaml.safe_load(text) if text.strip() else ""
    except yaml.YAMLError as error:
        raise UserError(f"--set {key.strip()}: value {text!r} is not valid YAML") from error
    place: Any = data
    for part in parts[:-1]:
        if place.get(part) is None:
            place[part] = {}
        place = place[part]
        if not isinstance(place, dict):
            raise UserError(f"--set {key.strip()}: {part!r} holds {place!r} and has no keys below it")
    place[parts[-1]] = value


def explain(error: ValidationError, model: type[BaseModel], source: str) -> str:
    """One line for the first problem: the key, the value, and what is allowed."""
    first = error.errors()[0]
    # a tag of a discriminated union stands in the location but is no key of the file
    path = [str(p) for p in first["loc"] if not (p in REGISTRY or p in ("sentence", "hash"))]
    key = ".".join(path) or "(top level)"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    kind, message, value = first["type"], first["msg"].removeprefix("Value error, "), first.get("input")
    if kind == "extra_forbidden":
        allowed = _keys_beside(model, first["loc"])
        near = difflib.get_close_matches(path[-1], allowed, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        listed = f"; allowed: {', '.join(allowed)}" if allowed else ""
        return f"{source}: unknown key {key!r} = {_short(value)}{hint}{listed}{more}"
    if kind == "missing":
        return f"{source}: key {key!r} is missing{more}"
    if kind == "union_tag_invalid":
        context = first.get("ctx", {})
        return f"{source}: {key}.type = {context.get('tag')!r}; allowed: {context.get('expected_tags')}{more}"
    if kind == "union_tag_not_found":
        return f"{source}: key {key + '.type'!r} is missing{more}"
    if isinstance(value, Mapping):
        return f"{source}: {key}: {message}{more}"
    return f"{source}: {key} = {_short(value)}: {message}{more}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _keys_beside(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Keys that are allowed where an unknown one was found."""
    options = [model]
    for part in location[:-1]:
        # after a union the location names which of its members was meant: the default of their ``type``
        tagged = [m for m in options if "type" in m.model_fields and m.model_fields["type"].default == part]
        if tagged:
            options = tagged
            continue
        fields = [field for m in options for name, field in m.model_fields.items() if part in (name, field.alias)]
        options = _models_in(fields[0].annotation) if fields else []
    return sorted({field.alias or name for m in options for name, field in m.model_fields.items()})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models an annotation names, by itself or in a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _models_in(part)]
