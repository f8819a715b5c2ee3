"""WISE and the gated key/value layer on tiny models: what they say, and what they leave alone to the bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from errata.editing.digest import digest_tensors
from errata.editing.editors.modules.wise import WiseConfig
from errata.editing.model.engine import LanguageEngine
from errata.editing.modules.packed import Content, unpack
from errata.editing.modules.side import difference
from errata.editing.request import EditRequest
from errata.editing.reverting import RevertOrder, revert
from errata.editing.session import EditSession
from errata.editing.ties import ties
from tests.helpers.tiny import tiny_model
from tests.unit.editing.editors.common import batch, session_of
from tests.unit.editing.editors.test_grace import UNRELATED, fact, logits, says, tables

WISE = {"steps": 30, "lr": 0.05, "save_every": 50, "merge_every": 50, "mask": 0.5, "stop_loss": 0.0}
GATED = {"values": {"lr": 0.5, "steps": 30, "clamp": 8.0, "weight_decay": 0.0}, "threshold": 0.9}
AT_END = [
    fact("a", "two", prompt="Therefore I think that {}"),
    fact("b", "ten", prompt="The answer is {}", subject="Alice Munro"),
]
EDITS = [fact("a", "two"), fact("b", "ten", subject="Alice Munro", prompt="The sport that {} plays is")]


def figures(session: EditSession) -> list[Any]:
    engine, text = LanguageEngine(session.model), session.model.text
    rows = [(text.encode_prompt(t), text.encode_target("nine ten")) for t in UNRELATED]
    return [*engine.score_and_generate(rows, max_new_tokens=6)]


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
def test_the_gate_says_its_edits_and_unrelated_prompts_have_the_bases_bytes(family: str) -> None:
    session, base = (session_of("gated_kv", family=family, contexts=("",), **GATED) for _ in range(2))
    session.apply(batch(1, *AT_END))
    assert all(says(session, request) for request in AT_END)
    assert figures(session) == figures(base)
    for text in UNRELATED:
        assert torch.equal(logits(session.model, text), logits(base.model, text))
    assert torch.equal(session.model.weight(1), base.model.weight(1)), "weights stay as they are"


@pytest.mark.parametrize("family", ["llama", "gpt2", "olmo2"])
def test_prompts_below_the_threshold_have_the_bases_bytes_and_the_others_those_of_the_copy(family: str) -> None:
    session, base = (session_of("wise", family=family, contexts=("",), **WISE) for _ in range(2))
    session.apply(batch(1, *EDITS))
    model, slot = session.model, session.editor.layers[0]
    content = unpack(model.weight(slot))
    prompts = [model.text.encode_prompt(t) for t in (*UNRELATED, EDITS[0].text, EDITS[1].text)]
    apart = sorted((distance(base, content, p), i) for i, p in enumerate(prompts))
    between = (apart[2][0] + apart[3][0]) / 2
    model.set_weight(slot, replace(content, tensors={**content.tensors, "thresholds": torch.tensor([between])}).pack())
    with_copy = session_of("wise", family=family)
    with_copy.model.set_weight(1, content.tensors["maps"][0])
    rows = [(p, model.text.encode_target("nine ten")) for p in prompts]
    got, plain, whole = (answers(s, rows) for s in (session, base, with_copy))
    routed = {i for d, i in apart if d > between}
    assert len(routed) == 2
    for i, answer in enumerate(got):
        if i not in routed:
            assert answer == plain[i]
            continue
        assert answer[1].ids == whole[i][1].ids
        assert answer[0].logprobs == pytest.approx(whole[i][0].logprobs, abs=1e-5) != plain[i][0].logprobs
    assert torch.equal(model.weight(1), base.model.weight(1)), "weights stay as they are"


def answers(session: EditSession, rows: list[tuple[list[int], list[int]]]) -> list[Any]:
    """Each row alone, so that rounding does not depend on what is beside it."""
    engine = LanguageEngine(session.model)
    return [engine.score_and_generate([row], max_new_tokens=6, stop_at_newline=False)[0] for row in rows]


def distance(session: EditSession, content: Content, prompt: list[int]) -> float:
    """Mean over the prompt's tokens of ``|act(W x) - act(W' x)|``, on a model without the module."""
    model = session.model
    rows = model.rows([prompt])
    with model.map_inputs([1]) as inputs, model.map_outputs([1]) as outputs, torch.no_grad():
        model.run(model.embed(rows), 0, 2, model.positional(rows.layout))
    bias = getattr(model.decoder.edited_map(1), "bias", None)
    other = torch.nn.functional.linear(inputs[1], content.tensors["maps"][0], bias)
    act = torch.nn.functional.silu if content.rule["act"] == "silu" else gelu
    want = float((act(other) - act(outputs[1])).norm(dim=-1).mean())
    inside = torch.ones(1, len(prompt), dtype=torch.bool)
    assert float(difference(outputs[1], other, content.rule["act"], inside)) == pytest.approx(want, rel=1e-5)
    return want


def gelu(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.gelu(x, approximate="tanh")


def test_a_side_copy_changes_within_its_mask_and_learns_on() -> None:
    session = session_of("wise", **{**WISE, "mask": 0.2})
    session.apply(batch(1, EDITS[0]))
    first = tables(session)
    moved = (first["maps"][0] != session.model.weight(1)).float().mean()
    assert 0.1 < float(moved) < 0.21 and first["count"].tolist() == [1]
    session.apply(batch(2, EDITS[1]))
    second = tables(session)
    both = (second["maps"][0] != session.model.weight(1)) | (first["maps"][0] != session.model.weight(1))
    assert float(both.float().mean()) < 0.21, "the same mask"
    assert float(second["floors"][0]) <= float(first["floors"][0])
    torch.testing.assert_close(second["thresholds"], second["floors"] * 0.88)


def test_copies_are_kept_and_merged_by_count() -> None:
    settings = {**WISE, "steps": 3, "save_every": 2, "merge_every": 4}
    session = session_of("wise", **settings)
    counts = []
    for number in range(1, 6):
        before = dict(tables(session)) if number > 1 else {}
        session.apply(batch(number, fact(f"e{number}", "two", subject=f"subject {number}")))
        counts.append(len(tables(session)["maps"]))
        if number == 3:
            kept = before["maps"][0]
            assert torch.equal(tables(session)["maps"][0], kept), "a kept copy stays"
        if number == 4:
            merged, fresh = tables(session)["maps"]
            weight = session.model.weight(1)
            assert torch.equal(fresh, weight)
            assert float((merged - weight).norm()) > 0 and not torch.equal(merged, kept)
            assert float(tables(session)["floors"][0]) <= float(before["floors"].min())
    assert counts == [1, 2, 2, 2, 2]
    masks = [session.editor._mask(weight.shape, copy) for copy in (0, 1)]  # type: ignore[attr-defined]
    assert not torch.equal(*masks)
    assert torch.equal(ties(weight, [kept], 1.0), kept) or float((kept - weight).abs().max()) > 0


def test_a_prompt_is_routed_once_and_its_answer_follows() -> None:
    """The decision is the whole prompt's, and holds for what is generated behind it: batches make no difference."""
    session = session_of("wise", contexts=("",), **WISE)
    session.apply(batch(1, *EDITS))
    model, engine = session.model, LanguageEngine(session.model)
    prompts = [model.text.encode_prompt(t) for t in (*UNRELATED, EDITS[0].text, EDITS[1].text)]
    together = [answer.ids for answer in engine.generate(prompts, max_new_tokens=8, stop_at_newline=False)]
    apart = [engine.generate([p], max_new_tokens=8, stop_at_newline=False)[0].ids for p in prompts]
    assert together == apart


def test_settings_of_wise_fit_together() -> None:
    with pytest.raises(ValueError, match="merge_every 700 must be a multiple of save_every 500"):
        WiseConfig(layers=(1,), merge_every=700)


def test_rows_of_the_gate_do_not_depend_on_their_order_and_leave_without_a_trace() -> None:
    one, other, never = (session_of("gated_kv", contexts=("",), **GATED) for _ in range(3))
    for number, request in enumerate(AT_END, start=1):
        one.apply(batch(number, request))
    for number, request in enumerate(reversed(AT_END), start=1):
        other.apply(batch(number, request))
    never.apply(batch(1, AT_END[1]))
    for name, table in tables(one).items():
        assert torch.equal(table, tables(other)[name].flip(0)), name
    requests: dict[str, EditRequest] = {request.id: request for request in AT_END}
    revert(one, RevertOrder(3, ("a",), frozenset({"a"}), {}, 1, requests), [])
    assert digest_tensors(tables(one)) == digest_tensors(tables(never))
    base = tiny_model("llama", layers=3)
    assert torch.equal(logits(one.model, UNRELATED[0]), logits(base, UNRELATED[0]))
    assert not says(one, AT_END[0]) and says(one, AT_END[1])


def test_three_updates_of_one_fact_leave_one_row() -> None:
    session = session_of("gated_kv", contexts=("",), **GATED)
    for number, target in enumerate(("two", "ten", "nine"), start=1):
        request = fact(f"u{number}", target, prompt="The answer is {}")
        session.apply(batch(number, request))
        assert says(session, request) and len(tables(session)["keys"]) == 1
