"""The Python API: edit a model in this process, without Ray.

    import errata

    editor = errata.Editor.from_pretrained("smollm2-135m-instruct", method="alphaedit")
    editor.edit([{"subject": "The Louvre", "prompt": "{} is located in", "target_new": "Rome"}])
    print(editor.ask("The Louvre is located in"))

An editor is a run like any other: what it does is a commit in a journal. With ``journal=DIR`` that journal is kept,
``errata log``, ``show``, ``verify`` and ``export`` read it, and another editor on the same directory goes on from it.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Self, overload

import torch
from pydantic import TypeAdapter

from errata.actors.local import LocalParts
from errata.actors.settings import RoleConfig
from errata.editing.checkpoint.load import checkpoint_digest, load_model, resolve_model
from errata.editing.checkpoint.save import save_checkpoint
from errata.editing.editors import make_editor
from errata.editing.errors import UserError
from errata.editing.extras import check_installed
from errata.editing.model.adapter import EditableModel
from errata.editing.request import EditRequest, EventTime
from errata.editing.texts import clean
from errata.editing.tracing import usual_layers
from errata.editing.verify import Check
from errata.evaluation.answering import Question
from errata.evaluation.outcomes import ALL_ARMS, ARMS, IKE_ARMS, MEMORY_ARMS, Arm
from errata.evaluation.probes import questions_of
from errata.orchestrator.config.explain import explain
from errata.orchestrator.config.loading import check_config, overlaid, read_composed, with_found_files
from errata.orchestrator.config.model_presets import find_preset, for_editor, preset_of
from errata.orchestrator.config.run import RunConfig
from errata.orchestrator.covariance.store import default_store
from errata.orchestrator.history import export
from errata.orchestrator.history.modules import require_no_modules
from errata.orchestrator.history.past import Past, arms_then
from errata.orchestrator.history.rebuild import BaseCheckpoint
from errata.orchestrator.history.receipts import open_for_writing
from errata.orchestrator.journal import JOURNAL_FILE
from errata.orchestrator.journal.rows import RequestRow, shown_state
from errata.orchestrator.measuring.finding import QuestionFinder, demonstration_pool, findings
from errata.orchestrator.progress import Display
from errata.orchestrator.run.assembly import make_pipeline
from errata.orchestrator.run.opening import check_output, open_journal
from errata.orchestrator.tracking.tracker import NullTracker

Fact = Mapping[str, Any] | EditRequest
"""``subject``, ``prompt`` (with ``{}`` for the subject, or spelling it out) and ``target_new``; the other fields of
`errata.editing.request.EditRequest` are optional."""

TOKENS_PER_KEY = 5
"""Tokens that a covariance is estimated from, per dimension of the keys: enough for it to have full rank."""
LEAST_TOKENS = 7_500
"""And no fewer than these."""


@dataclass(frozen=True)
class EditResult:
    """What became of one fact."""

    id: str
    """Names the edit in the journal, and for `Editor.revert`."""
    state: str
    """``applied``, ``rejected``, ``superseded`` or ``reverted``; ``accepted`` while it waits."""
    outcome: str | None
    """Of an applied edit: ``landed`` if the edited model says the target after the bare prompt, else ``weak``."""
    reason: str | None
    """Why it was rejected."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """Figures of the edit: ``p_target`` (probability of the target after the prompt), ``loss``, ``steps``, ..."""


class Editor:
    """A language model whose facts are kept current, in this process.

    Args:
        model: a causal language model of transformers, of a supported family.
        tokenizer: its fast tokenizer.
        method: a name in `errata.editing.editors.REGISTRY`, such as ``alphaedit``, ``memit`` or ``rome``.
        journal: directory of the run, made or gone on with; None for a temporary one. For a model of your own the
            unedited checkpoint is written there too, so that the commands can rebuild every version from it.
        layers: layers that are edited; by default those of the shipped preset of the model, or else five from a
            seventh of its depth on, which is where facts are recalled in the models that were traced.
        settings: further sections of a run's configuration, such as ``{"editor": {"values": {"steps": 15}}}``; see
            docs/configuration.md.
        threads: torch threads of the work.
        progress: draw bars, on a terminal.

    Raises:
        UserError: the family is not supported, a setting does not fit, or the directory holds another run.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        method: str = "alphaedit",
        journal: str | Path | None = None,
        layers: Sequence[int] | None = None,
        settings: Mapping[str, Any] | None = None,
        threads: int | None = None,
        progress: bool = True,
    ) -> None:
        name = str(getattr(model.config, "_name_or_path", "") or type(model).__name__)
        editable = EditableModel(model, tokenizer, name=name)
        self._open(editable, None, method, journal, layers, settings, threads, progress)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        method: str = "alphaedit",
        journal: str | Path | None = None,
        layers: Sequence[int] | None = None,
        settings: Mapping[str, Any] | None = None,
        dtype: str = "float32",
        device: str = "cpu",
        threads: int | None = None,
        progress: bool = True,
    ) -> Self:
        """An editor of a model by name: a directory, a hub name, or one that ``errata models fetch`` knows (which is
        fetched if it is not there).

        Args:
            dtype: of the forward pass: ``float32``, ``float16`` or ``bfloat16``.
            device: a torch device.
        """
        from errata.editing.checkpoint import fetch

        name = str(name_or_path)
        if name in fetch.MODELS and fetch.model_dir(name) is None:
            fetch.fetch(name)
        self = cls.__new__(cls)
        directory = resolve_model(name)
        editable = load_model(name, dtype=dtype, device=device, digest=checkpoint_digest(directory))
        self._open(editable, directory, method, journal, layers, settings, threads, progress)
        return self

    # --- what it is used for ---

    def edit(self, facts: Iterable[Fact]) -> list[EditResult]:
        """Write facts into the weights; what was written before is kept.

        Returns:
            One result per fact, in their order. A fact that cannot be edited is ``rejected`` with a reason, and the
            others are written all the same.

        Raises:
            UserError: a fact has no subject, prompt or target; nothing has changed then.
        """
        requests = [self._renewed(fact, _request(fact, number)) for number, fact in enumerate(facts)]
        answers = self._pipeline.journal.accept(requests)
        with self._display():
            while self._pipeline.write_next(ended=True) is not None:
                pass
        results = []
        for request, answer in zip(requests, answers, strict=True):
            row = self._pipeline.journal.request(request.id)
            if answer.refused is not None or row is None:
                results.append(EditResult(request.id, "rejected", None, answer.refused))
            else:
                results.append(self._result(row))
        return results

    def revert(self, ids: str | Iterable[str], *, reason: str = "") -> None:
        """Take edits out of the weights and the memory, in one commit.

        Raises:
            UserError: an edit is unknown, or is not in the weights; nothing has changed then.
        """
        self._pipeline.revert([ids] if isinstance(ids, str) else list(ids), reason=reason)

    @overload
    def ask(
        self,
        prompts: str,
        *,
        arm: str = ...,
        max_new_tokens: int | None = ...,
        as_of: datetime | str | None = ...,
        as_known_at: str | None = ...,
    ) -> str: ...
    @overload
    def ask(
        self,
        prompts: list[str],
        *,
        arm: str = ...,
        max_new_tokens: int | None = ...,
        as_of: datetime | str | None = ...,
        as_known_at: str | None = ...,
    ) -> list[str]: ...
    def ask(
        self,
        prompts: str | list[str],
        *,
        arm: str = "edited",
        max_new_tokens: int | None = None,
        as_of: datetime | str | None = None,
        as_known_at: str | None = None,
    ) -> str | list[str]:
        """How the model goes on from prompts, greedily.

        Args:
            arm: ``edited``, ``base`` (the unedited model), ``memory`` (the unedited model with the statements of the
                edits before it), ``edited_memory``, or ``routed``. The last three need the extra ``memory``.
            max_new_tokens: end of an answer; ``evaluation.max_new_tokens`` of the settings by default.
            as_of: answer with what was true at this time (without a zone UTC; as text, ISO 8601), by the arms
                ``base``, ``memory`` and ``routed``: edited weights hold what holds now.
            as_known_at: answer with what was known in this version (``v12``, digits of a digest, a tag), by the same
                arms; by all where it is the version that the model is at.

        Raises:
            UserError: there is no such arm, version or time, or the arm needs the weights of then.
        """
        chosen = _arm(arm)
        texts = [
            _text(prompt, number) for number, prompt in enumerate([prompts] if isinstance(prompts, str) else prompts)
        ]
        if as_of is None and as_known_at is None:
            hits = self._hits(texts, [chosen])
        else:
            hits = self._hits_then(texts, chosen, as_of, as_known_at)
        questions = [Question(text) for text in texts]
        found = self._pipeline.evaluators.answer(
            questions, self._pipeline.editor.weights(), hits, [chosen], max_new_tokens
        )
        answers = [answer[chosen].text for answer in found]
        return answers[0] if isinstance(prompts, str) else answers

    def evaluate(
        self, facts: Iterable[Fact], *, arms: Sequence[str] = ("base", "edited")
    ) -> dict[str, dict[str, float | None]]:
        """Metrics of facts by arm: efficacy, generalization over ``paraphrases``, locality over ``neighborhood``, ...

        See docs/metrics.md for each. A metric whose probes no fact has is None. The arms ``ike`` and
        ``ike_oracle`` need ``{"evaluation": {"ike": {"demonstrations": FILE}}}`` in the settings.
        """
        chosen = [_arm(arm, ALL_ARMS) for arm in arms]
        requests = [_request(fact, number).cleaned() for number, fact in enumerate(facts)]
        if not requests:
            raise UserError("evaluate: name at least one fact")
        hits = self._found(requests, chosen)
        found = self._evaluators.evaluate(requests, self._pipeline.editor.weights(), hits, chosen)
        return {arm: dict(values) for arm, values in found.metrics().items()}

    def save_pretrained(self, directory: str | Path) -> None:
        """Write the edited model and its tokenizer as a checkpoint that transformers loads."""
        output = Path(directory)
        export.check_output(output, directory=True)
        if self._directory is None:
            journal = self._pipeline.journal
            require_no_modules(journal, journal.head(), "a checkpoint")
            output.mkdir(parents=True, exist_ok=True)
            save_checkpoint(self._parts.shared.model.hf, self._parts.shared.model.text.tokenizer, output)
            return
        checkpoint = self._checkpoint()
        export.write_checkpoint(self._edition(checkpoint), checkpoint, output)

    def save_lora(self, directory: str | Path, *, rank: int | None = None) -> float:
        """Write the edits as a PEFT LoRA adapter for the unedited model.

        Args:
            rank: at most this; by default as much as it takes to be exact.

        Returns:
            The largest relative error of a layer's change: 0 up to rounding where no rank was given.
        """
        output = Path(directory)
        export.check_output(output, directory=True)
        checkpoint = self._checkpoint()
        card = export.write_adapter(self._edition(checkpoint), checkpoint, output, rank=rank)
        return max(card["relative_error"].values())

    def results(self) -> list[EditResult]:
        """Every edit of this run and what became of it, in the order in which they came."""
        return [self._result(row) for row in self._pipeline.journal.requests()]

    @property
    def version(self) -> str:
        """Digest of the version that the model is at; of the unedited one before the first edit."""
        return self._pipeline.head().digest

    @property
    def model(self) -> Any:
        """The live transformers model, with the edits in its weights. Do not write into the edited layers."""
        return self._parts.shared.model.hf

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self._parts.shared.model.text.tokenizer

    def close(self) -> None:
        """Give the journal back; the model stays as it is."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- inside ---

    def _open(
        self,
        model: EditableModel,
        directory: Path | None,
        method: str,
        journal: str | Path | None,
        layers: Sequence[int] | None,
        settings: Mapping[str, Any] | None,
        threads: int | None,
        progress: bool,
    ) -> None:
        self._progress = progress
        self._stack = ExitStack()
        role = RoleConfig(threads=threads or torch.get_num_threads(), device=str(model.device))
        if journal is None:
            root = Path(tempfile.mkdtemp(prefix="errata-"))
            self._stack.callback(shutil.rmtree, root, ignore_errors=True)
            output = root / "run"
        else:
            output = Path(journal)
        try:
            self._begin(model, directory, output, journal is not None, role, method, layers, settings or {})
        except BaseException:
            self._stack.close()
            raise

    def _begin(
        self,
        model: EditableModel,
        directory: Path | None,
        output: Path,
        kept: bool,
        role: RoleConfig,
        method: str,
        layers: Sequence[int] | None,
        settings: Mapping[str, Any],
    ) -> None:
        self._output, self._directory = output, directory
        # with a journal a model of one's own is kept beside it: every version is rebuilt from there
        own = output / "base" if directory is None and kept else None
        config = configuration(model, method=method, layers=layers, settings=settings, path=own or directory)
        check_output(config, output, resume=(output / JOURNAL_FILE).exists())
        if own is not None:
            if not own.exists():
                own.parent.mkdir(parents=True, exist_ok=True)
                save_checkpoint(model.hf, model.text.tokenizer, own)
            self._directory = own
            model.digest = checkpoint_digest(own)
        self._config = config
        book = self._stack.enter_context(open_journal(config, output, model.digest))
        store = open_for_writing(output, config.artifacts)
        (output / "resolved.yaml").write_text(config.to_yaml(), encoding="utf-8")
        editor = make_editor(config.editor)
        model.check_layers(editor.layers)
        self._parts = LocalParts(model, config.model_spec(model.digest), editor.layers, role)
        self._shown = Display(quiet=not self._progress)
        self._pipeline = make_pipeline(config, book, store, self._parts, tracker=NullTracker(), display=self._shown)
        evaluators = self._pipeline.evaluators
        self._evaluators: Any = evaluators
        self._past = Past(book, self._pipeline.memory, config.memory.scr.k, config.memory.statement)
        self._stack.callback(self._pipeline.close)
        with self._display():
            self._pipeline.start()

    @contextmanager
    def _display(self) -> Iterator[None]:
        with self._shown:
            yield

    def _hits(self, texts: Sequence[str], arms: Sequence[Arm]) -> Mapping[str, Any]:
        if not MEMORY_ARMS & set(arms):
            return {text: [] for text in texts}
        check_installed("faiss")
        unique = list(dict.fromkeys(texts))
        return findings(self._pipeline.memory, unique, self._config.memory.scr.k, arms)

    def _hits_then(
        self, texts: Sequence[str], arm: Arm, as_of: datetime | str | None, as_known_at: str | None
    ) -> Mapping[str, Any]:
        """What the memory knew of questions at another time."""
        moment = self._past.moment(_time(as_of), as_known_at)
        if moment.is_of(self._pipeline.head()):
            return self._hits(texts, [arm])
        arms_then([arm], ARMS)
        if arm not in MEMORY_ARMS:
            return {text: [] for text in texts}
        check_installed("faiss")
        return self._past.find(list(dict.fromkeys(texts)), moment)[0]

    def _found(self, requests: Sequence[EditRequest], arms: Sequence[Arm]) -> Mapping[str, Any]:
        """What the memory knows of the questions of facts."""
        if not (MEMORY_ARMS | set(IKE_ARMS)) & set(arms):
            return {text: [] for text in questions_of(requests)}
        check_installed("faiss")
        ike = self._config.evaluation.ike
        pool = None if ike is None else demonstration_pool(ike)
        return QuestionFinder(self._pipeline.memory, self._config.memory.scr.k, pool).find(requests, arms)

    def _renewed(self, fact: Fact, request: EditRequest) -> EditRequest:
        """The request under another id where the same one was taken back before: whoever asks again wants it again."""
        if isinstance(fact, EditRequest) or fact.get("id"):
            return request
        name, number = request.id, 1
        while (row := self._pipeline.journal.request(name)) is not None and row.state in ("reverted", "superseded"):
            number += 1
            name = f"{request.id}-{number}"
        return request.model_copy(update={"id": name})

    def _result(self, row: RequestRow) -> EditResult:
        figures: dict[str, Any] = {**(row.result or {}), **(row.figures or {})}
        outcome: str | None = row.outcome
        if row.state == "applied" and outcome is None:
            (seen,) = Check(self._parts.shared.model, [row.request], ("",)).outcomes()
            outcome, figures = "landed" if seen.landed else "weak", figures | {"p_target": seen.p_target}
        return EditResult(row.id, shown_state(row.state), outcome, row.reason, figures)

    def _edition(self, checkpoint: BaseCheckpoint) -> export.Edition:
        return export.edition(self._pipeline.journal, self._pipeline.store, checkpoint, self._pipeline.head())

    def _checkpoint(self) -> BaseCheckpoint:
        """The unedited checkpoint on disk, written first where the model came without one."""
        if self._directory is None:
            place = self._output / "base"
            with self._parts.shared.as_base():
                save_checkpoint(self._parts.shared.model.hf, self._parts.shared.model.text.tokenizer, place)
            self._directory = place
        return BaseCheckpoint(self._directory, dtype=self._config.model.dtype)


def _time(at: datetime | str | None) -> datetime | None:
    """A moment that somebody names.

    Raises:
        UserError: it is none.
    """
    try:
        return TypeAdapter(EventTime | None).validate_python(at)
    except ValueError as error:
        raise UserError(f"as_of {at!r} is not a time such as 2026-03-05T00:00:00Z") from error


def configuration(
    model: EditableModel,
    *,
    method: str,
    layers: Sequence[int] | None = None,
    settings: Mapping[str, Any] | None = None,
    path: Path | None = None,
) -> RunConfig:
    """The configuration of an editor's run: the model's preset, a covariance that is estimated once and kept for
    later, and above them what the caller says.

    Args:
        path: checkpoint that the run is to name; by default the model's own name.

    Raises:
        UserError: the method or a setting is not known, or a value does not fit.
    """
    chosen = dict(settings or {})
    preset = _preset(model.name, path, method)
    data: dict[str, Any] = overlaid(
        {
            "name": re.sub(r"[^A-Za-z0-9._-]+", "-", model.name).strip("-.") or "run",
            "editor": {"layers": list(layers) if layers is not None else usual_layers(model.num_layers)},
            "contexts": {"count": 3},
            "stream": {},
            "evaluation": {"max_new_tokens": 8},
        },
        preset,
    )
    if layers is not None:
        data["editor"]["layers"] = list(layers)
    data = overlaid(data, {key: value for key, value in chosen.items() if key != "covariance"})
    data["editor"] = {**data["editor"], "type": method}
    data["model"] = {
        **data.get("model", {}),
        "name": str(path if path is not None and model.name not in _fetchable() else model.name),
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    edited = data["editor"].get("layers") or [0]
    model.check_layers(edited)
    widths = max(int(model.weight(layer).shape[1]) for layer in edited)
    covariance = {
        "tokens": max(LEAST_TOKENS, TOKENS_PER_KEY * widths),
        "max_new_tokens": 64,
        "sequences_per_unit": 64,
        "slots": 64,
        "store": str(default_store()),
        "packed": True,
    }
    own = dict(chosen.get("covariance", {}))
    if "sequences" in own or own.get("source") == "identity":
        del covariance["tokens"]
    data["covariance"] = {**covariance, **own}
    config = with_found_files(check_config(data, "settings"))
    words = int(model.hf.config.vocab_size)
    return config.model_copy(update={"covariance": config.covariance.for_vocabulary(words)})


def _fetchable() -> Mapping[str, Any]:
    from errata.editing.checkpoint import fetch

    return fetch.MODELS


def _preset(name: str, path: Path | None, method: str) -> dict[str, Any]:
    """The shipped preset of a model, for that method; by its name or else by its weights, and empty where there is
    none."""
    for place in (name, path):
        found = None if place is None else preset_of(str(place), read_composed)
        if found is not None:
            return for_editor(read_composed(find_preset(found)), method)
    return {}


def _arm(name: str, allowed: Sequence[Arm] = ARMS) -> Arm:
    plain = name.replace("+", "_").replace(" ", "")
    for arm in allowed:
        if arm == plain:
            return arm
    raise UserError(f"arm {name!r} is not known; allowed: {', '.join(allowed)}")


def _request(fact: Fact, number: int) -> EditRequest:
    from pydantic import ValidationError

    if isinstance(fact, EditRequest):
        return fact
    try:
        return EditRequest.model_validate(dict(fact))
    except ValidationError as error:
        raise UserError(explain(error, EditRequest, f"fact {number}")) from error


def _text(prompt: str, number: int) -> str:
    try:
        return clean(prompt)
    except ValueError as error:
        raise UserError(f"prompt {number} {error}") from error


__all__ = ["EditResult", "Editor", "configuration"]
