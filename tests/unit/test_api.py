"""`import errata`: one process, no Ray; what it does is a run that the commands read."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

import errata
from errata.api import configuration
from errata.editing.checkpoint.fingerprint import fingerprint
from errata.editing.checkpoint.load import load_model
from errata.editing.errors import UserError
from errata.orchestrator.config import model_presets
from tests.helpers.tiny import save_tiny, tiny_hf, tiny_tokenizer

ROOT = Path(__file__).parents[2]
SETTINGS: dict[str, Any] = {
    "editor": {"tau": 5.0, "l2": 0.001, "values": {"steps": 25, "lr": 0.5, "clamp": 8.0, "weight_decay": 0.0}},
    "contexts": {"count": 1, "length": 3},
    "covariance": {"tokens": 200, "max_new_tokens": 8, "sequences_per_unit": 4, "slots": 4, "store": None},
    "memory": {"embedder": {"type": "hash"}},
    "evaluation": {"max_new_tokens": 3},
}
FACTS = [
    {"subject": "France", "prompt": "The capital of {}", "target_new": "is", "paraphrases": ["The sport of France"]},
    {"subject": "Alice Munro", "prompt": "The writer Alice Munro", "target_new": "in"},
    {
        "subject": "Angola",
        "prompt": "The land of {}",
        "target_new": "the",
        "neighborhood": [{"prompt": "Rome lies in", "answer": "Italy"}],
    },
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"), "llama", layers=3)


def editor(checkpoint: Path, **options: Any) -> errata.Editor:
    options = {"layers": [1, 2], "settings": SETTINGS, "threads": 1, **options}
    return errata.Editor.from_pretrained(checkpoint, **options)


def prompt_of(fact: dict[str, Any]) -> str:
    return str(fact["prompt"]).replace("{}", str(fact["subject"]))


def test_facts_land_and_the_base_and_a_revert_say_what_was_said_before(checkpoint: Path) -> None:
    prompts = [prompt_of(fact) for fact in FACTS]
    with editor(checkpoint) as one:
        before = one.ask(prompts)
        results = one.edit(FACTS)
        assert [result.state for result in results] == ["applied"] * 3
        assert [result.outcome for result in results] == ["landed"] * 3, results
        assert all(0.03 < result.figures["p_target"] <= 1 for result in results)
        after = one.ask(prompts)
        assert [answer.startswith(fact["target_new"]) for answer, fact in zip(after, FACTS, strict=True)] == [True] * 3
        assert one.ask(prompts, arm="base") == before
        one.revert([result.id for result in results])
        assert one.ask(prompts) == before
        assert [result.state for result in one.results()] == ["reverted"] * 3


def test_a_fact_that_was_taken_back_can_be_written_again(checkpoint: Path) -> None:
    with editor(checkpoint) as one:
        first = one.edit(FACTS[:1])[0]
        one.revert(first.id)
        again = one.edit(FACTS[:1])[0]
        assert again.id == f"{first.id}-2" and (again.state, again.outcome) == ("applied", "landed")


def test_the_weights_are_those_of_the_journal_and_a_second_editor_goes_on_from_it(
    checkpoint: Path, tmp_path: Path
) -> None:
    from errata.orchestrator.cli import app

    run = tmp_path / "run"
    with editor(checkpoint, journal=run) as one:
        one.edit(FACTS[:2])
        version = one.version
        weights = {name: tensor.clone() for name, tensor in one.model.state_dict().items()}
        one.save_pretrained(tmp_path / "saved")
        assert one.save_lora(tmp_path / "lora") < 1e-5
    from safetensors.torch import load_file

    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert saved and all(torch.equal(tensor, weights[name]) for name, tensor in saved.items())
    assert json.loads((tmp_path / "lora" / "adapter_config.json").read_text())["peft_type"] == "LORA"

    def command(*arguments: str) -> str:
        done = CliRunner().invoke(app, list(arguments))
        assert done.exit_code == 0, done.output
        return done.output

    assert "Alice Munro" in command("log", str(run))
    assert "sound" in command("verify", str(run))
    assert version[:12] in command("show", "head", "--run", str(run))
    command("export", "head", "--format", "lora", "--output", str(tmp_path / "lora2"), "--run", str(run))
    assert (tmp_path / "lora2" / "adapter_model.safetensors").read_bytes() == (
        tmp_path / "lora" / "adapter_model.safetensors"
    ).read_bytes()
    with editor(checkpoint, journal=run) as other:
        assert other.version == version
        assert all(torch.equal(t, weights[n]) for n, t in other.model.state_dict().items())
        assert other.edit(FACTS[2:])[0].state == "applied"
        assert [result.state for result in other.results()] == ["applied"] * 3


def test_around_a_model_of_ones_own(tmp_path: Path) -> None:
    from errata.orchestrator.cli import app

    model, tokenizer = tiny_hf("llama", layers=3, seed=5), tiny_tokenizer()
    unedited = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    run = tmp_path / "run"
    options: dict[str, Any] = {"layers": [1], "settings": SETTINGS, "threads": 1, "method": "memit"}
    settings = {**SETTINGS, "editor": {"values": SETTINGS["editor"]["values"], "cov_weight": 1.0}}
    with errata.Editor(model, tokenizer, journal=run, **{**options, "settings": settings}) as one:
        assert one.edit(FACTS[:1])[0].state == "applied"
        changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, unedited[name])]
        assert changed == ["model.layers.1.mlp.down_proj.weight"]
    # the unedited checkpoint lies beside the journal: every version is rebuilt from there
    done = CliRunner().invoke(app, ["verify", str(run)])
    assert done.exit_code == 0 and "sound" in done.output, done.output


def test_metrics_by_arm_and_a_memory_that_is_made_when_it_is_asked(checkpoint: Path) -> None:
    with editor(checkpoint) as one:
        one.edit(FACTS)
        found = one.evaluate(FACTS, arms=["base", "edited", "edited+memory"])
        assert found["edited"]["efficacy"] == 1.0
        assert found["base"]["efficacy"] is not None and found["base"]["efficacy"] < 1.0
        assert found["edited"]["generalization"] is not None
        assert set(found) == {"base", "edited", "edited_memory"}
        assert isinstance(one.ask("The capital of France is", arm="memory"), str)
        # what is evaluated comes through the gate too: a probe with the slot is the probe with the subject in it
        spelled = {**FACTS[0], "paraphrases": ["People say that the capital of France is"]}
        slotted = {**spelled, "paraphrases": ["\ufeffPeople say that the capital of {} is "]}
        assert one.evaluate([slotted], arms=["base"]) == one.evaluate([spelled], arms=["base"])
        assert one.ask("The capital of France is ") == one.ask("The capital of France is")
        for bad in ("a\0", "a\ud800"):
            with pytest.raises(UserError, match="prompt 0 holds"):
                one.ask(bad)
            with pytest.raises(UserError, match=r"paraphrases\.0: holds"):
                one.evaluate([{**spelled, "paraphrases": [bad]}])


def test_in_context_editing_is_asked_where_it_is_told_what_to_demonstrate_with(
    checkpoint: Path, tmp_path: Path
) -> None:
    split = [{"subject": name, "prompt": "{} was born in", "target_new": "Rome"} for name in ("Ann Lee", "Bo Dahl")]
    (tmp_path / "split.jsonl").write_text("".join(json.dumps(record) + "\n" for record in split))
    told = {"evaluation": {"ike": {"demonstrations": str(tmp_path / "split.jsonl"), "k": 2}}}
    with editor(checkpoint, settings=SETTINGS | told) as one:
        one.edit(FACTS[:1])
        fact = {**FACTS[0], "neighborhood": [{"prompt": "The capital of Spain is", "answer": "Madrid"}]}
        found = one.evaluate([fact], arms=["base", "ike", "ike_oracle"])
        # a random model knows nothing, yet says something else behind demonstrations
        assert {arm: values["locality"] for arm, values in found.items()} == {"base": 1, "ike": 0, "ike_oracle": 0}
    with editor(checkpoint) as one, pytest.raises(UserError, match=r"ike.*demonstrations"):
        one.evaluate(FACTS[:1], arms=["base", "ike"])


def test_without_a_look_at_the_batch_an_edit_is_judged_when_it_is_told(checkpoint: Path) -> None:
    with editor(checkpoint) as seen, editor(checkpoint, settings=SETTINGS | {"verify": {"enabled": False}}) as unseen:
        (want,), (got,) = seen.edit(FACTS[:1]), unseen.edit(FACTS[:1])
        assert (got.state, got.outcome) == (want.state, want.outcome) == ("applied", "landed")
        assert got.figures["p_target"] == pytest.approx(want.figures["p_target"], rel=1e-4)


def test_a_preset_is_found_by_the_weights_and_holds_what_a_method_wants(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preset = {
        "model": {"name": "somebody/a-name-on-the-hub", "dtype": "float32"},
        "editor": {"layers": [0], "values": {"lr": 0.25}},
        "editors": {"memit": {"cov_weight": 77.0, "values": {"clamp": 3.0}}},
        "matches": fingerprint(checkpoint).model_dump(mode="json"),
    }
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "its.yaml").write_text(yaml.safe_dump(preset))
    monkeypatch.setattr(model_presets, "configs_root", lambda: tmp_path)
    model = load_model(str(checkpoint))
    found = {m: configuration(model, method=m, path=checkpoint).editor.model_dump() for m in ("memit", "alphaedit")}
    assert [(found[m]["layers"], found[m]["values"]["lr"]) for m in found] == [((0,), 0.25)] * 2
    assert found["memit"]["cov_weight"] == 77 and found["memit"]["values"]["clamp"] == 3
    assert found["alphaedit"]["values"]["clamp"] != 3


def test_what_is_wrong_is_one_line_and_changes_nothing(checkpoint: Path, tmp_path: Path) -> None:
    with editor(checkpoint) as one:
        version = one.version
        with pytest.raises(UserError, match=r"fact 1: key 'subject' is missing"):
            one.edit([FACTS[0], {"prompt": "x", "target_new": "y"}])
        with pytest.raises(UserError, match="prompt 'It is' contains neither the slot"):
            one.edit([{"subject": "France", "prompt": "It is", "target_new": "Rome"}])
        with pytest.raises(UserError, match="arm 'both' is not known; allowed: base, edited"):
            one.ask("x", arm="both")
        with pytest.raises(UserError, match="there is no edit 'no-such'"):
            one.revert("no-such")
        with pytest.raises(UserError, match="at least one fact"):
            one.evaluate([])
        assert one.version == version and one.results() == []
    with pytest.raises(UserError, match=r"allowed: .*alphaedit"):
        editor(checkpoint, method="no-such")
    with pytest.raises(UserError, match="layer 7 does not exist"):
        editor(checkpoint, layers=[7])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thing").touch()
    with pytest.raises(UserError, match="not empty"):
        editor(checkpoint, journal=tmp_path / "full")


def test_the_covariance_is_the_one_that_a_cluster_adds_up(checkpoint: Path, tmp_path: Path) -> None:
    """Seven blocks: by pairs as a tree that grows to the left, as the workers of a cluster hand them over."""
    from errata.actors.local import LocalEstimator, SharedModel
    from errata.actors.settings import ModelSpec, RoleConfig
    from errata.actors.workers.covariance import EstimateJob, UnitWorker
    from errata.editing.checkpoint.load import load_model
    from errata.editing.estimation.selfgen import SelfGenerationConfig

    generation = SelfGenerationConfig(max_new_tokens=6, sequences_per_unit=2, slots=2)
    job = EstimateJob(generation=generation, layers=(0, 1), sequences=14, version="v")
    spec, role = ModelSpec(name=str(checkpoint)), RoleConfig()
    seen: list[float] = []
    shared = SharedModel(load_model(str(checkpoint)), (0, 1))
    estimate = LocalEstimator(shared, spec, role).estimate(job, {}, lambda p: seen.append(p.share))
    worker = UnitWorker(spec, role)
    parts = [worker.block(job, index, 2, {})[1] for index in range(7)]
    for layer in (0, 1):
        s = [part[layer] for part in parts]
        want = (((s[0] + s[1]) + (s[2] + s[3])) + (s[4] + s[5])) + s[6]
        assert np.array_equal(estimate.covariance.sums[layer].numpy(), want)
    assert seen == pytest.approx([(k + 1) / 7 for k in range(7)])
    assert all(torch.equal(shared.model.weight(layer), shared.unedited[layer]) for layer in (0, 1))


def test_importing_errata_loads_nothing_and_the_editor_no_ray() -> None:
    script = dedent("""
        import sys
        import errata
        heavy = {"torch", "transformers", "numpy", "pydantic", "ray", "yaml", "typer", "rich"}
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
        assert "Editor" in dir(errata) and errata.__version__
        errata.Editor
        extra = {"ray", "faiss", "mlflow", "fastapi", "matplotlib", "deepspeed", "sentence_transformers", "redis",
                 "lm_eval", "peft", "datasets", "uvicorn", "prometheus_client", "httpx"}
        assert not extra & set(sys.modules), extra & set(sys.modules)
        try:
            errata.no_such
        except AttributeError as error:
            assert "no_such" in str(error)
    """)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_run_whose_files_are_on_object_storage_survives_the_loss_of_the_copies(
    checkpoint: Path, tmp_path: Path
) -> None:
    """Edited, its directory but the journal lost, gone on with, reverted, verified: what commits name is there."""
    import shutil
    import uuid

    from errata.orchestrator.history.rebuild import BaseCheckpoint
    from errata.orchestrator.history.verify import collect_garbage, verify

    settings = {**SETTINGS, "artifacts": f"memory://{uuid.uuid4().hex}/run"}
    run = tmp_path / "run"
    with editor(checkpoint, settings=settings, journal=run) as one:
        done = one.edit(FACTS[:2])
        version, said = one.version, one.ask(prompt_of(FACTS[0]))
    kinds = [
        path for path in run.iterdir() if path.is_dir() and path.name in ("deltas", "keys", "covariances", "contexts")
    ]
    assert len(kinds) == 4
    for folder in kinds:
        shutil.rmtree(folder)
    with editor(checkpoint, settings=settings, journal=run) as again:
        assert (again.version, again.ask(prompt_of(FACTS[0]))) == (version, said)
        again.revert(done[0].id)
        after = again.version
    assert after != version
    shutil.rmtree(run / "deltas")
    assert verify(run, BaseCheckpoint(checkpoint, dtype="float32")).sound
    assert not collect_garbage(run)


def test_a_question_may_be_about_another_time(checkpoint: Path) -> None:
    fact = {"subject": "Alice Munro", "prompt": "{} works in"}
    prompt, march = "Alice Munro works in", "2026-03-05T00:00:00Z"
    with editor(checkpoint) as one:
        unedited = one.ask(prompt)
        one.edit([{**fact, "target_new": "Paris", "event_at": "2026-03-01T00:00:00Z"}])
        then = one.ask([prompt, "Rome lies in"], arm="memory")
        one.edit([{**fact, "target_new": "Italy", "event_at": "2026-03-09T00:00:00Z"}])
        for moment, said in (((march, None), "Paris."), ((None, "v1"), "Paris."), ((None, "head"), "Italy.")):
            (hit,) = one._hits_then([prompt], "memory", *moment)[prompt]
            assert hit.statement.split()[-1] == said, "what the answer rests on"
        assert one.ask([prompt, "Rome lies in"], arm="memory", as_of=march) == then
        assert one.ask(prompt, arm="memory", as_of=datetime(2026, 3, 5)) == then[0]
        assert one.ask(prompt, arm="memory", as_known_at="v1") == then[0]
        assert one.ask(prompt, arm="memory", as_of="2026-03-20", as_known_at="v1") == then[0]
        nothing = one.ask(prompt, arm="memory", as_of="2026-02-01T00:00:00Z")
        assert nothing == one.ask(prompt, arm="base", as_of="2026-02-01T00:00:00Z") == unedited
        assert isinstance(one.ask(prompt, arm="routed", as_of=march), str)
        for arm in ("edited", "edited_memory"):
            with pytest.raises(UserError, match=rf"arm '{arm}' speaks with weights.*there are: base, memory, routed"):
                one.ask(prompt, arm=arm, as_of=march)
        assert one.ask(prompt, arm="edited", as_known_at="head") == one.ask(prompt), "the weights that are loaded"
        with pytest.raises(UserError, match="v9"):
            one.ask(prompt, arm="memory", as_known_at="v9")
        with pytest.raises(UserError, match="as_of 'yesterday' is not a time"):
            one.ask(prompt, arm="memory", as_of="yesterday")
