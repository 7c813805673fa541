"""Publish a team on the Hub: one commit, so that nothing is half there.

The login is huggingface_hub's: HF_TOKEN, or `hf auth login`. No token is an argument here or a flag of the command.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from colm_jax.checkpoints.card import LIBRARY
from colm_jax.checkpoints.directory import TEAM_FILE
from colm_jax.checkpoints.hub_names import HubName
from colm_jax.checkpoints.publish import Upload, is_of_team
from colm_jax.errors import UserError
from colm_jax.settings.models import is_endpoint
from colm_jax.storage import local_copy

_COMMIT = re.compile(r"[0-9a-f]{40}")


def pin(name: str) -> str:
    """Return the name of a model on the Hub with the commit that its revision is now; an address as it is.

    Raises:
      UserError: the Hub has no such model, or cannot be asked.
    """
    if is_endpoint(name):
        return name
    found = HubName.parse(name)
    if found.revision is not None and _COMMIT.fullmatch(found.revision):
        return name
    with _one_line_errors(name):
        return f"{found.model}@{_api().model_info(found.repository, revision=found.revision).sha}"


def publish(upload: Upload, *, private: bool = False, branch: str | None = None, message: str) -> dict[str, Any]:
    """Publish, in one commit; files of a team that was there before are removed in it.

    Args:
      upload: what to publish.
      private: only those with access to the repository see it. It is created if missing.
      branch: created if missing; None: the main one.
      message: of the commit.

    Returns:
      "commit", "url", whether the repository is "private", and the files that were "removed".

    Raises:
      UserError: the Hub cannot be reached, does not know the login, or refuses; the repository is public already.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, get_token

    api, name = _api(), upload.name
    if get_token() is None:
        raise UserError(f"{name}: not logged in to the Hub; run `hf auth login`, or set HF_TOKEN")
    with _one_line_errors(name):
        api.create_repo(name, private=private or None, exist_ok=True)
        if private and not api.model_info(name).private:
            raise UserError(f"{name}: exists and is public, and would not become private; change that on the Hub first")
        if branch is not None:
            api.create_branch(name, branch=branch, exist_ok=True)
        info = api.model_info(name, revision=branch)
        before = [entry.rfilename for entry in info.siblings or ()]
        of_team = [file for file in before if is_of_team(file)]
        if of_team and TEAM_FILE not in before:
            raise UserError(
                f"{name}: holds another model ({', '.join(of_team[:3])}) and no team, whose files would be replaced; "
                "choose another name"
            )
        removed = [file for file in of_team if file not in upload.files]
        additions = [
            CommitOperationAdd(file, held if isinstance(held, bytes) else str(local_copy(held)))
            for file, held in upload.files.items()
        ]
        operations = [*additions, *map(CommitOperationDelete, removed)]
        found = api.create_commit(name, operations, commit_message=message, revision=branch, parent_commit=info.sha)
    return {"commit": found.oid, "url": found.commit_url, "private": bool(info.private), "removed": removed}


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi(library_name=LIBRARY)


@contextmanager
def _one_line_errors(name: str) -> Iterator[None]:
    """Turn the errors of talking to the Hub into one line.

    Raises:
      UserError: naming the repository and the remedy.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    try:
        yield
    except UserError:
        raise
    except OfflineModeIsEnabled:
        raise UserError(f"{name}: HF_HUB_OFFLINE is set, so that the Hub is not asked; unset it") from None
    except HfHubHTTPError as error:
        status = None if error.response is None else error.response.status_code
        said = " ".join((error.server_message or str(error).splitlines()[0]).split())
        remedy = _REMEDIES.get(status, "try again later") if status else "try again later"
        raise UserError(f"{name}: the Hub refused ({status}: {said:.200}); {remedy}") from error
    except HTTPError as error:
        raise UserError(
            f"{name}: the Hub at {constants.ENDPOINT} cannot be reached ({type(error).__name__}: {error}); check the "
            "network and rerun the same command"
        ) from error
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{name}: {' '.join(str(error).split())[:300]}") from error


_REMEDIES = {
    401: "log in by `hf auth login`, or set HF_TOKEN to a valid token",
    403: "use a login that may write there, or another owner",
    404: "check owner, name and revision, and that the login may see it",
    409: "it was changed meanwhile, rerun the same command",
    412: "it was changed meanwhile, rerun the same command",
    413: "a file is too large for the Hub",
    429: "too many requests, wait and rerun the same command",
}
