"""From a run's summary to its report: one HTML page that needs nothing else, neither files nor the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from errata.orchestrator.report import charts, curves, view
from errata.orchestrator.report.facts import fact_view
from errata.orchestrator.report.formats import duration, mapping, moment, short_digest
from errata.orchestrator.report.pages import asset, script_hash, template
from errata.orchestrator.report.wording import KIND_SHORT, OUTCOMES, shown

MOST_FACTS = 500  # some 12 kB each: a browser stays quick with this many; facts.jsonl has them all


def render_report(
    summary: Mapping[str, Any],
    facts: Sequence[Mapping[str, Any]],
    resolved_yaml: str,
    *,
    most_facts: int = MOST_FACTS,
) -> str:
    """The report of a run as one self-contained HTML page.

    Anything that is missing or null in `summary` or `facts` is shown as a dash or left out; all text from them is
    escaped, and the page's own content security policy lets no script run but its own.

    Args:
        summary: the contents of summary.json.
        facts: the lines of facts.jsonl, in order.
        resolved_yaml: the configuration that was run.
        most_facts: how many facts the page lists; it says so when there are more.

    Returns:
        The page, to be written as UTF-8.
    """
    script = f"{charts.script()}\n{asset('report', 'script.js')}"
    style = f"{charts.style()}\n{asset('report', 'style.css')}"
    page = template("report", "template.html.j2").render(
        arms=shown(mapping(summary.get("arms"))),
        cards=view.cards(summary),
        charts=curves.charts(summary),
        choice=view.choice_rows(summary),
        config_digest=short_digest(summary.get("config_digest")),
        editor=view.editor_name(summary),
        errata_version=summary.get("errata_version") or "",
        facts=[fact_view(fact) for fact in facts[:most_facts]],
        facts_total=len(facts),
        failures=view.failures(summary),
        finished=moment(summary.get("finished_at")),
        groups=view.groups(summary, facts),
        headline=view.headline(summary),
        kinds=KIND_SHORT,
        lead=view.lead(summary),
        model=view.model_name(summary),
        model_digest=short_digest(mapping(summary.get("model")).get("digest")),
        norm_table=curves.norm_table(summary),
        outcomes=OUTCOMES,
        repair_note=view.repair_note(summary),
        repairs=view.repair_rows(summary),
        refreshes=view.refresh_rows(summary),
        resolved_yaml=resolved_yaml,
        run_name=summary.get("name") or "run",
        sample=view.sample(summary),
        script=Markup(script),
        script_hash=script_hash(script),
        stages=view.stage_rows(summary),
        started=moment(summary.get("started_at")),
        style=Markup(style),
        table=curves.table(summary),
        verdict=view.verdict(summary),
        version=short_digest(summary.get("version")),
        wall=duration(summary.get("wall_seconds")),
    )
    return page.lstrip()
