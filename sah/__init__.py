"""sah: how much attention can a model drop on a task, by which method, and what does it buy?"""

from __future__ import annotations

__version__ = "0.1.0"
