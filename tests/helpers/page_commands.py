"""What is done with every command that the pages show: run on a tiny run, run on the demo model, or not run and why.

The tables' keys are the commands as `tests.helpers.pages` takes them from README and the pages. A value says what is
typed for it: `SAME`, or the words with the reader's own (RUN, EDIT, ORG/NAME, ...) put in and what takes hours made
short by further options. Options that a page shows are always among what is typed. A bare mention (`errata log`) needs
no entry where a command with the same first words has one.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

SAME = ""
"""Typed as it is shown."""

QUICK: Mapping[str, str | tuple[str, ...]] = {
    "errata --version": SAME,
    # reading a run
    "errata log RUN": "errata log runs/demo",
    "errata log runs/demo": SAME,
    "errata log -n 20": SAME,
    "errata show EDIT": "errata show qs-0001",
    "errata show qs-0001 runs/demo": SAME,
    "errata show VERSION": "errata show v3",
    "errata show head": SAME,
    "errata diff V1 V2": "errata diff v1 v3",
    "errata checkout V --output DIR": "errata checkout v3 --output out",
    "errata checkout VERSION --output DIR": "errata checkout head --output out",
    "errata checkout v0": "errata checkout v0 --output out",
    "errata export V --format FORMAT --output PATH": (
        "errata export v3 --format full --output full",
        "errata export v3 --format delta --output delta.safetensors",
        "errata export v3 --format lora --output lora",
    ),
    "errata export head --format lora -o out/adapter --push ORG/NAME --base-on-hub ORG/BASE": (
        "errata export head --format lora -o out/adapter --push us/edited --base-on-hub maker/tiny-llama"
    ),
    "errata bisect --probe FILE": "errata bisect --probe probe.json",
    "errata bisect --probe probe.json --run quickstart": SAME,
    "errata bisect --probe sentinels.jsonl": SAME,
    "errata verify RUN": "errata verify runs/demo",
    "errata gc RUN --dry-run": "errata gc runs/demo --dry-run",
    "errata waiting --run RUN": "errata waiting --run runs/demo",
    "errata geometry --run runs/demo": SAME,
    "errata geometry v5 head --run runs/demo --layers 4,8,12 --text news.txt --documents 2000 --json": (
        "errata geometry v5 head --run runs/demo --layers 0,1,2 --text news.txt --documents 2000 --json"
    ),
    "errata sweep experiments/moir-validation-small --output runs/validation": "DRY",
    "errata geometry head --run RUN --text wiki.test.raw --documents 400 --tokens 48": (
        "errata geometry head --run runs/demo --text news.txt --documents 400 --tokens 48"
    ),
    "errata norms --run RUN --values 100": "errata norms --run runs/demo --values 100",
    "errata norms --run runs/demo": SAME,
    "errata norms v5 head --run runs/demo --each --json": SAME,
    # changing it
    "errata revert EDIT": "errata revert qs-0001",
    "errata revert EDIT --reason TEXT": "errata revert qs-0001 --reason wrong",
    "errata revert qs-0001 runs/demo --reason it is not so": "errata revert qs-0001 runs/demo --reason 'it is not so'",
    "errata revert fact-17 fact-18 --run quickstart --reason the source was wrong": (
        "errata revert fact-17 fact-18 --run quickstart --reason 'the source was wrong'"
    ),
    "errata withdraw EDIT --reason TEXT": "errata withdraw later --reason wrong",
    "errata withdraw EDIT --run RUN --reason …": "errata withdraw later --run runs/demo --reason wrong",
    "errata snapshot --run DIR": "errata snapshot --run runs/demo",
    "errata migrate --run DIR": "errata migrate --run runs/demo",
    "errata tag release-3 v120": "errata tag release-3 v3",
    "errata compact --days 30 --dry-run": SAME,
    "errata compact --days 30": SAME,
    "errata erase edit-17 edit-40 --dry-run": SAME,
    "errata erase edit-17 edit-40 --reason request 2026-113": (
        "errata erase edit-17 edit-40 --reason 'request 2026-113'"
    ),
    # covariances
    "errata covariance show FILE": "errata covariance show a.safetensors",
    "errata covariance compare A B C --output PAGE": (
        "errata covariance compare a.safetensors b.safetensors c.safetensors --output page.html"
    ),
    "errata covariance coverage A B --domain code=C --energy .95": (
        "errata covariance coverage a.safetensors b.safetensors --domain code=c.safetensors --energy .95"
    ),
    "errata covariance coverage A B --domain code=CODE --domain math=MATH": (
        "errata covariance coverage a.safetensors b.safetensors --domain code=c.safetensors --domain math=b.safetensors"
    ),
    "errata covariance merge A B --output FILE": (
        "errata covariance merge a.safetensors b.safetensors --output merged.safetensors"
    ),
    "errata covariance pack FILE --output DIR": "errata covariance pack a.safetensors --output store",
    # models, presets, configurations
    "errata models import DIR --name mine": "errata models import model --name mine",
    "errata models import model.gguf --name mine": SAME,
    "errata models list": SAME,
    "errata models fetch ORG/NAME --name mine --token ...": (
        "errata models fetch maker/tiny-llama --name mine --token hf_standin"
    ),
    "errata leaderboard": SAME,
    "errata leaderboard -o docs/leaderboard.md": SAME,
    "errata run CONFIG --dry-run": "errata run quickstart --dry-run",
    "errata sweep experiments/moir-headline --output runs/headline --set stream.path=$D/counterfact/counterfact.json "
    "--set covariance.corpus.path=$D/wikitext/wiki.test.raw "
    "--set evaluation.texts.Wikipedia.path=$D/wikitext/wiki_passages.jsonl "
    "--set evaluation.texts.code.path=$D/humaneval/HumanEval.jsonl.gz "
    "--set evaluation.texts.mathematics.path=$D/gsm8k/test.jsonl": "DRY",
    "errata sweep experiments/moir-refresh --output runs/refresh --set stream.path=$D/counterfact/counterfact.json "
    "--set evaluation.texts.Wikipedia.path=$D/wikitext/wiki_passages.jsonl "
    "--set evaluation.texts.code.path=$D/humaneval/HumanEval.jsonl.gz "
    "--set evaluation.texts.mathematics.path=$D/gsm8k/test.jsonl": "DRY",
    "errata sweep experiments/editors-small $C --set stream.limit=200 --output runs/editors-small "
    "--only method=ROME,MEMIT,AlphaEdit,MOSE,RoSE,UltraEdit,FT-L,EMMET,RECT,PMET": "DRY",
    "errata sweep experiments/editors-small $C --set stream.limit=60 --set batching.size=1 "
    "--output runs/editors-single --only method=ROME,MEMIT,AlphaEdit,MOSE,RoSE,UltraEdit,FT-L,EMMET,RECT,PMET": "DRY",
    "errata sweep experiments/editors-ablations $C --set stream.limit=60 --set evaluation.every=60 "
    "--output runs/editors-ablations": "DRY",
    "errata sweep experiments/revisiting-small --output runs/revisiting --jobs 1": "DRY",
    "errata sweep experiments/revisiting-small-zsre --output runs/revisiting-zsre --jobs 2 "
    "--set stream.path=$D/knowedit_zsre/ZsRE-test-all.json": "DRY",
}
"""Run in this process on a tiny run. `DRY`: hours as it stands, so every cell of it is listed (``--dry-run``)."""

_SMALL = (
    "--set covariance.tokens=300 --set covariance.sequences_per_unit=16 --set covariance.slots=16 "
    "--set covariance.max_new_tokens=16 --set editor.values.steps=4 --set evaluation.sample=2 "
    "--set evaluation.latency_questions=1 --set evaluation.max_new_tokens=3 --set ray.generation_workers=1 "
    "--set evaluation.held_out=null --set refresh.every=null --set evaluation.every=null"
)
"""Options that make what a run does short."""
_SHORT = f"--set stream.limit=2 {_SMALL}"

_ON_A_RUN: Mapping[str, str | tuple[str, ...]] = {
    "errata models fetch smollm2-135m-instruct": SAME,
    "errata doctor": "errata doctor quickstart",
    "errata run configs/quickstart.yaml --output runs/mine": (
        f"errata run configs/quickstart.yaml --output runs/mine {_SHORT}"
    ),
    "errata run quickstart --set editor.type=memit -o runs/memit": (
        f"errata run quickstart --set editor.type=memit -o runs/memit {_SHORT}"
    ),
    "errata run --resume": f"errata run configs/quickstart.yaml --output runs/mine {_SHORT} --resume",
    "errata compare runs/demo runs/memit": "errata compare runs/mine runs/memit",
    "errata compare --intervals": "errata compare runs/mine runs/memit --intervals",
    "errata judge --run runs/mine --by f1": SAME,
    "errata judge --run runs/demo --by exact --json": "errata judge --run runs/mine --by exact --json",
    "errata publish head --alias champion": "errata publish head --alias champion --run mine",
    "errata preserve v0 head --run runs/quickstart --tasks perplexity,fluency": (
        "errata preserve v0 head --run runs/mine --tasks perplexity,fluency --limit 2"
    ),
    "errata preserve v0": "errata preserve v0 --run runs/mine --tasks perplexity --limit 2",
    "errata router fit": "errata router fit router.json",
    "errata run configs/quickstart.yaml --set editor.regime=retrieved --output runs/retrieved": (
        f"errata run configs/quickstart.yaml --set editor.regime=retrieved --output runs/retrieved {_SHORT}"
    ),
    "errata covariance estimate CONFIG --set KEY=VALUE --output FILE": (
        f"errata covariance estimate quickstart --output a.safetensors --store store {_SHORT}"
    ),
    "errata covariance estimate CONFIG --check": (
        f"errata covariance estimate quickstart --check --store other {_SHORT}"
    ),
    "errata locate CONFIG --set KEY=VALUE --output DIR --prompts 100 --data FILE --draws 5 --window 6": (
        "errata locate quickstart --set seed=1 --output traced --prompts 3 --data facts.jsonl --draws 1 --window 6 "
        "--subject-last --min-drop 0"
    ),
    "errata train-editor mend RECORDS FILE --layers 27,28,29 --without TESTED": (
        "errata train-editor mend facts.jsonl mend.safetensors --layers 27,28,29 --without tested.jsonl --steps 2 "
        "--maps down_proj --rank 8"
    ),
    "errata sweep experiments/revisiting-small-zsre --set stream.path=FILE": (
        "errata sweep experiments/revisiting-small-zsre --set stream.path=facts.jsonl --set stream.schema=auto "
        f"-o runs/sweep --only method=MEMIT --only edits=1 --only group=0 {_SMALL}"
    ),
    "errata compare DIR": "errata compare runs/sweep",
    "errata compare runs/revisiting": "errata compare runs/sweep",
    "errata compare runs/revisiting-zsre": "errata compare runs/sweep",
    "errata compare runs/revisiting --output table.tex": "errata compare runs/sweep --output table.tex",
    "errata compare runs/revisiting runs/other --output page.html": (
        "errata compare runs/mine runs/memit --output page.html"
    ),
    "errata compare runs/headline": "errata compare runs/mine",
    "errata compare runs/refresh": "errata compare runs/mine",
    "errata compare runs/headline --timeline": "errata compare runs/mine --timeline",
    "errata compare runs/refresh --timeline": "errata compare runs/mine --timeline",
    "errata leaderboard PRESET.yaml RUN": "errata leaderboard MEASURED.yaml runs/mine",
    "errata calibrate MODEL --preset NAME": (
        "errata calibrate smollm2-135m-instruct --preset MEASURED.yaml --tokens 64"
    ),
    "errata calibrate MODEL --preset NAME -o MEASURED.yaml": (
        "errata calibrate smollm2-135m-instruct --preset models/smollm2-135m -o MEASURED.yaml --tokens 64"
    ),
}

LONG: Mapping[str, str | tuple[str, ...]] = {
    **_ON_A_RUN,
    "errata calibrate MODEL --minutes 45 --output PRESET.yaml": (
        "errata calibrate smollm2-135m-instruct --minutes 0.1 --tokens 64 --output PRESET.yaml"
    ),
    "errata calibrate MODEL": "errata calibrate smollm2-135m-instruct --minutes 0.1 --tokens 64",
    "errata run CONFIG --preset PRESET.yaml --set model.name=MODEL": (
        "errata run quickstart --preset PRESET.yaml --set model.name=smollm2-135m-instruct --dry-run"
    ),
    "errata locate models/smollm2-135m --prompts 200 --draws 3 --subject-last --data known_1000.json": (
        "errata locate models/smollm2-135m --prompts 3 --draws 1 --subject-last --data facts.jsonl --min-drop 0"
    ),
}
"""Run one after the other on the demo model, in a directory that is no checkout, each in a process of its own."""

_ASK = "curl -s localhost:8080/v1/query -H Content-Type: application/json -d "
SERVED: tuple[str, ...] = (
    "errata serve CONFIG",
    "errata serve service --output runs/live",
    "errata serve service --output runs/service",
    "curl -s localhost:8080/v1/edits -H Content-Type: application/json -d "
    '{"subject": "France", "prompt": "The capital of {} is", "target_new": "Lyon", "provenance": {"why": "ticket 7"}}',
    _ASK + '{"question": "The capital of France is"}',
    _ASK + '{"question": "Alice Munro works in", "as_of": "2026-03-05T00:00:00Z", "as_known_at": "v40"}',
)
"""Run together: a service on the demo model, and what is asked of it."""

REDIS: tuple[str, ...] = (
    'redis-cli XADD errata:edits * edit {"subject": "France", "prompt": "The capital of {} is", "target_new": "Lyon"}',
    "redis-cli XADD errata:edits * subject France prompt The capital of {} is target_new Lyon",
)
"""Run on a Redis of the test's own; what is added is read as edits."""

NOT_RUN: tuple[tuple[str, str, str], ...] = (
    ("make( .*)?", "make", "sets up, tests or builds the checkout itself: what it would do is printed (make -n)"),
    (r"kubectl kustomize \S+|kubectl apply -k \S+", "kustomize", "no cluster here: what would be applied is built"),
    (r"(kubectl|k).* create (namespace|secret) .*", "client", "no cluster here: the object is made (--dry-run=client)"),
    (r"(kubectl|k)( .*)?", "kubectl", "no cluster here: kubectl reads the verb and its options (--help)"),
    (r"helm install errata k8s/helm/errata .*", "chart", "no cluster here: the chart is rendered in test_chart.py"),
    (r"helm install kuberay-operator .*", "none", "another project's chart, from its own repository"),
    (r"kind (create|load) .*|git clone .*", "none", "other programs' own, with nothing of ours in their words"),
    (r"podman build .*", "containerfile", "no builder of images here: files and arguments are compared"),
    (r"(docker|podman) compose.*", "compose", "no container engine here: test_compose.py reads the configuration"),
    (r"pip install .*", "extras", "the package is not published yet: .ci/run installs the wheel"),
    (r"openssl rand -hex \d+", "shell", ""),
    (r"pytest .*", "paths", "runs in its own tier"),
    (r"ray stop", "none", "what contributors are told not to do: it ends other people's processes"),
    (r"mlflow .*", "mlflow", "tests/integration/tracking serves a registered version in this way"),
    (r"curl localhost:5000/invocations .*", "none", "tests/integration/tracking asks a served version in this way"),
    (r"python docs/configuration_page.py", "page", "run in the test's own process"),
    (r"python requirements/make_lock.py", "none", "asks the package registry for every package's newest version"),
    (r"python -m docs\.pictures( \w+)?|python -m tests\..*", "module",
     "rewrites pictures or golden traces of the checkout"),
    (r"python -m benchmarks\.\w+.*", "benchmark", "minutes to hours: its own parser reads the words"),
    (r"errata preserve .*--tasks (rte,sst2 --data DIR|mose_rte|rubric|mmlu,gsm8k,\S+ --data .*|uncertainty( .*)?)",
     "parse",
     "wants benchmark files from the Hub: tests/integration/preservation runs every task on files like them"),
    (r"errata choose .*", "parse", "wants a finished sweep: test_choose.py chooses from one, by the command too"),
    (r"errata publish v40 .*", "parse", "wants vLLM servers: tests/model/test_publish_vllm.py and its stand-in"),
    (r"errata judge --run runs/demo --url .*", "parse", "wants a judge's endpoint: test_judging.py has one"),
    (r"errata run .*--preset models/gemma-3-270m .*", "parse",
     "the model is not free to fetch; its preset on a checkpoint given by ERRATA_REAL_MODELS is measured"),
    (r"errata run config.yaml --set stream.path=edits.jsonl --set stream.follow=true", "parse",
     "never ends: tests/integration/test_endless_streams.py follows a file"),
)  # fmt: skip
"""(pattern of the whole command, the check that is made instead, why it is not run); `shell` is run as it stands."""


ON_SMALL = _SMALL


def typed(shown: str, said: str | tuple[str, ...]) -> list[list[str]]:
    """The words of each command that is typed for a shown one."""
    if said == SAME:
        return [words(shown)]
    if said == "DRY":
        return [[*words(shown), "--dry-run"]]
    return [words(one) for one in ([said] if isinstance(said, str) else said)]


def words(line: str) -> list[str]:
    """A line of shell as words."""
    return shlex.split(line)


def decision(shown: str, whole: bool) -> tuple[str, str]:
    """(table, reason or covering command) of a command that a page shows; ("", "") where nobody decided."""
    for name, table in (("quick", QUICK), ("long", LONG)):
        if shown in table:
            return name, shown
    if shown in SERVED:
        return "served", shown
    if shown in REDIS:
        return "redis", shown
    for pattern, check, why in NOT_RUN:
        if re.fullmatch(pattern, shown, re.DOTALL):
            return f"not run: {check}", why
    if not whole and shown.startswith("errata"):
        mine = set(shown.split())
        for other in (*QUICK, *LONG, *SERVED):
            if mine <= set(other.split()):
                return "mentioned", other
    return "", ""
