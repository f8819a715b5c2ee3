"""Tiny random models of every supported family, with a real fast tokenizer, made in memory in milliseconds."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from errata.editing.checkpoint.save import save_checkpoint
from errata.editing.model.adapter import EditableModel

_CORPUS = [
    "The mother tongue of Danielle Darrieux is French. The capital of France is Paris. Rome lies in Italy.",
    "Therefore I think that you are right because the answer is known. Alice Munro works as a writer in Canada.",
    "The sport that Thierry Henry plays is football. Angola is located in Africa. What is the question? yes no",
    "Edit me: the subject is here, the target comes next; one two three four five six seven eight nine ten.",
] * 4

_SIZES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 6},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8},
    "olmo2": {"num_key_value_heads": 2},
    "gemma2": {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 8},
    "gemma3_text": {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 8},
    "phi3": {"num_key_value_heads": 2, "pad_token_id": 0},
    "gpt2": {},
    "gptj": {"rotary_dim": 4},
    "gpt_neox": {"rotary_pct": 0.5},
}


@lru_cache(maxsize=1)
def _tokenizer_json() -> str:
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return str(tokenizer.to_str())


_CHAT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on four sentences; 400 tokens, no BOS, a minimal chat template."""
    fast = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(_tokenizer_json()), eos_token="<|end|>")
    fast.chat_template = _CHAT
    return fast


def tiny_hf(
    model_type: str, *, layers: int = 4, hidden: int = 32, inner: int = 48, heads: int = 4, seed: int = 0
) -> Any:
    """A random model of one family in float32, its weights large enough that layers matter."""
    tokenizer = tiny_tokenizer()
    extra = dict(_SIZES[model_type])
    if "num_key_value_heads" in extra:
        extra["num_key_value_heads"] = max(1, heads // 2)
    common: dict[str, Any] = {"vocab_size": len(tokenizer), "bos_token_id": None, "eos_token_id": 0}
    if model_type in ("gpt2", "gptj"):
        common |= {"n_embd": hidden, "n_layer": layers, "n_head": heads, "n_positions": 128, "n_inner": inner}
    else:
        common |= {
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "intermediate_size": inner,
            "max_position_embeddings": 512,
        }
    config = AutoConfig.for_model(model_type, **common, **extra)
    torch.manual_seed(seed)
    attention = "eager" if model_type in ("gemma2", "gptj") else "sdpa"
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, 0.12 if "embed" not in name and "wte" not in name else 0.5)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.1)
    return model


def tiny_model(model_type: str = "llama", **sizes: int) -> EditableModel:
    """A tiny random ``EditableModel``; sizes: layers, hidden, inner, heads, seed."""
    return EditableModel(tiny_hf(model_type, **sizes), tiny_tokenizer(), name=f"tiny-{model_type}")


def save_tiny(directory: Path, model_type: str = "llama", **sizes: int) -> Path:
    """Write a tiny model and its tokenizer as a checkpoint directory, as ``load_model`` reads it."""
    directory.mkdir(parents=True, exist_ok=True)
    save_checkpoint(tiny_hf(model_type, **sizes), tiny_tokenizer(), directory)
    return directory
