"""Trains HashAttention's networks for a model: `python -m sah.train_hash model=llama bits=32`.

`model` is chosen and changed as for `sah.run` (`model.name=...`, `+model.model_kwargs.dtype=bfloat16`). The rest:

    bits=32       bits of a signature, a multiple of 8
    steps=300     training steps of a layer
    seed=0        of all random choices
    threads=1     CPU threads of torch, null leaves torch's own choice
    output=FILE   a safetensors file; without it sah's cache folder, where masker=hash_attention finds the networks;
                  other steps or another seed need one, for masker.hash_attention.weights=FILE

The same command goes on where it was stopped, and does nothing where all is done.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sah.config.values import closest
from sah.console import print_error
from sah.errors import ConfigError, SahError, bad_value
from sah.sparse_attention.maskers.hash_attention_config import MOST_BITS

if TYPE_CHECKING:
    from sah.config.model import ModelConfig

_NUMBERS = {"bits": (32, 1, "32"), "steps": (300, 1, "300"), "seed": (0, 0, "0")}
"""Key to its default, its least value and what to write for example."""
_KEYS = (*_NUMBERS, "threads", "output", "model")
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells count it."""


def main() -> None:
    """Run the command in `sys.argv`.

    Raises:
        SystemExit: With 1 after the message of a mistake, with 130 after Ctrl-C.
    """
    if any(argument in ("-h", "--help") for argument in sys.argv[1:]):
        sys.stdout.write(f"{__doc__}\n")
        return
    try:
        path, metadata = train(sys.argv[1:])
        facts = ", ".join(f"{name} {metadata[name]}" for name in ("bits", "steps", "seed"))
        sys.stdout.write(f"Networks of hash_attention ({facts}): {path}\n")
    except KeyboardInterrupt:
        print_error("Interrupted. Finished layers are kept: the same command goes on where it stopped.")
        raise SystemExit(INTERRUPTED) from None
    except SahError as error:
        print_error(str(error))
        raise SystemExit(1) from None
    except OSError as error:
        print_error(f"output: {error.filename or ''} cannot be written: {error.strerror or error}")
        raise SystemExit(1) from None


def train(arguments: Sequence[str]) -> tuple[Path, dict[str, str]]:
    """Train networks as a command line says.

    Args:
        arguments: `key=value` each, without the program.

    Returns:
        The file, and what it says of itself.

    Raises:
        SahError: If something is wrong with the arguments or the model.
        OSError: If a file cannot be written.
    """
    own, of_model = _split(arguments)
    numbers = {key: _number(key, own.get(key)) for key in _NUMBERS}
    if numbers["bits"] % 8 or numbers["bits"] > MOST_BITS:
        raise bad_value("bits", own["bits"], f"a multiple of 8 from 8 to {MOST_BITS}", "bits=32")
    output = Path(own["output"]).expanduser().absolute() if own.get("output") else None
    if output is not None and output.suffix != ".safetensors":
        raise bad_value("output", own["output"], "a file that ends in .safetensors", "output=hash.safetensors")
    unusual = [f"{key}={numbers[key]}" for key in ("steps", "seed") if numbers[key] != _NUMBERS[key][0]]
    if unusual and output is None:
        # A point that names no file stands for the usual training; other networks in its place would pass for it.
        raise ConfigError(
            f"{' '.join(unusual)} trains other networks than those that masker=hash_attention finds by itself. Write "
            "output=hash.safetensors as well, and masker.hash_attention.weights=hash.safetensors to run with them"
        )
    threads = None if own.get("threads") == "null" else _count("threads", own.get("threads", "1"), 1, "1")
    model = _model(of_model)

    import torch

    from sah.adapters.factory import create_adapter
    from sah.adapters.hash_files import read_weights
    from sah.adapters.hash_training import TrainingOptions, train_model

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if threads is not None:
        torch.set_num_threads(threads)
    adapter = create_adapter(model)
    path = train_model(adapter, TrainingOptions(**numbers, output=output))
    return path, read_weights(path)[1]


def _split(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Part our own settings from those of the model."""
    own: dict[str, str] = {}
    of_model: list[str] = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key.lstrip("+~").partition(".")[0] == "model":
            of_model.append(argument)
        elif equals and key in _KEYS:
            own[key] = value
        else:
            meant = closest(key, _KEYS)
            raise ConfigError(
                f"There is no setting {argument!r}. Allowed: {', '.join(f'{name}=...' for name in _KEYS)}. "
                f"{f'Did you mean: {meant}=...? ' if meant else ''}See: python -m sah.train_hash --help"
            )
    return own, of_model


def _number(key: str, given: str | None) -> int:
    default, least, example = _NUMBERS[key]
    return default if given is None else _count(key, given, least, example)


def _count(key: str, given: str, least: int, example: str) -> int:
    if not given.isascii() or not given.isdecimal() or int(given) < least:
        raise bad_value(key, given, f"a whole number of at least {least}", f"{key}={example}")
    return int(given)


def _model(overrides: list[str]) -> ModelConfig:
    """Compose the model as `sah.run` does."""
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from sah.config.build import build_experiment
    from sah.config.explain import explain
    from sah.config.overrides import check_choices
    from sah.config.paths import conf_dir
    from sah.config.register import register_configs

    check_choices(overrides)
    register_configs()
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return build_experiment(compose("config", overrides)).model
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error, overrides)) from error


if __name__ == "__main__":
    main()
