"""A version as a model version of MLflow's registry, with an alias that deployments follow."""

from __future__ import annotations

import json
import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from errata.editing.errors import ErrataError
from errata.editing.wording import counted
from errata.orchestrator.journal import Journal
from errata.orchestrator.journal.artifacts import ArtifactStore
from errata.orchestrator.journal.rows import Version
from errata.orchestrator.publish.packaging import check_form, write_model
from errata.orchestrator.publish.rollout import EVENT
from errata.orchestrator.tracking.library import addressed, load_mlflow
from errata.orchestrator.tracking.store import MlflowStore

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

logger = logging.getLogger(__name__)

_VERSION_TAG: Final = "errata.version"
_FORM_TAG: Final = "errata.form"
_MODEL_TAG: Final = "errata.mlmodel"
"""Of versions that MLflow can load; what releases before registered were bare files, and is registered anew."""
_VERSIONS_TAG: Final = "mlflow.modelVersions"
"""Of a logged model: where it is registered."""


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
        form: what is uploaded, see `write_model`.
        uri: MLflow server or database; None for the one in the run's directory.
        experiment: in which the run is tracked.
        model: where the run's base model is, if not where its configuration says.

    Raises:
        UserError: the version cannot be had in that form.
        ErrataError: MLflow does not answer, or refuses.
    """
    load_mlflow()
    from mlflow.exceptions import MlflowException

    check_form(form)
    tracking = MlflowStore(run, run_key=journal.meta.run_id, uri=uri, experiment=experiment)
    try:
        client, run_id = tracking.client_and_run()
        if not client.search_registered_models(filter_string=f"name = '{name}'", max_results=1):
            client.create_registered_model(name, tags={"errata.base": journal.meta.base_digest})
        wanted = f"name = '{name}' AND tags.`{_VERSION_TAG}` = '{version.digest}' AND tags.`{_FORM_TAG}` = '{form}'"
        wanted += f" AND tags.`{_MODEL_TAG}` = '1'"
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
    client: MlflowClient,
    run_id: str,
    journal: Journal,
    store: ArtifactStore,
    version: Version,
    name: str,
    form: str,
    model: str | None,
) -> str:
    """A logged model of the run, and a version of the registry whose source is that model, as `mlflow.register_model`
    makes it; with a description, which that one takes none of."""
    made, card = _log_model(client, run_id, journal, store, version, form, model)
    tags = {
        _VERSION_TAG: version.digest,
        _FORM_TAG: form,
        _MODEL_TAG: "1",
        "errata.sequence": str(version.sequence),
        "errata.edits": str(version.edits),
        "errata.run": journal.meta.run_id,
        "errata.base": journal.meta.base_digest,
        "errata.weights": str(card["weights"]),
    }
    description = (
        f"v{version.sequence} of run {journal.meta.run_id}: {counted(version.edits, 'edit')} on {card['base']['name']}"
    )
    with addressed(client.tracking_uri):  # where a database looks the source up
        number = client.create_model_version(
            name,
            f"models:/{made.model_id}",
            run_id=run_id,
            tags=tags,
            description=description,
            model_id=made.model_id,
        )
    _name_versions(client, made.model_id, name, number.version)
    return str(number.version)


def _log_model(
    client: MlflowClient,
    run_id: str,
    journal: Journal,
    store: ArtifactStore,
    version: Version,
    form: str,
    model: str | None,
) -> tuple[LoggedModel, dict[str, Any]]:
    """What `mlflow.models.Model.log` leaves: an output of the run with its parameters, whose ``MLmodel`` names both."""
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    run = client.get_run(run_id)
    with tempfile.TemporaryDirectory(prefix="errata-") as temporary:
        output = Path(temporary) / form
        card = write_model(journal, store, version, form, output, model)
        made = client.create_logged_model(
            run.info.experiment_id,
            name=f"v{version.sequence}-{version.digest[:12]}-{form}",
            source_run_id=run_id,
            tags={_VERSION_TAG: version.digest, _FORM_TAG: form},
            params=dict(run.data.params),
            model_type="full" if form == "full" else "errata",
        )
        try:
            client.log_outputs(run_id, [LoggedModelOutput(made.model_id, step=version.sequence)])
            described = Model.load(str(output))
            described.run_id, described.artifact_path = run_id, made.artifact_location
            described.model_id = described.model_uuid = made.model_id
            described.save(str(output / "MLmodel"))
            client.log_model_artifacts(made.model_id, str(output))
        except BaseException:
            client.finalize_logged_model(made.model_id, "FAILED")
            raise
        client.finalize_logged_model(made.model_id, "READY")
    return made, card


def _name_versions(client: MlflowClient, model_id: str, name: str, number: int | str) -> None:
    """Where the model is registered, which its page links; a server has written it already, a database has not."""
    known = json.loads(client.get_logged_model(model_id).tags.get(_VERSIONS_TAG, "[]"))
    if all((one["name"], str(one["version"])) != (name, str(number)) for one in known):
        told = json.dumps([*known, {"name": name, "version": number}])
        client.set_logged_model_tags(model_id, {_VERSIONS_TAG: told})
