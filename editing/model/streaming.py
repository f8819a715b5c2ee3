"""One answer token by token: greedy or sampled, with text that is given out as soon as it is certain.

The first token comes of the same prefill, the others of the same steps as `LanguageEngine.generate` with one prompt,
so a greedy stream adds up to that answer token for token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from errata.editing.model.decode import extend
from errata.editing.model.engine import LanguageEngine, as_prompt

_UNFINISHED = "\ufffd"


@dataclass(frozen=True)
class Sampling:
    """How the next token is taken, and what ends an answer.

    Attributes:
        max_new_tokens: limit of an answer.
        temperature: 0 is greedy: the argmax, the first of equal ones.
        top_p: of the sampled tokens only the most probable ones that together reach this share.
        seed: of the sampling; the same seed, weights and prompt give the same answer.
        stop: texts at whose first occurrence the answer ends, themselves left out.
        stop_at_newline: whether a newline does so too.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    stop_at_newline: bool = False


class TokenStream:
    """An answer under way: prompt and tokens so far as keys and values; the weights are whatever is live at each
    step."""

    def __init__(self, engine: LanguageEngine, prompt: Sequence[int], sampling: Sampling) -> None:
        """Runs the prompt, which has at least one token."""
        self._model, self._sampling = engine.model, sampling
        self._cache, self._states, _ = engine.prefill([as_prompt(prompt)], sampling.max_new_tokens + 1)
        self._generator = torch.Generator().manual_seed(sampling.seed)
        self._stops = (*sampling.stop, *(("\n",) if sampling.stop_at_newline else ()))
        self._given = 0
        self.ids: list[int] = []
        self.finish: str | None = None
        """``stop`` or ``length`` once the answer has ended."""

    @torch.no_grad()
    def step(self) -> str:
        """Generate one more token; the text that is certain now and was not given out before, often empty."""
        if self.finish is not None:
            return ""
        if self.ids:
            ids = torch.tensor([[self.ids[-1]]], device=self._states.device)
            self._states = extend(self._model, self._cache, ids)[:, -1]
            self._cache.write_at = self._cache.write_at + 1
        token = self._pick(self._model.logits(self._states)[0])
        if token in self._model.text.eos_ids:
            self.finish = "stop"
            return self._text(whole=True)
        self.ids.append(token)
        if len(self.ids) == self._sampling.max_new_tokens:
            self.finish = "length"
        return self._text(whole=self.finish is not None)

    def _pick(self, logits: Tensor) -> int:
        settings = self._sampling
        if settings.temperature == 0:
            return int(logits.argmax(dim=-1))
        p = torch.softmax(logits.float().cpu() / settings.temperature, dim=-1)
        if settings.top_p < 1:
            ordered, places = p.sort(descending=True, stable=True)
            # the tokens before the one with which the share is reached, and that one
            ordered[ordered.cumsum(0) - ordered >= settings.top_p] = 0
            return int(places[torch.multinomial(ordered, 1, generator=self._generator)])
        return int(torch.multinomial(p, 1, generator=self._generator))

    def _text(self, *, whole: bool) -> str:
        text = self._model.text.decode(self.ids)
        ends = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if ends:
            text, whole, self.finish = text[: min(ends)], True, "stop"
        until = len(text)
        if not whole:
            # what may be the beginning of a stop, or of a character, is not certain yet
            until -= max((_overlap(text, stop) for stop in self._stops), default=0)
            while until > self._given and text[until - 1] == _UNFINISHED:
                until -= 1
        piece = text[self._given : until]
        self._given = max(self._given, until)
        return piece


def _overlap(text: str, stop: str) -> int:
    """Length of the longest beginning of ``stop``, short of all of it, that ``text`` ends in."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
