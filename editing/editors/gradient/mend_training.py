"""Training of MEND's network: resumable, on records whose subjects nobody is tested on.

Mitchell et al. 2022, arXiv:2110.11309, Alg. 1. A step edits the base with one record and lowers

    L = c_edit NLL(another form of the question, after the edit) + c_loc KL(base | edited)      (unrelated text)

by the network's own numbers; the factors of the edit are constants. Which record a step takes follows from the seed and
the step's number, and everything a step needs is in the file: continued, it gives the numbers that going on gives.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from errata.editing.closed import Closed
from errata.editing.digest import digest_json
from errata.editing.editors.gradient.mend import MendConfig, shapes_of
from errata.editing.editors.gradient.mend_network import (
    MendNetwork,
    changed_by,
    factors_of,
    load_network,
)
from errata.editing.editors.modules.training import TargetRows
from errata.editing.errors import UserError
from errata.editing.model.adapter import EditableModel
from errata.editing.model.decoder import layer_of
from errata.editing.request import EditRequest
from errata.editing.wording import counted


class MendTrainingConfig(Closed):
    """Settings of the training; the papers' for Llama-2-7B where nothing else is said."""

    rank: int = Field(1920, ge=1)
    """Of the network's matrices, at most their size."""
    lr: float = Field(1e-6, gt=0)
    """Adam's learning rate for the network."""
    edit_lr: float = Field(1e-4, gt=0)
    """What each map's rate begins with."""
    lr_lr: float = Field(1e-4, gt=0)
    """Adam's learning rate for those rates."""
    edit_weight: float = Field(0.1, ge=0)
    """c_edit."""
    locality_weight: float = Field(1.0, ge=0)
    """c_loc."""
    accumulate: int = Field(10, ge=1)
    """Records between two updates of the network."""
    clip: float = Field(100.0, gt=0)
    """Largest norm of a gradient."""
    text_tokens: int = Field(64, ge=2)
    """Length of an unrelated text."""
    seed: int = 0
    """Of the network's beginning and of the order of records."""


class MendTrainer:
    """A training under way.

    Args:
        records: to learn from.
        texts: unrelated ones, for the divergence.
    """

    def __init__(
        self,
        model: EditableModel,
        editor: MendConfig,
        settings: MendTrainingConfig,
        records: Sequence[EditRequest],
        texts: Sequence[str],
    ) -> None:
        if not records or not texts:
            raise UserError(
                f"train-editor: {counted(len(records), 'record')} and {counted(len(texts), 'text')}; "
                "at least one of each is needed"
            )
        model.check_layers(editor.numbers)
        self.model, self.settings, self.numbers = model, settings, editor.numbers
        self.records, self.texts = list(records), list(texts)
        self.network = MendNetwork(
            shapes_of(model, self.numbers), rank=settings.rank, lr=settings.edit_lr, seed=settings.seed
        ).to(model.device)
        rates = list(self.network.rates.parameters())
        others = [p for name, p in self.network.named_parameters() if not name.startswith("rates.")]
        groups: list[dict[str, Any]] = [
            {"params": others, "lr": settings.lr},
            {"params": rates, "lr": settings.lr_lr},
        ]
        self.adam = torch.optim.Adam(groups)
        self.step = 0

    @property
    def identity(self) -> dict[str, Any]:
        """What a training is: a file of another one is not gone on with."""
        return {
            "model": self.model.digest,
            "settings": self.settings.model_dump(mode="json"),
            "numbers": list(self.numbers),
            "records": digest_json([record.id for record in self.records]),
            "texts": digest_json(self.texts),
        }

    def train(
        self, steps: int, save: Path, *, every: int = 100, tell: Callable[[int, float, float], None] | None = None
    ) -> None:
        """Go on until ``steps`` records were seen in all; the file is whole at any moment.

        Args:
            every: records between two writes of the file.
            tell: called after every record with its number and its two losses.
        """
        while self.step < steps:
            told, moved = self.one()
            if tell is not None:
                tell(self.step, told, moved)
            if self.step % every == 0 or self.step == steps:
                self.save(save)

    def one(self) -> tuple[float, float]:
        """Learn from the next record; the loss of the edit and the divergence."""
        # a generator of the step's own: the order does not depend on where the training was interrupted
        draw = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + self.step)
        record = self.records[int(torch.randint(len(self.records), (), generator=draw))]
        text = self.texts[int(torch.randint(len(self.texts), (), generator=draw))]
        forms = [record.text, *record.paraphrases]
        form = forms[int(torch.randint(len(forms), (), generator=draw))]
        told, moved = self.losses(record, form, text, watch=True)
        loss = self.settings.edit_weight * told + self.settings.locality_weight * moved
        (loss / self.settings.accumulate).backward()
        self.step += 1
        if self.step % self.settings.accumulate == 0:
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip)
            self.adam.step()
            self.adam.zero_grad(set_to_none=True)
        return float(told.detach()), float(moved.detach())

    def losses(self, record: EditRequest, form: str, text: str, *, watch: bool) -> tuple[Tensor, Tensor]:
        """The edit's loss on ``form`` and the divergence on ``text``, after an edit with the record's prompt."""
        first = min(map(layer_of, self.numbers))
        rows = TargetRows(self.model, [record], first)
        factors, _ = factors_of(self.model, rows, self.numbers)
        if watch:
            with torch.no_grad():
                for number in self.numbers:
                    self.network.watch(number, factors[number])
        asked = rows
        if form != record.text:
            # the form is a whole question: the subject's slot is filled already
            other = record.model_copy(update={"prompt": "{}", "subject": form, "paraphrases": ()})
            asked = TargetRows(self.model, [other], first)
        with torch.enable_grad():
            changes = {number: self.network.change(number, factors[number]) for number in self.numbers}
            with changed_by(self.model, changes):
                told = asked.losses().mean()
            return told, self._divergence(text, first, changes)

    def _divergence(self, text: str, first: int, changes: dict[int, tuple[Tensor, Tensor]]) -> Tensor:
        """KL(base | edited), the mean over the text's tokens."""
        model = self.model
        tokens = model.text.encode_prompt(text)[: self.settings.text_tokens]
        rows = model.rows([tokens])
        positional = model.positional(rows.layout)
        with torch.no_grad():
            hidden = model.run(model.embed(rows), 0, first, positional)
            base = model.logits(model.run(hidden, first, model.num_layers, positional)[0]).float().log_softmax(dim=1)
        with changed_by(model, changes):
            edited = model.logits(model.run(hidden, first, model.num_layers, positional)[0]).float().log_softmax(dim=1)
        return (base.exp() * (base - edited)).sum(dim=1).mean()

    # --- as a file ---

    def save(self, path: Path) -> str:
        """Write all that going on needs; the network's digest."""
        tensors = {}
        for number, parameter in enumerate(self._parameters()):
            for name, value in self.adam.state.get(parameter, {}).items():
                tensors[f"adam.{number}.{name}"] = value
            if parameter.grad is not None:
                tensors[f"gradient.{number}"] = parameter.grad
        temporary = path.with_name(f".{path.name}.tmp")
        more = {"step": self.step, "training": self.identity, "subjects": subjects_of(self.records)}
        digest = self.network.save(temporary, more, tensors)
        os.replace(temporary, path)
        return digest

    def resume(self, path: Path) -> None:
        """Go on from a file.

        Raises:
            UserError: it is that of another training.
        """
        network, about, tensors = load_network(path)
        if about.get("training") != self.identity:
            mine = self.identity
            differs = [key for key in mine if about.get("training", {}).get(key) != mine[key]]
            raise UserError(f"{str(path)!r} is of another training ({', '.join(differs)} differ); give another file")
        self.network.load_state_dict(network.state_dict())
        self.step = int(about["step"])
        for number, parameter in enumerate(self._parameters()):
            head = f"adam.{number}."
            held = {name.removeprefix(head): value for name, value in tensors.items() if name.startswith(head)}
            if held:
                self.adam.state[parameter] = held
            if f"gradient.{number}" in tensors:
                parameter.grad = tensors[f"gradient.{number}"]

    def _parameters(self) -> list[torch.nn.Parameter]:
        return [parameter for group in self.adam.param_groups for parameter in group["params"]]


def subjects_of(records: Sequence[EditRequest]) -> list[str]:
    """Digests of the subjects, case aside, in order."""
    return sorted({digest_json(record.subject.casefold())[:16] for record in records})


def without_subjects(records: Sequence[EditRequest], tested: Sequence[EditRequest]) -> list[EditRequest]:
    """The records whose subject is none of those that are tested."""
    taken = set(subjects_of(tested))
    return [record for record in records if not taken.intersection(subjects_of([record]))]
