"""Linear algebra of a lifelong edit: the growing system of MEMIT and of AlphaEdit against one dense solve per batch.

    python -m benchmarks.linear_algebra                # width 14 336, 1 000 edits before, batches of 1 and of 10
    python -m benchmarks.linear_algebra --full-dense   # the dense solve at full width too, not extrapolated

What is timed is what a batch costs one layer: the right factor of its update and taking its keys into the system. The
other side is what published code does for a batch: MEMIT solves ``(lambda C + K_p K_p^T + K K^T) X = K`` in float64,
AlphaEdit ``(P (K_p K_p^T + K K^T) + l2 I) X = P K`` in float32, both by LU, AlphaEdit with a product of two d x d
matrices before it. The product with the residual, (4 096, m) x (m, d), is the same on both sides and counts on both.

Dense solves are timed at two smaller widths and extrapolated by d^3 unless ``--full-dense``. What is done once per
covariance (a Cholesky factor, an eigendecomposition) is stated apart; published AlphaEdit needs it as well.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measuring import best, context, gemm_rate, one_thread, peak, reset_peak, store, timed
from errata.editing.linalg import Base, DenseBase, GrowingSystem, ProjectedIdentity, null_space, update_factor

D_OUT, PAST, COV_WEIGHT, L2, TAU, LEADING = 4096, 1000, 15_000.0, 10.0, 2e-2, 40
MIB = float(2**20)


def covariance(width: int, generator: torch.Generator) -> Tensor:
    """A second moment (d, d) float64: ``LEADING`` large directions over a small, uneven floor."""
    leading = torch.randn(width, LEADING, generator=generator, dtype=torch.float64)
    leading *= torch.logspace(0.5, -0.5, LEADING, dtype=torch.float64) / width**0.5 * 3
    matrix = leading @ leading.T
    matrix.diagonal().add_(torch.logspace(-2, -4, width, dtype=torch.float64))
    return matrix


def some_keys(width: int, count: int, generator: torch.Generator) -> Tensor:
    """Keys (d, count) float32 of about unit length, with a common direction as real ones have."""
    shared = torch.randn(width, 1, generator=generator)
    return (torch.randn(width, count, generator=generator) + 0.5 * shared) / width**0.5


# --- the published way, one dense solve per batch ---


def dense_memit(scaled: Tensor, keys: Tensor) -> Tensor:
    """K^T (lambda C + K_p K_p^T + K K^T)^-1, (m, d) float64; ``scaled`` is lambda C + K_p K_p^T."""
    k = keys.double()
    return torch.linalg.solve(scaled + k @ k.T, k).T


def dense_alphaedit(projector: Tensor, past_gram: Tensor, keys: Tensor) -> Tensor:
    """((P (K_p K_p^T + K K^T) + l2 I)^-1 P K)^T, (m, d), in the type of the projector."""
    k = keys.to(projector.dtype)
    system = projector @ (past_gram + k @ k.T)
    system.diagonal().add_(L2)
    return torch.linalg.solve(system, projector @ k).T


# --- measuring ---


def lifelong_batch(system: GrowingSystem, keys: Tensor, residual: Tensor) -> GrowingSystem:
    """What the editor does to one layer for one batch, with the product of the factors as the dense way has it."""
    right = update_factor(system, keys)
    residual @ right.float()
    return system.append(keys)


def measure_lifelong(
    base: Base, width: int, past: int, batches: tuple[int, ...], generator: torch.Generator, repeats: int
) -> dict[str, Any]:
    """CPU seconds and memory of batches of each size after ``past`` edits."""
    held = some_keys(width, past, generator)
    started, system = timed(lambda: GrowingSystem.start(base, base.restrict(held.double()), width))
    parts = system.form.tensors().values()
    row: dict[str, Any] = {
        "start_s": started,
        "state_MiB": sum(t.numel() * t.element_size() for t in parts) / MIB,
    }
    for size in batches:
        fresh = iter([some_keys(width, size, generator) for _ in range(repeats + 1)])
        residual = torch.randn(D_OUT if width > 1024 else 16, size, generator=generator)
        before = reset_peak()
        seconds = best(lambda: lifelong_batch(system, next(fresh), residual), repeats)  # noqa: B023 - called at once
        row[f"batch_{size}_s"] = seconds
        row[f"batch_{size}_peak_over_state_MiB"] = max(0, peak() - before) / MIB
    probe = some_keys(width, 2, generator)
    row["residual_error"] = system.drift(probe)
    return row


def measure_dense(
    call: Callable[[Tensor], Tensor], width: int, size: int, generator: torch.Generator, repeats: int = 3
) -> float:
    """Least CPU seconds of one dense batch, the product with the residual included; once where it takes long."""
    keys, residual = some_keys(width, size, generator), torch.randn(D_OUT, size, generator=generator)

    def batch() -> None:
        residual @ call(keys).float()

    return min(timed(batch)[0] for _ in range(repeats if width <= 4096 else 1))


def errors(width: int, past: int, size: int, seed: int = 0) -> dict[str, float]:
    """Relative error of both forms' right factors against the formula in float64, and of the dense float32 ones."""
    generator = torch.Generator().manual_seed(seed)
    C, held = covariance(width, generator), some_keys(width, past, generator)
    keys = some_keys(width, size, generator)
    gram = held.double() @ held.double().T
    basis, complement, _ = null_space(C, TAU)
    projector = basis @ basis.T
    if complement:
        projector = torch.eye(width, dtype=torch.float64) - projector
    bases: dict[str, Base] = {
        "memit": DenseBase(COV_WEIGHT * C, what="lambda C"),
        "alphaedit": ProjectedIdentity(L2, basis, complement=complement),
    }
    want = {
        "memit": dense_memit(COV_WEIGHT * C + gram, keys),
        "alphaedit": dense_alphaedit(projector, gram, keys),
    }
    by_name = {}
    for name, base in bases.items():
        system = GrowingSystem.start(base, torch.zeros(width, 0, dtype=torch.float64), width)
        for at in range(0, past, 100):  # as a lifetime does: grown, not made at once
            system = system.append(held[:, at : at + 100])
        got = update_factor(system, keys)
        by_name[name] = float((got - want[name]).norm() / want[name].norm())
    published = dense_alphaedit(projector.float(), gram.float(), keys).double()
    by_name["published alphaedit, float32"] = float((published - want["alphaedit"]).norm() / want["alphaedit"].norm())
    return by_name


def _memit(width: int, past: int, batches: tuple[int, ...], generator: torch.Generator, repeats: int) -> dict[str, Any]:
    matrix = covariance(width, generator) * COV_WEIGHT
    factored, base = timed(lambda: DenseBase(matrix, what="lambda C"))
    return measure_lifelong(base, width, past, batches, generator, repeats) | {"factor_once_s": factored}


def _dense_memit_s(width: int, past: int, generator: torch.Generator) -> float:
    held = some_keys(width, past, generator).double()
    scaled = covariance(width, generator) * COV_WEIGHT + held @ held.T
    return measure_dense(lambda keys: dense_memit(scaled, keys), width, 1, generator)


def _dense_alphaedit_s(width: int, past: int, generator: torch.Generator) -> float:
    held = some_keys(width, past, generator)
    leading = torch.linalg.qr(torch.randn(width, LEADING, generator=generator))[0]
    projector, gram = torch.eye(width) - leading @ leading.T, held @ held.T
    return measure_dense(lambda keys: dense_alphaedit(projector, gram, keys), width, 1, generator)


def measure(
    width: int,
    past: int,
    batches: tuple[int, ...],
    dense_widths: tuple[int, ...],
    repeats: int,
    error_width: int,
    say: Callable[[str, Any], None] = lambda name, value: None,
) -> dict[str, Any]:
    """Everything at one width; see the module's text. ``say`` hears of each part as it is done."""
    generator = torch.Generator().manual_seed(0)
    result: dict[str, Any] = {"d_in": width, "d_out": D_OUT, "past": past, "errors_at": error_width}
    result["errors"] = errors(error_width, min(past, error_width // 4), max(batches))
    say("errors", result["errors"])
    worst = max(result["errors"]["memit"], result["errors"]["alphaedit"])
    if not worst < 2e-4:  # a fast wrong answer is no result
        raise AssertionError(f"relative error {worst:.2g} against float64")
    basis = torch.linalg.qr(torch.randn(width, LEADING, generator=generator, dtype=torch.float64))[0]
    result["alphaedit"] = measure_lifelong(
        ProjectedIdentity(L2, basis, complement=True), width, past, batches, generator, repeats
    )
    say("alphaedit", result["alphaedit"])
    result["memit"] = _memit(width, past, batches, generator, repeats)
    say("memit", result["memit"])
    for name, dense in (("memit", _dense_memit_s), ("alphaedit", _dense_alphaedit_s)):
        seconds = {at: dense(at, past, generator) for at in dense_widths}
        largest = max(dense_widths)
        full = seconds[largest] * (width / largest) ** 3
        result[name] |= {
            "dense_s_by_width": seconds,
            "dense_per_batch_s": full,
            "dense_extrapolated_from": None if largest == width else largest,
        }
        for size in batches:
            result[name][f"batch_{size}_ratio"] = full / result[name][f"batch_{size}_s"]
        say(name, result[name])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--width", type=int, default=14_336)
    parser.add_argument("--error-width", type=int, default=1536, help="where the answers are compared with float64")
    parser.add_argument("--full-dense", action="store_true", help="time the dense solves at the full width (minutes)")
    parser.add_argument(
        "--superseding",
        action="store_true",
        help="instead: batches that overwrite known facts, `benchmarks.superseding`",
    )
    parser.add_argument("--json", type=Path, help="where to write; by default benchmarks/results/")
    options = parser.parse_args()
    one_thread()
    if options.superseding:
        from benchmarks import superseding

        print(store("superseding", {"context": context(), **superseding.measure_all()}, options.json))
        return
    widths = (4096, options.width) if options.full_dense else tuple(w for w in (4096, 8192) if w <= options.width)
    result = {
        "context": context(
            gemm_float64_Gflops=gemm_rate(2048, 2048, 2048, torch.float64) / 1e9,
            gemm_float32_Gflops=gemm_rate(2048, 2048, 2048) / 1e9,
        ),
        **measure(
            options.width, PAST, (1, 10), widths, repeats=4, error_width=options.error_width,
            say=lambda name, value: print(name, value, flush=True),
        ),
    }  # fmt: skip
    print(store("linear_algebra", result, options.json))


if __name__ == "__main__":
    main()
