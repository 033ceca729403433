"""Finds every data set by walking this package, so that no list of them exists. Imports nothing heavy."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache

from sah.data.config import DatasetConfig
from sah.errors import ConfigError


@cache
def _walk() -> tuple[type[DatasetConfig], ...]:
    """Import each module here named `config` or `*_config` and collect the data sets defined in it."""
    import sah.data as package

    found: list[type[DatasetConfig]] = []
    for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if info.ispkg or not info.name.rpartition(".")[2].endswith("config"):
            continue
        module = importlib.import_module(info.name)
        for value in vars(module).values():
            if (
                isinstance(value, type)
                and issubclass(value, DatasetConfig)
                and value.__module__ == module.__name__
                and not inspect.isabstract(value)
            ):
                found.append(value)
    return tuple(found)


def dataset_configs() -> dict[str, type[DatasetConfig]]:
    """Find the config class of every data set that ships with sah.

    Returns:
        Command-line name to config class, in alphabetical order.

    Raises:
        ConfigError: If two data sets share a name, or one has none.
    """
    return index_by_name(_walk())


def index_by_name(classes: tuple[type[DatasetConfig], ...]) -> dict[str, type[DatasetConfig]]:
    """Key config classes by their command-line name.

    Args:
        classes: Config classes of data sets.

    Returns:
        Name to class, in alphabetical order.

    Raises:
        ConfigError: If two classes share a name, or one has none.
    """
    named: dict[str, type[DatasetConfig]] = {}
    for cls in classes:
        path = f"{cls.__module__}.{cls.__qualname__}"
        if not cls.name:
            raise ConfigError(f"The data set {path} has no name. Write in the class: name: ClassVar[str] = 'my_name'")
        if cls.name in named:
            other = named[cls.name]
            raise ConfigError(
                f"Two data sets are called {cls.name!r}: {other.__module__}.{other.__qualname__} and "
                f"{path}. Rename one."
            )
        named[cls.name] = cls
    return dict(sorted(named.items()))
