"""Whether the keys that receipts say to have left are those that were written: for ``errata verify``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from errata.editing.digest import digest_tensors
from errata.editing.session import EditReceipt
from errata.orchestrator.history.receipts import leaves_with


class WrittenKeys:
    """Digests of the keys of the requests in the weights, as far as the receipts so far tell them."""

    def __init__(self) -> None:
        self._digests: dict[str, dict[int, str]] = {}

    def forget(self) -> None:
        """Begin anew after commits that cannot be read."""
        self._digests.clear()

    def differing(self, receipt: EditReceipt) -> Iterator[str]:
        """Requests of which a receipt keeps another key than was written; taken note of is what it writes itself."""
        for name, keys in receipt.old_keys.items():
            known = self._digests.get(name)
            if known is not None and any(known.get(layer) != _digest(key) for layer, key in keys.items()):
                yield name
        if receipt.whole:
            self.forget()
        for name in leaves_with(receipt):
            self._digests.pop(name, None)
        self._digests |= {name: _digests(receipt.keys, column) for column, name in enumerate(receipt.request_ids)}


def _digests(keys: Mapping[int, Tensor], column: int) -> dict[int, str]:
    return {layer: _digest(matrix[:, column]) for layer, matrix in keys.items()}


def _digest(key: Tensor) -> str:
    return digest_tensors({"": key})
