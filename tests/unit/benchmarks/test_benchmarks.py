"""The benchmarks on a tiny model: they compare answers before they give a ratio, and count what they say they count."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from benchmarks import (
    covariance,
    gpu_edit,
    linear_algebra,
    long_life,
    measuring,
    million,
    scaling_simulation,
    superseding,
    values,
    whole_edit,
)
from errata.editing.contexts import sample_contexts
from errata.editing.covariance import KeyCovariance
from errata.editing.editors.closed_form.memit import Memit, MemitConfig
from errata.editing.estimation.selfgen import SelfGenerationConfig
from errata.editing.model.adapter import EditableModel
from errata.editing.request import EditRequest
from errata.editing.values import FAST, ValueConfig, edit_segments, optimize_values
from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.fail_points import InjectedCrash, raise_once
from tests.helpers.tiny import tiny_model
from tests.unit.helpers import plain

CONTEXTS = ("", "Therefore I think. ", "You. ")
REQUESTS = [
    EditRequest(subject="Danielle Darrieux", prompt="The mother tongue of {} is", target_new="Italy yes"),
    EditRequest(subject="Angola", prompt="{} is located in", target_new="Canada"),
    EditRequest(subject="Rome", prompt="{} lies in", target_new="Africa"),
]
TEXTS = ["The capital of France is Paris. Rome lies in Italy.", "Alice Munro works as a writer in Canada."] * 3


@pytest.fixture(scope="module")
def model() -> EditableModel:
    return tiny_model("llama")


def test_the_published_form_is_the_plain_one(model: EditableModel) -> None:
    config = ValueConfig(lr=0.2, steps=5)
    for request in REQUESTS[:2]:
        delta, loss, steps = values.published(model, request, layer=1, contexts=CONTEXTS, config=config)
        want = plain.optimize(model, request, layer=1, contexts=CONTEXTS, config=config)
        torch.testing.assert_close(delta, want.delta, rtol=0, atol=2e-5 * float(want.delta.norm()))
        assert loss == pytest.approx(want.loss, rel=1e-5) and steps == want.steps


def test_values_are_compared_and_counted(model: EditableModel) -> None:
    config = ValueConfig(lr=0.2, steps=3)
    result = values.measure(
        model, REQUESTS, layer=1, contexts=CONTEXTS, config=config, plain=1, batches=(1, 3), repeats=1, rate=1e9
    )
    assert result["largest_difference_of_delta"] < 1e-4
    assert result["batch_3"]["edits"] == 3 and result["batch_3"]["steps_per_edit"] == 3
    assert result["batch_1"]["ratio"] == result["published_s_per_edit_step"] / result["batch_1"]["s_per_edit_step"]


def test_another_loss_or_another_number_of_steps_is_no_result(model: EditableModel) -> None:
    config = ValueConfig(lr=0.2, steps=3)
    (value,) = optimize_values(model, REQUESTS[:1], layer=1, contexts=CONTEXTS, config=config)
    values.same(value, value.delta, value.loss, value.steps, config.stop_loss)
    for other in (dataclasses.replace(value, loss=value.loss + 1e-3), dataclasses.replace(value, steps=2)):
        with pytest.raises(AssertionError):
            values.same(other, value.delta, value.loss, value.steps, config.stop_loss)


def test_the_floor_counts_products_above_the_value_layer(model: EditableModel) -> None:
    one = values.floor_operations(model, REQUESTS[:1], layer=1, contexts=("",))
    segments = edit_segments(model, REQUESTS[0], ("",))
    positions = sum(len(s.tokens) - s.subject for s in segments)
    hidden, inner, kv, vocabulary = 32, 48, 16, model.hf.config.vocab_size
    weights = 2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * inner
    targets = len(segments[0].targets)
    assert one == 4 * (positions * 2 * weights + (targets + 1) * hidden * vocabulary)


def test_the_fast_profile_fills_in_what_is_left_open(model: EditableModel) -> None:
    fast = ValueConfig(profile="fast", clamp=4.0)
    assert {name: getattr(fast, name) for name in FAST} == FAST and fast.clamp == 4.0
    given = ValueConfig(profile="fast", steps=7, lr=0.1)
    assert (given.steps, given.lr, given.contexts) == (7, 0.1, FAST["contexts"])
    assert ValueConfig.model_validate(fast.model_dump()) == fast
    assert ValueConfig().contexts is None and ValueConfig().steps == 25, "never by default"


def test_fewer_contexts_are_the_first_ones(model: EditableModel) -> None:
    config = ValueConfig(lr=0.2, steps=3, contexts=2)
    (got,) = optimize_values(model, REQUESTS[:1], layer=1, contexts=CONTEXTS, config=config)
    (want,) = optimize_values(
        model, REQUESTS[:1], layer=1, contexts=CONTEXTS[:2], config=config.model_copy(update={"contexts": None})
    )
    assert torch.equal(got.delta, want.delta)


def test_the_parts_of_an_edit_are_those_of_the_editor(model: EditableModel) -> None:
    editor = Memit(MemitConfig(layers=(0, 1), cov_weight=2.0, values=ValueConfig(lr=0.2, steps=2)))
    contexts = sample_contexts(model, count=1, length=3, seed=0)
    moment = KeyCovariance.identity(dict.fromkeys(editor.layers, 48))
    before = {layer: model.weight(layer).clone() for layer in editor.layers}
    row = whole_edit.measure(model, editor, REQUESTS, moment, contexts, batch=2, batches=1)
    assert row["edits"] == 2 and row["published_passes_per_edit"] == 6
    assert row["s_per_edit"] == pytest.approx(sum(row[f"{part}_s"] for part in whole_edit.PARTS))
    assert all(torch.equal(model.weight(layer), before[layer]) for layer in editor.layers)


def test_linear_algebra_is_compared_with_float64() -> None:
    result = linear_algebra.measure(96, 20, (1, 3), (48, 96), repeats=1, error_width=64)
    assert max(result["errors"]["memit"], result["errors"]["alphaedit"]) < 1e-9
    assert result["memit"]["residual_error"] < 1e-9 and result["alphaedit"]["residual_error"] < 1e-9
    for name in ("memit", "alphaedit"):
        assert result[name]["dense_extrapolated_from"] is None
        assert result[name]["batch_3_ratio"] == result[name]["dense_per_batch_s"] / result[name]["batch_3_s"]
    # past keys and solved past keys, and the factor of the capacitance matrix
    assert result["alphaedit"]["state_MiB"] == pytest.approx(8 * (2 * 96 * 20 + 20 * 20) / 2**20)


def test_the_text_pass_is_compared_with_one_pass_per_layer(model: EditableModel) -> None:
    result = covariance.text_pass(model, TEXTS, (0, 2), plain=2, repeats=1, rate=1e9, window=20)
    assert result["largest_difference_of_sums"] < 1e-5
    assert result["tokens"] == 3 * result["published_tokens"]
    hidden, inner, kv = 32, 48, 16
    layer = 2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * inner
    assert covariance.floor_operations(model, (0, 2)) == 2 * (3 * layer - hidden * inner) + 2 * inner**2


def test_generation_is_the_same_with_and_without_keys(model: EditableModel) -> None:
    config = SelfGenerationConfig(max_new_tokens=5, sequences_per_unit=3, slots=2)
    result = covariance.self_generation(model, (1,), config, repeats=1)
    assert result["tokens"] <= 15
    assert result["share"] == pytest.approx(result["fused_tokens_per_cpu_s"] / result["alone_tokens_per_cpu_s"])


def test_the_cost_of_sampling_stands_beside_the_products(model: EditableModel) -> None:
    config = SelfGenerationConfig(max_new_tokens=3, slots=2)
    result = covariance.sampling_cost(model, config, repeats=1)
    assert result["tokens"] == 6 and result["default"] == "inversion"
    spent = result["ms_per_token"]
    for way, ratio in result["times_the_products"].items():
        assert ratio == pytest.approx(spent[way] / spent["products"])
    shapes: list[tuple[int, ...]] = []
    linear = torch.nn.functional.linear
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "linear", lambda x, w: shapes.append((len(x), *w.shape)) or linear(x, w))
        covariance.products_of_a_step(model, 4)()
    hidden, inner, kv, words = 32, 48, 16, int(model.hf.config.vocab_size)
    layer = [(hidden, hidden), (kv, hidden), (kv, hidden), (hidden, hidden)]
    layer += [(inner, hidden), (inner, hidden), (hidden, inner)]
    assert shapes == [(4, *shape) for shape in [*layer * model.num_layers, (words, hidden)]]


def test_simulated_blocks_and_additions_take_what_they_take() -> None:
    machine = scaling_simulation.Machine(flush=2.0, add=4.0, network=1.0)
    job = scaling_simulation.Job(seconds=20.0, blocks=2, bytes=8.0, variation=0.0)
    alone = scaling_simulation.simulate(job, 1, machine)
    # two blocks of 10 s, a flush of 4 s each, one addition of 2 s
    assert alone.seconds == pytest.approx(30.0)
    assert alone.reduction_share == pytest.approx(10 / 30) and alone.efficiency == pytest.approx(20 / 30)
    near = scaling_simulation.simulate(job, 2, machine)
    assert near.seconds == pytest.approx(16.0)
    far = scaling_simulation.simulate(job, 2, machine, per_node=1)
    assert far.seconds == pytest.approx(24.0), "the other sum crosses the network"
    # in two pieces: 4 s each over the one network, added at once as soon as they are there, 1 s each
    pieces = scaling_simulation.Job(seconds=20.0, blocks=2, bytes=8.0, variation=0.0, pieces=2)
    assert scaling_simulation.simulate(pieces, 2, machine, per_node=1).seconds == pytest.approx(23.0)
    assert scaling_simulation.simulate(pieces, 2, machine).seconds == pytest.approx(16.0), "one adder"
    two = scaling_simulation.Machine(flush=2.0, add=4.0, network=1.0, adders=2)
    assert scaling_simulation.simulate(pieces, 2, two).seconds == pytest.approx(15.0)
    quick = scaling_simulation.Machine(flush=1e12, add=1e12, network=1e12)
    assert scaling_simulation.simulate(job, 2, quick).efficiency == pytest.approx(1.0)


def test_a_result_is_stored_with_its_context(tmp_path: Path) -> None:
    path = measuring.store("x", {"context": measuring.context(), "a": [1.23456789, 3]}, tmp_path / "new" / "x.json")
    found = json.loads(path.read_text())
    assert found["a"] == [1.235, 3] and found["benchmark"] == "x"
    assert found["context"]["threads"] >= 1 and found["context"]["torch"] == torch.__version__


def test_the_accelerators_benchmark_runs_on_a_small_shape() -> None:
    small = gpu_edit.random_llama(layers=3, hidden=64, inner=96, vocabulary=300, device="cpu", dtype=torch.float32)
    config = ValueConfig(lr=0.1, stop_loss=0.0, steps=2)
    rows = gpu_edit.measure(small, (0, 1), (1, 3), config, gpu_edit.CHIPS["h200"], past=4)
    assert [row["batch"] for row in rows] == [1, 3]
    # three edits in one micro-batch read the weights as often as one edit does
    assert rows[0]["floor_memory_s"] == pytest.approx(3 * rows[1]["floor_memory_s"])
    assert rows[0]["floor_operations_s"] == pytest.approx(rows[1]["floor_operations_s"])
    lengths = {len(small.text.encode_prompt(r.prompt.format(r.subject))) for r in gpu_edit.some_requests(3, 300)}
    assert lengths == {9}, "a word is a token"


def test_superseding_is_measured_in_both_forms() -> None:
    result = superseding.measure_all(small=True)
    assert [row["form"] for row in result["batches"]] == ["CapacitanceForm", "GramForm"]
    assert all(row["residual_error"] < 1e-12 for row in result["batches"])
    one = result["one_change"][0]
    assert one["ratio"] == one["without_s"] / one["append_s"]


def test_the_journal_of_a_long_life_is_one_that_the_journal_reads(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    million.write(path, 200, 50)
    with Journal.open(path, read_only=True) as journal:
        head = journal.head()
        held = journal.held(head.sequence)
        assert (head.sequence, head.edits, journal.held_count(20)) == (20, 200, len(held))
        assert len({row.fact_key for row in held}) == len(held) == journal.counts().applied
        assert [row.id for row in journal.held(20, 3)] == [row.id for row in held if row.applied_in == 20][-3:]
    assert million.measure(path)["requests"] == 200


@pytest.mark.slow  # a life of sixty edits, three times
def test_a_long_life_goes_on_where_it_was_stopped_or_killed(tmp_path: Path) -> None:
    def live(name: str, **further: float) -> dict[str, object]:
        return long_life.measure(tmp_path / name, 60, 18, 3, 3, local=True, **further)

    whole = live("whole")
    stopped = live("cut", minutes=0.0)
    assert stopped["tenths"] == [] and stopped["ratios"] == {}
    for point, visit in (("after_batch_applied", 1), ("after_commit", 7), ("after_revert_applied", 2)):
        with raise_once(point, visit=visit), pytest.raises(InjectedCrash):
            live("cut")
        with (tmp_path / "cut" / "notes.jsonl").open("ab") as file:
            file.write(b'{"kind": "batch", "da')  # as a kill leaves a line
    cut = live("cut")
    assert cut["starts"] == 5 and len(cut["tenths"]) == len(whole["tenths"]) == long_life.TENTHS
    assert [row["edits"] for row in cut["tenths"]] == [row["edits"] for row in whole["tenths"]]
    assert {"batch_wall", "revert", "restart"} <= cut["ratios"].keys()
    heads = []
    for name in ("whole", "cut"):
        with Journal.open(tmp_path / name / "run" / "journal.sqlite", read_only=True) as journal:
            assert journal.counts().requests == 60 and journal.counts().accepted == 0
            heads.append([v.digest for v in journal.versions() if v.kind == "edit"][:3])
    assert heads[0] == heads[1]
    with pytest.raises(SystemExit, match="holds another life"):
        long_life.measure(tmp_path / "cut", 50, 18, 3, 3, local=True)
