"""One request that cannot be written costs nobody else anything: too long, unknown tokens, or an error of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from errata.editing.covariance import KeyCovariance
from errata.editing.editors import make_editor
from errata.editing.editors.closed_form.memit import MemitConfig
from errata.editing.errors import EditorFaultError, UserError
from errata.editing.limits import check_request
from errata.editing.model.adapter import EditableModel
from errata.editing.model.capacity import Capacity
from errata.editing.model.decoder import FAMILIES
from errata.editing.model.engine import LanguageEngine
from errata.editing.request import EditBatch, EditRequest
from errata.editing.session import EditSession
from errata.editing.values import ValueConfig
from errata.evaluation.arms import ArmEvaluator

MEMIT = MemitConfig(layers=(0, 1), cov_weight=2.0, values=ValueConfig(lr=0.3, steps=2, clamp=2.0))
CONTEXTS = ("", "You. ")
Covariance = Callable[..., KeyCovariance]


def words(model: EditableModel, tokens: int, after: str = "") -> str:
    """Text that makes, behind another, exactly so many tokens."""
    text = after
    while len(model.text.encode_prompt(text)) < tokens:
        text += "?"  # the tokenizer knows no pair of these
    assert len(model.text.encode_prompt(text)) == tokens
    return text


@pytest.fixture
def session(tiny: Callable[[str], EditableModel], spread_covariance: Covariance) -> Callable[[str], EditSession]:
    def make(family: str) -> EditSession:
        model = tiny(family)
        return EditSession(model, make_editor(MEMIT), spread_covariance(model, MEMIT.layers), CONTEXTS)

    return make


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_one_token_more_than_the_model_has_positions(
    family: str, session: Callable[[str], EditSession], requests: list[EditRequest]
) -> None:
    own = session(family)
    model, positions = own.model, own.model.capacity.positions
    assert positions is not None
    full = words(model, positions + 1)
    long = [
        EditRequest(id="prompt", subject="Rome", prompt=full + " {} is", target_new="x"),
        EditRequest(id="target", subject="Rome", prompt="{} is", target_new=full),
        EditRequest(id="subject", subject=full, prompt="{} is", target_new="x"),
        EditRequest(id="context", subject="Rome", prompt=words(model, positions - 4) + " {}", target_new="yes"),
    ]
    receipt = own.apply(EditBatch(sequence=1, requests=(*long, *requests[:2])))
    refused = {result.request_id: result.reason for result in receipt.results if not result.applied}
    assert list(refused) == ["prompt", "target", "subject", "context"]
    assert all(f"{positions} positions" in str(reason) for reason in refused.values())
    assert receipt.request_ids == tuple(request.id for request in requests[:2])

    probed = requests[0].model_copy(update={"paraphrases": (full, "Where is it?")})
    with pytest.raises(
        UserError, match=rf"paraphrases\.0 and target_new: .* more than the model's {positions} positions"
    ):
        check_request(probed, model.text, model.capacity)
    evaluator = ArmEvaluator(model, max_new_tokens=2)
    found = evaluator.evaluate([probed], base=own.base, edited=own.weights(), arms=("base", "edited"))
    assert found.skipped == 1 and [p.probe.kind for p in found.records[0].probes] == ["edit", "paraphrase"]

    engine = LanguageEngine(model)
    with pytest.raises(UserError, match=f"{positions} positions"):
        engine.generate([model.text.encode_prompt(full), model.text.encode_prompt("Rome lies in")])
    # at the very end, beside a shorter one, an answer stops where the positions do
    last = engine.generate(
        [model.text.encode_prompt(words(model, positions)), model.text.encode_prompt("Rome lies in")],
        max_new_tokens=4,
        stop_at_newline=False,
    )
    assert len(last[0].ids) <= 1 < len(last[1].ids)


def test_a_token_without_an_embedding_is_named(session: Callable[[str], EditSession], tiny: Any) -> None:
    own = session("llama")
    own.model.text.tokenizer.add_tokens(["Quux"])
    strange = EditRequest(id="strange", subject="Rome", prompt="{} likes", target_new="Quux")
    plain = EditRequest(id="plain", subject="Rome", prompt="{} lies in", target_new="Canada")
    receipt = own.apply(EditBatch(sequence=1, requests=(strange, plain)))
    assert receipt.request_ids == ("plain",)
    assert "token 'Quux' has number" in str(receipt.results[0].reason)
    with pytest.raises(UserError, match="Quux"):
        own.model.rows([own.model.text.encode_prompt("Quux")])


def test_padding_is_a_token_that_the_model_has(llama: EditableModel) -> None:
    llama.text.pad_id = 10_000
    llama.text.use_embeddings(400)
    assert llama.text.pad_id in llama.text.eos_ids
    assert llama.rows([[1, 2, 3], [4]]).ids.max() < 400


def test_capacity_counts_what_stands_beside() -> None:
    capacity = Capacity(4, None)
    assert capacity.problem(None, [1, 2, 3, 4]) is None  # type: ignore[arg-type]
    assert "3 tokens and 2 beside them" in str(capacity.problem(None, [1, 2, 3], reserved=2))  # type: ignore[arg-type]
    assert Capacity(None, None).problem(None, [1] * 10_000) is None  # type: ignore[arg-type]


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Callable[[EditSession, Sequence[str]], None]:
    """The editor raises as soon as it is given any of some requests, or any at all."""

    def poison(own: EditSession, names: Sequence[str] | None) -> None:
        compute = type(own.editor).compute

        def raising(self: Any, model: Any, requests: Sequence[EditRequest], *rest: Any) -> Any:
            if names is None or {request.id for request in requests} & set(names):
                raise ZeroDivisionError("a corner of the method")
            return compute(self, model, requests, *rest)

        monkeypatch.setattr(type(own.editor), "compute", raising)

    return poison


def test_an_error_of_one_request_is_that_requests(
    session: Callable[[str], EditSession], requests: list[EditRequest], poisoned: Any
) -> None:
    own, plain = session("llama"), requests
    poisoned(own, [plain[1].id, plain[4].id])
    receipt = own.apply(EditBatch(sequence=1, requests=tuple(plain)))
    assert receipt.request_ids == (plain[0].id, plain[2].id, plain[3].id)
    reasons = [result.reason for result in receipt.results]
    assert reasons == [None, "ZeroDivisionError: a corner of the method", None, None, reasons[1]]
    alone = session("llama").apply(EditBatch(sequence=1, requests=tuple(plain[i] for i in (0, 2, 3))))
    assert receipt.delta is not None and alone.delta is not None
    assert receipt.delta.digest == alone.delta.digest, "the others are written as if it had not been there"


def test_an_error_of_the_editor_is_nobodys(
    session: Callable[[str], EditSession], requests: list[EditRequest], poisoned: Any
) -> None:
    own = session("llama")
    poisoned(own, None)
    for batch in (requests[:1], requests):
        with pytest.raises(EditorFaultError, match="fails on every edit, a plain one too: ZeroDivisionError: a corner"):
            own.apply(EditBatch(sequence=1, requests=tuple(batch)))
    assert own.sequence == 0


def test_a_rehearsal_changes_nothing(session: Callable[[str], EditSession], requests: list[EditRequest]) -> None:
    own = session("llama")
    before, state = own.weights(), own.state
    own.rehearse(requests)
    assert own.sequence == 0 and own.state is state
    assert all(bool((own.model.weight(layer) == weight).all()) for layer, weight in before.items())
