"""Finds a model of the Hugging Face hub, or says within seconds why it cannot be had."""

from __future__ import annotations

import functools
import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sah.errors import ModelError

REQUEST_SECONDS = 5.0
"""How long one request waits for each answer."""

TOTAL_SECONDS = 12.0
"""How long the whole check may take, name resolution included."""

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "spiece.model",
)
_WEIGHTS = ("*.safetensors", "*.bin")


@dataclass(frozen=True)
class HubModel:
    """A hub model that can be loaded.

    Args:
        path_or_id: The local snapshot's folder if it is complete, else the hub id.
        commit: The commit that the revision stands for, if the hub names it.
    """

    path_or_id: str
    commit: str | None


def find(repo_id: str, model_kwargs: dict[str, Any]) -> HubModel:
    """Look for a hub model in the local hub cache, then at the hub.

    A model whose snapshot lies complete in the cache is loaded from there without any request.

    Args:
        repo_id: The hub id, e.g. `Qwen/Qwen3-0.6B`.
        model_kwargs: What `from_pretrained` will get; `revision`, `cache_dir`, `subfolder`, `token` and
            `gguf_file` matter here.

    Returns:
        Where to load it from.

    Raises:
        ModelError: If the id is malformed, or the model is neither in the cache nor within reach.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ModelError(f"model.name={repo_id!r} is neither a local folder nor a hub id: {error}") from error
    revision, cache = model_kwargs.get("revision"), model_kwargs.get("cache_dir")
    token = model_kwargs.get("token")
    filename = model_kwargs.get("gguf_file") or "config.json"
    if model_kwargs.get("subfolder"):
        filename = f"{model_kwargs['subfolder']}/{filename}"
    snapshot = cached_snapshot(repo_id, filename, revision, None if cache is None else str(cache))
    if snapshot is not None:
        return HubModel(str(snapshot), snapshot.name)
    return HubModel(repo_id, _commit(repo_id, filename, revision, token))


def cached_snapshot(repo_id: str, filename: str, revision: str | None, cache: str | None) -> Path | None:
    """The model's snapshot in the hub cache, if it holds configuration, tokenizer and all weights."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo_id, filename, cache_dir=cache, revision=revision)
    if not isinstance(found, str):
        return None
    folder = Path(found).parent
    snapshot = folder.parents[filename.count("/") - 1] if "/" in filename else folder
    if not any((place / name).exists() for name in _TOKENIZER_FILES for place in {folder, snapshot}):
        return None
    for index in folder.glob("*.index.json"):
        shards = set(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values())
        return snapshot if shards and all((folder / shard).exists() for shard in shards) else None
    whole = filename.endswith(".gguf") or any(path.exists() for kind in _WEIGHTS for path in folder.glob(kind))
    return snapshot if whole else None


@functools.cache
def _commit(repo_id: str, filename: str, revision: str | None, token: str | bool | None) -> str | None:
    """Ask the hub for one file's metadata, as the download would, in bounded time; once for the process."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, is_offline_mode

    if is_offline_mode():
        raise ModelError(
            f"{repo_id} is not in the local hub cache, and HF_HUB_OFFLINE forbids to ask the hub. "
            f"Unset it, or {_alternatives()}"
        )
    url = hf_hub_url(repo_id, filename, revision=revision)
    answers: list[str | None] = []
    failures: list[Exception] = []

    def ask() -> None:
        try:
            answers.append(get_hf_file_metadata(url, token=token, timeout=REQUEST_SECONDS).commit_hash)
        except Exception as error:  # recorded, and explained below
            failures.append(error)

    # Name resolution has no timeout of its own, hence a thread that can be left behind.
    thread = threading.Thread(target=ask, name="sah-hub-check", daemon=True)
    thread.start()
    thread.join(TOTAL_SECONDS)
    if answers:
        return answers[0]
    failure = failures[0] if failures else TimeoutError(f"no answer within {TOTAL_SECONDS:.0f} s")
    raise _explained(repo_id, filename, revision, failure) from failure


def _explained(repo_id: str, filename: str, revision: str | None, error: Exception) -> ModelError:
    """Turn what the hub, or the way to it, said into one message with what can be done."""
    from huggingface_hub import constants, errors

    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    page = f"{constants.ENDPOINT}/{repo_id}"
    if isinstance(error, errors.GatedRepoError):
        what = (
            f"{repo_id} is gated: its owner wants its licence accepted. Accept it at {page} and log in with "
            "`hf auth login`"
        )
    elif isinstance(error, errors.RevisionNotFoundError):
        what = f"{repo_id} has no revision {revision!r}. Mend model.model_kwargs.revision"
    elif isinstance(error, errors.EntryNotFoundError):
        what = f"{repo_id} has no {filename}, so transformers cannot load it. Choose another hub id"
    elif isinstance(error, errors.RepositoryNotFoundError) or status == 404:
        what = (
            f"The hub has no model {repo_id}, or it is private (HTTP {status}). Check the spelling of "
            "model.name, log in with `hf auth login`"
        )
    elif status in (401, 403):
        what = f"The hub refused access to {repo_id} (HTTP {status}). Log in with `hf auth login`"
    elif status is not None:
        what = f"The hub could not serve {repo_id} (HTTP {status}). Try again later"
    else:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        what = (
            f"{repo_id} is not in the local hub cache, and {constants.ENDPOINT} cannot be reached "
            f"({reason}). Connect to the network"
        )
    return ModelError(f"{what}, or {_alternatives()}")


def _alternatives() -> str:
    return "give a local folder (model.name=/path/to/model), or use the embedded model (model=llama)."
