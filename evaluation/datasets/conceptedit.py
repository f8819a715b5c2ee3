"""ConceptEdit (Wang et al. 2024, arXiv:2403.06259): definitions of concepts, replaced within or across
modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from errata.evaluation.datasets.record import Draft, Loader, Raw, optional_text, raw_id, text_of, texts


def _convert(module: str) -> Callable[[Raw, str], Iterator[Draft]]:
    def convert(raw: Raw, target: str) -> Iterator[Draft]:
        """`label` is the concept, `prompt` asks for its definition, `target_new_desc` is the new definition.

        The files of the two modules (``final_MODEL_intra.json``, ``final_MODEL_inter.json``) have the same
        fields; they differ in where the new definition comes from, which only the file's name tells.
        `instance_prompt` has no answer of its own (the measure is *whether it changes*) and is not part of
        a request.
        """
        probe, answer = optional_text(raw, "locality_prompt"), optional_text(raw, "locality_answer")
        yield {
            "id": raw_id(f"concept-{module}", raw, target),
            "subject": text_of(raw, "label"),
            "prompt": text_of(raw, "prompt"),
            "target_new": text_of(raw, "target_new_desc"),
            "target_true": optional_text(raw, "target_true_desc") or optional_text(raw, "ground_truth"),
            "relation": "definition",
            "paraphrases": tuple(texts(raw.get("phrase_prompt", ()))),
            "neighborhood": ({"prompt": probe, "answer": answer},) if probe and answer else (),
        }

    return convert


CONCEPTEDIT_INTRA = Loader(
    "conceptedit_intra",
    detect=lambda raw: {"label", "target_new_desc"} <= raw.keys(),
    convert=_convert("intra"),
)
CONCEPTEDIT_INTER = Loader("conceptedit_inter", detect=lambda raw: False, convert=_convert("inter"))
"""Never chosen by itself: its fields are those of the intra file."""
