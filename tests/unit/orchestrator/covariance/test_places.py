"""Stores behind URLs: the Hub (a stand-in), memory for an object store, a web server; packed ones; the shipped one."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from errata.editing.covariance import KeyCovariance
from errata.editing.errors import UserError
from errata.editing.packed_covariance import is_packed, load_packed
from errata.orchestrator.config.covariance import CovarianceConfig
from errata.orchestrator.covariance.jobs import estimate_job
from errata.orchestrator.covariance.places import RemoteStore, open_store, shipped_store
from errata.orchestrator.covariance.store import CovarianceStore, default_store, obtain
from tests.helpers.hub import stand_in_hub
from tests.unit.orchestrator.covariance.test_store import LAYERS, FakeEstimator, config, kept, wanted


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def get(estimator: FakeEstimator, store: CovarianceStore, settings: CovarianceConfig | None = None) -> Any:
    return obtain(settings or config(), LAYERS, "v0", estimator, dtype="float32", store=store, shipped=shipped_store())


def test_a_directory_or_a_url() -> None:
    assert type(open_store("~/somewhere")) is CovarianceStore
    assert isinstance(open_store("s3://bucket/covariances"), RemoteStore)
    for wrong in ("hf://", "hf://org", "hf:///org/name", "hf://org/na me"):
        with pytest.raises(UserError, match="want hf://ORG/NAME"):
            open_store(wrong)


def test_what_one_machine_estimates_another_finds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    url, estimator = f"memory://{uuid.uuid4().hex}/covariances", FakeEstimator()
    first = get(estimator, open_store(url))
    assert first.reused == 0 and len(estimator.jobs) == 1
    names = [Path(name).name for name in fsspec.filesystem("memory").ls(url.removeprefix("memory:/"), detail=False)]
    assert names == [CovarianceStore(tmp_path).path_of(first.covariance.source, LAYERS).name]
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path / "another machine"))
    again = get(estimator, open_store(url))
    assert again.reused == 1 and len(estimator.jobs) == 1 and again.covariance.digest == first.covariance.digest


def test_the_copy_on_this_machine_is_used_when_the_place_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    url, estimator = f"memory://{uuid.uuid4().hex}", FakeEstimator()
    get(estimator, open_store(url))

    def away(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no route")

    monkeypatch.setattr(fsspec.core, "url_to_fs", away)
    assert get(estimator, open_store(url)).reused == 1
    with pytest.raises(UserError, match=r"covariance\.store 'memory://.*' cannot be read: .*no route"):
        get(estimator, open_store(url), config(seed=4))


def test_a_damaged_file_there_is_refused_and_named() -> None:
    url = f"memory://{uuid.uuid4().hex}"
    store = open_store(url)
    with fsspec.open(f"{url}/{store.path_of(wanted(), LAYERS).name}", "wb") as file:
        file.write(b"torn")
    with pytest.raises(UserError, match="cannot be read"):
        store.find(wanted(), LAYERS)


def test_a_repository_of_the_hub_is_read_and_estimates_stay_at_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = KeyCovariance({layer: torch.eye(3, dtype=torch.float64) + 0.1 for layer in LAYERS}, 5, wanted())
    with stand_in_hub(tmp_path / "hub") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
        with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
            get(FakeEstimator(), open_store("hf://org/covariances/tiny"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # read at import, in this process
        folder = hub.repository("org/covariances") / "tiny"
        CovarianceStore(folder).put(whole)
        estimator = FakeEstimator()
        found = get(estimator, open_store("hf://org/covariances/tiny"))
        assert found.covariance.digest == whole.digest and not estimator.jobs
        other = get(estimator, open_store("hf://org/covariances/tiny"), config(seed=1))
        assert other.reused == 0 and len(estimator.jobs) == 1
        assert get(estimator, open_store("hf://org/covariances/tiny"), config(seed=1)).reused == 1
        assert [path.parent for path in default_store().rglob("*.safetensors")] == [default_store()]
        with pytest.raises(UserError, match=r"covariance\.store 'hf://org/none' cannot be read"):
            get(estimator, open_store("hf://org/none"), config(seed=2))


def test_a_web_server_is_read(tmp_path: Path) -> None:
    import threading
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    CovarianceStore(tmp_path / "served").put(kept(wanted()))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "served")))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        store = open_store(f"http://127.0.0.1:{server.server_address[1]}")
        estimator = FakeEstimator()
        assert get(estimator, store).reused == 1 and not estimator.jobs
        assert get(estimator, store, config(seed=1)).reused == 0
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_packed_one_is_taken_where_that_is_allowed_only(tmp_path: Path) -> None:
    whole = KeyCovariance({layer: torch.eye(3, dtype=torch.float64) + 0.1 for layer in LAYERS}, 5, wanted())
    store = CovarianceStore(tmp_path / "store")
    path, packed = store.put_packed(whole)
    assert path == store.packed_path_of(wanted(), LAYERS)
    assert store.find(wanted(), LAYERS) is None
    estimator = FakeEstimator()
    found = get(estimator, store, config(packed=True))
    assert found.covariance.digest == packed.digest and is_packed(found.covariance.source) and not estimator.jobs
    assert not is_packed(get(estimator, store).covariance.source) and len(estimator.jobs) == 1
    assert not is_packed(get(estimator, store, config(packed=True)).covariance.source)  # now a whole one is kept
    path.rename(store.packed_path_of(wanted(seed=3), LAYERS))
    with pytest.raises(UserError, match="seed is 0, want 3"):
        store.find(wanted(seed=3), LAYERS, packed=True)


def test_a_packed_one_of_a_larger_budget_does_for_a_smaller_one(tmp_path: Path) -> None:
    store, estimator = CovarianceStore(tmp_path / "store"), FakeEstimator()
    matrices = {layer: torch.eye(3, dtype=torch.float64) * 9 for layer in LAYERS}
    digests = {
        budget: store.put_packed(KeyCovariance(matrices, budget + 2, {**wanted(), "tokens": budget}))[1].digest
        for budget in (300, 200)
    }
    small = config(packed=True, tokens=150)
    assert get(estimator, store, small).covariance.digest == digests[200]  # the smallest that is large enough
    assert get(estimator, store, config(packed=True, tokens=201)).covariance.digest == digests[300]
    assert not estimator.jobs
    (tmp_path / "store" / "damaged.packed.safetensors").write_bytes(b"no tensors")
    assert get(estimator, store, small).covariance.digest == digests[200]
    for other in (config(tokens=150), config(packed=True, tokens=301), config(packed=True, tokens=150, seed=1)):
        assert not is_packed(get(estimator, store, other).covariance.source)
    assert len(estimator.jobs) == 3
    assert store.find({**wanted(), "tokens": 100}, LAYERS[:-1], packed=True) is None


@pytest.mark.parametrize("name", ["quickstart", "service"])
def test_the_shipped_one_does_for_the_shipped_configurations_of_the_demo_model(name: str) -> None:
    from errata.orchestrator.config.loading import load_config

    settings = load_config(name, ["covariance.packed=true"])
    plan = settings.covariance.for_vocabulary(49_152)
    assert plan.packed and plan.tokens == 7500
    obtained = obtain(
        plan, settings.editor.layers, DEMO, FakeEstimator(), dtype="float32", store=None, shipped=shipped_store()
    )
    assert obtained.reused == 1 and is_packed(obtained.covariance.source)


DEMO = "5706178cf01afc1d742888306d71931e4d1d53b9214edba3bb786f9b77c39376"
"""The demo model's version; a test on the model itself finds the same (tests/model/test_first_edit.py)."""


def test_the_shipped_one_is_what_the_api_asks_for_on_the_demo_model() -> None:
    from errata.orchestrator.config.loading import read_composed
    from errata.orchestrator.config.presets import configs_root

    preset = read_composed(configs_root() / "models" / "smollm2-135m.yaml")
    settings = CovarianceConfig(
        tokens=5 * 1536, max_new_tokens=64, sequences_per_unit=64, slots=64, packed=True
    ).for_vocabulary(49_152)
    job = estimate_job(settings, preset["editor"]["layers"], DEMO)
    found = shipped_store().find(job.source("float32"), job.layers, packed=True)
    assert found is not None and is_packed(found.source) and found.tokens >= 5 * 1536
    assert found.record is not None and found.record.documents
    (file,) = shipped_store().root.glob("*.safetensors")
    assert load_packed(file).digest == found.digest and file.stat().st_size < 3_500_000
