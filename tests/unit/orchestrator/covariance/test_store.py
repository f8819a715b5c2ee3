"""Kept covariances: found again only for what they were made from; a wrong or damaged file says what differs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from errata.actors.workers.covariance import Estimate, EstimateJob
from errata.editing.covariance import KeyCovariance, SampleRecord
from errata.editing.errors import UserError
from errata.orchestrator.config.covariance import CovarianceConfig
from errata.orchestrator.covariance.jobs import estimate_job
from errata.orchestrator.covariance.store import (
    CovarianceStore,
    check_made_from,
    default_store,
    differences,
    key_of,
    obtain,
    write_atomically,
)

LAYERS = (1, 2)


class FakeEstimator:
    """Answers with a covariance that depends on the job; counts how often it was asked."""

    def __init__(self) -> None:
        self.jobs: list[EstimateJob] = []

    def estimate(self, job: EstimateJob, weights: Any, progress: Any = None) -> Estimate:
        self.jobs.append(job)
        scale = float(job.seed + 1) if job.corpus is None else float(job.corpus.digest[0] == "0") + 2.0
        sums = {layer: torch.eye(3, dtype=torch.float64) * scale * 10 for layer in job.layers}
        covariance = KeyCovariance(sums, 10, job.source("float32"))
        return Estimate(covariance, ((7.0, 10),), 2.0, 1, (("Sure", "I"),))


def config(**given: Any) -> CovarianceConfig:
    return CovarianceConfig(**({"tokens": 100} | given))


def wanted(seed: int = 0, **given: Any) -> dict[str, Any]:
    return estimate_job(config(seed=seed, **given), LAYERS, "v0").source("float32")


def kept(source: dict[str, Any], layers: tuple[int, ...] = LAYERS) -> KeyCovariance:
    return KeyCovariance({layer: torch.eye(3, dtype=torch.float64) for layer in layers}, 5, source)


def get(config: CovarianceConfig, estimator: FakeEstimator, store: CovarianceStore | None, version: str = "v0") -> Any:
    return obtain(config, LAYERS, version, estimator, dtype="float32", store=store)


def test_a_covariance_is_found_for_what_it_was_made_from_only(tmp_path: Path) -> None:
    store, estimator = CovarianceStore(tmp_path / "store"), FakeEstimator()
    first = get(config(), estimator, store)
    again = get(config(), estimator, store)
    assert len(estimator.jobs) == 1 and (first.reused, again.reused) == (0, 1)
    assert again.covariance.digest == first.covariance.digest and again.seconds == 0.0
    assert again.covariance.record == SampleRecord(((7.0, 10),), (("Sure", "I"),))
    others = [
        get(config(seed=1), estimator, store),
        get(config(tokens=101), estimator, store),
        get(config(seed_mode="bos"), estimator, store),
        get(config(), estimator, store, version="v1"),
        obtain(config(), (1,), "v0", estimator, dtype="float32", store=store),
        obtain(config(), LAYERS, "v0", estimator, dtype="bfloat16", store=None),
    ]
    assert [other.reused for other in others] == [0] * 6 and len(estimator.jobs) == 7


def test_without_a_store_nothing_is_kept(tmp_path: Path) -> None:
    estimator = FakeEstimator()
    get(config(), estimator, None)
    get(config(), estimator, None)
    assert len(estimator.jobs) == 2 and list(tmp_path.iterdir()) == []


def test_the_key_does_not_depend_on_how_it_is_written() -> None:
    source = wanted()
    assert key_of(source, LAYERS) == key_of(dict(reversed(source.items())), (2, 1))
    assert key_of({"a": (1, 2)}, (1,)) == key_of({"a": [1, 2]}, (1,)) != key_of({"a": [1, 2]}, (2,))


def test_a_file_made_from_something_else_is_refused_with_what_differs(tmp_path: Path) -> None:
    store = CovarianceStore(tmp_path)
    impostor = kept(wanted(seed=3, max_new_tokens=9), layers=(1, 4))
    write_atomically(impostor, store.path_of(wanted(), LAYERS))
    with pytest.raises(UserError) as caught:
        store.find(wanted(), LAYERS)
    said = str(caught.value)
    assert "max_new_tokens is 9, want 256; seed is 3, want 0; layers are [1, 4], want [1, 2]" in said
    assert "delete the file" in said and "\n" not in said


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    store = CovarianceStore(tmp_path)
    path = store.put(kept(wanted()))
    whole = path.read_bytes()
    for damaged in (whole[:-5], whole[:-1] + bytes([whole[-1] ^ 1]), b""):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="delete the file to have it estimated again"):
            store.find(wanted(), LAYERS)


def test_differences_name_absent_keys() -> None:
    assert differences({"a": 1, "b": 2}, {"b": 2, "c": None}) == ["a is 1, want not there", "c is not there, want null"]
    assert differences({"layers": (1, 2)}, {"layers": [1, 2]}) == []
    assert check_made_from(kept(wanted()), wanted(), LAYERS, name="x").tokens == 5


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "file"
    target.write_text("in the way of a directory")
    with pytest.raises(UserError, match="cannot be written"):
        write_atomically(kept(wanted()), target / "c.safetensors")

    def torn(self: KeyCovariance, path: Path) -> None:
        path.write_bytes(b"half")
        raise RuntimeError("killed")

    monkeypatch.setattr(KeyCovariance, "save", torn)
    with pytest.raises(RuntimeError):
        write_atomically(kept(wanted()), tmp_path / "c.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_kept_files_are_named_by_the_beginning_of_their_digits(tmp_path: Path) -> None:
    store = CovarianceStore(tmp_path)
    path = store.put(kept(wanted()))
    assert store.resolve(path.stem[:8]) == path == store.resolve(str(path))
    with pytest.raises(UserError, match="is no file, and none in"):
        store.resolve("abcdef012345")
    with pytest.raises(UserError, match="is no file"):
        store.resolve("../" + path.stem[:8])
    (tmp_path / f"{path.stem[:8]}00.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"2 covariances .* give more digits"):
        store.resolve(path.stem[:8])


def test_the_default_place_is_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path))
    assert default_store() == tmp_path / "covariances"


# ---------------------------------------------------------------- texts and mixtures


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    for name, line in (("web", "the web"), ("code", "def f(): pass")):
        (tmp_path / f"{name}.txt").write_text(f"{line}\n\n{line} again\n")
    return tmp_path


def mixture(texts: Path, part: dict[str, str] | None = None, **weights: float) -> CovarianceConfig:
    components = {"web": {"path": str(texts / "web.txt")}, "code": part or {"path": str(texts / "code.txt")}}
    weights = weights or {"web": 0.9, "code": 0.1}
    return config(source="mixture", mixture={"weights": weights, "components": components})


def test_a_text_is_found_again_until_it_changes(texts: Path, tmp_path: Path) -> None:
    store, estimator = CovarianceStore(tmp_path / "store"), FakeEstimator()
    settings = config(source="corpus", corpus={"path": str(texts / "web.txt")})
    assert [get(settings, estimator, store).reused for _ in range(2)] == [0, 1]
    job = estimator.jobs[0]
    assert job.corpus is not None and job.corpus.documents == 2 and job.most == 2
    assert job.source("float32")["kind"] == "corpus" and str(tmp_path) not in str(job.source("float32"))
    (texts / "web.txt").write_text("another web\n")
    assert get(settings, estimator, store).reused == 0


def test_a_mixture_is_recomposed_from_what_is_kept(texts: Path, tmp_path: Path) -> None:
    store, estimator = CovarianceStore(tmp_path / "store"), FakeEstimator()
    first = get(mixture(texts), estimator, store)
    assert len(estimator.jobs) == 2 and first.reused == 0 and first.seconds == 4.0
    other = get(mixture(texts, web=0.5, code=0.5), estimator, store)
    assert len(estimator.jobs) == 2 and other.reused == 2
    assert other.covariance.source["weights"] == {"code": 0.5, "web": 0.5}
    assert other.covariance.source["parts"] == first.covariance.source["parts"]


def test_a_component_may_be_a_file_of_the_same_model(texts: Path, tmp_path: Path) -> None:
    estimator, path = FakeEstimator(), tmp_path / "code.safetensors"
    sums = {layer: torch.eye(3, dtype=torch.float64) * 60 for layer in (0, 1, 2)}
    KeyCovariance(sums, 10, {"version": "v0", "dtype": "float32"}).save(path)
    found = get(mixture(texts, {"file": str(path)}), estimator, None)
    assert len(estimator.jobs) == 1 and found.covariance.layers == LAYERS
    web = found.covariance.source["parts"]["web"]
    assert web and float(found.covariance.mean(1)[0, 0]) == pytest.approx(
        0.9 * float(estimator.estimate(estimator.jobs[0], {}).covariance.mean(1)[0, 0]) + 0.1 * 6
    )
    KeyCovariance({1: sums[1]}, 10, {"version": "v9", "dtype": "float32"}).save(path)
    with pytest.raises(UserError) as caught:
        get(mixture(texts, {"file": str(path)}), estimator, None)
    assert 'version is "v9", want "v0"; layers [2] are not covered, only [1]' in str(caught.value)
    with pytest.raises(UserError, match=r"components\.code\.file .* does not exist"):
        get(mixture(texts, {"file": str(tmp_path / "none.safetensors")}), estimator, None)


def test_the_models_vocabulary_decides_what_a_sampler_left_open_means() -> None:
    """It is named in what the estimate was made from; what smaller vocabularies gave keeps its name."""
    small, large = config().for_vocabulary(49_152), config().for_vocabulary(262_144)
    assert estimate_job(small, LAYERS, "v0").source("float32") == estimate_job(config(), LAYERS, "v0").source("float32")
    assert estimate_job(large, LAYERS, "v0").source("float32")["sampler"] == "blocks"
    chosen = config(sampler="inversion").for_vocabulary(262_144)
    assert "sampler" not in estimate_job(chosen, LAYERS, "v0").source("float32")
