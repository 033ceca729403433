"""A wheel made in code, for pip to find in a folder."""

from __future__ import annotations

import zipfile
from pathlib import Path

REQUIREMENT = "sah-toy-weights==1.2"
MEMBER = "sah_toy_weights/weights.bin"


def make_wheel(folder: Path, content: bytes = b"weights") -> Path:
    """Write the wheel of `REQUIREMENT` with one member `MEMBER`."""
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / "sah_toy_weights-1.2-py3-none-any.whl"
    info = "sah_toy_weights-1.2.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(MEMBER, content)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: sah-toy-weights\nVersion: 1.2\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel
