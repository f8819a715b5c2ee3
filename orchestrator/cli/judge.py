"""``errata judge``: the answers of a finished run, judged again."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from errata.editing.errors import UserError
from errata.orchestrator.cli.history import RunOption
from errata.orchestrator.cli.options import show_result

if TYPE_CHECKING:
    from errata.evaluation.judge import Judge


class Kind(StrEnum):
    """Who judges."""

    exact = "exact"
    contains = "contains"
    f1 = "f1"
    llm = "llm"


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("judge")(judge)


def judge(
    run: RunOption = None,
    by: Annotated[Kind, typer.Option("--by", help="Who judges.")] = Kind.llm,
    threshold: Annotated[float, typer.Option(help="Least F1 that counts as right, with --by f1.")] = 0.5,
    url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="OpenAI-compatible endpoint of the language model, such as https://host/v1."),
    ] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="Name of the model at that endpoint.")] = None,
    key_env: Annotated[
        str | None, typer.Option(metavar="VARIABLE", help="Environment variable that holds its key.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the result as JSON here too.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Put every answer of a finished run to another judge, and say how far it agrees with containment."""
    from errata.orchestrator.history.log import find_run
    from errata.orchestrator.measuring.judging import judge_again, judgment_lines
    from errata.orchestrator.report.summary import read_facts

    directory = find_run(run)
    facts = list(read_facts(directory / "facts.jsonl"))
    judgment = judge_again(facts, _judge(by, threshold, url, model, key_env, directory))
    show_result(judgment, judgment_lines(judgment), output=output, as_json=as_json)


def _judge(by: Kind, threshold: float, url: str | None, model: str | None, key_env: str | None, run: Path) -> Judge:
    from pydantic import ValidationError

    from errata.evaluation.endpoint import EndpointConfig
    from errata.evaluation.judge import (
        ContainsJudgeConfig,
        ExactJudgeConfig,
        F1JudgeConfig,
        LlmJudgeConfig,
        build_judge,
    )
    from errata.orchestrator.measuring.measurer import JUDGMENTS

    if by is Kind.exact:
        return build_judge(ExactJudgeConfig())
    if by is Kind.contains:
        return build_judge(ContainsJudgeConfig())
    if by is Kind.f1:
        if not 0 < threshold <= 1:
            raise UserError(f"--threshold {threshold:g} must be above 0 and at most 1")
        return build_judge(F1JudgeConfig(threshold=threshold))
    if not url or not model:
        raise UserError("--by llm needs --url and --model; 'exact', 'contains' and 'f1' need neither")
    try:
        # what was answered is kept: the same answers are not asked about twice, nor paid for
        cache = run / JUDGMENTS
        endpoint = EndpointConfig(base_url=url, model=model, api_key_env=key_env, cache=cache)
    except ValidationError as error:
        raise UserError(f"--url {url!r} must begin with http:// or https://") from error
    return build_judge(LlmJudgeConfig(endpoint=endpoint))
