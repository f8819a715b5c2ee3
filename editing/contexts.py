"""Context prefixes: short openings sampled once from the base model, in front of every edit prompt.

Optimizing and reading keys in several contexts makes an edit hold wherever the subject turns up (ROME, MEMIT).
The prefixes belong to the run: they are drawn from the *base* model with a seed and kept in the journal.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from errata.editing.model.adapter import EditableModel

OPENINGS = ("The", "Therefore", "Because", "I", "You")
"""First words of the prefixes, as in the published MEMIT code."""
_TOP_K = 5


@torch.no_grad()
def sample_contexts(model: EditableModel, *, count: int, length: int, seed: int) -> tuple[str, ...]:
    """The empty context and ``count`` prefixes of ``length`` sampled tokens, each ending in ". ".

    Sampled among the five likeliest tokens, as in the published code, with a CPU generator, so that a seed
    gives the same prefixes on every device whose logits agree.
    """
    if count == 0:
        return ("",)
    generator = torch.Generator().manual_seed(seed)
    sequences = [model.text.encode_prompt(OPENINGS[i % len(OPENINGS)]) for i in range(count)]
    starts = [len(model.text.bos)] * count
    for _ in range(length):
        rows = model.rows(sequences)
        hidden = model.run(model.embed(rows), 0, model.num_layers, model.positional(rows.layout))
        last = hidden[torch.arange(count, device=hidden.device), rows.lengths - 1]
        logits = model.logits(last).float().cpu()
        for token in model.text.eos_ids:
            logits[:, token] = -torch.inf
        top = logits.topk(_TOP_K, dim=1)
        picked = torch.multinomial(top.values.softmax(dim=1), 1, generator=generator)
        for row, token in enumerate(top.indices.gather(1, picked).squeeze(1).tolist()):
            sequences[row] = [*sequences[row], token]
    return ("", *(_clean(model, s[at:]) for s, at in zip(sequences, starts, strict=True)))


def sample_groups(model: EditableModel, groups: Sequence[tuple[int, int]], *, seed: int) -> tuple[str, ...]:
    """The empty context and the prefixes of several groups, each a (count, length); the first group is drawn with
    ``seed`` itself, as where it is the only one."""
    prefixes = [
        sample_contexts(model, count=count, length=length, seed=seed + (number << 32))[1:]
        for number, (count, length) in enumerate(groups)
    ]
    return ("", *(prefix for group in prefixes for prefix in group))


def _clean(model: EditableModel, tokens: Sequence[int]) -> str:
    text = " ".join(model.text.decode(tokens).split())
    # a brace in a prefix would be taken for the subject's slot
    return text.replace("{", " ").replace("}", " ") + ". "
