"""Mixtures: recomposed covariances against the weighted mean, and what does not fit together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from errata.editing.covariance import KeyCovariance, SampleRecord
from errata.editing.errors import UserError
from errata.editing.estimation.mixture import MixtureConfig, compose


def part(seed: int, tokens: int, width: int = 6, layers: tuple[int, ...] = (1, 3)) -> KeyCovariance:
    rng = np.random.default_rng(seed)
    sums = {}
    for layer in layers:
        keys = rng.standard_normal((tokens, width)) * (1 + seed)
        sums[layer] = torch.tensor(keys.T @ keys)
    return KeyCovariance(sums, tokens, {"kind": "corpus", "seed": seed}, SampleRecord(((1.0, 2),)))


def test_a_mixture_is_the_weighted_mean_whatever_the_token_counts() -> None:
    parts = {"web": part(0, 40), "code": part(1, 700), "math": part(2, 90)}
    weights = {"web": 0.9, "code": 0.08, "math": 0.02}
    mixed = compose(parts, weights)
    assert mixed.tokens == 830
    for layer in (1, 3):
        want = sum(weights[name] * parts[name].sums[layer].numpy() / parts[name].tokens for name in parts)
        np.testing.assert_allclose(mixed.mean(layer).numpy(), want, rtol=1e-12)
    assert mixed.source["parts"] == {name: parts[name].digest for name in parts}


def test_weights_are_divided_by_their_sum() -> None:
    parts = {"a": part(0, 40), "b": part(1, 50)}
    for factor in (1.003, 7.0):
        scaled = compose(parts, {"a": 0.75 * factor, "b": 0.25 * factor})
        torch.testing.assert_close(scaled.mean(1), compose(parts, {"a": 3, "b": 1}).mean(1), rtol=1e-13, atol=0)


def test_one_component_is_itself_and_order_does_not_matter() -> None:
    only = part(0, 40)
    torch.testing.assert_close(compose({"a": only}, {"a": 0.3}).mean(3), only.mean(3), rtol=1e-14, atol=0)
    parts = {"a": part(0, 40), "b": part(1, 50)}
    weights = {"a": 0.4, "b": 0.6}
    turned = compose(dict(reversed(parts.items())), dict(reversed(weights.items())))
    assert turned.digest == compose(parts, weights).digest


@pytest.mark.parametrize(
    ("parts", "weights", "said"),
    [
        ({"a": part(0, 9)}, {"b": 1.0}, r"weights name \['b'\], components \['a'\]"),
        (
            {"a": part(0, 9), "b": part(0, 9)},
            {"a": 1.0, "b": -0.1},
            "weight of 'b' must be a finite number of at least 0",
        ),
        ({"a": part(0, 9)}, {"a": float("nan")}, "must be a finite number"),
        ({"a": part(0, 9)}, {"a": 0.0}, "at least one weight must be above 0"),
        (
            {"a": part(0, 9), "b": part(0, 9, layers=(1,))},
            {"a": 1, "b": 1},
            r"component 'b' covers layers 1 \(6\), 'a' 1",
        ),
        ({"a": part(0, 9), "b": part(0, 9, width=7)}, {"a": 1, "b": 1}, r"covers layers 1 \(7\), 3 \(7\)"),
    ],
)
def test_what_does_not_fit_together_is_named(parts: dict, weights: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        compose(parts, weights)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"weights": {"a": 1}, "components": {"b": {"path": "x"}}}, "they must be the same"),
        ({"weights": {"a": 1}, "components": {"a": {}}}, "give one of path and file"),
        ({"weights": {"a": 1}, "components": {"a": {"path": "x", "file": "y"}}}, "give one of path and file"),
        ({"weights": {"a": -1}, "components": {"a": {"path": "x"}}}, "must be a finite number of at least 0"),
    ],
)
def test_a_bad_mixture_is_refused_when_it_is_read(given: dict, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        MixtureConfig.model_validate(given)


def test_a_component_is_read_as_a_corpus_of_its_own() -> None:
    config = MixtureConfig.model_validate(
        {"weights": {"a": 1}, "components": {"a": {"path": "x.jsonl", "fields": ["question"], "window": 65}}}
    )
    corpus = config.components["a"].corpus()
    assert (corpus.path, corpus.fields, corpus.window) == ("x.jsonl", ("question",), 65)
