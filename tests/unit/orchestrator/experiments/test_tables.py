"""Which runs share a row, what their mean and error are, and what may not stand side by side."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from errata.editing.errors import UserError
from errata.orchestrator.experiments.collect import collect, differing_keys, read_run
from errata.orchestrator.experiments.tables import RunComparison, compare, mean_of
from errata.orchestrator.experiments.timeline import at_points
from errata.orchestrator.report.summary import ModelName, Perplexity, TimelinePoint, read_summary, write_summary

from .conftest import fact, write_sweep_record


def texts(comparison: RunComparison, key: str, block: int = 0) -> dict[str, str]:
    """Label -> mean in percent, the best with a star."""
    return {
        row.label: f"{100 * figure.mean:.1f}{'*' if figure.best else ''}"
        for row in comparison.blocks[block].rows
        if (figure := row.figures.get(key)) is not None
    }


def arms(base=0.0, edited=0.5, memory=None, both=None):
    found = {"base": {"reliability": base}, "edited": {"reliability": edited}}
    if memory is not None:
        found |= {"memory": {"reliability": memory}, "edited_memory": {"reliability": both}}
    return found


def test_mean_and_standard_error_over_seeds_by_hand():
    figure = mean_of({("0", ""): [0.1], ("1", ""): [0.2], ("2", ""): [0.6]})
    assert figure is not None and figure.count == 3
    assert figure.mean == pytest.approx(0.3)
    # deviations -0.2, -0.1, 0.3: sample variance 0.14 / 2, divided by 3
    assert figure.error == pytest.approx(math.sqrt(0.07 / 3))


def test_groups_are_averaged_within_their_seed_and_alone_they_are_the_sample():
    both = mean_of({("0", "a"): [0.0], ("0", "b"): [0.2], ("1", "a"): [0.4], ("1", "b"): [0.6]})
    assert both is not None and both.count == 2
    assert both.mean == pytest.approx(0.3) and both.error == pytest.approx(0.2)  # seeds 0.1 and 0.5
    alone = mean_of({("0", "a"): [0.0], ("0", "b"): [0.2]})
    assert alone is not None and alone.count == 2 and alone.error == pytest.approx(0.1)


def test_the_same_thing_measured_twice_is_no_repetition():
    figure = mean_of({("0", ""): [0.2, 0.2, 0.2]})
    assert figure is not None and (figure.mean, figure.error, figure.count) == (pytest.approx(0.2), None, 1)
    assert mean_of({}) is None


def test_rows_are_methods_by_arm_and_what_needs_no_editor_stands_once(tmp_path, make_run):
    cells = {}
    for method, editor, value in (("MEMIT", "memit", 0.4), ("AlphaEdit", "alphaedit", 0.6)):
        for seed in (0, 1):
            name = f"{editor}{seed}"
            settings = {"editor.type": editor, "seed": seed}
            make_run(name, arms(0.02, value + seed / 10, 0.9, 0.8), settings=settings)
            cells[name] = {"method": method, "seed": str(seed)}
    comparison = compare(collect([write_sweep_record(tmp_path, cells)]))
    assert texts(comparison, "reliability") == {
        "unedited": "2.0",
        "memory": "90.0*",
        "MEMIT": "45.0",
        "MEMIT + memory": "80.0",
        "AlphaEdit": "65.0",
        "AlphaEdit + memory": "80.0",
    }
    figures = {row.label: row.figures["reliability"] for row in comparison.blocks[0].rows}
    assert figures["memory"].error == pytest.approx(0.0) and figures["memory"].count == 2
    assert figures["MEMIT"].error == pytest.approx(0.05)


def point(edits: int, **norms: float) -> TimelinePoint:
    return TimelinePoint(edits=edits, version="v", facts=1, norms=norms)


def test_norms_are_those_at_the_end_over_those_of_the_base(make_run):
    whole = (point(0, a=1.0, b=4.0), point(1, a=9.0, b=9.0), point(2, a=2.0, b=5.0))
    found = {}
    for name, points in {
        "whole": whole,
        "no end": whole[:2],
        "no base": whole[1:],
        "bare base": (point(0), whole[2]),
    }.items():
        run = make_run(name, arms())
        summary = read_summary(run / "summary.json")
        assert summary.edits_applied == 2
        write_summary(run / "summary.json", summary.model_copy(update={"timeline": points}))
        rows = {row.arm: row for row in compare(collect([run])).blocks[0].rows}
        assert rows["base"].figures.get("norm_growth") is None
        found[name] = rows["edited"].figures.get("norm_growth")
    figure = found.pop("whole")
    assert figure is not None and figure.mean == pytest.approx((2 / 1 + 5 / 4) / 2)
    assert set(found.values()) == {None}


def test_the_routed_arm_has_a_row_and_a_line_of_its_own(make_run):
    figures = {"edited": 0.25, "edited_memory": 0.5, "routed": 0.75}
    run = make_run("r", {arm: {"reliability": value} for arm, value in figures.items()})
    assert texts(compare(collect([run])), "reliability") == {
        "memit": "25.0",
        "memit + memory": "50.0",
        "memit, routed": "75.0*",
    }


def test_a_memory_setting_makes_rows_of_its_own_for_the_memory(make_run):
    runs = [make_run(f"k{k}", arms(0, 0.5, k / 10, k / 20), settings={"memory.scr.k": k}) for k in (1, 3)]
    comparison = compare(collect(runs))
    assert list(texts(comparison, "reliability")) == [
        "unedited",
        "memory, memory.scr.k 1",
        "memory, memory.scr.k 3",
        "memory.scr.k 1",
        "memory.scr.k 1 + memory",
        "memory.scr.k 3",
        "memory.scr.k 3 + memory",
    ]


def test_models_data_and_lengths_have_tables_of_their_own(make_run):
    short = make_run("short", arms(), settings={"stream.limit": 1}, facts=[fact(1)])
    long = make_run("long", arms(edited=0.3), settings={"stream.limit": 2})
    comparison = compare(collect([short, long]))
    assert [block.title for block in comparison.blocks] == ["stream.limit 1", "stream.limit 2"]
    assert texts(comparison, "reliability", 1) == {"unedited": "0.0", "memit": "30.0"}


def test_models_in_directories_are_called_by_the_last_part(make_run):
    def run(name, place, digest):
        return make_run(name, arms(), settings={"model.name": place}, model=ModelName(name=place, digest=digest))

    runs = [run("a", "/srv/models/gemma", "11111111f"), run("b", "smollm2", "2"), run("c", "org/qwen", "3")]
    titles = [block.title for block in compare(collect(runs)).blocks]
    assert titles == ["gemma", "smollm2", "org/qwen"]
    # the same model at another place is the same one, another model of that name is not
    again = [*runs, run("d", "/mnt/gemma", "11111111f"), run("e", "/mnt/other/gemma", "22222222f")]
    titles = [block.title for block in compare(collect(again), by=["model.name"]).blocks]
    assert titles == ["gemma (11111111)", "smollm2", "org/qwen", "gemma (22222222)"]


def test_recorded_intervals_of_shares_end_at_all_and_nothing(make_run):
    spans = {"edited": {"reliability": (0.97, 1.01), "locality": (-0.02, 0.1), "fluency": (4.9, 5.3)}}
    edited = {"reliability": 0.99, "locality": 0.04, "fluency": 5.1}
    row = compare(collect([make_run("r", {"edited": edited}, intervals=spans)]), intervals=True).blocks[0].rows[0]
    assert {key: row.figures[key].interval for key in edited} == {
        "reliability": (0.97, 1.0),
        "locality": (0.0, 0.1),
        "fluency": (4.9, 5.3),
    }


def test_by_another_key(make_run):
    runs = [
        make_run(f"{editor}{size}", arms(), settings={"editor.type": editor, "batching.size": size})
        for editor in ("memit", "rect")
        for size in (1, 10)
    ]
    assert [len(block.rows) for block in compare(collect(runs)).blocks] == [5]
    comparison = compare(collect(runs), by=["batching.size"])
    assert [block.title for block in comparison.blocks] == ["batching.size 1", "batching.size 10"]
    assert [row.label for row in comparison.blocks[0].rows] == ["unedited", "memit", "rect"]
    with pytest.raises(UserError, match=r"--by 'seed': there is no such difference; allowed: editor\.type, batching"):
        compare(collect(runs), by=["seed"])


def test_a_sweep_may_say_how_its_tables_are_split(tmp_path, make_run):
    for size in (1, 10):
        make_run(f"b{size}", arms(), settings={"batching.size": size})
    cells = {f"b{size}": {"regime": f"batches of {size}"} for size in (1, 10)}
    comparison = compare(collect([write_sweep_record(tmp_path, cells, tables=["regime"])]))
    assert [block.title for block in comparison.blocks] == ["batches of 1", "batches of 10"]


def test_lower_is_better_where_it_is_and_equal_figures_share_the_mark(make_run):
    runs = [
        make_run(
            name,
            {"edited": {"reliability": reliability, "locality": 0.7, "query_seconds": seconds}},
            settings={"editor.type": name},
        )
        for name, reliability, seconds in (("a", 0.5001, 2.0), ("b", 0.5004, 1.0), ("c", 0.4, 1.5))
    ]
    rows = {row.label: row.figures for row in compare(collect(runs)).blocks[0].rows}
    assert [rows[name]["query_seconds"].best for name in "abc"] == [False, True, False]
    assert [rows[name]["reliability"].best for name in "abc"] == [True, True, False]  # 50.0 both as printed
    assert [rows[name]["locality"].best for name in "abc"] == [False] * 3  # where all are equal none is best


def test_the_average_needs_all_four_generated_figures(make_run):
    full = {"reliability": 0.8, "generalization_gen": 0.6, "locality": 0.4, "portability": 0.2}
    comparison = compare(collect([make_run("r", {"edited": full, "memory": {**full, "portability": None}})]))
    assert texts(comparison, "average") == {"memit": "50.0"}


def test_differing_keys_are_the_fewest_that_tell_the_runs_apart():
    settings = [
        {"name": "a", "editor.type": "memit", "editor.cov_weight": 1.0, "seed": 0, "ray.address": "x"},
        {"name": "b", "editor.type": "alphaedit", "editor.tau": 0.1, "seed": 0, "ray.address": "y"},
        {"name": "c", "editor.type": "alphaedit", "editor.tau": 0.1, "seed": 1, "ray.address": "z"},
    ]
    assert differing_keys(settings) == ["editor.type", "seed"]
    assert differing_keys([{**settings[1]}, {**settings[1], "editor.tau": 0.2}]) == ["editor.tau"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"editor.regime": "retrieved", "stream.limit": 12}, ["editor.regime"]),
        ({"model.name": "other", "stream.limit": 12}, ["model.name"]),
        ({"editor.tau": 0.2, "stream.limit": 12, "evaluation.every": None}, ["editor.tau"]),
        ({"covariance.tokens": 9, "evaluation.sample": 3, "stream.limit": 12}, ["covariance.tokens"]),
        ({"router.max_false_alarms": 0.1, "contexts.count": 1}, ["contexts.count"]),
        ({"stream.limit": 12, "evaluation.every": None}, ["stream.limit"]),
    ],
)
def test_what_says_most_of_a_method_names_the_difference_and_a_length_comes_last(changes, named):
    usual = {
        "model.name": "m",
        "editor.type": "alphaedit",
        "editor.regime": "accumulated",
        "editor.tau": 0.1,
        "covariance.tokens": 7,
        "contexts.count": 5,
        "router.max_false_alarms": 0.02,
        "stream.limit": 102,
        "evaluation.every": 51,
        "evaluation.sample": 12,
    }
    assert differing_keys([usual, {**usual, **changes}]) == named


@pytest.mark.parametrize(
    ("key", "value", "before"),
    [
        ("editor.regime", "retrieved", "accumulated"),
        ("editor.units", "relative", "absolute"),
        ("batching.distinct_subjects", True, "false"),
        ("memory.scr.chooser", "none", "likelihood"),
        ("refresh.mode", "mixture", "replace"),
    ],
)
def test_a_run_of_before_a_setting_has_its_default(make_run, key, value, before):
    old = make_run("old", arms(edited=0.4), facts=(fact(1), fact(2)))
    new = make_run("new", arms(edited=0.6), settings={key: value})
    collection = collect([old, new])
    assert collection.axes == (key,)
    labels = [run.coordinates[key] for run in collection.runs]
    assert labels[0] == before and labels[1] in (str(value), str(value).lower())


def test_blocks_of_different_lengths_that_are_named_otherwise_say_their_lengths(make_run):
    short = make_run("short", arms(), settings={"editor.regime": "retrieved", "stream.limit": 2})
    long = make_run(
        "long",
        arms(),
        settings={"editor.regime": "accumulated", "stream.limit": 3},
        facts=(fact(1), fact(2), fact(3)),
    )
    titles = [block.title for block in compare(collect([short, long])).blocks]
    assert titles == ["retrieved, 2 edits", "accumulated, 3 edits"]


def test_runs_that_say_the_same_settings_are_left_as_they_are(make_run):
    first, second = make_run("a", arms(), settings={"seed": 0}), make_run("b", arms(), settings={"seed": 1})
    assert [dict(run.settings) for run in collect([first, second]).runs] == [
        dict(read_run(path).settings) for path in (first, second)
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"facts": [fact(1, "{} lies in"), fact(2)]}, "edit 'f1' was asked about in other words"),
        ({"facts": [fact(8), fact(9)]}, "a and b have no edit in common"),
        ({"metric_versions": {"token_accuracy": 2}}, "metric token_accuracy has version 1 in a, version 2 in b"),
        (
            {"model": ModelName(name="tiny", digest="other")},
            r"different models: tiny \(tiny-diges\) in a, tiny \(other\)",
        ),
        ({"settings": {"evaluation.max_new_tokens": 50}}, "evaluation.max_new_tokens differs: 12 in a, 50 in b"),
    ],
)
def test_what_cannot_be_compared_is_refused_or_marked(make_run, changes, said):
    settings = {"editor.type": "rect", **changes.pop("settings", {})}
    collection = collect([make_run("a", arms()), make_run("b", arms(), settings=settings, **changes)])
    with pytest.raises(UserError, match=said):
        compare(collection)
    notes = compare(collection, anyway=True).notes
    assert len(notes) == 1 and notes[0].startswith("NOT COMPARABLE: ")


def test_what_is_merely_worth_knowing_is_a_note(tmp_path, make_run):
    make_run("a", arms(), settings={"editor.type": "memit"})
    make_run("b", arms(), settings={"editor.type": "rect"}, facts=[fact(1)], errata_version="0.2.0", metric_versions={})
    cells = {"a": {"method": "MEMIT"}, "b": {"method": "RECT"}, "-c": {"method": "ROME"}}
    notes = compare(collect([write_sweep_record(tmp_path, cells)])).notes
    assert [note.split(":")[0] for note in notes] == [
        "2 of 3 cells of demo are done",
        "b does not say the versions of its metrics",
        "not every run applied every edit",
        "made by several releases",
    ]
    assert "1 to 2 of 2" in notes[2]


def test_a_method_with_fewer_repetitions_is_noted(tmp_path, make_run):
    cells = {}
    for editor, seeds in (("memit", 2), ("rect", 1)):
        for seed in range(seeds):
            make_run(f"{editor}{seed}", arms(), settings={"editor.type": editor, "seed": seed})
            cells[f"{editor}{seed}"] = {"method": editor, "seed": str(seed)}
    assert compare(collect([write_sweep_record(tmp_path, cells)])).notes == (
        "fewer repetitions than the others' 2: rect (1)",
    )


def test_groups_with_other_facts_are_compared_group_by_group(tmp_path, make_run):
    cells = {}
    for group in (0, 1):
        for editor in ("memit", "rect"):
            name = f"{editor}{group}"
            settings = {"editor.type": editor, "stream.skip": group, "stream.limit": 1}
            make_run(name, arms(edited=group), settings=settings, facts=[fact(group)])
            cells[name] = {"method": editor, "edits": "1", "group": str(group)}
    comparison = compare(collect([write_sweep_record(tmp_path, cells)]))
    assert comparison.notes == ()
    assert texts(comparison, "reliability") == {"unedited": "0.0", "memit": "50.0", "rect": "50.0"}


def test_sweeps_and_runs_together_are_told_apart_by_their_settings(tmp_path, make_run):
    make_run("sweep/a", arms(edited=0.1), settings={"stream.path": "/there/facts.jsonl"})
    write_sweep_record(tmp_path / "sweep", {"a": {"method": "MEMIT"}})
    other = make_run("other", arms(edited=0.2), settings={"editor.type": "rect"})
    comparison = compare(collect([tmp_path / "sweep", other / "summary.json"]))
    assert texts(comparison, "reliability") == {"unedited": "0.0", "memit": "10.0", "rect": "20.0*"}


def test_what_is_no_run_is_refused(tmp_path, make_run):
    with pytest.raises(UserError, match="holds no finished run"):
        collect([tmp_path / "nowhere"])
    write_sweep_record(tmp_path, {"-a": {"method": "MEMIT"}})
    with pytest.raises(UserError, match="no run has finished"):
        collect([tmp_path])
    run = make_run("r", arms())
    (run / "facts.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(UserError, match=r"facts\.jsonl:1: not a fact"):
        read_run(Path(run))
    (run / "facts.jsonl").unlink()
    with pytest.raises(UserError, match=r"facts\.jsonl cannot be read"):
        read_run(run)


def test_perplexity_on_further_texts_has_a_column_each_and_the_lower_is_better(tmp_path, make_run):
    for name, code in (("a", 31.0), ("b", 29.0)):
        by_text = {"code": Perplexity(base=28.0, edited=code), "math": Perplexity(base=9.0, edited=9.5)}
        make_run(name, arms(), settings={"editor.type": name}, perplexities=by_text)
    found = compare(collect([tmp_path / "a", tmp_path / "b"]))
    headings = [column.heading for column in found.columns]
    assert headings.index("PPL code") == headings.index("PPL") + 1 == headings.index("PPL math") - 1
    (block,) = found.blocks
    seen = {row.label: row.figures["perplexity:code"] for row in block.rows}
    assert {label: figure.mean for label, figure in seen.items()} == {"unedited": 28.0, "a": 31.0, "b": 29.0}
    assert [label for label, figure in seen.items() if figure.best] == ["b"]


def test_every_point_of_a_timeline_has_a_table_of_its_own(tmp_path, make_run):
    make_run("a", arms(), settings={"editor.type": "a"}, timeline=((0, 0.0), (10, 0.9), (20, 0.7)))
    make_run("b", arms(), settings={"editor.type": "b"}, timeline=((0, 0.0), (10, 0.8), (20, 0.75)))
    make_run("c", arms(), settings={"editor.type": "c"})
    found = compare(at_points(collect([tmp_path / name for name in "abc"])))
    assert [block.coordinates for block in found.blocks] == [{"edits": "10"}, {"edits": "20"}]
    assert texts(found, "reliability", 0) == {"a": "90.0*", "b": "80.0"}
    assert texts(found, "reliability", 1) == {"a": "70.0", "b": "75.0*"}
    assert any("the first to be written" in note for note in found.notes)


def test_without_any_timeline_there_is_no_table_of_points(tmp_path, make_run):
    make_run("a", arms())
    with pytest.raises(UserError, match=r"set evaluation\.every"):
        at_points(collect([tmp_path / "a"]))


def test_questions_that_were_not_asked_are_a_note(make_run):
    figures = {"edited": {"efficacy": 0.5}}
    one = make_run("one", figures, skipped_probes=2, settings={"editor.type": "rect"})
    two = make_run("two", figures, skipped_probes=0)
    assert "2 questions a run not asked: longer than" in " ".join(compare(collect([one, two])).notes)
    three = make_run("three", figures, skipped_probes=5, settings={"editor.type": "rose"})
    assert "2 to 5 questions a run not asked" in " ".join(compare(collect([one, two, three])).notes)
    assert not compare(collect([two])).notes


def test_seconds_of_a_question_are_set_in_relation_to_the_unedited_models(tmp_path, make_run):
    """Revisiting, figures 5, 9 and 10: each run by its own unedited model, then the mean."""
    cells = {}
    for seed, (base, edited, memory) in enumerate(((2.0, 3.0, 8.0), (4.0, 4.0, 10.0))):
        name = f"run{seed}"
        seconds = {"base": base, "edited": edited, "memory": memory}
        make_run(name, {arm: {"query_seconds": value} for arm, value in seconds.items()}, settings={"seed": seed})
        cells[name] = {"seed": str(seed)}
    comparison = compare(collect([write_sweep_record(tmp_path, cells)]))
    rows = {row.arm: row.figures.get("query_ratio") for row in comparison.blocks[0].rows}
    assert rows["edited"].mean == pytest.approx((3.0 / 2.0 + 4.0 / 4.0) / 2)
    assert rows["memory"].mean == pytest.approx((8.0 / 2.0 + 10.0 / 4.0) / 2) and rows["base"] is None
