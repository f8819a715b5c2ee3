"""Text to tokens and back, with the conventions of editing: continuations, subjects, chat prompts."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import regex

from errata.editing.errors import UserError
from errata.editing.scripts import space_before
from errata.editing.texts import split_slot

_ANCHOR = "a"
_PLACES = range(0xF0000, 0xFFFFE)
"""Private characters, which stand for control tokens that are text while a template is filled."""


class TextCodec:
    """A tokenizer with the three questions editing asks of it: prompt, continuation, subject position."""

    def __init__(self, tokenizer: Any) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise UserError(
                f"tokenizer {type(tokenizer).__name__} is not a fast one; editing needs character offsets "
                "(a tokenizer.json beside the model)"
            )
        self.tokenizer = tokenizer
        self._one_at_a_time = threading.Lock()
        # Models differ in whether text starts with BOS; what the tokenizer does by itself is what the model saw.
        self._anchor = self._encode(_ANCHOR)
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
        added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special and str(token)]
        self._controls = regex.compile(r"\L<controls>", controls=added) if added else None
        self.has_chat_template: bool = getattr(tokenizer, "chat_template", None) is not None

    def _leading_specials(self) -> list[int]:
        plain = self._anchor
        full: list[int] = list(self.tokenizer(_ANCHOR)["input_ids"])
        return full[: full.index(plain[0])] if plain and plain[0] in full else []

    def _encode(self, text: str) -> list[int]:
        """Tokens of a text; the names of control tokens in it are text like any other."""
        return list(self._read(text, as_text=True).ids)

    def _read(self, text: str, *, as_text: bool) -> Any:
        """What the tokenizer itself makes of a text, ids and offsets, without its template.

        The library's own call does the same at ten times the price, which every edit that is accepted would pay some
        five times. Whether control tokens are text is a switch of the one tokenizer that all threads share: turned
        by one thread between another's turn and its reading, what a user wrote would be read as control tokens.
        """
        backend = self.tokenizer.backend_tokenizer
        with self._one_at_a_time:
            if backend.encode_special_tokens != as_text:
                backend.encode_special_tokens = as_text
            if backend.truncation is not None:
                backend.no_truncation()
            if backend.padding is not None:
                backend.no_padding()
            return backend.encode(text, add_special_tokens=False)

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Where each token of a text begins and ends in it, in characters; without BOS."""
        return list(self._read(text, as_text=True).offsets)

    def use_embeddings(self, rows: int) -> None:
        """Pad with a token that a model of so many embeddings has; what pads is masked, so any one will do."""
        if not 0 <= self.pad_id < rows:
            self.pad_id = next((i for i in sorted(self.eos_ids) if 0 <= i < rows), 0)

    def name_of(self, token: int) -> str:
        """A token as the tokenizer writes it."""
        return str(self.tokenizer.convert_ids_to_tokens(token))

    def encode_prompt(self, text: str) -> list[int]:
        """Tokens of a text from its beginning, with BOS if the tokenizer puts one there."""
        return self.bos + self._encode(text)

    def encode_marked(self, text: str) -> list[int]:
        """Tokens of a text in which the names of control tokens stand for them, as in a filled chat template."""
        return list(self._read(text, as_text=False).ids)

    def encode_target(self, text: str) -> list[int]:
        """Tokens of ``text`` as the continuation of a prompt, never BOS: after a space, or where its script has none,
        right after what stands before it.

        Raises:
            UserError: nothing is left of the text after tokenization.
        """
        text = text.strip()
        return self._continuation(space_before(text) + text)

    def encode_value(self, text: str) -> list[int]:
        """Tokens of ``text`` as what stands behind a colon and a space (``Subject: 法国``), in every script.

        Raises:
            UserError: nothing is left of the text after tokenization.
        """
        return self._continuation(" " + text.strip())

    def _continuation(self, begun: str) -> list[int]:
        anchor, whole = self._anchor, self._encode(_ANCHOR + begun)
        ids = whole[len(anchor) :] if whole[: len(anchor)] == anchor else self._encode(begun)
        if not ids:
            raise UserError(f"target {begun.strip()!r} has no tokens; it must be text the tokenizer knows")
        return ids

    def encode_with_subject(self, prefix: str, template: str, subject: str) -> tuple[list[int], int]:
        """Tokens of ``prefix + template`` with the subject in the slot, and the index of the subject's last token.

        The last token is the one that covers the subject's last character, found by character offsets:
        counting tokens of the pieces goes wrong where a merge crosses the border.
        """
        before, after = split_slot(template)
        end = len(prefix) + len(before) + len(subject)
        encoded = self._read(prefix + before + subject + after, as_text=True)
        offsets: list[tuple[int, int]] = encoded.offsets
        last = max((i for i, (start, stop) in enumerate(offsets) if start < end <= stop), default=-1)
        if last < 0:  # byte-level pieces of one character share an offset; take the last token that starts inside
            last = max(i for i, (start, _) in enumerate(offsets) if start < end)
        return self.bos + list(encoded.ids), len(self.bos) + last

    def encode_for_edit(self, prefix: str, template: str, subject: str) -> tuple[list[int], int]:
        """Tokens of ``prefix + template`` with the subject in the slot, and the index of the token an edit is made at.

        That is the subject's last token (MEMIT, arXiv:2210.07229, Sec. 4), but never the first token of a text. In a
        model that is given no BOS, attention rests on the first token, whatever it is: its state there is of a kind of
        its own, alike for all words ("The Fall of ROME", arXiv:2406.11263), so that an edit made there reaches none
        of its target and every other text. The token after it is the first that knows such a subject.
        """
        tokens, last = self.encode_with_subject(prefix, template, subject)
        return tokens, 1 if last == 0 and len(tokens) > 1 else last

    def encode_chat(self, messages: list[dict[str, str]], *, reply: bool = True) -> list[int]:
        """Tokens of a conversation in the model's chat template, ending where the assistant begins.

        Args:
            reply: false for a conversation that is over: nobody is to speak next.

        Raises:
            UserError: the tokenizer has no chat template.
        """
        if not self.has_chat_template:
            raise UserError("the model's tokenizer has no chat template; choose a plain-text answer style")
        told, meant = self._hidden(messages)
        text: str = self.tokenizer.apply_chat_template(told, tokenize=False, add_generation_prompt=reply)
        return self.encode_marked(text) if not meant else self._encode_template(text, meant)

    def _hidden(self, messages: list[dict[str, str]]) -> tuple[list[dict[str, str]], dict[str, str]]:
        """The messages with a private character for every control token that somebody wrote, and what each stands for.

        Only these need care: a filled template is read as a whole everywhere else.
        """
        if self._controls is None or not any(self._controls.search(m["content"]) for m in messages):
            return messages, {}
        written = {chr(code) for m in messages for code in map(ord, m["content"])}
        free = (chr(code) for code in _PLACES if chr(code) not in written)
        meant: dict[str, str] = {}

        def hide(match: Any) -> str:
            place = next(free)
            meant[place] = match.group()
            return place

        return [{**m, "content": self._controls.sub(hide, m["content"])} for m in messages], meant

    def _encode_template(self, text: str, meant: dict[str, str]) -> list[int]:
        """Tokens of a filled template: its own control tokens are control tokens, those of the messages are text."""
        assert self._controls is not None
        ids: list[int] = []
        at = 0
        for match in [*self._controls.finditer(text), None]:
            piece = text[at : match.start()] if match is not None else text[at:]
            for place, token in meant.items():
                piece = piece.replace(place, token)
            ids += self._encode(piece) if piece else []
            if match is not None:
                ids.append(int(self.tokenizer.convert_tokens_to_ids(match.group())))
                at = match.end()
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the tokens, special tokens left out."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text
