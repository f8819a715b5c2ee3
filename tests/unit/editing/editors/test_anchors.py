"""Norm anchors: target values have the norm of the original model's states, whatever the weights have become."""

from __future__ import annotations

import pytest
import torch

from errata.editing.errors import UserError
from errata.editing.keys import SubjectPass
from errata.editing.request import EditRequest
from tests.unit.editing.editors.common import CONTEXTS, batch, session_of


@pytest.mark.parametrize("name", ["memit", "alphaedit", "emmet", "pmet", "prune", "rose"])
def test_every_batch_has_targets_of_the_original_norm(name: str, requests: list[EditRequest]) -> None:
    session = session_of(name, norm_anchors=True)
    last = session.editor.layers[-1]
    original, _ = SubjectPass(session.model, requests, CONTEXTS).states(last)
    norms = original.norm(dim=0)
    for number, request in enumerate(requests[:3], 1):
        receipt = session.apply(batch(number, request))
        assert receipt.targets is not None
        torch.testing.assert_close(receipt.targets.norm(dim=1), norms[[number - 1]], rtol=1e-5, atol=0)
    free = session_of(name).apply(batch(1, requests[0]))
    assert free.targets is not None
    assert abs(float(free.targets.norm()) - float(norms[0])) > 1e-3, "without anchors values have norms of their own"


def test_a_session_that_goes_on_after_a_revival_has_the_same_anchors(requests: list[EditRequest]) -> None:
    first, other = session_of("memit", norm_anchors=True), session_of("memit", norm_anchors=True)
    receipts = [first.apply(batch(1, *requests[:2]))]
    other.replay(receipts[0])
    one, two = first.apply(batch(2, requests[2])), other.apply(batch(2, requests[2]))
    assert one.targets is not None and two.targets is not None and torch.equal(one.targets, two.targets)


def test_a_rotation_has_nothing_to_anchor() -> None:
    with pytest.raises(UserError, match=r"editor\.norm_anchors: mose turns the weights"):
        session_of("mose", norm_anchors=True)
