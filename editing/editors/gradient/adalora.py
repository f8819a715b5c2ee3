"""AdaLoRA as an editor: LoRA's adapter as a singular value decomposition, ``B diag(E) A``, with orthogonal factors.

Zhang et al. 2023, arXiv:2303.10512, eq. 3 and 4: the loss has ``|A A^T - I| + |B^T B - I|`` (Frobenius, the mean over
all of them), and the product begins at zero with E. In the settings that the papers of this field compare with nothing
is pruned, as the call that allocates ranks is never made; and the library that they use takes the rank from ``init_r``,
12, whatever ``r`` says.

Letters: r rank, O = d_out, I = d_in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from errata.editing.editors.gradient.lora import Adapter, AdapterConfig, AdapterEditor

_EPSILON = 1e-5
"""What the library adds to the rank that it divides by."""


class AdaLoraConfig(AdapterConfig):
    """Settings of AdaLoRA."""

    type: Literal["adalora"] = "adalora"
    rank: int = Field(12, ge=1)
    """Of every adapted map: ``init_r`` of the library, which the papers leave at its default."""
    orthogonality: float = Field(0.5, ge=0)
    """Weight of the penalty that keeps A and B orthogonal."""


class AdaLora(AdapterEditor):
    """The adapter of AdaLoRA."""

    config: AdaLoraConfig

    def begun(self, size: int, width: int, generator: torch.Generator) -> dict[str, Tensor]:
        rank = self.config.rank
        return {
            "A": 0.02 * torch.randn(rank, width, generator=generator),
            "B": 0.02 * torch.randn(size, rank, generator=generator),
            "E": torch.zeros(rank, 1),
        }

    def factors(self, adapter: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        scale = self.config.alpha / (self.config.rank + _EPSILON)
        return adapter["B"] * scale, adapter["A"] * adapter["E"]

    def penalty(self, adapters: Adapter) -> Tensor | float:
        norms = []
        for adapter in adapters.values():
            for rows in (adapter["A"], adapter["B"].T):
                gram = rows @ rows.T
                norms.append((gram - torch.eye(gram.shape[0], device=gram.device)).norm())
        return self.config.orthogonality * torch.stack(norms).mean()
