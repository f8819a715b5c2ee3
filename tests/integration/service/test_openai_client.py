"""The real `openai` client against the service over HTTP, with a tiny model behind it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
import pytest
import torch

from errata.actors.settings import ModelSpec, RoleConfig
from errata.actors.workers.evaluation import EvaluationSettings, EvaluationWorker
from errata.evaluation.outcomes import ARMS
from errata.orchestrator.service.core import Live
from errata.retrieval.embedder import HashEmbedderConfig
from errata.retrieval.evidence import entries_of
from errata.retrieval.index import IndexConfig
from errata.retrieval.scr import ScrConfig
from tests.helpers.browser import listening
from tests.helpers.memory import HeldMemory
from tests.helpers.service import Running, running

LAYER = 1
STATEMENT = "The mother tongue of Alice Munro is Rome."
IN_SCOPE, OUT_OF_SCOPE = "The mother tongue of Alice Munro is", "What is 17 times 23?"


class Local:
    """Memory and evaluation worker in this process; calls one after another, as in an actor."""

    def __init__(self, checkpoint: Path) -> None:
        self._lock = threading.Lock()
        self.memory = HeldMemory(HashEmbedderConfig(), IndexConfig())
        self.memory.add(entries_of([("Alice Munro", "tongue", STATEMENT)], 1))
        settings = EvaluationSettings(ScrConfig(), ARMS, stop_at_newline=False)
        self.worker = EvaluationWorker(ModelSpec(name=str(checkpoint)), RoleConfig(), settings)
        weight = self.worker._versioned.model.weight(LAYER)
        generator = torch.Generator().manual_seed(0)
        self.weights = {LAYER: weight + torch.randn(weight.shape, generator=generator)}
        self.closed = 0

    def stream(self, *arguments: Any, patience: Any = None) -> Any:
        with self._lock:
            number, opened = self.worker.open_stream(*arguments)

        def more(tokens: int) -> Any:
            with self._lock:
                return self.worker.next_piece(number, tokens)

        def close() -> None:
            self.closed += 1
            with self._lock:
                self.worker.close_stream(number)

        return SimpleNamespace(opened=opened, next=more, close=close)


@pytest.fixture(scope="module")
def local(tiny_checkpoint: Path) -> Local:
    return Local(tiny_checkpoint)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, local: Local) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("openai")) as made:
        asking = made.service.asking
        asking._evaluators, asking._memory = local, local.memory  # type: ignore[assignment]
        deadline = time.monotonic() + 20
        while not made.core.ready:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        version = made.core.live.version
        asking._live = lambda: Live(version, local.weights)
        yield made


@pytest.fixture(scope="module")
def client(run: Running) -> Iterator[openai.OpenAI]:
    with (
        listening(run) as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as made,
    ):
        yield made


def asked(question: str) -> Any:
    return [{"role": "user", "content": question}]


def whole(client: openai.OpenAI, model: str, question: str, **more: Any) -> Any:
    return client.chat.completions.create(model=model, messages=asked(question), max_tokens=8, **more)


def test_models_are_listed(client: openai.OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert names == ["errata", "errata-base", "errata-edited", "errata-memory", "errata-edited-memory"]
    assert client.models.retrieve("errata").id == "errata"


@pytest.mark.parametrize("model", ["errata", "errata-base", "errata-edited", "errata-memory", "errata-edited-memory"])
@pytest.mark.parametrize("question", [IN_SCOPE, OUT_OF_SCOPE])
def test_a_stream_comes_in_pieces_and_adds_up_to_the_whole(client: openai.OpenAI, model: str, question: str) -> None:
    answer = whole(client, model, question)
    with client.chat.completions.create(
        model=model, messages=asked(question), max_tokens=8, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces).rstrip() == answer.choices[0].message.content
    assert chunks[-1].usage == answer.usage and answer.usage.completion_tokens <= 8
    assert sum(map(bool, pieces)) > 1 or answer.usage.completion_tokens <= 1


def test_out_of_scope_is_the_bases_answer_and_in_scope_names_its_edit(client: openai.OpenAI) -> None:
    out, base = whole(client, "errata", OUT_OF_SCOPE), whole(client, "errata-base", OUT_OF_SCOPE)
    assert out.choices[0].message.content == base.choices[0].message.content
    assert out.errata["decision"] == "out" and out.errata["weights"] == "base" and out.errata["chosen"] is None
    raw = client.chat.completions.with_raw_response.create(model="errata", messages=asked(IN_SCOPE), max_tokens=4)
    inside = raw.parse()
    assert inside.errata["decision"] == "in" and inside.errata["weights"] == "edited"
    assert inside.errata["chosen"]["statement"] == STATEMENT
    assert raw.headers["x-errata-decision"] == "in"
    assert raw.headers["x-errata-statement"] == STATEMENT.replace(" ", "%20")
    assert len(raw.headers["x-errata-router"]) == 64


def test_of_a_conversation_the_last_turn_is_routed_with_what_it_refers_to(client: openai.OpenAI) -> None:
    turns: Any = [
        {"role": "user", "content": "Who is Alice Munro?"},
        {"role": "assistant", "content": "A writer."},
        {"role": "user", "content": "What is her mother tongue?"},
    ]
    told = client.chat.completions.create(model="errata", messages=turns, max_tokens=2)
    assert told.errata["decision"] == "in" and told.errata["chosen"]["statement"] == STATEMENT
    turns[-1] = {"role": "user", "content": OUT_OF_SCOPE}
    assert client.chat.completions.create(model="errata", messages=turns, max_tokens=2).errata["decision"] == "out"


def test_parameters_are_honored(client: openai.OpenAI) -> None:
    text = whole(client, "errata-base", OUT_OF_SCOPE).choices[0].message.content
    cut = whole(client, "errata-base", OUT_OF_SCOPE, stop=[text[2:4]]).choices[0]
    assert cut.message.content == text.split(text[2:4])[0].rstrip() and cut.finish_reason == "stop"
    one, same = (whole(client, "errata-base", OUT_OF_SCOPE, temperature=1.5, seed=5) for _ in range(2))
    assert one.choices[0].message.content == same.choices[0].message.content
    others = {
        whole(client, "errata-base", OUT_OF_SCOPE, temperature=1.5, seed=n).choices[0].message.content for n in range(6)
    }
    assert len(others) > 1
    with pytest.raises(openai.BadRequestError, match="logprobs is not supported"):
        whole(client, "errata-base", OUT_OF_SCOPE, logprobs=True)
    with pytest.raises(openai.NotFoundError):
        whole(client, "gpt-9", OUT_OF_SCOPE)
    continued = client.completions.create(model="errata-base", prompt="Rome lies in", max_tokens=5)
    assert continued.usage is not None and continued.usage.completion_tokens <= 5


def test_the_version_is_pinned_for_a_whole_streamed_answer(
    client: openai.OpenAI, local: Local, run: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = whole(client, "errata-edited", OUT_OF_SCOPE).choices[0].message.content
    stream = client.chat.completions.create(
        model="errata-edited", messages=asked(OUT_OF_SCOPE), max_tokens=8, stream=True
    )
    text = next(stream).choices[0].delta.content or ""
    text += next(stream).choices[0].delta.content or ""
    version = run.core.live.version
    other = {LAYER: -local.weights[LAYER]}
    monkeypatch.setattr(run.service.asking, "_live", lambda: Live(version, other))
    changed = whole(client, "errata-edited", OUT_OF_SCOPE).choices[0].message.content
    text += "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert text.rstrip() == before and changed != before


def test_a_client_that_leaves_ends_its_answer(client: openai.OpenAI, local: Local, run: Running) -> None:
    room, closed = run.service.asking._room._value, local.closed
    stream = client.chat.completions.create(
        model="errata-base", messages=asked(OUT_OF_SCOPE), max_tokens=200, stream=True
    )
    next(stream)
    stream.close()
    done = threading.Event()
    for _ in range(400):
        if local.closed > closed:
            break
        done.wait(0.05)
    assert local.closed == closed + 1 and run.service.asking._room._value == room
    assert len(local.worker._streams) == 0
