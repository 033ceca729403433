"""Axes that belong to one masker: suggested where the recipe holds it, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Transformer
from omegaconf import DictConfig

from sah.config.build import build_experiment
from sah.config.search import suggest
from sah.errors import ConfigError

Composed = Callable[..., DictConfig]
optuna.logging.set_verbosity(optuna.logging.WARNING)


def trial_of(**params: list[Any]) -> optuna.trial.Trial:
    """A real trial that has its own axes already."""
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    for name, choices in params.items():
        trial.suggest_categorical(name, choices)
    return trial


def suggested(config: DictConfig, masker: str) -> dict[str, tuple[Any, ...]]:
    """What is suggested for a recipe, with the choices that there were."""
    trial = trial_of(masker=[masker])
    suggest(config, trial)
    return {name: trial.distributions[name].choices for name in trial.params if name != "masker"}


def test_a_recipe_is_given_the_axes_of_its_maskers(composed: Composed) -> None:
    config = composed("+search.quest.page_size='8,16'", "+search.local.window_size='range(16,49,16)'")
    assert suggested(config, "topk") == {}
    assert suggested(config, "quest") == {"masker.quest.page_size": (8, 16)}
    assert suggested(config, "[sink,local,quest]") == {
        "masker.local.window_size": (16, 32, 48),
        "masker.quest.page_size": (8, 16),
    }


def test_a_recipe_that_is_the_same_in_all_trials(composed: Composed) -> None:
    config = composed("masker=quest", "+search.quest.page_size='8,16'")
    trial = trial_of()
    suggest(config, trial)
    assert set(trial.params) == {"masker.quest.page_size"}
    trial = trial_of()
    trial.set_user_attr("masker", "topk")
    suggest(config, trial)
    assert trial.params == {}


def test_a_value_given_for_all_trials_is_not_suggested_again(composed: Composed) -> None:
    trial = trial_of(masker=["quest"])
    trial.set_user_attr("masker.quest.page_size", "4")
    suggest(composed("+search.quest.page_size='8,16'"), trial)
    assert set(trial.params) == {"masker"}


@pytest.mark.parametrize(
    ("written", "choices"),
    [
        ("16", (16,)),
        ("null", ("null",)),
        ("'null,4'", ("null", 4)),
        ("'[0,1],[2]'", ("[0,1]", "[2]")),
        ("0.5", (0.5,)),
        ("'head,group'", ("head", "group")),
    ],
)
def test_values_are_written_as_in_a_sweep(composed: Composed, written: str, choices: tuple[Any, ...]) -> None:
    assert suggested(composed(f"+search.quest.field={written}"), "quest") == {"masker.quest.field": choices}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("+search.quest.page_size='interval(8,16)'", "search.quest.page_size"),
        ("+search.quest.page_size=[8,16]", "search.quest.page_size"),
        ("+search.quest.page_size='8,,16'", "search.quest.page_size"),
        ("+search.quest=16", "search.quest=16"),
        ("+search.qest.page_size=16", "search.quest=..."),
    ],
)
def test_what_cannot_be_tried_is_told(composed: Composed, given: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        suggest(composed(given), trial_of(masker=["quest"]))
    assert message in str(caught.value)


def axis(config: DictConfig, name: str) -> list[Any]:
    """The choices of one of the sweeper's own axes."""
    override = OverridesParser.create().parse_override(f"{name}={config.hydra.sweeper.params[name]}")
    return list(override.sweep_iterator(transformer=Transformer.encode))


@pytest.mark.parametrize("preset", ["search_density", "search_bytes"])
def test_no_trial_of_the_presets_is_invalid(preset: str, composed: Composed) -> None:
    from hydra import compose

    config = compose("config", overrides=[f"+experiment={preset}"], return_hydra_config=True)
    assert set(config.hydra.sweeper.params) == {"masker", "density"}
    tried: set[tuple[str, ...]] = set()
    for masker in axis(config, "masker"):
        trial = trial_of(masker=[masker], density=[axis(config, "density")[0]])
        suggest(config, trial)
        overrides = [f"{name}={value}" for name, value in trial.params.items()]
        tried.add(tuple(overrides))
        experiment = build_experiment(composed(f"+experiment={preset}", *overrides))
        assert experiment.objectives == ("score", preset.removeprefix("search_"))
    assert any("masker.adaptive.epsilon" in name for overrides in tried for name in overrides)
