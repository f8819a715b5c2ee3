"""Publishing an exported version on the model hub."""

from __future__ import annotations

import json
import re
from pathlib import Path

from errata.editing.errors import UserError

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def check_repository(name: str) -> None:
    """Refuse what is no name of a repository.

    Raises:
        UserError: it is not ``ORG/NAME``.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"--push {name!r}: want ORG/NAME, of letters, digits and . _ -")


def base_on_hub(configured: str, given: str | None) -> str:
    """The base model's name on the Hub: as given, or the run's own where that is one.

    Raises:
        UserError: neither names a repository; an adapter could not be loaded by anybody else.
    """
    name = given or configured
    if not _NAME.fullmatch(name) or Path(name).exists():
        raise UserError(
            f"the run's model is {configured!r}, which nobody else can load: give its name on the Hub with "
            "--base-on-hub ORG/NAME"
        )
    return name


def name_base(directory: Path, base: str) -> None:
    """Let an adapter name its base model by its name on the Hub, so that others load it without being told."""
    path = directory / "adapter_config.json"
    if not path.is_file():
        return
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def push(directory: Path, repository: str, *, message: str, private: bool) -> str:
    """Make the repository where it is absent and commit a directory to it; returns the commit's address.

    The address and the token are those of the Hub's own tools: ``HF_ENDPOINT``, ``HF_TOKEN``, ``hf auth login``.

    Raises:
        UserError: the Hub does not answer, or refuses; nothing half-written is there, as it is one commit.
    """
    import os

    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        done = api.upload_folder(repo_id=repository, folder_path=directory, commit_message=message)
    except HfHubHTTPError as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        hint = "; set HF_TOKEN to a token that may write there" if status in (401, 403) else ""
        raise UserError(f"--push {repository!r}: the Hub refuses: {_line(error)}{hint}") from error
    except Exception as error:
        # the Hub's client has changed its library of HTTP twice, each with errors of its own
        transport = type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "requests", "urllib3")
        if transport or isinstance(error, OSError):
            raise UserError(f"--push {repository!r}: the Hub does not answer: {_line(error)}") from error
        raise
    return str(done.commit_url)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
