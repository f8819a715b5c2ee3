"""A finished run's weights against its editor's formula, evaluated anew: float64, dense, as the papers write it.

    python -m benchmarks.formula_check runs/editors-small/cells/* [--batches 5]

Of the run come the requests, the keys, the target values and the covariance of every commit. The states that the
residuals start from are read by the library's own pass with hooks, with the weights that the formulas gave before; no
solver, factor or state of the editors is used. What is printed is, per layer, ``|W_run - W| / |W_run - W_0|``, the
relative difference of everything that was written. A row that stands out in a table of editors and agrees here is the
method's, or the model's, and not a fault of the implementation. For MOSE, whose V the paper defines by target values
and the code by moved outputs unless ``literal_values`` is set, both are evaluated: *literal* is the distance from the
paper's.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measuring import context, one_thread, store
from errata.editing.checkpoint.load import load_model
from errata.editing.model.adapter import EditableModel
from errata.editing.request import EditRequest
from errata.orchestrator.history.rebuild import base_directory, base_maps, edited_layers, weights_at
from errata.orchestrator.history.receipts import load_covariance, load_receipt, open_store
from errata.orchestrator.journal import JOURNAL_FILE, Journal

Matrix = np.ndarray[Any, np.dtype[np.float64]]


@dataclass
class Layer:
    """One map as a formula needs it. Letters: I = d_in, O = d_out, m edits of the batch, p edits before it."""

    W: Matrix
    """(O, I) before the batch."""
    W_0: Matrix
    C: Matrix
    """(I, I), a mean per token."""
    K_p: Matrix
    """(I, p)"""
    raw: Matrix = field(default_factory=lambda: np.zeros((0, 0)))
    """Sum of MEMIT's updates (O, I): the state of PRUNE."""
    P: Matrix | None = None
    """AlphaEdit's projector (I, I): an eigendecomposition, made once."""


Formula = Callable[[Layer, Matrix, Matrix, Mapping[str, Any]], Matrix]
"""(map, keys (I, m), residuals (O, m), the editor's settings) -> the map after the batch."""


def memit(at: Layer, K: Matrix, R: Matrix, set_: Mapping[str, Any]) -> Matrix:
    """R K^T (lambda C + K_p K_p^T + K K^T)^-1."""
    A = set_["cov_weight"] * at.C if set_.get("iga") is not True else np.eye(len(at.C))
    if set_["past_keys"]:
        A = A + at.K_p @ at.K_p.T
    return at.W + R @ np.linalg.solve(A + K @ K.T, K).T


def alphaedit(at: Layer, K: Matrix, R: Matrix, set_: Mapping[str, Any]) -> Matrix:
    """R K^T P (K_p K_p^T P + K K^T P + l2 I)^-1."""
    if at.P is None:
        values, vectors = np.linalg.eigh(at.C)
        free = vectors[:, values < set_["tau"]]
        at.P = free @ free.T
    P = at.P
    A = (at.K_p @ at.K_p.T + K @ K.T) @ P + set_["l2"] * np.eye(len(P))
    return at.W + R @ np.linalg.solve(A.T, (K.T @ P).T).T


def rome(at: Layer, K: Matrix, V: Matrix, set_: Mapping[str, Any]) -> Matrix:
    """W + (v - W k) (C^-1 k)^T / (k^T C^-1 k), one edit after the other; V (O, m) are values here."""
    W = at.W
    for k, v in zip(K.T, V.T, strict=True):
        u = np.linalg.solve(at.C, k)
        W = W + np.outer(v - W @ k, u) / (k @ u)
    return W


def emmet(at: Layer, K: Matrix, R: Matrix, set_: Mapping[str, Any]) -> Matrix:
    """R (K^T A^-1 K + e I)^-1 K^T A^-1."""
    A_K = np.linalg.solve(set_["cov_weight"] * at.C + set_["ridge"] * np.eye(len(at.C)), K)
    return at.W + R @ np.linalg.solve(K.T @ A_K + set_["damping"] * np.eye(K.shape[1]), A_K.T)


def prune(at: Layer, K: Matrix, R: Matrix, set_: Mapping[str, Any]) -> Matrix:
    """W_0 + F(S): singular values of the sum above the largest of W_0 grow as their logarithm."""
    at.raw = (at.raw if at.raw.size else np.zeros_like(at.W)) + memit(at, K, R, set_) - at.W
    U, s, Vt = np.linalg.svd(at.raw, full_matrices=False)
    largest = np.linalg.norm(at.W_0, 2)
    damped = np.log(np.maximum(s, 1e-300) / largest) / math.log(set_["base"]) + largest
    return at.W_0 + (U * np.where(s > largest, damped, s)) @ Vt


def mose(at: Layer, K: Matrix, V: Matrix, set_: Mapping[str, Any]) -> Matrix:
    """Q W with Q = U V^T of lam W C W^T + V (W K)^T; V (O, m) are what the map is to put out."""
    U, _, Vt = np.linalg.svd(set_["preservation"] * at.W @ at.C @ at.W.T + V @ (at.W @ K).T)
    return (U @ Vt) @ at.W


FORMULAS: dict[str, Formula] = {
    "memit": memit,
    "memit_merge": memit,
    "rose": memit,
    "pmet": memit,
    "rect": memit,
    "alphaedit": alphaedit,
    "rome": rome,
    "emmet": emmet,
    "prune": prune,
    "mose": mose,
}


def thinned(before: Matrix, after: Matrix, keep: float) -> Matrix:
    """RECT: of the change only the share of entries that alter the weight most."""
    change = after - before
    relative = np.abs(change / before)
    least = np.sort(relative, axis=None)[-max(1, round(keep * change.size))]
    return before + np.where(relative >= least, change, 0.0)


def states_at(
    model: EditableModel, requests: Sequence[EditRequest], layer: int, *, of_map: bool, inputs: bool = False
) -> Matrix:
    """At the subjects' last tokens: outputs (d, m) of a layer, or of its edited map, or what goes into that, with the
    weights as they are."""
    caught: list[torch.Tensor] = []

    def hook(_: Any, given: Any, output: Any) -> None:
        output = given if inputs else output
        caught.append(output[0] if isinstance(output, tuple) else output)

    block = model.decoder.layers[layer]
    handle = (model.decoder.edited_map(layer) if of_map else block).register_forward_hook(hook)
    states = []
    try:
        for request in requests:
            tokens, subject = model.text.encode_for_edit("", request.prompt, request.subject)
            with torch.no_grad():
                model.hf(input_ids=torch.tensor([tokens]), use_cache=False, logits_to_keep=1)
            states.append(caught.pop().reshape(len(tokens), -1)[subject].double().numpy())
    finally:
        handle.remove()
    return np.stack(states, axis=1)


def check(run: Path, batches: int | None = None) -> dict[str, Any]:
    """Relative difference per layer, and how many commits were evaluated.

    Raises:
        KeyError: the run's editor has no formula here.
    """
    journal = Journal.open(run / JOURNAL_FILE, read_only=True)
    try:
        return _check(journal, open_store(run), batches)
    finally:
        journal.close()


def _check(journal: Any, files: Any, batches: int | None) -> dict[str, Any]:
    settings: Mapping[str, Any] = journal.meta.config["editor"]
    name = str(settings["type"])
    formula = FORMULAS[name]
    versions = [version for version in journal.versions() if version.sequence > 0][:batches]
    model = load_model(str(base_directory(journal)))
    layers = edited_layers(journal)
    base = base_maps(base_directory(journal), layers)
    asked = {row.id: row.request for row in journal.requests()}
    covariance = None
    maps: dict[int, Layer] = {}
    literal: dict[int, Matrix] = {}
    """Of the last batch: the maps by the paper's V, where a method has one of its own."""
    for version in versions:
        receipt = load_receipt(files, version)
        if covariance is None and receipt.covariance_digest is not None:
            covariance = load_covariance(files, receipt.covariance_digest)
        if receipt.targets is None or not receipt.keys:
            continue
        requests = [asked[i] for i in receipt.request_ids]
        wanted = receipt.targets.double().numpy().T
        used = sorted(receipt.keys)
        before: dict[int, Matrix] = {}
        for place, layer in enumerate(used):
            if layer not in maps:
                W = base[layer].double().numpy()
                C = covariance.mean(layer).numpy() if covariance is not None else np.eye(W.shape[1])
                maps[layer] = Layer(W, W, C, np.zeros((W.shape[1], 0)))
            at, K = maps[layer], receipt.keys[layer].double().numpy()
            before[layer] = at.W
            if name == "rome":
                right = wanted
            elif name == "mose":
                reached = states_at(model, requests, used[-1], of_map=False)
                # target values of the map at the bare prompts, which the paper calls v*
                k = states_at(model, requests, layer, of_map=True, inputs=True)
                V = at.W @ k + (wanted - reached) / (len(used) - place)
                literal[layer] = formula(at, K, V, settings)
                right = V if settings.get("literal_values") else V + at.W @ (K - k)
            else:
                left = len(used) - place
                reached = states_at(model, requests, used[-1], of_map=name == "pmet")
                right = (wanted - reached) / (math.sqrt(left) if name == "pmet" else left)
            at.W = formula(at, K, right, settings)
            at.K_p = np.concatenate([at.K_p, K], axis=1)
            model.set_weight(layer, torch.tensor(at.W).float())
        if name == "rect":
            for layer, old in before.items():
                maps[layer].W = thinned(old, maps[layer].W, settings["keep"])
                model.set_weight(layer, torch.tensor(maps[layer].W).float())
    run = weights_at(journal, files, base, versions[-1])
    moved = {layer: run[layer].double().numpy() - at.W_0 for layer, at in maps.items()}
    return {
        "editor": name,
        "commits": len(versions),
        "edits": versions[-1].edits,
        "difference": {
            layer: float(np.linalg.norm(run[layer].double().numpy() - at.W) / np.linalg.norm(moved[layer]))
            for layer, at in maps.items()
        },
        "written": {layer: float(np.linalg.norm(moved[layer]) / np.linalg.norm(at.W_0)) for layer, at in maps.items()},
        "literal": {
            layer: float(np.linalg.norm(run[layer].double().numpy() - W) / np.linalg.norm(moved[layer]))
            for layer, W in literal.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--batches", type=int, help="only so many commits of each run")
    parser.add_argument("--json", type=Path, help="where to write; by default benchmarks/results/")
    options = parser.parse_args()
    one_thread()
    result: dict[str, Any] = {"context": context(), "runs": {}}
    for run in options.runs:
        if not (run / JOURNAL_FILE).is_file():
            continue
        try:
            errors = check(run, options.batches)
        except KeyError as error:
            print(f"{run.name}: no formula for {error}", flush=True)
            continue
        result["runs"][run.name] = errors
        print(run.name, errors, flush=True)
    print(store("formula_check", result, options.json))


if __name__ == "__main__":
    main()
