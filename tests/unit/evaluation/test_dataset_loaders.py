"""Each schema on a small record written in its published layout, and on fuzzed ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from errata.editing.request import EditRequest
from errata.evaluation.datasets import DATASETS, BadRecord, ValidRecord, open_dataset
from errata.evaluation.datasets.extraction import parse_triples
from errata.evaluation.datasets.record import build

COUNTERFACT = {
    "case_id": 7,
    "pararel_idx": 1,
    "requested_rewrite": {
        "prompt": "{} plays",
        "relation_id": "P1303",
        "target_new": {"str": "violin", "id": "Q1"},
        "target_true": {"str": "piano", "id": "Q2"},
        "subject": "Ann Example",
    },
    "paraphrase_prompts": ["Once. Ann Example performs on the", "Ann Example is good at"],
    "neighborhood_prompts": ["Bob Sample plays", "Cy Pattern plays"],
    "attribute_prompts": ["Di Model plays"],
    "generation_prompts": ["Ann Example is known for"],
}
FLAT = {
    "case_id": 4,
    "prompt": "What is the twin city of Lyon? It is",
    "target_new": "Manila",
    "subject": "Lyon",
    "ground_truth": "Beirut",
    "rephrase_prompt": "People in Lyon's twin city speak",
    "locality_prompt": "The twin city of Trieste is",
    "locality_ground_truth": "Beirut",
}
ZSRE = {
    "subject": "Bridge X",
    "src": "When was Bridge X built?",
    "pred": "1900",
    "rephrase": "In which year was Bridge X built?",
    "alt": "1950",
    "answers": ["1901", "in 1901"],
    "loc": "nq question: who sang the song",
    "loc_ans": "Nobody",
    "cond": "1900 >> 1950 || When was Bridge X built?",
}
WIKI = {
    "subject": "Ann Example",
    "prompt": "The name of the child of Ann Example is",
    "target_new": "Zed",
    "ground_truth": "Yon",
    "portability": {
        "Subject_Aliasing": [{"prompt": "The name of the child of Annie is", "ground_truth": [["Zed", "Z."]]}],
        "Reasoning": [{"prompt": "The empty one is", "ground_truth": [[]]}],
    },
    "locality": {"Relation_Specificity": [{"prompt": "The mother of Ann Example is", "ground_truth": [["Mo", "M."]]}]},
}
CONCEPT = {
    "label": "publisher",
    "prompt": "The definition of publisher is",
    "phrase_prompt": "When we refer to publisher, we are talking about",
    "target_new_desc": "very tall building",
    "instance_prompt": "Whether Famous Books belongs to category publisher?",
    "locality_prompt": "The definition of league is",
    "locality_answer": "a group of teams",
}
ELKEN = {
    "event_type": "death",
    "event": "Ann Example, the chair of Acme, died.",
    "fact": {
        "qas": [
            {
                "question": "Who chairs Acme?",
                "subject": {"id": "Q5", "name": "Acme Inc."},
                "alias": ["Acme"],
                "answer": {"id": "NA", "name": "unknown", "alias": []},
                "rel_id": "P488",
                "type": 0,
            },
            {
                "question": "Who was the previous chair of Acme?",
                "subject": {"id": "Q5", "ent2name": "Acme"},
                "answer": {"id": "Q6", "name": "Ann Example", "alias": ["A. Example"]},
                "rel_id": "previous-chairman",
                "type": 1,
            },
        ],
        "local_qas": [
            {
                "question": "Where is Acme?",
                "subject": {"id": "Q5", "name": "Acme"},
                "answer": {"id": "Q7", "name": "Town", "alias": []},
                "rel_id": "P131",
            }
        ],
    },
    "tendency": {"qas": [], "local_qas": []},
}
S2RKE = {
    "subjectID": 0,
    "class": "Movie",
    "subject": {
        "name": "Film X",
        "URL": "/resource/schema:Movie",
        "original_name": "<Film_X>",
        "description": "film",
    },
    "Star_Topology": [
        {
            "requested_rewrite": {
                "prompt": "{}, located in",
                "relation": "<isLocatedIn>",
                "target_true": "China",
                "target_new": "Peru",
            },
            "paraphrase_prompts": ["Film X is set in"],
            "neighborhood_prompts": ["Ping is a citizen of"],
        },
        {
            "requested_rewrite": {
                "prompt": "The director of {} is",
                "relation": "<directed>",
                "target_true": "Li",
                "target_new": "Bo",
            },
            "paraphrase_prompts": [],
            "neighborhood_prompts": [],
        },
    ],
}
LOCOMO = {
    "sample_id": "conv-1",
    "conversation": {"speaker_a": "Caro", "speaker_b": "Mel", "session_1_date_time": "1 May"},
    "qa": [
        {"question": "When did Mel paint?", "answer": 2022, "evidence": ["D1:2"], "category": 2},
        {"question": "Would Caro like tea?", "answer": "yes", "evidence": [], "category": 3},
        {"question": "What did Caro say to Mel?", "answer": "hello", "evidence": ["D1:3"], "category": 4},
        {"question": "What happened?", "answer": "rain", "evidence": ["D1:4"], "category": 1},
        {
            "question": "Where is Caro from?",
            "answer": "Sweden",
            "evidence": ["D1:5"],
            "category": 4,
            "fact": {"prompt": "Caro moved here from", "target": "Sweden"},
        },
        {"question": "Trap about Mel?", "adversarial_answer": "no", "evidence": [], "category": 5},
    ],
}
MQUAKE = {
    "case_id": 9,
    "requested_rewrite": [
        {
            "prompt": "{} was performed by",
            "relation_id": "P175",
            "target_new": {"str": "Bo", "id": "Q1"},
            "target_true": {"str": "Li", "id": "Q2"},
            "subject": "Song X",
            "question": "Who performed Song X?",
        },
        {
            "prompt": "{} is a citizen of",
            "relation_id": "P27",
            "target_new": {"str": "Peru", "id": "Q3"},
            "target_true": {"str": "China", "id": "Q4"},
            "subject": "Bo",
            "question": "What is the citizenship of Bo?",
        },
    ],
    "questions": ["Which country is the performer of Song X from?", "From where is Song X's performer?"],
    "answer": "China",
    "answer_alias": [],
    "new_answer": "Peru",
    "new_answer_alias": ["Republic of Peru"],
}
_FATHER = {
    "id": "P22",
    "prompt": "The father of {} is",
    "query": "Who is the father of {}?",
    "label": "father",
}
CONFLICT = {
    "triples": [],
    "prerequisites": [],
    "type": "coverage",
    "edits": [
        {
            "relation": _FATHER,
            "subject": {"id": "Q1", "label": "Tom"},
            "object": {"id": "Q2", "label": "Al"},
            "new_object": {"id": "Q3", "label": "Bo"},
        },
        {
            "relation": _FATHER,
            "subject": {"id": "Q1", "label": "Tom"},
            "object": {"id": "Q3", "label": "Bo"},
            "new_object": {"id": "Q4", "label": "Cy"},
        },
    ],
}
SAMPLES: dict[str, dict[str, Any]] = {
    "counterfact": COUNTERFACT,
    "counterfact_easyedit": FLAT,
    "zsre": ZSRE,
    "knowedit_zsre": {**WIKI, "rephrase_prompt": "Who is Ann Example's child?", "ground_truth": ["Yon"]},
    "knowedit_wiki_counterfact": WIKI,
    "knowedit_wiki_recent": {key: value for key, value in WIKI.items() if key != "ground_truth"},
    "knowedit_wikibio": {
        "text": "About Ann. Ann Example was born.",
        "labels": "She wrote.",
        "concept": "Ann Example",
        "locality": {"Relation_Specificity": [{"prompt": "The languages of Ann are", "ground_truth": ["English"]}]},
    },
    "conceptedit_intra": CONCEPT,
    "elken": ELKEN,
    "s2rke": S2RKE,
    "locomo": LOCOMO,
    "mquake": MQUAKE,
    "conflictedit": CONFLICT,
    "own": {"subject": "Ann", "prompt": "{} is", "target_new": "here"},
}


def requests_of(name: str, raw: dict[str, Any], target: str = "default") -> list[EditRequest]:
    loader = DATASETS[name]
    found = list(build(loader, raw, loader.target(target), "here"))
    assert all(isinstance(record, ValidRecord) for record in found), found
    return [record.request for record in found if isinstance(record, ValidRecord)]


@pytest.mark.parametrize("name", SAMPLES)
def test_the_schema_is_told_from_the_fields(name: str, tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    path.write_text(json.dumps([SAMPLES[name]]))
    by_name, by_fields = list(open_dataset(path, name)), list(open_dataset(path))
    assert by_fields == by_name
    assert any(isinstance(record, ValidRecord) for record in by_name)


def test_counterfact() -> None:
    (request,) = requests_of("counterfact", COUNTERFACT)
    assert (request.id, request.subject, request.prompt) == ("cf-7", "Ann Example", "{} plays")
    assert (request.target_new, request.target_true, request.relation) == ("violin", "piano", "P1303")
    assert request.paraphrases == ("Once. Ann Example performs on the", "Ann Example is good at")
    assert [(p.prompt, p.answer) for p in request.neighborhood] == [
        ("Bob Sample plays", "piano"),
        ("Cy Pattern plays", "piano"),
    ]
    assert request.portability == ()


def test_counterfact_with_the_fields_of_the_portability_files() -> None:
    raw = COUNTERFACT | {
        "portability": {
            "Recalled Relation": "(violin, of, wood)",
            "New Question": "Of what is it?",
            "New Answer": "wood",
        },
        "alternative_subject": "Annie",
        "distracting_neighborhood_prompts": ["Ann Example plays violin. Bob Sample plays"],
    }
    (request,) = requests_of("counterfact", raw)
    assert [(p.prompt, p.answers, p.kind) for p in request.portability] == [
        ("Of what is it?", ("wood",), "one_hop"),
        ("Annie plays", ("violin",), "subject_alias"),
    ]
    (distracting,) = requests_of("counterfact_distracting", raw)
    assert [p.prompt for p in distracting.neighborhood] == ["Ann Example plays violin. Bob Sample plays"]


def test_flat_counterfact_turns_the_prompt_into_a_template() -> None:
    (request,) = requests_of("counterfact_easyedit", FLAT)
    assert request.prompt == "What is the twin city of {}? It is"
    assert request.text == FLAT["prompt"]
    assert (request.target_true, request.paraphrases) == ("Beirut", ("People in Lyon's twin city speak",))
    assert request.neighborhood[0].answer == "Beirut"


def test_zsre_target_settings() -> None:
    (rome,) = requests_of("zsre", ZSRE)
    (easyedit,) = requests_of("zsre", ZSRE, "alt")
    assert (rome.target_new, rome.target_true) == ("1901", None)
    assert (easyedit.target_new, easyedit.target_true) == ("1950", "1901")
    assert rome.id != easyedit.id
    assert rome.neighborhood[0].prompt == "nq question: who sang the song?"
    assert rome.prompt == "When was {} built?"


def test_zsre_probes_written_for_alt_are_asked_only_there() -> None:
    raw = ZSRE | {
        "portability": {"Recalled Relation": "()", "New Question": "Where is it?", "New Answer": "Town"},
        "inverse question": "What was built in 1950?",
        "alter_subject_question": "When was The X built?",
    }
    (rome,) = requests_of("zsre", raw)
    (easyedit,) = requests_of("zsre", raw, "alt")
    assert [(p.kind, p.answers) for p in rome.portability] == [("subject_alias", ("1901",))]
    assert [(p.kind, p.answers) for p in easyedit.portability] == [
        ("one_hop", ("Town",)),
        ("inverse", ("Bridge X",)),
        ("subject_alias", ("1950",)),
    ]


def test_zsre_without_the_wanted_target_is_reported() -> None:
    (bad,) = build(DATASETS["zsre"], ZSRE | {"alt": ""}, "alt", "f#1")
    assert bad == BadRecord("f#1", "field 'alt' is empty and the target setting is 'alt'")


def test_knowedit_answers_of_every_type() -> None:
    (request,) = requests_of("knowedit_wiki_counterfact", WIKI)
    # the probe with an empty answer list is left out
    assert [(p.kind, p.answers) for p in request.portability] == [("subject_aliasing", ("Zed", "Z."))]
    assert [(p.prompt, p.answer) for p in request.neighborhood] == [("The mother of Ann Example is", "Mo")]
    assert request.target_true == "Yon"
    (recent,) = requests_of("knowedit_wiki_recent", SAMPLES["knowedit_wiki_recent"])
    assert recent.target_true is None
    (zsre,) = requests_of("knowedit_zsre", SAMPLES["knowedit_zsre"])
    assert (zsre.paraphrases, zsre.target_true) == (("Who is Ann Example's child?",), "Yon")
    (plain,) = requests_of(
        "knowedit_wiki_counterfact",
        WIKI | {"portability": {}, "locality": {"Forgetfulness": [{"prompt": "P", "ground_truth": "text"}]}},
    )
    assert (plain.portability, plain.neighborhood[0].answer) == ((), "text")


def test_conceptedit_modules() -> None:
    (intra,) = requests_of("conceptedit_intra", CONCEPT)
    (inter,) = requests_of("conceptedit_inter", CONCEPT)
    assert intra.prompt == "The definition of {} is"
    assert (intra.target_new, intra.neighborhood[0].answer) == ("very tall building", "a group of teams")
    assert intra.id.startswith("concept-intra-") and inter.id.startswith("concept-inter-")


def test_elken_settings() -> None:
    (known,) = requests_of("elken", ELKEN)
    assert (known.subject, known.target_new, known.relation) == ("Acme", "Ann Example", "previous-chairman")
    assert known.statement == ELKEN["event"]
    assert known.neighborhood[0].answer == "Town"
    both = requests_of("elken", ELKEN, "all")
    assert [request.target_new for request in both] == ["unknown", "Ann Example"]
    (bad,) = build(DATASETS["elken"], ELKEN | {"fact": {"qas": []}}, "known", "f#1")
    assert isinstance(bad, BadRecord) and "no factual question" in bad.reason


def test_elken_with_given_triples() -> None:
    triples = [
        {"subject": "Ann Example", "prompt": "Ann Example is", "target": "dead"},
        {"subject": "Acme", "prompt": "Acme mourns for", "target": "Ann Example"},
    ]
    first, last = requests_of("elken", ELKEN | {"triples": triples})
    assert (first.text, first.target_new, first.portability) == ("Ann Example is", "dead", ())
    assert [(p.prompt, p.answers) for p in last.portability] == [
        ("Who was the previous chair of Acme?", ("Ann Example", "A. Example"))
    ]


def test_s2rke_takes_the_subject_from_the_record() -> None:
    first, second = requests_of("s2rke", S2RKE)
    assert {first.subject, second.subject} == {"Film X"}
    assert (first.target_new, first.target_true, second.target_new) == ("Peru", "China", "Bo")
    assert (first.text, first.neighborhood[0].answer) == ("Film X, located in", "China")
    assert first.id != second.id


def test_locomo_categories_subjects_and_given_facts() -> None:
    found = list(build(DATASETS["locomo"], LOCOMO, "answer", "f#1"))
    assert [type(record) for record in found] == [ValidRecord, ValidRecord, BadRecord, ValidRecord]
    requests = [record.request for record in found if isinstance(record, ValidRecord)]
    assert [(r.subject, r.target_new) for r in requests] == [
        ("Mel", "2022"),
        ("Caro", "hello"),
        ("Caro", "Sweden"),
    ]
    assert requests[2].text == "Caro moved here from"
    assert [(p.prompt, p.kind) for p in requests[2].portability] == [("Where is Caro from?", "single_hop")]
    assert requests[0].provenance is not None and requests[0].provenance.source == "conv-1 temporal D1:2"


def test_mquake_asks_the_hops_with_the_last_edit() -> None:
    first, second = requests_of("mquake", MQUAKE)
    assert (first.id, second.id) == ("mquake-9-0", "mquake-9-1")
    assert first.portability == ()
    assert [p.answers for p in second.portability] == [("Peru", "Republic of Peru")] * 2
    assert second.paraphrases == ("What is the citizenship of Bo?",)


def test_conflictedit_keeps_the_order_and_names_one_fact() -> None:
    first, second = requests_of("conflictedit", CONFLICT)
    assert (first.target_new, second.target_new, second.target_true) == ("Bo", "Cy", "Bo")
    assert first.fact_key == second.fact_key
    assert first.paraphrases == ("Who is the father of Tom?",)


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("name", DATASETS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_no_record_can_crash_a_loader(name: str, data: st.DataObject) -> None:
    """Any field replaced, anywhere: the result is still records, good or bad."""
    raw = json.loads(json.dumps(SAMPLES.get(name, COUNTERFACT if "counterfact" in name else CONCEPT)))
    place: Any = raw
    for _ in range(data.draw(st.integers(0, 4))):
        if isinstance(place, dict) and place:
            key = data.draw(st.sampled_from(sorted(place)))
        elif isinstance(place, list) and place:
            key = data.draw(st.integers(0, len(place) - 1))
        else:
            break
        if not isinstance(place[key], dict | list) or data.draw(st.booleans()):
            place[key] = data.draw(_values)
            break
        place = place[key]
    loader = DATASETS[name]
    found = list(build(loader, raw, loader.target("default"), "here"))
    assert found and all(isinstance(record, ValidRecord | BadRecord) for record in found)


def test_parse_triples_takes_what_is_one() -> None:
    good = {"subject": "Ann", "prompt": "Ann is", "target": "dead"}
    reply = f"Sure!\n```json\n{json.dumps([good, {'subject': 'Bo', 'prompt': 'She is', 'target': 'x'}, 3])}\n```"
    assert parse_triples(reply) == [good]
    assert parse_triples("no facts") == parse_triples("[broken") == parse_triples("[1, {]") == []
