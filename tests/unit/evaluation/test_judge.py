"""Judges, and the endpoint behind one of them, against a server that misbehaves."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx
import pytest
from pydantic import TypeAdapter, ValidationError

from errata.editing.errors import UserError
from errata.evaluation.datasets.extraction import with_triples
from errata.evaluation.endpoint import ChatEndpoint, EndpointConfig, EndpointError
from errata.evaluation.judge import (
    Case,
    ContainsJudge,
    ExactJudge,
    F1Judge,
    JudgeConfig,
    LlmJudge,
    agreement,
    build_judge,
)

CASES = [
    Case("Where?", "It is in Rome, Italy", ("Rome", "Roma")),
    Case("Where?", "rome!", ("Rome",)),
    Case("Where?", "Oslo", ("Rome",)),
    Case("Where?", "", ("Rome",)),
]


class Server:
    """Answers chat requests from a script of replies or HTTP codes; remembers what it was sent."""

    def __init__(self, script: Sequence[str | int | Exception] | Callable[[str], str]) -> None:
        self.script = script
        self.bodies: list[dict[str, object]] = []
        self.keys: list[str | None] = []

    def handle(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        self.bodies.append(body)
        self.keys.append(request.headers.get("authorization"))
        assert request.url.path == "/v1/chat/completions"
        if callable(self.script):
            reply: str | int | Exception = self.script(body["messages"][-1]["content"])
        else:
            reply = self.script[len(self.bodies) - 1]
        if isinstance(reply, Exception):
            raise reply
        if isinstance(reply, int):
            return httpx.Response(reply, text="no")
        return httpx.Response(200, json={"choices": [{"message": {"content": reply}}]})


def endpoint(server: Server, sleeps: list[float] | None = None, **settings: object) -> ChatEndpoint:
    config = EndpointConfig.model_validate({"base_url": "http://judge/v1/", "model": "m", "parallel": 1, **settings})
    return ChatEndpoint(
        config,
        transport=httpx.MockTransport(server.handle),
        sleep=(sleeps if sleeps is not None else []).append,
    )


def hello(text: str = "hi") -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_string_judges() -> None:
    assert ExactJudge().judge(CASES) == [False, True, False, False]
    assert ContainsJudge().judge(CASES) == [True, True, False, False]
    # "it is in rome italy" against "rome": precision 1/5, recall 1, F1 1/3
    assert F1Judge(0.33).judge(CASES) == [True, True, False, False]
    assert F1Judge(0.34).judge(CASES) == [False, True, False, False]


def test_judges_are_built_from_their_configuration() -> None:
    read = TypeAdapter(JudgeConfig).validate_python
    assert isinstance(build_judge(read({"type": "exact"})), ExactJudge)
    assert isinstance(build_judge(read({"type": "contains"})), ContainsJudge)
    assert build_judge(read({"type": "f1", "threshold": 0.7})).name == "f1>=0.7"
    llm = build_judge(read({"type": "llm", "endpoint": {"base_url": "http://judge/v1", "model": "m"}}))
    assert llm.name == "llm:m"
    for wrong in (
        {"type": "vote"},
        {"type": "f1", "treshold": 1},
        {"type": "llm", "endpoint": {"base_url": "judge"}},
    ):
        with pytest.raises(ValidationError):
            read(wrong)


def test_llm_judge_asks_reads_and_falls_back() -> None:
    server = Server(["Correct.", "I think it is incorrect... no, correct", "Hmm, who knows"])
    judge = LlmJudge(endpoint(server))
    assert judge.judge(CASES) == [True, True, False, False]
    assert judge.unreadable == 1  # the third reply: the string judge decided, wrong
    assert len(server.bodies) == 3  # the empty answer was not sent
    sent = json.dumps(server.bodies[0])
    assert "- Rome" in sent and "- Roma" in sent and "It is in Rome, Italy" in sent


def test_agreement_by_hand() -> None:
    one, other = [True, True, False, False, True], [True, False, False, False, True]
    found = agreement(one, other)
    chance = 0.6 * 0.4 + 0.4 * 0.6
    assert (found.cases, found.share) == (5, pytest.approx(0.8))
    assert found.kappa == pytest.approx((0.8 - chance) / (1 - chance))
    assert agreement([True], [True]).kappa is None
    with pytest.raises(ValueError, match="at least one"):
        agreement([True], [])


def test_retries_with_growing_pauses() -> None:
    sleeps: list[float] = []
    server = Server([503, httpx.ConnectError("down"), 429, "fine"])
    assert endpoint(server, sleeps).ask(hello()) == "fine"
    assert sleeps == [1.0, 2.0, 4.0]
    assert server.bodies[0] == {"model": "m", "messages": hello(), "temperature": 0.0, "max_tokens": 256}


def test_gives_up_with_the_last_problem() -> None:
    server = Server([500] * 3)
    with pytest.raises(EndpointError, match="failed 3 times, last: HTTP 500"):
        endpoint(server, retries=2).ask(hello())
    with pytest.raises(EndpointError, match="HTTP 401"):
        endpoint(Server([401])).ask(hello())  # not worth a retry


def test_malformed_answer_is_an_error() -> None:
    transport = httpx.MockTransport(lambda request: httpx.Response(200, json={"error": "busy"}))
    config = EndpointConfig(base_url="http://judge/v1", model="m")
    with pytest.raises(EndpointError, match=r"without choices\[0\]"):
        ChatEndpoint(config, transport=transport).ask(hello())


def test_cache_on_disk_survives_a_cut_line(tmp_path: Path) -> None:
    cache = tmp_path / "sub" / "cache.jsonl"
    server = Server(lambda text: f"re {text}")
    first = endpoint(server, cache=cache, parallel=4)
    assert first.ask_many([hello("a"), hello("b"), hello("a")]) == ["re a", "re b", "re a"]
    assert len(server.bodies) == 2
    with cache.open("a") as file:
        file.write('{"key": "cut')
    again = Server(lambda text: "new")
    second = endpoint(again, cache=cache)
    assert second.ask_many([hello("b"), hello("a")]) == ["re b", "re a"] and again.bodies == []
    assert endpoint(again, cache=cache, model="other").ask(hello("a")) == "new"  # another model, another answer


def test_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "s3cret")
    server = Server(["ok"])
    endpoint(server, api_key_env="JUDGE_KEY").ask(hello())
    assert server.keys == ["Bearer s3cret"]
    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(UserError, match="'JUDGE_KEY'"):
        endpoint(server, api_key_env="JUDGE_KEY")


def test_events_get_triples() -> None:
    good = {"subject": "Ann", "prompt": "Ann is", "target": "dead"}
    server = Server(lambda text: json.dumps([good]) if "Ann" in text else "nothing")
    given = {"event": "Bo left.", "triples": [{"subject": "Bo", "prompt": "Bo has", "target": "left"}]}
    rows = list(with_triples([{"event": "Ann died."}, {"event": "It rained."}, given], endpoint(server)))
    assert [row.get("triples") for row in rows] == [[good], None, given["triples"]]
    assert len(server.bodies) == 2
