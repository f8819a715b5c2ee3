"""Versions in a real MLflow registry: registered once, found by an alias, readable by whoever fetches them."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import httpx
import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from typer.testing import CliRunner

from errata.editing.delta import WeightDelta
from errata.editing.errors import ErrataError, UserError
from errata.orchestrator.cli import app
from errata.orchestrator.journal import Journal
from errata.orchestrator.publish.answering import AnsweringModel
from errata.orchestrator.publish.packaging import FORMS, write_model
from errata.orchestrator.publish.registry import register_version
from errata.orchestrator.publish.rollout import EVENT
from errata.orchestrator.tracking.library import addressed
from errata.retrieval.embedder import HashEmbedder
from errata.retrieval.router_fit import shipped
from tests.helpers.registered import loaded, serving
from tests.helpers.small_run import LAYERS, SmallRun, make_run
from tests.helpers.tiny import save_tiny

PROMPTS = ["The capital of France is", "Alice Munro works as a", "Rome lies in"]

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    logging.getLogger("alembic").setLevel(logging.WARNING)
    made = make_run(tmp_path_factory.mktemp("small"))
    # a memory that needs no model file, with a router that needs no fitting
    router = made.directory / "fitted.json"
    shipped()[0].model_copy(update={"embedder": HashEmbedder().digest}).save(router)
    with Journal.open(made.directory / "journal.sqlite") as journal:
        sections = {"memory": {"embedder": {"type": "hash"}}, "router": {"path": str(router)}}
        config = json.dumps({**journal.meta.config, **sections})
        journal._connection.execute("UPDATE meta SET config = ?", (config,))
    return made


@pytest.fixture(scope="module")
def registered(run: SmallRun) -> str:
    """The newest version in every form, each under an alias of its name; the registry's address."""
    for form in FORMS:
        publish(run, "head", "--alias", form, "--format", form, "--name", "errata")
    return f"sqlite:///{run.directory / 'mlflow.db'}"


def publish(run: SmallRun, *arguments: object) -> Any:
    return publish_from(run.directory, *arguments)


def publish_from(directory: Path, *arguments: object) -> Any:
    result = CliRunner().invoke(app, ["publish", *map(str, arguments), "--run", str(directory)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_versions_are_registered_once_and_the_alias_moves(run: SmallRun, tmp_path: Path) -> None:
    assert publish(run, "v2", "--alias", "champion").stdout == (
        "v2 registered as errata-small version 1, alias champion\n"
    )
    publish(run, "v3", "--alias", "champion")
    client = MlflowClient(f"sqlite:///{run.directory / 'mlflow.db'}")
    newest = client.get_model_version_by_alias("errata-small", "champion")
    assert newest.version == 2 or newest.version == "2"
    assert newest.tags["errata.version"] == run.versions[3] and newest.tags["errata.sequence"] == "3"
    # back to the older one: nothing is uploaded again
    assert "is already errata-small version 1" in publish(run, "v2", "--alias", "champion").stdout
    assert str(client.get_model_version_by_alias("errata-small", "champion").version) == "1"
    assert len(client.search_model_versions("name = 'errata-small'")) == 2
    uri = client.get_model_version_download_uri("errata-small", "1")
    fetched = Path(
        download_artifacts(uri, dst_path=str(tmp_path), tracking_uri=f"sqlite:///{run.directory / 'mlflow.db'}")
    )
    assert sorted(WeightDelta.load(fetched / "delta.safetensors").layers) == list(LAYERS)
    with run.journal() as journal:
        events = [event.data for event in journal.events(EVENT)]
    assert [(e["what"], e["sequence"], e["number"], e["alias"]) for e in events] == [
        ("registered", 2, "1", "champion"),
        ("registered", 3, "2", "champion"),
        ("registered", 2, "1", "champion"),
    ]
    adapter = publish(run, "v2", "--alias", "edge", "--format", "lora", "--name", "other").stdout
    assert adapter == "v2 registered as other version 1, alias edge\n"
    with pytest.raises(UserError, match="form 'x' is unknown; allowed: delta, lora, full, routed"):
        publish(run, "v2", "--alias", "edge", "--format", "x")


def test_a_version_and_its_logged_model_name_each_other(run: SmallRun, registered: str, tmp_path: Path) -> None:
    """As MLflow's own `log_model(registered_model_name=...)` leaves them: what its users go by, and its pages link."""

    class Echo(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
        def predict(self, context: Any, model_input: list[str]) -> list[str]:
            return model_input

    theirs = f"sqlite:///{tmp_path / 'theirs.db'}"
    with addressed(theirs):
        mlflow.create_experiment("e", artifact_location=(tmp_path / "files").as_uri())
        mlflow.set_experiment("e")
        with mlflow.start_run():
            mlflow.log_param("seed", 0)
            mlflow.pyfunc.log_model(name="m", python_model=Echo(), registered_model_name="errata", pip_requirements=[])
        model = MlflowClient(theirs).get_model_version("errata", "1")
        MlflowClient(theirs).set_registered_model_alias("errata", "delta", model.version)
    before = mlflow.get_tracking_uri()
    links = [_links(uri, "errata", "delta") for uri in (theirs, registered)]
    assert mlflow.get_tracking_uri() == before, "the process's address is its own affair"
    assert links[0] == links[1] and all(links[1].values())


def _links(uri: str, name: str, alias: str) -> dict[str, bool]:
    """Which places of a registry lead from a version to the logged model and the run, and back."""
    client = MlflowClient(uri)
    version = client.get_model_version_by_alias(name, alias)
    source = str(version.source).removeprefix("models:/")
    model = client.get_logged_model(source)
    run = client.get_run(str(version.run_id))
    with addressed(uri):
        told = mlflow.models.get_model_info(f"models:/{name}@{alias}")
        loaded_id = mlflow.pyfunc.load_model(f"models:/{name}@{alias}").model_id
    return {
        # a database keeps none of its own (MLflow 3.17), whoever registers
        "version.model_id or its source": model.model_id == (version.model_id or source),
        "run": version.run_id == model.source_run_id == told.run_id,
        "tag": {"name": name, "version": int(version.version)} in json.loads(model.tags["mlflow.modelVersions"]),
        "outputs": model.model_id in {one.model_id for one in run.outputs.model_outputs},
        "MLmodel": told.model_id == loaded_id == model.model_id and told.model_uuid == model.model_id,
        "parameters": model.params == run.data.params,
        "ready": str(model.status) == "READY",
    }


def test_versions_of_the_release_before_stay_and_are_not_uploaded_again(run: SmallRun, tmp_path: Path) -> None:
    """Their source was the place of the files, and no page led from the model to them."""
    shutil.copytree(run.directory, tmp_path / "run")
    there = tmp_path / "run"
    arguments = ("v4", "--name", "before", "--alias", "champion")
    client = MlflowClient(f"sqlite:///{there / 'mlflow.db'}")
    assert "version 1" in publish_from(there, *arguments).stdout
    new = client.get_model_version_by_alias("before", "champion")
    model = client.get_logged_model(str(new.source).removeprefix("models:/"))
    client.create_registered_model("old")
    client.create_model_version(
        "old", model.artifact_location, run_id=new.run_id, tags=new.tags, model_id=model.model_id
    )
    said = publish_from(there, "v4", "--name", "old", "--alias", "champion").stdout
    assert "is already old version 1" in said
    wanted = loaded(f"sqlite:///{there / 'mlflow.db'}", "models:/before@champion").predict(PROMPTS)
    # and both answer from where the run is now, after it was moved
    moved = there.rename(tmp_path / "elsewhere")
    assert "is already" in publish_from(moved, *arguments).stdout
    for name in ("before", "old"):
        assert loaded(f"sqlite:///{moved / 'mlflow.db'}", f"models:/{name}@champion").predict(PROMPTS) == wanted


def test_a_registry_that_does_not_answer_is_one_line(run: SmallRun) -> None:
    with Journal.open(run.directory / "journal.sqlite") as journal:
        before = len(journal.events(EVENT))
        version = journal.find_version("v2")
        with pytest.raises(ErrataError, match="the model registry"):
            register_version(
                journal, run.store(), version, run.directory, name="m", alias="a", uri="http://127.0.0.1:1"
            )
        assert len(journal.events(EVENT)) == before


def greedy(directory: Path, weights: dict[int, Any], prompt: str, tokens: int) -> str:
    """What transformers alone says with a version's matrices put in place."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
    for layer, weight in weights.items():
        model.model.layers[layer].mlp.down_proj.weight.data = weight.clone()
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        out = model.generate(ids, max_new_tokens=tokens, do_sample=False, pad_token_id=0)
    return str(tokenizer.decode(out[0][ids.shape[1] :], skip_special_tokens=True))


@pytest.mark.parametrize("form", ["delta", "lora", "full"])
def test_what_is_registered_loads_and_answers_as_the_version_does(run: SmallRun, registered: str, form: str) -> None:
    model = loaded(registered, f"models:/errata@{form}")
    said = model.predict(PROMPTS, params={"max_new_tokens": 2})
    wanted = [greedy(run.model, run.weights[6], prompt, 2) for prompt in PROMPTS]
    # the arms cut white space at the ends of an answer, as transformers' pipeline does not
    assert [one.strip() for one in said] == [one.strip() for one in wanted]
    assert model.metadata.signature.inputs.input_types()[0].name == "string"
    base = [greedy(run.model, run.weights[0], prompt, 2) for prompt in PROMPTS]
    assert base != wanted, "the edits have changed something to be seen"


def test_a_routed_model_names_the_edit_that_its_answer_rests_on(registered: str) -> None:
    model = loaded(registered, "models:/errata@routed")
    rows = model.predict([*PROMPTS, "Once upon a time, long ago,"])
    assert [row["edit"] for row in rows[:3]] == ["lyon", "munro", "rome"]
    assert rows[0]["statement"] == "The capital of France is Lyon."
    base = model.predict([PROMPTS[0]], params={"arm": "base"})[0]
    assert base["edit"] == "" and base["statement"] == ""
    with pytest.raises(UserError, match=r"arm 'x' cannot be asked .*allowed: base, edited"):
        model.predict([PROMPTS[0]], params={"arm": "x"})


def test_every_form_carries_signature_example_and_requirements(run: SmallRun, tmp_path: Path) -> None:
    with run.journal() as journal:
        for form in FORMS:
            write_model(journal, run.store(), journal.find_version("v3"), form, tmp_path / form)
            meta = mlflow.models.Model.load(str(tmp_path / form))
            assert meta.flavors["python_function"] and ("transformers" in meta.flavors) == (form == "full")
            assert meta.signature is not None and "max_new_tokens" in str(meta.signature.params)
            assert meta.load_input_example(str(tmp_path / form)) is not None
            needed = (tmp_path / form / "requirements.txt").read_text()
            assert "torch==" in needed and ("errata-llm[" in needed) == (form != "full")
            card = json.loads((tmp_path / form / "errata-version.json").read_text())
            assert card["version"] == run.versions[3] and card["form"] == form


def test_registering_a_checkpoint_imports_no_deepspeed(run: SmallRun, tmp_path: Path) -> None:
    """MLflow has transformers save it, which would import DeepSpeed to find out that nothing is wrapped by it."""
    script = f"""
        import sys
        from pathlib import Path
        from errata.orchestrator.history.receipts import open_store
        from errata.orchestrator.journal import JOURNAL_FILE, Journal
        from errata.orchestrator.publish.packaging import write_model
        directory = Path({str(run.directory)!r})
        with Journal.open(directory / JOURNAL_FILE, read_only=True) as journal:
            write_model(journal, open_store(directory), journal.head(), "full", Path({str(tmp_path / "full")!r}))
        assert "deepspeed" not in sys.modules
    """
    done = subprocess.run([sys.executable, "-c", dedent(script)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "accelerator" not in done.stdout + done.stderr


def test_the_base_may_lie_elsewhere_but_must_be_the_same(run: SmallRun, tmp_path: Path, monkeypatch: Any) -> None:
    with run.journal() as journal:
        write_model(journal, run.store(), journal.head(), "delta", tmp_path / "delta")
    settings = tmp_path / "delta" / "errata-answering.json"
    settings.write_text(settings.read_text().replace(str(run.model), "/gone/model"))
    with pytest.raises(UserError, match="gone/model"):
        AnsweringModel(tmp_path / "delta")
    monkeypatch.setenv("ERRATA_BASE_MODEL", str(run.model))
    assert AnsweringModel(tmp_path / "delta").predict(PROMPTS[0], {"max_new_tokens": 1})
    monkeypatch.setenv("ERRATA_BASE_MODEL", str(save_tiny(tmp_path / "other", "llama", layers=3, seed=5)))
    with pytest.raises(UserError, match=r"has digest .*ERRATA_BASE_MODEL says where the right one is"):
        AnsweringModel(tmp_path / "delta")


def test_mlflow_serves_what_is_registered(registered: str, tmp_path: Path) -> None:
    body = {"inputs": PROMPTS, "params": {"max_new_tokens": 2}}
    with serving(registered, "models:/errata@delta", tmp_path) as address:
        answer = httpx.post(f"{address}/invocations", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    wanted = loaded(registered, "models:/errata@delta").predict(PROMPTS, params=body["params"])
    assert answer.json() == {"predictions": wanted}
