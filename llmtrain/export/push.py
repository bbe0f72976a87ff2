"""An export goes to the Hub. The token comes from the environment or `hf auth login`; it is never written."""

from __future__ import annotations

from pathlib import Path

from llmtrain.errors import ConfigError, LlmtrainError, Problem

_ORIGIN = "--push"


def check_destination(repo: str) -> None:
    """Raises ConfigError before any work is done when `repo` is no name, or nobody is logged in."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError(Problem("push", repo, _ORIGIN, f"give a Hub name, OWNER/NAME ({error})")) from None
    try:
        HfApi().whoami()
    except LocalTokenNotFoundError:
        fix = "no Hub token found: run `hf auth login`, or set HF_TOKEN"
        raise ConfigError(Problem("push", repo, _ORIGIN, fix)) from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no answer"
        fix = f"the Hub did not accept the token ({status}): run `hf auth login` once more, or set HF_TOKEN"
        raise ConfigError(Problem("push", repo, _ORIGIN, fix)) from None
    except Exception as error:  # noqa: BLE001 - the HTTP library below huggingface_hub is its own affair
        raise LlmtrainError(
            f"the Hub can't be reached ({_first_line(error)}): nothing was exported"
        ) from None


def push_folder(folder: Path, repo: str, message: str, private: bool = True) -> str:
    """Uploads a finished export in one commit and returns its address. A new repository is private.

    Raises LlmtrainError when the Hub refuses; the export on disk stays.
    """
    from huggingface_hub import HfApi

    hub = HfApi()
    try:
        created = hub.create_repo(repo, private=private, exist_ok=True)
        hub.upload_folder(repo_id=created.repo_id, folder_path=folder, commit_message=message)
    except Exception as error:  # noqa: BLE001 - whatever it was, the export on disk is worth telling of
        raise LlmtrainError(
            f"pushing to {repo} failed ({_first_line(error)}); the export is whole in {folder}: "
            f"push it later with `hf upload {repo} {folder}`"
        ) from error
    return str(created)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
