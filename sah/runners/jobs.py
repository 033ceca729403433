"""The jobs of a sweep, all composed and validated before any of them runs. Imports no model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from sah.config.build import build_experiment
from sah.config.compose import SweepComposer
from sah.config.experiment import Experiment
from sah.config.explain import explain
from sah.config.overrides import check_choices
from sah.errors import ConfigError
from sah.results.redact import redacted_argument

_SHOWN = 3
"""How many jobs with the same mistake are named."""


@dataclass(frozen=True)
class Job:
    """One job of a sweep."""

    number: int
    overrides: tuple[str, ...]
    experiment: Experiment
    config: dict[str, Any]
    """The composed config as plain data, without Hydra's own part."""

    def text(self, common: Iterable[str] = ()) -> str:
        """Give its overrides as one line, secrets hidden.

        Args:
            common: Overrides to leave out.
        """
        return " ".join(redacted_argument(given) for given in self.overrides if given not in common)


Mistakes = Mapping[int, Sequence[str]]
"""Number of a job to the messages of its mistakes."""


def compose_jobs(composer: SweepComposer, batch: Mapping[int, Sequence[str]]) -> list[Job]:
    """Compose and validate jobs.

    Args:
        composer: Of the sweep.
        batch: Number of each job to its overrides.

    Returns:
        The jobs, in order.

    Raises:
        ConfigError: If any of them cannot be run; it tells of the mistakes of all.
    """
    jobs: list[Job] = []
    mistakes: dict[int, Sequence[str]] = {}
    for number, overrides in batch.items():
        try:
            check_choices(overrides)
            config = composer.compose_task(overrides, number)
            with _as_running(partial(composer.compose, overrides, number)):
                jobs.append(Job(number, tuple(overrides), build_experiment(config), plain_config(config)))
        except ConfigError as error:
            mistakes[number] = error.mistakes or (str(error),)
        except (HydraException, OmegaConfBaseException) as error:
            mistakes[number] = (explain(error, overrides),)
    if mistakes:
        raise refusal(mistakes, batch)
    return jobs


def plain_config(config: DictConfig) -> dict[str, Any]:
    """Take a composed config as plain data, interpolations resolved; what was not given stays `???`."""
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=False)
    return {str(key): value for key, value in plain.items()} if isinstance(plain, dict) else {}


def refusal(mistakes: Mistakes, batch: Mapping[int, Sequence[str]]) -> ConfigError:
    """Tell the mistakes of many jobs at once, equal ones together.

    Args:
        mistakes: The mistakes of the jobs that have any.
        batch: The overrides of all jobs.

    Returns:
        The error, to be raised by the caller.
    """
    by_message: dict[str, list[int]] = {}
    for number, messages in mistakes.items():
        for message in dict.fromkeys(messages):
            by_message.setdefault(message, []).append(number)
    if len(batch) == 1:
        error = ConfigError("\n".join(by_message))
        error.mistakes = tuple(by_message)
        return error
    common = common_overrides(list(batch.values()))
    lines = [f"{len(mistakes)} of {len(batch)} points cannot be run, so none was started:"]
    for place, (message, numbers) in enumerate(by_message.items(), start=1):
        lines += [f"  {place}. {message}", f"     {jobs_in_words(numbers, batch, common)}"]
    error = ConfigError("\n".join(lines))
    error.mistakes = tuple(by_message)
    return error


def common_overrides(batch: Sequence[Sequence[str]]) -> list[str]:
    """Find the overrides that all jobs share, in the order of the first one; none if there is one job only."""
    if len(batch) < 2:
        return []
    shared = set.intersection(*(set(overrides) for overrides in batch))
    return [given for given in batch[0] if given in shared]


def jobs_in_words(numbers: Sequence[int], batch: Mapping[int, Sequence[str]], common: Iterable[str]) -> str:
    """Name the jobs with a mistake.

    Args:
        numbers: Of these jobs.
        batch: The overrides of all jobs.
        common: Overrides that all share.

    Returns:
        A sentence with the numbers of a few and what tells them from others.
    """
    if len(numbers) == len(batch):
        return f"In all {len(batch)} points."
    named = []
    for number in numbers[:_SHOWN]:
        telling = [redacted_argument(text) for text in batch[number] if text not in common]
        named.append(f"{number} ({' '.join(telling)})")
    more = len(numbers) - len(named)
    points = "point" if len(numbers) == 1 else f"{len(numbers)} points:"
    return f"In {points} {', '.join(named)}{f' and {more} more' if more else ''}."


class _HydraOfJob:
    """Stands for what Hydra knows of a job while its values are resolved; composed if a value asks for it."""

    def __init__(self, compose: Callable[[], DictConfig]) -> None:
        self._compose = compose

    @cached_property
    def hydra(self) -> Any:
        """Hydra's own part of the job's config, as it is while the job runs."""
        config: Any = self._compose()
        folder = os.path.join(str(config.hydra.sweep.dir), str(config.hydra.sweep.subdir))
        with read_write(config.hydra.runtime), open_dict(config.hydra.runtime):
            config.hydra.runtime.output_dir = os.path.abspath(folder)
        return config.hydra


@contextmanager
def _as_running(compose: Callable[[], DictConfig]) -> Iterator[None]:
    """Let `${hydra:...}` find what it will find when the job runs."""
    instance: Any = HydraConfig.instance()
    before = instance.cfg
    instance.cfg = _HydraOfJob(compose)
    try:
        yield
    finally:
        instance.cfg = before
