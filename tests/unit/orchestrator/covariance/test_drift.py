"""Signs of drift against closed forms, the settings that do not fit, and the probe in front of a refresh."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from errata.actors.workers.covariance import Estimate, EstimateJob
from errata.editing.covariance import KeyCovariance, SampleRecord
from errata.editing.errors import UserError
from errata.editing.estimation.diagnostics import energy_basis
from errata.orchestrator.config.loading import build_config
from errata.orchestrator.config.refresh import DriftConfig
from errata.orchestrator.config.run import identity_of
from errata.orchestrator.covariance.drift import Drift, DriftWatch, Look, Looked
from errata.orchestrator.covariance.refresh import Refresher, blend

JOB = EstimateJob(layers=(1,), tokens=5, version="v1", seed=7)
DOCUMENTS = tuple((20 * (3.0 + 0.1 * i), 20) for i in range(-2, 3))
"""Mean 3.0 nats per token, standard deviation sqrt(0.025) = 0.158."""


def covariance(values: Sequence[float], documents: Sequence[tuple[float, int]] = DOCUMENTS) -> KeyCovariance:
    """Eigenvalues along the axes of the space."""
    sums = {1: torch.diag(torch.tensor(values, dtype=torch.float64))}
    return KeyCovariance(sums, 10, {"values": list(values)}, SampleRecord(tuple(documents)))


def probe(values: Sequence[float], documents: Sequence[tuple[float, int]] = DOCUMENTS) -> Estimate:
    return Estimate(covariance(values), tuple(documents), 0.5, 0)


def judged(current: KeyCovariance, found: Estimate, **settings: Any) -> Drift:
    look = DriftWatch(DriftConfig(every=5, **settings)).look(JOB, current.digest, lambda: current)
    return look.judge(found)


def test_the_leading_subspace_is_the_fewest_directions_that_hold_the_share():
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.standard_normal((6, 6)))
    values = np.array([50.0, 30.0, 10.0, 6.0, 3.0, 1.0])
    matrix = torch.from_numpy(basis @ np.diag(values) @ basis.T)
    for share, count in ((0.4, 1), (0.51, 2), (0.79, 2), (0.81, 3), (0.95, 4), (0.999, 6)):
        found = energy_basis(matrix, share)
        assert found.shape == (6, count)
        held = float(torch.trace(found.T @ matrix @ found)) / values.sum()
        assert held == pytest.approx(values[:count].sum() / values.sum(), rel=1e-12) and held >= share
    with pytest.raises(ValueError, match="between 0 and 1"):
        energy_basis(matrix, 1.0)


def test_the_energy_outside_is_the_probes_share_off_the_leading_axes():
    current = covariance([60.0, 36.0, 3.0, 1.0])  # two axes hold 96 %
    found = judged(current, probe([4.0, 2.0, 1.0, 1.0]), energy=0.3, nll=None)
    assert found.energy == {1: pytest.approx(2 / 8)} and found.nll is None and found.reasons == ()
    assert found.text == "no drift: 0.250 of the key energy outside"
    (reason,) = judged(current, probe([4.0, 2.0, 1.0, 3.0]), energy=0.3, nll=None).reasons
    assert reason == "drift: 0.400 of the key energy of layer 1 outside, allowed 0.3"


def test_the_nll_moves_in_standard_deviations_either_way():
    moved = tuple((nll + 20 * 0.2, count) for nll, count in DOCUMENTS)
    expected = 0.2 / math.sqrt(0.025)
    found = judged(covariance([1.0, 1.0]), probe([1.0, 1.0], moved), energy=None, nll=1.5)
    assert found.nll == pytest.approx(expected) and found.reasons == () and found.energy == {}
    assert judged(covariance([1.0, 1.0]), probe([1.0, 1.0], moved), energy=None, nll=1.2).reasons
    below = tuple((nll - 20 * 0.2, count) for nll, count in DOCUMENTS)
    (reason,) = judged(covariance([1.0, 1.0]), probe([1.0, 1.0], below), energy=None, nll=1.2).reasons
    assert reason == "drift: NLL moved by -1.26 standard deviations, allowed 1.2"


def test_what_is_no_number_is_drift():
    found = judged(covariance([60.0, 36.0, 3.0, 1.0]), probe([math.nan, 1.0, 1.0, 1.0]), energy=0.9, nll=None)
    assert found.reasons
    broken = judged(covariance([1.0, 1.0]), probe([1.0, 1.0], ((math.nan, 20),) * 3), energy=None, nll=50.0)
    assert broken.reasons


def test_without_likelihoods_the_energy_decides_alone():
    found = judged(covariance([60.0, 36.0, 3.0, 1.0], ()), probe([4.0, 2.0, 0.0, 0.0]))
    assert found.nll is None and found.reasons == ()


def test_the_subspaces_are_found_once_for_each_covariance():
    read = []

    def load() -> KeyCovariance:
        read.append(1)
        return first

    first, second = covariance([60.0, 36.0, 3.0, 1.0]), covariance([1.0, 3.0, 36.0, 60.0])
    watch = DriftWatch(DriftConfig(every=5, nll=None))
    off = probe([0.0, 0.0, 1.0, 1.0])
    assert watch.look(JOB, first.digest, load).judge(off).energy == {1: pytest.approx(1.0)}
    assert watch.look(JOB, second.digest, lambda: second).judge(off).energy == {1: pytest.approx(0.0)}
    assert watch.look(JOB, first.digest, load).judge(off).energy == {1: pytest.approx(1.0)}


def test_the_probe_is_the_beginning_of_the_refresh():
    job = DriftWatch(DriftConfig(every=5, sequences=3)).look(JOB, "d", lambda: covariance([1.0])).job
    assert (job.sequences, job.tokens, job.seed, job.version) == (3, None, JOB.seed, JOB.version)


class _Estimator:
    """Remembers which jobs were run."""

    def __init__(self) -> None:
        self.jobs: list[EstimateJob] = []

    def estimate(self, job: Any, weights: Any, progress: Any = None, stop: threading.Event | None = None) -> Estimate:
        self.jobs.append(job)
        return probe([1.0, 1.0])


@pytest.mark.parametrize("reasons", [(), ("drift: far away",)])
def test_only_a_probe_that_finds_drift_is_followed_by_an_estimate(reasons):
    estimator = _Estimator()
    small = JOB.model_copy(update={"tokens": None, "sequences": 2})
    refresher = Refresher(estimator)
    look = Look(small, lambda _: Drift({}, 0.0, reasons))
    found = refresher.start(JOB, {}, triggered_at=6, lag=3, look=look).future.result(10)
    refresher.close()
    assert isinstance(found, Looked)
    assert estimator.jobs == ([small, JOB] if reasons else [small])
    assert (found.estimate is not None) == bool(reasons) and found.seconds == (1.0 if reasons else 0.5)


def test_a_mixture_weighs_the_new_means_with_the_first_ones():
    first = KeyCovariance({1: torch.eye(2, dtype=torch.float64) * 100}, 10, {"kind": "first"})
    new = KeyCovariance({1: torch.eye(2, dtype=torch.float64) * 4000}, 1000, {"kind": "new"})
    mixed = blend(first, new, 0.25, "mixture")
    assert torch.allclose(mixed.mean(1), torch.eye(2, dtype=torch.float64) * (0.75 * 10 + 0.25 * 4), rtol=1e-15)
    assert mixed.source["kind"] == "mixture" and mixed.digest != blend(first, new, 0.25).digest


# ---------------------------------------------------------------- settings


def run(**sections: Any) -> dict[str, Any]:
    return {
        "model": {"name": "tiny"},
        "editor": {"type": "memit", "layers": [1]},
        "stream": {"path": "facts.jsonl"},
        "covariance": {"tokens": 100},
        **sections,
    }


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"refresh": {"seconds": 60}}, "refresh.seconds needs schedule 'asap'"),
        ({"refresh": {"drift": {"every": 5}, "model": "base"}}, "needs refresh.model 'live'"),
        ({"refresh": {"drift": {"every": 5, "energy": None, "nll": None}}}, "drift looks at nothing"),
        ({"refresh": {"drift": {"every": 5}}, "covariance": {"source": "identity"}}, "refresh.drift needs covariance"),
        (
            {
                "refresh": {"drift": {"every": 5, "energy": None}},
                "covariance": {"source": "corpus", "corpus": {"path": "text.txt"}, "tokens": 5},
            },
            "nll_documents above 0",
        ),
    ],
)
def test_a_policy_that_cannot_work_is_refused(sections, said):
    with pytest.raises(UserError, match=said):
        build_config(run(**sections))


def test_runs_of_older_releases_go_on_and_the_clock_decides_no_result():
    new = build_config(run(refresh={"every": 50})).dump()
    old = {**new, "refresh": {k: v for k, v in new["refresh"].items() if k in ("every", "lag", "model", "mode")}}
    old["refresh"] |= {"ema_weight": 0.5, "max_jsd": 0.2}
    assert identity_of(old) == identity_of(new)
    by_clock = build_config(run(refresh={"every": 50, "seconds": 60}, schedule="asap")).dump()
    assert identity_of(by_clock) == identity_of(new)
    watched = build_config(run(refresh={"every": 50, "drift": {"every": 5}})).dump()
    mixed = build_config(run(refresh={"every": 50, "mode": "mixture", "mixture_weight": 0.25})).dump()
    assert identity_of(watched) != identity_of(new) and identity_of(mixed)["refresh"]["mixture_weight"] == 0.25
