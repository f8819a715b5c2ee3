"""Attention segment by segment over tokens laid end to end: where each token and each of its heads goes.

A row of a layout holds several segments that do not see each other. Products take its tokens as they come, without
padding; attention takes a table with a segment to a row, so that no score is computed that a mask would throw away.

Letters: B rows, S tokens of a row that run, P past tokens of a row, N tokens that are not padding, C segments, E and F
the most new and past tokens of one, T = F + E, H query heads, K key heads, Q = H / K, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from errata.editing.model.decoder import Layout, attention_mask


class Segments:
    """Where every token stands among the segments: token n is number ``new_place[n]`` of segment ``new_segment[n]``.

    A segment's keys and values lie in a row of T places, its past in the first F of them, its new tokens behind.
    """

    def __init__(self, new: Layout, before: Layout, wanted: Tensor | None) -> None:
        numbers = 1 + max(int(layout.segments.max()) if layout.segments.numel() else -1 for layout in (new, before))
        self.tokens = (new.segments.flatten() >= 0).nonzero().squeeze(1)
        """Which of the B S tokens are not padding."""
        self.wanted = None if wanted is None else wanted.flatten()[self.tokens].nonzero().squeeze(1)
        """Which of the N tokens' output is read."""
        self.past_row, self.past_token = (before.segments >= 0).nonzero(as_tuple=True)
        codes = _codes(new, numbers).flatten()[self.tokens]
        known, self.new_segment = codes.unique(return_inverse=True)
        past_codes = _codes(before, numbers)[self.past_row, self.past_token]
        nearest = torch.searchsorted(known, past_codes).clamp_max(known.numel() - 1)
        seen = known[nearest] == past_codes  # a past of which nothing runs is of no use
        self.past_row, self.past_token = self.past_row[seen], self.past_token[seen]
        self.past_segment = nearest[seen]
        self.new_place, self.past_place = _places(self.new_segment), _places(self.past_segment)
        self.count, self.new = known.numel(), int(self.new_place.max()) + 1
        self.past = int(self.past_place.max()) + 1 if self.past_place.numel() else 0
        self.total = self.past + self.new
        self.positions = new.positions.flatten()[self.tokens][None]
        self._new = self._layout(self.positions[0], self.new_segment, self.new_place, self.new)
        past_positions = before.positions[self.past_row, self.past_token]
        self._past = self._layout(past_positions, self.past_segment, self.past_place, self.past)

    def _layout(self, positions: Tensor, segment: Tensor, place: Tensor, width: int) -> Layout:
        table = positions.new_zeros(self.count, width)
        segments = positions.new_full((self.count, width), -1)
        table[segment, place], segments[segment, place] = positions, segment
        return Layout(table, segments)

    def mask(self, dtype: torch.dtype, window: int | None) -> Tensor:
        """Additive mask (C, E, T). What is no token sees itself alone, so that nothing flows from it to any other."""
        mask = attention_mask(self._new, self._past.followed_by(self._new), dtype, window)[:, 0]
        segment, place = (self._new.segments < 0).nonzero(as_tuple=True)
        mask[segment, place, self.past + place] = 0.0
        return mask

    def buffer(self, past: Tensor) -> Tensor:
        """Keys or values of the past (B, K, P, D) in their places, zeros in the others, (C, K, T, D)."""
        buffer = past.new_zeros(self.count, past.shape[1], self.total, past.shape[3])
        buffer[self.past_segment, :, self.past_place] = past[self.past_row, :, self.past_token]
        return buffer


def _codes(layout: Layout, numbers: int) -> Tensor:
    """One number for each segment of each row, (B, T)."""
    rows = torch.arange(layout.segments.shape[0], device=layout.segments.device)
    return rows[:, None] * numbers + layout.segments


def _places(segment: Tensor) -> Tensor:
    """For every token the number of tokens of its segment before it."""
    order = segment.argsort(stable=True)
    ranked = segment[order]
    ranks = torch.arange(segment.numel(), device=segment.device) - torch.searchsorted(ranked, ranked)
    return torch.empty_like(ranks).index_copy_(0, order, ranks)


class HeadPlaces:
    """Where the heads of every token go and come from; each index is over rows of D numbers.

    A token's heads lie side by side, those of its query, its key and its value, N (H + 2 K) rows in all. Attention
    takes the tables (C, K, Q, E) of queries, (C, K, E) of keys and (C, K, E) of values, one behind the other; a place
    without a token has the first token's.
    """

    def __init__(self, at: Segments, heads: int, key_heads: int) -> None:
        device, groups, each = at.tokens.device, heads // key_heads, heads + 2 * key_heads
        segment, place = at.new_segment[:, None], at.new_place[:, None]
        head, key_head = torch.arange(heads, device=device), torch.arange(key_heads, device=device)
        token = torch.zeros(at.count, at.new, dtype=torch.long, device=device)
        token[at.new_segment, at.new_place] = torch.arange(at.tokens.numel(), device=device)
        self.heads, self.key_heads = heads, key_heads
        self.rows, self.per_row = at.count * key_heads, groups * at.new
        self.queries = (token[:, None] * heads + head[:, None]).flatten()
        """Of the table of queries in (N, H)."""
        of_query = token[:, None] * each + head[:, None]
        of_key = token[:, None] * each + heads + key_head[:, None]
        self.into_tables = torch.cat([index.flatten() for index in (of_query, of_key, of_key + key_heads)])
        """Of the tables in the tokens' heads."""
        self.query_rows, self.key_rows = of_query.numel(), of_key.numel()
        own = (segment * heads + head) * at.new + place
        key = (segment * key_heads + key_head) * at.new + place + self.query_rows
        self.from_tables = torch.cat([own, key, key + self.key_rows], dim=1).flatten()
        """Of the tokens' heads in the tables."""
        self.own = own.flatten()
        """Of the queries (N, H) in their table."""
        self.read = self.own if at.wanted is None else own[at.wanted].flatten()
        """The same of the tokens whose output is read."""
