"""Axes of a search that belong to one masker, and are tried only in recipes that hold it.

A sweeper's own axes (`hydra.sweeper.params`) hold for every trial, so a recipe without Quest would refuse
`masker.quest.page_size`. The config's `search` section names such axes by masker, their values written as in a sweep
(`quest: {page_size: "8,16,32"}`), and `custom_search_space: sah.config.search.suggest` gives them to Optuna's sweeper.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Transformer
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from sah.config.mistakes import unknown_key
from sah.errors import ConfigError, bad_value


class Trial(Protocol):
    """What is used of `optuna.trial.Trial`."""

    @property
    def params(self) -> dict[str, Any]:
        """Override keys to the values suggested so far."""

    @property
    def user_attrs(self) -> dict[str, Any]:
        """Override keys to the values that are the same in every trial."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Choose one of several values."""


def suggest(config: DictConfig, trial: Trial) -> None:
    """Suggest the values of the `search` section that the trial's recipe can take.

    Args:
        config: The sweep's config.
        trial: The trial; it has the values of the sweeper's own axes already, the recipe among them.

    Raises:
        ConfigError: If the section is not made of maskers, fields and choices.
    """
    search: Any = OmegaConf.to_container(config.search, resolve=True)
    recipe = _recipe(config, trial)
    _check_names(search, recipe)
    for masker in recipe:
        fields = search.get(masker) or {}
        if not isinstance(fields, Mapping):
            raise bad_value(f"search.{masker}", fields, "fields of the masker", f"search.{masker}.density=0.05,0.1")
        for field, written in fields.items():
            name = f"masker.{masker}.{field}"
            if name not in trial.user_attrs:
                trial.suggest_categorical(name, _choices(f"search.{masker}.{field}", written))


def _recipe(config: DictConfig, trial: Trial) -> list[str]:
    """Return the keys of the trial's maskers."""
    written = trial.params.get("masker", trial.user_attrs.get("masker"))
    if written is None:
        return [str(key) for key in config.masker]
    value = OverridesParser.create().parse_override(f"masker={written}").value()
    return [str(name) for name in (value if isinstance(value, list) else [value])]


def _check_names(search: Mapping[str, Any], recipe: Iterable[str]) -> None:
    """Refuse a masker that does not exist, since nothing would ever be tried for it."""
    hydra = GlobalHydra.instance()
    known = {*recipe, *(hydra.config_loader().get_group_options("masker") if hydra.is_initialized() else search)}
    for name in search:
        if name not in known:
            raise ConfigError(unknown_key(f"search.{name}", known))


def _choices(key: str, written: Any) -> list[Any]:
    """Read choices written as in a sweep; null, lists and quoted words stay as they are written."""
    allowed = "values as in a sweep, such as 8,16,32 or range(8,33,8); no interval"
    if isinstance(written, (list, Mapping)):
        raise bad_value(key, written, allowed, f"'{key}=8,16,32'")
    try:
        override = OverridesParser.create().parse_override(f"{key}={'null' if written is None else written}")
        if override.is_choice_sweep() or override.is_range_sweep():
            return list(override.sweep_iterator(transformer=Transformer.encode))
        if not override.is_sweep_override():
            return [Transformer.encode(override.value())]  # type: ignore[arg-type]  # no sweep, so a plain value
    except HydraException as error:
        raise bad_value(key, written, allowed, f"'{key}=8,16,32'") from error
    raise bad_value(key, written, allowed, f"'{key}=8,16,32'")
