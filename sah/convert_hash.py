"""Converts published HashAttention checkpoints: `python -m sah.convert_hash checkpoint.pt weights.safetensors`.

What comes out is for `masker.hash_attention.weights=weights.safetensors`. The checkpoint is read with torch's
restricted reader, which imports and runs nothing that a file names (see `sah.adapters.hash_conversion`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sah.console import print_error
from sah.errors import SahError


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert a checkpoint.

    Args:
        arguments: Checkpoint and output; None takes them from `sys.argv`.

    Returns:
        The exit code: 0, or 1 after the message of a mistake.
    """
    parser = argparse.ArgumentParser(
        prog="python -m sah.convert_hash",
        description="Convert a HashAttention checkpoint of its authors to safetensors. Nothing in the file is run.",
    )
    parser.add_argument("checkpoint", type=Path, help="the authors' .pt file")
    parser.add_argument("output", type=Path, help="the .safetensors file to write")
    given = parser.parse_args(arguments)
    from sah.adapters.hash_conversion import convert_checkpoint

    try:
        layers = convert_checkpoint(given.checkpoint.expanduser(), given.output.expanduser())
    except SahError as error:
        print_error(str(error))
        return 1
    heads, _, bits = next(iter(layers.values())).key[-1].weight.shape
    settings = f"masker.hash_attention.bits={bits} masker.hash_attention.weights={given.output}"
    sys.stdout.write(f"{len(layers)} layers, {heads} heads, {bits} bits. Write: masker=hash_attention {settings}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
