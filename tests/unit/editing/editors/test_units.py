"""Relative settings: a model whose keys are scaled stores the same share with the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from errata.editing.covariance import KeyCovariance
from errata.editing.editors import REGISTRY, make_editor
from tests.helpers.tiny import tiny_model


def share(name: str, scale: float, **settings: Any) -> float:
    """What of a residual is stored on keys of another scale, for one key."""
    model = tiny_model(layers=2)
    generator = torch.Generator().manual_seed(0)
    keys = scale * torch.randn(300, 48, generator=generator, dtype=torch.float64)
    covariance = KeyCovariance({0: keys.T @ keys}, 300, {"kind": "random"})
    editor: Any = make_editor(REGISTRY[name][0](layers=(0,), **settings))
    key = scale * torch.randn(48, 1, generator=generator, dtype=torch.float64)
    return float(editor.right_factor(0, key, editor.new_state(model, covariance)) @ key)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("memit", {"cov_weight": 0.5}),
        ("alphaedit", {"tau": 1.2, "l2": 0.5}),
        ("emmet", {"damping": 0.5, "ridge": 0.1}),
    ],
)
def test_relative_settings_do_not_depend_on_the_size_of_keys(name: str, settings: dict[str, Any]) -> None:
    small, large = (share(name, scale, units="relative", **settings) for scale in (0.2, 5.0))
    assert small == pytest.approx(large, rel=1e-6) and 0.2 < small < 0.95


def test_the_papers_ridge_does() -> None:
    small, large = (share("alphaedit", scale, tau=100.0, l2=10.0) for scale in (0.2, 5.0))
    assert small < 0.3 < 0.95 < large
