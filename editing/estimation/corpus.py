"""Key covariances from given text: documents packed to the window, one pass that ends at the last edited layer.

Long documents are cut into pieces of at most ``window`` tokens; short ones share a row, each seeing only itself, with
positions that start anew. So the keys are those of every piece run alone, without padding waste.

The first token of a piece stands where no other token is seen. Its key can be many times as large as the others' (eight
times the energy on SmolLM2) and is left out, as self-generation leaves out its seed's; so is a BOS.

Letters: B rows, T = tokens of a row, I = d_in.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from errata.editing.closed import Closed
from errata.editing.covariance import MomentAccumulator
from errata.editing.digest import digest_file, digest_json
from errata.editing.errors import DamagedFileError, UserError
from errata.editing.estimation.selfgen import UnitResult
from errata.editing.model.adapter import EditableModel
from errata.editing.model.decoder import Layout, layer_of
from errata.editing.model.flat import FlatPass, flat_pass
from errata.editing.model.text import TextCodec
from errata.editing.remote import here
from errata.editing.texts import open_text
from errata.editing.wording import counted as counted_of

HUB = "hub:"
_LOGIT_ROWS = 512
_BLOCK = 1024
"""Keys multiplied at once; with fewer, adding the products to the float64 sum costs as much as a third of them."""


Messages = list[dict[str, str]]
"""A conversation: ``role`` and ``content`` of each turn."""
Document = str | Messages


class CorpusReading(Closed):
    """How a text is read and run."""

    format: Literal["auto", "text", "jsonl", "parquet"] = "auto"
    """``auto`` goes by the name: ``.jsonl``/``.json`` (also ``.gz``), ``.parquet``, anything else is plain text."""
    fields: tuple[str, ...] = Field(("text",), min_length=1)
    """Fields of a record that hold its text; several are joined by a newline. Plain text has none. A single field may
    hold a conversation, as SFT and preference data do (``messages``, ``chosen``): it goes through the model's chat
    template, or is lines of ``role: content`` without one."""
    split: Literal["blank_line", "line", "file"] = "blank_line"
    """What ends a document of a plain text file."""
    window: int = Field(257, ge=2)
    """Tokens of a row and longest piece of a document; 257 scores 256 tokens, as many as a sampled sequence has."""
    articles: Literal["cut", "whole"] = "cut"
    """``cut``: a document longer than ``window`` makes several pieces. ``whole``: each document is one piece, cut off
    at ``window``: ROME's code reads whole articles so, up to the model's length."""
    documents_per_unit: int = Field(16, ge=1)
    """Documents of one unit of work."""
    batch_tokens: int = Field(2048, ge=1)
    """Tokens run at once: about two thousand suit a CPU's caches, ten times as many a GPU."""
    count_first: bool = False
    """Whether the key of a piece's first token counts; a BOS never does."""
    nll_documents: int = Field(0, ge=0)
    """Of this many documents the likelihood is taken too, with a pass through the whole model; 0 takes none."""


class CorpusConfig(CorpusReading):
    """A text to take keys from."""

    path: str
    """A file, a URL that fsspec opens (``s3://``, ``gs://``, ``https://``, ...), or ``hub:NAME[:SPLIT]`` for a data set
    of the Hugging Face hub (needs the package ``datasets``)."""

    @property
    def name(self) -> str:
        """The file without its directory, or the data set."""
        return self.path if self.path.startswith(HUB) else Path(self.path).name

    def identity(self) -> dict[str, Any]:
        """What decides the result besides the text itself; where the file lies does not."""
        told = {"name": self.name, **self.model_dump(mode="json", exclude={"path", "batch_tokens"})}
        # estimates of older releases know nothing of it
        return {key: value for key, value in told.items() if key != "articles" or value != "cut"}


@dataclass(frozen=True)
class CorpusSurvey:
    """What is known of a text before anything is run: a digest of its content and the number of documents."""

    digest: str
    documents: int


def survey(config: CorpusConfig) -> CorpusSurvey:
    """Read a text once: digest it and count its documents; the first one is checked for its fields.

    Raises:
        UserError: not there, not readable, without any document, or the first record lacks a field.
    """
    reader = CorpusReader(config)
    if not reader.take(0, 1):
        raise UserError(f"corpus {config.path!r} holds no document")
    return CorpusSurvey(corpus_digest(config), reader.count())


def corpus_digest(config: CorpusConfig) -> str:
    """Digest of the text: the file's bytes, or the data set's fingerprint."""
    if config.path.startswith(HUB):
        rows = _hub_rows(config.path)
        return digest_json({"hub": config.path, "fingerprint": getattr(rows, "_fingerprint", None), "rows": len(rows)})
    return digest_file(here(config.path, "corpus"))


class CorpusReader:
    """Hands out runs of documents by number; going forwards reads each record once, going back starts over."""

    def __init__(self, config: CorpusConfig) -> None:
        self._config = config
        self._text = _text_of(config)
        self._at = 0
        self._records = _records(config)

    def take(self, first: int, count: int) -> list[Document]:
        """Documents ``first`` to ``first + count - 1``; fewer at the end of the text.

        Raises:
            UserError: a record that is malformed or lacks a field; it is named.
        """
        if first < self._at:
            self._at, self._records = 0, _records(self._config)
        skipped = sum(1 for _ in islice(self._records, first - self._at))
        self._at += skipped
        raw = list(islice(self._records, count)) if self._at == first else []
        self._at += len(raw)
        return [self._text(record, first + place) for place, record in enumerate(raw)]

    def count(self) -> int:
        """Number of documents."""
        return sum(1 for _ in _records(self._config))


def check_digest(config: CorpusConfig, digest: str) -> None:
    """Raise DamagedFileError unless the text here is the one that the estimate was planned on."""
    actual = corpus_digest(config)
    if actual != digest:
        raise DamagedFileError(f"corpus {config.name!r} has digest {actual[:12]} here, want {digest[:12]}")


# ---------------------------------------------------------------- reading


def _kind(config: CorpusConfig) -> str:
    if config.path.startswith(HUB):
        return "hub"
    if config.format != "auto":
        return config.format
    suffixes = [s for s in Path(config.path).suffixes if s != ".gz"]
    last = suffixes[-1].lower() if suffixes else ""
    return {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet"}.get(last, "text")


def _records(config: CorpusConfig) -> Iterator[Any]:
    """Raw records in order, as cheap as they come: lines are not parsed until a document is wanted."""
    kind = _kind(config)
    if kind == "hub":
        return iter(_hub_rows(config.path))
    path = here(config.path, "corpus")
    if not path.is_file():
        raise UserError(f"corpus {config.path!r} does not exist or is not a file")
    if kind == "parquet":
        return _parquet(config, path)
    return _named_errors(config, _array_or_lines(path) if kind == "jsonl" else _plain(path, config.split))


def _named_errors(config: CorpusConfig, records: Iterator[Any]) -> Iterator[Any]:
    try:
        yield from records
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"corpus {config.path!r} cannot be read: {type(error).__name__}: {error}") from error


def _array_or_lines(path: Path) -> Iterator[Any]:
    with open_text(path) as file:
        if file.read(1) == "[":
            file.seek(0)
            try:
                yield from json.load(file)
            except json.JSONDecodeError as error:
                raise UserError(f"corpus {path.name}:{error.lineno}: malformed JSON: {error.msg}") from error
            return
        file.seek(0)
        yield from (line for line in file if line.strip())


def _plain(path: Path, split: str) -> Iterator[str]:
    with open_text(path) as file:
        if split == "file":
            text = file.read()
            yield from [text] if text.strip() else []
            return
        kept: list[str] = []
        for line in file:
            if line.strip() and split == "blank_line":
                kept.append(line)
                continue
            if kept:
                yield "".join(kept).strip()
                kept = []
            if line.strip():
                yield line.strip()
        if kept:
            yield "".join(kept).strip()


def _parquet(config: CorpusConfig, path: Path) -> Iterator[Any]:
    try:
        import pyarrow.parquet as parquet  # type: ignore[import-untyped,unused-ignore]
    except ImportError as error:
        raise UserError(f"corpus {config.path!r} needs the package 'pyarrow' (pip install pyarrow)") from error
    try:
        file = parquet.ParquetFile(path)
        names = [name for name in config.fields if name in file.schema_arrow.names]
        for batch in file.iter_batches(columns=names):
            yield from batch.to_pylist()
    except (OSError, ValueError) as error:  # the library's own errors derive from these
        raise UserError(f"corpus {config.path!r} is no readable Parquet file: {error}") from error


def _hub_rows(path: str) -> Any:
    name, _, split = path.removeprefix(HUB).partition(":")
    try:
        from datasets import load_dataset  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise UserError(f"corpus {path!r} needs the package 'datasets' (pip install datasets)") from error
    try:
        return load_dataset(name, split=split or "train")
    except Exception as error:  # the library's, requests' and fsspec's errors all mean the same to the user
        raise UserError(f"corpus {path!r} could not be loaded: {' '.join(str(error).split())}") from error


def plain_text(document: Document) -> str:
    """A document as text: a conversation's turns are lines."""
    if isinstance(document, str):
        return document
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in document)


def _messages(value: Any) -> Messages | None:
    """A conversation; None for anything else."""
    turns = value if isinstance(value, list) else None
    if not turns or not all(
        isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
        for turn in turns
    ):
        return None
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns]


def _text_of(config: CorpusConfig) -> Callable[[Any, int], Document]:
    """From a raw record and its number (from 0) to its text, or its conversation."""
    if _kind(config) == "text":
        return lambda record, _: str(record)

    def text(record: Any, number: int) -> Document:
        where = f"corpus {config.name!r}, record {number + 1}"
        if isinstance(record, str):
            try:
                record = json.loads(record)
            except json.JSONDecodeError as error:
                raise UserError(f"{where}: malformed JSON: {error.msg} (column {error.colno})") from error
        if not isinstance(record, dict):
            raise UserError(f"{where}: want an object with {', '.join(config.fields)}, got {type(record).__name__}")
        if len(config.fields) == 1 and (messages := _messages(record.get(config.fields[0]))) is not None:
            return messages
        for field in config.fields:
            if not isinstance(record.get(field), str):
                raise UserError(f"{where}: field {field!r} holds no text; the record has {', '.join(sorted(record))}")
        return "\n".join(record[field] for field in config.fields)

    return text


# ---------------------------------------------------------------- packing


@dataclass(frozen=True)
class Piece:
    """A run of tokens that sees only itself. Keys of its first ``skip`` tokens do not count; ``scored``: NLL wanted."""

    ids: tuple[int, ...]
    skip: int
    scored: bool = False


def _encoded(text: TextCodec, document: Document) -> list[int]:
    """Tokens of a document without BOS."""
    bos = list(text.bos)
    if isinstance(document, str) or not text.has_chat_template:
        return text.encode_prompt(plain_text(document))[len(bos) :]
    ids = text.encode_chat(document, reply=False)
    return ids[len(bos) :] if bos and ids[: len(bos)] == bos else ids


def cut(text: TextCodec, document: Document, window: int) -> list[list[int]]:
    """Tokens of a document in pieces of at most ``window``, each with the tokenizer's BOS, if any, in front.

    A rest of a single token, which has neither a counted key nor a prediction, is dropped where there is no BOS.
    """
    room = window - len(text.bos)
    ids = _encoded(text, document)
    pieces = ([*text.bos, *ids[at : at + room]] for at in range(0, len(ids), room))
    return [piece for piece in pieces if len(piece) > 1]


def pack(lengths: Sequence[int], window: int) -> list[list[int]]:
    """Indices of pieces row by row, fullest row first; a piece goes into the first row that has room, longest first."""
    rows: list[list[int]] = []
    fill: list[int] = []
    open_rows: list[int] = []
    shortest = min(lengths, default=0)
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        place = next((r for r in open_rows if fill[r] + lengths[index] <= window), len(rows))
        if place == len(rows):
            rows.append([])
            fill.append(0)
            open_rows.append(place)
        rows[place].append(index)
        fill[place] += lengths[index]
        if fill[place] + shortest > window:
            open_rows.remove(place)
    return [rows[r] for r in sorted(range(len(rows)), key=lambda r: (-fill[r], r))]


def _batches(rows: Sequence[Sequence[int]], lengths: Sequence[int], batch_tokens: int) -> Iterator[Sequence[list[int]]]:
    """Rows, fullest first, in runs of at most so many positions with their padding; at least one row each."""
    at = 0
    while at < len(rows):
        count = max(1, batch_tokens // sum(lengths[i] for i in rows[at]))
        yield [list(row) for row in rows[at : at + count]]
        at += count


@dataclass(frozen=True)
class _Packed:
    """A batch of rows: ids, layout, which keys count, which tokens are predicted and by whom (all (B, T))."""

    ids: Tensor
    layout: Layout
    counted: Tensor
    owner: Tensor


def _assemble(pieces: Sequence[Piece], rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> _Packed:
    width = max(sum(len(pieces[i].ids) for i in row) for row in rows)
    shape = (len(rows), width)
    ids, positions = torch.full(shape, pad, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    segments, owner = torch.full(shape, -1, dtype=torch.long), torch.full(shape, -1, dtype=torch.long)
    counted = torch.zeros(shape, dtype=torch.bool)
    for place, row in enumerate(rows):
        at = 0
        for segment, index in enumerate(row):
            piece = pieces[index]
            span = slice(at, at + len(piece.ids))
            ids[place, span] = torch.tensor(piece.ids)
            positions[place, span] = torch.arange(len(piece.ids))
            segments[place, span] = segment
            counted[place, at + piece.skip : span.stop] = True
            if piece.scored:
                owner[place, at + 1 : span.stop] = index
            at = span.stop
    return _Packed(
        ids.to(device), Layout(positions.to(device), segments.to(device)), counted.to(device), owner.to(device)
    )


@torch.no_grad()
def packed_pass(
    model: EditableModel, pieces: Sequence[Piece], layers: Sequence[int], *, window: int, batch_tokens: int = 2048
) -> tuple[dict[int, Tensor], int, tuple[tuple[float, int], ...]]:
    """Keys of all pieces in one pass: end to end where the family has such a pass, over packed rows elsewhere.

    Returns:
        Sums of k k^T by layer, float64 (I, I) on the CPU; the number of keys; (NLL in nats, predicted tokens) of each
        scored piece, in order.

    Raises:
        UserError: the window is longer than the model's positions reach.
    """
    reach = getattr(model.hf.config, "max_position_embeddings", None)
    longest = max((len(piece.ids) for piece in pieces), default=0)
    if reach is not None and longest > int(reach):
        raise UserError(
            f"corpus.window: a piece of {counted_of(longest, 'token')}, but {model.name!r} has positions for {reach}"
        )
    moments = {layer: model.moments(layer, block=_BLOCK) for layer in layers}
    losses = torch.zeros(len(pieces), dtype=torch.float64, device=model.device)
    lengths = [len(piece.ids) for piece in pieces]
    flat = flat_pass(model.decoder, layers, longest)
    if flat is not None:
        tokens = sum(_add_flat(model, flat, pieces, run, moments, losses) for run in _runs(lengths, batch_tokens))
    else:
        batches = _batches(pack(lengths, window), lengths, batch_tokens)
        tokens = sum(_add_rows(model, pieces, rows, moments, losses) for rows in batches)
    sums = {layer: moment.total().cpu() for layer, moment in moments.items()}
    per_piece = losses.tolist()
    scored = tuple((per_piece[i], len(piece.ids) - 1) for i, piece in enumerate(pieces) if piece.scored)
    return sums, tokens, scored


def _add_rows(
    model: EditableModel,
    pieces: Sequence[Piece],
    rows: Sequence[Sequence[int]],
    moments: Mapping[int, MomentAccumulator],
    losses: Tensor,
) -> int:
    """Add the keys of the pieces of some packed rows to the sums, and the losses of those scored; returns the keys."""
    layers = list(moments)
    stop = max(map(layer_of, layers)) + 1 if layers else 0
    batch = _assemble(pieces, rows, model.text.pad_id, model.device)
    positional = model.positional(batch.layout)
    hidden = model.decoder.embed(batch.ids, batch.layout.positions)
    with model.map_inputs(layers) as inputs:
        hidden = model.run(hidden, 0, stop, positional)
        for layer in layers:
            moments[layer].add(inputs[layer][batch.counted])
    if bool((batch.owner >= 0).any()):
        hidden = model.run(hidden, stop, model.num_layers, positional)
        _score(model, hidden, batch, losses)
    return int(batch.counted.sum())


def _runs(lengths: Sequence[int], batch_tokens: int) -> Iterator[range]:
    """Numbers of pieces in runs of at most so many tokens; at least one piece each."""
    start = filled = 0
    for place, length in enumerate(lengths):
        if filled and filled + length > batch_tokens:
            yield range(start, place)
            start, filled = place, 0
        filled += length
    if filled:
        yield range(start, len(lengths))


def _add_flat(
    model: EditableModel,
    flat: FlatPass,
    pieces: Sequence[Piece],
    run: range,
    moments: Mapping[int, MomentAccumulator],
    losses: Tensor,
) -> int:
    """Add the keys of some pieces, laid end to end, to the sums, and the losses of those scored; returns the keys."""
    counted, at = [], 0
    for piece in (pieces[i] for i in run):
        counted.append(slice(at + min(piece.skip, len(piece.ids)), at + len(piece.ids)))
        at += len(piece.ids)

    def take(number: int, keys: Tensor) -> None:
        for span in counted:
            moments[number].add(keys[span])

    scored = [i for i in run if pieces[i].scored]
    hidden = flat.run([pieces[i].ids for i in run], take, [i - run.start for i in scored])
    at = 0
    for i in scored:
        ids = torch.tensor(pieces[i].ids, device=hidden.device)
        _add_losses(model, hidden[at : at + len(ids) - 1], ids[1:], torch.full_like(ids[1:], i), losses)
        at += len(ids)
    return sum(span.stop - span.start for span in counted)


def _score(model: EditableModel, hidden: Tensor, batch: _Packed, losses: Tensor) -> None:
    """Add -log p of every predicted token to its piece's sum."""
    predicted = batch.owner[:, 1:] >= 0
    _add_losses(model, hidden[:, :-1][predicted], batch.ids[:, 1:][predicted], batch.owner[:, 1:][predicted], losses)


def _add_losses(model: EditableModel, states: Tensor, targets: Tensor, owners: Tensor, losses: Tensor) -> None:
    """Add -log p of targets (n,) after states (n, d) to the sums of their owners."""
    for at in range(0, states.shape[0], _LOGIT_ROWS):
        span = slice(at, at + _LOGIT_ROWS)
        logprobs = model.logits(states[span]).float().log_softmax(dim=-1)
        nll = -logprobs.gather(1, targets[span][:, None]).squeeze(1)
        losses.index_add_(0, owners[span], nll.double())


def run_corpus_unit(
    model: EditableModel,
    unit_id: int,
    first: int,
    documents: Sequence[Document],
    layers: Sequence[int],
    config: CorpusReading,
) -> UnitResult:
    """Sum the keys of a unit's documents.

    Args:
        first: number of the first of these documents in the corpus.
        documents: their texts.

    Returns:
        Sums and tokens; ``documents`` holds one entry per piece of the documents whose likelihood is asked for.
    """
    started = time.perf_counter()
    skip = len(model.text.bos) if config.count_first else max(1, len(model.text.bos))
    pieces = [
        Piece(tuple(ids), skip, scored=first + place < config.nll_documents)
        for place, document in enumerate(documents)
        for ids in cut(model.text, document, config.window)[: 1 if config.articles == "whole" else None]
    ]
    sums, tokens, scored = packed_pass(model, pieces, layers, window=config.window, batch_tokens=config.batch_tokens)
    return UnitResult(unit_id, sums, tokens, scored, time.perf_counter() - started)


def second_pass(
    model: EditableModel, sequences: Sequence[tuple[Sequence[int], Sequence[int]]], layers: Sequence[int]
) -> tuple[dict[int, Tensor], int]:
    """Keys of sampled sequences, given as (seed tokens, sampled tokens), by a packed pass instead of the decoding one.

    Returns sums by layer, float64 (I, I), and the number of keys: what fused keys are checked against.
    """
    pieces = [Piece((*seeds, *tokens), len(seeds)) for seeds, tokens in sequences if tokens]
    window = max((len(piece.ids) for piece in pieces), default=1)
    sums, count, _ = packed_pass(model, pieces, layers, window=window)
    return sums, count
