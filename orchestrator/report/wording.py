"""What the report calls things: the arms, the metrics and how each one was measured."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass


@dataclass(frozen=True)
class ArmLabel:
    """One of the ways to ask; `short` is the name where room is scarce, such as line ends."""

    key: str
    name: str
    short: str
    about: str


@dataclass(frozen=True)
class Metric:
    """One figure of an arm; `kind` is the probe kind it is measured on (None: on all of them)."""

    key: str
    name: str
    definition: str
    kind: str | None
    since: bool = False
    """Not in the summaries of older releases, and then left out."""


ARM_LABELS = (
    ArmLabel("routed", "Routed", "Routed", "in scope: edited weights with the statement; out of it: the base itself"),
    ArmLabel("base", "Base", "Base", "the model before any update"),
    ArmLabel("edited", "Edited", "Edited", "updates written into the weights"),
    ArmLabel("memory", "Memory", "Memory", "untouched weights, updates retrieved"),
    ArmLabel("edited_memory", "Edited + memory", "Both", "edited weights, updates retrieved"),
    ArmLabel("ike", "IKE", "IKE", "untouched weights, demonstrations and the nearest update before the question"),
    ArmLabel("ike_oracle", "IKE, oracle", "IKE*", "the same with the right update given"),
)
_ALWAYS = ("base", "edited", "memory", "edited_memory")


def shown(asked: Container[str]) -> tuple[ArmLabel, ...]:
    """The arms of a run, of which ``asked`` are the keys: those that came later, or are named, only where they were."""
    return tuple(arm for arm in ARM_LABELS if arm.key in _ALWAYS or arm.key in asked)


GENERATED = (
    Metric("reliability", "Reliability", "The updated question itself is answered with the new fact.", "edit"),
    Metric("generalization_gen", "Generalization", "So is the same question in other words.", "paraphrase"),
    Metric(
        "portability",
        "Portability",
        "A question whose answer follows from the new fact is answered rightly.",
        "portability",
    ),
    Metric(
        "locality",
        "Locality",
        "A question about a neighbor, not updated, is answered as the base answers it.",
        "neighborhood",
    ),
    Metric(
        "locality_true",
        "Locality, true",
        "A question about a neighbor is answered with what is true, whatever the base says.",
        "neighborhood",
        since=True,
    ),
)
TEACHER_FORCED = (
    Metric(
        "efficacy", "Efficacy", "Tokens of the new answer that are the first choice after the updated question.", "edit"
    ),
    Metric("generalization", "Generalization", "The same after the question in other words.", "paraphrase"),
    Metric(
        "specificity",
        "Specificity",
        "Tokens of a neighbor's original answer that are still the first choice.",
        "neighborhood",
    ),
    Metric(
        "specificity_exact",
        "Specificity, exact",
        "Neighbors' original answers of which every token is still the first choice.",
        "neighborhood",
        since=True,
    ),
    Metric(
        "locality_tf",
        "Locality, tokens",
        "Tokens of a neighbor's original answer where the first choice is the base's, right or wrong.",
        "neighborhood",
        since=True,
    ),
)

KINDS = {
    "edit": "Update",
    "paraphrase": "In other words",
    "portability": "One step further",
    "neighborhood": "Neighbor, must not change",
}
KIND_SHORT = {"edit": "update", "paraphrase": "reworded", "portability": "one step", "neighborhood": "neighbors"}

EDITORS = {
    "alphaedit": "AlphaEdit",
    "emmet": "EMMET",
    "ft_l": "FT-L",
    "memit": "MEMIT",
    "memit_merge": "MEMIT-Merge",
    "mose": "MOSE",
    "pmet": "PMET",
    "prune": "PRUNE",
    "rect": "RECT",
    "rome": "ROME",
    "rose": "ROSE",
    "ultraedit": "UltraEdit",
}

OUTCOMES = (
    ("", "All facts"),
    ("routed-wrong", "Routed arm wrong"),
    ("edited-wrong", "Edited arm wrong"),
    ("memory-wrong", "Memory arm wrong"),
    ("edited_memory-wrong", "Edited + memory wrong"),
    ("disagree", "The updated arms disagree"),
    ("side-effect", "A neighbor changed in the edited arm"),
)
