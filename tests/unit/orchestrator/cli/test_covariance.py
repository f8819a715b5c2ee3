"""``errata covariance show | compare | merge`` and the mistakes that every command answers in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from errata.editing.covariance import KeyCovariance, SampleRecord
from tests.helpers.command import Command, in_process


def covariance(seed: int, version: str = "v0", layers: tuple[int, ...] = (1,)) -> KeyCovariance:
    generator = torch.Generator().manual_seed(seed)
    sums = {}
    for layer in layers:
        keys = torch.randn(30, 5, generator=generator, dtype=torch.float64)
        sums[layer] = keys.T @ keys
    record = SampleRecord(tuple((float(10 + i + seed), 8) for i in range(40)), (("Sure", "I"),) * 40)
    return KeyCovariance(sums, 30, {"kind": "self_generated", "seed": seed, "version": version}, record)


@pytest.fixture
def errata(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Runs the command with a store and a working directory of its own; exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path / "home"))
    return in_process(monkeypatch, capsys, "covariance")


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{name}.safetensors" for name in ("one", "two")]
    for seed, path in enumerate(paths):
        covariance(seed).save(path)
    return paths


def test_show_says_what_it_was_made_from_and_its_spectrum(errata, files) -> None:
    code, out, _ = errata("show", files[0])
    assert code == 0
    assert covariance(0).digest in out and "self_generated" in out and "effective rank" in out
    assert "first words: 'Sure' 100.00%" in out and "documents with NLL 40" in out
    # 10/8 to 49/8 in steps of 1/8
    assert "NLL per token of 40 documents: mean 3.688 nats; 5 % 1.494, 25 % 2.469, 50 % 3.688" in out


def test_compare_prints_a_table_and_writes_a_page(errata, files, tmp_path) -> None:
    code, out, _ = errata("compare", *files, "--output", "out/page.html", "--tau", "0.5", "--directions", "2")
    assert code == 0
    assert "below 0.5" in out and "overlap of the leading 2 directions, layer 1" in out and "Jensen-Shannon" in out
    page = (tmp_path / "out" / "page.html").read_text()
    assert "one" in page and "two" in page and page.count("data-chart=") >= 2 + 3


def test_merge_adds_up_and_remembers_its_parts(errata, files, tmp_path) -> None:
    code, out, _ = errata("merge", *files, "--output", "both.safetensors")
    both = KeyCovariance.load(tmp_path / "both.safetensors")
    assert code == 0 and both.digest in out and both.tokens == 60
    assert torch.equal(both.sums[1], covariance(0).sums[1] + covariance(1).sums[1])
    assert both.source["parts"] == [covariance(0).digest, covariance(1).digest] and both.source["version"] == "v0"
    assert both.record is not None and len(both.record.documents) == 80


def test_the_same_name_twice_is_told_apart(errata, files, tmp_path) -> None:
    (tmp_path / "other").mkdir()
    covariance(7).save(tmp_path / "other" / "one.safetensors")
    code, out, _ = errata("compare", files[0], tmp_path / "other" / "one.safetensors")
    assert code == 0 and "one#1" in out and "one#2" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("show", "none.safetensors"), "is no file, and none in"),
        (("show", "torn.safetensors"), "covariance file 'torn.safetensors' cannot be read"),
        (("compare", "one.safetensors"), "compare takes two or more covariances, got 1"),
        (("compare", "one.safetensors", "far.safetensors"), "no layer in common"),
        (("merge", "one.safetensors", "one.safetensors", "--output", "x"), "given twice"),
        (("merge", "one.safetensors", "later.safetensors", "--output", "x"), "different model versions"),
        (("merge", "one.safetensors", "far.safetensors", "--output", "x"), "cover different layers: [1] and [3]"),
        (("estimate", "none.yaml"), "configuration 'none.yaml' is not there"),
        (("estimate", "identity.yaml"), "covariance.source 'identity' needs no estimate"),
        (("estimate", "corpus.yaml", "--check"), "--check compares self-generated keys"),
        (("estimate", "corpus.yaml", "--set", "covariance.corpus=null"), "source 'corpus' needs a section 'corpus'"),
        (("estimate", "corpus.yaml", "--set", "covariance.source=self_generated"), "'corpus' is of no use"),
        (("estimate", "corpus.yaml"), "model 'nowhere/at-all' is not there"),
        (("estimate", "corpus.yaml", "--set", "covariance.corpus.windw=3"), "did you mean 'window'?"),
        (("estimate", "mixture.yaml"), "no such weights; shipped: olmo-mix"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(errata, files, tmp_path, arguments, said) -> None:
    (tmp_path / "torn.safetensors").write_bytes(files[0].read_bytes()[:-9])
    covariance(3, layers=(3,)).save(tmp_path / "far.safetensors")
    covariance(4, version="v1").save(tmp_path / "later.safetensors")
    base = {
        "model": {"name": "nowhere/at-all"},
        "editor": {"type": "memit", "layers": [1]},
        "stream": {"path": "facts.jsonl"},
    }
    mixture = {"weights": "olmo-mixx", "components": {"web": {"path": "text.txt"}}}
    for name, section in {
        "identity": {"source": "identity"},
        "corpus": {"source": "corpus", "tokens": 9, "corpus": {"path": "text.txt"}},
        "mixture": {"source": "mixture", "tokens": 9, "mixture": mixture},
    }.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({**base, "covariance": section}))
    code, out, err = errata(*arguments)
    lines = [line for line in err.splitlines() if line.startswith("errata:")]
    assert code == 2 and len(lines) == 1 and said in lines[0], (code, out, err)
    assert not (tmp_path / "x").exists() and not (tmp_path / "home").exists()


def test_shipped_weights_are_the_papers(errata, tmp_path) -> None:
    from errata.orchestrator.config.loading import build_config

    names = ("web", "code", "science", "math", "wikipedia")
    config = build_config(
        {
            "model": {"name": "m"},
            "editor": {"type": "memit", "layers": [1]},
            "stream": {"path": "facts.jsonl"},
            "covariance": {
                "source": "mixture",
                "tokens": 100_000,
                "mixture": {"weights": "olmo-mix", "components": {name: {"path": f"{name}.txt"} for name in names}},
            },
        }
    )
    assert config.covariance.mixture is not None
    assert config.covariance.mixture.weights == dict(zip(names, (0.954, 0.021, 0.021, 0.006, 0.001), strict=True))
