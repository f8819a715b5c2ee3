"""Covariances kept between runs, each under the digest of all it was made from, and how a first one is come by.

The name of a file says what was asked for (model version, source, seed, budget, layers, dtype); what the file says of
itself is compared with that whenever it is read, so that nothing stale, foreign or damaged is ever used.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from errata.actors.workers.covariance import Estimate, EstimateJob, EstimateProgress
from errata.editing.checkpoint.kept import cache_root
from errata.editing.covariance import KeyCovariance
from errata.editing.digest import digest_json
from errata.editing.errors import DamagedFileError, UserError
from errata.editing.estimation.mixture import compose
from errata.editing.packed_covariance import (
    is_packed,
    load_covariance,
    load_packed,
    origin_of,
    save_packed,
    whole_source,
)
from errata.orchestrator.config.covariance import CovarianceConfig
from errata.orchestrator.covariance.jobs import component_job, estimate_job

logger = logging.getLogger(__name__)

_SUFFIX = ".safetensors"
_PACKED_SUFFIX = ".packed.safetensors"
_TEMPORARY = ".tmp-"
_PREFIX = re.compile(r"[0-9a-f]{6,64}")


def default_store() -> Path:
    """Where covariances are kept unless another directory is named: ``~/.cache/errata/covariances``."""
    return cache_root() / "covariances"


def key_of(source: Mapping[str, Any], layers: Sequence[int]) -> str:
    """Digest of what a covariance is made from: the name under which it is kept."""
    return digest_json({"source": _plain(source), "layers": sorted(layers)})


def differences(actual: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What two sources disagree on, one phrase a key: ``seed is 1, want 0``."""
    have, want = _plain(actual), _plain(wanted)
    absent = object()
    said = []
    for key in sorted(have | want):
        a, b = have.get(key, absent), want.get(key, absent)
        if a is not b and a != b:
            said.append(f"{key} is {_show(a, absent)}, want {_show(b, absent)}")
    return said


def check_made_from(
    covariance: KeyCovariance, source: Mapping[str, Any], layers: Sequence[int], *, name: str
) -> KeyCovariance:
    """The covariance itself if it is the one that is wanted.

    Raises:
        UserError: it was made from something else; the message says what differs.
    """
    said = differences(covariance.source, source)
    if covariance.layers != tuple(sorted(layers)):
        said.append(f"layers are {list(covariance.layers)}, want {sorted(layers)}")
    if said:
        raise UserError(f"covariance {name!r} is another one: {'; '.join(said)}")
    return covariance


class CovarianceStore:
    """Files under ``root``, written atomically; several processes may share it."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def path_of(self, source: Mapping[str, Any], layers: Sequence[int]) -> Path:
        """Where a covariance of that origin is kept."""
        return self.root / f"{key_of(source, layers)}{_SUFFIX}"

    def packed_path_of(self, source: Mapping[str, Any], layers: Sequence[int]) -> Path:
        """Where a covariance of that origin is kept packed."""
        return self.root / f"{key_of(source, layers)}{_PACKED_SUFFIX}"

    def find(self, source: Mapping[str, Any], layers: Sequence[int], *, packed: bool = False) -> KeyCovariance | None:
        """The covariance of that origin, or None if it has not been kept.

        Args:
            packed: one that is kept packed will do where no whole one is, also one of the same origin that was asked
                for more tokens.

        Raises:
            UserError: the file under that name is damaged or was made from something else; the message says what
                differs, and to delete it.
        """
        path = self.path_of(source, layers)
        if packed and not path.is_file():
            path = self.packed_path_of(source, layers)
            if not path.is_file() and (larger := self._larger_packed(source, layers)) is not None:
                return load_packed(larger)
        if not path.is_file():
            return None
        try:
            if path.name.endswith(_PACKED_SUFFIX):
                held = load_packed(path)
                check_made_from(replace(held, source=whole_source(held.source)), source, layers, name=str(path))
                return held
            return check_made_from(KeyCovariance.load(path), source, layers, name=str(path))
        except (DamagedFileError, UserError) as error:
            raise UserError(f"{error} ({path.parent}); delete the file to have it estimated again") from error

    def _larger_packed(self, source: Mapping[str, Any], layers: Sequence[int]) -> Path | None:
        """The packed one of the fewest tokens among those that differ from what is wanted by a larger budget alone."""
        budget = source.get("tokens")
        if budget is None:
            return None
        found = []
        for path in sorted(self.root.glob(f"*{_PACKED_SUFFIX}")):
            with suppress(DamagedFileError):  # nobody asked for that one
                made_from, covered, tokens = origin_of(path)
                larger = (made_from.get("tokens") or 0) >= budget and tokens >= budget
                if (
                    larger
                    and covered == tuple(sorted(layers))
                    and not differences({**made_from, "tokens": budget}, source)
                ):
                    found.append((tokens, path))
        return min(found)[1] if found else None

    def put(self, covariance: KeyCovariance) -> Path:
        """Keep a covariance under its origin; an equal one that is there already is replaced."""
        path = self.path_of(covariance.source, covariance.layers)
        write_atomically(covariance, path)
        return path

    def put_packed(self, covariance: KeyCovariance) -> tuple[Path, KeyCovariance]:
        """Keep a covariance packed under its origin; where it is, and what will be read from there."""
        path = self.packed_path_of(covariance.source, covariance.layers)
        return path, write_atomically(covariance, path, save_packed)

    def resolve(self, name: str) -> Path:
        """A file by path, or a kept one by the beginning of its name (six digits or more).

        Raises:
            UserError: neither, or several begin so.
        """
        path = Path(name).expanduser()
        if path.is_file():
            return path
        matches = sorted(self.root.glob(f"{name}*{_SUFFIX}")) if _PREFIX.fullmatch(name) else []
        matches = [path for path in matches if not path.name.endswith(_PACKED_SUFFIX)] or matches
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise UserError(f"{len(matches)} covariances in {self.root} begin with {name!r}; give more digits")
        raise UserError(f"covariance {name!r} is no file, and none in {self.root} begins so")


def write_atomically(
    covariance: KeyCovariance, path: Path, save: Callable[[KeyCovariance, Path], KeyCovariance] | None = None
) -> KeyCovariance:
    """Write a file that is either complete or not there; what will be read from it.

    Args:
        save: writes the file; the whole covariance by default.

    Raises:
        UserError: the place cannot be written to.
    """
    temporary = path.parent / f"{_TEMPORARY}{secrets.token_hex(8)}{_SUFFIX}"
    written = covariance
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if save is None:
            covariance.save(temporary)
        else:
            written = save(covariance, temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"covariance file {str(path)!r} cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()
    return written


# ---------------------------------------------------------------- coming by one


class Estimator(Protocol):
    """What is needed of `errata.actors.covariance.CovarianceEstimator`."""

    def estimate(
        self, job: EstimateJob, weights: Any, progress: Callable[[EstimateProgress], None] | None = None
    ) -> Estimate: ...


@dataclass(frozen=True)
class Obtained:
    """A covariance with its record, the seconds spent on estimating, and how many parts were found in the store."""

    covariance: KeyCovariance
    seconds: float
    reused: int
    repeated_blocks: int = 0


def obtain(
    config: CovarianceConfig,
    layers: Sequence[int],
    version: str,
    estimator: Estimator,
    *,
    dtype: str,
    store: CovarianceStore | None,
    shipped: CovarianceStore | None = None,
    progress: Callable[[str, EstimateProgress], None] | None = None,
) -> Obtained:
    """The covariance that a configuration describes, for the base model.

    Args:
        config: any source but ``identity``, which needs no model.
        version: digest of the base version.
        store: looked up first and added to; None to estimate anew.
        shipped: looked up after it, where ``config.packed`` allows a packed one.
        progress: called with the name of the part (``covariance``, or a component) and how far it is.

    Raises:
        UserError: a text cannot be read, a kept file is damaged or another one, components do not fit together.
    """
    if config.mixture is None:
        job = estimate_job(config, layers, version)
        looked = (store, shipped) if config.packed else (store,)
        return _one(job, "covariance", estimator, dtype=dtype, stores=looked, packed=config.packed, progress=progress)
    parts: dict[str, KeyCovariance] = {}
    seconds, reused, repeated = 0.0, 0, 0
    for name, component in sorted(config.mixture.components.items()):
        if component.file is not None:
            parts[name] = _component_file(component.file, name, layers, version, dtype)
            reused += 1
            continue
        job = component_job(config, name, layers, version)
        part = _one(job, name, estimator, dtype=dtype, stores=(store,), packed=False, progress=progress)
        parts[name] = part.covariance
        seconds, reused = seconds + part.seconds, reused + part.reused
        repeated += part.repeated_blocks
    return Obtained(compose(parts, config.mixture.weights), seconds, reused, repeated)


def _one(
    job: EstimateJob,
    part: str,
    estimator: Estimator,
    *,
    dtype: str,
    stores: Sequence[CovarianceStore | None],
    packed: bool,
    progress: Callable[[str, EstimateProgress], None] | None,
) -> Obtained:
    """Looked up in the stores one after the other, else estimated and kept in the first."""
    for store in stores:
        kept = store.find(job.source(dtype), job.layers, packed=packed) if store is not None else None
        if kept is not None:
            how = "found packed" if is_packed(kept.source) else "found"
            logger.info("%s: %s in the store, %d tokens", part, how, kept.tokens)
            return Obtained(kept, 0.0, 1)
    estimate = estimator.estimate(job, {}, (lambda p: progress(part, p)) if progress is not None else None)
    covariance = estimate.recorded
    if stores and stores[0] is not None:
        stores[0].put(covariance)
    return Obtained(covariance, estimate.seconds, 0, estimate.repeated_blocks)


def _component_file(file: str, name: str, layers: Sequence[int], version: str, dtype: str) -> KeyCovariance:
    """A component from a file, which must be of this model version and dtype and cover the layers."""
    path = Path(file)
    if not path.is_file():
        raise UserError(f"covariance.mixture.components.{name}.file {file!r} does not exist")
    covariance = load_covariance(path)
    wanted = {"version": version, "dtype": dtype}
    said = differences({key: covariance.source.get(key) for key in wanted}, wanted)
    missing = sorted(set(layers) - set(covariance.layers))
    if missing:
        said.append(f"layers {missing} are not covered, only {list(covariance.layers)}")
    if said:
        raise UserError(f"covariance.mixture.components.{name}.file {file!r} does not fit: {'; '.join(said)}")
    sums = {layer: covariance.sums[layer] for layer in sorted(layers)}
    return KeyCovariance(sums, covariance.tokens, covariance.source, covariance.record)


def _plain(source: Mapping[str, Any]) -> dict[str, Any]:
    """As it comes back from a file: tuples are lists, keys are text."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(source)))
    return plain


def _show(value: Any, absent: object) -> str:
    if value is absent:
        return "not there"
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
