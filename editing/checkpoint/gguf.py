"""GGUF files, dequantized once into a directory that the library loads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from errata.editing.checkpoint.save import save_checkpoint


def convert_gguf(raw: Path, gguf_name: str, out: Path, *, context: int | None = None) -> None:
    """Dequantize the GGUF file of that name in `raw` into a float32 safetensors directory with tokenizer and chat
    template; `context` is the longest input in tokens, for the tokenizer.

    float32 because the dequantized values (a half-precision scale times an integer plus a half-precision
    offset) are exact in it and not in half precision: 42 % of SmolLM2's Q4_1 weights would change.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, modeling_gguf_pytorch_utils
    from transformers.utils import logging as hf_logging

    bars = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        with _without_bar(modeling_gguf_pytorch_utils):
            network = AutoModelForCausalLM.from_pretrained(raw, gguf_file=gguf_name, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(raw, gguf_file=gguf_name)
        # save_pretrained refuses to write a model that still says it is quantized
        for attribute in ("quantization_config", "_model_name_or_path"):  # the latter is the GGUF's own title
            if hasattr(network.config, attribute):
                delattr(network.config, attribute)
        for attribute, plain in {
            "hf_quantizer": None,
            "quantization_method": None,
            "is_quantized": False,
        }.items():
            if hasattr(network, attribute):
                setattr(network, attribute, plain)
        if context is not None:
            tokenizer.model_max_length = context
        save_checkpoint(network, tokenizer, out)
    finally:
        if bars:
            hf_logging.enable_progress_bar()


@contextlib.contextmanager
def _without_bar(module: Any) -> Iterator[None]:
    """A module of the library without its progress bar, which has no switch.

    A log would be full of it, and on a terminal it writes a line for every step beside a spinner.
    """
    bar = getattr(module, "tqdm", None)
    if bar is not None:
        module.tqdm = lambda items, **_: items
    try:
        yield
    finally:
        if bar is not None:
            module.tqdm = bar
