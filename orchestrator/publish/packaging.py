"""A version's files as a model that MLflow can load and serve: an ``MLmodel`` beside them.

A full checkpoint has the transformers flavor. What holds a change only (``delta``, ``lora``, ``routed``) is a Python
model that `errata.orchestrator.publish.answering` loads; its other files lie where their own readers expect them.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Mapping
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any, Final

from errata.editing.checkpoint.save import without_deepspeed
from errata.editing.errors import UserError
from errata.editing.extras import installed
from errata.orchestrator.config.evaluation import EvaluationConfig, MemoryConfig
from errata.orchestrator.history.export import (
    VERSION_FILE,
    Edition,
    edition,
    write_adapter,
    write_checkpoint,
    write_delta,
)
from errata.orchestrator.history.rebuild import BaseCheckpoint, model_name, open_base, run_dtype
from errata.orchestrator.history.receipts import memory_entry
from errata.orchestrator.journal.artifacts import ArtifactStore
from errata.orchestrator.journal.reading import JournalReader
from errata.orchestrator.journal.rows import RequestRow, Version
from errata.orchestrator.publish.answering import (
    DELTA_FILE,
    MODULE,
    ROUTER_FILE,
    SETTINGS_FILE,
    STATEMENTS_FILE,
    AnsweringSettings,
)
from errata.retrieval.router import RouterConfig

FORMS: Final = ("delta", "lora", "full", "routed")
_EXAMPLE: Final = "The capital of France is"
_EXTRAS: Final = {"delta": "tracking", "lora": "tracking", "routed": "memory,tracking"}


def check_form(form: str) -> None:
    """Raise unless a version can be had in that form.

    Raises:
        UserError: it is not known.
    """
    if form not in FORMS:
        raise UserError(f"form {form!r} is unknown; allowed: {', '.join(FORMS)}")


def write_model(
    journal: JournalReader,
    store: ArtifactStore,
    version: Version,
    form: str,
    output: Path,
    model: str | None = None,
) -> dict[str, Any]:
    """Write a version as a model of MLflow; returns its card.

    Args:
        form: ``delta``: the accumulated change; ``lora``: a PEFT adapter; ``routed``: the change, the statements and
            the router; ``full``: a checkpoint.
        output: a directory that is not there yet.
        model: where the run's base model is, if not where its configuration says.

    Raises:
        UserError: the version cannot be had in that form.
    """
    check_form(form)
    checkpoint = open_base(journal, model)
    edited = edition(journal, store, checkpoint, version)
    held = journal.held(version.sequence)
    example = [held[-1].request.text if held else _EXAMPLE]
    if form == "full":
        return _full(journal, edited, checkpoint, output, example)
    settings = _settings(journal, edited, form, model or model_name(journal))
    with tempfile.TemporaryDirectory(prefix="errata-") as temporary:
        made = Path(temporary) / "made"
        if form == "lora":
            card = write_adapter(edited, checkpoint, made)
        else:
            made.mkdir()
            card = write_delta(edited, made / DELTA_FILE)
            _json(made / VERSION_FILE, card)
        if form == "routed":
            card = {**card, "form": "routed"}
            _json(made / VERSION_FILE, card)
            _memory(held, settings, made)
            settings = settings.model_copy(update={"router": settings.router.model_copy(update={"path": None})})
        _json(made / SETTINGS_FILE, settings.model_dump(mode="json"))
        _python_model(form, settings, example, output)
        for path in sorted(made.iterdir()):
            shutil.move(path, output / path.name)
    return card


def _settings(journal: JournalReader, edited: Edition, form: str, base: str) -> AnsweringSettings:
    plain: Mapping[str, Any] = journal.meta.config
    evaluation = EvaluationConfig.model_validate(_known(plain.get("evaluation"), EvaluationConfig))
    return AnsweringSettings(
        base=base,
        base_digest=journal.meta.base_digest,
        dtype=run_dtype(journal),
        layers=edited.layers,
        arm="routed" if form == "routed" else "edited",
        max_new_tokens=evaluation.max_new_tokens,
        stop_at_newline=evaluation.stop_at_newline,
        reasoning=evaluation.reasoning,
        memory=MemoryConfig.model_validate(_known(plain.get("memory"), MemoryConfig)),
        router=RouterConfig.model_validate(_known(plain.get("router"), RouterConfig)),
    )


def _known(section: Any, model: Any) -> dict[str, Any]:
    """A section of a journal's configuration without what another release called by a name that this one has not."""
    return {key: value for key, value in dict(section or {}).items() if key in model.model_fields}


def _memory(held: list[RequestRow], settings: AnsweringSettings, directory: Path) -> None:
    entries = [memory_entry(row, settings.memory.statement) for row in held]
    lines = [json.dumps(entry.model_dump(mode="json"), ensure_ascii=False) for entry in entries]
    (directory / STATEMENTS_FILE).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    if settings.router.path is not None:
        shutil.copyfile(settings.router.path, directory / ROUTER_FILE)


def _python_model(form: str, settings: AnsweringSettings, example: list[str], output: Path) -> None:
    import mlflow.pyfunc
    from mlflow.models import infer_signature

    answer: Any = ["Rome"]
    params: dict[str, Any] = {"max_new_tokens": settings.max_new_tokens}
    if form == "routed":
        params["arm"] = settings.arm
        answer = [{"answer": "Rome", "edit": "an-id", "statement": "The Louvre is located in Rome."}]
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    mlflow.pyfunc.save_model(
        path=str(output),
        loader_module=MODULE,
        signature=infer_signature(example, answer, params=params),
        input_example=(example, params),
        pip_requirements=[f"errata-llm[{_EXTRAS[form]}]=={installed_version('errata-llm')}", *_versions("torch")],
        metadata={"errata.base": settings.base, "errata.base_digest": settings.base_digest, "errata.form": form},
        model_config={"base": "", "device": "cpu"},
    )


def _full(
    journal: JournalReader, edited: Edition, checkpoint: BaseCheckpoint, output: Path, example: list[str]
) -> dict[str, Any]:
    import mlflow.transformers
    from huggingface_hub import ModelCard
    from mlflow.models import infer_signature
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory(prefix="errata-") as temporary:
        made = Path(temporary) / "checkpoint"
        card = write_checkpoint(edited, checkpoint, made)
        # in the type it is stored in, so that the bytes stay what they are
        model = AutoModelForCausalLM.from_pretrained(made, dtype="auto", low_cpu_mem_usage=True)
        model.config._name_or_path = model.name_or_path = model_name(journal)
        params = {"max_new_tokens": 12}
        logging.getLogger("mlflow").setLevel(logging.ERROR)  # it warns of licenses that it looks for by network
        with without_deepspeed():
            mlflow.transformers.save_model(
                transformers_model={"model": model, "tokenizer": AutoTokenizer.from_pretrained(made)},
                path=str(output),
                task="text-generation",
                model_card=ModelCard(f"# {card['base']['name']}, edited by Errata\n"),
                signature=infer_signature(example, ["Rome"], params=params),
                input_example=(example, params),
                model_config={**params, "do_sample": False, "return_full_text": False},
                pip_requirements=_versions("torch", "transformers", "accelerate"),
                metadata={"errata.base_digest": journal.meta.base_digest, "errata.form": "full"},
            )
        shutil.copyfile(made / VERSION_FILE, output / VERSION_FILE)
    return card


def _versions(*packages: str) -> list[str]:
    return [f"{name}=={installed_version(name).partition('+')[0]}" for name in packages if installed(name)]


def _json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
