"""What counts as the same answer, script by script, and what must not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from errata.evaluation.matching import contains, exact_match, token_f1, words
from errata.evaluation.metrics import METRICS, fluency, ngram_entropy

CONTAINED = [
    ("里昂是法国的首都。", "里昂"),
    ("法国的首都是里昂", "里昂"),
    ("フランスの首都はリヨンです", "リヨン"),
    ("答えはひらがなです", "ひらがな"),
    ("ลียงเป็นเมือง", "ลียง"),
    ("เมืองหลวงคือกรุงเทพมหานครค่ะ", "กรุงเทพมหานคร"),
    ("ນະຄອນຫຼວງແມ່ນວຽງຈັນ", "ວຽງຈັນ"),
    ("រាជធានីគឺភ្នំពេញ", "ភ្នំពេញ"),
    ("မြို့တော်မှာနေပြည်တော်", "နေပြည်တော်"),
    ("यह मोर है।", "मोर"),
    ("العاصمة هي باريس.", "باريس"),
    ("الـعـاصمة", "العاصمة"),
    ("서울입니다", "서울"),
    ("수도는 서울이다", "서울"),
    ("프랑스의 수도는 파리에서 멀다", "파리"),
    ("столица — Париж", "париж"),
    ("It is 2020年5月", "2020年"),
    ("١٢٣ كتاب", "123"),
    ("it has १२ parts", "12"),
    ("The flag is 🇫🇷!", "🇫🇷"),
    ("with ❤️ from us", "❤"),
    ("She writes C++.", "C++"),
    ("She writes C# and F#.", "C#"),
    ("It fell to -5 degrees", "\u22125"),
    ("It costs €5 today", "5 €"),
    ("It rose by 5 %.", "5%"),
    ("It has 1,000 islands", "1000"),
    ("Pi is 3.14", "3.14"),
    ("between 1990-1995", "1990"),
    ("**Paris**, of course", "Paris"),
    ("_Paris_", "Paris"),
    ("\u201cParis\u201d (France)", "Paris"),
    ("from COVID-19 on", "covid-19"),
    ("It is São Paulo", "Sa\u0303o Paulo"),
]
NOT_CONTAINED = [
    ("Germany", "man"),
    ("मार", "मोर"),
    ("ロンドンブリッジ", "ロンドン"),
    ("ผู้หญิง", "ผ"),
    ("서울대학교", "서울"),
    ("인도네시아", "인도"),
    ("She writes C++", "C"),
    ("She writes C++", "C#"),
    ("It is -5 outside", "5"),
    ("It costs $5", "5%"),
    ("It costs $5", "5"),
    ("It costs €5", "$5"),
    ("Pi is 3.14", "3"),
    ("blood type A+", "A-"),
    ("The flag is 🇫🇷", "🇩🇪"),
    ("👍🏽", "👍🏿"),
    ("Sao Paulo", "São Paulo"),
    ("", "x"),
    ("x", ""),
]


@pytest.mark.parametrize(("answer", "expected"), CONTAINED)
def test_right_answers_are_found(answer: str, expected: str) -> None:
    assert contains(answer, [expected]), (words(answer), words(expected))


@pytest.mark.parametrize(("answer", "expected"), NOT_CONTAINED)
def test_other_answers_are_not(answer: str, expected: str) -> None:
    assert not contains(answer, [expected]), (words(answer), words(expected))


DIFFERENT = [
    ("मार", "मोर"), ("C#", "C++"), ("C", "C++"), ("5%", "$5"), ("-5", "5"), ("5", "5%"), ("$5", "€5"), ("A+", "A-"),
    ("3.5", "35"), ("1/2", "12"), ("10:30", "1030"), ("🇫🇷", "🇩🇪"), ("กา", "กี"), ("café", "cafe"), ("5°C", "5°F"),
]  # fmt: skip
EQUAL = [
    ("C#", "c#"), ("5 %", "5%"), ("5 €", "€5"), ("\u22125", "-5"), ("½", "1/2"), ("🇫🇷", " 🇫🇷 "),
    ("Ｐａｒｉｓ", "paris"), ("リヨン。", "リヨン"), ("The Paris.", "Paris"), ("1,234.5", "1234.5"),
    ("٥٪", "5%"), ("१२", "12"), ("❤️", "❤"),
    ("e\u0301te\u0301", "été"), ("U.S.", "u s"), ("x\u200dy", "xy"), ("co\u00adop", "coop"),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_signs_and_marks_tell_things_apart(one: str, other: str) -> None:
    assert not exact_match(one, [other]) and not exact_match(other, [one])
    assert exact_match(one, [one]) and exact_match(other, [other])


@pytest.mark.parametrize(("one", "other"), EQUAL)
def test_the_same_written_otherwise(one: str, other: str) -> None:
    assert exact_match(one, [other]) and exact_match(other, [one])


def test_overlap_is_counted_by_what_a_word_is() -> None:
    # 里昂 of four characters against two: precision 2/4, recall 2/2
    assert token_f1("里昂市区", "里昂") == pytest.approx(2 * (2 / 4) * 1 / (3 / 2))
    assert token_f1("मार", "मोर") == 0.0


_scripts = st.text(alphabet="aZ é5-+#%$. ,里昂リンลียงมาोर्سل서울🇫🇷❤\ufe0f\u200d\u0301'()*", min_size=1, max_size=12)


@given(text=_scripts)
def test_a_text_is_itself_and_words_hold_nothing_blank(text: str) -> None:
    found = words(text)
    assert all(word and not word.isspace() for word in found)
    assert exact_match(text, [text]) == contains(text, [text]) == bool(found)


@given(before=_scripts, text=_scripts, after=_scripts)
def test_a_text_is_found_between_others(before: str, text: str, after: str) -> None:
    """Full stops keep the neighbors from growing into it; articles count nowhere but alone."""
    if words(text) and not set(words(text)) & {"a", "an", "the"} and not set(words(f"{before}{after}")) & {"a"}:
        assert contains(f"{before} \u3002 {text} \u3002 {after}", [text])


def test_every_metric_of_words_has_risen() -> None:
    assert {METRICS[name].version for name in ("answer_contains", "answer_exact", "answer_f1")} == {2}
    assert {METRICS[name].version for name in ("fluency", "consistency")} == {2}


def test_repetition_shows_in_every_script() -> None:
    varied, repeated = "里昂是法国的第三大城市", "里昂里昂里昂里昂里昂里"
    assert ngram_entropy(varied, 2) > 3 and fluency(repeated) < 2 < fluency(varied)
    assert fluency("मोर मार मिर") != fluency("म म म")
