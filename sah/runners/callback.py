"""Ends a sweep: one table of all points, and an exit code that tells whether any failed."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict, read_write

from sah.console import print_error
from sah.errors import ConfigError, StateError
from sah.report.pareto import SearchResult, front_table
from sah.report.records import collect_points, read_records
from sah.report.table import (
    error_note,
    fidelity_note,
    markdown_table,
    print_built,
    print_lines,
    print_table,
    speed_note,
)
from sah.report.verdicts import correct_points, correction_note
from sah.runners.launcher import planning
from sah.runners.records import clear_records
from sah.runners.search import check_directions, collect_search, keep_search
from sah.runners.sweep_tracking import track_sweep


class SweepSummary(Callback):
    """Reads what the jobs of a sweep left in their folders; needs no model."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Forget the records of an earlier sweep in the same folder; a plan keeps them, and its search is kept nowhere.

        Args:
            config: The sweep's config.
            **kwargs: Not used.

        Raises:
            SystemExit: With 1 if the sweeper would seek something else than the objectives.
        """
        try:
            check_directions(config)
        except ConfigError as error:
            print_error(str(error))
            raise SystemExit(1) from None
        if not planning.get():
            clear_records(Path(config.hydra.sweep.dir))
        elif config.hydra.sweeper.get("storage") is not None:
            # The sweeper is made of this config next, and would begin trials there that nobody ends.
            with read_write(config), open_dict(config):
                config.hydra.sweeper.storage = None
            print_lines("hydra.sweeper.storage is left alone: these are the first trials of a new study.")

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print and write the sweep's table, and the Pareto set where there are several objectives.

        Args:
            config: The sweep's config.
            **kwargs: Not used.

        Raises:
            SystemExit: With 1 if any point failed.
        """
        if planning.get():
            return
        folder = Path(config.hydra.sweep.dir).resolve()
        records = read_records(folder)
        points, notes = collect_points(records)
        points = correct_points(points)
        notes = [correction_note(points), fidelity_note(points), error_note(points), speed_note(points), *notes]
        print_table(points, f"{len(points)} point{'' if len(points) == 1 else 's'}")
        print_lines(*notes, f"Sweep: {folder}")
        page = [markdown_table(points), *filter(None, notes)]
        (folder / "table.md").write_text("\n".join(page) + "\n", encoding="utf-8")
        search = collect_search(records)
        unwritten = search is not None and not self._keep(search, folder)
        print_lines(f"Tracker: {location}" if (location := track_sweep(folder, config, search)) else "")
        if config.get("report", True) and records:
            _write_report(folder)
        failed = [record for record in records if record["status"] != "ok"]
        for record in failed:
            print_error(f"Failed: {' '.join(record['overrides'])}: {record.get('error')}")
        if failed or unwritten:
            raise SystemExit(1)

    @staticmethod
    def _keep(search: SearchResult, folder: Path) -> bool:
        """Print and keep the Pareto set; tell whether that worked."""
        print_built(front_table(search))
        try:
            keep_search(search, folder)
        except StateError as error:
            print_error(str(error))
            return False
        return True


def _write_report(folder: Path) -> None:
    """Write the sweep's page. What fails here is one warning: the sweep and its results are as they were."""
    try:
        from sah.report.load import load_report
        from sah.report.local import FOLDER
        from sah.report.page import write_report

        page = write_report(load_report(folder), folder / FOLDER)
    except Exception as error:
        print_error(
            f"The report of this sweep was not written: {error or type(error).__name__}\n"
            f"Its results are complete. Try again by: {shlex.join(['python', '-m', 'sah.report', str(folder)])}"
        )
        return
    print_lines(f"Report: {page}")
