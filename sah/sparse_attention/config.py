"""Configs of sparse attention: a recipe of maskers, where it applies, and its two executions. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from sah.config.base import ValidatedConfig
from sah.config.values import check_count
from sah.errors import ConfigError, bad_value
from sah.sparse_attention.layers import Layers, LayerSet, parse_layers
from sah.sparse_attention.masker_config import GROUP, HEAD, MaskerConfig, SelectiveMaskerConfig

QUESTION, DECODE = PHASES = ("question", "decode")
"""The phases that may run sparse: a question's tokens, and the tokens generated after it."""


@dataclass
class SparseAttentionConfig(ValidatedConfig):
    """Base of the configs that `SparseAttention.create_from_config` accepts.

    `attention` is the dotted path of the class that the config builds.
    """

    attention: ClassVar[str] = ""

    phases: list[str] = field(default_factory=lambda: list(PHASES), kw_only=True)
    """Phases that run sparse: `[question, decode]`, or `[decode]` for a dense prompt and a sparse answer."""

    def validate(self) -> None:
        """Check the phases.

        Raises:
            ConfigError: If they are none of the two sets that make sense.
        """
        super().validate()
        check_phases(self.phases)

    def check_layers(self, num_layers: int) -> None:
        """Check that the layers named fit a model; a config that names none fits all.

        Args:
            num_layers: Layers that the model has.

        Raises:
            ConfigError: If they do not.
        """


@dataclass
class MaskedAttentionConfig(SparseAttentionConfig):
    """A recipe of maskers, applied in order, each adding to what the ones before it keep."""

    masker_configs: list[MaskerConfig] = field(default_factory=list)
    """The recipe. A masker that reads the top-level density must have it filled in before."""

    seed: int = 0
    """Seed of every random choice; the layer, the step and the lane's own identity are mixed in."""

    dense_layers: int | str | list[int] = field(default_factory=list)
    """Layers that stay dense, written as `MaskerConfig.layers`; they count with density 1."""

    def validate(self) -> None:
        """Check the recipe as a whole.

        Raises:
            ConfigError: If it is empty, a budget is missing, a layer has two maskers that read a density or two
                samplers, or the phases or dense layers are none.
        """
        super().validate()
        check_count("seed", self.seed)
        check_recipe(self.masker_configs)
        parse_dense_layers(self.dense_layers)

    @property
    def dense_layer_set(self) -> LayerSet:
        """The layers that stay dense."""
        return parse_dense_layers(self.dense_layers)

    def check_layers(self, num_layers: int) -> None:
        """Check that the layers named fit a model, and that in each of its layers something is said to happen.

        Args:
            num_layers: Layers that the model has.

        Raises:
            ConfigError: If a layer is named that the model lacks, a layer is neither dense nor has a masker, a masker
                is left without a layer, or all layers are dense.
        """
        given: list[tuple[str, object, LayerSet]] = [("dense_layers", self.dense_layers, self.dense_layer_set)]
        given += [(config.key("layers"), config.layers, config.layer_set) for config in self.masker_configs]
        for key, value, named in given:
            if named.largest_named >= num_layers:
                last = num_layers - 1
                raise bad_value(key, value, f"the {num_layers} layers of the model, 0 to {last}", f"'{key}=[{last}]'")
        sparse = [layer for layer in range(num_layers) if layer not in self.dense_layer_set]
        if not sparse:
            raise ConfigError(
                f"dense_layers={self.dense_layers!r} are all {num_layers} layers of the model, so none would run "
                "sparse. Allowed: fewer layers. Write masker=dense for the dense baseline"
            )
        without = [layer for layer in sparse if not any(layer in c.layer_set for c in self.masker_configs)]
        if without:
            raise self._without_masker(without)
        for config in self.masker_configs:
            if not any(layer in config.layer_set for layer in sparse):
                raise ConfigError(
                    f"{config.key('layers')}={config.layers!r} leaves {config.name} no layer to work in, since "
                    f"dense_layers={self.dense_layers!r}. Allowed: at least one layer that is not dense. Write for "
                    f"example '{config.key('layers')}=[{sparse[0]}]', or remove {config.name}"
                )

    def _without_masker(self, layers: list[int]) -> ConfigError:
        given = ", ".join(f"{config.key('layers')}={config.layers}" for config in self.masker_configs)
        dense = self.dense_layer_set
        wider = LayerSet(dense.listed | set(layers), dense.onwards)
        return ConfigError(
            f"No masker works in layer {LayerSet(frozenset(layers))} ({given}), and an empty recipe would keep "
            "nothing. Allowed: every layer has a masker or is named in dense_layers. "
            f"Write for example 'dense_layers=\"{wider}\"'"
        )

    def recipe_of(self, layer: int) -> list[int]:
        """Return the positions of the maskers that make the recipe of a layer.

        Args:
            layer: The layer.

        Returns:
            Positions in `masker_configs`, in order; empty for a dense layer.

        Raises:
            ConfigError: If no masker works in the layer and it is not said to be dense.
        """
        if layer in self.dense_layer_set:
            return []
        positions = [i for i, config in enumerate(self.masker_configs) if layer in config.layer_set]
        if not positions:
            raise self._without_masker([layer])
        return positions


def check_phases(phases: list[str]) -> None:
    """Check which phases run sparse.

    Args:
        phases: The phases.

    Raises:
        ConfigError: If they are none of the two sets that make sense.
    """
    if not isinstance(phases, (list, tuple)) or list(phases) not in (list(PHASES), [DECODE]):
        raise bad_value(
            "phases", phases, "[question,decode] (the context dense), [decode] (the prompt dense)", "'phases=[decode]'"
        )


def parse_dense_layers(value: Layers) -> LayerSet:
    """Read which layers stay dense.

    Args:
        value: What the config holds.

    Returns:
        The layers.

    Raises:
        ConfigError: If it names no layers; for none, it is an empty list.
    """
    if value is None:
        raise bad_value("dense_layers", value, "layer numbers and ranges, [] for none", "'dense_layers=[0,1]'")
    return parse_layers("dense_layers", value)


@dataclass
class ResearchAttentionConfig(MaskedAttentionConfig):
    """The plain masked form: differentiable, readable, the twin that tests trust."""

    attention: ClassVar[str] = "sah.sparse_attention.research.ResearchAttention"


@dataclass
class EfficientAttentionConfig(MaskedAttentionConfig):
    """The form that reads at decode only what the mask keeps."""

    attention: ClassVar[str] = "sah.sparse_attention.efficient.EfficientAttention"


@dataclass
class AutoAttentionConfig(MaskedAttentionConfig):
    """The efficient form, except where gradients or attention weights are asked for."""

    attention: ClassVar[str] = "sah.sparse_attention.auto.AutoAttention"


def check_recipe(masker_configs: list[MaskerConfig]) -> None:
    """Check that a list of masker configs makes one runnable recipe.

    Args:
        masker_configs: The recipe in its order.

    Raises:
        ConfigError: If it is empty, a budget is missing, two maskers read a density, or two are samplers.
    """
    if not masker_configs:
        raise ConfigError(
            "The recipe has no masker left. An empty recipe would keep nothing; dense is asked for by name. "
            "Write masker=dense for the dense baseline, or name at least one masker, e.g. masker=topk"
        )
    for config in masker_configs:
        if not isinstance(config, MaskerConfig):
            raise ConfigError(
                f"A recipe holds masker configs, but got {config!r}. Write e.g. TopKMaskerConfig(density=0.1)"
            )
        if config.reads_density():
            raise ConfigError(
                f"masker.{config.name} has no budget. Allowed: a density or a size of its own. "
                f"Write for example {config.key('density')}=0.1"
            )
    for what, chosen, instead in (
        ("density", [c for c in masker_configs if c.has_density()], "give all but one a size of its own"),
        ("sampling", [c for c in masker_configs if c.is_sampler], "keep one sampler"),
    ):
        together = sharing_a_layer(chosen)
        if together:
            names = ", ".join(c.name for c in together)
            detail = (
                "a density is a target for the whole mask, so only one masker can follow it"
                if what == "density"
                else "the inclusion probabilities of two independent samples do not combine"
            )
            raise ConfigError(
                f"The recipe has {len(together)} {what} maskers ({names}) in one layer, but {detail}. "
                f"Instead, {instead}, or give them different layers."
            )
    _check_selections(masker_configs)
    _check_samplers_last(masker_configs)


def sharing_a_layer(masker_configs: list[MaskerConfig]) -> list[MaskerConfig]:
    """Return the maskers that share a layer with another one of the list, in order."""
    layers = [config.layer_set for config in masker_configs]
    return [
        config
        for position, config in enumerate(masker_configs)
        if any(layers[position].overlaps(other) for i, other in enumerate(layers) if i != position)
    ]


def _check_selections(masker_configs: list[MaskerConfig]) -> None:
    """Refuse one set a KV head after keys that its query heads keep each for itself."""
    for position, config in enumerate(masker_configs):
        if not isinstance(config, SelectiveMaskerConfig) or config.keeps_per_head:
            continue
        before = [c for c in masker_configs[:position] if c.keeps_per_head and c.layer_set.overlaps(config.layer_set)]
        if before:
            raise ConfigError(
                f"{config.key('selection')}={GROUP} comes after {before[0].name}, which keeps other keys for each "
                "query head, so that the heads of one KV head would no longer share a set. "
                f"Write {config.key('selection')}={HEAD}, or {before[0].key('selection')}={GROUP} where it has one, or "
                "put it first"
            )


def _check_samplers_last(masker_configs: list[MaskerConfig]) -> None:
    """Refuse keys chosen by score after a sample: one that was drawn would keep the weight 1/p of its draw."""
    for position, config in enumerate(masker_configs):
        later = [c for c in masker_configs[position + 1 :] if c.layer_set.overlaps(config.layer_set)]
        behind = [c for c in later if not c.is_pattern]
        if config.is_sampler and behind:
            raise ConfigError(
                f"{behind[0].name} comes after the sampler {config.name}. The keys it would choose weigh 1 where they "
                "were not drawn and 1/p where they were, so that the estimate would have a bias. Allowed after a "
                f"sampler: sink, local, causal. Put the sampler last: '[{behind[0].name},{config.name}]'"
            )
