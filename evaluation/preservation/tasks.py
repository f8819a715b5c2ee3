"""The harness's task files for benchmark files on disk, where the hub cannot be reached or is not wanted.

A generated file *includes* the task of the installed harness and changes only where its documents come from, so that
prompts, choices, filters and metrics are the harness's own and its version. Files are read in the layout in which the
data sets are published; what differs from the hub's layout is rewritten on the way.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from errata.editing.errors import UserError
from errata.editing.texts import open_text

Raw = dict[str, Any]


@dataclass(frozen=True)
class LocalTask:
    """One benchmark: the harness's file that is included, and where its documents are."""

    base: str
    """Path below the harness's ``tasks/``."""
    files: Mapping[str, str]
    """Split -> file below the data directory. The split that is evaluated must be there, others may be."""
    evaluated: str
    rewrite: Callable[[Raw], Raw] | None = None
    by: str | None = None
    """Field that splits the data set into subtasks, each with its own few-shot documents."""
    changes: Mapping[str, Any] = field(default_factory=dict)


def _arc(raw: Raw) -> Raw:
    choices = raw["question"]["choices"]
    return {
        "id": raw["id"],
        "question": raw["question"]["stem"],
        "choices": {"text": [c["text"] for c in choices], "label": [c["label"] for c in choices]},
        "answerKey": raw["answerKey"],
    }


def _rte(raw: Raw) -> Raw:
    names = {"entailment": 0, "not_entailment": 1}
    label = raw["label"]
    return {"sentence1": raw["sentence1"], "sentence2": raw["sentence2"], "label": names.get(label, label)}


_SAMSUM: dict[str, Any] = {
    "output_type": "generate_until",
    "doc_to_text": "Dialogue:\n{{dialogue}}\n\nSummary:",
    "doc_to_target": " {{summary}}",
    "process_results": "FUNCTION errata.evaluation.preservation.tasks.rouge_results",
    "generation_kwargs": {"until": ["\n\n", "Dialogue:"], "max_gen_toks": 96, "do_sample": False, "temperature": 0.0},
    "metric_list": [
        {"metric": name, "aggregation": "mean", "higher_is_better": True}
        for name in ("rouge_1", "rouge_2", "rouge_l", "rouge_mean")
    ],
    "metadata": {"version": 1.0},
}

LOCAL: Mapping[str, LocalTask] = {
    "gsm8k": LocalTask("gsm8k/gsm8k.yaml", {"test": "gsm8k/test.jsonl", "train": "gsm8k/train_fewshot.jsonl"}, "test"),
    "mmlu": LocalTask(
        "mmlu/default/_default_template_yaml",
        {"test": "mmlu/test.jsonl", "dev": "mmlu/dev.jsonl"},
        "test",
        by="subject",
    ),
    "hellaswag": LocalTask("hellaswag/hellaswag.yaml", {"validation": "hellaswag/hellaswag_val.jsonl"}, "validation"),
    "winogrande": LocalTask(
        "winogrande/default.yaml",
        {"validation": "winogrande/dev.jsonl", "train": "winogrande/train_xs.jsonl"},
        "validation",
    ),
    "arc_challenge": LocalTask(
        "arc/arc_challenge.yaml",
        {"test": "arc_challenge/ARC-Challenge-Test.jsonl", "validation": "arc_challenge/ARC-Challenge-Dev.jsonl"},
        "test",
        rewrite=_arc,
    ),
    "rte": LocalTask(
        "glue/rte/default.yaml", {"validation": "glue/rte.jsonl", "train": "glue/rte_train.jsonl"}, "validation", _rte
    ),
    "sst2": LocalTask("glue/sst2/default.yaml", {"validation": "glue/sst2.jsonl"}, "validation"),
    "mrpc": LocalTask("glue/mrpc/default.yaml", {"validation": "glue/mrpc.jsonl"}, "validation"),
    "cola": LocalTask("glue/cola/default.yaml", {"validation": "glue/cola.jsonl"}, "validation"),
    "nq_open": LocalTask("nq_open/nq_open.yaml", {"validation": "nq_open/NQ-open.dev.jsonl"}, "validation"),
    # MOSE's own forms of four tasks (table 5), zero-shot
    "mose_rte": LocalTask(
        "glue/rte/default.yaml",
        {"validation": "glue/rte.jsonl"},
        "validation",
        _rte,
        changes={"doc_to_text": "{{sentence1}} entails the {{sentence2}}. True or False? answer:"},
    ),
    "mose_sst2": LocalTask(
        "glue/sst2/default.yaml",
        {"validation": "glue/sst2.jsonl"},
        "validation",
        changes={
            "doc_to_text": "For each snippet of text, label the sentiment of the text as positive or negative. The "
            "answer should be exact 'positive' or 'negative'. text: {{sentence}} answer:"
        },
    ),
    "mose_nq": LocalTask(
        "nq_open/nq_open.yaml",
        {"validation": "nq/dev.jsonl"},
        "validation",
        changes={
            "description": "",
            "doc_to_text": "Refer to the passage below and answer the following question. Passage: {{document}} "
            "Question: {{question}}",
        },
    ),
    "mose_samsum": LocalTask(
        "", {"test": "samsum/test.jsonl"}, "test", changes=_SAMSUM | {"doc_to_text": "{{dialogue}} TL;DR:"}
    ),
    # the harness has no such task
    "samsum": LocalTask("", {"test": "samsum/test.jsonl"}, "test", changes=_SAMSUM),
}
"""Benchmarks that are recognized in a data directory, by the harness's names."""


def rouge_results(document: Raw, results: Sequence[str]) -> dict[str, float]:
    """ROUGE-1, -2, -L and their mean (mose B.2) of one generated summary, for the harness."""
    from errata.evaluation.metrics import rouge_1, rouge_2, rouge_l, rouge_mean

    answer, wanted = results[0], document["summary"]
    scores = {"rouge_1": rouge_1, "rouge_2": rouge_2, "rouge_l": rouge_l, "rouge_mean": rouge_mean}
    return {name: score(answer, wanted) for name, score in scores.items()}


def available(data: Path) -> list[str]:
    """Names in `LOCAL` whose evaluated file is in a data directory.

    Raises:
        UserError: it is no directory.
    """
    if not data.is_dir():
        raise UserError(f"data directory {str(data)!r} is not there; it holds for instance gsm8k/test.jsonl")
    return [name for name, task in LOCAL.items() if _find(data, task.files[task.evaluated]) is not None]


def write_tasks(data: Path, names: Sequence[str], directory: Path, *, harness_tasks: Path) -> dict[str, list[str]]:
    """Write task files and their documents for benchmarks of a data directory.

    Args:
        data: directory with the files named in `LOCAL` (``.gz`` accepted).
        names: which of them.
        directory: where to write; the result serves ``lm_eval --include_path`` as well.
        harness_tasks: the installed harness's ``tasks/``.

    Returns:
        name -> the harness tasks that stand for it (several where it has subtasks).

    Raises:
        UserError: a name is unknown, a file is absent or malformed; the message says where.
    """
    written: dict[str, list[str]] = {}
    for name in names:
        if name not in LOCAL:
            raise UserError(f"task {name!r} has no local form; those that have: {', '.join(LOCAL)}")
        task = LOCAL[name]
        splits: dict[str, list[Raw]] = {}
        for split, relative in task.files.items():
            path = _find(data, relative)
            if path is None:
                if split == task.evaluated:
                    raise UserError(f"task {name!r} needs {str(data / relative)!r}, which is not there")
                continue
            splits[split] = list(_documents(path, task.rewrite))
        parts = _parts(splits, task)
        written[name] = [f"{name}_{part}" if part else name for part in parts]
        for part, documents in parts.items():
            _write_one(f"{name}_{part}" if part else name, part, task, documents, directory, harness_tasks)
    return written


def _find(data: Path, relative: str) -> Path | None:
    return next((path for path in (data / relative, data / f"{relative}.gz") if path.is_file()), None)


def _documents(path: Path, rewrite: Callable[[Raw], Raw] | None) -> Iterator[Raw]:
    with open_text(path) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                raw = json.loads(line)
                yield raw if rewrite is None else rewrite(raw)
            except (ValueError, LookupError, TypeError) as error:
                raise UserError(f"{path}:{number}: not a record of this benchmark ({error!r})") from error


def _parts(splits: Mapping[str, list[Raw]], task: LocalTask) -> dict[str, dict[str, list[Raw]]]:
    """Subtask -> split -> documents; one nameless part where the benchmark is not split up."""
    if task.by is None:
        return {"": dict(splits)}
    key = task.by
    subjects = sorted({str(document[key]) for document in splits[task.evaluated]})
    return {
        subject: {
            split: [document for document in documents if str(document.get(key)) == subject]
            for split, documents in splits.items()
        }
        for subject in subjects
    }


def _write_one(
    name: str, part: str, task: LocalTask, splits: Mapping[str, list[Raw]], directory: Path, harness_tasks: Path
) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    files = {}
    for split, documents in splits.items():
        if documents:
            files[split] = str((directory / f"{name}.{split}.jsonl").resolve())
            _write_lines(Path(files[split]), documents)
    shots = next((split for split in ("dev", "train", "validation") if split in files), task.evaluated)
    config: dict[str, Any] = {
        "task": name,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files, "cache_dir": str((directory / "cache").resolve())},
        "training_split": "train" if "train" in files else None,
        "validation_split": "validation" if "validation" in files and task.evaluated == "validation" else None,
        "test_split": "test" if "test" in files else None,
        "fewshot_split": shots,
        **task.changes,
    }
    if task.base:
        config = {"include": str(harness_tasks / task.base), **config}
    if part:
        config["description"] = _mmlu_description(part)
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    # the harness's tag for functions, which a plain dump cannot write
    text = text.replace("process_results: FUNCTION ", "process_results: !function ")
    (directory / f"{name}.yaml").write_text(text, encoding="utf-8")


def _mmlu_description(subject: str) -> str:
    return f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"


def _write_lines(path: Path, documents: Iterable[Raw]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for document in documents:
            file.write(json.dumps(document, ensure_ascii=False) + "\n")
