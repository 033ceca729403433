"""Weights & Biases (wandb 0.31).

A run is told in one piece under an id that stays: its tables, figures and numbers are one history row, step 0. wandb's
`resume` is left unset, so that a run of that id which is there already is replaced, row 0 included. A resumed point or
sweep is therefore the same run, without a second copy of its tables, and the order in which `wandb sync` uploads
several offline runs of one id makes no more difference than which of them is the last.

Its files lie in the run's folder and nowhere in the working folder. Console output, code, installed packages and
machine data are not captured: the configuration and the results say what they must.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from sah.errors import ConfigError, StateError
from sah.tracking.base import ARTIFACT_TYPE, RunInfo, artifact_name, plain_cell
from sah.tracking.wandb_config import WandbConfig

Mode = Literal["online", "offline", "disabled"]

_log = logging.getLogger(__name__)
_ENVIRONMENT_MODES: dict[str, Mode] = {
    "online": "online",
    "run": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}
_MAX_TAG = 64  # the server's limit

_told: set[str] = set()
"""Packages of which this process has said that they are missing."""

_refused: set[str] = set()
"""Servers that could not be used in this process; `auto` does not wait for them again."""


class WandbTracker:
    """A tracker that writes one wandb run.

    Args:
        config: Mode, project and the like.
    """

    def __init__(self, config: WandbConfig) -> None:
        self._config = config
        self._run: Any = None
        self._mode: Mode = "disabled"
        self._row: dict[str, Any] = {}

    @property
    def location(self) -> str | None:
        """The run's page, or its folder with the command that uploads it."""
        if self._run is None or self._mode == "disabled":
            return None
        if self._mode == "online":
            return str(self._run.url)
        return f"{self._run.settings.sync_dir} (upload it with: wandb sync {self._run.settings.sync_dir})"

    def start(self, info: RunInfo) -> None:
        """Begin a wandb run, or take up the one of the same id.

        Args:
            info: The run.

        Raises:
            ConfigError: If wandb is not installed.
            StateError: If wandb refuses. With mode `auto` a refusing server leads to an offline run instead.
        """
        server = server_url()
        if self._config.mode == "auto":
            self._mode = _automatic_mode(server)
            if self._mode == "online":
                try:
                    self._run = self._init(info, "online")
                    return
                except Exception as error:
                    _refused.add(server)
                    why = _told_clearly(error, server)
                    _log.warning("No online run on %s (%s). This and later runs are kept offline.", server, why)
                    self._mode = "offline"
                    _forget_failed_run()
        else:
            self._mode = _ENVIRONMENT_MODES[self._config.mode]
        try:
            self._run = self._init(info, self._mode)
        except Exception as error:
            raise StateError(_told_clearly(error, server)) from error

    def log_summary(self, values: Mapping[str, Any]) -> None:
        """Set the run's summary.

        Args:
            values: JSON data; nested dicts become nested summary keys.
        """
        self._run.summary.update(dict(values))

    def log_metrics(self, values: Mapping[str, float], axis: str | None = None) -> None:
        """Declare and log numbers.

        Args:
            values: Name to number.
            axis: Which of them charts draw the others over.
        """
        for name in values:
            # No summary= here: with it the summary holds {"last": value}, which charts over runs do not read.
            self._run.define_metric(name, step_metric=axis if axis in values and name != axis else None)
        self._row |= values

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a `wandb.Table`.

        Args:
            name: Its key.
            columns: Column names.
            rows: Cells; what is no scalar is written as JSON.
        """
        import wandb

        cells = [[plain_cell(value) for value in row] for row in rows]
        self._row[name] = wandb.Table(columns=list(columns), data=cells, allow_mixed_types=True)

    def log_figure(self, name: str, figure: Mapping[str, Any]) -> None:
        """Log a `wandb.Plotly`. Without the package plotly there are no figures, which is told once.

        Args:
            name: Its key.
            figure: Plotly's JSON.
        """
        import wandb

        try:
            from plotly.graph_objects import Figure
        except ImportError:
            if "plotly" not in _told:
                _told.add("plotly")
                _log.warning("Figures are not logged: they need the package 'plotly'. Run: pip install 'sah[reports]'")
            return
        self._row[name] = wandb.Plotly(Figure(dict(figure)))

    def log_artifact(self, name: str, files: Mapping[str, Path]) -> None:
        """Log a `wandb.Artifact` of the type `results`. Equal files are the same version.

        Args:
            name: Its name; what W&B does not allow in one becomes a dash.
            files: Path inside it to a file on disk, copied at once.
        """
        import wandb

        artifact = wandb.Artifact(artifact_name(name), type=ARTIFACT_TYPE)
        with _staging(self._run):
            for inside, path in files.items():
                artifact.add_file(str(path), name=inside, skip_cache=True)
        self._run.log_artifact(artifact)

    def finish(self, failed: bool = False) -> None:
        """End the run, waiting for uploads as long as the config allows. What is left then stays on disk.

        Args:
            failed: Whether to mark the run as failed.
        """
        if self._run is None:
            return
        run, self._run = self._run, None
        try:
            if self._row:
                with _staging(run):
                    run.log(self._row)
        finally:
            try:
                run.finish(exit_code=1 if failed else 0)
            except TimeoutError:
                server = str(run.settings.base_url)
                _refused.add(server)
                _log.warning(
                    "%s did not take all of this run within %g s. Its numbers, tables and figures are on disk; upload "
                    "them with: wandb sync %s. The same command sends all of it again. Later runs are kept offline, "
                    "unless they ask for mode=online.",
                    server,
                    self._config.finish_timeout,
                    run.settings.sync_dir,
                )

    def _init(self, info: RunInfo, mode: Mode) -> Any:
        import wandb

        info.folder.mkdir(parents=True, exist_ok=True)
        tags = dict.fromkeys(tag[:_MAX_TAG] for tag in (*info.tags, *self._config.tags))
        settings = wandb.Settings(
            console="off",
            silent=True,
            disable_code=True,
            disable_git=True,
            save_code=False,
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
            x_disable_stats=not self._config.system_stats,
            init_timeout=self._config.start_timeout,
            finish_timeout=self._config.finish_timeout,
            finish_timeout_raises=True,
        )
        return wandb.init(
            project=self._config.project,
            entity=self._config.entity,
            id=info.run_id,
            name=info.name,
            group=self._config.group or info.group,
            job_type=info.job_type,
            tags=list(tags),
            config=dict(info.config),
            dir=str(info.folder.absolute()),
            mode=mode,
            reinit="create_new",
            allow_val_change=True,
            settings=settings,
        )


def environment_mode() -> Mode | None:
    """Read WANDB_MODE; None where it says nothing that is known."""
    return _ENVIRONMENT_MODES.get(os.environ.get("WANDB_MODE", ""))


def key_is_configured(server: str) -> bool:
    """Ask wandb whether it has credentials, without network: environment, netrc, or wandb's own settings.

    Args:
        server: The server's URL.

    Returns:
        Whether there are any.

    Raises:
        wandb.errors.AuthenticationError: If there are some that cannot be right.
    """
    from wandb.sdk.lib import wbauth

    found = wbauth.authenticate_session(host=server, source="sah", prompt=False, update_session=False)
    return found is not None


def server_url() -> str:
    """Ask wandb which server it would talk to, without network.

    Returns:
        The server's URL.

    Raises:
        ConfigError: If wandb is not installed.
    """
    # wandb's usage telemetry is off unless asked for: to a server that is gone it holds the process up for 20 s
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        import wandb
    except ImportError as error:
        raise ConfigError(
            "tracker=wandb needs the package 'wandb', which is not installed. "
            "Run: pip install wandb, or write tracker=none"
        ) from error
    return str(wandb.setup().settings.base_url)


@contextmanager
def _staging(run: Any) -> Iterator[None]:
    """Let wandb put its copies of the files of tables and artifacts beside the run, not into the home folder."""
    if "WANDB_DATA_DIR" in os.environ:
        yield
        return
    os.environ["WANDB_DATA_DIR"] = str(run.settings.wandb_dir)
    try:
        yield
    finally:
        del os.environ["WANDB_DATA_DIR"]


def _told_clearly(error: Exception, server: str) -> str:
    told = " ".join(str(error).split())
    if "not logged in" in told or "401" in told:
        return f"{server} refuses the API key: {told}; mend it with: wandb login --relogin"
    return told


def _forget_failed_run() -> None:
    """End wandb's helper process, which otherwise holds the id of a run that did not start."""
    import wandb

    wandb.teardown()


def _automatic_mode(server: str) -> Mode:
    asked = environment_mode()
    if asked is not None:
        return asked
    if server in _refused:
        return "offline"
    try:
        return "online" if key_is_configured(server) else "offline"
    except Exception as error:
        _log.warning("The credentials for %s cannot be used (%s). The run is kept offline.", server, error)
        return "offline"
