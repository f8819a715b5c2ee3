"""The arms on the same questions: unedited and edited weights, each without and with the external memory, and the
routed one, which takes a question to a statement or leaves it to the unedited model.

Work is shared: each set of weights is loaded once, equal prompts run once, a memory arm that chose nothing
*is* the arm without memory, the routed arm takes a reply from the arm that had the same prompt and weights, and what
the unedited weights said is remembered from one evaluation to the next.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from errata.editing.digest import digest_json, digest_tensors
from errata.editing.model.adapter import EditableModel
from errata.editing.model.engine import Answer, Continuation, LanguageEngine, with_pieces
from errata.editing.modules.pieces import by_choice
from errata.editing.request import EditRequest
from errata.evaluation.caching import CachingEngine
from errata.evaluation.choices import (
    NO_FACT,
    TOO_LONG,
    ChoiceLike,
    Chooser,
    HitLike,
    Pieces,
    RouterLike,
    pieces_of,
)
from errata.evaluation.in_context import InContextLike, ShownLike, told
from errata.evaluation.judge import Case, ContainsJudge, Judge
from errata.evaluation.metrics import (
    all_tokens_correct,
    answer_f1,
    locality_exact,
    locality_match_ratio,
    locality_tf,
    token_accuracy,
)
from errata.evaluation.outcomes import (
    ALL_ARMS,
    ARMS,
    IKE_ARMS,
    MEMORY_ARMS,
    Arm,
    ProbeOutcome,
    ProbeResult,
    RecordResult,
    Retrieved,
    arm_intervals,
    arm_metrics,
    choice_rates,
)
from errata.evaluation.probes import Probe, probes_of
from errata.evaluation.reasoning import ReasoningMarks, answer_part

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of some records."""

    records: tuple[RecordResult, ...]
    arms: tuple[Arm, ...]
    seconds: float

    @property
    def skipped(self) -> int:
        """Probes of these records that were not asked: the model cannot take them in."""
        return sum(record.skipped for record in self.records)

    def metrics(self, query_seconds: Mapping[Arm, float] | None = None) -> dict[Arm, dict[str, float | None]]:
        """`arm_metrics` of every arm."""
        times = query_seconds or {}
        return {arm: arm_metrics(self.records, arm, query_seconds=times.get(arm)) for arm in self.arms}

    def intervals(self) -> dict[Arm, dict[str, tuple[float, float]]]:
        """`arm_intervals` of every arm."""
        return {arm: arm_intervals(self.records, arm) for arm in self.arms}

    def only(self, names: Collection[str]) -> Evaluation:
        """The same of some records."""
        return replace(self, records=tuple(record for record in self.records if record.request_id in names))

    def choices(self) -> dict[Arm, dict[str, float | None]]:
        """`choice_rates` of the memory arms."""
        return {arm: choice_rates(self.records, arm) for arm in self.arms if arm in MEMORY_ARMS}


@dataclass(frozen=True)
class _Reply:
    target: tuple[int, ...]
    """The tokens that were scored. Not the same in every arm: after a template a target begins without a space."""
    continuation: Continuation
    answer: Answer
    choice: ChoiceLike | None = None


Row = tuple[str, ...]
"""A question and what is scored behind it, if anything; where it matters also the request that asks."""


class ArmEvaluator:
    """Puts the probes of many edits to every arm; leaves the model's weights as it found them."""

    def __init__(
        self,
        model: EditableModel,
        chooser: Chooser | None = None,
        *,
        engine: LanguageEngine | None = None,
        judge: Judge | None = None,
        max_new_tokens: int = 12,
        stop_at_newline: bool = True,
        reasoning: ReasoningMarks | None = None,
    ) -> None:
        """Build the `chooser` on the same ``CachingEngine`` as given here, and its scores are remembered too.

        Args:
            model: its edited maps are switched between the weights given to each call.
            chooser: needed for the memory arms only.
            engine: runs this model; a `CachingEngine` of its own by default.
            judge: of generated answers to in-scope questions; containment by default.
            max_new_tokens: end of a generated answer.
            stop_at_newline: whether a newline ends it too.
            reasoning: marks around what a reasoning model writes before its answer; what is judged is what follows.
        """
        self.model = model
        self.chooser = chooser
        self.engine = engine if engine is not None else CachingEngine(model)
        self.judge: Judge = judge if judge is not None else ContainsJudge()
        self.max_new_tokens = max_new_tokens
        self.stop_at_newline = stop_at_newline
        self.reasoning = reasoning

    def evaluate(
        self,
        requests: Sequence[EditRequest],
        *,
        base: Mapping[int, Tensor],
        edited: Mapping[int, Tensor],
        hits: Mapping[str, Sequence[HitLike]] | None = None,
        arms: Sequence[Arm] | None = None,
        base_digest: str | None = None,
        router: RouterLike | None = None,
        in_context: InContextLike | None = None,
    ) -> Evaluation:
        """Ask every probe of every request of every arm.

        Args:
            requests: the edits to measure, already applied in ``edited`` (or not yet: the probes are the
            same).
            base: per layer the unedited map, float32 (O, I).
            edited: per layer the edited map; layers that are absent are unedited.
            hits: per question what the memory found, best first; a question that is absent found nothing.
            arms: which arms; the unedited model always runs, locality is agreement with it. By default all of
            them, the routed one if there is a router.
            base_digest: names the weights of ``base`` in the engine's memory; computed when absent.
            router: decides for the routed arm.
            in_context: what the arms ``ike`` and ``ike_oracle`` are shown.

        Raises:
            ValueError: a memory arm without a chooser, the routed one without a router, those of in-context editing
                without what they show, or an edited layer without its unedited map.
        """
        start = time.perf_counter()
        arms = self.asked(arms, router, in_context)
        asked = [probes_of(request) for request in requests]
        probes = [[probe for probe in group if self._fits(probe)] for group in asked]
        questions = list(dict.fromkeys(probe.prompt for group in probes for probe in group))
        rows = list(dict.fromkeys(row for group in probes for row in _rows(group)))
        by_question = hits or {}
        replies: dict[Arm, dict[Row, _Reply]] = {}
        # the right fact depends on whose question it is
        whose = [(*row, request.id) for request, group in zip(requests, probes, strict=True) for row in _rows(group)]
        retrieves = self.retrieves(edited, router)
        # base first: its plain replies are the yardstick of locality for every arm
        with self.loaded(base, edited=None, digest=base_digest):
            replies["base"] = self._plain(rows)
            if "memory" in arms:
                replies["memory"] = self._with_memory(rows, questions, by_question, replies["base"])
            if router is not None and ("routed" in arms or retrieves):
                routes = dict(zip(questions, router.route(questions), strict=True))
                if "routed" in arms and router.answer == "memory":
                    replies["routed"] = self._routed(rows, routes, replies["base"], replies.get("memory", {}))
            if in_context is not None and "ike" in arms:
                replies["ike"] = self._shown([(row, in_context.retrieved.get(row[0])) for row in rows], replies["base"])
            if in_context is not None and "ike_oracle" in arms:
                right = [(row, in_context.oracle.get((row[2], row[0]))) for row in whose]
                replies["ike_oracle"] = self._shown(right, replies["base"])
        ends_edited = router is not None and "routed" in arms and router.answer != "memory"
        if {"edited", "edited_memory"} & set(arms) or ends_edited:
            # before the first edit the edited model is the unedited one, whose replies are at hand
            same = all(torch.equal(weight, base[layer]) for layer, weight in edited.items() if layer in base)
            pieces = pieces_of(routes) if retrieves else {}
            with self.loaded(base, edited=edited, digest=base_digest, remember=same):
                if {"edited", "edited_memory"} & set(arms):
                    unchosen = replies["base"] if retrieves else {}
                    replies["edited"] = self._plain(rows, pieces, unchosen)
                if "edited_memory" in arms:
                    replies["edited_memory"] = self._with_memory(
                        rows, questions, by_question, replies["edited"], pieces
                    )
                if router is not None and ends_edited:
                    plain = router.answer == "edited"
                    at_hand = replies.get("edited" if plain else "edited_memory", {})
                    replies["routed"] = self._routed(rows, routes, replies["base"], at_hand, plain=plain, pieces=pieces)
        wanted = tuple(arm for arm in ALL_ARMS if arm in arms)
        outcomes: dict[Arm, dict[Probe, ProbeOutcome]] = {
            arm: self._outcomes(probes, replies[arm], replies["base"], by_question)
            for arm in wanted
            if arm != "ike_oracle"
        }
        records = []
        for request, group, whole in zip(requests, probes, asked, strict=True):
            own = outcomes
            if "ike_oracle" in wanted:
                its: dict[Row, _Reply] = {row: replies["ike_oracle"][*row, request.id] for row in _rows(group)}
                own = {**outcomes, "ike_oracle": self._outcomes([group], its, replies["base"], by_question)}
            results = tuple(ProbeResult(probe, {arm: own[arm][probe] for arm in wanted}) for probe in group)
            records.append(RecordResult(request.id, results, skipped=len(whole) - len(group)))
        return Evaluation(tuple(records), wanted, time.perf_counter() - start)

    def retrieves(self, edited: Mapping[int, Tensor], router: RouterLike | None) -> bool:
        """Whether a version's edits are retrieved, so that what it says hangs on what is chosen for a question.

        Raises:
            ValueError: they are, and there is no router.
        """
        if by_choice(edited) and router is None:
            raise ValueError("edits that are retrieved need a router, which chooses them")
        return by_choice(edited)

    def pieces(
        self,
        questions: Sequence[str],
        *,
        base: Mapping[int, Tensor],
        edited: Mapping[int, Tensor],
        router: RouterLike | None,
        digest: str | None = None,
    ) -> Pieces:
        """What each question is answered with where edits are retrieved; nothing where they are not.

        Args:
            digest: names the weights of ``base``, so that what the router asks them is remembered.

        Raises:
            ValueError: edits are retrieved, and there is no router.
        """
        if not self.retrieves(edited, router) or router is None:
            return {}
        with self.loaded(base, edited=None, digest=digest, remember=digest is not None):
            return pieces_of(dict(zip(questions, router.route(questions), strict=True)))

    # --- parts ---

    def _fits(self, probe: Probe) -> bool:
        """Whether the model can take in the question and what is scored after it: an old journal may hold more."""
        text = self.model.text
        teacher = text.encode_target(probe.teacher) if probe.teacher else []
        problem = self.model.capacity.problem(text, [*text.encode_prompt(probe.prompt), *teacher])
        if problem is not None:
            logger.warning("a probe is left out (%s): %.60r", problem, probe.prompt)
        return problem is None

    def asked(
        self, arms: Sequence[Arm] | None, router: RouterLike | None, in_context: InContextLike | None = None
    ) -> Sequence[Arm]:
        """The arms to ask; an arm that lacks what it needs is refused."""
        wanted = arms if arms is not None else [arm for arm in ARMS if arm != "routed" or router is not None]
        if self.chooser is None and MEMORY_ARMS & set(wanted):
            raise ValueError("the arms 'memory', 'edited_memory' and 'routed' need a chooser")
        if router is None and "routed" in wanted:
            raise ValueError("the arm 'routed' needs a router")
        if in_context is None and set(IKE_ARMS) & set(wanted):
            raise ValueError("the arms 'ike' and 'ike_oracle' need what they are to be shown")
        return wanted

    def routed_ids(self, question: str, route: ChoiceLike, plain: bool) -> list[int]:
        """Tokens to answer a question in scope from: with its statement, or `plain`."""
        assert self.chooser is not None
        return self.model.text.encode_prompt(question) if plain else self.chooser.prompt_ids(question, route)

    @contextmanager
    def loaded(
        self,
        base: Mapping[int, Tensor],
        *,
        edited: Mapping[int, Tensor] | None,
        digest: str | None,
        remember: bool = True,
    ) -> Iterator[None]:
        """The weights of one side, live; taken back at the end, also on an error.

        ``remember``: what they say is kept for later, as that of ``base``.
        """
        strangers = sorted(set(edited or ()) - set(base))
        if strangers:
            raise ValueError(f"edited layers {strangers} have no unedited map; given: {sorted(base)}")
        with self.model.patched(sorted(base)):
            self.model.set_weights({**base, **(edited or {})})
            if isinstance(self.engine, CachingEngine):
                key: str | None = None
                if remember:
                    key = digest or base_weights_digest(self.model, base)
                with self.engine.weights(key):
                    yield
            else:
                yield

    def _plain(
        self,
        rows: Sequence[Row],
        pieces: Pieces | None = None,
        known: Mapping[Row, _Reply] | None = None,
    ) -> dict[Row, _Reply]:
        """Replies without the memory; of questions for which no piece was chosen those that are ``known``."""
        text, chosen = self.model.text, pieces or {}
        replies = {row: reply for row, reply in (known or {}).items() if not chosen.get(row[0])}
        run = [row for row in rows if row not in replies]
        tokens = [
            (
                with_pieces(text.encode_prompt(prompt), chosen.get(prompt, ())),
                text.encode_target(teacher) if teacher else [],
            )
            for prompt, teacher in run
        ]
        results = self.engine.score_and_generate(
            tokens, max_new_tokens=self.max_new_tokens, stop_at_newline=self.stop_at_newline
        )
        return replies | {
            row: _Reply(tuple(target), *result) for row, (_, target), result in zip(run, tokens, results, strict=True)
        }

    def _with_memory(
        self,
        rows: Sequence[Row],
        questions: Sequence[str],
        hits: Mapping[str, Sequence[HitLike]],
        plain: Mapping[Row, _Reply],
        pieces: Pieces | None = None,
    ) -> dict[Row, _Reply]:
        assert self.chooser is not None
        choices = dict(
            zip(
                questions,
                self.chooser.choose(questions, [list(hits.get(question, ())) for question in questions]),
                strict=True,
            )
        )
        # nothing chosen: the model answers as without memory, so that reply is taken and nothing runs again
        replies = {row: replace(plain[row], choice=choices[row[0]]) for row in rows}
        informed = [
            (row, self.chooser.prompt_ids(row[0], choices[row[0]])) for row in rows if choices[row[0]].hit is not None
        ]
        for row, reply in self._in_contexts(informed, pieces).items():
            replies[row] = (
                replace(plain[row], choice=TOO_LONG) if reply is None else replace(reply, choice=choices[row[0]])
            )
        return replies

    def _routed(
        self,
        rows: Sequence[Row],
        routes: Mapping[str, ChoiceLike],
        unedited: Mapping[Row, _Reply],
        same_weights: Mapping[Row, _Reply],
        *,
        plain: bool = False,
        pieces: Pieces | None = None,
    ) -> dict[Row, _Reply]:
        """Out of scope: the unedited model's own reply. In scope: the statement's, run where no arm has it already.

        ``same_weights``: replies of an arm with the weights that are live; ``plain``: it and this give no statement.
        """
        replies: dict[Row, _Reply] = {}
        missing = []
        for row in rows:
            route = routes[row[0]]
            other = same_weights.get(row)
            if route.hit is None:
                replies[row] = replace(unedited[row], choice=route)
            elif other is not None and (plain or _same_statement(other.choice, route)):
                replies[row] = replace(other, choice=route)
            else:
                missing.append(row)
        contexts = [(row, self.routed_ids(row[0], routes[row[0]], plain)) for row in missing]
        for row, reply in self._in_contexts(contexts, pieces).items():
            replies[row] = (
                replace(unedited[row], choice=TOO_LONG) if reply is None else replace(reply, choice=routes[row[0]])
            )
        return replies

    def _shown(
        self, shown: Sequence[tuple[Row, ShownLike | None]], unedited: Mapping[Row, _Reply]
    ) -> dict[Row, _Reply]:
        """In-context editing; where there is no fact to tell, the unedited model's own reply."""
        replies = {row: replace(unedited[row[:2]], choice=NO_FACT) for row, one in shown if one is None}
        there = {row: self.shown_ids(one, row[0], row[1]) for row, one in shown if one is not None}
        for row, reply in self._in_contexts([(row, ids) for row, (ids, _) in there.items()]).items():
            base = unedited[row[:2]]
            replies[row] = replace(base, choice=TOO_LONG) if reply is None else replace(reply, choice=there[row][1])
        return replies

    def shown_ids(self, shown: ShownLike, question: str, teacher: str) -> tuple[list[int], ChoiceLike]:
        """Tokens to answer a question from that is shown a fact with demonstrations, and what that rests on."""
        text = self.model.text
        room = max(self.max_new_tokens, len(text.encode_target(teacher)) if teacher else 0)
        return told(shown, question, text, self.model.capacity, room)

    def _in_contexts(
        self, contexts: Sequence[tuple[Row, list[int]]], pieces: Pieces | None = None
    ) -> dict[Row, _Reply | None]:
        """Replies to rows with the tokens before their answers; None where target and context are too long together."""
        replies: dict[Row, _Reply | None] = {}
        run, tokens = [], []
        for row, context in contexts:
            target = self._continuation(context, row[1])
            replies[row] = None
            if self.model.capacity.problem(self.model.text, [*context, *target]) is None:
                run.append(row)
                tokens.append((with_pieces(context, (pieces or {}).get(row[0], ())), target))
        results = self.engine.score_and_generate(
            tokens, max_new_tokens=self.max_new_tokens, stop_at_newline=self.stop_at_newline
        )
        for row, (_, target), result in zip(run, tokens, results, strict=True):
            replies[row] = _Reply(tuple(target), *result)
        return replies

    def _continuation(self, context: Sequence[int], teacher: str) -> list[int]:
        """The target's tokens after a context; no leading space after white space or a special token.

        A chat template ends in a newline or a special token, after which an answer starts without a space.
        """
        if not teacher:
            return []
        text = self.model.text
        tail = text.decode(context[-1:])
        if tail and not tail[-1].isspace():
            return text.encode_target(teacher)
        return text.encode_prompt(teacher.strip())[len(text.bos) :]

    def _outcomes(
        self,
        probes: Sequence[Sequence[Probe]],
        replies: Mapping[Row, _Reply],
        unedited: Mapping[Row, _Reply],
        hits: Mapping[str, Sequence[HitLike]],
    ) -> dict[Probe, ProbeOutcome]:
        distinct = list(dict.fromkeys(probe for group in probes for probe in group))
        rows = {probe: (probe.prompt, probe.teacher or "") for probe in distinct}
        said = {probe: answer_part(replies[rows[probe]].answer.text, self.reasoning) for probe in distinct}
        before = {probe: answer_part(unedited[rows[probe]].answer.text, self.reasoning)[0] for probe in distinct}
        cases = [Case(probe.prompt, said[probe][0], probe.expected) for probe in distinct]
        verdicts = dict(zip(distinct, self.judge.judge(cases), strict=True))
        outcomes: dict[Probe, ProbeOutcome] = {}
        for probe in distinct:
            reply, plain = replies[rows[probe]], unedited[rows[probe]]
            choice = reply.choice
            answer, reasoning = said[probe]
            scored = reply.continuation
            outcomes[probe] = ProbeOutcome(
                answer=answer.strip(),
                ok=verdicts[probe] if probe.in_scope else locality_exact(answer, before[probe]),
                right=verdicts[probe],
                f1=answer_f1(answer, probe.expected),
                accuracy=token_accuracy(scored.hits) if scored.hits else None,
                exact=all_tokens_correct(scored.hits) if scored.hits else None,
                agreement=self._agreement(reply, plain) if scored.hits else None,
                reasoning=reasoning,
                match_ratio=locality_match_ratio(reply.answer.ids, plain.answer.ids),
                chosen=choice.hit.statement if choice is not None and choice.hit is not None else None,
                reason=choice.reason if choice is not None else None,
                retrieved=tuple(
                    Retrieved(hit.id, float(hit.score), hit.statement) for hit in hits.get(probe.prompt, ())
                )
                if choice is not None
                else (),
            )
        return outcomes

    def _agreement(self, reply: _Reply, plain: _Reply) -> float:
        """`locality_tf`; where a target is spelled otherwise, by the tokens' texts without their spaces."""
        own, other = reply.continuation.argmax, plain.continuation.argmax
        if reply.target == plain.target:
            return locality_tf(own, other)
        decode = self.model.text.decode
        return locality_tf(*([decode([token]).strip() for token in tokens] for tokens in (own, other)))


def _rows(probes: Sequence[Probe]) -> list[tuple[str, str]]:
    """A probe's question and what is scored behind it."""
    return [(probe.prompt, probe.teacher or "") for probe in probes]


def _same_statement(one: ChoiceLike | None, other: ChoiceLike) -> bool:
    """Whether two choices put the same words into the prompt."""
    if one is None or one.hit is None or other.hit is None:
        return False
    return one.hit.statement == other.hit.statement


def base_weights_digest(model: EditableModel, base: Mapping[int, Tensor]) -> str:
    """Names a model with these maps: digest of the checkpoint, the dtype and the maps themselves."""
    maps = digest_tensors({str(layer): weight for layer, weight in base.items()})
    return digest_json([model.digest, str(model.dtype), maps])
