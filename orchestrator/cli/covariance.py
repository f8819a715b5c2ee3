"""``errata covariance estimate | show | compare | coverage | merge | pack``: what editors preserve."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from errata.editing.errors import ErrataError, UserError
from errata.editing.wording import counted
from errata.orchestrator.cli.options import Overrides, Verbose, show_result

if TYPE_CHECKING:
    from errata.actors.workers.covariance import Estimate, EstimateJob, EstimateProgress, KeyCheck
    from errata.editing.covariance import KeyCovariance
    from errata.orchestrator.config.run import RunConfig
    from errata.orchestrator.covariance.compare import CovarianceComparison

CHECK_TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 5e-2}
"""Largest relative difference of fused keys from a second pass, by the dtype the model runs in."""

Store = Annotated[Path | None, typer.Option(help="Directory of kept covariances; ~/.cache/errata/covariances.")]
Place = Annotated[
    str | None, typer.Option("--store", help="Directory or URL of kept covariances; ~/.cache/errata/covariances.")
]

covariance = typer.Typer(help="Key covariances: what an editor preserves.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.add_typer(covariance, name="covariance")


@covariance.command()
def estimate(
    config: Annotated[str, typer.Argument(help="A run's configuration: its model, editor.layers, covariance and ray.")],
    overrides: Overrides = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also write the covariance to this file.")
    ] = None,
    store: Place = None,
    check: Annotated[
        bool, typer.Option("--check", help="Take the first unit's keys again by a packed second pass and compare.")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Estimate the covariance of a configuration, or find it in the store."""
    from errata.orchestrator.config.loading import load_config
    from errata.orchestrator.progress import Display, configure_logging

    resolved = load_config(config, overrides or [])
    if resolved.covariance.source == "identity":
        raise UserError("covariance.source 'identity' needs no estimate; choose self_generated, corpus or mixture")
    if check and resolved.covariance.source != "self_generated":
        raise UserError(f"--check compares self-generated keys; covariance.source is {resolved.covariance.source!r}")
    configure_logging(verbose)
    with Display() as display:
        place = store or resolved.covariance.store or str(_store(None))
        _estimate(resolved, place, output, check, display.update)


@covariance.command()
def show(
    file: Annotated[str, typer.Argument(help="A covariance file, or the beginning of a kept one's name.")],
    store: Store = None,
) -> None:
    """Say what a covariance was made from and what its spectrum is like."""
    from errata.orchestrator.covariance.compare import compare as compare_all

    name, held = _load([file], store)[0]
    console = _console()
    console.print(f"digest   {held.digest}")
    console.print(f"tokens   {held.tokens:,}")
    console.print(f"layers   {', '.join(map(str, held.layers))}")
    for key, value in sorted(held.source.items()):
        console.print(f"{key:<24} {value}", markup=False)
    if held.record is not None:
        console.print(f"documents with NLL {len(held.record.documents):,}, first words {len(held.record.openings):,}")
    comparison = compare_all({name: held})
    if name in comparison.nll:
        nll = comparison.nll[name]
        shares = (0.05, 0.25, 0.5, 0.75, 0.95)
        listed = ", ".join(f"{100 * q:g} % {float(nll.quantile(q)):.3f}" for q in shares)
        console.print(f"NLL per token of {nll.numel():,} documents: mean {float(nll.mean()):.3f} nats; {listed}")
    console.print(_spectrum_table(comparison))
    for place, words in zip(("first", "second", "third"), comparison.sides[0].openings, strict=False):
        listed = ", ".join(f"{w.word!r} {w.share:.2%}" for w in words[:5])
        console.print(f"{place} words: {listed}", markup=False)


@covariance.command()
def compare(
    files: Annotated[list[str], typer.Argument(help="Two or more covariance files, or beginnings of kept names.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page with the plots.")] = Path("covariances.html"),
    layers: Annotated[list[int] | None, typer.Option("--layer", help="Only this layer; repeatable.")] = None,
    tau: Annotated[list[float] | None, typer.Option("--tau", help="Threshold of a null space; repeatable.")] = None,
    directions: Annotated[int, typer.Option(help="Leading directions whose overlap is taken.", min=1)] = 50,
    store: Store = None,
) -> None:
    """Compare covariances: print a table and write a page with spectra, likelihoods and first words."""
    from errata.orchestrator.covariance.compare import TAUS
    from errata.orchestrator.covariance.compare import compare as compare_all
    from errata.orchestrator.covariance.page import render_comparison

    if len(files) < 2:
        raise UserError(
            f"compare takes two or more covariances, got {len(files)}; for one use `errata covariance show`"
        )
    named = dict(_load(files, store))
    comparison = compare_all(named, taus=tau or TAUS, k=directions, layers=layers)
    console = _console()
    console.print(_spectrum_table(comparison))
    for layer in comparison.layers:
        console.print(
            _matrix(
                f"overlap of the leading {comparison.k} directions, layer {layer}",
                comparison,
                comparison.overlaps[layer],
            )
        )
    if comparison.nll:
        title = "Jensen-Shannon divergence of per-document NLL, nats"
        if not comparison.equal_length:
            title += " (documents of different lengths)"
        console.print(_matrix(title, comparison, comparison.jsd))
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(render_comparison(comparison), encoding="utf-8")
    except OSError as error:
        raise UserError(f"--output {str(output)!r} cannot be written: {error.strerror or error}") from error
    console.print(str(output))


@covariance.command()
def coverage(
    files: Annotated[list[str], typer.Argument(help="Covariance files, or beginnings of kept names.")],
    domain: Annotated[
        list[str], typer.Option("--domain", metavar="NAME=FILE", help="Covariance of a domain's text; repeatable.")
    ],
    energy: Annotated[
        float, typer.Option(min=0.01, max=0.9999, help="Share of a covariance's energy whose directions count.")
    ] = 0.95,
    layers: Annotated[list[int] | None, typer.Option("--layer", help="Only this layer; repeatable.")] = None,
    store: Store = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the result as JSON here too.")
    ] = None,
) -> None:
    """Say what share of a domain's key energy lies inside each covariance."""
    from errata.orchestrator.covariance.coverage import coverage as covered
    from errata.orchestrator.covariance.coverage import coverage_lines

    named = dict(_load(files, store))
    domains = {}
    for item in domain:
        name, equals, file = item.partition("=")
        if not (name and equals and file):
            raise UserError(f"--domain {item!r} is not of the form NAME=FILE")
        domains[name] = _load([file], store)[0][1]
    shares = covered(named, domains, energy=energy, layers=layers)
    show_result(shares, coverage_lines(shares, energy), output=output)


@covariance.command("merge")
def merge_files(
    files: Annotated[list[str], typer.Argument(help="Covariances of the same layers, estimated with different seeds.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")],
    store: Store = None,
) -> None:
    """Add covariances up: sums and token counts, as if all had been estimated at once."""
    from errata.editing.covariance import merge
    from errata.orchestrator.covariance.store import write_atomically

    held = _load(files, store)
    versions = {str(item.source.get("version")) for _, item in held}
    if len(versions) > 1:
        raise UserError(f"covariances of different model versions cannot be merged: {', '.join(sorted(versions))}")
    digests = [item.digest for _, item in held]
    if len(set(digests)) < len(digests):
        raise UserError("the same covariance is given twice; its tokens would count double")
    source = {"kind": "merge", "version": versions.pop(), "dtype": held[0][1].source.get("dtype"), "parts": digests}
    total = merge([item for _, item in held], source)
    write_atomically(total, output)
    _console().print(f"{output}: {total.tokens:,} tokens, digest {total.digest}")


@covariance.command()
def pack(
    file: Annotated[str, typer.Argument(help="A covariance file, or the beginning of a kept one's name.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory to write into; the name says the origin.")],
    store: Store = None,
) -> None:
    """Write a covariance in a twenty-fifth of the space, under the name by which a store finds it."""
    from errata.editing.packed_covariance import relative_error
    from errata.orchestrator.covariance.store import CovarianceStore

    _, held = _load([file], store)[0]
    try:
        path, packed = CovarianceStore(output).put_packed(held)
    except OSError as error:
        raise UserError(f"--output {str(output)!r} cannot be written: {error.strerror or error}") from error
    console = _console()
    for layer in held.layers:
        console.print(f"layer {layer}: relative error {relative_error(packed, held, layer):.3f}")
    console.print(f"{path}: {path.stat().st_size:,} bytes, digest {packed.digest}")


# ---------------------------------------------------------------- estimating


class _OnDemand:
    """An estimator that starts the cluster when the first estimate is asked of it: what is kept needs none."""

    def __init__(self, config: RunConfig, digest: str, stack: ExitStack) -> None:
        self._config, self._digest, self._stack = config, digest, stack
        self._estimator: Any = None

    def _started(self) -> Any:
        from errata.actors.cluster import Cluster

        if self._estimator is None:
            cluster = self._stack.enter_context(Cluster(self._config.ray, self._config.model_spec(self._digest)))
            self._estimator = cluster.estimator()
        return self._estimator

    def estimate(
        self, job: EstimateJob, weights: Any, progress: Callable[[EstimateProgress], None] | None = None
    ) -> Estimate:
        estimated: Estimate = self._started().estimate(job, weights, progress)
        return estimated

    def check(self, job: EstimateJob) -> KeyCheck:
        verdict: KeyCheck = self._started().check(job, {})
        return verdict


def _estimate(
    config: RunConfig, store: str, output: Path | None, check: bool, update: Callable[[str, float, float, str], None]
) -> None:
    from errata.editing.checkpoint.load import checkpoint_digest, resolve_model
    from errata.editing.editors import make_editor
    from errata.orchestrator.covariance.jobs import estimate_job
    from errata.orchestrator.covariance.places import open_store
    from errata.orchestrator.covariance.schedule import rates
    from errata.orchestrator.covariance.store import obtain, write_atomically
    from errata.orchestrator.journal.rows import version_digest
    from errata.orchestrator.run.opening import check_layers, for_model

    directory = resolve_model(config.model.name)
    check_layers(config, directory)
    config = for_model(config, directory)
    digest = checkpoint_digest(directory)
    version, layers, kept = version_digest(digest), make_editor(config.editor).layers, open_store(store)

    def progress(part: str, p: EstimateProgress) -> None:
        left = "" if p.seconds_left is None else f", {p.seconds_left:.0f} s left"
        again = f", {counted(p.repeated, 'block')} repeated" if p.repeated else ""
        update(part, round(100 * p.share), 100, f"{p.tokens:,} tokens, {rates(p)}{left}{again}")

    with _interruptible(), ExitStack() as stack:
        estimator = _OnDemand(config, digest, stack)
        dtype = config.model.dtype
        obtained = obtain(config.covariance, layers, version, estimator, dtype=dtype, store=kept, progress=progress)
        path = kept.put(obtained.covariance) if config.covariance.mixture is not None else None
        source = obtained.covariance.source
        checked = estimator.check(estimate_job(config.covariance, layers, version)) if check else None
    path = path or kept.path_of(source, layers)
    if output is not None:
        write_atomically(obtained.covariance, output)
    console = _console()
    tokens = obtained.covariance.tokens
    how = (
        "found in the store"
        if not obtained.seconds
        else f"{obtained.seconds:.1f} s, {tokens / obtained.seconds:.0f} tokens/s"
    )
    if obtained.repeated_blocks:
        how += f", {counted(obtained.repeated_blocks, 'block')} repeated"
    console.print(f"{tokens:,} tokens, layers {list(obtained.covariance.layers)}, {how}")
    console.print(f"digest {obtained.covariance.digest}")
    console.print(str(output or path))
    if checked is not None:
        _say_check(checked, config.model.dtype, console)


def _say_check(checked: KeyCheck, dtype: str, console: Console) -> None:
    worst, allowed = max(checked.errors.values()), CHECK_TOLERANCE[dtype]
    console.print(
        f"check: {checked.tokens:,} keys against a packed second pass: largest relative difference {worst:.2g}"
    )
    if not worst <= allowed:
        listed = ", ".join(f"layer {layer}: {error:.2g}" for layer, error in sorted(checked.errors.items()))
        raise ErrataError(
            f"keys of the decoding pass differ from a second pass: {listed}; allowed for {dtype}: {allowed:g}"
        )


@contextmanager
def _interruptible() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


# ---------------------------------------------------------------- files and tables


def _store(given: Path | None) -> Path:
    from errata.orchestrator.covariance.store import default_store

    return given.expanduser() if given is not None else default_store()


def _load(files: Sequence[str], store: Path | None) -> list[tuple[str, KeyCovariance]]:
    """Covariances with names that tell them apart, each checked against its digest."""
    from errata.editing.packed_covariance import load_covariance
    from errata.orchestrator.covariance.store import CovarianceStore

    kept = CovarianceStore(_store(store))
    paths = [kept.resolve(file) for file in files]
    names = [path.stem[:16] for path in paths]
    if len(set(names)) < len(names):
        names = [f"{name}#{index}" for index, name in enumerate(names, start=1)]
    try:
        return [(name, load_covariance(path)) for name, path in zip(names, paths, strict=True)]
    except ErrataError as error:
        raise UserError(str(error)) from error


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True)


def _spectrum_table(comparison: CovarianceComparison) -> Table:
    table = Table()
    for column in ("covariance", "tokens", "layer", "trace", "effective rank"):
        table.add_column(column, justify="left" if column == "covariance" else "right")
    for tau in comparison.taus:
        table.add_column(f"below {tau:g}", justify="right")
    for side in comparison.sides:
        for layer in comparison.layers:
            view = side.layers[layer]
            counts = (str(view.null_space[tau]) for tau in comparison.taus)
            table.add_row(
                side.name, f"{side.tokens:,}", str(layer), f"{view.trace:.4g}", f"{view.effective_rank:.1f}", *counts
            )
    return table


def _matrix(title: str, comparison: CovarianceComparison, rows: Sequence[Sequence[float | None]]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for side in comparison.sides:
        table.add_column(side.name, justify="right")
    for side, row in zip(comparison.sides, rows, strict=True):
        table.add_row(side.name, *("-" if value is None else f"{value:.4f}" for value in row))
    return table
