"""Behind a norm: what the maps are to put out is found together, and the write reaches it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch

from errata.editing.covariance import KeyCovariance
from errata.editing.delta import apply_delta
from errata.editing.editors import REGISTRY, make_editor
from errata.editing.model.adapter import EditableModel
from errata.editing.request import EditBatch, EditRequest
from errata.editing.session import EditSession
from errata.editing.values import ValueConfig, Variant, optimize_values
from errata.editing.verify import VerifyConfig
from tests.helpers.trained import covariance_of, edits, trained_model
from tests.unit.helpers import plain

Tiny = Callable[[str], EditableModel]
LAYERS = (0, 1)


def outputs_of(model: EditableModel, request: EditRequest) -> tuple[list[int], int, list[torch.Tensor]]:
    ids, at = plain.subject_position(model, "", request.prompt, request.subject)
    return ids, at, [plain.read(model, plain.edited_map(model, layer), ids)[at] for layer in LAYERS]


@pytest.mark.parametrize("family", plain.POST_NORM)
@pytest.mark.parametrize("units", ["absolute", "relative"])
def test_the_loss_is_that_of_the_library_with_the_outputs_in_place(
    tiny: Tiny, requests: list[EditRequest], family: str, units: Any
) -> None:
    model, request = tiny(family), requests[0]
    config = ValueConfig(lr=0.05, steps=5, clamp=None, weight_decay=0.0, kl_factor=0.0, units=units)
    (value,) = optimize_values(model, [request], layer=1, contexts=("",), config=config, variant=Variant(layers=LAYERS))
    assert value.state.shape == (2, 32)
    ids, at, before = outputs_of(model, request)
    torch.testing.assert_close(value.h, torch.cat(before), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(value.state.flatten(), value.h + value.delta)
    target = model.text.encode_target(request.target_new)
    with ExitStack() as stack:
        for layer, wanted in zip(LAYERS, value.state, strict=True):

            def put(_: Any, __: Any, out: torch.Tensor, wanted: torch.Tensor = wanted) -> torch.Tensor:
                out = out.clone()
                out[0, at] = wanted
                return out

            handle = plain.edited_map(model, layer).register_forward_hook(put)
            stack.callback(handle.remove)
        logits = plain.logits(model, ids + target[:-1])
    logp = logits.log_softmax(dim=1)[-len(target) :].gather(1, torch.tensor(target)[:, None])
    assert value.loss == pytest.approx(float(-logp.mean()), rel=1e-4)


@pytest.mark.parametrize("family", plain.POST_NORM)
def test_the_write_equals_a_float64_oracle_layer_by_layer(
    tiny: Tiny, requests: list[EditRequest], family: str, spread_covariance: Callable[..., KeyCovariance]
) -> None:
    model = tiny(family)
    covariance = spread_covariance(model, LAYERS)
    editor: Any = make_editor(REGISTRY["memit"][0](layers=LAYERS, cov_weight=2.0))
    generator = torch.Generator().manual_seed(1)
    targets = torch.randn(len(requests), 2, 32, generator=generator)
    changes, _ = editor.write(model, requests, targets, editor.new_state(model, covariance), ("",))
    with model.patched(LAYERS):
        for place, layer in enumerate(LAYERS):
            K, now = [], []
            for request in requests:
                ids, at = plain.subject_position(model, "", request.prompt, request.subject)
                K.append(plain.read(model, plain.edited_map(model, layer), ids, "in")[at].double().numpy())
                now.append(plain.read(model, plain.edited_map(model, layer), ids)[at].double().numpy())
            k, residual = np.stack(K, 1), targets[:, place].double().numpy().T - np.stack(now, 1)
            A = 2.0 * covariance.mean(layer).numpy()
            want = residual @ k.T @ np.linalg.inv(A + k @ k.T)
            change = changes[layer]
            got = (change.left.double() @ change.right.double()).numpy()
            assert np.linalg.norm(got - want) <= 1e-4 * np.linalg.norm(want)
            model.set_weight(layer, apply_delta(model.weight(layer), change))


@pytest.mark.parametrize("family", plain.POST_NORM)
def test_another_order_of_rounding_gives_the_same_change(
    tiny: Tiny, requests: list[EditRequest], family: str, spread_covariance: Callable[..., KeyCovariance]
) -> None:
    """The edits in another order: other batches, other sums, the same weights to 1e-5."""
    model = tiny(family)
    covariance = spread_covariance(model, LAYERS)
    config = REGISTRY["memit"][0](layers=LAYERS, cov_weight=0.1, values=ValueConfig(lr=0.1, steps=6))
    editor: Any = make_editor(config)
    state = editor.new_state(model, covariance)
    values = editor.find_values(model, requests, ("", "You. "), None)
    targets = torch.stack([value.state for value in values])
    order = [3, 0, 4, 2, 1]
    one, _ = editor.write(model, requests, targets, state, ("", "You. "))
    other, _ = editor.write(model, [requests[i] for i in order], targets[order], state, ("", "You. "))
    for layer in LAYERS:
        a, b = (change[layer].left.double() @ change[layer].right.double() for change in (one, other))
        assert float((a - b).norm()) <= 1e-5 * float(a.norm())


@pytest.mark.slow
@pytest.mark.parametrize("family", ["olmo2", "gemma2"])
@pytest.mark.parametrize("name", ["memit", "alphaedit", "emmet", "pmet", "memit_merge"])
def test_a_trained_model_is_brought_where_it_should_go(family: str, name: str) -> None:
    layers = (0, 1, 2, 3, 4)
    settings = {"alphaedit": {"tau": 10.0, "l2": 0.01}, "emmet": {}}.get(name, {"cov_weight": 0.01})
    values = {"lr": 0.15, "steps": 25, "clamp": 2.0, "units": "relative"}
    model = trained_model(family)
    editor = make_editor(REGISTRY[name][0](layers=layers, values=values, **settings))
    session = EditSession(model, editor, covariance_of(model, layers), ("",), VerifyConfig(corrections=0))
    results = session.apply(EditBatch(sequence=1, requests=tuple(edits(8)))).results
    reached = [r.figures["reached"] for r in results if r.figures]
    cosines = [r.figures["cosine"] for r in results if r.figures]
    assert np.median(reached) >= 0.9 and np.median(cosines) >= 0.95
