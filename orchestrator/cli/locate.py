"""``errata locate``: find the layers to edit by causal tracing."""

from __future__ import annotations

import json
import re
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from errata.editing.errors import UserError
from errata.editing.remote import here
from errata.editing.texts import clean_all, read_text
from errata.editing.wording import counted
from errata.orchestrator.cli.options import Overrides, Verbose

if TYPE_CHECKING:
    from errata.editing.tracing import Trace, TracePrompt
    from errata.orchestrator.config.run import RunConfig

TRACE = "locate.json"
PAGE = "locate.html"
_REST: dict[str, dict[str, Any]] = {
    "editor": {"type": "memit", "layers": [0]},
    "stream": {"path": "configs/streams/quickstart.jsonl"},
    "covariance": {"source": "identity"},
}
"""What a run needs and a tracing does not, where the configuration is a model preset."""


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("locate")(locate)


def locate(
    config: Annotated[str, typer.Argument(help="A run's configuration or a model preset, such as models/gpt2-xl.")],
    overrides: Overrides = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Directory to write; runs/locate-MODEL by default.")
    ] = None,
    prompts: Annotated[int, typer.Option(min=1, help="Prompts to trace, the first ones with a true answer.")] = 100,
    data: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Prompts: a stream file or the known-facts layout; the stream by default."),
    ] = None,
    draws: Annotated[int, typer.Option(min=1, help="Draws of noise for each prompt.")] = 5,
    window: Annotated[int, typer.Option(min=1, help="Contiguous layers to choose.")] = 6,
    mlp: Annotated[
        int | None, typer.Option(min=1, metavar="SPAN", help="Restore the MLP outputs of SPAN layers instead.")
    ] = None,
    subject_last: Annotated[
        bool, typer.Option("--subject-last", help="Restore at the subject's last token only; enough for the choice.")
    ] = False,
    min_drop: Annotated[
        float, typer.Option(min=0, max=0.99, help="A prompt counts if noise lowers its answer's probability by more.")
    ] = 0.01,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise.")] = 0,
    device: Annotated[str, typer.Option(help="Torch device.")] = "cpu",
    beside: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="Another model's locate.json, whose profile is laid over this one's; repeatable."
        ),
    ] = None,
    write_preset: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the chosen layers into this model preset.")
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Find the layers that recall facts by causal tracing; write numbers and a picture."""
    from errata.editing.tracing import TracingConfig
    from errata.orchestrator.progress import configure_logging

    resolved = load_for_tracing(config, overrides or [])
    settings = TracingConfig(
        kind="hidden" if mlp is None else "mlp",
        span=mlp or TracingConfig().span,
        draws=draws,
        min_drop=min_drop,
        window=window,
        positions="subject_last" if subject_last else "all",
        seed=seed,
    )
    asked = read_prompts(resolved, data, prompts)
    others = [read_trace(path) for path in beside or []]
    if write_preset is not None and write_preset.exists():
        preset_with_layers(write_preset, (0,))  # a file that cannot be changed is found out before the work
    target = output or Path("runs") / f"locate-{Path(resolved.model.name).name}"
    if target.exists() and not target.is_dir():
        raise UserError(f"--output {str(target)!r} is a file; give a directory")
    configure_logging(verbose)
    trace = _trace(resolved, asked, settings, device)
    _write(trace, target, others)
    _print(trace)
    if trace.window is None:
        raise UserError(
            f"no prompt of {len(asked)} counts, so no layers are chosen; the reasons are in {target / TRACE}"
        )
    if write_preset is not None:
        write_layers(write_preset, trace, resolved)
        typer.echo(str(write_preset))


def load_for_tracing(name_or_path: str, overrides: list[str]) -> RunConfig:
    """A run's configuration; what a model preset leaves out is filled in.

    Raises:
        UserError: as `load_config`.
    """
    from errata.orchestrator.config.loading import apply_override, build_config, overlaid, read_composed
    from errata.orchestrator.config.presets import find_config

    path = find_config(name_or_path)
    plain = read_composed(path)
    for override in overrides:
        apply_override(plain, override)
    for section, value in _REST.items():
        # a preset has an editor without a type, and no stream; a whole configuration is left as it is
        given = plain.get(section)
        if given is None:
            plain[section] = value
        elif section == "editor" and isinstance(given, dict) and "type" not in given:
            plain[section] = overlaid(value, given)
    return build_config(plain, source=path)


# ---------------------------------------------------------------- prompts


def read_prompts(config: RunConfig, data: str | Path | None, count: int) -> list[TracePrompt]:
    """The first ``count`` facts with a true answer.

    ``data`` is a JSON array with ``subject``, ``attribute`` and ``template`` (the layout of ROME's known facts) or
    whatever a stream may be; None reads the configuration's stream.

    Raises:
        UserError: the file is not there or malformed, or no record has a true answer.
    """
    from errata.editing.request import EditRequest
    from errata.editing.tracing import TracePrompt
    from errata.orchestrator.sources.streams import open_stream

    file = None if data is None else here(data, "--data")
    if file is not None and not file.is_file():
        raise UserError(f"--data {str(data)!r} is not there; give a stream file or known facts")
    known = _known_facts(file) if file is not None else None
    if known is not None:
        prompts = list(islice(known, count))
    else:
        source, schema = (config.stream.path, config.stream.schema_) if file is None else (str(file), "auto")
        requests = (record.request for record in open_stream(source, schema, target=config.stream.target))
        prompts = list(
            islice(
                (
                    TracePrompt(request.id, request.subject, request.prompt, request.target_true)
                    for request in requests
                    if isinstance(request, EditRequest) and request.target_true and request.target_true.strip()
                ),
                count,
            )
        )
    if not prompts:
        raise UserError(f"{str(data or config.stream.path)!r} holds no record with a true answer (target_true)")
    return prompts


def _known_facts(path: Path) -> list[TracePrompt] | None:
    """The facts of ROME's layout, or None if the file has another one."""
    from errata.editing.tracing import TracePrompt

    try:
        records = clean_all(json.loads(read_text(path, "--data")))
    except ValueError:
        return None  # JSON Lines, or malformed: reading it as a stream says where
    keys = ("subject", "attribute", "template")
    if (
        not isinstance(records, list)
        or not records
        or not isinstance(records[0], dict)
        or "attribute" not in records[0]
    ):
        return None
    facts = []
    for number, record in enumerate(records, 1):
        good = isinstance(record, dict) and all(isinstance(record.get(key), str) and record[key] for key in keys)
        if not good or record["template"].count("{}") != 1:
            raise UserError(f"{path}#{number}: want subject, attribute and a template with {{}} once")
        name = str(record.get("known_id", number))
        facts.append(TracePrompt(name, record["subject"], record["template"], record["attribute"].strip()))
    return facts


# ---------------------------------------------------------------- work and results


def _trace(config: RunConfig, asked: list[TracePrompt], settings: Any, device: str) -> Trace:
    from errata.editing.checkpoint.load import load_model
    from errata.editing.tracing import trace
    from errata.orchestrator.progress import Display

    with Display() as display:
        model = load_model(config.model.name, dtype=config.model.dtype, device=device)
        return trace(model, asked, settings, lambda done: display.update("prompts", done, len(asked)))


def read_trace(path: Path) -> Trace:
    """A tracing that was kept, with a profile to show.

    Raises:
        UserError: the file is not there or no tracing, or none of its prompts counts.
    """
    from pydantic import ValidationError

    from errata.editing.tracing import Trace

    try:
        trace = Trace.model_validate_json(read_text(path, "--beside"))
    except ValidationError as error:
        raise UserError(f"--beside {str(path)!r} is no {TRACE} of errata locate") from error
    if "subject_last" not in trace.effects:
        raise UserError(f"--beside {str(path)!r}: no prompt of it counts, so it has no profile")
    return trace


def _write(trace: Trace, target: Path, beside: list[Trace]) -> None:
    from errata.orchestrator.report.locate_page import render_trace

    try:
        target.mkdir(parents=True, exist_ok=True)
        (target / TRACE).write_text(trace.model_dump_json(indent=1) + "\n", encoding="utf-8")
        written = [target / TRACE]
        if trace.window is not None:
            (target / PAGE).write_text(render_trace(trace, beside), encoding="utf-8")
            written.append(target / PAGE)
    except OSError as error:
        raise UserError(f"--output {str(target)!r} cannot be written: {error.strerror or error}") from error
    for path in written:
        typer.echo(str(path))


def _print(trace: Trace) -> None:
    if trace.window is None or trace.window_sum is None:
        return
    mean = trace.effects["subject_last"].mean
    typer.echo(f"{trace.valid} of {counted(len(trace.prompts), 'prompt')} count")
    for layer in sorted(range(trace.layers), key=lambda i: -mean[i])[:10]:
        typer.echo(f"layer {layer:3d}  {mean[layer]:6.3f}{'  chosen' if layer in trace.window else ''}")
    typer.echo(f"chosen layers: {list(trace.window)} (sum {trace.window_sum:.3f})")


def write_layers(path: Path, trace: Trace, config: RunConfig) -> None:
    """Write the chosen layers into a model preset: a new one, or the one line of a preset that is there.

    Raises:
        UserError: the file cannot be written, or has no line ``layers: [...]`` in its section ``editor``.
    """
    assert trace.window is not None
    if path.exists():
        text = preset_with_layers(path, trace.window)
    else:
        plain = {
            "model": {"name": config.model.name, "dtype": config.model.dtype},
            "editor": {"layers": list(trace.window)},
        }
        settings = trace.config
        text = (
            f"# layers: causal tracing, {trace.valid} of {counted(len(trace.prompts), 'prompt')} valid, noise "
            f"{settings.noise:g} sigma, {settings.draws} draws, seed {settings.seed}.\n"
            f"# model digest: {trace.digest}\n"
            + yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, default_flow_style=None)
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--write-preset {str(path)!r} cannot be written: {error.strerror or error}") from error


def preset_with_layers(path: Path, layers: tuple[int, ...]) -> str:
    """Text of a preset with other layers; its comments and everything else stay.

    Raises:
        UserError: the file is no preset with a line ``layers: [...]`` in its section ``editor``.
    """
    fault = UserError(
        f"--write-preset {str(path)!r} has no line 'layers: [...]' in a section 'editor'; name a new file"
    )
    try:
        text = path.read_text(encoding="utf-8")
        before = yaml.safe_load(text)
        changed, count = re.subn(r"(?m)^(\s+layers:\s*)\[[^\]\n]*\]", lambda match: f"{match[1]}{list(layers)}", text)
        after = yaml.safe_load(changed)
        before["editor"]["layers"] = list(layers)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, KeyError) as error:
        raise fault from error
    if count != 1 or after != before:
        raise fault
    return changed
