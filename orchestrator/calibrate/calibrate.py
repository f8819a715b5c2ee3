"""`errata calibrate`: what it does in which order, what it keeps so that it can go on, and the preset it writes."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from errata.editing.checkpoint.fingerprint import fingerprint
from errata.editing.checkpoint.load import checkpoint_digest, load_model, resolve_model
from errata.editing.contexts import sample_contexts
from errata.editing.covariance import KeyCovariance
from errata.editing.digest import digest_file, digest_json
from errata.editing.errors import DamagedFileError, UserError
from errata.editing.estimation.sampler import default_sampler
from errata.editing.estimation.selfgen import SelfGenerationConfig, run_unit, unit_of
from errata.editing.model.adapter import EditableModel
from errata.editing.model.engine import LanguageEngine
from errata.editing.tracing import TracingConfig, trace
from errata.editing.wording import counted
from errata.evaluation.perplexity import paragraphs_of, windows_of
from errata.orchestrator.calibrate.halving import Ranked, affordable, halve
from errata.orchestrator.calibrate.job import Calibration
from errata.orchestrator.calibrate.page import render_calibration
from errata.orchestrator.calibrate.questions import Fact, known_facts, questions_path, read_questions
from errata.orchestrator.calibrate.space import RIDGES, Candidate, settings_of, space_for, windows_from
from errata.orchestrator.calibrate.trial import Bench, TrialResult, mean_of
from errata.orchestrator.config.presets import configs_root
from errata.orchestrator.progress import Display

TRIALS, STATE, COVARIANCE, PAGE = "trials.jsonl", "state.json", "covariance.safetensors", "calibration.html"
FEWEST_FACTS = 12
_TRACED = 12
_RUNGS = (4, 8, 16, 32)
_FINAL_SHARE = 0.3
"""Of the known facts, kept from the search and measured at the end."""
_REFINING = 0.25
"""Of the time, for settings next to the winner's."""
_HELD_OUT_TOKENS = 600


@dataclass(frozen=True)
class Outcome:
    """What was found: the winner, measured on facts that the search did not see."""

    winner: Candidate
    final: TrialResult
    preset: str
    tried: int


def calibrate(job: Calibration, state: Path, display: Display) -> Outcome:
    """Calibrate a model, or go on with a calibration in ``state``; its page is written there after every stage.

    Raises:
        UserError: the model is not there or knows too few of the questions, the editor cannot be calibrated, or the
            directory holds the calibration of another model or job.
    """
    if job.editor not in RIDGES:
        raise UserError(f"--editor {job.editor!r} cannot be calibrated; allowed: {', '.join(RIDGES)}")
    directory = resolve_model(job.model)
    kept = Kept(state, job, checkpoint_digest(directory))
    model = load_model(job.model, dtype=job.dtype, digest=kept.digest)
    facts = facts_of(model)
    display.say(f"{counted(len(facts), 'fact')} that the model knows")
    aside = max(4, int(len(facts) * _FINAL_SHARE))
    searched, unseen = facts[aside:], facts[:aside]
    effects = kept.value("effects", lambda: _effects(model, searched[:_TRACED], display))
    windows = windows_from(effects)
    display.say(f"windows of layers: {windows}")
    bench = bench_of(model, job, kept, sorted({layer for window in windows for layer in window}), display)
    search = _Search(job, kept, bench, searched, display)
    ranked = search.run(windows)
    if not ranked or ranked[0].result.score < 0:
        raise UserError(
            f"no settings that were tried could be measured on {job.model!r}; the reasons are in {state / TRIALS}"
        )
    winner = ranked[0].candidate
    final = kept.trial(winner, [f.request.id for f in unseen], lambda: bench.attempt(winner, unseen))
    display.say(f"on {counted(len(unseen), 'fact')} not used before: " + _figures(final))
    preset = preset_text(job, winner, final, ranked, len(facts), directory)
    page = render_calibration(job, effects, ranked, final, preset)
    (state / PAGE).write_text(page, encoding="utf-8")
    return Outcome(winner, final, preset, len(ranked))


# ---------------------------------------------------------------- what is kept


class Kept:
    """The directory of a calibration: what was measured is not measured again."""

    def __init__(self, root: Path, job: Calibration, digest: str) -> None:
        self.root, self.digest = root, digest
        # the budget may grow when it goes on
        self._identity = {
            "format": 1,
            "model": digest,
            "editor": job.editor,
            "dtype": job.dtype,
            "tokens": job.tokens,
            "seed": job.seed,
            "questions": digest_file(questions_path()),
        }
        try:
            root.mkdir(parents=True, exist_ok=True)
            self._values: dict[str, Any] = self._read()
            self._trials = dict(self._read_trials())
        except OSError as error:
            raise UserError(f"--state {str(root)!r} cannot be used: {error.strerror or error}") from error

    def _read(self) -> dict[str, Any]:
        path = self.root / STATE
        if not path.is_file():
            path.write_text(json.dumps({"identity": self._identity}) + "\n", encoding="utf-8")
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept.get("identity") != self._identity:
            raise UserError(
                f"--state {str(self.root)!r} holds the calibration of another model or editor; give another one"
            )
        return dict(kept)

    def _read_trials(self) -> list[tuple[str, TrialResult]]:
        path = self.root / TRIALS
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        if text and not text.endswith("\n"):
            # the line that was being written when the process ended
            text = text[: text.rfind("\n") + 1]
            path.write_text(text, encoding="utf-8")
        lines = text.splitlines()
        trials = []
        for line in lines:
            entry = json.loads(line)
            trials.append((str(entry["key"]), TrialResult.model_validate(entry["result"])))
        return trials

    @property
    def spent(self) -> float:
        """Seconds of all trials so far, those of earlier calls included."""
        return sum(result.seconds for result in self._trials.values())

    def value(self, name: str, make: Any) -> Any:
        """A value of plain data, made once."""
        if name not in self._values:
            self._values[name] = make()
            temporary = self.root / f"{STATE}.tmp"
            temporary.write_text(json.dumps(self._values) + "\n", encoding="utf-8")
            temporary.replace(self.root / STATE)
        return self._values[name]

    def covariance(self, make: Any, layers: Sequence[int]) -> KeyCovariance:
        """The covariance, made once."""
        path = self.root / COVARIANCE
        if path.is_file():
            try:
                kept = KeyCovariance.load(path)
            except DamagedFileError:
                path.unlink()
            else:
                if set(layers) <= set(kept.layers):
                    return kept
        made: KeyCovariance = make()
        temporary = self.root / f"{COVARIANCE}.tmp"
        made.save(temporary)
        temporary.replace(path)
        return made

    @staticmethod
    def _key(candidate: Candidate, facts: Sequence[str]) -> str:
        return digest_json({"candidate": dict(candidate), "facts": list(facts)})

    def knows(self, candidate: Candidate, facts: Sequence[str]) -> bool:
        """Whether a trial has a result."""
        return self._key(candidate, facts) in self._trials

    def trial(self, candidate: Candidate, facts: Sequence[str], attempt: Any) -> TrialResult:
        """The result of a trial, tried once."""
        key = self._key(candidate, facts)
        if key not in self._trials:
            result: TrialResult = attempt()
            with (self.root / TRIALS).open("a", encoding="utf-8") as file:
                entry = {"key": key, "candidate": dict(candidate), "result": result.model_dump(mode="json")}
                file.write(json.dumps(entry) + "\n")
            self._trials[key] = result
        return self._trials[key]


# ---------------------------------------------------------------- the stages


def facts_of(model: EditableModel) -> list[Fact]:
    """The shipped facts that the model knows.

    Raises:
        UserError: they are fewer than are needed.
    """
    facts = known_facts(LanguageEngine(model), read_questions())
    if len(facts) < FEWEST_FACTS:
        raise UserError(
            f"model {model.name!r} knows {len(facts)} of the shipped facts; at least {FEWEST_FACTS} are needed"
        )
    return facts


def _effects(model: EditableModel, facts: Sequence[Fact], display: Display) -> list[float]:
    """Mean indirect effect of each layer at the subject's last token, by causal tracing of facts the model knows."""
    config = TracingConfig(draws=2, window=1, min_drop=0.0, positions="subject_last")
    asked = [fact.traced for fact in facts]
    traced = trace(model, asked, config, lambda done: display.update("tracing", done, len(asked)))
    if "subject_last" not in traced.effects:
        raise UserError(f"tracing found no layer of {model.name!r} that restores an answer; name layers of your own")
    return list(traced.effects["subject_last"].mean)


def bench_of(model: EditableModel, job: Calibration, kept: Kept, layers: Sequence[int], display: Display) -> Bench:
    """A model to try settings on, with a covariance for ``layers`` and held-out text."""

    def sampled() -> KeyCovariance:
        config = SelfGenerationConfig(max_new_tokens=64)
        sums: dict[int, Any] = {}
        tokens = units = 0
        while tokens < job.tokens:
            unit = run_unit(model, unit_of(units, seed=job.seed, sequences=config.sequences_per_unit), layers, config)
            for layer, value in unit.sums.items():
                sums[layer] = value if layer not in sums else sums[layer] + value
            tokens, units = tokens + unit.tokens, units + 1
            display.update("covariance", min(tokens, job.tokens), job.tokens)
            if unit.tokens == 0 and units > 20:
                raise UserError(f"model {job.model!r} says nothing by itself; it cannot be calibrated")
        sampler = default_sampler(int(model.hf.config.vocab_size))
        source = {
            "kind": "calibration",
            "model": kept.digest,
            "seed": job.seed,
            "sampler": sampler,
            **config.identity(),
        }
        return KeyCovariance(sums, tokens, source)

    covariance = kept.covariance(sampled, layers)
    text = (configs_root() / "text" / "heldout.txt").read_text(encoding="utf-8")
    held_out = windows_of(model.text, paragraphs_of(text), window=128, max_tokens=_HELD_OUT_TOKENS)
    contexts = sample_contexts(model, count=1, length=10, seed=job.seed)
    return Bench(model, covariance, contexts, held_out, editor=job.editor)


class _Search:
    """Successive halving over the space, then steps from the winner, within the time."""

    def __init__(self, job: Calibration, kept: Kept, bench: Bench, facts: Sequence[Fact], display: Display) -> None:
        self._job, self._kept, self._bench, self._facts, self._display = job, kept, bench, facts, display
        self._rungs = tuple(sorted({min(edits, len(facts)) for edits in _RUNGS}))
        self._begun = time.monotonic()
        self._before = kept.spent
        self._count = 0

    def run(self, windows: Sequence[Sequence[int]]) -> list[Ranked]:
        """Every candidate that was tried, the best first."""
        space = space_for(self._job.editor, windows)
        first = space.points(1)[0]
        self._attempt(first, self._rungs[0])
        per_edit = self._attempt(first, self._rungs[0]).seconds / self._rungs[0]
        whole = 60.0 * self._job.minutes
        count = max(affordable((1 - _REFINING) * whole, per_edit, self._rungs), len(windows))
        points = space.points(min(count, 81), self._job.seed)
        self._display.say(
            f"{counted(len(points), 'setting')} on {counted(self._rungs[0], 'fact')} "
            f"({per_edit:.1f} s an edit), then fewer on more"
        )
        ranked = halve(points, self._rungs, self._attempt, stop=self._over)
        return self._refined(space, ranked)

    def _refined(self, space: Any, ranked: list[Ranked]) -> list[Ranked]:
        """Steps from the best while one is better and there is time."""
        results = list(ranked)
        better = True
        while better and results and self._left(1.0) > 0:
            better = False
            best = results[0]
            known = [one.candidate for one in results if one.edits >= best.edits]
            for point in space.neighbors(best.candidate):
                if point in known or self._left(1.0) <= 0:
                    continue
                results = [one for one in results if one.candidate != point]
                results.append(Ranked(point, best.edits, self._attempt(point, best.edits)))
            results.sort(key=lambda one: (-one.edits, -one.result.score))
            better = results[0].candidate != best.candidate
        return results

    def _over(self, candidate: Candidate, edits: int) -> bool:
        """Whether the time for halving is over; what was measured before costs none."""
        known = self._kept.knows(candidate, [f.request.id for f in self._facts[:edits]])
        return not known and self._left(1 - _REFINING) <= 0

    def _left(self, share: float) -> float:
        """Seconds left of that share of the whole time; earlier calls count with what their trials took."""
        return 60.0 * self._job.minutes * share - self._before - (time.monotonic() - self._begun)

    def _attempt(self, candidate: Candidate, edits: int) -> TrialResult:
        facts = self._facts[:edits]
        result = self._kept.trial(
            candidate, [f.request.id for f in facts], lambda: self._bench.attempt(candidate, facts)
        )
        self._count += 1
        used = 60.0 * self._job.minutes - self._left(1.0)
        self._display.update(
            "trials (seconds)", round(used), round(60.0 * self._job.minutes), f"{self._count}: {_figures(result)}"
        )
        return result


# ---------------------------------------------------------------- the preset


def preset_text(
    job: Calibration, winner: Candidate, final: TrialResult, ranked: Sequence[Ranked], known: int, directory: Path
) -> str:
    """The preset as YAML: what it holds can be laid over any run's configuration, and says what was measured."""
    section = settings_of(winner)
    ridge = RIDGES[job.editor][0]
    own = {job.editor: {ridge: section.pop(ridge)}}
    section["values"].setdefault("kl_factor", 0.0625)
    plain: dict[str, Any] = {
        "model": {"name": job.model, "dtype": job.dtype},
        "editor": section,
        "editors": own,
        "basis": "measured",
        "measured": {
            "editor": job.editor,
            "edits": final.edits,
            **{name.replace(" ", "_"): round(value, 3) for name, value in mean_of(final).items()},
        },
    }
    body = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110)
    matches = yaml.safe_dump(
        {"matches": fingerprint(directory).model_dump(mode="json")}, sort_keys=False, default_flow_style=None, width=110
    )
    best = ranked[0]
    return (
        f"# {job.model}, by `errata calibrate --editor {job.editor} --minutes {job.minutes:g}`:\n"
        f"# {counted(len(ranked), 'setting')} tried on facts that it knows ({known}).\n"
        f"# layers: causal tracing, confirmed by editing. "
        f"values, {ridge}: best of those tried on {counted(best.edits, 'fact')}.\n"
        f"# on {counted(final.edits, 'fact')} that were not used: {_figures(final)}.\n{body}"
        f"# what the model is recognized by, whatever its folder is called\n{matches}"
    )


def _figures(result: TrialResult) -> str:
    if result.problem is not None:
        return result.problem
    return ", ".join(f"{name} {value:.2f}" for name, value in mean_of(result).items())


def plain_of(ranked: Sequence[Ranked]) -> list[Mapping[str, Any]]:
    """Trials as plain data, for tests and tables."""
    return [{"edits": one.edits, "score": one.result.score, **one.candidate} for one in ranked]
