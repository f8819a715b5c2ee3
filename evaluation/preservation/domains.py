"""Perplexity on held-out text of several domains: where the model's language suffers, and where it does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp
from pathlib import Path
from typing import Any

from errata.editing.digest import digest_json
from errata.editing.errors import UserError
from errata.editing.texts import read_text
from errata.evaluation.perplexity import WINDOW, windows_of
from errata.evaluation.preservation.battery import Item, Outcomes
from errata.evaluation.sampling import SamplingEngine

_PARAGRAPHS = "\n\n"


def read_domains(given: Mapping[str, Path]) -> dict[str, list[str]]:
    """Domain -> its documents: the paragraphs of a plain text file.

    Raises:
        UserError: a file is not there, is not text, or holds none.
    """
    domains = {}
    for name, path in given.items():
        text = read_text(path, f"text of domain {name!r}")
        domains[name] = [part for part in text.split(_PARAGRAPHS) if part.strip()]
        if not domains[name]:
            raise UserError(f"text {str(path)!r} of domain {name!r} holds no text")
    return domains


class PerplexitySuite:
    """One domain as a suite: an item is a document, its value is (sum of -log p, predicted tokens)."""

    def __init__(self, domain: str, documents: Sequence[str], *, window: int = WINDOW) -> None:
        self.name = f"perplexity:{domain}"
        self._documents = list(documents)
        self._window = window
        self.items: list[Item] = [(domain, at) for at in range(len(self._documents))]

    @property
    def fingerprint(self) -> str:
        """Of the documents and the window."""
        return digest_json(["perplexity", 1, self._documents, self._window])

    def run(self, engine: SamplingEngine, items: Sequence[Item], *, seed: int = 0) -> Outcomes:
        """Negative log-likelihood of the items' documents; the seed does not matter."""
        windows: list[list[int]] = []
        owners: list[int] = []
        for place, (_, number) in enumerate(items):
            mine = windows_of(engine.model.text, [self._documents[number]], window=self._window)
            windows += mine
            owners += [place] * len(mine)
        values = [(0.0, 0)] * len(items)
        for place, (nll, tokens) in zip(owners, engine.nll(windows), strict=True):
            values[place] = (values[place][0] + nll, values[place][1] + tokens)
        return {"perplexity": list(values)}

    def is_mean(self, metric: str) -> bool:
        """It is not: tokens weigh alike, documents do not."""
        return False

    def aggregate(self, metric: str, values: Sequence[Any]) -> float:
        """``exp`` of the mean over all predicted tokens."""
        tokens = sum(count for _, count in values)
        if not tokens:
            raise UserError(f"{self.name}: the text has no token to predict")
        return exp(sum(nll for nll, _ in values) / tokens)
