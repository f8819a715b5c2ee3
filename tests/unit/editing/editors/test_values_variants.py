"""How methods depart from MEMIT's target values: shared deltas, templates, spheres, attention beside the MLP."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import pytest
import torch

from errata.editing.editors import make_editor
from errata.editing.editors.closed_form.rose import PROMPT, TEMPLATES, RoseConfig
from errata.editing.model.adapter import EditableModel
from errata.editing.request import EditRequest
from errata.editing.values import ValueConfig, Variant, optimize_values
from tests.unit.editing.editors.common import config_of
from tests.unit.helpers import plain

CONFIG = ValueConfig(lr=0.2, steps=5, clamp=0.8, weight_decay=0.1, stop_loss=0.0)
CONTEXTS = ("", "You. ")
Tiny = Callable[[str], EditableModel]


def about(subject: str, *relations: tuple[str, str]) -> list[EditRequest]:
    return [EditRequest(subject=subject, prompt=prompt, target_new=target) for prompt, target in relations]


@pytest.fixture
def rome() -> list[EditRequest]:
    return about("Rome", ("{} lies in", "Canada and more"), ("Is {} known because", "yes"), ("{} is a", "football"))


def shared(model: EditableModel, prompts: list[list[EditRequest]], *, unit: bool = False) -> tuple[torch.Tensor, float]:
    """One delta for several relations, each in several wordings: plain loops over whole sequences."""
    module = plain.block(model, 1)
    tokens = model.text.tokenizer
    runs = [[plain.subject_position(model, "", r.prompt, r.subject) for r in forms] for forms in prompts]
    kl_ids, kl_at = plain.subject_position(model, "", "{} is a", prompts[0][0].subject)
    h = plain.read(model, module, runs[0][0][0])[runs[0][0][1]]
    with torch.no_grad():
        base = plain.logits(model, kl_ids)[kl_at].log_softmax(dim=-1)
    delta = torch.zeros(h.shape[0], requires_grad=True)
    adam = torch.optim.Adam([delta], lr=CONFIG.lr)
    for step in range(CONFIG.steps):
        losses, gradients = [], []
        for forms, found in zip(prompts, runs, strict=True):
            loss = torch.zeros(())
            for request, (ids, at) in zip(forms, found, strict=True):
                target = list(tokens(" " + request.target_new, add_special_tokens=False)["input_ids"])
                with plain.added(module, at, delta):
                    scores = plain.logits(model, ids + target).log_softmax(dim=-1)
                nll = -sum(scores[len(ids) - 1 + i, t] for i, t in enumerate(target)) / len(target)
                loss = loss + nll / len(forms)
            with plain.added(module, kl_at, delta):
                now = plain.logits(model, kl_ids)[kl_at].log_softmax(dim=-1)
            loss = loss + CONFIG.kl_factor * (now.exp() * (now - base)).sum()
            if bool(delta.any()):
                loss = loss + CONFIG.weight_decay * delta.norm() / h.norm() ** 2
            losses.append(float(loss.detach()))
            gradients.append(torch.autograd.grad(loss, delta)[0])
        if step == CONFIG.steps - 1:
            break
        delta.grad = torch.stack([g / g.norm() if unit else g for g in gradients]).mean(dim=0)
        adam.step()
        with torch.no_grad():
            delta *= min(1.0, float(CONFIG.clamp * h.norm() / delta.norm()))  # type: ignore[operator]
    return delta.detach(), sum(losses) / len(losses)


@pytest.mark.parametrize("unit", [False, True])
def test_one_value_for_all_relations_of_a_subject(llama: EditableModel, rome: list[EditRequest], unit: bool) -> None:
    others = about("Angola", ("{} works as a", "writer"), ("What is {}?", "no"))
    mixed = [rome[0], others[0], rome[1], others[1], rome[2]]
    variant = Variant(groups=[[0, 2, 4], [1, 3]], unit_gradients=unit)
    got = optimize_values(llama, mixed, layer=1, contexts=("",), config=CONFIG, variant=variant)
    for requests, places in ((rome, (0, 2, 4)), (others, (1, 3))):
        delta, loss = shared(llama, [[r] for r in requests], unit=unit)
        for place in places:
            torch.testing.assert_close(got[place].delta, delta, rtol=0, atol=1e-4 * float(delta.norm()))
            assert got[place].loss == pytest.approx(loss, rel=1e-4)
            assert torch.equal(got[place].state, got[places[0]].state)


def test_groups_stop_and_are_dropped_on_their_own(llama: EditableModel, rome: list[EditRequest]) -> None:
    others = about("Angola", ("{} works as a", "writer"), ("What is {}?", "no"))
    settings = CONFIG.model_copy(update={"steps": 30, "clamp": None, "weight_decay": 0.0, "kl_factor": 0.0})
    probe = optimize_values(llama, others, layer=1, contexts=("",), config=settings, variant=Variant(groups=[[0, 1]]))
    settings = settings.model_copy(update={"stop_loss": 1.02 * probe[0].loss})
    requests, groups = [*others, *rome], [[0, 1], [2, 3, 4]]
    together = optimize_values(
        llama, requests, layer=1, contexts=("",), config=settings, variant=Variant(groups=groups)
    )
    steps = set()
    for group in groups:
        alone = optimize_values(
            llama, [requests[i] for i in group], layer=1, contexts=("",), config=settings,
            variant=Variant(groups=[list(range(len(group)))]),
        )  # fmt: skip
        first = together[group[0]]
        assert (first.steps, first.converged) == (alone[0].steps, alone[0].converged)
        torch.testing.assert_close(first.delta, alone[0].delta, rtol=0, atol=1e-3 * float(alone[0].delta.norm()))
        steps.add(first.steps)
    assert len(steps) == 2, "one of the two stopped before the other"


def test_small_batches_keep_groups_together(llama: EditableModel, rome: list[EditRequest]) -> None:
    requests = [*rome, *about("Angola", ("{} works as a", "writer"))]
    variant = Variant(groups=[[0, 1, 2], [3]])
    whole = optimize_values(llama, requests, layer=1, contexts=CONTEXTS, config=CONFIG, variant=variant)
    seen: list[int] = []
    small = CONFIG.model_copy(update={"batch_tokens": 1})
    split = optimize_values(
        llama, requests, layer=1, contexts=CONTEXTS, config=small, variant=variant, progress=seen.append
    )
    assert sorted(seen) == seen and seen[-1] == 4 and len(seen) == 2
    for a, b in zip(whole, split, strict=True):
        torch.testing.assert_close(a.delta, b.delta, rtol=0, atol=1e-4 * float(b.delta.norm()))


def test_templates_are_averaged_to_a_centroid_per_relation(llama: EditableModel, rome: list[EditRequest]) -> None:
    """Unequal template counts: the mean over relations of the means over templates, not the flat mean."""
    forms = [["{} lies in", "Rome! {} lies in"], ["Is {} known because"]]
    variant = Variant(groups=[[0, 1]], prompts=forms)
    (got, _) = optimize_values(llama, rome[:2], layer=1, contexts=("",), config=CONFIG, variant=variant)
    wordings = [[r.model_copy(update={"prompt": form}) for form in own] for r, own in zip(rome[:2], forms, strict=True)]
    tree, _ = shared(llama, wordings)
    flat, _ = shared(llama, [[wording] for own in wordings for wording in own])
    torch.testing.assert_close(got.delta, tree, rtol=0, atol=1e-4 * float(tree.norm()))
    assert float((flat - tree).norm()) > 1e-2 * float(tree.norm())


def test_with_equal_counts_hki_is_the_flat_mean(llama: EditableModel, rome: list[EditRequest]) -> None:
    editor = make_editor(config_of("rose", templates=TEMPLATES[:3]))
    variant = editor.variant(rome)  # type: ignore[attr-defined]
    tree = optimize_values(llama, rome, layer=1, contexts=("",), config=CONFIG, variant=variant)
    wordings = [[r.model_copy(update={"prompt": t.replace(PROMPT, r.prompt)})] for r in rome for t in TEMPLATES[:3]]
    flat, loss = shared(llama, wordings)
    torch.testing.assert_close(tree[0].delta, flat, rtol=0, atol=1e-4 * float(flat.norm()))
    assert tree[0].loss == pytest.approx(loss, rel=1e-4)


def test_rose_switches(rome: list[EditRequest]) -> None:
    editor = make_editor(RoseConfig(layers=(1,)))
    variant = editor.variant(rome)  # type: ignore[attr-defined]
    assert variant.groups == [[0, 1, 2]] and all(len(forms) == 8 for forms in variant.prompts)
    assert [forms[0] for forms in variant.prompts] == [r.prompt for r in rome]
    assert all(form.count("{}") == 1 for forms in variant.prompts for form in forms)
    assert not editor.needs_covariance and make_editor(RoseConfig(layers=(1,), iga=False)).needs_covariance
    without = make_editor(RoseConfig(layers=(1,), hki=False)).variant(rome)  # type: ignore[attr-defined]
    assert without.prompts is None and without.groups == [[0, 1, 2]]
    with pytest.raises(ValueError, match=r"each must contain '\{prompt\}' exactly once"):
        RoseConfig(layers=(1,), templates=("{prompt}", "no slot"))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_values_on_the_sphere_keep_the_output_length(tiny: Tiny, requests: list[EditRequest], family: str) -> None:
    model = tiny(family)
    bias = getattr(plain.edited_map(model, 1), "bias", None)
    got = optimize_values(
        model, requests[:3], layer=1, contexts=CONTEXTS, config=CONFIG, space="mlp", variant=Variant(sphere=True)
    )
    free = optimize_values(model, requests[:3], layer=1, contexts=CONTEXTS, config=CONFIG, space="mlp")
    for value, other in zip(got, free, strict=True):
        output = value.h if bias is None else value.h - bias
        assert float((output + value.delta).norm()) == pytest.approx(float(output.norm()), rel=1e-5)
        assert float(value.delta.norm()) > 0.1 * float(output.norm()), "it moves"
        target = other.delta + output
        assert abs(float(target.norm()) / float(output.norm()) - 1) > 1e-3, "without the sphere it would not"


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj", "gpt_neox", "olmo2"])
@pytest.mark.parametrize("hit_weight", [1.0, 0.1])
def test_attention_and_mlp_together(tiny: Tiny, requests: list[EditRequest], family: str, hit_weight: float) -> None:
    """PMET's loss at a given pair of deltas, by hooks on whole sequences."""
    model, request = tiny(family), requests[1]
    config = CONFIG.model_copy(update={"kl_factor": 1.0})
    variant = Variant(joint=True, hit_weight=hit_weight)
    (got,) = optimize_values(model, [request], layer=1, contexts=CONTEXTS, config=config, variant=variant)
    attention = plain.block(model, 1).get_submodule(
        {"gpt2": "attn", "gptj": "attn", "gpt_neox": "attention"}.get(family, "self_attn")
    )
    modules = (attention, plain.edited_map(model, 1))
    target = list(model.text.tokenizer(" " + request.target_new, add_special_tokens=False)["input_ids"])
    runs = [plain.subject_position(model, context, request.prompt, request.subject) for context in CONTEXTS]
    h = [plain.read(model, module, runs[0][0])[runs[0][1]] for module in modules]
    torch.testing.assert_close(got.h, torch.cat(h), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got.state, h[1] + got.delta.chunk(2)[1], rtol=1e-4, atol=1e-5)
    kl_ids, kl_at = plain.subject_position(model, "", "{} is a", request.subject)

    def run(ids: list[int], at: int) -> torch.Tensor:
        with torch.no_grad(), ExitStack() as stack:
            for module, delta in zip(modules, got.delta.chunk(2), strict=True):
                stack.enter_context(plain.added(module, at, delta))
            return plain.logits(model, ids).log_softmax(dim=-1)

    loss, hits = 0.0, []
    for ids, at in runs:
        scores = run(ids + target, at)
        loss -= sum(float(scores[len(ids) - 1 + i, t]) for i, t in enumerate(target)) / len(target) / len(runs)
        hits += [int(scores[len(ids) - 1 + i].argmax()) == t for i, t in enumerate(target)]
    loss *= hit_weight if all(hits) else 1.0
    with torch.no_grad():
        base = plain.logits(model, kl_ids)[kl_at].log_softmax(dim=-1)
    now = run(kl_ids, kl_at)[kl_at]
    loss += float((now.exp() * (now - base)).sum())
    for delta, own in zip(got.delta.chunk(2), h, strict=True):
        loss += config.weight_decay * float(delta.norm() / own.norm() ** 2)
        assert 0 < float(delta.norm()) <= 0.8 * float(own.norm()) * (1 + 1e-5), "each half has its own bound"
    assert got.loss == pytest.approx(loss, rel=1e-4)


def test_a_hit_weighs_less(llama: EditableModel, requests: list[EditRequest], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = CONFIG.model_copy(update={"steps": 1, "kl_factor": 0.0})
    ids, _ = plain.subject_position(llama, "", requests[0].prompt, requests[0].subject)
    with torch.no_grad():
        scores = plain.logits(llama, ids)[-1].log_softmax(dim=-1)
    likeliest, next_one = scores.topk(2).indices.tolist()
    for token, weight in ((likeliest, 0.1), (next_one, 1.0)):
        monkeypatch.setattr(llama.text, "encode_target", lambda _, token=token: [token])
        (value,) = optimize_values(
            llama, requests[:1], layer=1, contexts=("",), config=settings, variant=Variant(hit_weight=0.1)
        )
        assert value.loss == pytest.approx(-weight * float(scores[token]), rel=1e-4)
