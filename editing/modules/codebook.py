"""GRACE's codebook: where a prompt's end comes within the radius of a key, the map puts out that key's value.

Hartvigsen et al. 2023, arXiv:2211.11031, eq. 1-2, with their ``replace_last``: only the output at the prompt's last
token is replaced.

Letters: n entries, E prompt ends in a pass.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from errata.editing.modules.base import LayerModule
from errata.editing.modules.reading import Reading


class Codebook(LayerModule):
    """``keys`` (n, I), ``values`` (n, O), ``radii`` (n,), ``labels`` and ``owners`` (n,); a negative radius never
    speaks."""

    def output(self, inputs: Tensor, output: Tensor, linear: nn.Module, reading: Reading) -> Tensor:
        keys = self.tensors["keys"]
        row, token = reading.ends.nonzero(as_tuple=True)
        if not keys.shape[0] or not row.numel():
            return output
        distance, entry = nearest(inputs[row, token].float(), keys, self.tensors["radii"])
        speaks = distance <= self.tensors["radii"][entry]
        if not bool(speaks.any()):
            return output
        row, token, entry = row[speaks], token[speaks], entry[speaks]
        result = output.clone()
        result[row, token] = self.tensors["values"][entry].to(output.dtype)
        return result


def nearest(queries: Tensor, keys: Tensor, radii: Tensor) -> tuple[Tensor, Tensor]:
    """Distance to, and number of, the nearest entry of each query (E, I); of equally near ones the newest.

    Entries with a negative radius are passed over.
    """
    # the exact kernel: by products, the distance of a query to itself comes out as a thousandth of its length
    distances = torch.cdist(queries, keys, compute_mode="donot_use_mm_for_euclid_dist")
    distances = distances.masked_fill(radii < 0, torch.inf)
    distance, back = distances.flip(dims=[1]).min(dim=1)
    return distance, keys.shape[0] - 1 - back
