"""Selective contextual reasoning: of the statements found, the model picks the one that bears on the question,
or none; with one it answers in its context, with none exactly as without a memory.

The weights are never touched. Whatever they are at the moment, edited or not, the same steps run: retrieve,
choose, answer. Each stage is timed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from pydantic import Field

from errata.editing.closed import Closed
from errata.editing.errors import UserError
from errata.editing.model.capacity import Capacity
from errata.editing.model.engine import Answer, Continuation
from errata.editing.model.text import TextCodec
from errata.editing.scripts import spans_of_words
from errata.retrieval.choosing import (
    Candidate,
    Found,
    Row,
    ScoringEngine,
    explained_share,
    numbered_list,
    read_number,
    subject_of,
)
from errata.retrieval.memory import FactMemory, Hit

# Worked examples make even a model of 135 M parameters name what a text is about; they are about no subject of
# any data set used here. The question follows in the same form.
_ABOUT = (
    "Text: The capital city of France is\nSubject: France\n\n"
    "Text: He sang for years. Freddie Mercury was born in\nSubject: Freddie Mercury\n\n"
    "Text: {question}\nSubject:"
)
_NO_QUESTION = "It is"
_ASK = (
    "Statements:\n{statements}\n\nQuestion: {question}\n\n"
    "Which statement is about the same thing as the question and helps to answer it? "
    "Reply with its number only, or with 'none' if no statement does."
)
_ASK_TOKENS = 8
_NO_ROOM = "the question leaves no room in the model's context for choosing a statement"
_PAPER_ASK = (
    "Facts:\n{statements}\n\nQuestion: {question}\n\n"
    "Return the one fact above that is relevant to the question, as a whole sentence and word for word. "
    "If none of them is relevant, return: no relevant fact."
)
_PAPER_TOKENS = 50
_PAPER_NONE = "no relevant fact"
_PAPER_USE = "Fact: {statement}\nBased on the fact above, answer: {question}"
_FACT = "Fact: {statement}\n{question}"
_USE = "{statement}\n\nUsing the fact above, complete the sentence: {question}"
_REPLY = "{statement}\n\nUsing the fact above, answer in a few words: {question}"
# Against what it firmly believes a small model takes a statement's word only after it has seen that done:
# (statement, beginning of a sentence, its end)
_USED = (
    ("The capital of France is Berlin.", "In France, the seat of government is the city of", "Berlin."),
    ("Freddie Mercury was born in Sweden.", "He sang for years. The birthplace of Freddie Mercury is", "Sweden."),
)


def _words(text: str) -> set[str]:
    return {text[start:stop].casefold() for start, stop in spans_of_words(text)}


class ScrConfig(Closed):
    """How a statement is chosen, and how it is used."""

    k: int = Field(3, ge=1, le=100)
    """Statements considered for a question."""
    min_similarity: float = Field(0.2, ge=-1, le=1)
    """Statements less similar to the question (cosine) are not considered; on 200 CounterFact records all-MiniLM
    loses no right statement at 0.2 and one paraphrase in a hundred at 0.3."""
    chooser: Literal["likelihood", "instruct"] = "likelihood"
    """``likelihood`` asks for probabilities, which any model gives; ``instruct`` asks in words, through the chat
    template, which takes a model that follows instructions."""
    min_gain: float = Field(0.6, le=1, allow_inf_nan=False)
    """``likelihood``: the statement whose subject the question explains best is chosen if the explained share
    reaches this, else none. Tuned on 50 CounterFact records with SmolLM2-135M, docs/memory.md has the rates on
    50 others."""
    style: Literal["auto", "chat", "prefix", "paper"] = "auto"
    """``chat`` gives statement and question through the chat template, ``prefix`` puts ``Fact:`` and the statement
    on a line before the question, ``auto`` is ``chat`` where there is a template and ``prefix`` elsewhere. A
    question for which nothing was chosen is always asked plainly.

    ``paper`` is the method as published: the model is shown the ``k`` statements, whatever their similarity, and told
    to return the whole sentence that bears on the question or ``no relevant fact.``; what it writes is the fact that
    the question is then asked with. Of one statement (``k`` 1) nothing is asked. The other settings are our forms'."""
    examples: bool = True
    """``chat``: two worked examples before the question; without them a small model falls back on what it knew."""


@dataclass(frozen=True)
class Choice:
    """The statement chosen for a question, or None, why, and all that were considered."""

    hit: Found | None
    reason: str
    scores: tuple[Candidate, ...] = ()


class ChoiceLike(Protocol):
    """What a prompt is made from."""

    @property
    def hit(self) -> Found | None: ...


@dataclass(frozen=True)
class ScrSeconds:
    """Wall time of each stage, for all questions of a call together."""

    embed: float
    search: float
    choose: float
    answer: float


@dataclass(frozen=True)
class Told:
    """A fact in the model's own words, for the statement that it comes nearest to."""

    id: int
    score: float
    statement: str
    subject: str = ""
    request_id: str = ""


@dataclass(frozen=True)
class ScrAnswer:
    """An answer with what was retrieved and what was chosen for it."""

    question: str
    answer: Answer
    retrieved: tuple[Hit, ...]
    choice: Choice


@dataclass(frozen=True)
class Retrieval:
    """Statements found per question, best first, and the time it took."""

    hits: tuple[tuple[Hit, ...], ...]
    embed_seconds: float
    search_seconds: float


def retrieve(memory: FactMemory, questions: Sequence[str], k: int) -> Retrieval:
    """Embed the questions and find the ``k`` nearest active statements of each."""
    start = time.perf_counter()
    vectors = memory.embedder.embed(questions)
    embedded = time.perf_counter()
    hits = memory.search_vectors(vectors, k)
    return Retrieval(tuple(tuple(row) for row in hits), embedded - start, time.perf_counter() - embedded)


class SelectiveReasoner:
    """Chooses and answers with whatever weights the engine's model has at the moment of the call."""

    def __init__(
        self,
        engine: ScoringEngine,
        text: TextCodec,
        config: ScrConfig | None = None,
        *,
        capacity: Capacity | None = None,
    ) -> None:
        """``capacity``: of the model; a question that leaves no room for choosing gets no statement.

        Raises:
            UserError: the configuration needs a chat template and the tokenizer has none.
        """
        self.engine, self.text, self.capacity = engine, text, capacity or Capacity(None, None)
        self.config = config or ScrConfig()
        for setting, value in (("chooser", self.config.chooser), ("style", self.config.style)):
            if value in ("instruct", "chat") and not text.has_chat_template:
                other = "likelihood" if setting == "chooser" else "prefix"
                raise UserError(
                    f"scr.{setting}={value!r} needs a chat template, which the model's tokenizer has not; use {other!r}"
                )

    def choose(self, questions: Sequence[str], hits: Sequence[Sequence[Found]]) -> list[Choice]:
        """One choice per question, all questions in one batch; ``hits`` are best first, per question.

        Raises:
            ValueError: not one list of hits per question.
        """
        if len(questions) != len(hits):
            raise ValueError(f"one list of hits per question: got {len(hits)} for {len(questions)}")
        settings = self.config
        if settings.style == "paper":
            return self._as_published(questions, [list(row[: settings.k]) for row in hits])
        near = [[h for h in row[: settings.k] if h.score >= settings.min_similarity] for row in hits]
        asked = [i for i, row in enumerate(near) if row]
        pick = self._by_instruction if settings.chooser == "instruct" else self._by_likelihood
        picked = iter(pick([questions[i] for i in asked], [near[i] for i in asked]))
        return [next(picked) if near[i] else self._nothing_near(hits[i]) for i in range(len(questions))]

    def prompt_ids(self, question: str, choice: ChoiceLike) -> list[int]:
        """Tokens to answer from; with no statement chosen exactly those of the plain question."""
        if choice.hit is None:
            return self.text.encode_prompt(question)
        statement = choice.hit.statement.strip()
        if self.config.style == "paper":
            return self._asked_in_words(_PAPER_USE.format(statement=statement, question=question), question)
        if self.config.style == "chat" or (self.config.style == "auto" and self.text.has_chat_template):
            return self._chat_ids(statement, question)
        return self.text.encode_prompt(_FACT.format(statement=statement, question=question))

    def chat_ids(self, messages: Sequence[Mapping[str, str]], choice: ChoiceLike) -> list[int]:
        """Tokens to answer a conversation from: a statement that was chosen goes into its last message.

        With none chosen they are those of the conversation alone. Without a chat template its turns are lines.
        """
        told = [dict(message) for message in messages]
        statement = choice.hit.statement.strip() if choice.hit is not None else None
        if not self.text.has_chat_template:
            lines = "\n".join(message["content"] for message in told)
            return self.text.encode_prompt(_FACT.format(statement=statement, question=lines) if statement else lines)
        if statement:
            told[-1]["content"] = _REPLY.format(statement=statement, question=told[-1]["content"])
        return self.text.encode_chat(told)

    def _chat_ids(self, statement: str, question: str) -> list[int]:
        messages = []
        for fact, begun, end in _USED if self.config.examples else ():
            messages.append({"role": "user", "content": _USE.format(statement=fact, question=begun)})
            messages.append({"role": "assistant", "content": f"{begun} {end}"})
        asks = question.rstrip().endswith("?")
        content = (_REPLY if asks else _USE).format(statement=statement, question=question)
        prompt = self.text.encode_chat([*messages, {"role": "user", "content": content}])
        # a sentence to complete also begins the reply, so that the answer is its continuation in every arm
        return prompt if asks else prompt + self.text.encode_prompt(question)[len(self.text.bos) :]

    def answer(
        self, memory: FactMemory, questions: Sequence[str], *, max_new_tokens: int = 12
    ) -> tuple[list[ScrAnswer], ScrSeconds]:
        """All steps for a batch of questions."""
        hits = retrieve(memory, questions, self.config.k)
        start = time.perf_counter()
        choices = self.choose(questions, hits.hits)
        chosen = time.perf_counter()
        prompts = [self.prompt_ids(q, c) for q, c in zip(questions, choices, strict=True)]
        answers = self.engine.generate(prompts, max_new_tokens=max_new_tokens)
        seconds = ScrSeconds(hits.embed_seconds, hits.search_seconds, chosen - start, time.perf_counter() - chosen)
        return [ScrAnswer(*row) for row in zip(questions, answers, hits.hits, choices, strict=True)], seconds

    # ---- choosing

    def _nothing_near(self, row: Sequence[Found]) -> Choice:
        considered = tuple(Candidate(h.id, h.score) for h in row[: self.config.k])
        if not considered:
            return Choice(None, "the memory found nothing")
        best = max(c.similarity for c in considered)
        return Choice(None, f"similarity {best:.2f} is below {self.config.min_similarity:.2f}", considered)

    def shares(self, questions: Sequence[str], candidates: Sequence[Sequence[Found]]) -> list[list[float]]:
        """Share of each candidate's subject that its question explains to the model, in one batch; 0 without room."""
        scores = self._subject_scores(questions, candidates)
        return [
            [0.0] * len(row) if pairs is None else [explained_share(*pair) for pair in pairs]
            for row, pairs in zip(candidates, scores, strict=True)
        ]

    def _by_likelihood(self, questions: Sequence[str], near: Sequence[Sequence[Found]]) -> list[Choice]:
        return [
            Choice(None, _NO_ROOM) if pairs is None else self._best(statements, pairs)
            for statements, pairs in zip(near, self._subject_scores(questions, near), strict=True)
        ]

    def _subject_scores(
        self, questions: Sequence[str], near: Sequence[Sequence[Found]]
    ) -> list[list[tuple[Continuation, Continuation]] | None]:
        """Of each candidate its subject's score given the question, and given none; None: no room for the question."""
        rows: list[Row] = []
        fitting: list[bool] = []
        alone = self.text.encode_prompt(_ABOUT.format(question=_NO_QUESTION))
        for question, statements in zip(questions, near, strict=True):
            # one prompt for all candidates of a question, so the engine reads it once
            prompt = self.text.encode_prompt(_ABOUT.format(question=question))
            subjects = [self._subject_ids(subject_of(hit)) for hit in statements]
            longest = max((before + subject for before, subject in subjects), key=len)
            fitting.append(self.capacity.problem(self.text, [*prompt, *longest]) is None)
            if fitting[-1]:
                rows += [(said + before, subject) for before, subject in subjects for said in (prompt, alone)]
        distinct = list(dict.fromkeys((tuple(p), tuple(c)) for p, c in rows))
        scored = dict(zip(distinct, self.engine.score(distinct), strict=True))
        told = [scored[tuple(p), tuple(c)] for p, c in rows]
        pairs = iter(zip(told[::2], told[1::2], strict=True))
        return [
            [next(pairs) for _ in statements] if fits else None for statements, fits in zip(near, fitting, strict=True)
        ]

    def _subject_ids(self, subject: str) -> tuple[list[int], list[int]]:
        """Tokens of a subject behind "Subject:", and before them that of the space where it is one by itself.

        The space tells nothing about the subject, and before a Chinese name it would: no English text leads to it.
        """
        ids = self.text.encode_value(subject)
        first = 1 if len(ids) > 1 and self.text.decode(ids[:1]).isspace() else 0
        return ids[:first], ids[first:]

    def _best(self, statements: Sequence[Found], pairs: Sequence[tuple[Continuation, Continuation]]) -> Choice:
        considered = []
        for hit, (given, alone) in zip(statements, pairs, strict=True):
            mean = sum(given.logprobs) / max(1, len(given.logprobs))
            considered.append(Candidate(hit.id, hit.score, mean, explained_share(given, alone)))
        shares = [candidate.gain or 0.0 for candidate in considered]
        place = shares.index(max(shares))  # of equal shares the first, which is the most similar
        subject = subject_of(statements[place])
        if shares[place] < self.config.min_gain:
            detail = f"the best, about {subject!r}, has relevance {shares[place]:.2f}, below {self.config.min_gain:.2f}"
            return Choice(None, f"no statement is relevant: {detail}", tuple(considered))
        detail = f"the question is about {subject!r} (relevance {shares[place]:.2f})"
        return Choice(statements[place], detail, tuple(considered))

    def _asked_in_words(self, content: str, question: str | None = None) -> list[int]:
        """Tokens of one instruction, through the chat template where there is one; a sentence to complete also begins
        the reply."""
        if not self.text.has_chat_template:
            return self.text.encode_prompt(content if question is not None else content + "\n")
        prompt = self.text.encode_chat([{"role": "user", "content": content}])
        if question is None or question.rstrip().endswith("?"):
            return prompt
        return prompt + self.text.encode_prompt(question)[len(self.text.bos) :]

    def _as_published(self, questions: Sequence[str], found: Sequence[Sequence[Found]]) -> list[Choice]:
        """The fact that the model writes down for each question, or none."""
        several = [i for i, row in enumerate(found) if len(row) > 1]
        prompts = []
        for i in several:
            statements = "\n".join(hit.statement.strip() for hit in found[i])
            prompts.append(self._asked_in_words(_PAPER_ASK.format(statements=statements, question=questions[i])))
        fitting = [self.capacity.problem(self.text, prompt) is None for prompt in prompts]
        asked = [prompt for prompt, fits in zip(prompts, fitting, strict=True) if fits]
        answers = iter(self.engine.generate(asked, max_new_tokens=_PAPER_TOKENS))
        written = {i: next(answers).text if fits else None for i, fits in zip(several, fitting, strict=True)}
        choices = []
        for i, row in enumerate(found):
            considered = tuple(Candidate(hit.id, hit.score) for hit in row)
            if not row:
                choices.append(Choice(None, "the memory found nothing"))
            elif i not in written:
                choices.append(Choice(row[0], "the only statement that was retrieved", considered))
            elif (fact := written[i]) is None:
                choices.append(Choice(None, _NO_ROOM, considered))
            else:
                choices.append(self._told(fact.strip(), row, considered))
        return choices

    @staticmethod
    def _told(fact: str, row: Sequence[Found], considered: tuple[Candidate, ...]) -> Choice:
        if not fact or _PAPER_NONE in fact.casefold():
            return Choice(None, f"the model wrote {fact!r}", considered)
        words = _words(fact)

        def shared(hit: Found) -> float:
            own = _words(hit.statement)
            return len(words & own) / max(1, len(words | own))

        hit = max(row, key=shared)  # of equally near ones the first, which is the most similar to the question
        told = Told(hit.id, hit.score, fact, getattr(hit, "subject", ""), hit.request_id)
        return Choice(told, f"the model wrote {fact!r}", considered)

    def _by_instruction(self, questions: Sequence[str], near: Sequence[Sequence[Found]]) -> list[Choice]:
        prompts = [
            self.text.encode_chat(
                [
                    {
                        "role": "user",
                        "content": _ASK.format(
                            statements=numbered_list([hit.statement for hit in statements]), question=question
                        ),
                    }
                ]
            )
            for question, statements in zip(questions, near, strict=True)
        ]
        fitting = [self.capacity.problem(self.text, prompt) is None for prompt in prompts]
        asked = [prompt for prompt, fits in zip(prompts, fitting, strict=True) if fits]
        answers = iter(self.engine.generate(asked, max_new_tokens=_ASK_TOKENS))
        choices = []
        for near_hits, fits in zip(near, fitting, strict=True):
            if not fits:
                choices.append(Choice(None, _NO_ROOM))
                continue
            answer = next(answers)
            place, reason = read_number(answer.text, len(near_hits))
            considered = tuple(Candidate(hit.id, hit.score) for hit in near_hits)
            choices.append(Choice(None if place is None else near_hits[place], reason, considered))
        return choices
