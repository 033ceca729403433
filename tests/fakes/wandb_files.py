"""Reading a finished offline wandb run back: its transaction log and the files beside it.

The log is LevelDB's: after a 7-byte header, blocks of 32,768 bytes hold chunks of `crc32, length, kind`, and
a record is one whole chunk (kind 1) or a first (2), middle (3) and last one (4).
"""

from __future__ import annotations

import hashlib
import json
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCK = 32_768
HEADER = 7


@dataclass
class OfflineRun:
    """What the log of one run says."""

    id: str = ""
    name: str = ""
    group: str = ""
    job_type: str = ""
    project: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    axes: dict[str, str] = field(default_factory=dict)
    """Metric that was declared, to the metric that it is drawn over."""
    artifacts: dict[str, dict[str, Path]] = field(default_factory=dict)
    """Name of an artifact, to its files: path inside it, and the copy that would be uploaded."""
    artifact_types: dict[str, str] = field(default_factory=dict)
    exit_code: int | None = None
    kinds: set[str] = field(default_factory=set)


def records(path: Path) -> Iterator[bytes]:
    """Give the records of a `.wandb` file; a truncated end ends them."""
    data = path.read_bytes()
    if data[:4] != b":W&B":
        raise ValueError(f"{path} is no wandb log: it begins with {data[:7]!r}")
    position, record = HEADER, b""
    while position + HEADER <= len(data):
        if BLOCK - position % BLOCK < HEADER:
            position += BLOCK - position % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        chunk = data[position + HEADER : position + HEADER + length]
        position += HEADER + length
        if len(chunk) < length:
            return
        record = chunk if kind in (1, 2) else record + chunk
        if kind in (1, 4) and length:
            yield record


def read_run(folder: Path, kind: str = "offline-run-*") -> OfflineRun:
    """Read the only run of a kind (a glob of its folder's name) below a folder.

    wandb's own process may write the log's end shortly after `finish` returns.
    """
    (path,) = sorted(folder.glob(f"wandb/{kind}/run-*.wandb"))
    end = time.monotonic() + 20
    while (run := _read(path)).exit_code is None and time.monotonic() < end:
        time.sleep(0.05)
    return run


def _read(path: Path) -> OfflineRun:
    from wandb.proto import wandb_internal_pb2

    run = OfflineRun()
    for data in records(path):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        record_type = record.WhichOneof("record_type")
        run.kinds.add(record_type)
        if record_type == "run":
            run.id, run.name, run.group = record.run.run_id, record.run.display_name, record.run.run_group
            run.job_type, run.project = record.run.job_type, record.run.project
            run.tags = list(record.run.tags)
            _update(run.config, record.run.config.update)
        elif record_type == "config":
            _update(run.config, record.config.update)
        elif record_type == "summary":
            _update(run.summary, record.summary.update)
        elif record_type == "history":
            row: dict[str, Any] = {}
            _update(row, record.history.item)
            run.history.append(row)
        elif record_type == "metric":
            run.axes[record.metric.name] = record.metric.step_metric
        elif record_type == "artifact":
            entries = record.artifact.manifest.contents
            run.artifacts[record.artifact.name] = {entry.path: Path(entry.local_path) for entry in entries}
            run.artifact_types[record.artifact.name] = record.artifact.type
        elif record_type == "exit":
            run.exit_code = record.exit.exit_code
    run.config.pop("_wandb", None)
    return run


def media(folder: Path, run: OfflineRun, name: str) -> Any:
    """Read the file that a run's history names for a table or figure, and check that it is the one that was logged."""
    (said,) = [row[name] for row in run.history if name in row]
    (path,) = folder.glob(f"wandb/*run-*-{run.id}/files/{said['path']}")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != said["sha256"]:
        raise ValueError(f"{path} is not the file that was logged")
    return json.loads(content)


def _update(target: dict[str, Any], items: Any) -> None:
    for item in items:
        *parents, last = list(item.nested_key) or [item.key]
        inner = target
        for key in parents:
            inner = inner.setdefault(key, {})
        inner[last] = json.loads(item.value_json)
