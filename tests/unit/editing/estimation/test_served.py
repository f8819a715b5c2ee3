"""Self-generation by a server: a real HTTP server that samples from the tiny model, answering as vLLM does."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import torch

from errata.editing.errors import ErrataError, UserError
from errata.editing.estimation.corpus import second_pass
from errata.editing.estimation.sampling_server import TOKEN, SamplingServerConfig, sample
from errata.editing.estimation.selfgen import SelfGenerationConfig, seed_sequences, unit_of
from errata.editing.estimation.served import run_served_unit
from errata.editing.model.adapter import EditableModel
from tests.helpers.tiny import tiny_model

LAYERS = (1, 2)


class Server(ThreadingHTTPServer):
    """Samples token by token with the whole sequence run each time; fails as often as it is told to."""

    daemon_threads = True

    def __init__(self, model: EditableModel) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.model = model
        self.asked: list[dict[str, Any]] = []
        self.tokens: list[str | None] = []
        self.failures: list[int] = []
        self.change: dict[str, Any] = {}
        self.turn = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @torch.no_grad()
    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(body["seed"])
        ids, logprobs = list(body["prompt"]), list[float]()
        for _ in range(body["max_tokens"]):
            logits = self.model.hf(torch.tensor([ids])).logits[0, -1].float().log_softmax(-1)
            token = int(torch.multinomial(logits.exp(), 1, generator=generator))
            ids.append(token)
            logprobs.append(float(logits[token]))
            if token in self.model.text.eos_ids:
                break
        new = ids[len(body["prompt"]) :]
        return {"choices": [{"token_ids": new, "logprobs": {"token_logprobs": logprobs}, **self.change}]}


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.turn:
            if self.server.failures:
                self.send_error(self.server.failures.pop(0), "not now")
                return
            self.server.asked.append(body)
            self.server.tokens.append(self.headers["Authorization"])
            answer = json.dumps(self.server.complete(body)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture(scope="module")
def model() -> EditableModel:
    return tiny_model("llama", layers=4)


@pytest.fixture
def server(model: EditableModel) -> Iterator[Server]:
    found = Server(model)
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    found.shutdown()
    thread.join()
    found.server_close()


def config(server: Server, **changes: Any) -> SamplingServerConfig:
    return SamplingServerConfig(**{"url": server.url, "model": "tiny", "parallel": 3, **changes})


def test_a_unit_has_the_keys_of_what_the_server_sampled(model: EditableModel, server: Server) -> None:
    settings = SelfGenerationConfig(max_new_tokens=9, sequences_per_unit=6)
    unit = unit_of(3, seed=5, sequences=6)
    result = run_served_unit(model, unit, LAYERS, settings, config(server), keep_tokens=True)
    assert [list(start) for start, _ in result.sequences] == seed_sequences(model, unit, settings)
    sums, tokens = second_pass(model, result.sequences, LAYERS)
    assert result.tokens == tokens == sum(len(new) for _, new in result.sequences) > 0
    assert all(torch.equal(result.sums[layer], sums[layer]) for layer in LAYERS)
    for (start, new), (nll, count) in zip(result.sequences, result.documents, strict=True):
        assert count == len(new) and not set(new) & model.text.eos_ids
        logits = model.hf(torch.tensor([[*start, *new]])).logits[0].float().log_softmax(-1)
        plain = -sum(float(logits[len(start) - 1 + i, token]) for i, token in enumerate(new))
        assert nll == pytest.approx(plain, abs=1e-3)
    for body in server.asked:
        assert (body["temperature"], body["top_p"], body["top_k"], body["max_tokens"]) == (1.0, 1.0, -1, 9)
        assert body["model"] == "tiny" and body["return_token_ids"] is True
        # what is left out the server takes from the model's own defaults for chatting
        assert (body["min_p"], body["repetition_penalty"]) == (0.0, 1.0)
        assert body["presence_penalty"] == body["frequency_penalty"] == 0.0
    assert len({body["seed"] for body in server.asked}) == 6


def test_a_unit_repeated_asks_for_the_same_draws(model: EditableModel, server: Server) -> None:
    settings = SelfGenerationConfig(max_new_tokens=5, sequences_per_unit=4)
    one, other = (
        run_served_unit(model, unit_of(1, seed=2, sequences=4), LAYERS, settings, config(server), keep_tokens=True)
        for _ in range(2)
    )
    assert one.sequences == other.sequences
    assert all(one.sums[layer].numpy().tobytes() == other.sums[layer].numpy().tobytes() for layer in LAYERS)


def test_an_end_of_text_token_ends_a_sequence_and_is_not_counted(model: EditableModel, server: Server) -> None:
    end = next(iter(model.text.eos_ids))
    server.change = {"token_ids": [7, 8, end], "logprobs": {"token_logprobs": [-1.0, -2.0, -4.0]}}
    found = sample(config(server), [[5]], [0], max_new_tokens=3, stops=model.text.eos_ids)
    assert found[0].tokens == (7, 8) and found[0].nll == 3.0


def test_a_token_is_taken_from_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN, raising=False)
    sample(config(server), [[5]], [1], max_new_tokens=1, stops=frozenset())
    monkeypatch.setenv(TOKEN, "secret")
    sample(config(server), [[5]], [1], max_new_tokens=1, stops=frozenset())
    assert server.tokens == [None, "Bearer secret"]


def test_failures_that_pass_are_waited_for(server: Server) -> None:
    server.failures = [503, 500]
    waited: list[float] = []
    found = sample(config(server), [[5]], [1], max_new_tokens=2, stops=frozenset(), sleep=waited.append)
    assert len(found[0].tokens) == 2 and waited == [0.5, 1.0]


def test_failures_that_do_not_pass_are_said(server: Server) -> None:
    def ask(**changes: Any) -> None:
        sample(config(server, **changes), [[5]], [1], max_new_tokens=2, stops=frozenset(), sleep=lambda _: None)

    server.failures = [404]
    with pytest.raises(UserError, match=r"refuses to sample from 'tiny': 404"):
        ask()
    server.failures = [500, 500]
    with pytest.raises(ErrataError, match="fails again and again"):
        ask(retries=1)
    server.change = {"token_ids": None}
    with pytest.raises(ErrataError, match="no token ids"):
        ask()
    server.change = {"token_ids": [1, 2, 3]}
    with pytest.raises(ErrataError, match="3 tokens with 2"):
        ask()
    with pytest.raises(UserError, match="cannot be reached"):
        ask(url="http://127.0.0.1:9", retries=0)


def test_where_the_server_is_decides_nothing(server: Server) -> None:
    here = SelfGenerationConfig(server=config(server))
    there = SelfGenerationConfig(server=config(server, url="http://elsewhere:1"))
    assert here.identity() == there.identity() != SelfGenerationConfig().identity()
    assert "server" not in SelfGenerationConfig().identity()
