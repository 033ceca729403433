"""From a GGUF file to a folder that `from_pretrained` loads in a fraction of a second.

Parsing a GGUF takes transformers tens of seconds, so it is done once and the result is kept as float32
safetensors, which hold the dequantised weights exactly.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from sah import fetching
from sah.adapters.sources.quiet import quiet
from sah.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def require_hash(path: Path, sha256: str) -> None:
    """Check a GGUF against its pinned hash.

    Args:
        path: The file.
        sha256: The hexadecimal sha256 that it must have.

    Raises:
        ModelError: If it has another one.
    """
    found = fetching.sha256_file(path)
    if found != sha256:
        raise ModelError(f"{path.name} has the sha256 {found}, and not the pinned {sha256}. It was not used.")


def convert(
    gguf: Path,
    folder: Path,
    label: str,
    eos_token_id: int | list[int],
    mend_tokenizer: Callable[[PreTrainedTokenizerBase], None] | None = None,
) -> None:
    """Write the model and tokenizer of a GGUF file as a plain checkpoint folder.

    Args:
        gguf: The GGUF file.
        folder: An existing, empty folder.
        label: Name of the model for the status line.
        eos_token_id: Ids that end an answer, for `generation_config.json`.
        mend_tokenizer: Corrects in place what the GGUF says wrongly, or not at all, about the tokenizer; None
            where it says all that matters.

    Raises:
        ModelError: If the packages for reading GGUF are missing, or reading or writing fails; chained.
    """
    with _status(f"Converting {label}, once; this takes up to a minute ..."), quiet():
        try:
            import torch
            from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

            # The configuration is parsed once and handed on: every parse of the file costs seconds.
            source: dict[str, Any] = {"gguf_file": gguf.name}
            source["config"] = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name)
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
            model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, **source, dtype=torch.float32)
            # Without these two lines save_pretrained would try to write GGUF's own quantisation.
            model.hf_quantizer = None
            model.config.__dict__.pop("quantization_config", None)
            model.config.eos_token_id = model.generation_config.eos_token_id = eos_token_id
            if mend_tokenizer is not None:
                mend_tokenizer(tokenizer)
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        except ImportError as error:
            raise ModelError(
                f"Converting {label} needs the packages gguf and accelerate ({error}). Run: pip install gguf accelerate"
            ) from error
        except Exception as error:
            raise ModelError(
                f"{label} could not be converted in {folder.parent}: {error}. Its download is sound: check "
                "the free space there, and that transformers has a version of sah's constraints.txt."
            ) from error


@contextmanager
def _status(text: str) -> Iterator[None]:
    """Show a status line on standard error, and hold back the progress bars that would break it."""
    console = Console(file=sys.stderr)
    if not console.is_terminal:
        console.print(text, highlight=False)
    with console.status(text), redirect_stderr(io.StringIO()):
        yield
