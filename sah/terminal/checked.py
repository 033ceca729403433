"""Composes and validates all points of a command line without computing anything, and collects all mistakes."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from sah.config.compose import SweepComposer
from sah.config.diagnose import Diagnoser, parsed
from sah.config.experiment import Experiment
from sah.config.explain import explain
from sah.config.launcher import LAUNCHER
from sah.config.paths import conf_dir
from sah.config.register import register_configs
from sah.config.search import suggest
from sah.errors import ConfigError
from sah.results.redact import redacted_argument
from sah.runners.jobs import Mistakes, common_overrides, compose_jobs, jobs_in_words
from sah.runners.launcher import read_options
from sah.runners.search import check_directions
from sah.runners.sweeper import GroupedSweeper, register_plugins

_SCHEME = re.compile(r"\w{2,}:")


@dataclass
class Checked:
    """What a command line would do."""

    mistakes: list[str] = field(default_factory=list)
    """The message of each, with the points that it is in where it is not in all."""

    experiments: list[Experiment] = field(default_factory=list)
    """The points without a mistake."""

    jobs: int = 0
    """All points that were composed."""

    sweep: bool = False
    trials: int | None = None
    """Most points of a search, which chooses them while it runs; `jobs` are then samples of all its values."""

    @property
    def different(self) -> int:
        """Count the points that differ in more than a top-level density that their recipe does not read."""
        return len({repr(dataclasses.replace(experiment, density=1.0)) for experiment in self.experiments})


def check_command(overrides: Sequence[str], *, multirun: bool = False, config_dir: Path | None = None) -> Checked:
    """Compose and validate all points of a command line.

    Args:
        overrides: As for `python -m sah.run`.
        multirun: Whether `-m` was given.
        config_dir: A folder of the user's own groups, as Hydra's `--config-dir`.

    Returns:
        The points and all mistakes.

    Raises:
        ConfigError: If there is no such folder.
    """
    checked = Checked()
    with _hydra(config_dir) as loader:
        fixed, axes = _parted(overrides, checked)
        master = Diagnoser(loader, RunMode.MULTIRUN).compose(fixed)
        checked.mistakes += master.mistakes
        if master.config is None:
            return checked
        checked.sweep = multirun or bool(axes) or str(master.config.hydra.mode) == str(RunMode.MULTIRUN)
        if axes and not multirun and str(master.config.hydra.mode) != str(RunMode.MULTIRUN):
            for axis in axes:
                checked.mistakes.append(
                    f"{redacted_argument(str(axis.input_line))}: several values make a sweep, which needs -m. "
                    "A list as one value is written in brackets and quotes, for example 'key=[a,b]'"
                )
        hydra_own = [text for text in master.kept if _is_hydra(text)]
        task = [text for text in master.kept if not _is_hydra(text)]
        batch = _batch(loader, master.config, task, axes, checked)
        _check_jobs(loader, master.config, hydra_own, batch, checked)
    return checked


@contextmanager
def _hydra(config_dir: Path | None) -> Iterator[ConfigLoaderImpl]:
    register_configs()
    register_plugins()
    path = create_config_search_path(str(conf_dir()))
    if config_dir is not None:
        if not config_dir.is_dir():
            raise ConfigError(f"--config-dir {config_dir} is no folder. Give one that holds groups: masker/my.yaml")
        # As Hydra's own --config-dir.
        path.prepend("command-line", f"file://{config_dir.absolute()}", anchor=SearchPathQuery(provider="schema"))
    GlobalHydra.instance().clear()
    loader = Hydra.create_main_hydra2("sah", path).config_loader
    if not isinstance(loader, ConfigLoaderImpl):
        raise TypeError(f"Hydra's loader is {type(loader).__name__}, of which mistakes cannot be collected")
    try:
        yield loader
    finally:
        GlobalHydra.instance().clear()


def _parted(overrides: Iterable[str], checked: Checked) -> tuple[list[str], list[Override]]:
    """Part overrides into single ones and the axes of a sweep."""
    fixed: list[str] = []
    axes: list[Override] = []
    for text in overrides:
        try:
            override = parsed(text)
        except HydraException:
            fixed.append(text)  # told where all single ones are judged
            continue
        if not override.is_sweep_override():
            fixed.append(text)
        elif _is_hydra(text):
            checked.mistakes.append(
                f"{redacted_argument(text)}: Hydra's own settings take one value each, also in a sweep. Give one, "
                "or write a list in brackets and quotes"
            )
        else:
            axes.append(override)
    return fixed, axes


def _is_hydra(text: str) -> bool:
    return re.match(r"[+~]*hydra[./=@]", text) is not None


def _batch(
    loader: ConfigLoaderImpl, master: DictConfig, task: Sequence[str], axes: Sequence[Override], checked: Checked
) -> dict[int, list[str]]:
    """Make the jobs: all of a grid, or samples of a search; a single run is one job."""
    if not checked.sweep:
        return {0: list(task)}
    sweeper: Any = master.hydra.sweeper
    if master.hydra.launcher.get("_target_") == LAUNCHER:
        checked.mistakes += _told(lambda: read_options(master))
    checked.mistakes += _told(lambda: check_directions(master))
    params = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    given: list[Override] = []
    for text in [*params, *task, *(str(axis.input_line) for axis in axes)]:
        try:
            given.append(parsed(text, loader))
        except HydraException as error:
            checked.mistakes.append(explain(error, [text]))
    if "n_trials" in sweeper:
        checked.trials = int(sweeper.n_trials)
        return dict(enumerate(_samples(master, given, checked)))
    usable = []
    for override in given:
        if override.is_sweep_override() and not override.is_discrete_sweep():
            checked.mistakes.append(
                f"{override.input_line}: a grid takes single values, no interval. Write them one by one, for example "
                f"{override.key_or_group}=0.05,0.1, or search with hydra/sweeper=optuna"
            )
        else:
            usable.append(override)
    (jobs,) = GroupedSweeper.split_arguments(usable, None)
    return dict(enumerate(jobs))


def _samples(master: DictConfig, given: Sequence[Override], checked: Checked) -> list[list[str]]:
    """Make jobs in which every value of every axis of a search comes once; other axes have their first value."""
    axes: dict[str, list[str]] = {}
    for override in given:
        key = override.get_key_element()
        if not override.is_sweep_override():
            axes[key] = [f"{key}={override.get_value_element_as_str()}"]
        elif override.is_discrete_sweep():
            axes[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        elif override.is_interval_sweep():
            ends: Any = override.value()
            axes[key] = [f"{key}={end}" for end in (ends.start, ends.end)]
    first = {key: values[0] for key, values in axes.items()}
    jobs = [list(first.values())]
    for key, values in axes.items():
        jobs += [list({**first, key: value}.values()) for value in values[1:]]
    for masker in axes.get("masker", [""]):
        chosen = {**first, "masker": masker} if masker else first
        trial = _Suggested({"masker": masker.partition("=")[2]} if masker else {})
        checked.mistakes += [text for text in _told(lambda t=trial: suggest(master, t)) if text not in checked.mistakes]
        for name, choices in trial.choices.items():
            jobs += [[*chosen.values(), f"{name}={choice}"] for choice in choices]
    return jobs


@dataclass
class _Suggested:
    """Stands where Optuna's trial does, and takes down what would be chosen from."""

    params: dict[str, Any]
    user_attrs: dict[str, Any] = field(default_factory=dict)
    choices: dict[str, Sequence[Any]] = field(default_factory=dict)

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Take down the choices of one axis."""
        self.choices[name] = choices
        return choices[0]


def _check_jobs(
    loader: ConfigLoaderImpl,
    master: DictConfig,
    hydra_own: Sequence[str],
    batch: Mapping[int, Sequence[str]],
    checked: Checked,
) -> None:
    checked.jobs = len(batch)
    composer = SweepComposer(loader, master)
    diagnoser = Diagnoser(loader, RunMode.RUN)
    mistakes: dict[int, list[str]] = {}
    for number, overrides in batch.items():
        try:
            experiment = compose_jobs(composer, {number: overrides})[0].experiment
        except ConfigError as error:
            # Values that are wrong are all told; where Hydra refused, it stopped at the first override.
            told = error.mistakes if _composes(composer, overrides, number) else ()
            mistakes[number] = list(told) or diagnoser.experiment([*hydra_own, *overrides], number)[1]
            continue
        except (HydraException, OSError, ValueError) as error:
            mistakes[number] = [explain(error, overrides)]
            continue
        if absent := _absent_files(experiment):
            mistakes[number] = absent
        else:
            checked.experiments.append(experiment)
    checked.mistakes += _grouped(mistakes, batch, checked.mistakes)


def _composes(composer: SweepComposer, overrides: Sequence[str], number: int) -> bool:
    try:
        composer.compose_task(overrides, number)
    except (HydraException, OmegaConfBaseException):
        return False
    return True


def _grouped(mistakes: Mistakes, batch: Mapping[int, Sequence[str]], known: Sequence[str]) -> list[str]:
    """Put equal mistakes of several jobs into one, with the jobs that it is in; those told already are left out."""
    by_message: dict[str, list[int]] = {}
    for number, messages in mistakes.items():
        for message in dict.fromkeys(messages):
            if message not in known:
                by_message.setdefault(message, []).append(number)
    if len(batch) == 1:
        return list(by_message)
    common = common_overrides(list(batch.values()))
    return [f"{message}\n{jobs_in_words(numbers, batch, common)}" for message, numbers in by_message.items()]


def _absent_files(experiment: Experiment) -> list[str]:
    """Check that what a point names exists, as far as that is told without reading or loading it."""
    found = []
    path = getattr(experiment.dataset, "path", None)
    if isinstance(path, str) and path and not Path(path).expanduser().exists():
        found.append(f"dataset.path={path} does not exist (looked for {Path(path).expanduser().absolute()})")
    name = experiment.model.name
    if _SCHEME.match(name):
        from sah.adapters.sources import all_sources

        if name not in all_sources():
            found.append(f"model.name={name!r} is not known. Allowed: {', '.join(sorted(all_sources()))}")
    elif name.startswith(("/", "./", "../", "~")) and not Path(name).expanduser().is_dir():
        found.append(f"model.name={name!r}: there is no such folder. Write a local folder or a hub id")
    return found


def _told(action: Any) -> list[str]:
    """Do something, and give the messages of its mistakes."""
    try:
        action()
    except ConfigError as error:
        return list(error.mistakes or (str(error),))
    return []
