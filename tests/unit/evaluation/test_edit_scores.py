"""ES, PS, NS and perplexity on a tiny model, against one unpadded pass a prompt."""

from __future__ import annotations

import math

import pytest
import torch

from errata.editing.model.adapter import EditableModel
from errata.editing.model.engine import LanguageEngine
from errata.editing.request import EditRequest
from errata.evaluation.edit_scores import edit_scores, mean_scores
from errata.evaluation.perplexity import clean_wikitext, perplexity, windows_of
from tests.helpers.tiny import tiny_model


@pytest.fixture(scope="module")
def model() -> EditableModel:
    return tiny_model("llama", layers=2)


def slow(model: EditableModel, prompt: str, target: str) -> tuple[float, list[bool]]:
    """Geometric mean probability of the target and its argmax hits, by one plain pass of the library's
    model."""
    head, tail = model.text.encode_prompt(prompt), model.text.encode_target(target)
    with torch.no_grad():
        p = model.decoder.model(torch.tensor([head + tail])).logits[0].double().softmax(-1)
    rows = p[len(head) - 1 : -1]
    picked = [float(rows[at, token]) for at, token in enumerate(tail)]
    return math.prod(picked) ** (1 / len(picked)), [int(rows[at].argmax()) == t for at, t in enumerate(tail)]


def test_scores_equal_the_plain_evaluation(model: EditableModel) -> None:
    subjects = ["Danielle Darrieux", "Thierry", "Angola", "Alice Munro", "Rome", "Paris"]
    requests = [
        EditRequest.model_validate(
            {
                "id": subject,
                "subject": subject,
                "prompt": "The mother tongue of {} is",
                "target_new": new,
                "target_true": old,
                "paraphrases": [f"{subject} speaks", f"What does {subject} speak?"],
                "neighborhood": [
                    {"prompt": "The capital of France is", "answer": old},
                    {"prompt": "The sport is", "answer": "right"},
                ],
            }
        )
        for subject, new, old in zip(
            subjects,
            ["Italian", "the answer known", "French", "football", "a", "Africa"],
            ["French", "question", "Edit me", "Rome", "the writer", "comes next"],
            strict=True,
        )
    ]
    got = edit_scores(LanguageEngine(model), model.text, requests)
    wins = set()
    for request, scores in zip(requests, got, strict=True):
        assert request.target_true is not None

        def beats(prompt: str, one: str, other: str) -> float:
            return float(slow(model, prompt, one)[0] > slow(model, prompt, other)[0])

        def share(prompt: str, target: str) -> float:
            hits = slow(model, prompt, target)[1]
            return sum(hits) / len(hits)

        def mean(values: list[float]) -> object:
            return pytest.approx(sum(values) / len(values))

        new, old, around = request.target_new, request.target_true, request.neighborhood
        assert scores.efficacy_score == beats(request.text, new, old)
        assert scores.paraphrase_score == mean([beats(p, new, old) for p in request.paraphrases])
        assert scores.neighborhood_score == mean([beats(p.prompt, p.answer, new) for p in around])
        assert scores.neighborhood_score_argmax == mean(
            [float(all(slow(model, p.prompt, p.answer)[1])) for p in around]
        )
        assert scores.efficacy == mean([share(request.text, new)])
        assert scores.generalization == mean([share(p, new) for p in request.paraphrases])
        assert scores.specificity == mean([share(p.prompt, p.answer) for p in around])
        wins.add(scores.efficacy_score)
    assert wins == {0.0, 1.0}  # the comparison is put to the test both ways


def test_what_an_edit_lacks_is_none_and_left_out_of_the_mean(model: EditableModel) -> None:
    bare = EditRequest(id="bare", subject="Rome", prompt="{} lies in", target_new="Italy")
    full = EditRequest(id="full", subject="Rome", prompt="{} lies in", target_new="Italy", target_true="Canada")
    first, second = edit_scores(LanguageEngine(model), model.text, [bare, full])
    assert (first.efficacy_score, first.paraphrase_score, first.specificity) == (None, None, None)
    assert first.efficacy is not None and second.efficacy_score is not None
    means = mean_scores([first, second])
    assert means["efficacy_score"] == second.efficacy_score and means["specificity"] is None
    assert set(mean_scores([]).values()) == {None}


def test_perplexity_equals_one_pass_a_window(model: EditableModel) -> None:
    documents = ["The capital of France is Paris. Rome lies in Italy. " * 4, "What is the question? yes no"]
    windows = windows_of(model.text, documents, window=16)
    assert [token for window in windows for token in window] == [
        token for document in documents for token in model.text.encode_prompt(document)
    ]
    assert max(map(len, windows)) == 16
    total, count = 0.0, 0
    for window in windows:
        with torch.no_grad():
            logp = model.decoder.model(torch.tensor([window])).logits[0].double().log_softmax(-1)
        total -= sum(float(logp[at, token]) for at, token in enumerate(window[1:]))
        count += len(window) - 1
    found = perplexity(LanguageEngine(model), windows)
    assert found.value == pytest.approx(math.exp(total / count), rel=1e-5)
    assert (found.tokens, found.windows, found.window) == (count, len(windows), 16)


def test_windows_carry_bos_and_respect_the_budget(model: EditableModel, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = model.text.encode_prompt("Rome lies in Italy. " * 5)
    monkeypatch.setattr(model.text, "bos", [0])
    windows = windows_of(model.text, ["Rome lies in Italy. " * 5, "yes no"], window=8, max_tokens=20)
    assert [token for window in windows for token in window[1:]] == plain[:20]
    assert all(window[0] == 0 and 2 <= len(window) <= 8 for window in windows)
    with pytest.raises(ValueError, match="at least two tokens"):
        windows_of(model.text, ["x"], window=1)


def test_the_budget_is_kept_whatever_the_tokens_length(model: EditableModel) -> None:
    for document in ("Rome lies in Italy. " * 200, "the subject is here, the target comes next " * 50):
        whole = model.text.encode_prompt(document)
        for budget in (3, 10, 50):
            pieces = windows_of(model.text, [document, document], window=64, max_tokens=budget)
            assert [token for piece in pieces for token in piece] == whole[:budget]


def test_wikitext_becomes_prose() -> None:
    raw = (
        " \n = Robert Boulter = \n \n Robert is an actor . He had a guest @-@ starring role in 2 @,@ 000"
        " ( 50 % ) ; it 's \" fine \" , do n't ask .\n"
        " \n = = Career = = \n\n Second . \n = Other = \n Third 1 @.@ 5 .\n"
    )
    first = "Robert is an actor. He had a guest-starring role in 2,000 (50%); it's \"fine\", don't ask."
    assert clean_wikitext(raw) == [f"{first}\n\nSecond.", "Third 1.5."]


def test_a_single_token_without_bos_predicts_nothing(model: EditableModel) -> None:
    (token,) = model.text.encode_prompt("a")
    assert windows_of(model.text, ["a", "a"], window=4) == []
    assert token >= 0
    with pytest.raises(ValueError, match="at least one predicted token"):
        perplexity(LanguageEngine(model), [])
