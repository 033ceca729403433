"""Double Sparsity's channels of SmolLM2-135M-Instruct, calibrated for real."""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch

from sah.adapters import attention_switch as switch
from sah.adapters import calibration
from sah.adapters.factory import create_adapter
from sah.fetching import CACHE_VARIABLE
from sah.sparse_attention.allowed import allowed_keys
from sah.sparse_attention.base import SparseAttention
from sah.sparse_attention.kernels.masked import masked_attention

pytestmark = pytest.mark.e2e

TEXT = (
    "The lighthouse on Gull Rock was built in 1874, after three ships had been lost in one winter. Its first keeper, "
    "Marta Lund, rowed out every Sunday with bread, oil and the newspapers of the week, and she wrote down the weather "
    "in a blue book. In March a storm broke two panes of the lantern; she mended them with sailcloth until glass came. "
    "The harbour below has changed since: the herring left, the ice house became a school, and ferries bring visitors "
    "who ask why the lamp is dark. A company from the north sells tickets, paints the doors red, and counts the gulls. "
) * 4
SHARE, KEPT = 4, 0.05


class Recall(SparseAttention):
    """Attends densely, and notes which share of a query's best keys a few channels find."""

    def __init__(self, orders: dict[str, dict[int, torch.Tensor]]) -> None:
        self.orders = orders
        self.found: dict[str, list[float]] = defaultdict(list)

    def custom_attention(
        self, module: Any, queries: Any, keys: Any, values: Any, mask: Any, scaling: float, *_: Any, **kwargs: Any
    ) -> Any:
        grouped = queries[0, :, -1].view(keys.shape[1], -1, 1, keys.shape[-1])
        count = int(KEPT * keys.shape[2])
        best = (grouped * keys[0][:, None]).sum(-1).topk(count).indices
        for name, order in self.orders.items():
            channels = order[kwargs["layer_idx"]][:, None, None, : keys.shape[-1] // SHARE]
            some = [x.gather(-1, channels.expand(*x.shape[:-1], -1)) for x in (grouped, keys[0][:, None])]
            chosen = (some[0] * some[1]).sum(-1).topk(count).indices
            self.found[name].append((chosen[..., None] == best[..., None, :]).any(-1).float().mean().item())
        allowed = allowed_keys(mask, queries, keys).float()
        return masked_attention(queries, keys, values, allowed, scaling)[0].transpose(1, 2), None


def test_smollm2_is_calibrated_once_and_its_channels_find_the_best_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = create_adapter("embedded:smollm2-135m-instruct")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        order = calibration.channel_order(adapter)
        seconds.append(time.perf_counter() - started)
    (stored,) = (tmp_path / "channels").iterdir()
    with capsys.disabled():
        print(f"\nSmolLM2: calibrated in {seconds[0]:.1f} s, read from the cache in {seconds[1]:.2f} s")
    assert list(order) == list(range(30))
    assert {tuple(channels.shape) for channels in order.values()} == {(3, 64)}
    assert stored.stat().st_size < 100_000

    recall = Recall({"most": order, "least": {layer: channels.flip(-1) for layer, channels in order.items()}})
    switch.register("sah_test_recall", switch.attention_function(recall))
    try:
        with torch.no_grad(), switch.switched(switch.implementations(adapter.model), "sah_test_recall"):
            adapter.model(input_ids=adapter.tokenizer(TEXT, return_tensors="pt")["input_ids"], sparse_meta_data={})
    finally:
        switch.unregister("sah_test_recall")
    found = {name: sum(values) / len(values) for name, values in recall.found.items()}
    with capsys.disabled():
        print(f"Share of the best {KEPT:.0%} of keys found by a quarter of the channels: {found}")
    assert found["most"] > found["least"] + 0.3
