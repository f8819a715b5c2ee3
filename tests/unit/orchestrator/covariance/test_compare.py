"""Comparisons: what the table says, what the page shows, what cannot be compared."""

from __future__ import annotations

import html
import json
import math
import re

import numpy as np
import pytest
import torch

from errata.editing.covariance import KeyCovariance, SampleRecord
from errata.editing.errors import UserError
from errata.orchestrator.covariance.compare import compare
from errata.orchestrator.covariance.page import density_chart, render_comparison, spectrum_chart, word_charts


def covariance(
    seed: int, *, layers: tuple[int, ...] = (1, 2), width: int = 6, shift: float = 0.0, record: bool = True
) -> KeyCovariance:
    rng = np.random.default_rng(seed)
    sums = {}
    for layer in layers:
        keys = rng.standard_normal((50, width)) * np.logspace(0, -2, width)
        sums[layer] = torch.tensor(keys.T @ keys)
    documents = tuple((20 * (3 + shift + 0.3 * x), 20) for x in rng.standard_normal(60))
    openings = tuple(("<b>Sure</b>", "I") if i % 2 else ("A\x00", "word", "more") for i in range(60))
    kept = SampleRecord(documents, openings) if record else None
    return KeyCovariance(sums, 50, {"kind": "test", "seed": seed}, kept)


def test_each_side_is_measured_on_the_common_layers() -> None:
    a, b = covariance(0), covariance(1, layers=(2, 5))
    found = compare({"a": a, "b": b}, taus=(1e-2, 10.0), k=3)
    assert found.layers == (2,) and found.k == 3
    view = found.sides[0].layers[2]
    assert view.trace == pytest.approx(float(a.mean(2).trace()))
    assert 1 <= view.effective_rank <= 6 and view.null_space[10.0] == 6 and 0 < view.null_space[1e-2] < 6
    overlap = found.overlaps[2]
    assert overlap[0][0] == pytest.approx(1) == overlap[1][1] and overlap[0][1] == pytest.approx(overlap[1][0])
    assert 0 < overlap[0][1] <= 1


def test_divergences_are_there_where_likelihoods_are() -> None:
    sides = {"a": covariance(0), "b": covariance(1, shift=2.0), "c": covariance(2, record=False)}
    found = compare(sides)
    assert found.equal_length and set(found.nll) == {"a", "b"}
    assert found.jsd[0][0] == 0.0 and 0.3 < found.jsd[0][1] <= math.log(2)
    assert found.jsd[0][2] is None is found.jsd[2][2]
    assert [side.documents for side in found.sides] == [60, 60, 0]
    assert found.sides[0].openings[0][0].share == 0.5 and found.sides[2].openings == ()
    bare = compare({"a": covariance(0, record=False), "b": covariance(1, record=False)})
    assert bare.nll == {} and bare.sides[0].mean_nll is None


def test_a_narrow_map_has_fewer_directions() -> None:
    assert compare({"a": covariance(0)}, k=50).k == 6


@pytest.mark.parametrize(
    ("sides", "layers", "said"),
    [
        ({"a": covariance(0), "b": covariance(1, layers=(4,))}, None, r"no layer in common: a: \[1, 2\]; b: \[4\]"),
        ({"a": covariance(0), "b": covariance(1, width=7)}, None, r"different widths at layer 1: \{'a': 6, 'b': 7\}"),
        ({"a": covariance(0)}, [3], r"layers \[3\] are not covered by all"),
    ],
)
def test_what_cannot_be_compared_is_named(sides: dict, layers: list[int] | None, said: str) -> None:
    with pytest.raises(UserError, match=said):
        compare(sides, layers=layers)


def test_the_page_is_self_contained_and_shows_every_part() -> None:
    sides = {"self": covariance(0), "<i>text</i>": covariance(1, shift=1.0), "bare": covariance(2, record=False)}
    page = render_comparison(compare(sides))
    assert "<i>text</i>" not in page and "&lt;i&gt;text&lt;/i&gt;" in page and "<b>Sure" not in page
    assert not re.search(r"(?:src|href)=|url\(|@import", page), "nothing is loaded from elsewhere"
    assert page.count("data-chart=") == 1 + 2 + 6
    assert page.count("<script") == 1 and "script-src 'sha256-" in page
    for heading in (
        "What they are",
        "How likely their documents are",
        "Spectra",
        "Overlap of the leading",
        "First words",
    ):
        assert heading in page


def lines(chart: str) -> list[str]:
    plain = html.unescape(re.findall(r'data-chart="([^"]*)"', chart)[0])
    return [line["label"] for line in json.loads(plain)["series"]]


def test_plots_show_what_is_there() -> None:
    found = compare({"a": covariance(0), "b": covariance(1, record=False)})
    assert lines(density_chart(found)) == ["a"]
    assert lines(spectrum_chart(found, 2)) == ["a", "b"]
    assert [title for title, _ in word_charts(found.sides[0])] == ["first word", "second word", "third word"]
    bare = compare({"a": covariance(0, record=False), "b": covariance(1, record=False)})
    assert density_chart(bare) == ""
    assert "None of the files holds likelihoods" in render_comparison(bare)


def test_a_zero_covariance_is_shown_and_not_divided_by() -> None:
    zero = KeyCovariance({1: torch.zeros(4, 4, dtype=torch.float64)}, 3, {})
    found = compare({"zero": zero})
    assert found.sides[0].layers[1].effective_rank == 0.0
    assert spectrum_chart(found, 1) == "" and "zero" in render_comparison(found)
