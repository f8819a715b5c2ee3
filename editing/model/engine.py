"""Batched inference on a model's current weights: scoring continuations, greedy answers, document likelihood.

Equal prompts are run once; rows of like length share a batch; the prefill of a prompt serves both its
teacher-forced score and its generated answer. Results do not depend on how rows are batched beyond rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

from errata.editing.model.adapter import EditableModel
from errata.editing.model.decode import extend
from errata.editing.model.kv import SlotKV
from errata.editing.modules.reading import CHOSEN, owners_table

_LOGIT_ROWS = 512
"""Positions whose logits are held at once: 512 x 49 152 float32 are 100 MB."""

_KEPT_SHARE = 4
"""Tokens whose keys and values may be kept, as a multiple of those run at once (16 384 of a 135M model: 0.75 GB)."""
_SHARED_TOKENS = 8
"""A common beginning shorter than this is not worth a pass of its own."""
_PASS_TOKENS = 32
"""What a pass costs whatever it runs, in tokens: a CPU reads 0.5 GB of weights in the time of some thirty of a 135M
model. Rows are padded to no more than they save in passes."""
_PASS_TOKENS_ACCELERATOR = 1024
"""The same where arithmetic is cheap beside reading weights and starting kernels."""


@dataclass(frozen=True)
class Continuation:
    """Teacher-forced scores of a continuation, per token: log-probability, whether it is the argmax, and the argmax."""

    logprobs: tuple[float, ...]
    hits: tuple[bool, ...]
    argmax: tuple[int, ...] = ()


@dataclass(frozen=True)
class Answer:
    """A greedy continuation: its text up to the stop, and the tokens generated."""

    text: str
    ids: tuple[int, ...]


class Chosen(tuple[int, ...]):
    """A prompt's tokens, to be answered with the pieces of some edits (`errata.editing.modules.pieces`)."""

    owners: tuple[int, ...]

    def __new__(cls, tokens: Sequence[int], owners: Sequence[int]) -> Chosen:
        """``owners`` name the edits."""
        made = super().__new__(cls, tokens)
        made.owners = tuple(owners)
        return made

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Chosen) and self.owners == other.owners and tuple.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((tuple.__hash__(self), self.owners))


def with_pieces(tokens: Sequence[int], owners: Sequence[int]) -> Sequence[int]:
    """A prompt that is answered with the pieces of these edits; the prompt as it is where there are none."""
    return Chosen(tokens, owners) if owners else tokens


class LanguageEngine:
    """Scoring and greedy generation for many rows at once."""

    def __init__(self, model: EditableModel, *, batch_tokens: int = 4096) -> None:
        self.model = model
        self.batch_tokens = batch_tokens
        self.before_pass: Callable[[], None] | None = None
        """Called before each pass through the model; what it raises ends the call, and leaves nothing half-done."""
        self._newline: dict[int, bool] = {}
        self._spare = _PASS_TOKENS if model.device.type == "cpu" else _PASS_TOKENS_ACCELERATOR

    # --- public ---

    def score(self, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Continuation]:
        """Score each (prompt tokens, continuation tokens) row; an empty continuation gets empty scores.

        Raises:
            UserError: the model cannot take a row in: it is longer than its positions, or holds an unknown token.
        """
        return [scored for scored, _ in self._answer(rows, max_new_tokens=0, stop_at_newline=False)]

    def generate(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int = 12, stop_at_newline: bool = True
    ) -> list[Answer]:
        """Greedy continuation of each prompt, to an end-of-text token, a newline (if asked), the limit, or the model's
        last position.

        Raises:
            UserError: the model cannot take a prompt in.
        """
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
            self._look_up()
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

    @torch.no_grad()
    def prefill(self, prompts: Sequence[tuple[int, ...]], room: int) -> tuple[SlotKV, Tensor, list[tuple[int, ...]]]:
        """Run distinct prompts into a fresh cache with ``room`` places behind them, as answering them begins.

        Returns:
            The cache, the last states (B, d), and the prompts in the order of their rows.
        """
        return self._prefill(prompts, room)

    def _look_up(self) -> None:
        if self.before_pass is not None:
            self.before_pass()

    # --- the shared path ---

    @torch.no_grad()
    def _answer(
        self,
        rows: Sequence[tuple[Sequence[int], Sequence[int]]],
        *,
        max_new_tokens: int,
        stop_at_newline: bool,
    ) -> list[tuple[Continuation, Answer]]:
        keys = [as_prompt(p) for p, _ in rows]
        prompts: list[tuple[int, ...]] = list(dict.fromkeys(keys))
        if any(len(p) == 0 for p in prompts):
            raise ValueError("a prompt has no tokens; it must have at least one")
        # the last token of a continuation is not run
        self.model.require_fits([*prompts, *([*p, *c[:-1]] for p, c in rows if len(c) > 1)])
        users: dict[tuple[int, ...], list[int]] = {p: [] for p in prompts}
        for index, prompt in enumerate(keys):
            users[prompt].append(index)
        scores: list[Continuation] = [Continuation((), ())] * len(rows)
        answers: list[Answer] = [Answer("", ())] * len(rows)
        longest = max((len(continuation) for _, continuation in rows), default=0)
        room = max(max_new_tokens, longest) + 1
        # what is kept decides how many rows are answered together, what is run how many of them a pass has
        order = sorted(prompts, key=lambda prompt: (-_size_class(len(prompt)), prompt))
        at = 0
        while at < len(order):
            longest = max(len(prompt) for prompt in order[at : at + _LOGIT_ROWS])
            chosen = order[at : at + min(_LOGIT_ROWS, self._most_rows(longest + room))]
            at += len(chosen)
            cache, last, chosen = self._prefill(chosen, room)
            pairs = [(row, user) for row, p in enumerate(chosen) for user in users[p] if len(rows[user][1])]
            pairs.sort(key=lambda pair: -len(rows[pair[1]][1]))
            # the last token of a continuation is not run
            lengths = [len(rows[user][1]) - 1 for _, user in pairs]
            for start, stop in self._passes(lengths, self._most_rows(cache.capacity)):
                self._score_part(pairs[start:stop], rows, cache, last, scores)
            if max_new_tokens:
                for row, answer in enumerate(self._decode(cache, last, max_new_tokens, stop_at_newline)):
                    for user in users[chosen[row]]:
                        answers[user] = answer
        return list(zip(scores, answers, strict=True))

    def _prefill(self, prompts: Sequence[tuple[int, ...]], room: int) -> tuple[SlotKV, Tensor, list[tuple[int, ...]]]:
        """Run distinct prompts into a fresh cache with ``room`` places behind them.

        What all begin with (worked examples, a template) is run once and copied, then what some of them go on with (a
        statement that several questions are about), then the rest; each in passes over rows of like length.

        Returns:
            The cache, the last states (B, d), and the prompts in the order of their rows.
        """
        apart = self.model.modules.whole_prompts or any(isinstance(prompt, Chosen) for prompt in prompts)
        stem = len(_common_prefix(prompts)) if len(prompts) > 1 and not apart else 0
        stem = stem if stem >= _SHARED_TOKENS else 0
        alone = [_Branch(0, tuple(range(len(prompts))))]
        branches = alone if apart else _branches(prompts, stem, least=2 * self._spare)
        rows = [(place, branch.length, prompts[i]) for place, branch in enumerate(branches) for i in branch.members]
        rows.sort(key=lambda row: row[1] - len(row[2]))
        rest = [len(prompt) - begun for _, begun, prompt in rows]
        # a row that begins late is padded to the longest of its pass, which may lie beyond the longest prompt
        padded = max(max(row[1] for row in rows[i:j]) + rest[i] for i, j in self._passes(rest))
        cache = SlotKV(1, max(max(len(prompt) for prompt in prompts) + room, padded))
        cache.write_at = torch.zeros(1, dtype=torch.long, device=self.model.device)
        if stem:
            self._grow(cache, [prompts[0][:stem]])
        if branches[0].length > stem:
            pieces = [prompts[branch.members[0]][stem : branch.length] for branch in branches]
            cache.keep_rows(torch.zeros(len(branches), dtype=torch.long, device=cache.write_at.device))
            self._grow(cache, pieces)
        parents = torch.tensor([place for place, _, _ in rows], device=cache.write_at.device)
        cache.keep_rows(parents)
        owners = owners_table([prompt.owners if isinstance(prompt, Chosen) else () for _, _, prompt in rows])
        if owners is not None:
            cache.hold(CHOSEN, owners.to(cache.write_at.device))
        last = self._grow(cache, [prompt[begun:] for _, begun, prompt in rows], ending=True)
        cache.length = int(cache.write_at.max())
        return cache, last, [prompt for _, _, prompt in rows]

    def _grow(self, cache: SlotKV, pieces: Sequence[Sequence[int]], *, ending: bool = False) -> Tensor:
        """Go on with each row of the cache by its piece, longest first; last states (B, d).

        A row with an empty piece stays as it is and has no state. ``ending``: the prompts end with these pieces.
        """
        lengths = [len(piece) for piece in pieces if piece]
        last = []
        for start, stop in self._passes(lengths):
            self._look_up()
            batch = self.model.rows(pieces[start:stop])
            places = torch.arange(batch.ids.shape[1], device=batch.ids.device)
            ends = (places == batch.lengths[:, None] - 1) if ending else None
            hidden = extend(self.model, cache.part(start, stop), batch.ids, ends)
            last.append(hidden[torch.arange(stop - start, device=hidden.device), batch.lengths - 1])
        cache.write_at = cache.write_at + torch.tensor([len(piece) for piece in pieces], device=cache.write_at.device)
        return torch.cat(last)

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
            self._look_up()
            cache = prefix.copy_of_rows(origin, int(prefix.write_at[origin].max()) + width - 1)
            batch = self.model.rows([c[:-1] or [0] for c in continuations])
            states = torch.cat([states, extend(self.model, cache, batch.ids)], dim=1)
        targets = torch.zeros(len(pairs), width, dtype=torch.long)
        wanted = torch.zeros(len(pairs), width, dtype=torch.bool)
        for row, tokens in enumerate(continuations):
            targets[row, : len(tokens)] = torch.tensor(tokens)
            wanted[row, : len(tokens)] = True
        wanted = wanted.to(last.device)
        targets = targets.to(last.device)[wanted]
        logprobs, argmax = self._token_logprobs(states[wanted], targets)
        flat_p, flat_h, flat_a, at = logprobs.tolist(), (argmax == targets).tolist(), argmax.tolist(), 0
        for (_, user), tokens in zip(pairs, continuations, strict=True):
            span = slice(at, at + len(tokens))
            scores[user] = Continuation(tuple(flat_p[span]), tuple(flat_h[span]), tuple(flat_a[span]))
            at += len(tokens)

    def _decode(self, cache: SlotKV, last: Tensor, limit: int, stop_at_newline: bool) -> list[Answer]:
        produced: list[list[int]] = [[] for _ in range(cache.rows)]
        alive = list(range(cache.rows))
        begun, positions = cache.write_at.tolist(), self.model.capacity.positions
        states = last
        for step in range(limit):
            self._look_up()
            tokens = self.model.logits(states).argmax(dim=-1).tolist()
            going: list[int] = []
            for place, (row, token) in enumerate(zip(alive, tokens, strict=True)):
                if token in self.model.text.eos_ids:
                    continue
                produced[row].append(token)
                full = positions is not None and begun[row] + len(produced[row]) > positions
                if not full and not (stop_at_newline and self._is_newline(token)):
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
        """Of each state the log-probability of its target, and the likeliest token."""
        logprobs, argmax = [], []
        for at in range(0, states.shape[0], _LOGIT_ROWS):
            logits = self.model.logits(states[at : at + _LOGIT_ROWS]).float()
            wanted = targets[at : at + _LOGIT_ROWS]
            picked = logits.gather(1, wanted[:, None]).squeeze(1)
            logprobs.append(picked - logits.logsumexp(dim=1))
            argmax.append(logits.argmax(dim=1))
        if not logprobs:
            return states.new_zeros(0), torch.zeros(0, dtype=torch.long, device=states.device)
        return torch.cat(logprobs), torch.cat(argmax)

    def _most_rows(self, capacity: int) -> int:
        """How many rows of a cache with ``capacity`` places each may be held at once."""
        return max(1, _KEPT_SHARE * self.batch_tokens // max(1, capacity))

    def _passes(self, lengths: Sequence[int], most_rows: int | None = None) -> list[tuple[int, int]]:
        """Rows of falling length as spans [start, stop): passes that cost the least together.

        A pass costs its rows, padded to the longest, and what any pass costs. It holds at most ``most_rows``, and at
        most ``batch_tokens`` unless that is a single row.
        """
        spans: list[tuple[int, int]] = []
        for start, stop in _spans_of_like_length(lengths, self._spare):
            fits = max(1, self.batch_tokens // max(1, lengths[start]))
            step = fits if most_rows is None else min(fits, most_rows)
            spans += [(at, min(at + step, stop)) for at in range(start, stop, step)]
        return spans

    @staticmethod
    def _chunks(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
        """Indices in batches of like length, padded to at most ``budget`` tokens, at least one index in each."""
        order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
        chunk: list[int] = []
        for index in order:
            if chunk and (len(chunk) + 1) * max(1, lengths[chunk[0]]) > budget:
                yield chunk
                chunk = []
            chunk.append(index)
        if chunk:
            yield chunk


def _spans_of_like_length(lengths: Sequence[int], spare: int) -> list[tuple[int, int]]:
    """Spans [start, stop) of rows of falling length with the least sum of padded tokens and ``spare`` a span."""
    # only where the length falls may a span begin; cost[i] is the least for the rows before border i
    borders = [i for i, length in enumerate(lengths) if i == 0 or length != lengths[i - 1]] + [len(lengths)]
    cost, since = [0], [0]
    for j in range(1, len(borders)):
        costs = [cost[i] + spare + (borders[j] - borders[i]) * lengths[borders[i]] for i in range(j)]
        cost.append(min(costs))
        since.append(costs.index(cost[j]))
    spans, j = [], len(borders) - 1
    while j > 0:
        spans.append((borders[since[j]], borders[j]))
        j = since[j]
    return spans[::-1]


@dataclass(frozen=True)
class _Branch:
    """Prompts that go on alike: what they have in common from the beginning, in tokens, and their numbers."""

    length: int
    members: tuple[int, ...]


def _branches(prompts: Sequence[tuple[int, ...]], stem: int, *, least: int) -> list[_Branch]:
    """Distinct prompts by what they share beyond the first ``stem`` tokens, longest beginning first.

    One branch of all of them where sharing would save fewer than ``least`` tokens.
    """
    order = sorted(range(len(prompts)), key=lambda i: prompts[i])
    groups: list[tuple[int, list[int]]] = []
    for i in order:
        if groups:
            length, members = groups[-1]
            common = len(_common_prefix([prompts[members[0]], prompts[i]]))
            joined, count = min(common, length) if len(members) > 1 else common, len(members)
            if joined - stem >= _SHARED_TOKENS and count * (joined - stem) >= (count - 1) * (length - stem):
                groups[-1] = (joined, [*members, i])
                continue
        groups.append((stem, [i]))
    shared = [group for group in groups if len(group[1]) > 1]
    if sum((length - stem) * (len(members) - 1) for length, members in shared) < least:
        return [_Branch(stem, tuple(range(len(prompts))))]
    branches = [_Branch(length, tuple(members)) for length, members in shared]
    alone = tuple(i for _, members in groups if len(members) == 1 for i in members)
    branches.sort(key=lambda branch: -branch.length)
    return [*branches, _Branch(stem, alone)] if alone else branches


def as_prompt(tokens: Sequence[int]) -> tuple[int, ...]:
    """A prompt's tokens as a tuple, with the pieces that were chosen for it."""
    return tokens if isinstance(tokens, Chosen) else tuple(tokens)


def _size_class(length: int) -> int:
    """Lengths of one class differ by a quarter at most."""
    return int(log(length) / log(1.25))


def _common_prefix(prompts: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """What all prompts begin with; at least the last token of each is left out, as its state is wanted."""
    low, high = min(prompts), max(prompts)
    limit = min(len(p) for p in prompts) - 1
    for at in range(limit):
        if low[at] != high[at]:
            return low[:at]
    return low[: max(0, limit)]
