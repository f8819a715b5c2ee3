"""What users rely on, through sessions on tiny models: what is hit, what stays, what is named, what is restored."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from errata.editing.covariance import KeyCovariance
from errata.editing.delta import apply_delta
from errata.editing.digest import digest_tensors
from errata.editing.editors import REGISTRY, make_editor
from errata.editing.editors.closed_form.mose import Mose, drift
from errata.editing.errors import DependentKeysError, UserError
from errata.editing.keys import SubjectPass
from errata.editing.model.adapter import EditableModel
from errata.editing.request import EditRequest
from errata.editing.session import EditSession
from tests.helpers.tiny import tiny_model
from tests.unit.editing.editors.common import (
    CONTEXTS,
    NAMES,
    batch,
    config_of,
    covariance_of,
    session_of,
    weight_bytes,
)
from tests.unit.helpers import plain

COMMUTING = {"alphaedit", "emmet", "memit", "memit_merge", "pmet", "rome", "rose"}
FREE = {"adalora", "ft_l", "gated_kv", "grace", "kn", "lora", "mend", "rose", "ultraedit", "wise"}
"""Methods that need no covariance."""


def test_every_editor_is_covered() -> None:
    assert sorted(REGISTRY) == NAMES
    assert {name for name in NAMES if REGISTRY[name][1].commutes} == COMMUTING


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_closed(name: str) -> None:
    with pytest.raises(ValueError, match="lairs"):
        config_of(name, lairs=(1,))
    with pytest.raises(ValueError, match="layers"):
        config_of(name, layers=(2, 1))


# --- computing and applying ---


@pytest.mark.parametrize("name", NAMES)
def test_computing_changes_nothing_and_applying_can_be_undone(name: str, requests: list[EditRequest]) -> None:
    session = session_of(name)
    model, layers = session.model, session.editor.layers
    whole, state = digest_tensors(dict(model.hf.state_dict())), session.state
    before = weight_bytes(session)
    done = session.editor.compute(model, requests[:3], state, CONTEXTS)
    assert digest_tensors(dict(model.hf.state_dict())) == whole and session.state is state
    assert not any(p.requires_grad or p.grad is not None for p in model.hf.parameters())
    assert len(done.values) == 3 and done.delta.editor == name
    assert all(norm > 0 for norm in done.delta.norms().values())
    with model.patched(layers):
        for layer, change in done.delta.layers.items():
            model.set_weight(layer, apply_delta(model.weight(layer), change))
        assert weight_bytes(session) != before
    assert weight_bytes(session) == before


@pytest.mark.parametrize("name", NAMES)
def test_replay_and_a_saved_state_continue_to_the_bit(name: str, requests: list[EditRequest], tmp_path: Any) -> None:
    first = session_of(name)
    again = requests[0].model_copy(update={"target_new": "Italy", "id": "again"})
    receipts = [first.apply(batch(1, *requests[:2])), first.apply(batch(2, requests[2], again))]
    first.state.save(tmp_path / "state.safetensors")
    assert receipts[1].superseded == (requests[0].id,)

    replayed = session_of(name)
    for receipt in receipts:
        replayed.replay(receipt)
    assert weight_bytes(replayed) == weight_bytes(first)

    loaded = session_of(name)
    fresh = loaded.state
    for receipt in receipts:
        loaded.replay(receipt)
    loaded.state = fresh.load(tmp_path / "state.safetensors")

    want = first.apply(batch(3, *requests[3:]))
    for other in (replayed, loaded):
        got = other.apply(batch(3, *requests[3:]))
        assert got.delta is not None and want.delta is not None
        assert got.delta.digest == want.delta.digest
        assert weight_bytes(other) == weight_bytes(first)


@pytest.mark.parametrize("name", sorted(COMMUTING))
def test_stored_targets_give_the_same_change(name: str, requests: list[EditRequest]) -> None:
    """What a receipt keeps is enough to compute the batch again, or the rest of it after a revert."""
    session = session_of(name)
    editor: Any = session.editor
    done = editor.compute(session.model, requests[:3], session.state, CONTEXTS)
    targets = torch.stack([value.state for value in done.values])
    changes, keys = editor.write(session.model, requests[:3], targets, session.state, CONTEXTS)
    for layer, change in done.delta.layers.items():
        assert torch.equal(changes[layer].left, change.left) and torch.equal(keys[layer], done.keys[layer])
        assert torch.equal(changes[layer].right, change.right)


@pytest.mark.parametrize("name", sorted(set(NAMES) - FREE))
def test_an_editor_that_needs_a_covariance_says_so(name: str) -> None:
    model = tiny_model(layers=3)
    with pytest.raises(UserError, match=f"editor '{name}' needs a covariance"):
        EditSession(model, make_editor(config_of(name)), None, CONTEXTS)


@pytest.mark.parametrize("name", sorted(FREE))
def test_an_editor_that_needs_none_runs_without(name: str, requests: list[EditRequest]) -> None:
    model = tiny_model(layers=3)
    session = EditSession(model, make_editor(config_of(name)), None, CONTEXTS)
    receipt = session.apply(batch(1, *requests[:2]))
    assert receipt.covariance_digest is None and [r.applied for r in receipt.results] == [True, True]
    other = session_of(name)
    other.apply(batch(1, *requests[:2]))
    assert weight_bytes(session) == weight_bytes(other), "a covariance makes no difference"


# --- equality constraints ---


@pytest.mark.parametrize("family", ["llama", "gpt2", "olmo2"])
@pytest.mark.parametrize("name", ["rome", "emmet"])
def test_targets_are_hit_exactly(name: str, family: str, requests: list[EditRequest]) -> None:
    session = session_of(name, family=family, layers=(1,))
    model, editor = session.model, session.editor
    done = editor.compute(model, requests, session.state, CONTEXTS)
    before, keys = model.weight(1).double(), done.keys[1].double()
    change = done.delta.layers[1]
    after = before + change.left.double() @ change.right.double()  # type: ignore[union-attr]
    if name == "rome":
        bias = getattr(plain.edited_map(model, 1), "bias", None)
        for i, value in enumerate(done.values):
            # each is exact when written; later ones of the batch move it a little
            hit = before + change.left[:, : i + 1].double() @ change.right[: i + 1].double()  # type: ignore[index]
            wanted = value.z.double() - (0 if bias is None else bias.double())
            torch.testing.assert_close(hit @ keys[:, i], wanted, rtol=1e-4, atol=1e-5)
    else:
        residual = change.left.double()
        torch.testing.assert_close(after @ keys, before @ keys + residual, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "olmo2"])
def test_rome_reaches_its_value_in_the_model(family: str, requests: list[EditRequest]) -> None:
    session = session_of("rome", family=family, contexts=("",))
    model, request = session.model, requests[0]
    receipt = session.apply(batch(1, request))
    ids, at = plain.subject_position(model, "", request.prompt, request.subject)
    reached = plain.read(model, plain.edited_map(model, 1), ids)[at]
    assert receipt.targets is not None
    torch.testing.assert_close(reached, receipt.targets[0], rtol=1e-4, atol=1e-4)


def test_requests_with_dependent_keys_are_named_and_the_others_written(requests: list[EditRequest]) -> None:
    twin = EditRequest(id="twin", subject="Rome", prompt="{} is known because", target_new="yes")
    mixed = [requests[0], requests[1], twin, requests[2]]  # 1 and the twin begin with the same subject
    session = session_of("emmet")
    with pytest.raises(DependentKeysError, match=f"request 'twin': its key at layer 0 .* that of {requests[1].id}"):
        session.editor.compute(session.model, mixed, session.state, CONTEXTS)
    receipt = session.apply(batch(1, *mixed))
    assert [r.applied for r in receipt.results] == [True, True, False, True]
    assert "depends linearly" in str(receipt.results[2].reason) and "editor.damping" in str(receipt.results[2].reason)
    clean = session_of("emmet")
    clean.apply(batch(1, *[r for r in mixed if r is not twin]))
    assert weight_bytes(session) == weight_bytes(clean)
    damped = session_of("emmet", damping=0.1)
    assert all(r.applied for r in damped.apply(batch(1, *mixed)).results)


def test_rome_edits_one_layer() -> None:
    with pytest.raises(ValueError, match=r"must name exactly one layer, got \[0, 1\]"):
        config_of("rome", layers=(0, 1))
    with pytest.raises(ValueError, match=r"base 'rome' edits exactly one layer"):
        config_of("rect", base="rome")
    assert config_of("rect", base="rome", layers=(1,)).base == "rome"


# --- what stays ---


def test_alphaedit_leaves_protected_keys_alone(requests: list[EditRequest]) -> None:
    model = tiny_model(layers=3)
    generator = torch.Generator().manual_seed(0)
    sums, protected = {}, {}
    for layer in (0, 1):
        basis = torch.linalg.qr(torch.randn(48, 48, generator=generator, dtype=torch.float64))[0]
        scales = torch.cat([torch.full((30,), 1e-3), torch.full((18,), 2.0)]).double()
        sums[layer], protected[layer] = basis @ torch.diag(scales) @ basis.T, basis[:, 30:]
    covariance = KeyCovariance(sums, 1, {"kind": "test"})
    session = EditSession(model, make_editor(config_of("alphaedit", tau=0.1)), covariance, CONTEXTS)
    before = session.weights()
    for number in (1, 2, 3):
        session.apply(batch(number, requests[number]))
    for layer in (0, 1):
        keys = protected[layer] @ torch.randn(18, 5, generator=generator, dtype=torch.float64)
        moved = session.model.weight(layer).double() - before[layer].double()
        assert float(moved.norm()) > 0.05
        assert float((moved @ keys).norm()) <= 1e-5 * float(moved.norm() * keys.norm())


@pytest.mark.parametrize("on", ["plain", "sphere"])
@pytest.mark.parametrize("selection", ["neighbours", "single", "predefined"])
def test_mose_keeps_norm_and_condition(selection: str, on: str, requests: list[EditRequest]) -> None:
    session = session_of("mose", selection=selection, values={"on": on})
    before = session.weights()
    for number, request in enumerate(requests, start=1):
        session.apply(batch(number, request))
    moved = 0
    for layer, weight in before.items():
        now = session.model.weight(layer).double()
        moved += not torch.equal(now.float(), weight)
        assert float(now.norm()) == pytest.approx(float(weight.double().norm()), rel=1e-5)
        assert float(torch.linalg.cond(now)) == pytest.approx(float(torch.linalg.cond(weight.double())), rel=1e-5)
        rotation = session.state.memory.get(f"rotation.{layer}")
        if rotation is not None:
            torch.testing.assert_close(rotation @ weight.double(), now, rtol=0, atol=1e-5)
    assert moved > 0


def test_mose_takes_the_layer_with_the_best_score(requests: list[EditRequest]) -> None:
    """Eqs. 21 and 22 by plain passes: the strongest keys, then the smallest relative residual; and both neighbors."""
    session = session_of("mose", depth=4, layers=(0, 1, 2), candidates=2, selection="single")
    model, editor = session.model, session.editor
    assert isinstance(editor, Mose)
    strengths, scores = {}, {}
    for layer in (0, 1, 2):
        keys = SubjectPass(model, requests[:2], CONTEXTS).keys(layer, "mean").double()
        strengths[layer] = float(keys.norm(dim=0).mean())
        values = [
            plain.optimize(model, r, layer=layer, contexts=CONTEXTS, config=editor.config.values, inside_mlp=True)
            for r in requests[:2]
        ]
        missing = np.array([float(v.delta.norm()) for v in values]) / keys.norm(dim=0).numpy()
        scores[layer] = np.linalg.norm(missing) / np.linalg.norm(model.weight(layer).numpy(), 2)
    strongest = sorted(strengths, key=lambda layer: -strengths[layer])[:2]
    best = min(strongest, key=lambda layer: scores[layer])
    layers, values_there = editor.choose(model, requests[:2], session.state, CONTEXTS)
    assert layers == (best,) and len(values_there) == 2
    for selection, want in (
        ("neighbours", tuple(i for i in (0, 1, 2) if abs(i - best) <= 1)),
        ("predefined", (0, 1, 2)),
    ):
        other = make_editor(config_of("mose", layers=(0, 1, 2), candidates=2, selection=selection))
        assert other.choose(model, requests[:2], session.state, CONTEXTS)[0] == want  # type: ignore[attr-defined]
    receipt = session.apply(batch(1, *requests[:2]))
    assert receipt.delta is not None and tuple(receipt.delta.layers) == (best,)


def test_mose_takes_a_drifted_rotation_back(requests: list[EditRequest]) -> None:
    session = session_of("mose", selection="predefined", layers=(1,))
    session.apply(batch(1, requests[0]))
    rotation = session.state.memory["rotation.1"]
    assert drift(rotation) < 1e-6
    skewed = rotation @ (torch.eye(32) + 1e-3 * torch.randn(32, 32)).double()
    assert drift(skewed) > 1e-4
    session.state = session.state.remembering({"rotation.1": skewed})
    session.apply(batch(2, requests[1]))
    assert drift(session.state.memory["rotation.1"]) < 1e-6


@pytest.mark.parametrize("base", ["memit", "rome"])
def test_rect_changes_the_stated_share(base: str, requests: list[EditRequest]) -> None:
    layers = (1,) if base == "rome" else (0, 1)
    session = session_of("rect", base=base, layers=layers, keep=0.3)
    receipt = session.apply(batch(1, *requests[:2]))
    assert receipt.delta is not None
    for change in receipt.delta.layers.values():
        assert int((change.left != 0).sum()) == round(0.3 * change.left.numel())
    whole, other = session_of("rect", base=base, layers=layers, keep=1.0), session_of(base, layers=layers)
    if base == "rome":  # RECT's own defaults of the value optimization are MEMIT's
        assert whole.editor.config.values.steps == other.editor.config.values.steps
    for each in (whole, other):
        each.apply(batch(1, *requests[:2]))
        each.apply(batch(2, *requests[2:]))
    assert weight_bytes(whole) == weight_bytes(other), "at 100 % it is the other editor"


def served(session: EditSession, base: dict[int, torch.Tensor], raw: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    """W_0 + F(S) by the formula."""
    a, found = session.editor.config.base, {}
    for layer, S in raw.items():
        s_max = np.linalg.norm(base[layer].double().numpy(), 2)
        u, s, vh = np.linalg.svd(S, full_matrices=False)
        f = np.where(s > s_max, np.log(s / s_max) / np.log(a) + s_max, s)
        found[layer] = base[layer].double().numpy() + u * f @ vh
    return found


def test_prune_serves_the_damped_sum(requests: list[EditRequest]) -> None:
    session = session_of("prune", cov_weight=1e-6, base=4.0, values={"clamp": 6.0, "lr": 1.0})
    base = session.weights()
    raw = {layer: np.zeros(weight.shape) for layer, weight in base.items()}
    damped = 0.0
    for number, request in enumerate(requests, start=1):
        receipt = session.apply(batch(number, request))
        assert receipt.delta is not None
        for layer, change in receipt.delta.layers.items():
            raw[layer] += change.left[:, :1].double().numpy() @ change.right[:1].double().numpy()  # type: ignore[index]
            state = session.state.memory
            S = (state[f"raw.{layer}.left"].double() @ state[f"raw.{layer}.right"].double()).numpy()
            np.testing.assert_allclose(S, raw[layer], atol=1e-5)
            s = np.linalg.svd(S, compute_uv=False)
            too_large = int((s > np.linalg.norm(base[layer].double().numpy(), 2)).sum())
            assert receipt.delta.notes[f"damped.{layer}"] == too_large
            damped += too_large
        for layer, want in served(session, base, raw).items():
            np.testing.assert_allclose(session.model.weight(layer).numpy(), want, atol=2e-5)
    assert damped > 0, "the case bites"


def test_prune_is_memit_where_nothing_is_too_large(requests: list[EditRequest]) -> None:
    pruned, other = session_of("prune", cov_weight=50.0), session_of("memit", cov_weight=50.0)
    for each in (pruned, other):
        each.apply(batch(1, *requests[:2]))
        receipt = each.apply(batch(2, *requests[2:]))
    assert weight_bytes(pruned) == weight_bytes(other)
    assert pruned.last is not None and pruned.last.delta is not None
    assert dict(pruned.last.delta.notes) == {"damped.0": 0.0, "damped.1": 0.0} and receipt.delta is not None


def test_prune_refuses_a_base_that_amplifies() -> None:
    with pytest.raises(UserError, match=r"editor\.base 1\.05 amplifies at layer 0, whose largest singular value is"):
        session_of("prune", base=1.05)


def test_prune_keeps_the_rank_of_its_sum_bounded(requests: list[EditRequest]) -> None:
    model = tiny_model(layers=3, hidden=4, inner=6, heads=2)
    config = config_of("prune", base=50.0, layers=(1,))
    session = EditSession(model, make_editor(config), covariance_of(model), ("",))
    base = model.weight(1).clone()
    for number in (1, 2, 3):
        fresh = [r.model_copy(update={"id": f"{number}{i}", "relation": f"{number}"}) for i, r in enumerate(requests)]
        session.apply(batch(number, *fresh))
    memory = session.state.memory
    S = memory["raw.1.left"].double() @ memory["raw.1.right"].double()
    D = memory["damped.1.left"].double() @ memory["damped.1.right"].double()
    assert memory["raw.1.left"].shape == (4, 4)
    torch.testing.assert_close(base.double() + S - D, model.weight(1).double(), rtol=0, atol=1e-5)


# --- the same fact again ---


@pytest.mark.parametrize("name", ["alphaedit", "memit", "memit_merge", "rose", "emmet"])
def test_a_fact_edited_again_is_stored_whole(name: str) -> None:
    """The second and the fourth edit of a key store as much of their residual as the first."""
    weak = {"alphaedit": {"tau": 10.0, "l2": 1e-6}, "rose": {"past_keys": True}, "emmet": {"past_keys": True}}
    settings: dict[str, Any] = weak.get(name, {"cov_weight": 1e-6}) | {"layers": (1,)}
    session = session_of(name, contexts=("",), **settings)
    shares = []
    for number, target in enumerate(("English", "football", "Italy", "Canada"), start=1):
        request = EditRequest(id=f"r{number}", subject="Rome", prompt="{} lies in", target_new=target, relation="in")
        ids, at = plain.subject_position(session.model, "", request.prompt, request.subject)
        before = plain.read(session.model, plain.block(session.model, 1), ids)[at]
        receipt = session.apply(batch(number, request))
        now = plain.read(session.model, plain.block(session.model, 1), ids)[at]
        assert receipt.targets is not None
        asked = receipt.targets[0] - before
        shares.append(float((now - before) @ asked / asked.square().sum()))
    key = session.state.keys[1][:, 0]
    full = float(key @ key / (1 + key @ key)) if name == "rose" else 1.0
    assert shares == pytest.approx([full] * 4, abs=1e-3)
    assert session.state.request_ids == ("r4",)


def test_pmet_spreads_by_the_root(llama: EditableModel) -> None:
    editor: Any = make_editor(config_of("pmet"))
    assert [editor.spread(n) for n in (1, 2, 4)] == pytest.approx([1.0, 2**0.5, 2.0])
    assert make_editor(config_of("memit")).spread(4) == 4.0  # type: ignore[attr-defined]


@pytest.mark.parametrize("family", ["llama", "gpt2", "olmo2"])
def test_pmet_reaches_the_mlp_value(family: str, requests: list[EditRequest]) -> None:
    session = session_of("pmet", family=family, contexts=("",), layers=(1,), cov_weight=1e-6)
    model, request = session.model, requests[1]
    receipt = session.apply(batch(1, request))
    ids, at = plain.subject_position(model, "", request.prompt, request.subject)
    reached = plain.read(model, plain.edited_map(model, 1), ids)[at]
    assert receipt.targets is not None
    target = receipt.targets[0].reshape(-1, len(reached))[-1]  # behind a norm every edited layer has one of its own
    torch.testing.assert_close(reached, target, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["memit_merge", "rose"])
def test_relations_of_a_subject_share_their_target(name: str, requests: list[EditRequest]) -> None:
    same = [
        EditRequest(id=f"s{i}", subject=subject, prompt=prompt, target_new=target)
        for i, (subject, prompt, target) in enumerate(
            [("Rome", "{} lies in", "Canada"), ("rome", "{} works as a", "writer"), ("Angola", "{} is", "football")]
        )
    ]
    receipt = session_of(name).apply(batch(1, *same))
    assert receipt.targets is not None
    assert torch.equal(receipt.targets[0], receipt.targets[1])
    assert not torch.equal(receipt.targets[0], receipt.targets[2])


@pytest.mark.parametrize("name", NAMES)
def test_a_request_that_ends_at_nan_is_refused_alone(name: str, requests: list[EditRequest]) -> None:
    session = session_of(name)
    with torch.no_grad():  # one word of one prompt makes every state after it NaN
        session.model.hf.model.embed_tokens.weight[session.model.text.encode_target("mother")[0]] = torch.nan
    receipt = session.apply(batch(1, requests[0], requests[2]))
    assert [r.applied for r in receipt.results] == [False, True]
    assert receipt.delta is not None and all(np.isfinite(n) for n in receipt.delta.norms().values())
