"""Edits that are retrieved: computed from the base, kept as pieces, and heard only where they were chosen."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from errata.editing.editors import make_editor
from errata.editing.editors.modules.store import owners_of
from errata.editing.model.engine import Chosen, LanguageEngine, with_pieces
from errata.editing.modules.packed import unpack
from errata.editing.modules.pieces import by_choice
from errata.editing.request import EditRequest
from errata.editing.reverting import RevertOrder, revert
from errata.editing.session import EditSession
from errata.editing.verify import VerifyConfig
from tests.helpers.tiny import tiny_model
from tests.unit.editing.editors.common import CONTEXTS, batch, config_of, covariance_of, session_of
from tests.unit.editing.editors.test_grace import UNRELATED, fact

METHODS = ("alphaedit", "emmet", "memit", "pmet", "rome")
VALUES = {"lr": 0.5, "steps": 25, "clamp": 20.0, "weight_decay": 0.0}
STRONG: dict[str, dict[str, Any]] = {
    "alphaedit": {"l2": 1e-3},
    "memit": {"cov_weight": 1e-3},
    "pmet": {"cov_weight": 1e-3, "layers": (1,)},
}
EDITS = [
    fact("a", "two"),
    fact("b", "ten", subject="Alice Munro", prompt="The sport that {} plays is"),
    fact("c", "nine", subject="Angola", prompt="People in {} speak"),
]


def session(name: str, family: str = "llama", **changes: Any) -> EditSession:
    settings = {"values": VALUES, "regime": "retrieved"} | STRONG.get(name, {}) | changes
    return session_of(name, family=family, **settings)


def rows_of(session: EditSession, requests: list[EditRequest], *, chosen: bool = True) -> list[Any]:
    text, pick = session.model.text, session.editor.pieces_for
    return [
        (with_pieces(text.encode_prompt(r.text), pick(r) if chosen else ()), text.encode_target(r.target_new))
        for r in requests
    ]


def answers(session: EditSession, requests: list[EditRequest], *, chosen: bool = True) -> list[Any]:
    return LanguageEngine(session.model).score_and_generate(
        rows_of(session, requests, chosen=chosen), max_new_tokens=4, stop_at_newline=False
    )


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
def test_a_chosen_edit_speaks_and_all_else_is_the_base_to_the_bit(name: str, family: str) -> None:
    live = session(name, family)
    base = tiny_model(family, layers=3)
    live.apply(batch(1, *EDITS))
    plain = LanguageEngine(base).score_and_generate(
        rows_of(live, EDITS, chosen=False), max_new_tokens=4, stop_at_newline=False
    )
    assert answers(live, EDITS, chosen=False) == plain, "nothing is chosen"
    unrelated = [fact("x", "one", prompt=f"{{}} {text}") for text in UNRELATED]
    mixed = answers(live, EDITS + unrelated[:1])
    before = [sum(scored.logprobs) for scored, _ in plain]
    after = [sum(scored.logprobs) for scored, _ in mixed]
    assert all(a != b for a, b in zip(before, after[:3], strict=True)), "each of them speaks"
    text = base.text
    strangers = [(Chosen(text.encode_prompt(u.text), [17]), text.encode_target("one")) for u in unrelated]
    asked = LanguageEngine(live.model).score(strangers)
    alone = [LanguageEngine(base).score([(tuple(prompt), target)])[0] for prompt, target in strangers]
    assert [s.argmax for s in asked] == [s.argmax for s in alone], "an edit that is not there says nothing"
    for layer in live.editor.method.layers:  # type: ignore[attr-defined] # a retrieved editor has one
        assert torch.equal(live.model.weight(layer), base.weight(layer)), "weights stay as they are"


@pytest.mark.parametrize("name", METHODS)
def test_in_a_batch_is_alone_and_others_change_nothing(name: str) -> None:
    """Pieces of one edit never enter another's keys, whatever was written before it and beside it."""
    together, apart, behind = session(name), session(name), session(name)
    together.apply(batch(1, *EDITS))
    for number, request in enumerate(EDITS):
        apart.apply(batch(number + 1, request))
    behind.apply(batch(1, *(fact(f"other {n}", "five", subject=f"Name {n}") for n in range(20))))
    behind.apply(batch(2, *EDITS))
    for slot in together.editor.layers:
        one, other, third = (unpack(s.model.weight(slot)).tensors for s in (together, apart, behind))
        assert torch.equal(one["owners"], other["owners"]) and torch.equal(one["owners"], third["owners"][20:])
        for table in ("left", "right"):
            scale = float(one[table].abs().max())
            torch.testing.assert_close(one[table], other[table], rtol=0, atol=2e-3 * scale)
            assert torch.equal(one[table], third[table][20:])
    assert answers(together, EDITS) == answers(behind, EDITS), "the same bits beside twenty more"


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
def test_a_piece_is_what_the_method_would_have_added(name: str, family: str) -> None:
    live = session(name, family)
    settings = {"values": VALUES} | STRONG.get(name, {})
    plain = session_of(name, family=family, **settings)
    live.apply(batch(1, EDITS[0]))
    plain.apply(batch(1, EDITS[0]))
    for slot, layer in zip(live.editor.layers, plain.editor.layers, strict=True):
        piece = unpack(live.model.weight(slot)).tensors
        added = plain.model.weight(layer) - plain.base[layer]
        scale = float(added.abs().max())
        torch.testing.assert_close(piece["left"].T @ piece["right"], added, rtol=0, atol=1e-3 * scale)
    (own,), (accumulated,) = answers(live, EDITS[:1]), answers(plain, EDITS[:1], chosen=False)
    assert own[1] == accumulated[1]
    assert own[0].logprobs == pytest.approx(accumulated[0].logprobs, abs=1e-3)


def test_several_facts_may_be_chosen_for_one_question() -> None:
    live = session("memit")
    live.apply(batch(1, *EDITS))
    text = live.model.text
    both = Chosen(text.encode_prompt(EDITS[0].text), owners_of(["a", "b"]).tolist())
    one = Chosen(text.encode_prompt(EDITS[0].text), owners_of(["a"]).tolist())
    target = text.encode_target("two")
    engine = LanguageEngine(live.model)
    joint = engine.score([(both, target), (one, target), (tuple(one), target)])
    assert len({scored.logprobs for scored in joint}) == 3, "three questions, though their words are equal"
    assert joint[1].logprobs == pytest.approx(engine.score([(one, target)])[0].logprobs, abs=1e-5)


def test_superseded_and_reverted_edits_drop_their_rows() -> None:
    live, without = session("alphaedit"), session("alphaedit")
    live.apply(batch(1, *EDITS))
    receipt = live.apply(batch(2, fact("d", "five")))
    assert receipt.superseded == ("a",)
    slot = live.editor.layers[0]
    assert unpack(live.model.weight(slot)).tensors["owners"].tolist() == owners_of(["b", "c", "d"]).tolist()
    order = RevertOrder(3, ("b",), frozenset({"b"}), {}, 1, {r.id: r for r in EDITS})
    revert(live, order, [])
    without.apply(batch(1, EDITS[2]))
    without.apply(batch(2, fact("d", "five")))
    for number in live.editor.layers:
        kept, fresh = (unpack(s.model.weight(number)).tensors for s in (live, without))
        assert kept["owners"].tolist() == fresh["owners"].tolist() == owners_of(["c", "d"]).tolist()
        torch.testing.assert_close(kept["right"], fresh["right"], rtol=1e-3, atol=1e-5)


def test_a_replay_has_the_same_bytes() -> None:
    live, again = session("memit"), session("memit")
    receipts = [live.apply(batch(1, *EDITS[:2])), live.apply(batch(2, EDITS[2]))]
    for receipt in receipts:
        again.replay(receipt)
    assert all(torch.equal(live.model.weight(n), again.model.weight(n)) for n in live.editor.layers)
    assert by_choice(again.weights()) and not by_choice(again.base)


def test_the_closed_loop_asks_each_edit_with_its_own_piece() -> None:
    model = tiny_model("llama", layers=3)
    config = config_of("memit", regime="retrieved", values={**VALUES, "steps": 3}, cov_weight=5.0)
    live = EditSession(model, make_editor(config), covariance_of(model), CONTEXTS, VerifyConfig(corrections=3))
    receipt = live.apply(batch(1, *EDITS))
    assert [o.landed for o in live.ask(EDITS)] == [r.outcome == "landed" for r in receipt.results]
    for result, outcome in zip(receipt.results, live.ask(EDITS), strict=True):
        assert result.figures is not None
        assert result.figures["p_target"] == pytest.approx(outcome.p_target, rel=1e-3)
    assert receipt.moved == 0.0
    owners = unpack(model.weight(live.editor.layers[0])).tensors["owners"]
    assert len(owners) >= 3 and set(owners.tolist()) == set(owners_of(["a", "b", "c"]).tolist())


def test_methods_that_write_otherwise_refuse_by_name() -> None:
    for name in ("rose", "mose", "rect", "prune", "memit_merge"):
        with pytest.raises(ValueError, match=f"'{name}' does not write each edit as a piece"):
            config_of(name, regime="retrieved")
