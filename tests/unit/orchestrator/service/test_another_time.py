"""Questions about another time over HTTP: answered with what held then, or refused by name."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from tests.helpers.service import running


def told(number: int, city: str, day: int) -> dict[str, Any]:
    at = f"2026-03-{day:02d}T00:00:00Z"
    return {"id": f"t{number}", "subject": "Alice Munro", "prompt": "{} works in", "target_new": city, "event_at": at}


def test_a_question_about_another_time_is_answered_with_what_held_then(tmp_path: Path) -> None:
    with running(tmp_path, size=1) as service:
        client, asked = service.client, {"question": "Alice Munro works in", "arms": ["base", "memory", "routed"]}
        for number, (city, day) in enumerate([("Paris", 1), ("Oslo", 9)]):
            assert client.post("/v1/edits", json={"edits": [told(number, city, day)]}).status_code == 202
            deadline = time.monotonic() + 60
            while service.journal.head().sequence <= number:
                assert time.monotonic() < deadline
                time.sleep(0.01)

        def cities(**moment: str) -> list[str]:
            reply = client.post("/v1/query", json={**asked, **moment})
            assert reply.status_code == 200, reply.text
            view = reply.json()
            arms = view["answers"][0]["arms"]
            assert view["as_of"] == moment.get("as_of") or moment.get("as_of", "").startswith(view["as_of"][:10])
            return [statement["statement"].split()[-1] for statement in arms["memory"]["retrieved"]]

        assert cities(as_of="2026-03-05T00:00:00Z") == ["Paris."]
        assert cities(as_of="2026-03-05T00:00:00") == ["Paris."]
        assert cities(as_known_at="v1") == ["Paris."] and cities(as_known_at="head") == ["Oslo."]
        assert cities(as_of="2026-02-01T00:00:00Z") == []
        assert cities(as_of="2026-03-20T00:00:00Z", as_known_at="v1") == ["Paris."]
        plain = client.post("/v1/query", json=asked).json()
        assert "as_of" not in plain

        refused = client.post("/v1/query", json={**asked, "arms": ["edited"], "as_of": "2026-03-05T00:00:00Z"})
        assert refused.status_code == 422
        assert "arm 'edited' speaks with weights" in refused.json()["error"]["message"]
        assert "base, memory, routed" in refused.json()["error"]["message"]
        assert client.post("/v1/query", json={**asked, "as_known_at": "v99"}).status_code == 404
        assert client.post("/v1/query", json={**asked, "as_of": "yesterday"}).status_code == 422
        # the version that is loaded is answered by every arm, as it stands
        every = client.post("/v1/query", json={"question": asked["question"], "as_known_at": "head"}).json()
        now = client.post("/v1/query", json={"question": asked["question"]}).json()
        assert "edited" in every["answers"][0]["arms"] and every["as_known_at"] == "v2"
        assert every["answers"][0]["arms"] == now["answers"][0]["arms"]
        timed = {**asked, "arms": ["edited"], "as_known_at": "head", "as_of": "2026-03-20T00:00:00Z"}
        assert client.post("/v1/query", json=timed).status_code == 422
        # without arms: those that need no weights of then
        reply = client.post("/v1/query", json={"question": asked["question"], "as_known_at": "v1"}).json()
        assert set(reply["answers"][0]["arms"]) == {"base", "memory", "routed"} and reply["as_known_at"] == "v1"

        # OpenAI's routes take the same fields, and refuse the same
        def chosen(route: str, **more: Any) -> tuple[str | None, dict[str, Any]]:
            bodies = {
                "chat/completions": {"messages": [{"role": "user", "content": asked["question"]}]},
                "completions": {"prompt": asked["question"]},
            }
            reply = client.post(f"/v1/{route}", json={"model": "errata-memory", **bodies[route], **more})
            assert reply.status_code == 200, reply.text
            view = reply.json()["errata"]
            found = view["chosen"]["statement"].split()[-1] if view.get("chosen") else None
            assert found is None or reply.headers["x-errata-edit"] == view["chosen"]["edit"]
            return found, view

        for route in ("chat/completions", "completions"):
            then, view = chosen(route, as_of="2026-03-05T00:00:00Z")
            assert then == "Paris." and view["chosen"]["edit"] == "t0"
            assert (view["as_of"], view["as_known_at"]) == ("2026-03-05T00:00:00+00:00", None)
            now, view = chosen(route)
            assert now == "Oslo." and not {"as_of", "as_known_at"} & view.keys()
            assert chosen(route, as_known_at="v1")[0] == "Paris."
            assert chosen(route, as_of="2026-02-01T00:00:00Z")[0] is None
            for model in ("errata", "errata-base"):
                assert chosen(route, model=model, as_known_at="v1")[1]["as_known_at"] == "v1"
        body = {"model": "errata-memory", "messages": [{"role": "user", "content": asked["question"]}], "stream": True}
        lines = client.post("/v1/chat/completions", json={**body, "as_known_at": "v1"}).text.splitlines()
        first = json.loads(next(line for line in lines if line.startswith("data: ")).removeprefix("data: "))
        assert first["errata"]["chosen"]["edit"] == "t0" and first["errata"]["as_known_at"] == "v1"
        for model in ("errata-edited", "errata-edited-memory"):
            refused = client.post("/v1/chat/completions", json={**body, "model": model, "as_known_at": "v1"})
            assert refused.status_code == 422
            assert "speaks with weights that hold what holds now" in refused.json()["error"]["message"]
        assert client.post("/v1/chat/completions", json={**body, "as_known_at": "v99"}).status_code == 404
        plainly = {**body, "model": "errata-edited", "stream": False}
        assert client.post("/v1/chat/completions", json={**plainly, "as_known_at": "v2"}).status_code == 200
        for unfit in ("yesterday", 3, True):
            assert client.post("/v1/chat/completions", json={**body, "as_of": unfit}).status_code == 422
