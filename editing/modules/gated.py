"""A gated key/value layer: where a token's input points along a stored key, that key's residual joins the output.

NeuralDB, arXiv:2507.18028: the linear editors' ``R K^T (C + K K^T)^-1 k`` is a soft lookup in which all edits
interfere; here the nearest key by cosine answers alone, and nothing is added below a threshold.

Letters: n entries, N tokens of a pass.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from errata.editing.modules.base import LayerModule
from errata.editing.modules.packed import Content
from errata.editing.modules.reading import Reading


class Gated(LayerModule):
    """``keys`` (n, I), ``values`` (n, O) and ``owners`` (n,); the rule's ``threshold`` is a cosine."""

    def __init__(self, content: Content, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(content, device, dtype)
        self.unit_keys = unit(self.tensors["keys"])

    def output(self, inputs: Tensor, output: Tensor, linear: nn.Module, reading: Reading) -> Tensor:
        if not self.unit_keys.shape[0]:
            return output
        row, token = reading.inside.nonzero(as_tuple=True)
        cosine, entry = (unit(inputs[row, token].float()) @ self.unit_keys.T).max(dim=1)
        speaks = cosine > float(self.rule["threshold"])
        if not bool(speaks.any()):
            return output
        row, token, entry = row[speaks], token[speaks], entry[speaks]
        result = output.clone()
        result[row, token] = (output[row, token].float() + self.tensors["values"][entry]).to(output.dtype)
        return result


def unit(rows: Tensor) -> Tensor:
    """Rows (n, I) of length 1; a row of zeros stays as it is."""
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-30)
