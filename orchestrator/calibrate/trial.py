"""One trial: a few facts edited with a candidate's settings, and what they did, measured on the spot and taken back."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from errata.editing.covariance import KeyCovariance
from errata.editing.editors import make_editor
from errata.editing.errors import ErrataError, UserError
from errata.editing.model.adapter import EditableModel
from errata.editing.model.engine import LanguageEngine
from errata.editing.request import EditBatch
from errata.editing.session import EditSession
from errata.orchestrator.calibrate.questions import Fact, Question
from errata.orchestrator.calibrate.space import Candidate, settings_of
from errata.orchestrator.config.model_presets import ALLOWED_PERPLEXITY
from errata.orchestrator.config.run import EditorUnion

BATCH = 10
"""Edits per commit, as in a run; more than that are written one batch after the other."""
_EDITOR: TypeAdapter[Any] = TypeAdapter(EditorUnion)


class TrialResult(BaseModel):
    """What a candidate did to ``edits`` facts, all shares 0..1 and teacher-forced (every token the likeliest)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    edits: int
    efficacy: float = 0.0
    """Edits whose target the model says after the prompt."""
    paraphrase: float = 0.0
    """The same after the other wording."""
    locality: float = 0.0
    """Neighbors' answers that stayed."""
    perplexity: float | None = None
    """On held-out text, over that of the base; None where it is not finite."""
    seconds: float = 0.0
    """Wall-clock time of the trial, measuring included."""
    edit_seconds: float = 0.0
    """Of it per edit for writing."""
    problem: str | None = None
    """Why nothing could be measured."""

    @property
    def score(self) -> float:
        """Mean of the three shares, less what held-out text has become worse beyond 5 percent."""
        if self.problem is not None or self.perplexity is None:
            return -1.0
        return (self.efficacy + self.paraphrase + self.locality) / 3 - max(0.0, self.perplexity - ALLOWED_PERPLEXITY)


class Bench:
    """A model on which candidates are tried, always from its base weights."""

    def __init__(
        self,
        model: EditableModel,
        covariance: KeyCovariance,
        contexts: Sequence[str],
        held_out: Sequence[Sequence[int]],
        *,
        editor: str,
    ) -> None:
        self.model, self.covariance, self.contexts, self.editor = model, covariance, tuple(contexts), editor
        self.engine = LanguageEngine(model)
        self._held_out = list(held_out)
        self._base_nll = self._nll()

    def attempt(self, candidate: Candidate, facts: Sequence[Fact]) -> TrialResult:
        """Edit the facts with a candidate's settings and measure; the weights are the base's again afterwards."""
        started = time.perf_counter()
        try:
            config = _EDITOR.validate_python({"type": self.editor, **settings_of(candidate)})
        except ValidationError as error:
            raise UserError(f"candidate {dict(candidate)}: {error.errors()[0]['msg']}") from error
        editor = make_editor(config)
        with self.model.patched(editor.layers):
            try:
                session = EditSession(self.model, editor, self._covariance(editor.layers), self.contexts)
                for number, at in enumerate(range(0, len(facts), BATCH), start=1):
                    requests = tuple(fact.request for fact in facts[at : at + BATCH])
                    session.apply(EditBatch(sequence=number, requests=requests))
                writing = time.perf_counter() - started
                measured = self._measured(facts)
            except (ErrataError, ValueError) as error:
                spent = time.perf_counter() - started
                return TrialResult(edits=len(facts), seconds=spent, problem=str(error).splitlines()[0])
        spent = time.perf_counter() - started
        return TrialResult(edits=len(facts), seconds=spent, edit_seconds=writing / len(facts), **measured)

    def _covariance(self, layers: Sequence[int]) -> KeyCovariance:
        whole = self.covariance
        return KeyCovariance({layer: whole.sums[layer] for layer in layers}, whole.tokens, whole.source)

    def _measured(self, facts: Sequence[Fact]) -> dict[str, Any]:
        edited = [(fact.question, fact.target) for fact in facts]
        near = [(n, n.answer) for fact in facts for n in fact.neighbors]
        shares = {
            "efficacy": self._share([(q.prompt, q, answer) for q, answer in edited]),
            "paraphrase": self._share([(q.paraphrase, q, answer) for q, answer in edited]),
            "locality": self._share([(q.prompt, q, answer) for q, answer in near]),
        }
        ratio = math.exp(min(20.0, self._nll() - self._base_nll))
        return {**shares, "perplexity": ratio if math.isfinite(ratio) else None}

    def _share(self, asked: Sequence[tuple[str, Question, str]]) -> float:
        text = self.model.text
        rows = [(text.encode_prompt(p.format(q.subject)), text.encode_target(answer)) for p, q, answer in asked]
        scored = self.engine.score(rows)
        return sum(all(one.hits) for one in scored) / len(scored)

    def _nll(self) -> float:
        """Mean NLL per token of the held-out windows, in nats."""
        sums = self.engine.nll(self._held_out)
        tokens = sum(count for _, count in sums)
        return sum(total for total, _ in sums) / max(1, tokens)


def mean_of(result: TrialResult) -> Mapping[str, float]:
    """The figures that a preset states."""
    return {
        "efficacy": result.efficacy,
        "paraphrase": result.paraphrase,
        "locality": result.locality,
        "perplexity": result.perplexity if result.perplexity is not None else math.nan,
        "seconds per edit": result.edit_seconds,
    }
