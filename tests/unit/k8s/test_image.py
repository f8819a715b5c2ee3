"""The recipe of the image: what it copies exists, its versions are those of the lock file, nothing floats."""

from __future__ import annotations

import fnmatch
import re
import subprocess

import yaml

from tests.helpers.k8s.objects import K8S, ROOT

RECIPE = (ROOT / "Containerfile").read_text()
LINES = re.sub(r"\\\n", " ", RECIPE).splitlines()
STAGES = [part for part in re.split(r"(?m)^FROM ", RECIPE)[1:]]
RUNTIME = (ROOT / "requirements" / "runtime.txt").read_text()
LOCK = dict(re.findall(r"(?m)^([A-Za-z0-9][\w.-]*)==([\w.!]+)", RUNTIME))


def copied() -> list[str]:
    words = [line.split()[1:] for line in LINES if line.startswith("COPY ") and "--from=" not in line]
    return [source for line in words for source in [w for w in line if not w.startswith("--")][:-1]]


def test_everything_copied_exists_and_is_not_ignored():
    ignored = (ROOT / ".dockerignore").read_text().split("\n")
    assert "*" in ignored and (ROOT / ".containerignore").read_text() == (ROOT / ".dockerignore").read_text()
    allowed = [line[1:] for line in ignored if line.startswith("!")]
    for source in copied():
        assert (ROOT / source).exists(), source
        assert any(source == one or source.startswith(f"{one}/") for one in allowed), f"{source} is ignored"
    assert not any(fnmatch.fnmatch(one, "tests*") for one in allowed)


def test_every_room_is_copied():
    from tests.unit.test_packaging import INPUTS

    assert set(INPUTS) <= set(copied())


def test_versions_are_those_of_the_lock_file_and_of_the_manifests():
    (python,) = re.findall(r"python:(\d+\.\d+)\.\d+-slim", RECIPE)
    project = (ROOT / "pyproject.toml").read_text()
    assert f"Programming Language :: Python :: {python}" in project
    cluster = yaml.safe_load((K8S / "base" / "raycluster.yaml").read_text())
    assert cluster["spec"]["rayVersion"] == LOCK["ray"]
    (release,) = re.findall(r'^version = "(.+)"', project, re.MULTILINE)
    tags = re.findall(r"errata:([0-9]+\.[\w.-]*)", RECIPE + "".join(p.read_text() for p in K8S.rglob("*.yaml")))
    assert tags and set(tags) == {f"{release}-cpu", f"{release}-cuda", f"{release}-cuda-deepspeed"}


def test_what_is_installed_is_the_lean_lock():
    assert not any(source.endswith("lock.txt") for source in copied())
    assert "--no-deps --require-hashes -r /tmp/hashed.txt" in RECIPE, "and each archive has its digest"
    assert set(re.findall(r"requirements/[\w.-]+\.txt", RECIPE)) == {
        f"requirements/{name}.txt" for name in ("runtime", "deepspeed", "lock-hashes")
    }


def test_the_last_stage_has_no_compiler_and_is_nobody_special():
    final = STAGES[-1]
    assert len(STAGES) == 2 and not re.search(r"gcc|g\+\+|build-essential|\bmake\b|pip install", final)
    users = re.findall(r"(?m)^USER (.+)$", final)
    assert users == ["10001:10001"]
    assert final.index("USER ") < final.index("ENTRYPOINT")
    cluster = yaml.safe_load((K8S / "base" / "raycluster.yaml").read_text())
    assert cluster["spec"]["headGroupSpec"]["template"]["spec"]["securityContext"]["runAsUser"] == 10001


def test_nothing_floats():
    assert not re.search(r":latest|@latest", "".join(line for line in LINES if not line.startswith("#")))
    extra = (K8S / "image" / "requirements.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in extra if line and not line.startswith("#"))
    assert not {line.split("==")[0] for line in extra if "==" in line} & set(LOCK)


def test_the_probes_of_kuberay_find_wget_and_the_wrappers_of_the_manifests_are_there():
    for needed in ("wget", "tini", "on-ray"):
        assert needed in STAGES[-1]


def test_on_ray_says_what_it_lacks_and_becomes_its_command(tmp_path):
    script = K8S / "image" / "on-ray"
    without = subprocess.run(["sh", script, "true"], capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})
    assert without.returncode != 0 and "HOST:PORT" in without.stderr
    fake = tmp_path / "ray"
    fake.write_text('#!/bin/sh\necho "$@" >> "$LOG"\n')
    fake.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "LOG": str(tmp_path / "log"),
        "ERRATA_RAY_HEAD": "head:6379",
        "POD_IP": "10.0.0.7",
    }
    done = subprocess.run(["sh", script, "echo", "a b"], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (0, "a b\n")
    asked, started = (tmp_path / "log").read_text().splitlines()
    assert asked == "health-check --address head:6379"
    assert started.split()[:2] == ["start", "--address=head:6379"]
    assert {"--num-cpus=0", "--num-gpus=0", "--node-ip-address=10.0.0.7"} <= set(started.split())


def test_the_rules_of_a_token_stand_wherever_tokens_are_set():
    from errata.orchestrator.service import access

    rule = f"at least {access._MIN_LENGTH} characters out of A-Z a-z 0-9 . _ ~ + / = -"
    assert re.fullmatch(access._TOKEN, "AZaz09._~+/=-") and not re.fullmatch(access._TOKEN, "a b")
    places = ("docs/kubernetes.md", "docs/compose.md", "docs/service.md", "k8s/overlays/mine/settings.yaml")
    for place in (*places, "k8s/helm/errata/values.yaml"):
        assert rule in " ".join((ROOT / place).read_text().split()), place


_WITHOUT = {"errata": "its digest is known once it is pushed", "vllm/vllm-openai": "it is set by whoever serves"}


def test_images_of_others_are_named_by_their_digests() -> None:
    named: dict[str, set[str]] = {}
    for path in [*K8S.rglob("*.yaml"), ROOT / "Containerfile"]:
        for image in re.findall(r"(?m)^\s*(?:- )?(?:image: |ARG PYTHON_IMAGE=)(\S+)", path.read_text()):
            if image.startswith(("{", "&", "*", '"')):
                continue
            named.setdefault(re.split("[:@]", image)[0], set()).add(image)
    assert {"errata", "redis", "postgres", "python", "prom/prometheus", "grafana/grafana"} <= set(named)
    for name, images in named.items():
        if name not in _WITHOUT:
            assert all(re.search(r"@sha256:[0-9a-f]{64}$", image) for image in images), images
            assert len({image.partition("@")[2] for image in images}) == 1, f"{name}: two images: {images}"
