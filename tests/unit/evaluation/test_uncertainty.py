"""SPUQ by hand, its invariances, and where the wordings come from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import combinations

import httpx
import numpy as np
import pytest

from errata.editing.errors import ErrataError
from errata.editing.request import EditRequest
from errata.evaluation.endpoint import ChatEndpoint, EndpointConfig
from errata.evaluation.sampling import SamplingConfig, SamplingEngine
from errata.evaluation.uncertainty import (
    SpuqConfig,
    Uncertainty,
    aleatoric,
    epistemic,
    growth,
    rephrased,
    sampled_answers,
    uncertainties,
    uncertainty_growth,
    uncertainty_of,
    wordings_of,
)
from tests.helpers.tiny import tiny_model

ROME = EditRequest(id="rome", subject="Rome", prompt="{} lies in", target_new="France", paraphrases=("Where is Rome?",))
PARIS = EditRequest(id="paris", subject="Paris", prompt="{} lies in", target_new="Italy")


def test_by_hand() -> None:
    # two wordings of two answers each, in the plane: centroids (1, 0) and (4, 4), five apart
    vectors = np.array([[[0.0, 0.0], [2.0, 0.0]], [[4.0, 1.0], [4.0, 7.0]]])
    assert aleatoric(vectors) == pytest.approx((1 + 1 + 3 + 3) / 4)
    assert epistemic(vectors) == pytest.approx(5.0)
    assert uncertainty_of(vectors).total == pytest.approx(3.5)


def test_against_the_sums_as_they_are_written() -> None:
    rng = np.random.default_rng(0)
    m, k = 6, 5
    h = rng.standard_normal((m, k, 7))
    center = [sum(h[j][i] for i in range(k)) / k for j in range(m)]
    wanted_a = sum(sum(np.sqrt(((h[j][i] - center[j]) ** 2).sum()) for i in range(k)) / k for j in range(m)) / m
    wanted_e = (
        2 / (m * (m - 1)) * sum(np.sqrt(((center[a] - center[b]) ** 2).sum()) for a, b in combinations(range(m), 2))
    )
    assert aleatoric(h) == pytest.approx(wanted_a, rel=1e-12)
    assert epistemic(h) == pytest.approx(wanted_e, rel=1e-12)
    moved = h @ np.linalg.qr(rng.standard_normal((7, 7)))[0] + 3.0  # distances do not see rotation and shift
    assert uncertainty_of(moved).total == pytest.approx(uncertainty_of(h).total)
    same = np.repeat(h[:, :1], k, axis=1)
    assert aleatoric(same) == pytest.approx(0, abs=1e-12) and epistemic(same) > 0


def test_growth() -> None:
    assert growth(2.0, 3.0) == pytest.approx(0.5) and growth(2.0, 1.0) == pytest.approx(-0.5)
    assert growth(0.0, 1.0) is None
    before = {"a": Uncertainty(1.0, 3.0), "b": Uncertainty(0.0, 0.0), "c": Uncertainty(1.0, 1.0)}
    after = {"a": Uncertainty(2.0, 4.0), "b": Uncertainty(1.0, 1.0), "c": Uncertainty(1.0, 2.0)}
    found = uncertainty_growth(before, after)
    assert found.growth == pytest.approx((0.5 + 0.5) / 2)  # b had none before
    assert found.growth_aleatoric == pytest.approx((1.0 + 0.0) / 2)
    assert found.growth_epistemic == pytest.approx((1 / 3 + 1.0) / 2)
    assert found.growth_of_means == pytest.approx((5.5 / 3 - 1.0) / 1.0)
    with pytest.raises(ValueError, match="the same questions"):
        uncertainty_growth(before, {"a": after["a"]})


@pytest.mark.parametrize("shape", [(1, 5, 3), (2, 0, 3), (5, 3)])
def test_too_few_answers_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="embeddings must be"):
        epistemic(np.zeros(shape))


def test_wordings_from_the_data_set_and_from_frames() -> None:
    found = wordings_of(ROME)
    assert len(found) == len(set(found)) == 6
    assert found[:2] == ["Where is Rome?", "Rome lies in"] and all("Rome" in text for text in found)
    with pytest.raises(ValueError, match="rome: 2 wordings, 6 are wanted"):
        wordings_of(ROME, frames=("{}",))


def endpoint(*replies: str) -> ChatEndpoint:
    left = list(replies)

    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"choices": [{"message": {"content": left.pop(0)}}]})

    config = EndpointConfig(base_url="http://model/v1", model="m", parallel=1)
    return ChatEndpoint(config, transport=httpx.MockTransport(answer))


def test_wordings_from_a_chat_model(caplog: pytest.LogCaptureFixture) -> None:
    versions = ["Where does Rome lie?", "In which country is Rome?", "Is Rome in France?", "Where is it?"]
    found = rephrased(endpoint(f"Here you are:\n{json.dumps(versions)}", "I cannot."), [ROME, PARIS])
    assert found == {"rome": versions[:2]}  # the third gives the answer away, the fourth does not name the subject
    assert "paris: 0 usable wordings" in caplog.text
    with pytest.raises(ErrataError, match="no usable wording"):
        rephrased(endpoint("[1, 2]"), [ROME])


class Letters:
    """Embeds a text as its numbers of a's and e's; counts what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        self.asked += texts
        return np.array([[t.count("a"), t.count("e")] for t in texts], dtype=np.float32)


def test_answers_are_seeded_and_embedded_once() -> None:
    engine = SamplingEngine(tiny_model(layers=2))
    config = SpuqConfig(paraphrases=3, samples=4, sampling=SamplingConfig(max_new_tokens=6))
    questions = {r.id: wordings_of(r) for r in (ROME, PARIS)}
    first = sampled_answers(engine, questions, config)
    assert {name: [len(level) for level in levels] for name, levels in first.items()} == {
        "rome": [4, 4, 4],
        "paris": [4, 4, 4],
    }
    assert sampled_answers(engine, {"paris": questions["paris"]}, config) == {"paris": first["paris"]}
    assert sampled_answers(engine, questions, config.model_copy(update={"seed": 1})) != first
    chat = config.model_copy(update={"chat": True, "system": "Be honest."})
    assert sampled_answers(engine, questions, chat) != first
    letters = Letters()
    found = uncertainties({"q": [["a", "a"], ["e", "a"]]}, letters)
    assert letters.asked == ["a", "e"]
    # centroids (1, 0) and (.5, .5)
    assert found["q"].aleatoric == pytest.approx(0.5 * 0.5**0.5) and found["q"].epistemic == pytest.approx(0.5**0.5)
