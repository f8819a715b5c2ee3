"""Writing a model of transformers as a checkpoint directory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch


def save_checkpoint(model: Any, tokenizer: Any, directory: Path) -> None:
    """Write a model and its tokenizer as a directory that `errata.editing.checkpoint.load.load_model` reads."""
    with without_deepspeed():
        model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


@contextmanager
def without_deepspeed() -> Iterator[None]:
    """Keep transformers from importing DeepSpeed while it saves, for whoever has it save: MLflow, too.

    To find out whether the model is wrapped, accelerate imports all of it where it is installed: seconds, and a warning
    about the accelerator on standard error. No model here is wrapped.
    """
    try:
        import accelerate.utils.other as other
    except ModuleNotFoundError:
        yield
        return
    with patch.object(other, "is_deepspeed_available", return_value=False):
        yield
