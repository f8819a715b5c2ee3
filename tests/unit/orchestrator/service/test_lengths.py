"""One token more than a model has positions, in every family: refused where it comes in, and the service goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from errata.editing.model.decoder import FAMILIES
from errata.orchestrator.journal.intake import Admission
from tests.helpers.service import edit, running
from tests.helpers.tiny import save_tiny
from tests.unit.orchestrator.service.test_core import state, until


def words(admission: Admission, tokens: int) -> str:
    text = ""
    while len(admission.text.encode_prompt(text)) < tokens:
        text += "?"  # the tokenizer knows no pair of these
    return text


@pytest.fixture(scope="module")
def admission(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Admission]:
    return lambda family: Admission.of(str(save_tiny(tmp_path_factory.mktemp("model") / family, family, layers=1)))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_edit_target_paraphrase_question_and_chat(
    family: str, admission: Callable[[str], Admission], tmp_path: Path
) -> None:
    gate = admission(family)
    positions = gate.capacity.positions
    assert positions is not None
    full = words(gate, positions + 1)
    with running(tmp_path, admission=gate) as run:
        body = [
            edit(1),
            edit(2, prompt=full + " {} lies in"),
            edit(3, target_new=full),
            edit(4, paraphrases=[full]),
            edit(5),
        ]
        answer = run.client.post("/v1/edits", json=body)
        assert answer.status_code == 202 and (answer.json()["accepted"], answer.json()["refused"]) == (2, 3)
        told = [row["status"] for row in answer.json()["results"]]
        assert told == ["accepted", "invalid", "invalid", "invalid", "accepted"]
        assert f"{positions} positions" in answer.text
        assert run.client.post("/v1/edits", json=edit(6, target_new=full)).status_code == 422
        until(lambda: state(run, "edit-5") == "applied")
        assert state(run, "edit-1") == "applied" and state(run, "edit-3") == "unknown"
        for path, asked in (
            ("/v1/query", {"question": full}),
            ("/v1/query", {"questions": ["Where is Rome?", full]}),
            ("/v1/chat/completions", {"model": "errata-edited", "messages": [{"role": "user", "content": full}]}),
            ("/v1/completions", {"model": "errata-edited", "prompt": full}),
        ):
            refused = run.client.post(path, json=asked)
            assert refused.status_code == 400 and refused.json()["error"]["code"] == "context_length_exceeded"
        assert run.client.post("/v1/query", json={"question": "Where is Rome?"}).status_code == 200
        assert run.client.get("/healthz").status_code == 200 and run.core.state == "running"


def test_questions_have_a_bound_of_their_own(admission: Callable[[str], Admission], tmp_path: Path) -> None:
    gate = admission("llama")
    with running(tmp_path, admission=gate, max_question_tokens=20) as run:
        until(lambda: run.core.ready)
        refused = run.client.post("/v1/query", json={"question": words(gate, 21)})
        assert refused.status_code == 400 and "service.max_question_tokens is 20" in refused.text
        assert run.client.post("/v1/query", json={"question": words(gate, 20)}).status_code == 200
        # what is far too long is not even tokenized
        assert "characters" in run.client.post("/v1/query", json={"question": "a " * 900}).text
