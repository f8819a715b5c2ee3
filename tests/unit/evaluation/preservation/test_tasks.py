"""Task files for local benchmarks: layouts, subtasks, refusals. The harness itself is asked in tests/model."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from errata.editing.errors import UserError
from errata.evaluation.preservation.tasks import LOCAL, available, rouge_results, write_tasks


def lines(path: Path, *records: Any, packed: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(r) + "\n" for r in records).encode()
    path.write_bytes(gzip.compress(text) if packed else text)


def load(path: Path) -> Any:
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: f"function {node.value}")
    return yaml.load(path.read_text(), Loader)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    choices = [{"text": "a stone", "label": "A"}, {"text": "a tree", "label": "B"}]
    arc = {"id": "q1", "question": {"stem": "What grows?", "choices": choices}, "answerKey": "B"}
    lines(root / "arc_challenge/ARC-Challenge-Test.jsonl", arc)
    mmlu = [
        {"question": q, "subject": s, "choices": list("wxyz"), "answer": 0} for q, s in (("1", "law"), ("2", "us_law"))
    ]
    lines(root / "mmlu/test.jsonl", *mmlu)
    lines(root / "mmlu/dev.jsonl", mmlu[0])
    lines(root / "samsum/test.jsonl", {"dialogue": "A: hi", "summary": "A greets."}, packed=True)
    lines(root / "samsum/test.jsonl.gz", {"dialogue": "A: hi", "summary": "A greets."}, packed=True)
    (root / "samsum/test.jsonl").unlink()
    lines(root / "glue/rte.jsonl", {"sentence1": "x", "sentence2": "y", "label": 1, "idx": 0})
    lines(root / "glue/rte_train.jsonl", {"sentence1": "x", "sentence2": "y", "label": "not_entailment", "index": "0"})
    return root


def test_what_is_there(data: Path, tmp_path: Path) -> None:
    assert available(data) == ["mmlu", "arc_challenge", "rte", "mose_rte", "mose_samsum", "samsum"]
    with pytest.raises(UserError, match="is not there"):
        available(tmp_path / "nowhere")


def test_files_include_the_harness_and_change_the_documents_only(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "tasks"
    written = write_tasks(data, ["arc_challenge", "mmlu", "rte", "samsum"], out, harness_tasks=Path("harness"))
    assert written["mmlu"] == ["mmlu_law", "mmlu_us_law"] and written["rte"] == ["rte"]
    arc = load(out / "arc_challenge.yaml")
    assert arc["include"] == "harness/arc/arc_challenge.yaml" and arc["dataset_path"] == "json"
    assert arc["test_split"] == "test" and arc["training_split"] is None and arc["validation_split"] is None
    document = json.loads(Path(arc["dataset_kwargs"]["data_files"]["test"]).read_text())
    assert document["choices"] == {"text": ["a stone", "a tree"], "label": ["A", "B"]} and document["answerKey"] == "B"
    law, us_law = load(out / "mmlu_law.yaml"), load(out / "mmlu_us_law.yaml")
    assert us_law["description"].endswith("about us law.\n\n")
    assert sorted(law["dataset_kwargs"]["data_files"]) == ["dev", "test"]
    assert sorted(us_law["dataset_kwargs"]["data_files"]) == ["test"]  # it has no worked examples
    assert law["fewshot_split"] == "dev" and us_law["fewshot_split"] == "test"
    rte = load(out / "rte.yaml")
    train = Path(rte["dataset_kwargs"]["data_files"]["train"])
    assert json.loads(train.read_text())["label"] == 1 and rte["fewshot_split"] == "train"
    assert load(out / "samsum.yaml")["process_results"] == "function errata.evaluation.preservation.tasks.rouge_results"


def test_moses_forms_ask_as_its_table_5_does(data: Path, tmp_path: Path) -> None:
    """On hand-written records: what a model is asked, filled in as the harness fills it in."""
    lines(data / "glue/sst2.jsonl", {"sentence": "a warm film", "label": 1, "idx": 0})
    lines(data / "nq/dev.jsonl", {"document": "Rome lies in Italy.", "question": "where is rome?", "answer": ["Italy"]})
    names = ["mose_rte", "mose_sst2", "mose_nq", "mose_samsum"]
    write_tasks(data, names, tmp_path / "tasks", harness_tasks=Path("harness"))

    def asked(name: str) -> str:
        task = load(tmp_path / "tasks" / f"{name}.yaml")
        (path,) = task["dataset_kwargs"]["data_files"].values()
        text = task["doc_to_text"]
        for key, value in json.loads(Path(path).read_text().split("\n")[0]).items():
            text = text.replace("{{" + key + "}}", str(value))
        assert "{{" not in text
        return text

    assert asked("mose_rte") == "x entails the y. True or False? answer:"
    assert asked("mose_sst2").endswith("exact 'positive' or 'negative'. text: a warm film answer:")
    assert asked("mose_nq") == (
        "Refer to the passage below and answer the following question. Passage: Rome lies in Italy. "
        "Question: where is rome?"
    )
    assert asked("mose_samsum") == "A: hi TL;DR:"
    assert load(tmp_path / "tasks" / "mose_nq.yaml")["description"] == ""


def test_refusals(data: Path, tmp_path: Path) -> None:
    def write(name: str) -> None:
        write_tasks(data, [name], tmp_path / "tasks", harness_tasks=Path("h"))

    with pytest.raises(UserError, match="task 'chess' has no local form; those that have: gsm8k, "):
        write("chess")
    with pytest.raises(UserError, match=r"'gsm8k' needs .*gsm8k/test.jsonl', which is not there"):
        write("gsm8k")
    lines(data / "arc_challenge/ARC-Challenge-Test.jsonl", {"id": "q1", "question": "What grows?"})
    with pytest.raises(UserError, match=r"ARC-Challenge-Test.jsonl:1: not a record of this benchmark"):
        write("arc_challenge")
    (data / "glue/rte.jsonl").write_text("{oops\n")
    with pytest.raises(UserError, match=r"rte.jsonl:1: not a record"):
        write("rte")


def test_rouge_of_a_summary() -> None:
    found = rouge_results({"summary": "the cat sat"}, ["the cat ran"])
    assert found["rouge_1"] == pytest.approx(2 / 3) and found["rouge_2"] == pytest.approx(0.5)
    assert found["rouge_mean"] == pytest.approx((2 / 3 + 0.5 + 2 / 3) / 3)


def test_all_samples_are_recognized(shared_data: Path) -> None:
    assert set(available(shared_data)) == set(LOCAL) - {"samsum", "mose_samsum", "mose_nq"}
