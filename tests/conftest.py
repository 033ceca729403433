"""Settings that hold for every test: one thread, no network, no logged-in tracker."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"
os.environ.pop("WANDB_API_KEY", None)

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Keep timings and reductions steady: one thread for every test."""
    torch.set_num_threads(1)
