"""Every loader on the published records: how many fit, how many do not, and what the surprises become."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from errata.evaluation.datasets import BadRecord, ValidRecord, open_dataset

# file, schema to be detected, target, edits that fit, edits that do not
FILES = [
    ("counterfact/counterfact.json", "default", 988, 0),
    ("counterfact/counterfact_portability_gpt4.json", "default", 632, 0),
    ("counterfact/counterfact_subject_replace.json", "default", 129, 0),
    ("counterfact_easyedit/counterfact-edit.json", "default", 2000, 0),
    ("zsre_mend/zsre_mend_eval.json", "default", 613, 0),
    ("zsre_mend/zsre_mend_eval_portability_gpt4.json", "alt", 613, 0),
    ("zsre_mend/zsre_mend_train.json", "alt", 584, 1),
    ("zsre_mend/zsre_subject_replace.json", "default", 151, 4),
    ("knowedit_zsre/ZsRE-test-all.json", "default", 756, 2),
    ("knowedit_wiki_counterfact/train_cf.json", "default", 836, 0),
    ("knowedit_wiki_counterfact/test_cf.json", "default", 514, 0),
    ("knowedit_wiki_recent/recent_train.json", "default", 327, 0),
    ("knowedit_wikibio/wikibio-test-all.json", "default", 166, 0),
    ("elken/train.json", "default", 61, 65),
    ("elken/train.json", "all", 127, 55),
    ("s2rke/readme_example.json", "default", 1, 0),
    ("locomo/locomo10.json", "default", 208, 12),
    ("mquake/MQuAKE-hard.json", "default", 1000, 0),
    ("conflictedit/coverage_edit.json", "default", 400, 0),
    ("conflictedit/reverse_edit.json", "default", 400, 0),
    ("conflictedit/composite_edit.json", "default", 400, 0),
]


@pytest.mark.parametrize(("name", "target", "good", "bad"), FILES)
def test_published_file(shared_data: Path, name: str, target: str, good: int, bad: int) -> None:
    records = list(open_dataset(shared_data / name, target=target))
    counts = Counter(type(record) for record in records)
    assert (counts[ValidRecord], counts[BadRecord]) == (good, bad)
    requests = [record.request for record in records if isinstance(record, ValidRecord)]
    assert len({request.id for request in requests}) == len(requests)
    assert all(request.subject in request.text for request in requests)


def test_probes_of_the_published_files(shared_data: Path) -> None:
    def requests(name: str, target: str = "default") -> list[ValidRecord]:
        return [r for r in open_dataset(shared_data / name, target=target) if isinstance(r, ValidRecord)]

    full = requests("counterfact/counterfact.json")
    assert {len(r.request.paraphrases) for r in full} == {2}
    assert all(p.answer == r.request.target_true for r in full for p in r.request.neighborhood)
    one_hop = requests("zsre_mend/zsre_mend_eval_portability_gpt4.json")
    assert sum(len(r.request.portability) for r in one_hop) == 0  # written for `alt`, not for the default target
    kinds = Counter(p.kind for r in requests("knowedit_wiki_counterfact/test_cf.json") for p in r.request.portability)
    assert kinds == {"subject_aliasing": 1414, "reasoning": 1275, "logical_generalization": 272}
    coverage = requests("conflictedit/coverage_edit.json")
    assert all(a.request.fact_key == b.request.fact_key for a, b in zip(coverage[::2], coverage[1::2], strict=True))


def test_reasons_name_the_subject_that_is_missing(shared_data: Path) -> None:
    bad = [r for r in open_dataset(shared_data / "knowedit_zsre/ZsRE-test-all.json") if isinstance(r, BadRecord)]
    assert [r.position.rsplit("#")[1] for r in bad] == ["228", "351"]
    assert all("contains neither the slot '{}' nor the subject" in r.reason for r in bad)
