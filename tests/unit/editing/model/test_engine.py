"""Scores, answers and likelihoods against the library run on one unpadded sequence at a time."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch

from errata.editing.model import engine as engine_module
from errata.editing.model.adapter import EditableModel
from errata.editing.model.engine import Answer, Continuation, LanguageEngine
from tests.unit.helpers import plain

Tiny = Callable[[str], EditableModel]
Row = tuple[list[int], list[int]]


def rows_for(model: EditableModel, count: int = 8) -> list[Row]:
    """Prompts of 3 to 12 tokens, some of them equal, with continuations of 1 to 4 tokens."""
    generator = torch.Generator().manual_seed(5)
    draw = lambda n: torch.randint(1, len(model.text.tokenizer), (n,), generator=generator).tolist()
    return [(draw(3 + 3 * (i % 4)) if i % 3 else [5, 6, 7], draw(1 + i % 4)) for i in range(count)]


def check_score(model: EditableModel, row: Row, got: Continuation) -> None:
    prompt, continuation = row
    with torch.no_grad():
        scores = plain.logits(model, prompt + continuation).log_softmax(dim=-1)[len(prompt) - 1 : -1]
    want = [float(scores[i, token]) for i, token in enumerate(continuation)]
    assert got.logprobs == pytest.approx(want, abs=2e-4)
    assert got.hits == tuple(int(scores[i].argmax()) == token for i, token in enumerate(continuation))


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text", "gpt2", "gptj", "gpt_neox"])
@pytest.mark.parametrize("batch_tokens", [30, 4096])
def test_scores_and_answers_equal_the_plain_form(tiny: Tiny, family: str, batch_tokens: int) -> None:
    model = tiny(family)
    rows = rows_for(model)
    engine = LanguageEngine(model, batch_tokens=batch_tokens)
    got = engine.score_and_generate(rows, max_new_tokens=6, stop_at_newline=False)
    for row, (scored, answer) in zip(rows, got, strict=True):
        check_score(model, row, scored)
        assert list(answer.ids) == plain.greedy(model, row[0], 6)
        assert answer.text == model.text.decode(answer.ids)


def test_scoring_alone_and_generating_alone_agree_with_both(llama: EditableModel) -> None:
    rows, engine = rows_for(llama), LanguageEngine(llama)
    both = engine.score_and_generate(rows, max_new_tokens=5)
    for row, (scored, answer), only in zip(rows, both, engine.score(rows), strict=True):
        assert only.hits == scored.hits and only.logprobs == pytest.approx(scored.logprobs, abs=1e-5)
        check_score(llama, row, only)
        assert engine.generate([row[0]], max_new_tokens=5) == [answer]


def test_a_hit_is_the_most_likely_token(llama: EditableModel) -> None:
    prompt = [5, 77, 130, 9]
    said = plain.greedy(llama, prompt, 3)
    wrong = [said[0], (said[1] + 1) % 300, said[2]]
    right, mixed = LanguageEngine(llama).score([(prompt, said), (prompt, wrong)])
    assert right.hits == (True, True, True)
    assert mixed.hits[:2] == (True, False)


def passes(model: EditableModel, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Filled with the (rows, tokens) of every pass the model runs from now on."""
    shapes: list[tuple[int, ...]] = []
    embed = model.decoder.embed
    monkeypatch.setattr(model.decoder, "embed", lambda ids, at: shapes.append(tuple(ids.shape)) or embed(ids, at))
    return shapes


def test_equal_prompts_run_once(llama: EditableModel, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = passes(llama, monkeypatch)
    prompt = [5, 77, 130]
    rows = [(prompt, [3]), (prompt, [4, 5]), ([8, 9], [3]), (prompt, [])]
    got = LanguageEngine(llama).score_and_generate(rows, max_new_tokens=2)
    assert shapes[0] == (2, 3), "one prefill of the two distinct prompts"
    assert all(width == 1 for _, width in shapes[1:]), "then single tokens"
    assert got[0][1] == got[1][1] == got[3][1]
    assert got[3][0] == Continuation((), ())
    for row, (scored, _) in zip(rows[:3], got, strict=False):
        check_score(llama, row, scored)


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", "gptj"])
def test_a_common_beginning_is_run_once_and_changes_nothing(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    model = tiny(family)
    example = [(7 * i) % 390 + 1 for i in range(2 * engine_module._SHARED_TOKENS)]
    # the second prompt is the beginning of the others, so its last token is not common
    prompts = [[*example, 5, 77, 130], example, [*example, 9], [*example, 5, 77, 12, 44]]
    rows = [(prompt, [30 + i, 31 + i]) for i, prompt in enumerate(prompts)]
    with monkeypatch.context() as patch:
        shapes = passes(model, patch)
        got = LanguageEngine(model).score_and_generate(rows, max_new_tokens=4, stop_at_newline=False)
    assert shapes[:2] == [(1, len(example) - 1), (4, 5)]
    for row, (scored, answer) in zip(rows, got, strict=True):
        check_score(model, row, scored)
        assert list(answer.ids) == plain.greedy(model, row[0], 4)


def test_questions_about_one_statement_read_it_once(llama: EditableModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "_PASS_TOKENS", 2)
    example = [(7 * i) % 390 + 1 for i in range(engine_module._SHARED_TOKENS)]
    statements = [[(11 * i + n) % 390 + 1 for i in range(12 + n)] for n in (0, 1)]
    tails = [[5, 77, 130], [9], [5, 77, 12, 44, 8]]
    prompts = [[*example, *statement, *tail] for tail in tails for statement in statements] + [[*example, 300]]
    rows = [(prompt, [30 + i, 31 + i]) for i, prompt in enumerate(prompts)]
    with monkeypatch.context() as patch:
        shapes = passes(llama, patch)
        got = LanguageEngine(llama).score_and_generate(rows, max_new_tokens=4, stop_at_newline=False)
    read = sum(count * width for count, width in shapes)
    decoded = len(prompts) * (1 + 3)  # a continuation's last token is not run, nor is an answer's
    assert read - decoded <= len(example) + 12 + 13 + sum(2 * len(tail) for tail in tails) + 1 + 8, "padding of a few"
    for row, (scored, answer) in zip(rows, got, strict=True):
        check_score(llama, row, scored)
        assert list(answer.ids) == plain.greedy(llama, row[0], 4)


def test_a_long_statement_with_short_questions_shares_a_pass_with_long_prompts(llama: EditableModel) -> None:
    statement = [(11 * i) % 390 + 1 for i in range(200)]
    alone = [[(13 * i + n) % 390 + 2 for i in range(45 + n)] for n in (0, 1)]
    prompts = [[*statement, 5, 9], [*statement, 77], [*statement, 8, 12], *alone]
    rows = [(prompt, [30 + i]) for i, prompt in enumerate(prompts)]
    # cheap passes are few: the questions are padded to the prompts that share nothing, far behind the statement
    engine = LanguageEngine(llama)
    engine._spare = 150
    branches = engine_module._branches([tuple(p) for p in prompts], 0, least=300)
    assert sorted(branch.length for branch in branches) == [0, 200]
    for row, (scored, answer) in zip(rows, engine.score_and_generate(rows, max_new_tokens=3), strict=True):
        check_score(llama, row, scored)
        assert answer == engine.generate([row[0]], max_new_tokens=3)[0]


def test_passes_over_rows_of_like_length_cost_the_least() -> None:
    generator = torch.Generator().manual_seed(3)
    for spare in (0, 3, 10):
        for count in (1, 2, 5, 9):
            lengths = sorted(torch.randint(0, 12, (count,), generator=generator).tolist(), reverse=True)

            def cost(spans: list[tuple[int, int]], lengths: list[int] = lengths, spare: int = spare) -> int:
                return sum((stop - start) * lengths[start] + spare for start, stop in spans)

            found = engine_module._spans_of_like_length(lengths, spare)
            assert [row for span in found for row in range(*span)] == list(range(count))
            cuts = [[i + 1 for i in range(count - 1) if chosen >> i & 1] for chosen in range(1 << (count - 1))]
            assert cost(found) == min(cost(list(pairwise([0, *inner, count]))) for inner in cuts)
    assert engine_module._spans_of_like_length([], 3) == []


def relabel(model: EditableModel, old: int, new: int) -> None:
    """Swap two tokens of the vocabulary: the model behaves as before with the two names exchanged."""
    with torch.no_grad():
        for weight in (model.hf.model.embed_tokens.weight, model.hf.lm_head.weight):
            weight[[old, new]] = weight[[new, old]]


def prompts_with_answer(model: EditableModel) -> tuple[list[int], list[int], int]:
    """A prompt, its greedy continuation, and the place of a token in it that neither has before."""
    for start in range(1, 200):
        prompt = [start, start + 3, start + 11]
        said = plain.greedy(model, prompt, 6)
        for at in (2, 3):
            if len(said) == 6 and said[at] not in prompt + said[:at]:
                return prompt, said, at
    raise AssertionError("no prompt has a varied enough continuation")


def test_an_answer_ends_at_its_first_newline(llama: EditableModel) -> None:
    newline = llama.text.tokenizer("\n", add_special_tokens=False)["input_ids"][0]
    prompt, said, at = prompts_with_answer(llama)
    assert newline not in prompt + said
    relabel(llama, said[at], newline)
    engine = LanguageEngine(llama)
    other = [9, 8, 7, 6, 5]
    stopped, beside = engine.generate([prompt, other], max_new_tokens=6)
    assert stopped == Answer(llama.text.decode(said[:at]), (*said[:at], newline))
    assert list(beside.ids)[:2] == plain.greedy(llama, other, 6)[:2], "its neighbor goes on"
    (free,) = engine.generate([prompt], max_new_tokens=6, stop_at_newline=False)
    assert list(free.ids) == plain.greedy(llama, prompt, 6) and "\n" in free.text


def test_an_answer_ends_before_an_end_token(llama: EditableModel) -> None:
    (end,) = llama.text.eos_ids
    prompt, said, at = prompts_with_answer(llama)
    relabel(llama, said[at], end)
    stopped, beside = LanguageEngine(llama).generate([prompt, [9, 8, 7]], max_new_tokens=6, stop_at_newline=False)
    assert list(stopped.ids) == said[:at]
    assert list(beside.ids) == plain.greedy(llama, [9, 8, 7], 6)


def test_documents_likelihood(tiny: Tiny) -> None:
    for family in ("llama", "gpt2"):
        model = tiny(family)
        documents = [prompt + rest for prompt, rest in rows_for(model, 5)] + [[7]]
        for batch_tokens in (20, 4096):
            got = LanguageEngine(model, batch_tokens=batch_tokens).nll(documents)
            for ids, (total, count) in zip(documents, got, strict=True):
                with torch.no_grad():
                    scores = plain.logits(model, ids).double().log_softmax(dim=-1)
                want = -sum(float(scores[i, token]) for i, token in enumerate(ids[1:]))
                assert count == len(ids) - 1
                assert total == pytest.approx(want, rel=1e-5, abs=1e-9)


def test_nothing_asked_nothing_answered(llama: EditableModel) -> None:
    engine = LanguageEngine(llama)
    assert engine.score([]) == [] and engine.generate([]) == [] and engine.nll([]) == []
    with pytest.raises(ValueError, match="a prompt has no tokens"):
        engine.generate([[1, 2], []])


def test_the_current_weights_answer(llama: EditableModel) -> None:
    engine, rows = LanguageEngine(llama), rows_for(llama, 3)
    before = engine.score(rows)
    llama.set_weight(1, -llama.weight(1))
    for row, was, now in zip(rows, before, engine.score(rows), strict=True):
        assert was != now
        check_score(llama, row, now)
