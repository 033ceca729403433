"""Keeping access tokens out of everything that is written down."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
"""What stands in the place of a secret."""

_SECRET_KEY = re.compile(r"(?i)^(use_auth_)?token$|(^|[_-])(hf|auth|access|api)[_-]?(token|key)$|password$|secret$")
_ASSIGNMENT = re.compile(r"(?s)^([^=\s]+)=(.+)$")


def redacted(value: Any) -> Any:
    """Hide the values of keys that name secrets (`token`, `api_key`, `hf_token`, `password`, ...).

    Args:
        value: JSON data.

    Returns:
        The same data with those values replaced by `***`. None stays None.
    """
    if isinstance(value, Mapping):
        return {
            key: HIDDEN if item is not None and _SECRET_KEY.search(str(key)) else redacted(item)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [redacted(item) for item in value]
    return value


def redacted_argument(argument: str) -> str:
    """Hide the value of a command-line assignment to a key that names a secret.

    Args:
        argument: One argument, e.g. `+model.model_kwargs.token=abc`.

    Returns:
        The argument, or e.g. `+model.model_kwargs.token=***`.
    """
    match = _ASSIGNMENT.match(argument)
    if match and _SECRET_KEY.search(match[1].rpartition(".")[2].lstrip("+-~")):
        return f"{match[1]}={HIDDEN}"
    return re.sub(r"(?i)(['\"]?\b(?:hf_token|api_key|password|token)['\"]?\s*:\s*)[^,}\s]+", rf"\1{HIDDEN}", argument)
