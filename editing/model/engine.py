"""Batched inference on a model's current weights: scoring continuations, greedy answers, document likelihood.

Equal prompts are run once; rows of like length share a batch; the prefill of a prompt serves both its
teacher-forced score and its generated answer. Results do not depend on how rows are batched beyond rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editing.model.adapter import EditableModel
from editing.model.decode import extend
from editing.model.kv import SlotKV

_LOGIT_ROWS = 512
"""Positions whose logits are held at once: 512 x 49 152 float32 are 100 MB."""

_KEPT_SHARE = 4
"""Tokens whose keys and values may be kept, as a multiple of those run at once (16 384 of a 135M model: 0.75 GB)."""
_SHARED_TOKENS = 8
"""A common beginning shorter than this is not worth a pass of its own."""


@dataclass(frozen=True)
class Continuation:
    """Teacher-forced scores of a continuation, per token: log-probability, and whether it is the argmax."""

    logprobs: tuple[float, ...]
    hits: tuple[bool, ...]


@dataclass(frozen=True)
class Answer:
    """A greedy continuation: its text up to the stop, and the tokens generated."""

    text: str
    ids: tuple[int, ...]


class LanguageEngine:
    """Scoring and greedy generation for many rows at once."""

    def __init__(self, model: EditableModel, *, batch_tokens: int = 4096) -> None:
        self.model = model
        self.batch_tokens = batch_tokens
        self._newline: dict[int, bool] = {}

    # --- public ---

    def score(self, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Continuation]:
        """Score each (prompt tokens, continuation tokens) row; an empty continuation gets empty scores."""
        return [scored for scored, _ in self._answer(rows, max_new_tokens=0, stop_at_newline=False)]

    def generate(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int = 12, stop_at_newline: bool = True
    ) -> list[Answer]:
        """Greedy continuation of each prompt, to an end-of-text token, a newline (if asked) or the limit."""
        rows: list[tuple[Sequence[int], Sequence[int]]] = [(p, ()) for p in prompts]
        return [a for _, a in self._answer(rows, max_new_tokens=max_new_tokens, stop_at_newline=stop_at_newline)]

    def score_and_generate(
        self,
        rows: Sequence[tuple[Sequence[int], Sequence[int]]],
        *,
        max_new_tokens: int = 12,
        stop_at_newline: bool = True,
    ) -> list[tuple[Continuation, Answer]]:
        """Both of the above with one prefill per distinct prompt."""
        return self._answer(rows, max_new_tokens=max_new_tokens, stop_at_newline=stop_at_newline)

    @torch.no_grad()
    def nll(self, documents: Sequence[Sequence[int]]) -> list[tuple[float, int]]:
        """Per document (sum of -log p over its tokens but the first, number of those tokens); float64 sums."""
        totals: list[tuple[float, int]] = [(0.0, 0)] * len(documents)
        for chunk in self._chunks([len(d) for d in documents], self.batch_tokens):
            rows = self.model.rows([documents[i] for i in chunk])
            hidden = self.model.run(
                self.model.embed(rows), 0, self.model.num_layers, self.model.positional(rows.layout)
            )
            wanted = rows.layout.segments[:, 1:] >= 0
            logprobs = self._token_logprobs(hidden[:, :-1][wanted], rows.ids[:, 1:][wanted])[0].double()
            owner = torch.arange(len(chunk), device=hidden.device)[:, None].expand_as(wanted)[wanted]
            sums = torch.zeros(len(chunk), dtype=torch.float64, device=hidden.device).index_add_(0, owner, -logprobs)
            for i, total in zip(chunk, sums.tolist(), strict=True):
                totals[i] = (total, max(0, len(documents[i]) - 1))
        return totals

    # --- the shared path ---

    @torch.no_grad()
    def _answer(
        self,
        rows: Sequence[tuple[Sequence[int], Sequence[int]]],
        *,
        max_new_tokens: int,
        stop_at_newline: bool,
    ) -> list[tuple[Continuation, Answer]]:
        prompts: list[tuple[int, ...]] = list(dict.fromkeys(tuple(p) for p, _ in rows))
        if any(len(p) == 0 for p in prompts):
            raise ValueError("a prompt has no tokens; it must have at least one")
        users: dict[tuple[int, ...], list[int]] = {p: [] for p in prompts}
        for index, (prompt, _) in enumerate(rows):
            users[tuple(prompt)].append(index)
        scores: list[Continuation] = [Continuation((), ())] * len(rows)
        answers: list[Answer] = [Answer("", ())] * len(rows)
        shared = len(_common_prefix(prompts)) if len(prompts) > 1 else 0
        longest = max((len(continuation) for _, continuation in rows), default=0)
        room = max(max_new_tokens, longest) + 1
        # what is run decides how much is run at once, what is kept how many rows
        width = max((len(p) for p in prompts), default=0) + room
        for chunk in self._chunks([len(p) - shared for p in prompts], self.batch_tokens, self._most_rows(width)):
            chosen = [prompts[i] for i in chunk]
            cache, last = self._prefill(chosen, room)
            pairs = [(row, user) for row, p in enumerate(chosen) for user in users[p] if len(rows[user][1])]
            lengths = [len(rows[user][1]) for _, user in pairs]
            for part in self._chunks(lengths, self.batch_tokens, self._most_rows(cache.capacity)):
                self._score_part([pairs[i] for i in part], rows, cache, last, scores)
            if max_new_tokens:
                for row, answer in enumerate(self._decode(cache, last, max_new_tokens, stop_at_newline)):
                    for user in users[chosen[row]]:
                        answers[user] = answer
        return list(zip(scores, answers, strict=True))

    def _prefill(self, prompts: Sequence[tuple[int, ...]], room: int) -> tuple[SlotKV, Tensor]:
        """Run prompts into a fresh cache with ``room`` places behind them; returns it and the last states (B, d).

        What all prompts of a batch begin with (worked examples, a template) is run once and copied.
        """
        lengths = [len(prompt) for prompt in prompts]
        shared = _common_prefix(prompts)
        rows = len(prompts)
        if rows == 1 or len(shared) < _SHARED_TOKENS:
            shared = ()
        cache = SlotKV(1 if shared else rows, max(lengths) + room)
        cache.write_at = torch.zeros(cache.rows, dtype=torch.long, device=self.model.device)
        if shared:
            extend(self.model, cache, torch.tensor([shared], device=self.model.device))
            cache.keep_rows(torch.zeros(rows, dtype=torch.long, device=self.model.device))
            cache.write_at = torch.full_like(cache.write_at, len(shared))
        batch = self.model.rows([prompt[len(shared) :] for prompt in prompts])
        hidden = extend(self.model, cache, batch.ids)
        cache.write_at = cache.write_at + batch.lengths
        return cache, hidden[torch.arange(rows, device=hidden.device), batch.lengths - 1]

    def _score_part(
        self,
        pairs: Sequence[tuple[int, int]],
        rows: Sequence[tuple[Sequence[int], Sequence[int]]],
        prefix: SlotKV,
        last: Tensor,
        scores: list[Continuation],
    ) -> None:
        continuations = [list(rows[user][1]) for _, user in pairs]
        origin = torch.tensor([row for row, _ in pairs], device=last.device)
        width = max(len(c) for c in continuations)
        states = last[origin][:, None]
        if width > 1:
            cache = prefix.copy_of_rows(origin)
            batch = self.model.rows([c[:-1] or [0] for c in continuations])
            states = torch.cat([states, extend(self.model, cache, batch.ids)], dim=1)
        targets = torch.zeros(len(pairs), width, dtype=torch.long)
        wanted = torch.zeros(len(pairs), width, dtype=torch.bool)
        for row, tokens in enumerate(continuations):
            targets[row, : len(tokens)] = torch.tensor(tokens)
            wanted[row, : len(tokens)] = True
        wanted = wanted.to(last.device)
        logprobs, hits = self._token_logprobs(states[wanted], targets.to(last.device)[wanted])
        flat_p, flat_h, at = logprobs.tolist(), hits.tolist(), 0
        for (_, user), tokens in zip(pairs, continuations, strict=True):
            span = slice(at, at + len(tokens))
            scores[user] = Continuation(tuple(flat_p[span]), tuple(flat_h[span]))
            at += len(tokens)

    def _decode(self, cache: SlotKV, last: Tensor, limit: int, stop_at_newline: bool) -> list[Answer]:
        produced: list[list[int]] = [[] for _ in range(cache.rows)]
        alive = list(range(cache.rows))
        states = last
        for step in range(limit):
            tokens = self.model.logits(states).argmax(dim=-1).tolist()
            going: list[int] = []
            for place, (row, token) in enumerate(zip(alive, tokens, strict=True)):
                if token in self.model.text.eos_ids:
                    continue
                produced[row].append(token)
                if not (stop_at_newline and self._is_newline(token)):
                    going.append(place)
            if not going or step == limit - 1:
                break
            if len(going) < len(alive):
                cache.keep_rows(torch.tensor(going, device=cache.write_at.device))
                alive = [alive[i] for i in going]
            ids = torch.tensor([[produced[row][-1]] for row in alive], device=last.device)
            states = extend(self.model, cache, ids)[:, -1]
            cache.write_at = cache.write_at + 1
        return [self._finish(ids, stop_at_newline) for ids in produced]

    def _finish(self, ids: list[int], stop_at_newline: bool) -> Answer:
        text = self.model.text.decode(ids)
        return Answer(text.split("\n", 1)[0] if stop_at_newline else text, tuple(ids))

    def _is_newline(self, token: int) -> bool:
        if token not in self._newline:
            self._newline[token] = "\n" in self.model.text.decode([token])
        return self._newline[token]

    def _token_logprobs(self, states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logprobs, hits = [], []
        for at in range(0, states.shape[0], _LOGIT_ROWS):
            logits = self.model.logits(states[at : at + _LOGIT_ROWS]).float()
            wanted = targets[at : at + _LOGIT_ROWS]
            picked = logits.gather(1, wanted[:, None]).squeeze(1)
            logprobs.append(picked - logits.logsumexp(dim=1))
            hits.append(logits.argmax(dim=1) == wanted)
        if not logprobs:
            return states.new_zeros(0), torch.zeros(0, dtype=torch.bool, device=states.device)
        return torch.cat(logprobs), torch.cat(hits)

    def _most_rows(self, capacity: int) -> int:
        """How many rows of a cache with ``capacity`` places each may be held at once."""
        return max(1, _KEPT_SHARE * self.batch_tokens // max(1, capacity))

    @staticmethod
    def _chunks(lengths: Sequence[int], budget: int, rows: int | None = None) -> Iterator[list[int]]:
        """Indices in batches of like length: at most ``rows``, padded to at most ``budget`` tokens, at least one."""
        order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
        chunk: list[int] = []
        for index in order:
            if chunk and ((len(chunk) + 1) * max(1, lengths[chunk[0]]) > budget or len(chunk) == rows):
                yield chunk
                chunk = []
            chunk.append(index)
        if chunk:
            yield chunk


def _common_prefix(prompts: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """What all prompts begin with; at least the last token of each is left out, as its state is wanted."""
    low, high = min(prompts), max(prompts)
    limit = min(len(p) for p in prompts) - 1
    for at in range(limit):
        if low[at] != high[at]:
            return low[:at]
    return low[: max(0, limit)]
