"""Text to tokens and back, with the conventions of editing: continuations, subjects, chat prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from errata.editing.errors import UserError

_ANCHOR = "a"


class TextCodec:
    """A tokenizer with the three questions editing asks of it: prompt, continuation, subject position."""

    def __init__(self, tokenizer: Any) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise UserError(
                f"tokenizer {type(tokenizer).__name__} is not a fast one; editing needs character offsets "
                "(a tokenizer.json beside the model)"
            )
        self.tokenizer = tokenizer
        # Models differ in whether text starts with BOS; what the tokenizer does by itself is what the model saw.
        self.bos: list[int] = self._leading_specials()
        ids = {
            tokenizer.eos_token_id,
            *(tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|eot_id|>")),
        }
        unknown = tokenizer.unk_token_id
        self.eos_ids: frozenset[int] = frozenset(
            i for i in ids if i is not None and (i != unknown or i == tokenizer.eos_token_id)
        )
        self.pad_id: int = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
        self.has_chat_template: bool = getattr(tokenizer, "chat_template", None) is not None

    def _leading_specials(self) -> list[int]:
        plain = self._encode(_ANCHOR)
        full: list[int] = list(self.tokenizer(_ANCHOR)["input_ids"])
        return full[: full.index(plain[0])] if plain and plain[0] in full else []

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def encode_prompt(self, text: str) -> list[int]:
        """Tokens of a text from its beginning, with BOS if the tokenizer puts one there."""
        return self.bos + self._encode(text)

    def encode_target(self, text: str) -> list[int]:
        """Tokens of ``text`` as the continuation of a prompt: leading space where needed, never BOS.

        Raises:
            UserError: nothing is left of the text after tokenisation.
        """
        anchor, whole = self._encode(_ANCHOR), self._encode(f"{_ANCHOR} {text.strip()}")
        ids = whole[len(anchor) :] if whole[: len(anchor)] == anchor else self._encode(" " + text.strip())
        if not ids:
            raise UserError(f"target {text!r} has no tokens; it must be text the tokenizer knows")
        return ids

    def encode_with_subject(self, prefix: str, template: str, subject: str) -> tuple[list[int], int]:
        """Tokens of ``prefix + template`` with the subject in the slot, and the index of the subject's last token.

        The last token is the one that covers the subject's last character, found by character offsets:
        counting tokens of the pieces goes wrong where a merge crosses the border.
        """
        before, after = template.split("{}")
        end = len(prefix) + len(before) + len(subject)
        encoded = self.tokenizer(
            prefix + before + subject + after, add_special_tokens=False, return_offsets_mapping=True
        )
        offsets: list[tuple[int, int]] = encoded["offset_mapping"]
        last = max((i for i, (start, stop) in enumerate(offsets) if start < end <= stop), default=-1)
        if last < 0:  # byte-level pieces of one character share an offset; take the last token that starts inside
            last = max(i for i, (start, _) in enumerate(offsets) if start < end)
        return self.bos + list(encoded["input_ids"]), len(self.bos) + last

    def encode_chat(self, messages: list[dict[str, str]]) -> list[int]:
        """Tokens of a conversation in the model's chat template, ending where the assistant begins.

        Raises:
            UserError: the tokenizer has no chat template.
        """
        if not self.has_chat_template:
            raise UserError("the model's tokenizer has no chat template; choose a plain-text answer style")
        text: str = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return self._encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the tokens, special tokens left out."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text
