"""One point: dense and sparse on the same examples."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sah.adapters.huggingface import ModelAdapterHF
from sah.config.experiment import DENSE, Experiment
from sah.data.example import Example
from sah.metrics.scorers import check_metrics
from sah.results.rows import row_key
from sah.results.store import PointStore
from sah.runners.identity import point_identity, requested_density
from sah.runners.session import LoadedModel, Session, attention_config
from sah.runners.tasks import fidelity_name


@dataclass
class Arm:
    """One setting of a point and where its rows go."""

    label: str
    """Its recipe."""

    title: str
    """Its recipe and a sparse prefill before it, for messages."""

    adapter: ModelAdapterHF
    store: PointStore
    requested_density: float | None
    is_dense: bool
    tried: set[str]
    """Keys of rows that this process has made, failed ones included; shared by all arms of the same store. A row of
    `fidelity.jsonl` is named by `fidelity_name`."""

    attention_error: float = 0.0
    """Share of queries that a row of `fidelity.jsonl` compares with dense attention; one with another share is made
    anew."""

    done: set[str] = field(default_factory=set)
    """Keys of rows that need no further work, named like those in `tried`."""

    token_ids: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Of a dense arm: the ids of each answer that is there."""

    noted: bool = False
    """Whether this run's provenance stands beside the rows."""

    def read(self) -> None:
        """See what the store holds already.

        Raises:
            StateError: If it cannot be read.
        """
        rows = self.store.load()
        self.done = {key for key, row in rows.items() if row.status == "ok"}
        if self.is_dense:
            self.token_ids = {key: rows[key].token_ids for key in self.done}
            return
        for key, row in self.store.load_fidelity().items():
            if row.status == "ok" and row.attention_error == self.attention_error:
                self.done.add(fidelity_name(key))


@dataclass(frozen=True)
class Point:
    """A point with everything it needs to run."""

    experiment: Experiment
    model: LoadedModel
    examples: Sequence[Example]
    dense: Arm
    sparse: Arm | None
    """None where the point is the dense baseline itself. A sparse prefill before dense decoding is sparse."""
    context_group: str
    """Names the model and the data set, on which prefilled contexts depend beside what their prefill keeps."""

    @property
    def main(self) -> Arm:
        """The arm that the point is about."""
        return self.sparse or self.dense

    @property
    def arms(self) -> list[Arm]:
        """Its arms, the dense one first."""
        return [self.dense] if self.sparse is None else [self.dense, self.sparse]

    @property
    def is_answered(self) -> bool:
        """Tell whether no answer is left to compute: all are there, or were tried in vain by this command."""
        return all(key in arm.done or key in arm.tried for arm in self.arms for key in self.names(arm))

    def names(self, arm: Arm) -> list[str]:
        """Name all rows that an arm of the point should have: one a question, and of a sparse arm its fidelity."""
        keys = self.row_keys
        fidelity = self.experiment.fidelity and not arm.is_dense
        return [*keys, *map(fidelity_name, keys)] if fidelity else keys

    @property
    def row_keys(self) -> list[str]:
        """Keys of all questions, in order."""
        return [row_key(e.key, i) for e in self.examples for i in range(len(e.questions))]


def prepare_point(experiment: Experiment, session: Session, config: dict[str, Any] | None = None) -> Point:
    """Load what a point needs and see what is done already. Computes and writes nothing.

    Args:
        experiment: The point.
        session: Caches of the process.
        config: The composed config, kept beside the results.

    Returns:
        The point.

    Raises:
        SahError: If the model, the data, the recipe or the stored results cannot be used.
    """
    check_metrics(experiment.dataset.metrics, likelihood=experiment.dataset.likelihood)
    sparse_config = attention_config(experiment)
    model = session.model(experiment)
    # Made before any data, since it refuses layers that the model does not have.
    sparse_adapter = None if experiment.is_dense else model.adapter
    if sparse_config is not None:
        sparse_adapter = model.adapter.with_sparse_attention(sparse_config)
    dataset = experiment.dataset.identity()
    examples = session.examples(experiment, model, dataset)

    def arm(label: str, title: str, adapter: ModelAdapterHF, *, dense: bool) -> Arm:
        identity = point_identity(experiment, model.identity, model.adapter.num_layers, dataset, dense=dense)
        store = PointStore(experiment.output_dir, identity, label, config)
        requested = None if dense else requested_density(experiment)
        tried = session.tried.setdefault(str(store.folder), set())
        error = 0.0 if sparse_config is None or dense else experiment.attention_error
        made = Arm(label, title, adapter, store, requested, dense, tried, error)
        made.read()
        return made

    group = json.dumps([model.identity, dataset], sort_keys=True)
    dense = arm(DENSE, DENSE, model.adapter, dense=True)
    sparse = None
    if sparse_adapter is not None:
        sparse = arm(experiment.label, experiment.title, sparse_adapter, dense=False)
    return Point(experiment, model, examples, dense, sparse, group)
