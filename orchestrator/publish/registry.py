"""A version as a model version of MLflow's registry, with an alias that deployments follow."""

from __future__ import annotations

import logging
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from errata.editing.errors import ErrataError, UserError
from errata.editing.wording import counted
from errata.orchestrator.history.export import edition, write_adapter, write_checkpoint, write_delta
from errata.orchestrator.history.rebuild import open_base
from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.artifacts import ArtifactStore
from errata.orchestrator.journal.rows import Version
from errata.orchestrator.publish.rollout import EVENT
from errata.orchestrator.tracking.store import MlflowStore

logger = logging.getLogger(__name__)

FORMS: Final = ("delta", "lora", "full")
_VERSION_TAG: Final = "errata.version"
_FORM_TAG: Final = "errata.form"


@dataclass(frozen=True, slots=True)
class Registered:
    """A model version of the registry."""

    name: str
    number: str
    alias: str
    new: bool
    """False if it was there already and only the alias was set."""


def register_version(
    journal: Journal,
    store: ArtifactStore,
    version: Version,
    run: Path,
    *,
    name: str,
    alias: str,
    form: str = "delta",
    uri: str | None = None,
    experiment: str = "errata",
    model: str | None = None,
) -> Registered:
    """Upload the version to its MLflow run, register it and point the alias at it. Again, only the alias is set.

    Args:
        name: of the registered model, made when absent.
        form: what is uploaded: the change (``delta``, small), an adapter (``lora``) or a checkpoint (``full``).
        uri: MLflow server or database; None for the one in the run's directory.
        experiment: in which the run is tracked.
        model: where the run's base model is, if not where its configuration says.

    Raises:
        UserError: the version cannot be had in that form.
        ErrataError: MLflow does not answer, or refuses.
    """
    from mlflow.exceptions import MlflowException

    tracking = MlflowStore(run, run_key=journal.meta.run_id, uri=uri, experiment=experiment)
    try:
        client, run_id = tracking.client_and_run()
        if not client.search_registered_models(filter_string=f"name = '{name}'", max_results=1):
            client.create_registered_model(name, tags={"errata.base": journal.meta.base_digest})
        wanted = f"name = '{name}' AND tags.`{_VERSION_TAG}` = '{version.digest}' AND tags.`{_FORM_TAG}` = '{form}'"
        matches = client.search_model_versions(wanted, max_results=1)
        upload = (client, run_id, journal, store, version, name, form, model)
        number = str(matches[0].version) if matches else _upload(*upload)
        client.set_registered_model_alias(name, alias, number)
    except MlflowException as error:
        raise ErrataError(f"the model registry refuses {name!r}: {' '.join(str(error).split())[:300]}") from error
    except OSError as error:  # requests' errors are of that kind too
        raise ErrataError(f"the model registry does not answer: {' '.join(str(error).split())[:300]}") from error
    data = {"registry": name, "number": number, "alias": alias, "form": form}
    place = {"sequence": version.sequence, "version": version.digest}
    journal.record_event(EVENT, {"what": "registered", **place, **data})
    return Registered(name, number, alias, not matches)


def _upload(
    client: Any,
    run_id: str,
    journal: Journal,
    store: ArtifactStore,
    version: Version,
    name: str,
    form: str,
    model: str | None,
) -> str:
    folder = f"versions/v{version.sequence}-{version.digest[:12]}-{form}"
    with tempfile.TemporaryDirectory(prefix="errata-") as temporary:
        output = Path(temporary) / form
        card = _write(journal, store, version, form, output, model)
        if output.is_dir():
            client.log_artifacts(run_id, str(output), folder)
        else:
            shutil.move(output, output.with_suffix(".safetensors"))
            client.log_artifact(run_id, str(output.with_suffix(".safetensors")), folder)
    source = f"{client.get_run(run_id).info.artifact_uri}/{folder}"
    tags = {
        _VERSION_TAG: version.digest,
        _FORM_TAG: form,
        "errata.sequence": str(version.sequence),
        "errata.edits": str(version.edits),
        "errata.run": journal.meta.run_id,
        "errata.base": journal.meta.base_digest,
        "errata.weights": str(card["weights"]),
    }
    description = (
        f"v{version.sequence} of run {journal.meta.run_id}: {counted(version.edits, 'edit')} on {card['base']['name']}"
    )
    made = client.create_model_version(name, source, run_id=run_id, tags=tags, description=description)
    return str(made.version)


def _write(
    journal: Journal, store: ArtifactStore, version: Version, form: str, output: Path, model: str | None
) -> dict[str, Any]:
    if form not in FORMS:
        raise UserError(f"form {form!r} is unknown; allowed: {', '.join(FORMS)}")
    checkpoint = open_base(journal, model)
    edited = edition(journal, store, checkpoint, version)
    if form == "full":
        return write_checkpoint(edited, checkpoint, output)
    return write_delta(edited, output) if form == "delta" else write_adapter(edited, checkpoint, output)
