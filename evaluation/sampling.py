"""Sampled continuations, each from a random stream of its own, so that no other row changes what it says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from errata.editing.closed import Closed
from errata.editing.digest import digest_json
from errata.editing.model.decode import extend
from errata.editing.model.engine import LanguageEngine
from errata.editing.model.kv import SlotKV


class SamplingConfig(Closed):
    """How a continuation is drawn."""

    temperature: float = Field(1.0, ge=0)
    """0: the likeliest token, whatever else is set."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus: the fewest likeliest tokens whose probabilities reach this sum."""
    top_k: int = Field(0, ge=0)
    """At most this many of the likeliest tokens; 0 for all."""
    max_new_tokens: int = Field(100, ge=1)


@dataclass(frozen=True)
class Sample:
    """A continuation: its text up to the stop, its tokens, and what the model thought of them."""

    text: str
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Log-probability of each token by the model itself, without temperature or truncation."""


def seed_of(*parts: object) -> int:
    """A seed from anything that JSON can write: equal parts, equal seed."""
    return int(digest_json(list(parts))[:15], 16)


class SamplingEngine(LanguageEngine):
    """A `LanguageEngine` that also samples. Equal prompts are prefilled once."""

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        config: SamplingConfig,
        *,
        seeds: Sequence[int],
        until: Sequence[str] = (),
    ) -> list[Sample]:
        """One continuation of each prompt, to an end-of-text token, a stop string or the limit.

        Args:
            prompts: token ids; the same prompt may stand there several times.
            seeds: one for each; what a row says depends on its prompt and its seed, not on the other rows
                (beyond the rounding of a batched pass).
            until: the text ends before the first of these.

        Raises:
            ValueError: a prompt without tokens, or not one seed for each.
        """
        if len(seeds) != len(prompts):
            raise ValueError(f"one seed per prompt: got {len(prompts)} prompts, {len(seeds)} seeds")
        rows = [tuple(prompt) for prompt in prompts]
        if any(not row for row in rows):
            raise ValueError("a prompt has no tokens; it must have at least one")
        samples: list[Sample] = [Sample("", (), ())] * len(rows)
        width = max((len(row) for row in rows), default=0) + config.max_new_tokens + 1
        positions = self.model.capacity.positions
        if positions is not None and width - 1 > positions:
            raise ValueError(
                f"a prompt of {width - 1 - config.max_new_tokens} tokens and max_new_tokens {config.max_new_tokens}: "
                f"the model has {positions} positions"
            )
        for chunk in self._of_like_prompts(rows, self._most_rows(width)):
            own = list(dict.fromkeys(rows[i] for i in chunk))
            cache, last, own = self._prefill(own, config.max_new_tokens + 1)
            place = {prompt: at for at, prompt in enumerate(own)}
            origin = torch.tensor([place[rows[i]] for i in chunk], device=last.device)
            stream = _Decoding(self, config, [seeds[i] for i in chunk], until)
            for i, sample in zip(chunk, stream.run(cache.copy_of_rows(origin), last[origin]), strict=True):
                samples[i] = sample
        return samples

    def _of_like_prompts(self, rows: Sequence[tuple[int, ...]], most: int) -> Iterator[list[int]]:
        """Indices in batches; equal prompts side by side, prompts of like length together."""
        order = sorted(range(len(rows)), key=lambda i: (-len(rows[i]), rows[i], i))
        chunk: list[int] = []
        distinct: set[tuple[int, ...]] = set()
        for index in order:
            row = rows[index]
            wider = (len(distinct | {row})) * len(rows[chunk[0]] if chunk else row) > self.batch_tokens
            if chunk and (len(chunk) == most or wider):
                yield chunk
                chunk, distinct = [], set()
            chunk.append(index)
            distinct.add(row)
        if chunk:
            yield chunk


class _Decoding:
    """One batch on its way."""

    def __init__(
        self, engine: SamplingEngine, config: SamplingConfig, seeds: Sequence[int], until: Sequence[str]
    ) -> None:
        self.engine, self.config = engine, config
        self.until = [stop for stop in until if stop]
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.ids: list[list[int]] = [[] for _ in seeds]
        self.logprobs: list[list[float]] = [[] for _ in seeds]
        self.window = 2 + max((len(stop.encode()) for stop in self.until), default=0)
        """Tokens at the end in which a stop string that has just been completed lies: at least a byte each."""

    def run(self, cache: SlotKV, states: Tensor) -> list[Sample]:
        model = self.engine.model
        alive = list(range(len(self.ids)))
        for step in range(self.config.max_new_tokens):
            logits = model.logits(states).float()
            picked = self._pick(logits, alive)
            known = logits.gather(1, picked[:, None]).squeeze(1) - logits.logsumexp(dim=1)
            going = []
            for place, (row, token, value) in enumerate(zip(alive, picked.tolist(), known.tolist(), strict=True)):
                if token in model.text.eos_ids:
                    continue
                self.ids[row].append(token)
                self.logprobs[row].append(value)
                if not self._stopped(row):
                    going.append(place)
            if not going or step == self.config.max_new_tokens - 1:
                break
            if len(going) < len(alive):
                cache.keep_rows(torch.tensor(going, device=cache.write_at.device))
                alive = [alive[i] for i in going]
            states = extend(model, cache, torch.tensor([[self.ids[row][-1]] for row in alive], device=states.device))
            states = states[:, -1]
            cache.write_at = cache.write_at + 1
        return [self._finish(ids, values) for ids, values in zip(self.ids, self.logprobs, strict=True)]

    def _pick(self, logits: Tensor, alive: Sequence[int]) -> Tensor:
        """The next token of each row, (B,) from logits (B, V), by inverting the distribution function."""
        if self.config.temperature == 0:
            return logits.argmax(dim=-1)
        uniform = torch.tensor(
            [torch.rand((), generator=self.generators[row], dtype=torch.float64).item() for row in alive],
            dtype=torch.float64,
            device=logits.device,
        )
        probabilities, order = (
            (logits.double() / self.config.temperature).softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
        )
        before = probabilities.cumsum(dim=-1) - probabilities
        kept = probabilities.masked_fill(before >= self.config.top_p, 0.0)
        if self.config.top_k:
            kept[:, self.config.top_k :] = 0.0
        reached = kept.cumsum(dim=-1)
        place = torch.searchsorted(reached, (uniform * reached[:, -1])[:, None], right=True)
        place = torch.minimum(place, (kept > 0).sum(dim=-1, keepdim=True) - 1)
        return order.gather(1, place).squeeze(1)

    def _stopped(self, row: int) -> bool:
        if not self.until:
            return False
        tail = self.engine.model.text.decode(self.ids[row][-self.window :])
        return any(stop in tail for stop in self.until)

    def _finish(self, ids: list[int], logprobs: list[float]) -> Sample:
        text = self.engine.model.text.decode(ids)
        ends = [at for stop in self.until if (at := text.find(stop)) >= 0]
        return Sample(text[: min(ends)] if ends else text, tuple(ids), tuple(logprobs))
