"""Dense is the default; sparse lives inside the with block, is registered on need, and leaves no trace."""

from __future__ import annotations

import gc
import inspect
import weakref
from typing import Any

import pytest
import torch
from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sah.adapters.base import ModelAdapter, ModelHubAdapterInterface, SparseAttentionAdapterInterface
from sah.adapters.huggingface import ModelAdapterHF
from sah.errors import ConfigError, ModelError, StateError
from sah.sparse_attention import LocalMaskerConfig, ResearchAttentionConfig
from tests.support.models import CONTEXT, QUESTIONS, adapter, config_of, dense_adapter, folder, recorded_calls


def ours() -> set[str]:
    """Names in either registry that transformers did not bring."""
    names = set(AttentionInterface._global_mapping) | set(AttentionMaskInterface._global_mapping)
    return {name for name in names if name.startswith("sah")}


def implementations(model: Any) -> list[tuple[int, str]]:
    return [
        (id(module), module.config._attn_implementation)
        for module in model.modules()
        if hasattr(getattr(module, "config", None), "_attn_implementation")
    ]


def logits(adapter: ModelAdapterHF, **kwargs: Any) -> torch.Tensor:
    ids = torch.arange(5, 65)[None]
    with torch.no_grad():
        return adapter.model(input_ids=ids, **kwargs).logits


def hard(family: str = "llama") -> ModelAdapterHF:
    """An adapter whose sparse output differs plainly from dense."""
    return dense_adapter(family).with_sparse_attention(
        ResearchAttentionConfig(masker_configs=[LocalMaskerConfig(window_size=1)])
    )


def test_dense_is_the_default_and_sparse_only_inside() -> None:
    sparse = hard()
    before = implementations(sparse.model)
    dense_logits = logits(sparse)
    with sparse.enable_sparse_mode():
        assert implementations(sparse.model) != before
        inside = logits(sparse, sparse_meta_data={})
    assert implementations(sparse.model) == before
    assert (inside - dense_logits).abs().max() > 0.1
    assert torch.equal(logits(sparse), dense_logits)


def test_dense_inside_sparse_is_really_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    sparse = hard()
    calls: list[int] = []
    real = sparse.sparse_attention.custom_attention

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs["layer_idx"])
        return real(*args, **kwargs)

    monkeypatch.setattr(sparse.sparse_attention, "custom_attention", counted)
    dense_logits = logits(sparse)
    assert calls == []
    with sparse.enable_sparse_mode():
        logits(sparse, sparse_meta_data={})
        assert calls == list(range(sparse.model.config.num_hidden_layers))
        with sparse.enable_dense_mode():
            assert torch.equal(logits(sparse), dense_logits)
            with sparse.enable_sparse_mode():
                assert not torch.equal(logits(sparse, sparse_meta_data={}), dense_logits)
            assert torch.equal(logits(sparse), dense_logits)
        again = len(calls)
        logits(sparse, sparse_meta_data={})
        assert len(calls) == again + sparse.model.config.num_hidden_layers
    assert torch.equal(logits(sparse), dense_logits)


def test_modes_of_two_adapters_nest() -> None:
    one, other = hard(), adapter("llama", "topk-easy")
    alone = []
    for each in (one, other):
        with each.enable_sparse_mode():
            alone.append(logits(each, sparse_meta_data={}))
    with one.enable_sparse_mode():
        with other.enable_sparse_mode():
            assert torch.equal(logits(one, sparse_meta_data={}), alone[1])
        assert torch.equal(logits(one, sparse_meta_data={}), alone[0])


@pytest.mark.parametrize("inner", ["enable_sparse_mode", "enable_dense_mode"])
def test_an_exception_restores_every_module(inner: str) -> None:
    sparse = hard()
    before = implementations(sparse.model)
    with pytest.raises(KeyError, match="mine"), sparse.enable_sparse_mode(), getattr(sparse, inner)():
        raise KeyError("mine")
    assert implementations(sparse.model) == before


def test_what_the_model_was_loaded_with_is_restored() -> None:
    eager = ModelAdapterHF(config_of("topk-easy"), folder("llama"), model_kwargs={"attn_implementation": "eager"})
    assert {name for _, name in implementations(eager.model)} == {"eager"}
    with eager.enable_sparse_mode(), eager.enable_dense_mode():
        assert {name for _, name in implementations(eager.model)} == {"eager"}
    assert {name for _, name in implementations(eager.model)} == {"eager"}


def test_a_sub_config_keeps_its_own_implementation() -> None:
    """transformers copies a plain string into sub-configs; a vision tower must not see ours."""
    from transformers import LlamaConfig

    one = ModelAdapterHF(config_of("topk-easy"), folder("llama"))
    config = one.model.config
    config.__class__ = type("Composite", (type(config),), {"sub_configs": {"vision_config": LlamaConfig}})
    config.vision_config = LlamaConfig()
    config.vision_config._attn_implementation = "eager"
    with one.enable_sparse_mode():
        assert config.vision_config._attn_implementation == "eager"
        assert config._attn_implementation.startswith("sah")
        with one.enable_dense_mode():
            assert config.vision_config._attn_implementation == "eager"
    assert config.vision_config._attn_implementation == "eager"


def test_without_a_config_sparse_mode_is_an_error() -> None:
    dense = adapter(recipe=None)
    before = ours()
    with pytest.raises(ConfigError, match="sparse_attention_config=None"), dense.enable_sparse_mode():
        pass
    with dense.enable_dense_mode():
        logits(dense)
    assert dense.sparse_attention is None
    assert dense.answer(dense.prefill(CONTEXT), QUESTIONS[0], max_new_tokens=3).attention_calls == 0
    assert ours() == before


def test_the_name_is_registered_on_first_need_and_reused() -> None:
    before = ours()
    sparse = hard()
    assert ours() == before
    with sparse.enable_dense_mode():
        assert ours() == before
    with sparse.enable_sparse_mode():
        (name,) = ours() - before
        assert sparse.model.config._attn_implementation == name
        assert name in AttentionInterface._global_mapping
        assert name in AttentionMaskInterface._global_mapping
        assert name in ALL_ATTENTION_FUNCTIONS
    with sparse.enable_sparse_mode():
        assert ours() - before == {name}
    other = hard()
    with other.enable_sparse_mode():
        assert len(ours() - before) == 2
    sparse.close()
    assert name not in ours()
    other.close()
    assert ours() == before
    other.close()


def test_an_open_mode_cannot_be_closed_and_a_closed_adapter_can_open_again() -> None:
    sparse = hard()
    with sparse.enable_sparse_mode(), pytest.raises(StateError, match="sparse mode"):
        sparse.close()
    sparse.close()
    with sparse.enable_sparse_mode():
        logits(sparse, sparse_meta_data={})
    sparse.close()


def test_a_collected_adapter_leaves_no_entry() -> None:
    gc.collect()  # Adapters of earlier tests may still wait for it.
    before = ours()
    sparse = hard()
    sparse.answer(sparse.prefill(CONTEXT), QUESTIONS[0], max_new_tokens=2)
    assert ours() != before
    gone = weakref.ref(sparse)
    del sparse
    gc.collect()
    assert gone() is None
    assert ours() == before


def test_a_clone_outlives_its_parent() -> None:
    gc.collect()
    before = ours()
    parent = hard()
    with parent.enable_sparse_mode():
        pass
    child = parent.with_sparse_attention(config_of("topk-easy"))
    with child.enable_sparse_mode():
        pass
    del parent
    gc.collect()
    assert len(ours() - before) == 1
    with child.enable_sparse_mode():
        logits(child, sparse_meta_data={})
    child.close()
    assert ours() == before


def test_with_sparse_attention_shares_model_and_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    one = dense_adapter()
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    config = config_of("topk-easy")
    other = one.with_sparse_attention(config)
    assert other.model is one.model
    assert other.tokenizer is one.tokenizer
    assert other.model_name == one.model_name
    assert other.sparse_attention_config is config
    assert one.sparse_attention is None
    assert one.sparse_attention_config is None
    assert other.with_sparse_attention(None).sparse_attention is None
    with pytest.raises(ConfigError):
        one.with_sparse_attention("topk")  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_missing_meta_data_is_a_value_error_that_says_how(family: str) -> None:
    sparse = hard(family)
    with sparse.enable_sparse_mode():
        for kwargs in ({}, {"sparse_meta_data": None}):
            with pytest.raises(ValueError, match=r"sparse_meta_data=\{\}"):
                logits(sparse, **kwargs)
        logits(sparse, sparse_meta_data={})


def test_layers_get_their_own_index_and_the_same_dict(monkeypatch: pytest.MonkeyPatch) -> None:
    sparse = hard("qwen3")
    seen: list[tuple[int, int]] = []
    real = sparse.sparse_attention.custom_attention

    def look(*args: Any, **kwargs: Any) -> Any:
        seen.append((kwargs["layer_idx"], id(args[7])))
        return real(*args, **kwargs)

    monkeypatch.setattr(sparse.sparse_attention, "custom_attention", look)
    meta: dict[Any, Any] = {}
    with sparse.enable_sparse_mode():
        logits(sparse, sparse_meta_data=meta)
    assert seen == [(i, id(meta)) for i in range(sparse.model.config.num_hidden_layers)]


@pytest.mark.parametrize("keyword", ["device", "dtype", "trust_remote_code", "token", "torch_dtype"])
def test_no_other_keyword_is_taken(keyword: str) -> None:
    with pytest.raises(TypeError, match=keyword):
        ModelAdapterHF(None, folder("llama"), **{keyword: "cpu"})


def test_signatures() -> None:
    parameters = list(inspect.signature(ModelAdapterHF).parameters)
    assert parameters == ["sparse_attention_config", "model_name", "tokenizer_kwargs", "model_kwargs"]
    parameters = list(inspect.signature(ModelAdapter).parameters)
    assert parameters == ["sparse_attention_config", "model_name", "kwargs"]
    assert issubclass(ModelAdapter, ModelHubAdapterInterface)
    assert issubclass(ModelAdapter, SparseAttentionAdapterInterface)
    with pytest.raises(TypeError):
        ModelAdapter(None, "x")  # type: ignore[abstract]


def test_the_two_dicts_go_untouched_to_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    got: dict[str, tuple[Any, ...]] = {}
    real = {cls: cls.from_pretrained for cls in (AutoTokenizer, AutoModelForCausalLM)}

    def recorder(cls: Any) -> Any:
        def from_pretrained(*args: Any, **kwargs: Any) -> Any:
            got[cls.__name__] = (args, kwargs)
            return real[cls](folder("llama"))

        return from_pretrained

    for cls in real:
        monkeypatch.setattr(cls, "from_pretrained", recorder(cls))
    tokenizer_kwargs = {"revision": "t", "trust_remote_code": True, "use_fast": False, "made_up": object()}
    model_kwargs = {
        "revision": "m",
        "device_map": {"": "meta"},
        "dtype": torch.float16,
        "attn_implementation": "eager",
        "quantization_config": object(),
        "token": "x",
        "made_up": object(),
    }
    copies = dict(tokenizer_kwargs), dict(model_kwargs)
    ModelAdapterHF(None, "some/model", tokenizer_kwargs, model_kwargs)
    assert got["AutoTokenizer"] == (("some/model",), copies[0])
    assert got["AutoModelForCausalLM"] == (("some/model",), copies[1])
    assert (tokenizer_kwargs, model_kwargs) == copies
    got.clear()
    ModelAdapterHF(None, "some/model")
    assert got["AutoTokenizer"] == (("some/model",), {})
    assert got["AutoModelForCausalLM"] == (("some/model",), {})


@pytest.mark.parametrize("which", ["model_kwargs", "tokenizer_kwargs"])
def test_a_refusal_of_the_library_is_shown_and_chained(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no such thing as a purple dtype")

    monkeypatch.setattr(AutoModelForCausalLM if which == "model_kwargs" else AutoTokenizer, "from_pretrained", refuse)
    with pytest.raises(ModelError, match="purple dtype") as caught:
        ModelAdapterHF(None, folder("llama"), **{which: {"x": 1}})
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_an_argument_that_transformers_does_not_know_is_refused_by_it() -> None:
    with pytest.raises(ModelError, match="no_such_argument") as caught:
        ModelAdapterHF(None, folder("llama"), model_kwargs={"no_such_argument": 1})
    assert caught.value.__cause__ is not None


def test_a_missing_pad_token_becomes_the_end_token(monkeypatch: pytest.MonkeyPatch) -> None:
    real = AutoTokenizer.from_pretrained

    def without_pad(*args: Any, **kwargs: Any) -> Any:
        tokenizer = real(*args, **kwargs)
        tokenizer.pad_token = None
        return tokenizer

    assert dense_adapter().tokenizer.pad_token == "<pad>"
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", without_pad)
    assert ModelAdapterHF(None, folder("llama")).tokenizer.pad_token == "<eos>"


def test_a_batch_with_left_padding_runs_sparse_as_its_rows_do_alone() -> None:
    for recipe in ("sink+local+topk", "topp-easy"):
        for execution in ("research", "efficient"):
            sparse = adapter("llama", recipe, execution)
            long, short = list(range(10, 70)), list(range(100, 140))
            pad = [0] * (len(long) - len(short))
            mask = torch.ones(2, len(long), dtype=torch.long)
            mask[1, : len(pad)] = 0
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            with torch.no_grad(), sparse.enable_sparse_mode():
                both = sparse.model(
                    input_ids=torch.tensor([long, pad + short]),
                    attention_mask=mask,
                    position_ids=positions,
                    sparse_meta_data={},
                ).logits
                for row, ids in enumerate((long, short)):
                    alone = sparse.model(input_ids=torch.tensor([ids]), sparse_meta_data={}).logits
                    assert torch.allclose(both[row, -len(ids) :], alone[0], atol=1e-4)


def test_a_model_that_never_calls_us_is_found_out() -> None:
    sparse = hard()
    cache = sparse.prefill(CONTEXT)
    for layer in sparse.model.model.layers:
        layer.self_attn._sah_forward = layer.self_attn.forward

        def bypass(*args: Any, layer: Any = layer, **kwargs: Any) -> Any:
            config = layer.self_attn.config
            name, config._attn_implementation = config._attn_implementation, {"": "eager"}
            try:
                kwargs.pop("sparse_meta_data", None)
                return layer.self_attn._sah_forward(*args, **kwargs)
            finally:
                config._attn_implementation = {"": name}

        layer.self_attn.forward = bypass
    try:
        with pytest.raises(ModelError, match="without calling the sparse attention"), recorded_calls(sparse.model):
            sparse.answer(cache, QUESTIONS[0], max_new_tokens=2)
    finally:
        for layer in sparse.model.model.layers:
            layer.self_attn.forward = layer.self_attn._sah_forward
            del layer.self_attn._sah_forward
