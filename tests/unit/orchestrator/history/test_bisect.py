"""Binary search over versions: the right commit, few questions, and each version with its own weights."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from errata.editing.checkpoint.load import load_model
from errata.editing.errors import UserError
from errata.editing.model.engine import LanguageEngine
from errata.orchestrator.history import rebuild
from errata.orchestrator.history.bisect import RegressionProbe, Verdict, VersionAsker, bisect, candidates, read_probes
from errata.orchestrator.journal.rows import Version
from tests.helpers.small_run import LAYERS, SmallRun, make_run

PROMPT = "The capital of France is"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return make_run(tmp_path_factory.mktemp("small"))


def asker_of(run: SmallRun, *probes: RegressionProbe) -> VersionAsker:
    base = rebuild.base_maps(run.model, LAYERS)
    return VersionAsker(run.journal(), run.store(), load_model(str(run.model)), base, probes)


# ---------------------------------------------------------------- the search


@pytest.mark.parametrize("count", [2, 3, 5, 8, 33])
def test_the_commit_is_found_wherever_it_is_with_few_questions(count: int) -> None:
    versions = [Version(i, f"{i:064x}", None, i) for i in range(count)]
    for at in range(1, count):
        for broke in (True, False):
            asked: list[int] = []

            def ask(version: Version, at: int = at, broke: bool = broke, asked: list[int] = asked) -> Verdict:
                asked.append(version.sequence)
                good = (version.sequence < at) == broke
                return Verdict(version.sequence, ("",), (good,))

            found = bisect(versions, ask)
            assert found.commit.sequence == found.after.sequence == at and found.broke is broke
            assert found.before.sequence == at - 1
            assert [verdict.sequence for verdict in found.asked] == asked and len(set(asked)) == len(asked)
            assert len(asked) <= 2 + math.ceil(math.log2(count - 1)) if count > 2 else len(asked) == 2


def test_if_the_verdict_changes_often_one_of_the_changes_is_found() -> None:
    good = [True, False, True, True, False, False, True, False, False]
    versions = [Version(i, f"{i:064x}", None, i) for i in range(len(good))]
    found = bisect(versions, lambda v: Verdict(v.sequence, ("",), (good[v.sequence],)))
    assert good[found.commit.sequence - 1] and not good[found.commit.sequence]


@pytest.mark.parametrize(("good", "words"), [(True, "hold at both ends, v0 and v4"), (False, "do not hold at both")])
def test_no_change_between_the_ends_is_an_error_after_two_questions(good: bool, words: str) -> None:
    asked = []

    def ask(version: Version) -> Verdict:
        asked.append(version)
        return Verdict(version.sequence, ("",), (good,))

    with pytest.raises(UserError, match=words):
        bisect([Version(i, f"{i:064x}", None, i) for i in range(5)], ask)
    assert len(asked) == 2


def test_only_commits_that_changed_weights_are_candidates(run: SmallRun) -> None:
    with run.journal() as journal:
        versions = journal.versions()
        assert [v.sequence for v in candidates(journal, versions[0], versions[6])] == [0, 1, 2, 3, 5, 6]
        assert [v.sequence for v in candidates(journal, versions[2], versions[4])] == [2, 3]
        with pytest.raises(UserError, match="--good v3 is not older than --bad v3"):
            candidates(journal, versions[3], versions[3])
        with pytest.raises(UserError, match="there is no commit that changed the weights"):
            bisect(candidates(journal, versions[3], versions[4]), asker_of(run, RegressionProbe(prompt="x")).ask)


# ---------------------------------------------------------------- asking a model


def test_every_version_answers_with_its_own_weights_in_any_order(run: SmallRun) -> None:
    model = load_model(str(run.model))
    want = []
    for weights in run.weights:
        model.set_weights(weights)
        want.append(LanguageEngine(model).generate([model.text.encode_prompt(PROMPT)])[0].text)
    asker = asker_of(run, RegressionProbe(prompt=PROMPT))
    with run.journal() as journal:
        versions = journal.versions()
        for sequence in (0, 6, 3, 5, 4, 1, 2, 6):
            verdict = asker.ask(versions[sequence])
            assert verdict.answers == (want[sequence],), sequence
            assert verdict.holds == (want[sequence] == want[0],)
    assert len(set(want)) > 2, "the edits change the answers at all"


def test_the_commit_that_wrote_an_answer_is_found_on_a_real_run(run: SmallRun) -> None:
    before, after = (_answer(run, sequence) for sequence in (2, 3))
    assert before != after
    with run.journal() as journal:
        versions = journal.versions()
        chosen = candidates(journal, versions[2], versions[4])
        found = bisect(chosen, asker_of(run, RegressionProbe(prompt=PROMPT)).ask)
    assert found.commit.sequence == 3 and found.broke
    assert (found.before.answers, found.after.answers) == ((before,), (after,))


def test_probes_of_several_lengths_and_through_the_chat_template_keep_their_places(run: SmallRun) -> None:
    probes = [
        RegressionProbe(prompt=PROMPT, max_new_tokens=6),
        RegressionProbe(prompt="Rome lies in", max_new_tokens=2),
        RegressionProbe(prompt=PROMPT, max_new_tokens=2),
        RegressionProbe(prompt=PROMPT, chat=True, max_new_tokens=6),
    ]
    with run.journal() as journal:
        together = asker_of(run, *probes).ask(journal.head()).answers
        alone = tuple(asker_of(run, probe).ask(journal.head()).answers[0] for probe in probes)
    assert together == alone and len(set(together)) == 4


def _answer(run: SmallRun, sequence: int) -> str:
    with run.journal() as journal:
        return asker_of(run, RegressionProbe(prompt=PROMPT)).ask(journal.versions()[sequence]).answers[0]


# ---------------------------------------------------------------- probes


@pytest.mark.parametrize(
    ("probe", "answer", "holds"),
    [
        (RegressionProbe(prompt="x", expected="Lyon"), "It is Lyon, of course", True),
        (RegressionProbe(prompt="x", expected=("Nice", "Lyon")), "lyon.", True),
        (RegressionProbe(prompt="x", expected="Lyon"), "Lyons", False),
        (RegressionProbe(prompt="x", expected="Lyon", match="exact"), "It is Lyon", False),
        (RegressionProbe(prompt="x", expected="Lyon", match="exact"), "Lyon.", True),
        (RegressionProbe(prompt="x", expected_not="Paris"), "Lyon", True),
        (RegressionProbe(prompt="x", expected_not=("Paris", "Rome")), "in Rome", False),
        (RegressionProbe(prompt="x", expected="Lyon", expected_not="Paris"), "Lyon, not Paris", False),
        (RegressionProbe(prompt="x"), "as before", True),
        (RegressionProbe(prompt="x"), "other", False),
    ],
)
def test_when_a_probe_holds(probe: RegressionProbe, answer: str, holds: bool) -> None:
    assert probe.holds(answer, "as before") is holds


def test_probe_files_in_three_layouts(tmp_path: Path) -> None:
    one, two = {"prompt": "a", "expected": "b"}, {"prompt": "c", "expected_not": ["d", "e"], "id": "second"}
    for text in (json.dumps([one, two]), f"{json.dumps(one)}\n\n{json.dumps(two)}\n", json.dumps([one, two], indent=1)):
        (tmp_path / "p").write_text(text)
        first, second = read_probes(tmp_path / "p")
        assert first.expected == ("b",) and second.expected_not == ("d", "e") and second.id == "second"
    # a mark at the beginning is none of its text, and U+2028 ends no line
    (tmp_path / "p").write_text('\ufeff{"prompt": " a\u2028b "}\n{"prompt": "c"}\n', encoding="utf-8")
    assert [probe.prompt for probe in read_probes(tmp_path / "p")] == ["a\u2028b", "c"]
    (tmp_path / "p").write_text(json.dumps(one))
    assert len(read_probes(tmp_path / "p")) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"prompt": "a"}\nnonsense', r"p:2: neither JSON nor JSON Lines"),
        ('{"prompt": "a"}\n{"promt": "b"}', r"p:2: prompt: Field required.*keys prompt, expected"),
        ('[{"prompt": "a"}, {"prompt": "b", "expect": "c"}]', r"p: probe 2: expect: Extra inputs"),
        ('{"prompt": "", "expected": "c"}', r"p: prompt: String should have at least 1"),
        ('{"prompt": "a\\u0000"}', r"p: prompt: holds NUL at character 1"),
        (
            '[{"prompt": "a"}, {"prompt": "b", "expected": ["\\ud800"]}]',
            r"probe 2: expected.0: holds half of a surrogate",
        ),
        ("\x00", r"NUL at character 0"),
        ("3", r"p: probe: Input should be"),
        ("[]", r"holds no probe"),
        ("", r"holds no probe"),
        (None, r"cannot be read: FileNotFoundError"),
    ],
)
def test_a_bad_probe_file_is_one_line_that_says_where(tmp_path: Path, text: str | None, words: str) -> None:
    if text is not None:
        (tmp_path / "p").write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        read_probes(tmp_path / "p")
    assert "\n" not in str(caught.value)
