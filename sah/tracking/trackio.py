"""trackio (0.43), a local tracker of Hugging Face's: runs in an SQLite file, shown by `trackio show`.

It has no summary, tags, job types or declared metrics. Numbers of the summary become metrics of the one step that a run
has here; the rest of the summary, tags and job type stand in its config. Figures come as one HTML page a sweep, with
Plotly's script in it, since trackio's own form of them is blank without a network; a point's heatmaps are in the
sweep's. A run that is told again replaces the earlier one of its name.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sah.errors import missing_extra
from sah.tracking.base import ARTIFACT_TYPE, RunInfo, artifact_name, plain_cell
from sah.tracking.trackio_config import TrackioConfig

_log = logging.getLogger(__name__)
SWEEP_JOB = "sweep"


class TrackioTracker:
    """A tracker that writes one trackio run.

    Args:
        config: Project and group.
    """

    def __init__(self, config: TrackioConfig) -> None:
        self._config = config
        self._run: Any = None
        self._info: RunInfo | None = None
        self._said: dict[str, Any] = {}
        self._row: dict[str, Any] = {}
        self._pages: list[str] = []

    @property
    def location(self) -> str | None:
        """The Space, the server, or the local folder with the command that shows it."""
        if self._run is None:
            return None
        if self._run.url:
            return str(self._run.url)
        from trackio.utils import TRACKIO_DIR

        return f"{TRACKIO_DIR} (look at it with: trackio show --project {self._config.project})"

    def start(self, info: RunInfo) -> None:
        """Begin a run; an earlier one of the same id is removed when this one ends.

        Args:
            info: The run.

        Raises:
            ConfigError: If trackio is not installed.
            RuntimeError: If trackio tells of trouble.
        """
        # The Hub client that trackio brings must not send usage data for a run that stays on this machine.
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        try:
            import trackio
        except ImportError as error:
            raise missing_extra("trackio", "trackio", "tracker=trackio") from error
        self._info = info
        with _heard():
            self._run = trackio.init(
                project=self._config.project,
                name=run_name(info),
                group=self._config.group or info.group,
                config={**info.config, "run_id": info.run_id, "job_type": info.job_type, "tags": list(info.tags)},
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def log_summary(self, values: Mapping[str, Any]) -> None:
        """Keep numbers as metrics, and the rest in the run's config.

        Args:
            values: JSON data.
        """
        for name, value in values.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            (self._row if is_number else self._said)[name] = value

    def log_metrics(self, values: Mapping[str, float], axis: str | None = None) -> None:
        """Log numbers; trackio draws all over the step.

        Args:
            values: Name to number.
            axis: Not used.
        """
        self._row |= values

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a `trackio.Table`.

        Args:
            name: Its key.
            columns: Column names.
            rows: Cells; what is no scalar is written as JSON.
        """
        import trackio

        cells = [[plain_cell(value) for value in row] for row in rows]
        self._row[name] = trackio.Table(columns=list(columns), data=cells)

    def log_figure(self, name: str, figure: Mapping[str, Any]) -> None:
        """Take a figure into the page of a sweep; without the package plotly there is none.

        Args:
            name: Not used.
            figure: Plotly's JSON.
        """
        if self._info is None or self._info.job_type != SWEEP_JOB:
            return
        try:
            from plotly.graph_objects import Figure
        except ImportError:
            _log.warning("Figures are not logged: they need the package 'plotly'. Run: pip install 'sah[reports]'")
            return
        script = not self._pages  # the first brings it for all
        self._pages.append(Figure(dict(figure)).to_html(full_html=False, include_plotlyjs=script))

    def log_artifact(self, name: str, files: Mapping[str, Path]) -> None:
        """Log a `trackio.Artifact` of the type `results`. Equal files are the same version.

        Args:
            name: Its name.
            files: Path inside it to a file on disk.
        """
        import trackio

        artifact = trackio.Artifact(artifact_name(name), type=ARTIFACT_TYPE)
        for inside, path in files.items():
            artifact.add_file(path, name=inside)
        with _heard():
            self._run.log_artifact(artifact)

    def finish(self, failed: bool = False) -> None:
        """Write the run and end it.

        Args:
            failed: Noted in the run's config.

        Raises:
            RuntimeError: If trackio tells of trouble.
        """
        if self._run is None:
            return
        import trackio

        run, self._run = self._run, None
        if self._pages:
            self._row["figures"] = trackio.Html("<html><body>" + "\n".join(self._pages) + "</body></html>")
        run.config |= {"summary": self._said, "failed": failed}
        with _heard():
            if self._info is not None and not run.url:
                _remove_earlier(self._config.project, run_name(self._info), run.id)
            run.log(self._row or {"failed": int(failed)})
            finish: Any = trackio.finish  # of the run that was begun last, which is this one
            finish()


def run_name(info: RunInfo) -> str:
    """Name a run; trackio knows runs by their names."""
    return f"{info.name} {info.run_id}"


@contextlib.contextmanager
def _heard() -> Iterator[None]:
    """Keep what trackio prints out of the output, and raise what it warns of, which it never raises."""
    with warnings.catch_warnings(record=True) as told, contextlib.redirect_stdout(io.StringIO()) as printed:
        warnings.simplefilter("always")
        yield
    _log.debug("trackio: %s", printed.getvalue())
    trouble = [str(entry.message) for entry in told if "trackio" in Path(entry.filename).parts]
    if trouble:
        raise RuntimeError("; ".join(trouble))


def _remove_earlier(project: str, name: str, kept: str) -> None:
    import trackio

    with contextlib.suppress(ValueError):  # of a project that does not exist yet
        for run in trackio.Api().runs(project):
            if run.name == name and run.id != kept:
                run.delete()
