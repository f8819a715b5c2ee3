"""The stateful editor: order, idempotence, replay, refusals, superseding, covariance swaps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from errata.editing.covariance import KeyCovariance
from errata.editing.digest import digest_tensors
from errata.editing.editors import make_editor
from errata.editing.editors.base import Computation
from errata.editing.editors.closed_form.alphaedit import AlphaEditConfig
from errata.editing.editors.closed_form.memit import Memit, MemitConfig
from errata.editing.editors.closed_form.memit_merge import MemitMergeConfig, MergeValues
from errata.editing.editors.closed_form.pmet import PmetConfig, PmetValues
from errata.editing.errors import EditorFaultError, ErrataError, UserError
from errata.editing.model.adapter import EditableModel
from errata.editing.request import EditBatch, EditRequest
from errata.editing.session import EditSession
from errata.editing.values import ValueConfig
from tests.helpers.tiny import tiny_hf, tiny_model, tiny_tokenizer
from tests.unit.helpers import plain

VALUES = ValueConfig(lr=0.3, steps=3, clamp=2.0, weight_decay=0.0)
MEMIT = MemitConfig(layers=(0, 1), cov_weight=2.0, values=VALUES)
ALPHA = AlphaEditConfig(layers=(0, 1), tau=1.0, l2=1.0, values=VALUES)
CONTEXTS = ("", "You. ")
Covariance = Callable[..., KeyCovariance]


def batch(sequence: int, *requests: EditRequest) -> EditBatch:
    return EditBatch(sequence=sequence, requests=requests)


def weight_bytes(session: EditSession) -> str:
    served = {str(i): session.model.parameter(i).detach() for i in session.editor.layers}
    masters = {f"master {i}": w for i, w in session.weights().items()}
    return digest_tensors(served | masters)


@pytest.fixture
def make(spread_covariance: Covariance) -> Callable[..., EditSession]:
    """Sessions on models of their own that start from the same bytes."""

    def build(config: MemitConfig | AlphaEditConfig = MEMIT, contexts: Sequence[str] = CONTEXTS) -> EditSession:
        model = tiny_model("llama", layers=3)
        return EditSession(model, make_editor(config), spread_covariance(model, config.layers), contexts)

    return build


def test_a_batch_changes_the_weights_by_its_delta(
    make: Callable[..., EditSession], requests: list[EditRequest]
) -> None:
    session = make()
    before, state = session.weights(), session.state
    receipt = session.apply(batch(1, *requests[:3]))
    assert receipt.delta is not None and sorted(receipt.delta.layers) == [0, 1]
    for layer, change in receipt.delta.layers.items():
        assert change.right is not None and change.left.shape == (32, 3) and change.right.shape == (3, 48)
        want = before[layer].double() + change.left.double() @ change.right.double()
        torch.testing.assert_close(session.model.weight(layer).double(), want, rtol=1e-6, atol=1e-7)
        assert torch.equal(session.model.parameter(layer).detach(), session.model.weight(layer))
        assert receipt.keys[layer].shape == (48, 3)
        assert torch.equal(session.state.keys[layer], receipt.keys[layer])
    assert torch.equal(session.model.weight(2), tiny_model("llama", layers=3).weight(2))
    assert receipt.targets is not None and receipt.targets.shape == (3, 32)
    assert receipt.request_ids == session.state.request_ids == tuple(r.id for r in requests[:3])
    assert [r.applied for r in receipt.results] == [True] * 3
    assert all(math.isfinite(r.loss) and r.steps == 3 for r in receipt.results)
    assert receipt.covariance_digest == session.state.covariance_digest is not None
    assert receipt.seconds > 0
    assert state.request_ids == (), "states are values"
    norms = session.norms()
    assert norms[1] == pytest.approx(float(torch.linalg.matrix_norm(session.model.weight(1).double())))


@pytest.mark.parametrize("family", ["llama", "olmo2", "gpt2"])
def test_a_half_precision_model_serves_the_cast_of_its_float32_master(
    spread_covariance: Covariance, requests: list[EditRequest], family: str
) -> None:
    model = EditableModel(tiny_hf(family, layers=3).bfloat16(), tiny_tokenizer(), name="half")
    session = EditSession(model, make_editor(MEMIT), spread_covariance(model, MEMIT.layers), CONTEXTS)
    want = model.weights(MEMIT.layers)
    for number, request in enumerate(requests[:3], start=1):
        receipt = session.apply(batch(number, request))
        assert receipt.results[0].applied and receipt.delta is not None
        for layer, change in receipt.delta.layers.items():
            assert change.right is not None
            want[layer] = (want[layer].double() + change.left.double() @ change.right.double()).float()
    for layer in MEMIT.layers:
        torch.testing.assert_close(model.weight(layer), want[layer], rtol=1e-6, atol=1e-7)
        served = model.parameter(layer).detach()
        assert served.dtype == torch.bfloat16
        assert torch.equal(served.T if family == "gpt2" else served, model.weight(layer).bfloat16())
    assert all(keys.dtype == torch.float32 for keys in session.state.keys.values())


def test_computing_a_change_touches_neither_model_nor_state(
    make: Callable[..., EditSession], requests: list[EditRequest]
) -> None:
    session = make()
    before, state = digest_tensors(dict(session.model.hf.state_dict())), session.state
    session.editor.compute(session.model, requests[:2], state, CONTEXTS)
    assert digest_tensors(dict(session.model.hf.state_dict())) == before
    assert session.state is state and state.keys[0].shape == (48, 0)


def test_the_same_sequence_number_is_applied_once(
    make: Callable[..., EditSession], requests: list[EditRequest]
) -> None:
    session = make()
    first = session.apply(batch(1, requests[0]))
    after = weight_bytes(session)
    assert session.apply(batch(1, requests[0])) is first
    assert weight_bytes(session) == after and session.state.request_ids == (requests[0].id,)


def test_a_gap_or_an_old_number_is_refused(make: Callable[..., EditSession], requests: list[EditRequest]) -> None:
    session = make()
    with pytest.raises(ErrataError, match="batch 2 does not follow batch 0"):
        session.apply(batch(2, requests[0]))
    session.apply(batch(1, requests[0]))
    session.apply(batch(2, requests[1]))
    after = weight_bytes(session)
    for number in (1, 4):
        with pytest.raises(ErrataError, match=f"batch {number} does not follow batch 2"):
            session.apply(batch(number, requests[2]))
    assert weight_bytes(session) == after and session.sequence == 2


@pytest.mark.parametrize("config", [MEMIT, ALPHA], ids=["memit", "alphaedit"])
def test_replay_rebuilds_weights_and_state_to_the_bit(
    make: Callable[..., EditSession],
    requests: list[EditRequest],
    spread_covariance: Covariance,
    config: MemitConfig | AlphaEditConfig,
) -> None:
    first = make(config)
    later = spread_covariance(first.model, config.layers, seed=5)
    again = requests[0].model_copy(update={"target_new": "Italy", "id": "again"})
    receipts = [first.apply(batch(1, *requests[:2])), first.apply(batch(2, requests[2], again))]
    first.swap_covariance(later)
    receipts.append(first.apply(batch(3, requests[3])))
    assert receipts[1].superseded == (requests[0].id,)

    second = make(config)
    for receipt in receipts:
        if receipt.sequence == 3:
            second.swap_covariance(later)
        second.replay(receipt)
    assert weight_bytes(second) == weight_bytes(first)
    assert second.state.request_ids == first.state.request_ids
    # the state is the same too: so is whatever comes next
    next_first, next_second = (s.apply(batch(4, requests[4])) for s in (first, second))
    assert next_first.delta is not None and next_second.delta is not None
    assert next_first.delta.digest == next_second.delta.digest
    assert weight_bytes(second) == weight_bytes(first)


def test_a_replay_out_of_order_or_on_another_covariance_is_refused(
    make: Callable[..., EditSession], requests: list[EditRequest], spread_covariance: Covariance
) -> None:
    first, second = make(), make()
    receipts = [first.apply(batch(1, requests[0])), first.apply(batch(2, requests[1]))]
    with pytest.raises(ErrataError, match="commit 2 does not follow commit 0"):
        second.replay(receipts[1])
    before = weight_bytes(second)
    second.swap_covariance(spread_covariance(second.model, MEMIT.layers, seed=9))
    with pytest.raises(ErrataError, match="was made on covariance"):
        second.replay(receipts[0])
    assert weight_bytes(second) == before and second.sequence == 0


def test_swapping_the_covariance_keeps_the_past_keys(
    make: Callable[..., EditSession], requests: list[EditRequest], spread_covariance: Covariance
) -> None:
    session = make()
    session.apply(batch(1, *requests[:2]))
    keys, ids, weights = dict(session.state.keys), session.state.request_ids, weight_bytes(session)
    other = spread_covariance(session.model, MEMIT.layers, seed=3)
    session.swap_covariance(other)
    assert session.state.request_ids == ids and session.state.covariance_digest == other.digest
    assert all(torch.equal(session.state.keys[layer], keys[layer]) for layer in (0, 1))
    assert weight_bytes(session) == weights
    past = keys[0].double()
    full = 2.0 * other.mean(0) + past @ past.T
    right = torch.randn(48, 2, dtype=torch.float64)
    torch.testing.assert_close(session.state.systems[0].solve(right), torch.linalg.solve(full, right))


# --- refusals ---


class _Fails(Memit):
    """Yields values that are not finite for the requests named."""

    bad: tuple[str, ...] = ()

    def compute(self, model, requests, state, contexts, progress=None) -> Computation:  # type: ignore[no-untyped-def]
        done = super().compute(model, requests, state, contexts, progress)
        values = [
            replace(value, loss=math.nan) if request.subject in self.bad else value
            for request, value in zip(requests, done.values, strict=True)
        ]
        return Computation(done.delta, done.keys, values)


def test_one_bad_request_does_not_stop_the_others(
    make: Callable[..., EditSession], requests: list[EditRequest]
) -> None:
    clean, failing = make(), make()
    failing.editor = _Fails(MEMIT)
    failing.editor.bad = ("Rome",)
    receipt = failing.apply(batch(1, *requests[:3]))
    assert [r.applied for r in receipt.results] == [True, False, True]
    assert receipt.results[1].request_id == requests[1].id
    assert "did not stay finite" in str(receipt.results[1].reason)
    assert receipt.request_ids == failing.state.request_ids == (requests[0].id, requests[2].id)
    # what is applied is what the good ones alone give
    clean.apply(batch(1, requests[0], requests[2]))
    assert weight_bytes(failing) == weight_bytes(clean)


def test_a_target_without_tokens_is_refused_with_its_reason(
    make: Callable[..., EditSession], requests: list[EditRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = make()
    encode = session.model.text.encode_target

    def refuse(text: str) -> list[int]:
        if text == "football":
            raise UserError(f"target {text!r} has no tokens")
        return encode(text)

    monkeypatch.setattr(session.model.text, "encode_target", refuse)
    receipt = session.apply(batch(1, requests[2], requests[0]))
    assert [(r.applied, r.reason) for r in receipt.results] == [
        (False, "target 'football' has no tokens"),
        (True, None),
    ]


def test_a_batch_of_bad_requests_is_a_commit_without_change(
    make: Callable[..., EditSession], requests: list[EditRequest]
) -> None:
    session = make()
    session.editor = _Fails(MEMIT)
    session.editor.bad = ("Rome", "Angola")
    before = weight_bytes(session)
    receipt = session.apply(batch(1, requests[1], requests[2]))
    assert receipt.delta is None and receipt.targets is None and receipt.request_ids == ()
    assert not any(r.applied for r in receipt.results)
    assert weight_bytes(session) == before and session.state.request_ids == ()
    session.apply(batch(2, requests[0]))
    other = make()
    other.replay(receipt)
    assert other.sequence == 1 and weight_bytes(other) == before


def test_a_refused_request_supersedes_nothing(make: Callable[..., EditSession], requests: list[EditRequest]) -> None:
    session = make()
    session.apply(batch(1, requests[1]))
    session.editor = _Fails(MEMIT)
    session.editor.bad = ("Rome",)
    again = requests[1].model_copy(update={"target_new": "Italy", "id": "again"})
    receipt = session.apply(batch(2, again, requests[0]))
    assert receipt.superseded == ()
    assert session.state.request_ids == (requests[1].id, requests[0].id)


def test_nan_from_the_model_is_confined_to_its_request(
    make: Callable[..., EditSession], requests: list[EditRequest]
) -> None:
    session = make(MEMIT.model_copy(update={"values": VALUES.model_copy(update={"kl_factor": 0.0})}))
    with torch.no_grad():  # one word of one prompt makes every state after it NaN
        session.model.hf.model.embed_tokens.weight[session.model.text.encode_target("mother")[0]] = torch.nan
    receipt = session.apply(batch(1, *requests[:3]))
    assert [r.applied for r in receipt.results] == [False, True, True]
    assert receipt.delta is not None and all(math.isfinite(n) for n in receipt.delta.norms().values())


def test_an_update_that_is_not_finite_is_not_applied(
    make: Callable[..., EditSession], requests: list[EditRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = make()
    before = weight_bytes(session)
    infinite = lambda self, layer, keys, state, ridge: torch.full((keys.shape[1], 48), math.inf)
    monkeypatch.setattr(type(session.editor), "right_factor", infinite)
    with pytest.raises(EditorFaultError, match="a plain one too: the update of layer 0 is not finite"):
        session.apply(batch(1, requests[0]))
    assert weight_bytes(session) == before
    assert session.sequence == 0 and session.state.request_ids == ()
    monkeypatch.undo()
    assert session.apply(batch(1, requests[0])).delta is not None


# --- the same fact again ---


def reached(model: EditableModel, request: EditRequest, layer: int) -> torch.Tensor:
    ids, at = plain.subject_position(model, "", request.prompt, request.subject)
    return plain.read(model, plain.block(model, layer), ids)[at]


def strong(model: EditableModel) -> tuple[MemitConfig, KeyCovariance]:
    config = MemitConfig(layers=(1,), cov_weight=1e-6, values=VALUES)
    return config, KeyCovariance.identity({1: model.weight(1).shape[1]})


TARGETS = ("English", "football", "Italy", "Canada")


def stored_shares(llama: EditableModel, *, same_fact: bool) -> tuple[list[float], EditSession]:
    """Share of the residual that each of four edits of one prompt stores."""
    config, covariance = strong(llama)
    session = EditSession(llama, make_editor(config), covariance, ("",))
    shares = []
    for n, target in enumerate(TARGETS, start=1):
        request = EditRequest(
            id=f"r{n}", subject="Rome", prompt="{} lies in", target_new=target,
            relation="where" if same_fact else f"where {n}",
        )  # fmt: skip
        before = reached(llama, request, 1)
        receipt = session.apply(batch(n, request))
        assert receipt.targets is not None
        asked, got = receipt.targets[0] - before, reached(llama, request, 1) - before
        shares.append(float(got @ asked / asked.square().sum()))
    return shares, session


def test_editing_a_fact_again_stores_the_whole_residual(llama: EditableModel) -> None:
    shares, session = stored_shares(llama, same_fact=True)
    assert shares == pytest.approx([1.0] * 4, abs=1e-3)
    assert session.state.request_ids == ("r4",)
    assert session.last is not None and session.last.superseded == ("r3",)


def test_without_taking_the_old_key_out_only_a_share_is_stored(llama: EditableModel) -> None:
    """Why superseding downdates: facts that count as different ones keep their keys, the n-th stores 1/n."""
    shares, session = stored_shares(llama, same_fact=False)
    assert shares == pytest.approx([1.0, 1 / 2, 1 / 3, 1 / 4], abs=1e-3)
    assert session.state.request_ids == ("r1", "r2", "r3", "r4")


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    "config",
    [
        AlphaEditConfig(layers=(1,), tau=1e9, l2=1e-6, values=VALUES),
        MemitConfig(layers=(1,), cov_weight=1e-6, values=VALUES),
        PmetConfig(layers=(1,), cov_weight=1e-6, values=PmetValues(lr=0.3, steps=2)),
        MemitMergeConfig(layers=(1,), cov_weight=1e-6, values=MergeValues(lr=0.3, steps=2)),
    ],
    ids=lambda value: getattr(value, "type", str(value)),
)
def test_a_batch_that_overwrites_another_stores_all_of_it_whatever_the_editor(
    make: Callable[..., EditSession], requests: list[EditRequest], config: Any, count: int
) -> None:
    """Every new key is mapped to the whole of its own residual; with the old keys in place it would be a half."""
    session = make(config)
    session.apply(batch(1, *requests[:count]))
    again = [request.model_copy(update={"id": f"again {n}"}) for n, request in enumerate(requests[:count])]
    receipt = session.apply(batch(2, *again))
    assert receipt.superseded == tuple(request.id for request in requests[:count])
    assert receipt.delta is not None
    right = receipt.delta.layers[1].right
    assert right is not None
    torch.testing.assert_close(right @ receipt.keys[1], torch.eye(count), rtol=0, atol=1e-3)


def test_superseding_in_a_batch_with_others(make: Callable[..., EditSession], requests: list[EditRequest]) -> None:
    session = make()
    session.apply(batch(1, *requests[:3]))
    again = EditRequest(id="new", subject="Rome", prompt="{} lies in ", target_new="Africa")
    assert again.fact_key == requests[1].fact_key, "white space at the end does not matter"
    receipt = session.apply(batch(2, requests[3], again))
    assert receipt.superseded == (requests[1].id,)
    assert session.state.request_ids == (requests[0].id, requests[2].id, requests[3].id, "new")
    past = session.state.keys[0].double()
    assert torch.equal(session.state.systems[0].past, past)


def test_an_editor_without_its_covariance_is_refused(llama: EditableModel) -> None:
    with pytest.raises(UserError, match=r"editor 'memit' needs a covariance; set covariance\.source"):
        EditSession(llama, make_editor(MEMIT), None, ("",))
    with pytest.raises(UserError, match="layer 9 does not exist"):
        EditSession(llama, make_editor(MemitConfig(layers=(9,))), KeyCovariance.identity({9: 48}), ("",))
    with pytest.raises(UserError, match=r"covers layers \[0\], not layer 1"):
        EditSession(llama, make_editor(MEMIT), KeyCovariance.identity({0: 48}), ("",))
