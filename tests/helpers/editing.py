"""Fixtures of tests about editing: tiny models made once, and requests about things the tiny tokenizer has seen."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch

from errata.editing.covariance import KeyCovariance
from errata.editing.model.adapter import EditableModel
from errata.editing.request import EditRequest
from tests.helpers.tiny import tiny_model


@cache
def _made(model_type: str) -> tuple[EditableModel, dict[str, torch.Tensor]]:
    model = tiny_model(model_type, layers=3)
    return model, {name: value.clone() for name, value in model.hf.state_dict().items()}


@pytest.fixture
def tiny() -> Callable[[str], EditableModel]:
    """A tiny model of a family with its first weights; made once, so use ``tiny_model`` to change what is no weight."""

    def get(model_type: str) -> EditableModel:
        model, weights = _made(model_type)
        model.hf.load_state_dict(weights)
        model._masters.clear()
        return model

    return get


@pytest.fixture
def llama(tiny: Callable[[str], EditableModel]) -> EditableModel:
    """The tiny model where the family does not matter."""
    return tiny("llama")


@pytest.fixture
def requests() -> list[EditRequest]:
    """Subjects at the start, in the middle and before punctuation; targets of one and of several tokens."""
    return [
        EditRequest(
            subject="Danielle Darrieux", prompt="The mother tongue of {} is", target_new="English", target_true="nine"
        ),
        EditRequest(subject="Rome", prompt="{} lies in", target_new="Canada and more", target_true="nine"),
        EditRequest(subject="Angola", prompt="Where is {}? The answer is", target_new="football", target_true="nine"),
        EditRequest(subject="São Tomé", prompt="What is {}'s question", target_new="yes", target_true="nine"),
        EditRequest(
            subject="Alice Munro", prompt="I think that {} works as a", target_new="subject", target_true="nine"
        ),
    ]


@pytest.fixture
def spread_covariance() -> Callable[..., KeyCovariance]:
    """A well-conditioned random covariance for the given layers of a model."""

    def make(model: EditableModel, layers: tuple[int, ...], *, seed: int = 0, tokens: int = 400) -> KeyCovariance:
        generator = torch.Generator().manual_seed(seed)
        sums = {}
        for layer in layers:
            width = model.weight(layer).shape[1]
            keys = torch.randn(tokens, width, generator=generator, dtype=torch.float64)
            sums[layer] = keys.T @ keys
        return KeyCovariance(sums, tokens, {"kind": "random", "seed": seed})

    return make
