"""One model source, and the checkpoint folder that it keeps in the cache.

A folder is written under another name and renamed when complete. Its `manifest.json` holds sha256, size and
modification time of every file; like git's index, a file is hashed again only when its size or time differ.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sah import fetching
from sah.errors import ModelError

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
MANIFEST_SCHEMA = 1


@dataclass(frozen=True)
class ModelSource:
    """A checkpoint that sah fetches or makes by itself.

    Args:
        name: What `model.name` says, e.g. `embedded:smollm2-135m-instruct`.
        alias: The file in conf/model that uses it, which `sah fetch` takes; None if it has none of its own.
        label: Short name for tables, folders and figures.
        checkpoint_hash: Hexadecimal sha256 of everything that decides the weights and the tokenizer; the same
            on every machine and known before anything is fetched.
        origin: What the manifest tells about where the weights come from.
        build: Writes the complete checkpoint into the empty folder that it is given.
        disk_bytes: Free bytes needed while building, checked beforehand.
    """

    name: str
    alias: str | None
    label: str
    checkpoint_hash: str
    origin: Mapping[str, str]
    build: Callable[[Path], None]
    disk_bytes: int = 0

    @property
    def folder(self) -> Path:
        """Where the checkpoint lies, or will lie, in the cache."""
        return fetching.cache_dir() / "models" / f"{self.label}-{self.checkpoint_hash[:12]}"

    def ensure(self) -> Path:
        """Give the checkpoint's folder, making it on first use.

        A folder with a changed or missing file is moved aside to `<folder>.damaged`, and made again.

        Returns:
            A folder that `from_pretrained` loads, complete and checked.

        Raises:
            ModelError: If it cannot be fetched, converted or written.
        """
        folder = self.folder
        if folder.is_dir() and not check(folder):
            return folder
        with fetching.locked(folder, f"preparing {self.name}"):
            if folder.is_dir():
                problem = check(folder)
                if not problem:
                    return folder
                self._move_aside(folder, problem)
            self._make(folder)
        return folder

    def _move_aside(self, folder: Path, problem: str) -> None:
        """Put a damaged folder out of the way, in place of an older one."""
        aside = folder.with_name(f"{folder.name}.damaged")
        try:
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(folder, aside)
        except OSError as error:
            raise ModelError(
                f"{folder} is damaged ({problem}) and cannot be moved aside: {error}. Delete it."
            ) from error
        logger.warning("%s is damaged (%s). Moved it to %s; making it again.", folder, problem, aside)

    def _make(self, folder: Path) -> None:
        """Build into a temporary folder and rename it."""
        partial = folder.with_name(f"{folder.name}.partial")
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            free = shutil.disk_usage(partial).free
            if free < self.disk_bytes:
                raise ModelError(
                    f"Preparing {self.name} needs {self.disk_bytes / 1e9:.1f} GB in {folder.parent}, "
                    f"but only {free / 1e9:.1f} GB are free. Free some, or use another folder with "
                    f"{fetching.CACHE_VARIABLE}=/some/folder."
                )
            self.build(partial)
            write_manifest(partial, {"name": self.name, "checkpoint_hash": self.checkpoint_hash, **self.origin})
            os.replace(partial, folder)
        except OSError as error:
            raise fetching.unwritable(folder.parent, error) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def write_manifest(folder: Path, origin: Mapping[str, str]) -> None:
    """Record every file of a checkpoint folder.

    Args:
        folder: The folder; files in it become readable for everybody whom the user's umask allows.
        origin: Where the checkpoint comes from.
    """
    umask = os.umask(0)
    os.umask(umask)
    files: dict[str, Any] = {}
    for path in sorted(folder.iterdir()):
        path.chmod(0o666 & ~umask)
        files[path.name] = {"sha256": fetching.sha256_file(path), **_stat(path)}
    _write(folder, {"schema": MANIFEST_SCHEMA, "origin": dict(origin), "files": files})


def check(folder: Path) -> str:
    """Compare a checkpoint folder with its manifest.

    A file whose size and modification time are as recorded is taken as unchanged. Any other is hashed; if its
    bytes are the recorded ones, the manifest takes the new time.

    Args:
        folder: The checkpoint folder.

    Returns:
        What is wrong, or an empty string.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        recorded: dict[str, dict[str, Any]] = manifest["files"]
        if manifest["schema"] != MANIFEST_SCHEMA:
            return f"{MANIFEST} has schema {manifest['schema']!r}"
        touched = False
        for name, facts in recorded.items():
            found = _stat(folder / name)
            if found == {"size": facts["size"], "mtime_ns": facts["mtime_ns"]}:
                continue
            if found["size"] != facts["size"] or fetching.sha256_file(folder / name) != facts["sha256"]:
                return f"{name} is not as it was written"
            facts.update(found)
            touched = True
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} cannot be read"
    if touched:
        try:
            _write(folder, manifest)
        except OSError:
            logger.debug("%s is read-only; its manifest keeps the old times.", folder)
    return ""


def damaged_file(folder: Path) -> str:
    """Hash every file of a checkpoint folder and compare it with the manifest, whatever its time.

    Args:
        folder: The checkpoint folder.

    Returns:
        What is wrong, or an empty string.
    """
    problem = check(folder)
    if problem:
        return problem
    recorded = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    for name, facts in recorded.items():
        if fetching.sha256_file(folder / name) != facts["sha256"]:
            return f"{name} has another sha256 than when it was written"
    return ""


def _stat(path: Path) -> dict[str, int]:
    facts = path.stat()
    return {"size": facts.st_size, "mtime_ns": facts.st_mtime_ns}


def _write(folder: Path, manifest: Mapping[str, Any]) -> None:
    partial = folder / f".{MANIFEST}.{os.getpid()}"
    partial.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, folder / MANIFEST)
