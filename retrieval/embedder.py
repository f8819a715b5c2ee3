"""Sentences to vectors, of unit length but where a model's own is asked for: the interface, a sentence-transformers
model, and feature hashing."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import regex
from numpy.typing import NDArray
from pydantic import Field

from errata.editing.checkpoint import fetch
from errata.editing.closed import Closed
from errata.editing.digest import digest_json, digest_tensors
from errata.editing.errors import UserError
from errata.editing.extras import check_installed
from errata.editing.scripts import KATAKANA, SINGLE

logger = logging.getLogger(__name__)

Vectors = NDArray[np.float32]


class Embedder(Protocol):
    """What the memory needs of an embedder."""

    @property
    def name(self) -> str:
        """Short name for reports."""

    @property
    def dim(self) -> int:
        """Length of a vector."""

    @property
    def digest(self) -> str:
        """Names the function text -> vector: equal digests give equal vectors, different ones never mix."""

    @property
    def unit(self) -> bool:
        """Whether all vectors have unit Euclidean norm, so that inner products are cosines."""

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Vectors (n, dim), float32, C-contiguous, of unit norm where `unit` says so; (0, dim) for no text."""


class HashEmbedderConfig(Closed):
    """Feature hashing of words and character n-grams; needs no model file."""

    type: Literal["hash"] = "hash"
    dim: int = Field(256, ge=8, le=65_536)
    ngram: int = Field(4, ge=2, le=8)
    """Length of the character n-grams."""


class SentenceEmbedderConfig(Closed):
    """A sentence-transformers model: a directory, a hub name, or a name the project can fetch."""

    type: Literal["sentence"] = "sentence"
    model: str = Field("all-minilm-l6-v2", min_length=1)
    batch_size: int = Field(32, ge=1)
    device: str = "cpu"
    threads: int = Field(1, ge=0)
    """CPU threads used while embedding; one is fastest for single short texts, 0 leaves them as they are."""
    normalize: bool = True
    """Vectors of unit length, so that similarity is the cosine. False leaves the length that the model's pooling gives,
    and similarity is the plain dot product: SCR as published, with Contriever; needs ``memory.scr.style: paper``."""


EmbedderConfig = Annotated[SentenceEmbedderConfig | HashEmbedderConfig, Field(discriminator="type")]


def build_embedder(config: SentenceEmbedderConfig | HashEmbedderConfig) -> Embedder:
    """The embedder of a configuration; loads the model where there is one.

    Raises:
        UserError: the model is not there, or sentence-transformers is not installed.
    """
    if isinstance(config, HashEmbedderConfig):
        return HashEmbedder(dim=config.dim, ngram=config.ngram)
    return SentenceEmbedder(
        config.model,
        batch_size=config.batch_size,
        device=config.device,
        threads=config.threads,
        normalize=config.normalize,
    )


def check_embedder(config: SentenceEmbedderConfig | HashEmbedderConfig) -> None:
    """Find out whether the embedder's model, and the libraries of a memory, are there, without loading them.

    Raises:
        UserError: the model is neither a directory nor fetched nor a name the hub could know, or a library is missing.
    """
    check_installed("faiss")
    if isinstance(config, SentenceEmbedderConfig):
        check_installed("sentence_transformers")
        _resolve(config.model)


class HashEmbedder:
    """Signed feature hashing (Weinberger et al. 2009) of lower-cased words and character n-grams.

    Of scripts without spaces between words, pairs of neighboring characters stand for the words.

    Deterministic across processes and machines. Finds statements that share words with the question, which is
    what tests and runs without a sentence model need; it knows no synonyms.
    """

    unit: bool = True

    def __init__(self, *, dim: int = 256, ngram: int = 4) -> None:
        self._dim, self._ngram = dim, ngram

    @property
    def name(self) -> str:
        """Short name for reports."""
        return f"hash-{self._dim}-{self._ngram}"

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._dim

    @property
    def digest(self) -> str:
        """Of the settings: they determine every vector."""
        return digest_json({"embedder": "hash", "dim": self._dim, "ngram": self._ngram, "version": 2})

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Vectors (n, dim), float32, unit norm. A text without any feature maps to the first axis."""
        vectors = np.zeros((len(texts), self._dim), dtype=np.float32)
        for row, text in zip(vectors, texts, strict=True):
            for feature, weight in _features(text, self._ngram):
                slot, sign = _slot(feature)
                row[slot % self._dim] += sign * weight
            if not row.any():
                row[0] = 1.0
        return unit_rows(vectors)


_AROUND = ".,;:!?\"'()[]।॥؟،؛。、！？「」"
_SINGLE = regex.compile(rf"[{SINGLE}{KATAKANA}]")
_PIECES = regex.compile(rf"(?:(?=[{SINGLE}{KATAKANA}])\X)+|[^{SINGLE}{KATAKANA}]+")
_CHARACTER = regex.compile(r"\X")


def _features(text: str, ngram: int) -> Iterator[tuple[str, float]]:
    # Whole words weigh more than their pieces: a shared name tells more than a shared ending.
    for piece in text.casefold().split():
        for word in _PIECES.findall(piece.strip(_AROUND)):
            if _SINGLE.match(word):
                characters = _CHARACTER.findall(word)
                yield from ((f"s:{character}", 0.3) for character in characters)
                yield from ((f"p:{one}{next}", 1.0) for one, next in pairwise(characters))
            else:
                yield from _features_of_word(word, ngram)


def _features_of_word(word: str, ngram: int) -> Iterator[tuple[str, float]]:
    if word := word.strip(_AROUND):
        yield f"w:{word}", 1.0
        padded = f"^{word}$"
        for start in range(len(padded) - ngram + 1):
            yield f"c:{padded[start : start + ngram]}", 0.3


@lru_cache(maxsize=1 << 16)
def _slot(feature: str) -> tuple[int, float]:
    # blake2b, not hash(): Python's string hash differs from process to process
    number = int.from_bytes(hashlib.blake2b(feature.encode(), digest_size=8).digest(), "little")
    return number >> 1, 1.0 if number & 1 else -1.0


class SentenceEmbedder:
    """A sentence-transformers model, for example all-minilm-l6-v2 (384 dimensions)."""

    def __init__(
        self, model: str, *, batch_size: int = 32, device: str = "cpu", threads: int = 1, normalize: bool = True
    ) -> None:
        self._name, self.unit = model, normalize
        self._batch_size, self._threads = batch_size, threads
        self._model = _load_sentence_model(model, device)
        if not normalize:
            self._model = _without_normalization(self._model)
        # Asked of a vector: the accessor's name differs between releases of the library.
        self._dim = int(np.asarray(self._model.encode(["a"], show_progress_bar=False)).shape[1])
        # Of the weights, not of the files: the hub's copy and a fetched one are the same function.
        self._digest = digest_json(
            {
                "embedder": "sentence",
                "weights": digest_tensors(self._model.state_dict()),
                "max_length": self._model.get_max_seq_length(),
                "version": 1,
                **({} if normalize else {"normalize": False}),
            }
        )

    @property
    def name(self) -> str:
        """The name it was asked for by."""
        return self._name

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._dim

    @property
    def digest(self) -> str:
        """Of the weights and the length limit."""
        return self._digest

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Vectors (n, dim), float32, unit norm unless `unit` is false. Longer texts than the model's limit are cut."""
        if not texts:
            return np.zeros((0, self._dim), dtype=np.float32)
        with _torch_threads(self._threads):
            vectors = self._model.encode(
                list(texts), batch_size=self._batch_size, convert_to_numpy=True, show_progress_bar=False
            )
        rows = np.asarray(vectors, dtype=np.float32)
        return unit_rows(rows) if self.unit else np.ascontiguousarray(rows)


def _without_normalization(model: Any) -> Any:
    """The same encoder, its pooled vectors as they are: some, such as all-MiniLM, end in a module that scales them."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize

    kept = [part for part in model if not isinstance(part, Normalize)]
    return model if len(kept) == len(model) else SentenceTransformer(modules=kept, device=str(model.device))


def _load_sentence_model(model: str, device: str) -> Any:
    path = _resolve(model)
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise UserError(
            f"embedder {model!r} needs sentence-transformers, which is not installed; "
            "pip install 'errata-llm[memory]', or set the embedder's type to 'hash'"
        ) from error
    try:
        return SentenceTransformer(path, device=device)
    except Exception as error:  # every way the library and the hub client fail means the same to the user
        raise UserError(
            f"embedder {model!r} could not be loaded ({type(error).__name__}: {_first_line(error)}); "
            + fetch.three_ways(model)
        ) from error


def _resolve(model: str) -> str:
    """A directory given as such, the directory of a fetched model, or a name that the hub is asked for."""
    if Path(model).expanduser().is_dir():
        return str(Path(model).expanduser())
    directory = fetch.model_dir(model) if fetch.fetchable_name(model) else None
    if directory is not None:
        return str(directory)
    if "/" not in model or model.startswith((".", "/", "~")):  # not a hub name: asking it would only be slow
        raise UserError(f"embedder {model!r} is not there; {fetch.three_ways(model)}")
    return model


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    if not threads:
        yield
        return
    import torch

    before = torch.get_num_threads()
    if before == threads:
        yield
        return
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def unit_rows(vectors: NDArray[np.floating[Any]]) -> Vectors:
    """Rows scaled to unit Euclidean norm, float32, C-contiguous; a zero row stays zero.

    Args:
        vectors: (n, d), finite.

    Raises:
        ValueError: not two-dimensional, or not finite.
    """
    if vectors.ndim != 2:
        raise ValueError(f"vectors must be (n, d), got shape {vectors.shape}")
    if not np.isfinite(vectors).all():
        bad = int((~np.isfinite(vectors)).any(axis=1).sum())
        raise ValueError(f"{bad} of {len(vectors)} vectors are not finite")
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    return np.ascontiguousarray(vectors / np.where(norms > 0, norms, 1.0), dtype=np.float32)
