"""MEND on tiny models: the untrained edit, the sign, what training follows, and what a file goes on from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from errata.editing.editors.gradient.ft_l import replaced_maps
from errata.editing.editors.gradient.mend import Mend, MendConfig, shapes_of
from errata.editing.editors.gradient.mend_network import (
    MendNetwork,
    factors_of,
    load_network,
    network_digest,
)
from errata.editing.editors.gradient.mend_training import MendTrainer, MendTrainingConfig, subjects_of, without_subjects
from errata.editing.editors.modules.training import TargetRows
from errata.editing.errors import DamagedFileError, UserError
from errata.editing.request import EditRequest
from errata.editing.session import EditSession
from tests.helpers.tiny import tiny_model
from tests.unit.editing.editors.common import batch, session_of
from tests.unit.editing.editors.test_grace import fact

EDITS = [
    fact("a", "two", prompt="Therefore I think that {}"),
    fact("b", "ten", prompt="The answer is {}", subject="Alice Munro"),
    fact("c", "nine", subject="Angola"),
]
TEXTS = ("one two three four five six seven eight", "What is the question? yes no")
SETTINGS = MendTrainingConfig(rank=8, lr=1e-2, edit_lr=1e-2, lr_lr=1e-2, accumulate=2)


def trainer(
    *, records: Sequence[EditRequest] = EDITS, settings: MendTrainingConfig = SETTINGS, **config: Any
) -> MendTrainer:
    model = tiny_model("llama", layers=3)
    return MendTrainer(model, MendConfig(layers=(1, 2), **config), settings, records, TEXTS)


def losses(session: EditSession, requests: Sequence[EditRequest]) -> torch.Tensor:
    with torch.no_grad():
        return TargetRows(session.model, requests, 0).losses()


def test_untrained_an_edit_is_the_rate_times_the_gradient_downhill() -> None:
    session = session_of("mend", layers=(1, 2), lr=0.05)
    model, numbers = session.model, session.editor.layers
    weights = {n: model.weight(n).clone().requires_grad_() for n in numbers}
    with torch.enable_grad(), replaced_maps(model, weights):
        TargetRows(model, EDITS, 1).losses().mean().backward()
    before = losses(session, EDITS)
    receipt = session.apply(batch(1, *EDITS))
    for number, weight in weights.items():
        want = weight.detach() - 0.05 * weight.grad  # type: ignore[operator]
        torch.testing.assert_close(model.weight(number), want, rtol=1e-4, atol=1e-6)
    after = losses(session, EDITS)
    assert float(after.mean()) < float(before.mean()), "the sign"
    told = torch.tensor([result.loss for result in receipt.results])
    torch.testing.assert_close(after, told, rtol=1e-4, atol=1e-4)


def test_factors_are_those_of_the_gradient_and_of_tokens_that_have_one() -> None:
    model = tiny_model("llama", layers=3)
    numbers = MendConfig(layers=(1,)).numbers
    rows = TargetRows(model, EDITS, 1)
    weights = {n: model.weight(n).clone().requires_grad_() for n in numbers}
    with torch.enable_grad(), replaced_maps(model, weights):
        rows.losses().mean().backward()
    factors, _ = factors_of(model, rows, numbers)
    for number, (x, delta) in factors.items():
        torch.testing.assert_close(delta.T @ x, weights[number].grad, rtol=1e-4, atol=1e-7)
        assert 0 < len(x) <= int(rows.rows.lengths.sum())
    assert not any(p.requires_grad for p in model.hf.parameters())


def test_the_identity_is_where_a_network_begins_and_statistics_are_those_of_all_rows() -> None:
    model = tiny_model("llama", layers=3)
    shapes = shapes_of(model, MendConfig(layers=(1,)).numbers)
    network = MendNetwork(shapes, rank=8, lr=0.1)
    number, (size, width) = next(iter(shapes.items()))
    generator = torch.Generator().manual_seed(0)
    parts = [(torch.randn(n, width, generator=generator), torch.randn(n, size, generator=generator)) for n in (3, 5)]
    with torch.no_grad():
        for x, delta in zip(network(number, parts[0]), parts[0], strict=True):
            assert torch.equal(x, delta), "before it has seen two rows"
        for part in parts:
            network.watch(number, part)
        rows = torch.cat([torch.cat(part, dim=1) for part in parts])
        got = torch.cat(network(number, parts[0]), dim=1)
    want = (rows[:3] - rows.mean(dim=0)) / (rows.std(dim=0) + 1e-7)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_the_meta_gradient_is_that_of_finite_differences() -> None:
    training = trainer(settings=SETTINGS.model_copy(update={"edit_lr": 1e-3}))
    for record in EDITS:
        training.losses(record, record.text, TEXTS[0], watch=True)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # away from the identity, where half of the network has no gradient
        for parameter in training.network.weights.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)

    def loss() -> torch.Tensor:
        told, moved = training.losses(EDITS[0], "The answer is Rome", TEXTS[1], watch=False)
        return 0.1 * told + moved

    loss().backward()
    checked = 0
    for name, parameter in training.network.named_parameters():
        gradient = parameter.grad
        if gradient is None or float(gradient.abs().max()) < 1e-2:
            continue
        place = int(gradient.abs().argmax())
        values, step = parameter.data.view(-1), 1e-3
        ends = []
        for sign in (1, -1):
            values[place] += sign * step
            ends.append(float(loss().detach().double()))
            values[place] -= sign * step
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(float(gradient.view(-1)[place]), rel=5e-2), name
        checked += 1
    assert checked >= 4


def test_training_goes_on_to_the_bit_and_its_file_is_an_editor(tmp_path: Path) -> None:
    straight, first = trainer(), trainer()
    straight.train(7, tmp_path / "straight.safetensors", every=100)
    first.train(3, tmp_path / "cut.safetensors", every=100)
    again = trainer()
    again.resume(tmp_path / "cut.safetensors")
    assert again.step == 3
    again.train(7, tmp_path / "cut.safetensors", every=2)
    assert network_digest(again.network) == network_digest(straight.network)
    assert network_digest(straight.network) != network_digest(trainer().network)
    network, about, _ = load_network(tmp_path / "straight.safetensors")
    assert about["step"] == 7 and about["subjects"] == subjects_of(EDITS)
    digest = network_digest(network)
    session = session_of("mend", layers=(1, 2), trained=tmp_path / "straight.safetensors", digest=digest)
    assert session.apply(batch(1, EDITS[0])).delta is not None
    with pytest.raises(UserError, match=r"has digest .* the run was begun with"):
        session_of("mend", layers=(1, 2), trained=tmp_path / "straight.safetensors", digest="0" * 64)
    with pytest.raises(UserError, match=r"was trained for the maps \[1, 2, 1001, 1002, 2001, 2002\], the editor has"):
        session_of("mend", layers=(1,), trained=tmp_path / "straight.safetensors")
    other = trainer(settings=SETTINGS.model_copy(update={"lr": 0.5}))
    with pytest.raises(UserError, match=r"of another training \(settings differ\)"):
        other.resume(tmp_path / "cut.safetensors")
    (tmp_path / "short.safetensors").write_bytes((tmp_path / "cut.safetensors").read_bytes()[:200])
    with pytest.raises(DamagedFileError, match="trained editor"):
        load_network(tmp_path / "short.safetensors")


def test_training_lowers_what_it_is_to_lower() -> None:
    training = trainer(records=EDITS[:1], settings=SETTINGS.model_copy(update={"edit_weight": 1.0, "accumulate": 1}))
    told = [training.one()[0] for _ in range(25)]
    assert sum(told[-5:]) < sum(told[:5])


def test_no_subject_is_learned_from_that_is_tested() -> None:
    learned = without_subjects(EDITS, [EditRequest(subject="angola", prompt="{} is", target_new="x")])
    assert [record.id for record in learned] == ["a", "b"]
    with pytest.raises(UserError, match="0 records and 2 texts"):
        trainer(records=without_subjects(EDITS, EDITS))


def test_a_run_is_named_by_the_network_and_not_by_its_place() -> None:
    from errata.orchestrator.config.run import identity_of

    section = {"type": "mend", "layers": [1], "trained": "here.safetensors", "digest": "d1"}
    moved = {**section, "trained": "there.safetensors"}
    assert identity_of({"editor": section}) == identity_of({"editor": moved})
    assert identity_of({"editor": section}) != identity_of({"editor": {**section, "digest": "d2"}})
    assert isinstance(Mend(MendConfig(layers=(1,))), Mend)
