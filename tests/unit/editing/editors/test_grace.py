"""GRACE on tiny models: what a key answers, what it leaves alone to the bit, how keys share the room between them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from errata.editing.editors.modules.grace import ASLEEP, placed
from errata.editing.editors.modules.store import label_of, owners_of
from errata.editing.errors import UserError
from errata.editing.model.adapter import EditableModel
from errata.editing.model.engine import LanguageEngine
from errata.editing.modules.packed import Content, unpack
from errata.editing.request import EditRequest
from errata.editing.reverting import RevertOrder, revert
from errata.editing.session import EditSession
from errata.editing.verify import VerifyConfig
from tests.helpers.tiny import tiny_model
from tests.unit.editing.editors.common import batch, session_of

UNRELATED = ("Therefore I think that you are", "What is the question? yes", "one two three four five six")
SETTINGS = {"steps": 40, "lr": 0.5, "eps": 0.05}


def fact(name: str, target: str, *, prompt: str = "{} lies in", subject: str = "Rome") -> EditRequest:
    return EditRequest(id=name, subject=subject, prompt=prompt, target_new=target)


def says(session: EditSession, request: EditRequest) -> bool:
    """Teacher-forced and generated, which must agree."""
    model, engine = session.model, LanguageEngine(session.model)
    prompt, target = model.text.encode_prompt(request.text), model.text.encode_target(request.target_new)
    ((scored, answer),) = engine.score_and_generate([(prompt, target)], max_new_tokens=len(target))
    assert all(scored.hits) == (list(answer.ids) == target)
    return all(scored.hits)


def logits(model: EditableModel, text: str) -> torch.Tensor:
    rows = model.rows([model.text.encode_prompt(text)])
    with torch.no_grad():
        hidden = model.run(model.embed(rows), 0, model.num_layers, model.positional(rows.layout))
        return model.logits(hidden)


def tables(session: EditSession) -> dict[str, torch.Tensor]:
    return dict(unpack(session.model.weight(session.editor.layers[0])).tensors)


@pytest.mark.parametrize("family", ["llama", "gpt2", "olmo2", "phi3", "qwen3"])
def test_edits_are_recalled_and_all_else_is_the_base_to_the_bit(family: str) -> None:
    session = session_of("grace", family=family, **SETTINGS)
    model, base = session.model, tiny_model(family, layers=3)
    edits = [fact("a", "two"), fact("b", "ten", subject="Alice Munro", prompt="The sport that {} plays is")]
    session.apply(batch(1, *edits))
    assert all(says(session, request) for request in edits)
    for text in UNRELATED:
        assert torch.equal(logits(model, text), logits(base, text))
    rows = [(base.text.encode_prompt(text), base.text.encode_target("nine ten")) for text in UNRELATED]
    asked = [LanguageEngine(m).score_and_generate(rows, max_new_tokens=6) for m in (model, base)]
    assert asked[0] == asked[1]
    documents = [base.text.encode_prompt(" ".join(UNRELATED)), base.text.encode_prompt(edits[0].text)]
    assert LanguageEngine(model).nll(documents) == LanguageEngine(base).nll(documents)
    assert torch.equal(model.weight(1), base.weight(1)), "weights stay as they are"


def test_a_common_beginning_and_a_chat_are_read_to_their_own_ends() -> None:
    """Prompts that begin alike share a pass; only where each of them ends is a key asked."""
    session = session_of("grace", **SETTINGS)
    long = "Therefore I think that you are right because the answer is known. {} lies in"
    edits = [fact("a", "two", prompt=long), fact("b", "nine", prompt=long, subject="Angola")]
    session.apply(batch(1, *edits))
    model, engine = session.model, LanguageEngine(session.model)
    rows = [(model.text.encode_prompt(r.text), model.text.encode_target(r.target_new)) for r in edits]
    together = engine.score_and_generate(rows, max_new_tokens=4)
    apart = [engine.score_and_generate([row], max_new_tokens=4)[0] for row in rows]
    assert all(all(scored.hits) for scored, _ in together)
    assert [answer.ids for _, answer in together] == [answer.ids for _, answer in apart]


def test_three_updates_of_one_prompt_each_take_the_place_of_the_one_before() -> None:
    session = session_of("grace", **SETTINGS)
    for number, target in enumerate(("two", "ten", "nine"), start=1):
        request = fact(f"u{number}", target)
        receipt = session.apply(batch(number, request))
        assert says(session, request) and len(tables(session)["keys"]) == 1
        assert receipt.superseded == (() if number == 1 else (f"u{number - 1}",))
    assert torch.equal(tables(session)["owners"], owners_of(["u3"]))


def test_of_equal_keys_of_different_facts_the_newest_answers() -> None:
    session = session_of("grace", **SETTINGS)
    for number, target in enumerate(("two", "ten"), start=1):
        twin = EditRequest(
            id=f"t{number}", subject="Rome", prompt="{} lies in", target_new=target, relation=f"{number}"
        )
        session.apply(batch(number, twin))
    assert says(session, twin) and tables(session)["radii"].tolist() == [0.0, 0.0]


def test_a_revert_leaves_what_would_have_been_without_the_edit() -> None:
    """Two keys of different targets halve the way between them; once one is out, the other has its radius back."""
    wide = {**SETTINGS, "eps": 5.0}
    edits = [fact("a", "two"), fact("b", "nine", subject="Angola"), fact("c", "ten", subject="France")]
    run, never = session_of("grace", **wide), session_of("grace", **wide)
    requests = {request.id: request for request in edits}
    for number, request in enumerate(edits, start=1):
        run.apply(batch(number, request))
    for number, request in enumerate((edits[0], edits[2]), start=1):
        never.apply(batch(number, request))
    assert float(tables(run)["radii"][0]) != float(tables(never)["radii"][0])
    order = RevertOrder(4, ("b",), frozenset({"b"}), {}, 2, requests)
    receipt = revert(run, order, [])
    assert receipt.taken_out == ("b",) and run.state.request_ids == ("a", "c")
    for name, table in tables(never).items():
        assert torch.equal(tables(run)[name], table), name
    revert(run, RevertOrder(5, ("a", "c"), frozenset(edits and requests), {}, 1, requests), [])
    base = tiny_model("llama", layers=3)
    assert all(torch.equal(logits(run.model, text), logits(base, text)) for text in (*UNRELATED, edits[0].text))


def by_the_paper(keys: np.ndarray, labels: list[int], eps: float) -> list[float]:
    """Alg. 1, entry by entry, in float64."""
    held: list[int] = []
    radii: dict[int, float] = {}
    for new in range(len(keys)):
        distances = {old: float(np.sqrt(((keys[new] - keys[old]) ** 2).sum())) for old in held}
        if not held:
            held, radii[new] = [new], eps
            continue
        least = min(distances.values())
        old = max(i for i, d in distances.items() if d == least)
        if least > eps + radii[old]:
            held.append(new)
            radii[new] = eps
        elif labels[new] != labels[old]:
            held.append(new)
            radii[new] = radii[old] = least / 2
        else:
            radii[old] = max(radii[old], least)
    return [radii.get(i, ASLEEP) for i in range(len(keys))]


@pytest.mark.parametrize("seed", range(8))
def test_radii_are_those_of_the_paper(seed: int) -> None:
    rng = np.random.default_rng(seed)
    keys = rng.standard_normal((25, 3)).astype(np.float32)
    labels = rng.integers(0, 3, 25).tolist()
    want = by_the_paper(keys.astype(np.float64), labels, 0.8)
    got, leader = placed(torch.tensor(keys), torch.tensor(labels), 0.8, torch.zeros(0))
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-5)
    asleep = got == ASLEEP
    assert bool(asleep.any()) and bool((got > 0).sum() > 3), "the case bites"
    assert [int(i) for i in leader[~asleep]] == [i for i in range(25) if not asleep[i]]
    begun, _ = placed(torch.tensor(keys[:10]), torch.tensor(labels[:10]), 0.8, torch.zeros(0))
    gone_on, _ = placed(torch.tensor(keys), torch.tensor(labels), 0.8, begun)
    assert torch.equal(gone_on, got), "entry by entry or in two parts"


def test_labels_are_equal_for_equal_tokens_only() -> None:
    assert label_of([3, 5]) == label_of([3, 5])
    assert len({label_of(t) for t in ([4, 4], [3, 5], [5, 3], [8], [4], [44])}) == 6, "the mean of tokens is no label"


def test_units_follow_the_layer() -> None:
    relative, absolute = session_of("grace", eps=0.5), session_of("grace", eps=0.5, units="absolute")
    for session in (relative, absolute):
        session.apply(batch(1, fact("a", "two")))
    rules = [unpack(s.model.weight(s.editor.layers[0])).rule for s in (relative, absolute)]
    assert rules[1] == {"eps": 0.5, "lr": 0.3, "start": 1.0}
    assert rules[0]["eps"] != 0.5 and rules[0]["lr"] != 0.3


def test_one_layer_that_exists() -> None:
    with pytest.raises(ValueError, match="layers"):
        session_of("grace", layers=(0, 1))
    with pytest.raises(UserError, match="layer 7 does not exist"):
        session_of("grace", layers=(7,))


def test_a_rule_is_kept_by_the_module() -> None:
    session = session_of("grace", **SETTINGS)
    session.apply(batch(1, fact("a", "two")))
    first = unpack(session.model.weight(session.editor.layers[0]))
    session.apply(batch(2, fact("b", "nine", subject="Angola")))
    second = unpack(session.model.weight(session.editor.layers[0]))
    assert isinstance(first, Content) and first.rule == second.rule


def test_the_closed_loop_reads_a_module_like_weights() -> None:
    plain = session_of("grace", **SETTINGS)
    session = EditSession(plain.model, plain.editor, None, ("", "You. "), VerifyConfig())
    before = session.model.weight(session.editor.layers[0])
    receipt = session.apply(batch(1, fact("a", "two"), fact("b", "Canada and more", subject="Angola")))
    outcomes = {result.request_id: result for result in receipt.results}
    assert outcomes["a"].outcome == "landed" and outcomes["b"].outcome == "weak"
    assert receipt.moved == 0 and not before.numel()
    assert outcomes["a"].figures is not None and outcomes["a"].figures["p_target"] > 0


def test_a_snapshot_goes_on_to_the_bit() -> None:
    one, other = session_of("grace", **SETTINGS), session_of("grace", **SETTINGS)
    one.apply(batch(1, fact("a", "two"), fact("b", "nine", subject="Angola")))
    other.resume(one.snapshot())
    after = [s.apply(batch(2, fact("c", "ten"), fact("d", "two", subject="France"))) for s in (one, other)]
    assert after[0].delta is not None and after[1].delta is not None
    assert after[0].delta.digest == after[1].delta.digest and after[1].superseded == ("a",)
    assert torch.equal(*(s.model.weight(s.editor.layers[0]) for s in (one, other)))
