"""Ends a sweep: one table of all points, and an exit code that tells whether any failed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from sah.console import print_error
from sah.report.table import markdown_table, print_lines, print_table, speed_note
from sah.runners.records import clear_records, collect_points, read_records


class SweepSummary(Callback):
    """Reads what the jobs of a sweep left in their folders; needs no model and no tracker."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Forget the records of an earlier sweep in the same folder.

        Args:
            config: The sweep's config.
            **kwargs: Not used.
        """
        clear_records(Path(config.hydra.sweep.dir))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print and write the sweep's table.

        Args:
            config: The sweep's config.
            **kwargs: Not used.

        Raises:
            SystemExit: With 1 if any point failed.
        """
        folder = Path(config.hydra.sweep.dir).resolve()
        records = read_records(folder)
        points, notes = collect_points(records)
        print_table(points, f"{len(points)} point{'' if len(points) == 1 else 's'}")
        print_lines(speed_note(points), *notes, f"Sweep: {folder}")
        page = [markdown_table(points), speed_note(points), *notes]
        (folder / "table.md").write_text("\n".join(page) + "\n", encoding="utf-8")
        failed = [record for record in records if record["status"] != "ok"]
        for record in failed:
            print_error(f"Failed: {' '.join(record['overrides'])}: {record.get('error')}")
        if failed:
            raise SystemExit(1)
