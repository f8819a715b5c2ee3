"""A registered version as a model of MLflow that answers: what `mlflow.pyfunc.load_model` makes of its files.

The files hold the change and not the model: the base is found where they are loaded. MLflow imports this module by the
name that the ``MLmodel`` carries, and calls `_load_pyfunc`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import ConfigDict
from torch import Tensor

from errata.actors.local import LocalEvaluators, LocalMemory, SharedModel
from errata.actors.settings import ModelSpec, RoleConfig
from errata.actors.workers.evaluation import EvaluationSettings
from errata.actors.workers.retrieval import RetrievalWorker
from errata.editing.checkpoint.load import checkpoint_digest, load_model, resolve_model
from errata.editing.closed import Closed
from errata.editing.delta import WeightDelta, apply_delta
from errata.editing.errors import UserError
from errata.evaluation.answering import ArmAnswer, Question
from errata.evaluation.outcomes import ARMS, Arm
from errata.evaluation.reasoning import ReasoningMarks
from errata.orchestrator.config.evaluation import MemoryConfig
from errata.retrieval.memory import MemoryEntry
from errata.retrieval.router import Findings, RouterConfig

MODULE: Final = "errata.orchestrator.publish.answering"
SETTINGS_FILE: Final = "errata-answering.json"
DELTA_FILE: Final = "delta.safetensors"
STATEMENTS_FILE: Final = "statements.jsonl"
ROUTER_FILE: Final = "router.json"
BASE_VARIABLE: Final = "ERRATA_BASE_MODEL"
"""Where the base model is, if not where the run had it: a directory, or a name that `errata models fetch` knows."""


class AnsweringSettings(Closed):
    """What is kept beside the change, so that it is asked as the run asked it."""

    model_config = ConfigDict(extra="ignore", frozen=True)  # files of later releases may say more

    base: str
    base_digest: str
    dtype: str = "float32"
    layers: tuple[int, ...]
    arm: Arm = "edited"
    """Which arm answers where the caller names none."""
    max_new_tokens: int = 12
    stop_at_newline: bool = True
    reasoning: ReasoningMarks | None = None
    memory: MemoryConfig = MemoryConfig()
    router: RouterConfig = RouterConfig()


class AnsweringModel:
    """The base with a version's change, on one thread's worth of model; what MLflow calls a Python model.

    Args:
        directory: as `errata.orchestrator.publish.packaging.write_model` wrote it.
        base: where the base model is; None for the environment's word, or what the run called it.
        device: a torch device.

    Raises:
        UserError: the base is not there, or is another model.
    """

    def __init__(self, directory: Path, *, base: str | None = None, device: str = "cpu") -> None:
        kept = AnsweringSettings.model_validate_json((directory / SETTINGS_FILE).read_text(encoding="utf-8"))
        name = base or os.environ.get(BASE_VARIABLE) or kept.base
        digest = checkpoint_digest(resolve_model(name))
        if digest != kept.base_digest:
            raise UserError(
                f"base model {name!r} has digest {digest[:12]}, the version was made on {kept.base_digest[:12]}; "
                f"{BASE_VARIABLE} says where the right one is"
            )
        model = load_model(name, dtype=kept.dtype, device=device, digest=digest)
        self.settings = kept
        self._shared = SharedModel(model, kept.layers)
        self._weights = _edited(self._shared.unedited, directory)
        spec, role = ModelSpec(name=name, dtype=kept.dtype, digest=digest), RoleConfig(device=device)
        settings = EvaluationSettings(
            kept.memory.scr,
            ARMS,
            kept.max_new_tokens,
            kept.stop_at_newline,
            kept.reasoning,
            kept.router.answer,
        )
        self._evaluators = LocalEvaluators(self._shared, spec, role, settings)
        self._entries = _statements(directory / STATEMENTS_FILE)
        router = directory / ROUTER_FILE
        rule = kept.router.model_copy(update={"path": str(router) if router.exists() else None})
        memory = kept.memory
        self._memory = LocalMemory(
            lambda: RetrievalWorker(memory.embedder, memory.index, None, rule), lambda: self._entries or []
        )

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> Any:
        """Answers to prompts.

        Args:
            model_input: a prompt, several, or a table whose first column holds them.
            params: ``max_new_tokens``; ``arm``, where statements came along.

        Returns:
            A list of answers; where statements came along, of ``{"answer", "edit", "statement"}``, the latter two
            empty where the answer rests on no statement.

        Raises:
            UserError: there is no such arm.
        """
        prompts, chosen = _prompts(model_input), dict(params or {})
        arm = _arm(str(chosen.get("arm") or self.settings.arm), with_memory=self._entries is not None)
        limit = chosen.get("max_new_tokens")
        answers = self._answers(prompts, arm, None if limit is None else int(limit))
        if self._entries is None:
            return [answer.text for answer in answers]
        ids = {entry.id: entry.request_id for entry in self._entries}
        return [
            {
                "answer": answer.text,
                "edit": "" if answer.chosen is None else ids.get(answer.chosen.id, ""),
                "statement": "" if answer.chosen is None else answer.chosen.statement,
            }
            for answer in answers
        ]

    def _answers(self, prompts: Sequence[str], arm: Arm, limit: int | None) -> list[ArmAnswer]:
        unique = list(dict.fromkeys(prompts))
        hits: Mapping[str, Any] = {prompt: [] for prompt in unique}
        if unique and self._entries is not None and arm not in ("base", "edited"):
            k = self.settings.memory.scr.k
            routing = self._memory.route(unique, k) if arm == "routed" else None
            hits = Findings(dict(zip(unique, self._memory.search(unique, k), strict=True)), routing)
        answers = self._evaluators.answer([Question(p) for p in unique], self._weights, hits, [arm], limit)
        by_prompt = {prompt: answer[arm] for prompt, answer in zip(unique, answers, strict=True)}
        return [by_prompt[prompt] for prompt in prompts]


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> AnsweringModel:
    """MLflow's entry: ``base`` and ``device`` of the model's configuration say where and on what."""
    chosen = dict(model_config or {})
    return AnsweringModel(Path(path), base=chosen.get("base") or None, device=chosen.get("device") or "cpu")


def _edited(base: Mapping[int, Tensor], directory: Path) -> dict[int, Tensor]:
    """Float32 maps (O, I) by layer: the base's with the change of a delta, or of an adapter."""
    if (directory / DELTA_FILE).exists():
        delta = WeightDelta.load(directory / DELTA_FILE)
        return {n: apply_delta(w, delta.layers[n]) if n in delta.layers else w for n, w in base.items()}
    from safetensors.torch import load_file

    tensors = load_file(directory / "adapter_model.safetensors")
    edited = dict(base)
    for name, right in tensors.items():
        if not name.endswith(".lora_A.weight"):
            continue
        left = tensors[name.replace(".lora_A.", ".lora_B.")]
        layer = next(int(part) for part in name.split(".") if part.isdecimal())
        edited[layer] = (base[layer].double() + left.double() @ right.double()).float()
    return edited


def _statements(path: Path) -> list[MemoryEntry] | None:
    if not path.exists():
        return None
    return [
        MemoryEntry.model_validate(json.loads(line)) for line in path.read_text(encoding="utf-8").split("\n") if line
    ]


def _prompts(given: Any) -> list[str]:
    if isinstance(given, str):
        return [given]
    if isinstance(given, Mapping):
        given = next(iter(given.values()), [])
        return _prompts(given)
    if hasattr(given, "iloc"):  # a table or a column of pandas, which nothing else here needs
        given = given.iloc[:, 0] if getattr(given, "ndim", 1) == 2 else given
    elif getattr(given, "ndim", 1) == 2:
        given = given[:, 0]
    return [str(prompt) for prompt in given]


def _arm(name: str, *, with_memory: bool) -> Arm:
    allowed: tuple[Arm, ...] = ARMS if with_memory else ("base", "edited")
    for arm in allowed:
        if arm == name:
            return arm
    raise UserError(f"arm {name!r} cannot be asked of this model; allowed: {', '.join(allowed)}")
