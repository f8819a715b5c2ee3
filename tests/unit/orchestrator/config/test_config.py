"""The root configuration: closed, explained in one line, resolved the same way each time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from errata.editing.editors import REGISTRY
from errata.editing.errors import UserError
from errata.orchestrator.config.loading import apply_override, build_config, load_config
from errata.orchestrator.config.presets import configs_root
from errata.orchestrator.config.run import RunConfig
from errata.orchestrator.covariance.jobs import estimate_job


def plain(**sections: Any) -> dict[str, Any]:
    """The least a configuration must say, with sections replaced."""
    data: dict[str, Any] = {
        "model": {"name": "some-model"},
        "editor": {"type": "memit", "layers": [1, 2]},
        "stream": {"path": "facts.jsonl"},
        "covariance": {"tokens": 100},
        "evaluation": {"held_out": None},
    }
    return {**data, **sections}


def refused(data: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        build_config(data)
    message = str(caught.value)
    assert "\n" not in message
    return message


# ---------------------------------------------------------------- unknown keys


def test_an_unknown_key_names_itself_its_value_a_near_match_and_what_is_allowed():
    message = refused(plain(refresh={"evry": 50}))
    assert "unknown key 'refresh.evry' = 50" in message
    assert "did you mean 'every'?" in message
    assert "allowed: drift, ema_weight, every, lag, max_jsd, mixture_weight, mode, model, seconds" in message


@pytest.mark.parametrize(
    ("sections", "key", "allowed"),
    [
        ({"modle": {"name": "x"}}, "'modle'", "covariance"),
        ({"model": {"name": "x", "dtyp": "float32"}}, "'model.dtyp'", "dtype"),
        ({"editor": {"type": "memit", "layers": [1], "tau": 1}}, "'editor.tau'", "cov_weight"),
        ({"editor": {"type": "alphaedit", "layers": [1], "values": {"step": 3}}}, "'editor.values.step'", "steps"),
        ({"covariance": {"tokens": 5, "slot": 3}}, "'covariance.slot'", "slots"),
        ({"stream": {"path": "x", "schem": "own"}}, "'stream.schem'", "schema"),
        ({"memory": {"scr": {"kk": 3}}}, "'memory.scr.kk'", "k"),
        ({"memory": {"embedder": {"type": "hash", "dimm": 64}}}, "'memory.embedder.dimm'", "dim"),
        ({"memory": {"embedder": {"type": "sentence", "modle": "x"}}}, "'memory.embedder.modle'", "model"),
        ({"memory": {"indx": {}}}, "'memory.indx'", "index"),
        ({"ray": {"editor": {"num_cpu": 1}}}, "'ray.editor.num_cpu'", "num_cpus"),
    ],
)
def test_unknown_keys_anywhere(sections, key, allowed):
    message = refused(plain(**sections))
    assert f"unknown key {key}" in message
    listed = message.partition("allowed: ")[2].replace(",", " ").split()
    assert allowed in listed, message


def test_further_problems_are_counted():
    assert "(and 1 more)" in refused(plain(refresh={"evry": 50, "leg": 1}))


def test_an_enormous_value_is_shortened():
    assert len(refused(plain(name="x" * 5000 + " "))) < 300


# ---------------------------------------------------------------- bad values


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"batching": {"size": 0}}, "batching.size = 0: Input should be greater than or equal to 1"),
        ({"batching": {"size": "many"}}, "batching.size = 'many'"),
        ({"model": {"name": "x", "dtype": "int8"}}, "model.dtype = 'int8': Input should be 'float32', 'float16' or"),
        (
            {"refresh": {"every": 5, "mode": "sum"}},
            "refresh.mode = 'sum': Input should be 'replace', 'ema' or 'mixture'",
        ),
        ({"editor": {"type": "alphaedit", "layers": []}}, "editor.layers = []"),
        ({"editor": {"type": "alphaedit", "layers": [3, 1]}}, "must be ascending without repeats, got [3, 1]"),
        (
            {"editor": {"type": "alphaedit", "layers": [1], "tau": -1}},
            "editor.tau = -1: Input should be greater",
        ),
        ({"editor": {"layers": [1]}}, "key 'editor.type' is missing"),
        ({"name": "two words"}, "name = 'two words'"),
        ({"evaluation": {"arms": ["edited"]}}, "arms must include 'base'"),
        ({"evaluation": {"arms": ["base", "best"]}}, "evaluation.arms.1 = 'best'"),
        ({"memory": {"embedder": {"type": "bag"}}}, "memory.embedder.type = 'bag'; allowed: 'sentence', 'hash'"),
        ({"ray": {"generation_workers": 0}}, "ray.generation_workers = 0"),
    ],
)
def test_a_bad_value_names_the_key_the_value_and_what_is_allowed(sections, said):
    assert said in refused(plain(**sections))


def test_an_unknown_editor_lists_the_known_ones():
    message = refused(plain(editor={"type": "magic", "layers": [1]}))
    assert "editor.type = 'magic'" in message
    assert all(repr(name) in message for name in REGISTRY)


def test_missing_sections_and_keys_are_named():
    data = plain()
    del data["model"]
    assert "key 'model' is missing" in refused(data)
    assert "key 'model.name' is missing" in refused(plain(model={}))


@pytest.mark.parametrize("budget", [{}, {"tokens": 5, "sequences": 5}])
def test_one_budget_of_two(budget):
    assert "give one of tokens and sequences" in refused(plain(covariance=budget))


def test_an_identity_needs_no_budget_and_cannot_be_refreshed():
    assert build_config(plain(covariance={"source": "identity"})).covariance.tokens is None
    message = refused(plain(covariance={"source": "identity"}, refresh={"every": 5}))
    assert "refresh.every needs covariance.source 'self_generated'" in message


# ---------------------------------------------------------------- editors


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_every_registered_editor_is_chosen_by_its_type(name):
    model, _ = REGISTRY[name]
    assert "type" in model.model_fields and model.model_fields["type"].default == name


def test_the_type_decides_which_settings_there_are():
    config = build_config(plain(editor={"type": "alphaedit", "layers": [1], "tau": 0.5}))
    assert type(config.editor) is REGISTRY["alphaedit"][0] and config.editor.tau == 0.5
    assert type(build_config(plain()).editor) is REGISTRY["memit"][0]


# ---------------------------------------------------------------- overrides


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("batching.size=3", ("batching", "size"), 3),
        ("stream.limit=null", ("stream", "limit"), None),
        ("editor.layers=[2, 3]", ("editor", "layers"), [2, 3]),
        ("stream.path=a=b.jsonl", ("stream", "path"), "a=b.jsonl"),
        ("memory.scr.k = 5", ("memory", "scr", "k"), 5),
        ("stream.path=a #b.jsonl", ("stream", "path"), "a #b.jsonl"),
        ("name=#1", ("name",), "#1"),
        ("tracking.uri=", ("tracking", "uri"), ""),
        ("covariance.tokens=1e3", ("covariance", "tokens"), "1e3"),
        ("evaluation.stop_at_newline=false", ("evaluation", "stop_at_newline"), False),
    ],
)
def test_an_override_sets_one_dotted_key(override, path, value):
    data = plain()
    apply_override(data, override)
    found: Any = data
    for key in path:
        found = found[key]
    assert found == value


def test_an_override_leaves_its_neighbors_alone():
    data = plain()
    apply_override(data, "editor.values.lr=0.1")
    assert data["editor"] == {"type": "memit", "layers": [1, 2], "values": {"lr": 0.1}}


@pytest.mark.parametrize("override", ["batching.size", "=3", "batching..size=3", ".=1"])
def test_an_override_needs_a_key_and_an_equals_sign(override):
    with pytest.raises(UserError, match=r"want dotted.key=value"):
        apply_override(plain(), override)


def test_an_override_below_a_plain_value_or_of_bad_yaml_is_refused():
    with pytest.raises(UserError, match=r"'path' holds 'facts\.jsonl' and has no keys below it"):
        apply_override(plain(), "stream.path.deep=1")
    with pytest.raises(UserError, match=r"--set editor.layers: value '\[1, ' is not valid YAML"):
        apply_override(plain(), "editor.layers=[1, ")


def test_an_override_into_a_list_is_refused():
    with pytest.raises(UserError, match="has no keys below it"):
        apply_override(plain(), "editor.layers.0=1")


def test_later_overrides_win_and_are_checked(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(plain()))
    assert load_config(str(path), ["batching.size=3", "batching.size=4"]).batching.size == 4
    with pytest.raises(UserError, match=r"c\.yaml: unknown key 'batching.sise' = 3; did you mean 'size'"):
        load_config(str(path), ["batching.sise=3"])


# ---------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a\n- b\n", "a configuration is a mapping of keys, got list"),
        ("", "a configuration is a mapping of keys, got NoneType"),
        ("model: {name: x\nstream: [", "line 2: not valid YAML"),
        ("a: b: c", "line 1: not valid YAML"),
    ],
)
def test_a_file_that_is_no_mapping(text, said, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_config(str(path))
    assert said in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_binary_file_is_refused(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(UserError, match="not valid YAML"):
        load_config(str(path))


def test_every_shipped_configuration_loads_and_finds_its_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # found by their place in the package, not in the working directory
    paths = sorted(
        p
        for p in configs_root().rglob("*.yaml")
        if p.parent.name not in ("models", "editors", "covariances", "experiments")
    )
    assert configs_root() / "quickstart.yaml" in paths
    for path in paths:
        config = load_config(str(path))
        if config.evaluation.held_out is not None:
            assert Path(config.evaluation.held_out).is_file(), path
    assert Path(load_config("quickstart").stream.path).is_file()


def test_the_resolved_configuration_loads_to_an_equal_one(tmp_path):
    config = load_config("quickstart", ["refresh.mode=ema", "stream.schema=own", "editor.values.lr=0.25"])
    path = tmp_path / "resolved.yaml"
    path.write_text(config.to_yaml())
    again = load_config(str(path))
    assert again == config and again.digest == config.digest and again.to_yaml() == config.to_yaml()
    assert RunConfig.model_validate(config.dump()) == config


# ---------------------------------------------------------------- identity


@pytest.mark.parametrize(
    "sections",
    [
        {"name": "other"},
        {"ray": {"generation_workers": 3}},
        {"tracking": {"experiment": "other"}},
        {"stream": {"path": "facts.jsonl", "limit": 5}},
    ],
)
def test_where_it_runs_and_where_the_stream_ends_may_change_on_resume(sections):
    assert build_config(plain(**sections)).digest == build_config(plain()).digest


def test_a_setting_that_came_later_is_no_part_of_the_identity_unless_it_is_used():
    """A run of a release before it goes on: what was not there then must not be asked of it now."""
    known = {
        "seed": None,
        "model": {"dtype", "name"},
        "editor": {"cov_weight", "l2", "layers", "past_keys", "tau", "type", "values"},
        "contexts": {"count", "length"},
        "stream": {"path", "schema", "skip", "target"},
        "batching": {"size"},
        "covariance": {
            *("corpus", "max_new_tokens", "mixture", "seed", "seed_mode", "seed_tokens", "sequences", "server"),
            *("sequences_per_unit", "slots", "source", "tokens", "units_per_block"),
        },
        "refresh": {"ema_weight", "every", "lag", "max_jsd", "mode", "model"},
        "memory": {"embedder", "index", "scr"},
        "evaluation": {
            *("arms", "every", "held_out", "latency_questions", "max_new_tokens", "sample", "stop_at_newline"),
        },
    }
    identity = build_config(plain()).identity()
    assert set(identity) <= set(known)
    for section, keys in known.items():
        if keys is not None:
            assert set(identity[section]) <= keys, section


@pytest.mark.parametrize(
    "sections",
    [
        {"seed": 1},
        {"editor": {"type": "memit", "layers": [1, 3]}},
        {"batching": {"size": 11}},
        {"batching": {"by_subject": True}},
        {
            "memory": {"embedder": {"type": "sentence", "normalize": False}, "scr": {"style": "paper"}},
            "evaluation": {"arms": ["base", "memory"], "held_out": None},
        },
        {"covariance": {"tokens": 101}},
        {"refresh": {"every": 5}},
        {"stream": {"path": "facts.jsonl", "skip": 1}},
        {"model": {"name": "some-model", "dtype": "bfloat16"}},
    ],
)
def test_what_decides_the_results_is_part_of_the_identity(sections):
    assert build_config(plain(**sections)).digest != build_config(plain()).digest


def test_a_job_takes_its_budget_its_seed_and_its_version():
    config = build_config(plain(covariance={"sequences": 8, "seed": 3, "slots": 2, "units_per_block": 2}))
    job = estimate_job(config.covariance, [1, 2], "v" * 64, seed_shift=50)
    assert (job.sequences, job.tokens, job.seed, job.layers) == (8, None, 53, (1, 2))
    assert (job.generation.slots, job.units_per_block, job.version) == (2, 2, "v" * 64)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ('memory.statement="{}\\0"', "memory.statement: holds NUL at character 2"),
        ('name="\\ud83d"', r"name: holds half of a surrogate pair \(\\ud83d\)"),
    ],
)
def test_texts_of_a_configuration_go_through_the_same_gate(setting: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        load_config("quickstart", [setting])


@pytest.mark.parametrize("name", ["grace", "wise", "gated_kv"])
def test_what_cannot_hold_a_module_is_refused_by_name(name):
    editor = {"type": name, "layers": [1]}
    assert build_config(plain(editor=editor)).editor.type == name
    spread = refused(plain(editor=editor, model={**plain()["model"], "parallel": {"size": 2}}))
    assert f"{name!r} puts a module into a layer, which a model spread over several processes cannot hold" in spread
    sent = refused(plain(editor=editor, publish={"to": ["vllm=http://localhost:8000"]}))
    assert "a server of vLLM cannot hold; leave out publish.to and serve the run with `errata serve`" in sent


def test_dot_products_are_for_the_published_form_and_for_no_router():
    memory = {"embedder": {"type": "sentence", "normalize": False}, "scr": {"style": "paper"}}
    arms = {"arms": ["base", "memory"], "held_out": None}
    assert not build_config(plain(memory=memory, evaluation=arms)).memory.unit
    assert "needs scr.style 'paper', got 'auto'" in refused(plain(memory={"embedder": memory["embedder"]}))
    assert "the arm 'routed' weighs cosines" in refused(plain(memory=memory))


def test_a_batch_has_one_rule_about_subjects():
    assert "opposites" in refused(plain(batching={"by_subject": True, "distinct_subjects": True}))
