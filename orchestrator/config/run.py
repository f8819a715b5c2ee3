"""The root configuration: a composition of the components' own settings, closed and resolved once.

An unknown key or a bad value is one line that names the key, the value and what is allowed.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, model_validator

from errata.actors.settings import ModelSpec, ParallelConfig, RayConfig
from errata.editing.closed import Closed
from errata.editing.digest import digest_json
from errata.editing.editors import REGISTRY
from errata.editing.editors.base import LocateConfig
from errata.editing.verify import VerifyConfig
from errata.orchestrator.config.covariance import CovarianceConfig
from errata.orchestrator.config.evaluation import EvaluationConfig, MemoryConfig
from errata.orchestrator.config.guard import GuardConfig
from errata.orchestrator.config.publish import PublishConfig
from errata.orchestrator.config.refresh import RefreshConfig
from errata.orchestrator.config.repair import RepairConfig
from errata.orchestrator.config.service import ServiceConfig
from errata.orchestrator.config.stream import StreamConfig
from errata.orchestrator.config.tracking import TrackingConfig
from errata.retrieval.router import RouterConfig
from errata.retrieval.statements import StatementConfig

# the union is read off the registry, so that a new editor needs no line here; the type checker sees the base class
EditorUnion: Any = Annotated[reduce(or_, (config for config, _ in REGISTRY.values())), Field(discriminator="type")]


_WHOLE_MAPS = ("adalora", "ft_l", "kn", "lora", "mend", "ultraedit")
"""Editors that take gradients of the maps themselves, or read what goes into them by hooks of their own."""
_MODULES = ("gated_kv", "grace", "wise")
"""Editors that put modules into layers."""


class ModelConfig(Closed):
    """The model that is kept current."""

    name: str
    """A directory, a URL that fsspec reads (``s3://...``), a hub name, or one known to ``errata models fetch``."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Of the forward pass; the numerics of editing are float32 or better whatever it is."""
    parallel: ParallelConfig | None = None
    """Spread each copy of the model over several processes; null for one device each (needs the extra `deepspeed`)."""


class ContextsConfig(Closed):
    """Prefixes in front of the edit prompts while values and keys are computed."""

    count: int = Field(5, ge=0)
    """Prefixes besides the empty one, sampled once from the base model."""
    length: int = Field(10, ge=1)
    """Tokens of each."""
    further: tuple[tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]], ...] = ()
    """More prefixes, as pairs of their number and length: ROME has 10 of 5 tokens and 10 of 10."""


class BatchingConfig(Closed):
    """How many updates are written together."""

    size: int = Field(10, ge=1)
    """Updates per commit; 1 writes them one by one."""
    max_age_seconds: float | None = Field(None, ge=0)
    """A batch is also written when its oldest update has waited that long; needs ``schedule: asap``."""
    distinct_subjects: bool = False
    """At most one update of a subject per batch: keys of one subject are nearly parallel, and split one direction."""
    by_subject: bool = False
    """A batch is what waits about one subject, up to ``size``: the same-subject protocol of RoSE."""

    @model_validator(mode="after")
    def _one_rule_about_subjects(self) -> BatchingConfig:
        if self.by_subject and self.distinct_subjects:
            raise ValueError("by_subject and distinct_subjects are opposites; give one of them")
        return self


class SnapshotConfig(Closed):
    """Stored states of the editor, from which a restart goes on instead of replaying every commit."""

    every: int | None = Field(None, ge=1)
    """Commits between two snapshots; null for none in a run, and for ``serving`` in a service."""
    serving: int | None = Field(200, ge=1)
    """Commits between two snapshots of ``errata serve`` where ``every`` is null; null for none."""
    keep: int = Field(2, ge=1)
    """The newest ones that ``errata gc`` leaves. Of older ones a run itself leaves one for each doubling of the age,
    and those that ``spread`` says."""
    spread: int = Field(64, ge=0)
    """At most so many older ones, evenly spread over the run, as long as they take no more room than the commits do: a
    revert of an old edit begins at the one before it."""


class RunConfig(Closed):
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
    verify: VerifyConfig = VerifyConfig()
    schedule: Literal["deterministic", "asap"] = "deterministic"
    """``deterministic``: batches form by count and covariances change over by edits; ``asap``: both by the clock."""
    snapshots: SnapshotConfig = SnapshotConfig()
    artifacts: str | None = None
    """URL (``s3://BUCKET/PREFIX``, or another that fsspec writes to) at which the files beside the journal are kept,
    with copies here; null for the run's directory alone."""
    covariance: CovarianceConfig
    refresh: RefreshConfig = RefreshConfig()
    repair: RepairConfig = RepairConfig()
    memory: MemoryConfig = MemoryConfig()
    router: RouterConfig = RouterConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    guard: GuardConfig = GuardConfig()
    publish: PublishConfig = PublishConfig()
    service: ServiceConfig = ServiceConfig()
    tracking: TrackingConfig = TrackingConfig()
    ray: RayConfig = RayConfig()
    directory_mode: Literal["0700", "0750", "0755"] = "0700"
    """Who may look into the directory of a run that is begun, as ``chmod`` writes it: its owner, the group too, all."""

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
        if self.puts_modules and self.model.parallel is not None:
            raise ValueError(
                f"editor.type {self.editor.type!r}{self._as_pieces} puts a module into a layer, which a model spread "
                "over several processes cannot hold; leave out model.parallel"
            )
        if self.puts_modules and self.publish.to:
            raise ValueError(
                f"editor.type {self.editor.type!r}{self._as_pieces} puts a module into a layer, which a server of vLLM "
                "cannot hold; leave out publish.to and serve the run with `errata serve`"
            )
        return self

    @model_validator(mode="after")
    def _pieces_need_a_router(self) -> RunConfig:
        if self.retrieves and "routed" not in self.evaluation.arms:
            raise ValueError(
                "editor.regime 'retrieved' answers with the edits that the router chooses; evaluation.arms must "
                f"include 'routed', got {list(self.evaluation.arms)}"
            )
        return self

    @property
    def retrieves(self) -> bool:
        """Whether edits are kept as pieces, of which a question gets those that are chosen for it."""
        return isinstance(self.editor, LocateConfig) and self.editor.regime == "retrieved"

    @property
    def _as_pieces(self) -> str:
        return " with regime 'retrieved'" if self.retrieves else ""

    @property
    def puts_modules(self) -> bool:
        """Whether edits are modules in layers, and not changes of the maps."""
        return self.editor.type in _MODULES or self.retrieves

    @model_validator(mode="after")
    def _router_counts_in_cosines(self) -> RunConfig:
        if not self.memory.unit and "routed" in self.evaluation.arms:
            raise ValueError(
                "the arm 'routed' weighs cosines, which memory.embedder.normalize false does not give; leave it out of "
                f"evaluation.arms, got {list(self.evaluation.arms)}"
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


_LATER: dict[str, tuple[object, ...]] = {
    "texts": ({}, None),
    "judge": ({"type": "contains"},),
    "reasoning": (None,),
    "final": ("all",),
    "free_text": (None,),
    "ike": (None,),
}
"""Settings of the evaluation of which older releases know nothing, and what they were then."""


def _as_of_old(corpus: Any) -> Any:
    """A text's settings without those that came later and are not used."""
    if not isinstance(corpus, Mapping):
        return corpus
    return {key: value for key, value in corpus.items() if key != "articles" or value != "cut"}


def identity_of(plain: Mapping[str, Any]) -> dict[str, Any]:
    """`RunConfig.identity` of a configuration kept as plain data, perhaps by an older release."""
    elsewhere = (
        *("ray", "tracking", "name", "schedule", "snapshots", "artifacts", "guard", "publish", "service"),
        "directory_mode",
    )
    kept = {key: value for key, value in plain.items() if key not in elsewhere}
    contexts = kept.get("contexts")
    if isinstance(contexts, Mapping):
        # runs of older releases know nothing of it, nor of what the next lines leave out
        kept["contexts"] = {key: value for key, value in contexts.items() if key != "further" or value}
    if kept.get("verify") == VerifyConfig().model_dump(mode="json"):
        del kept["verify"]  # runs of older releases know nothing of it
    if kept.get("repair") == RepairConfig().model_dump(mode="json"):
        del kept["repair"]  # nor of this
    editor = kept.get("editor")
    if isinstance(editor, Mapping):
        usual = {"key": "averaged", "beyond": False, "norm_anchors": False, "units": "absolute"}
        usual |= {"regime": "accumulated", "literal_values": False}
        kept["editor"] = {key: value for key, value in editor.items() if key not in usual or value != usual[key]}
        if editor.get("type") == "mend":
            kept["editor"].pop("trained", None)  # what it is is in its digest, not where
        if isinstance(values := editor.get("values"), Mapping):
            later: dict[str, object] = {"units": "absolute", "kp_factor": 0.0, "kp_subjects": []}
            kept["editor"]["values"] = {k: v for k, v in values.items() if k not in later or v != later[k]}
    model = kept.get("model")
    if isinstance(model, Mapping):
        # runs of older releases know nothing of it
        kept["model"] = {key: value for key, value in model.items() if key != "parallel" or value}
    stream = kept.get("stream")
    if isinstance(stream, Mapping):
        unused = [key for key in ("probes", "portability") if not stream.get(key)]
        left_out = ("limit", "follow", "redis", "kafka", *unused)
        kept["stream"] = {key: value for key, value in stream.items() if key not in left_out}
    batching = kept.get("batching")
    if isinstance(batching, Mapping):
        # runs of older releases know nothing of subjects; when batches form is in the journal
        known = {key: value for key, value in batching.items() if key != "max_age_seconds"}
        subjects = ("distinct_subjects", "by_subject")
        kept["batching"] = {key: value for key, value in known.items() if key not in subjects or value}
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
        kept["evaluation"] = {k: v for k, v in evaluation.items() if k not in _LATER or v not in _LATER[k]}
        if isinstance(arms := evaluation.get("arms"), list):
            kept["evaluation"]["arms"] = [arm for arm in arms if arm != "routed"]
    if kept.get("router") == RouterConfig().model_dump(mode="json"):
        del kept["router"]
    memory = kept.get("memory")
    if isinstance(memory, Mapping):
        plain_statement = StatementConfig().model_dump(mode="json")
        kept["memory"] = {k: v for k, v in memory.items() if k != "statement" or v != plain_statement}
        if isinstance(embedder := memory.get("embedder"), Mapping):
            kept["memory"]["embedder"] = {k: v for k, v in embedder.items() if k != "normalize" or not v}
    covariance = kept.get("covariance")
    if isinstance(covariance, Mapping):
        # runs of older releases know nothing of a sampler; the one that was used is part of each covariance
        unsaid = ["store", "packed", *([] if covariance.get("sampler") else ["sampler"])]
        unsaid += [] if covariance.get("seed_pool") == "words" else ["seed_pool"]
        unsaid += ["seed_bos"] if covariance.get("seed_bos") is None else []
        kept["covariance"] = {key: value for key, value in covariance.items() if key not in unsaid}
        if isinstance(corpus := covariance.get("corpus"), Mapping):
            kept["covariance"]["corpus"] = _as_of_old(corpus)
        if isinstance(mixture := covariance.get("mixture"), Mapping):
            parts = {name: _as_of_old(part) for name, part in mixture.get("components", {}).items()}
            kept["covariance"]["mixture"] = {**mixture, "components": parts}
        if isinstance(server := covariance.get("server"), Mapping):
            kept["covariance"]["server"] = {"model": server.get("model")}  # not where it is and how it is asked
    return kept
