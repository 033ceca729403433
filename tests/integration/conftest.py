"""A fresh folder and fresh caches for every test of the run."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import sah.runners.job as job
import sah.runners.work as runners_work
from sah.adapters.context_cache import ContextCache
from sah.adapters.factory import load_adapter_cached
from sah.adapters.generation import Answer
from sah.adapters.hash_training import TrainingOptions, train_model
from sah.adapters.huggingface import ModelAdapterHF
from sah.adapters.lanes import Lane, LaneWidth
from sah.config.model import ModelConfig
from sah.config.register import register_configs
from sah.runners.session import Session


@pytest.fixture(scope="session", autouse=True)
def imported() -> None:
    """Composing makes many objects; without this each collection walks through all of torch and transformers too."""
    load_adapter_cached(ModelConfig(name="tiny:llama"))
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_networks() -> None:
    """What masker=hash_attention needs of the tiny model, as `python -m sah.train_hash model=tiny` trains it once."""
    train_model(load_adapter_cached(ModelConfig(name="tiny:llama")), TrainingOptions())


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Work in an empty folder, with no contexts and examples kept from other tests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(job, "_session", Session())
    register_configs()
    yield tmp_path


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Ray on this machine, started once; its workers come from this process."""
    os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0")
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False)
    yield
    ray.shutdown()


@dataclass
class Work:
    """What the model was asked to do."""

    prefills: list[str] = field(default_factory=list)
    """Contexts, in order."""
    dense: list[str] = field(default_factory=list)
    """Questions answered dense."""
    sparse: list[str] = field(default_factory=list)
    """Questions answered sparse."""

    def clear(self) -> None:
        """Forget what was counted."""
        for calls in (self.prefills, self.dense, self.sparse):
            calls.clear()

    @property
    def counts(self) -> tuple[int, int, int]:
        """Prefills, dense answers, sparse answers."""
        return len(self.prefills), len(self.dense), len(self.sparse)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    """Count prefills and answers."""
    counted = Work()
    prefill, answer_lanes = ModelAdapterHF.prefill, runners_work.answer_lanes

    def counting_prefill(self: ModelAdapterHF, context: str, *pattern: Any, **options: Any) -> ContextCache:
        counted.prefills.append(context)
        return prefill(self, context, *pattern, **options)

    def counting_lanes(
        adapter: ModelAdapterHF, cache: ContextCache, lanes: Sequence[Lane], budget_bytes: int, width: LaneWidth
    ) -> Iterator[tuple[int, Answer | Exception]]:
        for lane in lanes:
            (counted.dense if lane.adapter.sparse_attention is None else counted.sparse).append(lane.question)
        yield from answer_lanes(adapter, cache, lanes, budget_bytes, width)

    monkeypatch.setattr(ModelAdapterHF, "prefill", counting_prefill)
    monkeypatch.setattr(runners_work, "answer_lanes", counting_lanes)
    return counted
