"""What the tests of editors share: one small configuration of each, and sessions on tiny models of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from errata.editing.covariance import KeyCovariance
from errata.editing.digest import digest_tensors
from errata.editing.editors import REGISTRY, make_editor
from errata.editing.model.decoder import is_module
from errata.editing.request import EditBatch, EditRequest
from errata.editing.session import EditSession
from tests.helpers.tiny import tiny_model

VALUES = {"lr": 0.3, "steps": 4, "clamp": 2.0, "weight_decay": 0.0}
SETTINGS: dict[str, dict[str, Any]] = {
    "adalora": {"steps": 3, "lr": 1e-2},
    "alphaedit": {"tau": 1.0, "l2": 1.0},
    "emmet": {},
    "ft_l": {"layers": (1,), "lr": 1e-2, "steps": 4},
    "gated_kv": {"layers": (1,)},
    "grace": {"layers": (1,), "lr": 0.3, "steps": 8},
    "kn": {"threshold": 0.5, "steps": 4},
    "lora": {"steps": 3, "lr": 1e-2},
    "memit": {"cov_weight": 2.0},
    "memit_merge": {"cov_weight": 2.0},
    "mend": {"lr": 1e-2},
    "mose": {"candidates": 2},
    "pmet": {"cov_weight": 2.0},
    "prune": {"cov_weight": 0.1, "base": 4.0},
    "rect": {"cov_weight": 2.0},
    "rome": {"layers": (1,)},
    "rose": {},
    "ultraedit": {"lr": 1e-3},
    "wise": {"layers": (1,), "steps": 6, "save_every": 2, "merge_every": 4},
}
NAMES = sorted(SETTINGS)
CONTEXTS = ("", "You. ")


def config_of(name: str, **changes: Any) -> Any:
    """A configuration that does something on a tiny model within a few steps."""
    settings: dict[str, Any] = {"layers": (0, 1)} | SETTINGS[name] | changes
    if "values" in REGISTRY[name][0].model_fields:
        settings["values"] = VALUES | settings.get("values", {})
    return REGISTRY[name][0](type=name, **settings)


def covariance_of(model: Any, layers: Sequence[int] = (0, 1, 2), *, seed: int = 0) -> KeyCovariance:
    """A well-conditioned random covariance."""
    generator = torch.Generator().manual_seed(seed)
    sums = {}
    for layer in layers:
        keys = torch.randn(400, model.weight(layer).shape[1], generator=generator, dtype=torch.float64)
        sums[layer] = keys.T @ keys
    return KeyCovariance(sums, 400, {"kind": "random", "seed": seed})


def session_of(
    name: str,
    *,
    family: str = "llama",
    contexts: Sequence[str] = CONTEXTS,
    seed: int = 0,
    depth: int = 3,
    **changes: Any,
) -> EditSession:
    """A session on a model of its own; equal arguments start from equal bytes."""
    model = tiny_model(family, layers=depth)
    return EditSession(model, make_editor(config_of(name, **changes)), covariance_of(model, seed=seed), contexts)


def batch(sequence: int, *requests: EditRequest) -> EditBatch:
    return EditBatch(sequence=sequence, requests=requests)


def weight_bytes(session: EditSession) -> str:
    """Digest of the served weights and of their masters."""
    maps = [i for i in session.editor.layers if not is_module(i)]
    served = {str(i): session.model.parameter(i).detach() for i in maps}
    return digest_tensors(served | {f"master {i}": w for i, w in session.weights().items()})


def spread(rng: np.random.Generator, size: int, condition: float) -> np.ndarray:
    """A random second moment with a given condition number."""
    basis = np.linalg.qr(rng.standard_normal((size, size)))[0]
    return basis @ np.diag(np.geomspace(1.0, 1.0 / condition, size)) @ basis.T


def keys32(rng: np.random.Generator, size: int, count: int) -> np.ndarray:
    """Keys that float32 holds exactly, so that formulas are compared and not the rounding of inputs."""
    return rng.standard_normal((size, count)).astype(np.float32).astype(np.float64)
