"""Checks that ask a server, for `sah doctor`; each may take its time, so that they run in threads of their own."""

from __future__ import annotations

import os

from sah.terminal.health import OK, PROBLEM, WARNING, Result
from sah.terminal.screen import shortened

_SECONDS = 5.0
_KEY = "WANDB_API_KEY"
_MODE = "WANDB_MODE"
_MODES = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline", "disabled": "disabled"}


def hub() -> list[Result]:
    """Check whether the Hugging Face hub can be reached, and whether somebody is logged in. No token is shown."""
    from huggingface_hub import constants, get_token, is_offline_mode

    login = "logged in" if get_token() else "not logged in (gated models need: hf auth login)"
    if is_offline_mode():
        return [
            Result("hub", OK, f"not asked, since HF_HUB_OFFLINE is set; {login}", "Models must be cached or local.")
        ]
    failure = _failure(constants.ENDPOINT)
    if failure is None:
        return [Result("hub", OK, f"{constants.ENDPOINT} answers; {login}")]
    advice = (
        "Embedded models, tiny ones, local folders and cached hub models work offline; HF_HUB_OFFLINE=1 saves time."
    )
    return [Result("hub", WARNING, f"{constants.ENDPOINT} cannot be reached ({failure})", advice)]


def wandb() -> list[Result]:
    """Tell which mode `tracker=wandb` takes by itself, and why. No key is shown."""
    from sah.tracking.wandb import key_is_configured, server_url

    asked = os.environ.get(_MODE, "")
    if asked and asked not in _MODES:
        advice = f"Allowed: {', '.join(_MODES)}. Write for example: export {_MODE}=offline"
        return [Result("wandb", WARNING, f"{_MODE}={asked} is not known, and wandb does not start with it", advice)]
    server = server_url()
    try:
        key = key_is_configured(server)
    except Exception as error:  # wandb's own, of several kinds
        told = shortened(_without_key(str(error)), 200)
        advice = "Log in anew with: wandb login --relogin. Until then runs are kept offline."
        return [Result("wandb", WARNING, f"the key for {server} cannot be right: {told}", advice)]
    mode = _MODES[asked] if asked else "online" if key else "offline"
    why = f"{_MODE}={asked}" if asked else f"a key for {server} is configured" if key else f"no key for {server}"
    text = f"mode {mode}, since {why}"
    if mode == "online" and not key:
        return [Result("wandb", PROBLEM, f"{text}, but there is no key", "Run: wandb login, or unset " + _MODE)]
    if mode == "online":
        failure = _failure(server)
        if failure is not None:
            advice = "Runs that cannot be online are kept offline; upload them later with wandb sync."
            return [Result("wandb", WARNING, f"{text}, but it cannot be reached ({failure})", advice)]
        return [Result("wandb", OK, f"{text}; the server answers")]
    advice = "For online runs: wandb login" if not asked else ""
    return [Result("wandb", OK, text, advice)]


def _failure(url: str) -> str | None:
    """Ask a server for anything. Give why there was no answer; None if there was one, whatever it said."""
    import urllib.error
    import urllib.request

    try:
        request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "sah-doctor"})
        with urllib.request.urlopen(request, timeout=_SECONDS):
            return None
    except urllib.error.HTTPError:
        return None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        return shortened(str(reason) or type(error).__name__, 100)


def _without_key(text: str) -> str:
    key = os.environ.get(_KEY)
    return text.replace(key, "...") if key else text
