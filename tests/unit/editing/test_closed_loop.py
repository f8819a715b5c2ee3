"""Landed or weak, corrections, policies: what a session reads from the model before it writes a batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from errata.editing.editors import REGISTRY, make_editor
from errata.editing.model.adapter import EditableModel
from errata.editing.request import EditBatch, EditRequest
from errata.editing.reverting import RevertOrder, revert
from errata.editing.session import EditReceipt, EditSession
from errata.editing.verify import PROBES, HeldProbes, VerifyConfig, moved_share
from tests.helpers.trained import covariance_of, edits, trained_model
from tests.unit.helpers import plain

CONTEXTS = ("", "You. ")
VALUES = {"lr": 0.15, "steps": 25, "clamp": 2.0, "units": "relative"}
SETTINGS: dict[str, dict[str, Any]] = {
    "alphaedit": {"tau": 10.0, "l2": 60.0},
    "memit": {"cov_weight": 100.0},
    "memit_merge": {"cov_weight": 100.0},
    "pmet": {"cov_weight": 300.0},
    "prune": {"cov_weight": 100.0, "base": 50.0},
    "rect": {"cov_weight": 150.0, "keep": 0.9},
    "emmet": {"damping": 100.0},
    "mose": {"preservation": 3.0, "selection": "predefined"},
    "rose": {"iga": False, "cov_weight": 60.0, "templates": ("{prompt}",)},
}
"""A ridge so strong that the first write does not get there."""
LAYERS = (0, 1)


@pytest.fixture
def requests() -> list[EditRequest]:
    """Edits of what the trained model knows."""
    return edits(5)


def session_of(name: str = "memit", verify: VerifyConfig | None = None, family: str = "llama", **settings: Any) -> Any:
    model = trained_model(family, 3)
    known: dict[str, Any] = {"layers": LAYERS} | ({"values": VALUES} if name in SETTINGS else {})
    config = REGISTRY[name][0](**(known | SETTINGS.get(name, {}) | settings))
    return EditSession(model, make_editor(config), covariance_of(model, LAYERS), CONTEXTS, verify)


def batch(sequence: int, *requests: EditRequest) -> EditBatch:
    return EditBatch(sequence=sequence, requests=requests)


def says(model: EditableModel, request: EditRequest) -> bool:
    """Whether the library's own pass has every token of the target as its argmax, the ones before it given."""
    target = model.text.encode_target(request.target_new)
    prompt = model.text.encode_prompt(request.prompt.replace("{}", request.subject))
    logits = plain.logits(model, prompt + target)
    return logits[len(prompt) - 1 : -1].argmax(dim=1).tolist() == target


def test_an_outcome_is_what_the_library_says(requests: list[EditRequest]) -> None:
    session = session_of(verify=VerifyConfig(corrections=0))
    receipt = session.apply(batch(1, *requests))
    for request, result in zip(requests, receipt.results, strict=True):
        assert (result.outcome == "landed") == says(session.model, request)
        target = session.model.text.encode_target(request.target_new)
        prompt = session.model.text.encode_prompt(request.prompt.replace("{}", request.subject))
        logp = plain.logits(session.model, prompt + target).log_softmax(dim=1)[len(prompt) - 1 : -1]
        want = float(logp.gather(1, torch.tensor(target)[:, None]).sum().exp())
        assert result.figures["p_target"] == pytest.approx(want, rel=1e-3, abs=1e-9)
        assert result.figures["contexts"][1] == 1


def test_share_and_cosine_are_those_of_the_states(requests: list[EditRequest]) -> None:
    session = session_of(verify=VerifyConfig(corrections=0))
    before = []
    for request in requests:
        ids, at = plain.subject_position(session.model, "", request.prompt, request.subject)
        before.append(plain.read(session.model, plain.block(session.model, 1), ids)[at])
    receipt = session.apply(batch(1, *requests))
    for number, (request, result) in enumerate(zip(requests, receipt.results, strict=True)):
        ids, at = plain.subject_position(session.model, "", request.prompt, request.subject)
        moved = plain.read(session.model, plain.block(session.model, 1), ids)[at] - before[number]
        wanted = receipt.targets[number] - before[number]
        assert result.figures["reached"] == pytest.approx(float(moved @ wanted / (wanted @ wanted)), rel=1e-3)
        assert result.figures["cosine"] == pytest.approx(
            float(torch.nn.functional.cosine_similarity(moved, wanted, dim=0)), rel=1e-3
        )


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_corrections_land_what_the_first_write_does_not(name: str, requests: list[EditRequest]) -> None:
    plain_session = session_of(name, VerifyConfig(corrections=0))
    first = plain_session.apply(batch(1, *requests))
    session = session_of(name, VerifyConfig(corrections=4))
    receipt = session.apply(batch(1, *requests))
    landed = lambda r: sum(result.outcome == "landed" for result in r.results)
    said = lambda r: sum(result.figures["p_target"] for result in r.results)
    assert landed(receipt) >= landed(first) and said(receipt) > 1.2 * said(first)
    if name != "prune":  # whose damping takes back a part of every further write
        assert landed(receipt) > landed(first)
    assert len(receipt.sweeps) > 1
    for request, result in zip(requests, receipt.results, strict=True):
        assert (result.outcome == "landed") == says(session.model, request), "of the weights that were committed"
    # one column an edit joins the past keys: that of the last sweep
    for layer, keys in receipt.keys.items():
        assert keys.shape[1] == len(requests)
        assert torch.equal(keys, receipt.sweeps[-1].keys[layer])
    assert torch.equal(receipt.targets, receipt.sweeps[-1].targets)


@pytest.mark.parametrize("name", ["alphaedit", "mose", "prune", "rect"])
def test_a_look_alone_changes_nothing(name: str, requests: list[EditRequest]) -> None:
    blind = session_of(name)
    seeing = session_of(name, VerifyConfig(corrections=0))
    for number in (1, 2):
        fresh = [r.model_copy(update={"id": f"{number}-{i}"}) for i, r in enumerate(requests)]
        a, b = blind.apply(batch(number, *fresh)), seeing.apply(batch(number, *fresh))
        assert a.delta.digest == b.delta.digest
    for layer, weight in blind.weights().items():
        assert torch.equal(weight, seeing.weights()[layer])


@pytest.mark.parametrize("name", ["alphaedit", "mose", "prune", "rect"])
def test_a_corrected_batch_replays_bit_for_bit(name: str, requests: list[EditRequest]) -> None:
    session = session_of(name, VerifyConfig(corrections=3))
    receipts = [session.apply(batch(1, *requests[:3])), session.apply(batch(2, *requests[3:]))]
    assert any(receipt.sweeps for receipt in receipts)
    again = session_of(name)
    for receipt in receipts:
        again.replay(receipt)
    for layer, weight in session.weights().items():
        assert torch.equal(weight, again.weights()[layer])
    kept, replayed = session.state.tensors(), again.state.tensors()
    assert kept.keys() == replayed.keys() and all(torch.equal(kept[n], replayed[n]) for n in kept)


@pytest.mark.parametrize("name", ["memit", "alphaedit", "mose"])
def test_a_revert_computes_a_corrected_batch_without_the_edit(name: str, requests: list[EditRequest]) -> None:
    session = session_of(name, VerifyConfig(corrections=3))
    base, covariance = session.weights(), covariance_of(session.model, LAYERS)
    receipt = session.apply(batch(1, *requests))
    assert len(receipt.sweeps) > 1
    gone = requests[1].id

    def order(sequence: int) -> RevertOrder:
        kept = {r.id: r for r in requests}
        return RevertOrder(sequence, (gone,), frozenset({gone}), {1: receipt.delta}, 1, kept)

    revert(session, order(2), [covariance, receipt])
    twin = session_of(name, VerifyConfig(corrections=3))
    twin.replay(receipt)
    revert(twin, order(2), [covariance, receipt])
    for layer, weight in session.weights().items():
        assert torch.equal(weight, twin.weights()[layer])
        assert not torch.equal(weight, base[layer])
    assert gone not in session.state.request_ids
    others = [r for r in requests if r.id != gone]
    landed = sum(says(session.model, r) for r in others)
    assert landed >= sum(result.outcome == "landed" for result in receipt.results if result.request_id != gone) - 1


def test_an_editor_that_writes_nothing_lands_nothing(
    requests: list[EditRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = session_of(verify=VerifyConfig())
    nothing = lambda self, layer, keys, state, ridge=None: torch.zeros(keys.shape[1], keys.shape[0])
    monkeypatch.setattr(type(session.editor), "right_factor", nothing)
    receipt = session.apply(batch(1, *requests))
    assert [r.outcome for r in receipt.results] == ["weak"] * len(requests)
    assert all(abs(r.figures["reached"]) < 1e-6 for r in receipt.results)
    assert receipt.moved == 0.0


def test_weak_edits_are_refused_on_demand(requests: list[EditRequest]) -> None:
    kept = session_of(verify=VerifyConfig(corrections=0))
    weak = {r.request_id for r in kept.apply(batch(1, *requests)).results if r.outcome == "weak"}
    assert weak, "else this shows nothing"
    session = session_of(verify=VerifyConfig(corrections=0, on_weak="refuse"))
    receipt = session.apply(batch(1, *requests))
    refused = {r.request_id: r for r in receipt.results if not r.applied}
    assert weak <= refused.keys()
    assert all(r.reason == "not_landed" and r.figures["argmax"][0] < r.figures["argmax"][1] for r in refused.values())
    assert all(r.outcome == "landed" for r in receipt.results if r.applied)
    assert set(session.state.request_ids) == set(receipt.request_ids) == {r.id for r in requests} - refused.keys()


def test_weak_edits_are_left_for_a_batch_of_their_own(requests: list[EditRequest]) -> None:
    session = session_of(verify=VerifyConfig(corrections=0, on_weak="retry"))
    receipt = session.apply(batch(1, *requests))
    assert receipt.later and all(r.outcome == "landed" for r in receipt.results)
    assert {r.request_id for r in receipt.results} == {r.id for r in requests} - set(receipt.later)
    alone = next(r for r in requests if r.id == receipt.later[0])
    (result,) = session.apply(batch(2, alone)).results
    assert result.applied and result.outcome is not None, "alone it is kept, whatever it is"


def test_a_batch_that_damages_is_cut_and_its_culprits_refused(requests: list[EditRequest]) -> None:
    free = session_of(verify=VerifyConfig(corrections=0))
    assert free.apply(batch(1, *requests)).moved > 0, "else this shows nothing"
    session = session_of(verify=VerifyConfig(corrections=0, max_damage=0.0))
    receipt = session.apply(batch(1, *requests))
    refused = [r for r in receipt.results if not r.applied]
    assert refused and all(r.reason == "damage" and r.figures["moved"] > 0 for r in refused)
    assert receipt.moved in (None, 0.0)
    held = HeldProbes(session.model, PROBES).ask()
    base = HeldProbes(session_of().model, PROBES).ask()
    assert moved_share(base, held) == 0.0


@pytest.mark.parametrize("name", ["ft_l", "ultraedit"])
def test_editors_without_target_values_report_the_answer_alone(name: str, requests: list[EditRequest]) -> None:
    session = session_of(name, VerifyConfig(), layers=(1,) if name == "ft_l" else (0, 1))
    receipt: EditReceipt = session.apply(batch(1, *requests[:2]))
    for result in receipt.results:
        assert result.outcome in ("landed", "weak")
        assert result.figures is not None and set(result.figures) == {"p_target", "argmax", "contexts"}
