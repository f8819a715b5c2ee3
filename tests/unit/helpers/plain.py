"""The slow, plain forms that the fast code is checked against: whole sequences, one at a time, the library's own pass.

Nothing here imports a pass, a position or a formula from ``editing``; of a model only the library's module and the
tokenizer are used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from errata.editing.model.adapter import EditableModel
from errata.editing.request import EditRequest
from errata.editing.values import ValueConfig

FAMILIES = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "olmo2",
    "gemma2",
    "gemma3_text",
    "phi3",
    "gpt2",
    "gptj",
    "gpt_neox",
)
POST_NORM = ("olmo2", "gemma2", "gemma3_text")
_BLOCKS = {"gpt2": "transformer.h", "gptj": "transformer.h", "gpt_neox": "gpt_neox.layers"}
_MAPS = {"gpt2": "mlp.c_proj", "gptj": "mlp.fc_out", "gpt_neox": "mlp.dense_4h_to_h"}


def block(model: EditableModel, layer: int) -> nn.Module:
    """The library's module of one decoder layer."""
    return model.hf.get_submodule(f"{_BLOCKS.get(model.family, 'model.layers')}.{layer}")


def edited_map(model: EditableModel, layer: int) -> nn.Module:
    """The library's module of the MLP's output projection."""
    return block(model, layer).get_submodule(_MAPS.get(model.family, "mlp.down_proj"))


def _first(out: Any) -> Tensor:
    return out[0] if isinstance(out, tuple) else out


def logits(model: EditableModel, ids: Sequence[int]) -> Tensor:
    """The library's logits (T, V) of one sequence."""
    return model.hf(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]


@torch.no_grad()
def read(model: EditableModel, module: nn.Module, ids: Sequence[int], side: str = "out") -> Tensor:
    """What goes into or comes out of a module (T, width) when one sequence is run."""
    caught: list[Tensor] = []
    handle = module.register_forward_hook(
        lambda _, args, out: caught.append((_first(out) if side == "out" else args[0])[0].clone())
    )
    try:
        logits(model, ids)
    finally:
        handle.remove()
    return caught[0]


@contextmanager
def added(module: nn.Module, position: int, change: Tensor) -> Iterator[None]:
    """Within the context, ``change`` (d,) is added to the module's output at one position."""

    def hook(_: nn.Module, __: Any, out: Any) -> Any:
        moved = _first(out).clone()
        moved[0, position] = moved[0, position] + change
        return (moved, *out[1:]) if isinstance(out, tuple) else moved

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def subject_position(model: EditableModel, prefix: str, request_prompt: str, subject: str) -> tuple[list[int], int]:
    """Tokens, and the index of the one that holds the subject's last byte; for byte-level tokenizers without BOS."""
    before = prefix + request_prompt.split("{}")[0] + subject
    tokens = list(model.text.tokenizer(before + request_prompt.split("{}")[1], add_special_tokens=False)["input_ids"])
    # in a byte-level vocabulary each character of a token's name stands for one byte
    names = model.text.tokenizer.convert_ids_to_tokens(tokens)
    end, seen = len(before.encode()), 0
    for index, name in enumerate(names):
        seen += len(name)
        if seen >= end:
            return tokens, index
    raise AssertionError("the subject reaches beyond the text")


@dataclass(frozen=True)
class PlainValue:
    """Result of the plain optimization."""

    h: Tensor
    delta: Tensor
    loss: float
    steps: int
    losses: tuple[float, ...]
    path: tuple[Tensor, ...]
    """Delta at each forward pass; the first is 0."""

    def stopped_at(self, threshold: float) -> PlainValue:
        """The result of the same run, had it stopped at the first loss below ``threshold``."""
        last = next((i for i, loss in enumerate(self.losses) if loss < threshold), len(self.losses) - 1)
        return PlainValue(
            self.h, self.path[last], self.losses[last], last + 1, self.losses[: last + 1], self.path[: last + 1]
        )


def optimize(
    model: EditableModel,
    request: EditRequest,
    *,
    layer: int,
    contexts: Sequence[str],
    config: ValueConfig,
    inside_mlp: bool = False,
) -> PlainValue:
    """One edit's target value by METHODS, letter for letter: every token of every context in every step.

    ``inside_mlp``: delta is added to the output of the edited map, before the norm behind it.
    """
    module = edited_map(model, layer) if inside_mlp else block(model, layer)
    target = list(model.text.tokenizer(" " + request.target_new, add_special_tokens=False)["input_ids"])
    runs = [subject_position(model, context, request.prompt, request.subject) for context in contexts]
    kl_ids, kl_at = subject_position(model, "", "{} is a", request.subject)
    h = read(model, module, runs[0][0])[runs[0][1]]
    with torch.no_grad():
        kl_base = logits(model, kl_ids)[kl_at].log_softmax(dim=-1)
    delta = torch.zeros(h.shape[0], requires_grad=True)
    adam = torch.optim.Adam([delta], lr=config.lr)
    history: list[float] = []
    path: list[Tensor] = []
    for step in range(config.steps):
        total = torch.zeros(())
        for ids, at in runs:
            with added(module, at, delta):
                scores = logits(model, ids + target).log_softmax(dim=-1)
            picked = [scores[len(ids) - 1 + i, token] for i, token in enumerate(target)]
            total = total - sum(picked) / len(target) / len(runs)
        with added(module, kl_at, delta):
            now = logits(model, kl_ids)[kl_at].log_softmax(dim=-1)
        total = total + config.kl_factor * (now.exp() * (now - kl_base)).sum()
        if bool(delta.any()):  # |delta| has no gradient at 0
            total = total + config.weight_decay * delta.norm() / h.norm() ** 2
        history.append(float(total.detach()))
        path.append(delta.detach().clone())
        if history[-1] < config.stop_loss or step == config.steps - 1:
            break
        adam.zero_grad()
        total.backward()
        adam.step()
        if config.clamp is not None:
            with torch.no_grad():
                bound = config.clamp * h.norm()
                if delta.norm() > bound:
                    delta *= bound / delta.norm()
    return PlainValue(h, delta.detach(), history[-1], len(history), tuple(history), tuple(path))


def greedy(model: EditableModel, ids: Sequence[int], limit: int) -> list[int]:
    """Greedy continuation by running the whole sequence again for each token, to an end-of-text token or the limit."""
    produced: list[int] = []
    with torch.no_grad():
        while len(produced) < limit:
            token = int(logits(model, [*ids, *produced])[-1].argmax())
            if token in model.text.eos_ids:
                break
            produced.append(token)
    return produced
