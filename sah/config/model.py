"""Which language model to run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sah.config.base import ValidatedConfig
from sah.errors import bad_value


@dataclass
class ModelConfig(ValidatedConfig):
    """A model and how to load it.

    Args:
        name: `embedded:...` or `tiny:...` for a model that sah brings itself, a local folder, or a hub id.
        tokenizer_kwargs: Passed to `AutoTokenizer.from_pretrained` as they are.
        model_kwargs: Passed to `AutoModelForCausalLM.from_pretrained` as they are, e.g. `dtype`,
            `device_map`, `revision`. Without a `device_map` the factory chooses CUDA, then MPS, then the CPU.
        label: Name in tables, figures and folders; None takes one from `name`.
    """

    name: str
    tokenizer_kwargs: dict[str, Any] = field(default_factory=dict)
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    label: str | None = None

    def validate(self) -> None:
        """Check types and that names are not empty; whether the model exists is the factory's matter.

        Raises:
            ConfigError: If a value cannot be used.
        """
        super().validate()
        if not isinstance(self.name, str) or not self.name.strip():
            raise bad_value(
                "model.name",
                self.name,
                "embedded:..., tiny:..., a local folder or a hub id",
                "model.name=embedded:smollm2-135m-instruct",
            )
        for key, example in (("tokenizer_kwargs", "padding_side=left"), ("model_kwargs", "dtype=bfloat16")):
            given = getattr(self, key)
            if not isinstance(given, dict) or not all(isinstance(name, str) for name in given):
                raise bad_value(
                    f"model.{key}", given, "a mapping of argument names to values", f"+model.{key}.{example}"
                )
        if self.label is not None and (not isinstance(self.label, str) or not self.label.strip()):
            raise bad_value("model.label", self.label, "a short text, or null", "model.label=my-model")
