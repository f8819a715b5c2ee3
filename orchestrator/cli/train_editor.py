"""``errata train-editor``: train what an editor needs before it can edit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from errata.editing.errors import UserError
from errata.editing.texts import read_text
from errata.editing.wording import counted

train_editor = typer.Typer(help="Train what an editor needs before it can edit.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.add_typer(train_editor, name="train-editor")


@train_editor.command()
def mend(
    records: Annotated[str, typer.Argument(help="Facts to learn from: any data set that a stream may be.")],
    output: Annotated[Path, typer.Argument(help="The file to write, and to go on from; `editor.trained` names it.")],
    layers: Annotated[str, typer.Option(help="Layers that are edited, such as 27,28,29.")],
    model: Annotated[str, typer.Option(help="A directory, a hub name, or one of `errata models list`.")] = (
        "smollm2-135m-instruct"
    ),
    steps: Annotated[int, typer.Option(min=1, help="Records in all, earlier calls included.")] = 100_000,
    without: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Facts to be tested on: records about their subjects are left out."),
    ] = None,
    text: Annotated[Path | None, typer.Option(help="Unrelated text, a paragraph a line; the shipped one else.")] = None,
    maps: Annotated[str, typer.Option(help="Maps of each layer.")] = "gate_proj,up_proj,down_proj",
    limit: Annotated[int | None, typer.Option(min=1, help="Records to learn from at most.")] = None,
    rank: Annotated[int, typer.Option(min=1, help="Of the network's matrices.")] = 1920,
    lr: Annotated[float, typer.Option(min=0, help="Adam's learning rate for the network.")] = 1e-6,
    edit_lr: Annotated[float, typer.Option(min=0, help="What each map's learned rate begins with.")] = 1e-4,
    lr_lr: Annotated[float, typer.Option(min=0, help="Adam's learning rate for those rates.")] = 1e-4,
    save_every: Annotated[int, typer.Option(min=1, help="Records between two writes of the file.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Seed for the order of records and the first weights.")] = 0,
) -> None:
    """Train MEND's network on facts whose subjects nobody is tested on.

    Interrupted, or begun again with more steps, it goes on from the file.
    """
    from errata.editing.checkpoint.load import load_model
    from errata.editing.editors.gradient.mend import MendConfig
    from errata.editing.editors.gradient.mend_network import network_digest
    from errata.editing.editors.gradient.mend_training import MendTrainer, MendTrainingConfig, without_subjects
    from errata.evaluation.datasets import ValidRecord, open_dataset
    from errata.orchestrator.config.presets import configs_root
    from errata.orchestrator.progress import Display

    try:
        chosen = tuple(sorted({int(layer) for layer in layers.split(",")}))
    except ValueError as error:
        raise UserError(f"--layers {layers!r}: want numbers with commas between them, such as 27,28,29") from error
    found = [r.request.cleaned() for r in open_dataset(records, limit=limit) if isinstance(r, ValidRecord)]
    if without is not None:
        found = without_subjects(found, [r.request for r in open_dataset(without) if isinstance(r, ValidRecord)])
    source = text or configs_root() / "text" / "heldout.txt"
    texts = [line.strip() for line in read_text(source, "--text").split("\n") if len(line.split()) > 8]
    settings = MendTrainingConfig(rank=rank, lr=lr, edit_lr=edit_lr, lr_lr=lr_lr, seed=seed)
    editor = MendConfig.model_validate({"layers": chosen, "maps": tuple(maps.split(","))})
    trainer = MendTrainer(load_model(model), editor, settings, found, texts)
    if output.exists():
        trainer.resume(output)
        typer.echo(f"going on from record {trainer.step}")
    told: list[float] = []
    with Display() as display:

        def tell(step: int, loss: float, moved: float) -> None:
            told.append(loss)
            recent = sum(told[-100:]) / len(told[-100:])
            display.update("records", step, steps, f"edit {recent:.2f}, moved {moved:.2g}")

        trainer.train(steps, output, every=save_every, tell=tell)
    typer.echo(f"{output}: {trainer.step} of {counted(len(found), 'record')}, digest {network_digest(trainer.network)}")
