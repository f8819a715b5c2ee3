"""A version with a module in a layer, as evaluators see it: shown, put to every arm, and taken out again."""

from __future__ import annotations

import torch

from errata.actors.workers.model import VersionedModel
from errata.editing.modules.packed import EMPTY
from errata.evaluation.arms import ArmEvaluator, base_weights_digest
from errata.orchestrator.history.rebuild import weights_digest
from tests.unit.editing.editors.common import batch, session_of
from tests.unit.editing.editors.test_grace import SETTINGS, UNRELATED, fact, logits


def test_arms_with_a_module_and_without_it() -> None:
    session = session_of("grace", **SETTINGS)
    request = fact("a", "two").model_copy(update={"paraphrases": (UNRELATED[0],)})
    session.apply(batch(1, request))
    (slot,) = session.editor.layers
    edited, base = session.weights(), {slot: EMPTY}
    session.model.set_weights(base)
    model = session.model
    before = [logits(model, text) for text in (request.text, *UNRELATED)]
    found = ArmEvaluator(model, max_new_tokens=2).evaluate([request], base=base, edited=edited, arms=("base", "edited"))
    figures = found.metrics()
    assert figures["edited"]["efficacy"] == 1.0 and figures["base"]["efficacy"] == 0.0
    assert figures["edited"]["reliability"] == 1.0
    own, other = found.records[0].probes
    assert other.arms["edited"].answer == other.arms["base"].answer and own.arms["edited"].ok
    assert all(torch.equal(a, logits(model, t)) for a, t in zip(before, (request.text, *UNRELATED), strict=True))
    assert base_weights_digest(model, base) != base_weights_digest(model, edited), "answers are kept by the digest"
    assert weights_digest(base) != weights_digest(edited)


def test_an_evaluators_model_shows_one_version_after_the_other() -> None:
    session = session_of("grace", **SETTINGS)
    request = fact("a", "two")
    versioned = VersionedModel(session_of("grace", **SETTINGS).model)
    plain = logits(versioned.model, request.text)
    session.apply(batch(1, request))
    first = session.weights()
    session.apply(batch(2, fact("b", "ten")))
    seen = []
    for name, weights in (("v1", first), ("v2", session.weights())):
        versioned.show(name, weights)
        seen.append(logits(versioned.model, request.text))
    versioned.show_base()
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], plain)
    assert torch.equal(logits(versioned.model, request.text), plain)
