"""`ModelAdapterHF`: a causal language model of transformers with a sparse attention."""

from __future__ import annotations

import copy
import dataclasses
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sah.adapters import attention_switch as switch
from sah.adapters.base import ModelAdapter, Request, RequestResponse
from sah.adapters.context_cache import ContextCache, ids_digest
from sah.adapters.finite import FINITE_KEY, FiniteWatch
from sah.adapters.generation import Answer, Stopwatch, decode_greedily
from sah.adapters.kv_cache import holds_everything, new_cache
from sah.adapters.learned import give_learned
from sah.adapters.prefill import dense_question, run_context, seen_for
from sah.adapters.prompt import PromptFormatter
from sah.adapters.proof import check_any_call, check_calls
from sah.adapters.sparse_generate import check_options, meta_data_in_every_call
from sah.config.values import DEFAULT_MAX_NEW_TOKENS, check_count
from sah.errors import ConfigError, DataError, ModelError, StateError
from sah.sparse_attention.attention_errors import ATTENTION_ERRORS_KEY, AttentionErrors
from sah.sparse_attention.base import SparseAttention
from sah.sparse_attention.config import QUESTION, SparseAttentionConfig
from sah.sparse_attention.key_state import CONTEXT_LENGTH_KEY, CONTEXT_STATE_KEY
from sah.sparse_attention.prefill.base import PrefillPattern
from sah.sparse_attention.prefill.config import PrefillConfig
from sah.sparse_attention.randomness import LANES_KEY
from sah.sparse_attention.statistics import STATISTICS_KEY, AttentionStatistics


class ModelAdapterHF(ModelAdapter):
    """Runs contexts dense, questions and answers sparse, on any decoder that uses transformers' attention interface.

    Args:
        sparse_attention_config: The sparse attention, or None for an adapter that always runs dense.
        model_name: A hub id or a local folder, as `from_pretrained` takes it.
        tokenizer_kwargs: Passed to `AutoTokenizer.from_pretrained` as they are.
        model_kwargs: Passed to `AutoModelForCausalLM.from_pretrained` as they are: `device_map`, `dtype`,
            `attn_implementation`, `trust_remote_code`, `quantization_config`, `revision`, ...

    Raises:
        ConfigError: If the sparse attention cannot be built, or does not fit the model's layers.
        ModelError: If transformers refuses the model, the tokenizer or an argument; its own error is chained.
    """

    def __init__(
        self,
        sparse_attention_config: SparseAttentionConfig | None,
        model_name: str,
        tokenizer_kwargs: dict[str, Any] | None = None,
        model_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self._registered_name: str | None = None
        self._finalizer: weakref.finalize | None = None  # type: ignore[type-arg]
        super().__init__(sparse_attention_config, model_name, **(model_kwargs or {}))
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(model_name, **(tokenizer_kwargs or {}))
        except Exception as error:
            raise ModelError(
                f"transformers cannot load the tokenizer of {model_name!r} with the tokenizer_kwargs "
                f"{sorted(tokenizer_kwargs or {})}: {error}"
            ) from error
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.prompts = PromptFormatter(self.tokenizer)
        self._loaded = switch.implementations(self.model)
        self._check_layers()

    def create_model(self, model_name: str, **kwargs: Any) -> Any:
        """Load a model for inference; see `ModelHubAdapterInterface.create_model`.

        Raises:
            ModelError: If transformers refuses; its own error is chained.
        """
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(model_name, **kwargs)
            return model.eval()
        except Exception as error:
            raise ModelError(
                f"transformers cannot load the model {model_name!r} with the model_kwargs {sorted(kwargs)}: {error}"
            ) from error

    @property
    def window(self) -> int | None:
        """Longest sequence the model allows, in tokens; None if it names none."""
        length = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return None if length is None else int(length)

    @property
    def sparse_phases(self) -> tuple[str, ...]:
        """Phases that run sparse; none without a sparse attention."""
        config = self.sparse_attention_config
        return () if config is None else tuple(config.phases)

    @property
    def loaded(self) -> list[tuple[Any, str]]:
        """Every config of the decoder with the attention implementation that it was loaded with."""
        return self._loaded

    @property
    def num_layers(self) -> int:
        """Number of the decoder's layers."""
        return int(self.model.config.get_text_config().num_hidden_layers)

    def get_custom_attention_function(self, sparse_attention: SparseAttention) -> Callable[..., Any]:
        """Wrap a sparse attention for transformers; see `attention_switch.attention_function`."""
        return switch.attention_function(sparse_attention)

    @contextmanager
    def enable_sparse_mode(self) -> Iterator[None]:
        """Run the model sparse inside the `with` block.

        Every model call in the block needs `sparse_meta_data={...}`. On exit each module has again the implementation
        that it had on entry.

        Yields:
            Nothing.

        Raises:
            ConfigError: If the adapter has no sparse attention.
        """
        if self.sparse_attention is None:
            raise ConfigError(
                "This adapter was made with sparse_attention_config=None and always runs dense. "
                "Give it a config, or use adapter.with_sparse_attention(config)."
            )
        with switch.switched(self._loaded, self._register(self.sparse_attention)):
            yield

    @contextmanager
    def enable_dense_mode(self) -> Iterator[None]:
        """Run the model with the attention it was loaded with inside the `with` block, also inside sparse mode.

        Yields:
            Nothing.
        """
        with switch.switched(self._loaded, None):
            yield

    def with_sparse_attention(self, sparse_attention_config: SparseAttentionConfig | None) -> ModelAdapterHF:
        """Make an adapter with its own sparse attention that shares this one's model and tokenizer.

        Args:
            sparse_attention_config: The other sparse attention, or None for dense.

        Returns:
            A new adapter; nothing is loaded again.

        Raises:
            ConfigError: If the sparse attention cannot be built, or does not fit the model's layers.
        """
        other = copy.copy(self)
        other._registered_name = None
        other._finalizer = None
        other.sparse_attention_config = sparse_attention_config
        other.sparse_attention = (
            None if sparse_attention_config is None else SparseAttention.create_from_config(sparse_attention_config)
        )
        other._check_layers()
        return other

    def with_plain_prompts(self) -> ModelAdapterHF:
        """Make an adapter that puts no chat template around contexts; it shares this one's model and tokenizer."""
        other = self.with_sparse_attention(self.sparse_attention_config)
        other.prompts = PromptFormatter(self.tokenizer, use_template=False)
        return other

    def close(self) -> None:
        """Remove this adapter's entries from transformers' registries. The model stays usable, dense.

        Raises:
            StateError: If the adapter's sparse mode is active.
        """
        if self._sparse_is_active():
            raise StateError("The adapter is in sparse mode and cannot be closed. Leave `enable_sparse_mode()` first.")
        if self._finalizer is not None:
            self._finalizer()
        self._registered_name = None

    def prefill(
        self, context: str, prefill: PrefillConfig | None = None, *, observers: Iterable[ModelAdapterHF] = ()
    ) -> ContextCache:
        """Run a context through the model once.

        Args:
            context: The context.
            prefill: Which keys a sparse prefill keeps; None for a dense one.
            observers: Adapters of the same model beside this one whose methods see something of the prefill (h2o,
                snapkv, tova). For others that do, the context runs a second time when they need it.

        Returns:
            Its cache, for any number of `answer` calls. Its times hold nothing of what is seen.

        Raises:
            ConfigError: If a method wants to see all attention of a prefill that is sparse.
            DataError: If the context is empty or longer than the model's window.
        """
        prompt = self.prompts.context_prompt(context)
        self._check_window(len(prompt.ids), "The context has")
        past = new_cache(self.model.config)
        pattern = None if prefill is None else PrefillPattern.create_from_config(prefill)
        methods = [self.sparse_attention, *(observer.sparse_attention for observer in observers)]
        state: dict[Any, Any] = {}
        watch = Stopwatch(self._device)
        seen = run_context(self, prompt.ids, past, pattern=pattern, observers=methods, context_state=state)
        wall, cpu = watch.read()
        return ContextCache(
            self.model_name,
            prompt,
            past,
            prefill_seconds=wall - seen.seeing_seconds,
            prefill_cpu_seconds=cpu - seen.seeing_cpu_seconds,
            context_state=state,
            seeing_seconds=seen.seeing_seconds,
            prefill=prefill,
            prefill_density=seen.density,
        )

    def answer(
        self,
        cache: ContextCache,
        question: str,
        *,
        answer_prefix: str = "",
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
        attention_error: float = 0.0,
    ) -> Answer:
        """Answer one question over a prefilled context: sparse, or dense if the adapter has no sparse attention.

        With `phases=[decode]` in the sparse attention's config the question's tokens run dense, and sparse are the
        model calls that follow the first generated token.

        Args:
            cache: From `prefill`, of this model. It holds exactly the context again afterwards.
            question: The question, joined to the context as it is.
            answer_prefix: Text that the answer starts with.
            max_new_tokens: Most tokens to generate.
            attention_error: Share of the queries that are compared with dense attention in every layer; the answer
                stays the same. They are chosen by the seed of the sparse attention's config and by the question.

        Returns:
            The answer, a function of context, question, settings and seed alone. Decoding is plain greedy: a
            checkpoint's own `repetition_penalty` and the like are not applied (`generate` applies them).

        Raises:
            ConfigError: If `max_new_tokens` is below 1, or `attention_error` is no share.
            DataError: If the question is empty, or everything together exceeds the model's window.
            ModelError: If the adapter is sparse but a layer that should call its attention did not, or numbers turn out
                not to be finite; names layer, head and step.
            StateError: If the cache is another model's.
        """
        self.check_cache(cache)
        ids = self.prompts.question_ids(cache.prompt, question, answer_prefix)
        self.check_fits(cache, len(ids), max_new_tokens)
        arguments = (self.model, self.tokenizer, cache, ids, max_new_tokens, self.stop_ids)
        if self.sparse_attention_config is None:
            with self.enable_dense_mode():
                return decode_greedily(*arguments, sparse_meta_data=None)
        with self.enable_sparse_mode():
            state_seconds = self.prepare_context(cache)
            meta_data = self.new_meta_data(cache, ids, attention_error)
            question_mode = None if QUESTION in self.sparse_phases else dense_question(self, meta_data)
            answer = decode_greedily(*arguments, meta_data, question_mode)
        check_calls(self, answer.calls_by_layer, len(answer.token_ids) - 1)
        return dataclasses.replace(answer, state_seconds=state_seconds)

    def check_cache(self, cache: ContextCache) -> None:
        """Check that a context was prefilled by this adapter's model; raise StateError if another one did."""
        if cache.model_name != self.model_name:
            raise StateError(
                f"The context cache was prefilled by {cache.model_name!r}, this adapter runs {self.model_name!r}. "
                "Prefill the context with this adapter."
            )

    def check_fits(self, cache: ContextCache, question_tokens: int, max_new_tokens: int) -> None:
        """Check that an answer has room behind a context.

        Raises:
            ConfigError: If `max_new_tokens` is below 1.
            DataError: If everything together exceeds the model's window.
        """
        check_count("max_new_tokens", max_new_tokens, minimum=1)
        tokens = cache.length + question_tokens + max_new_tokens
        self._check_window(tokens, f"Context, question and {max_new_tokens} new tokens have")

    def prepare_context(self, cache: ContextCache) -> float:
        """Derive what the recipe needs of a context's keys (page bounds, labels), once for all its questions.

        `answer` does so by itself; what is there already stays.

        Args:
            cache: From `prefill`, of this model.

        Returns:
            Wall seconds that it took; 0.0 where there was nothing to derive.
        """
        if self.sparse_attention is None:
            return 0.0
        with self.enable_sparse_mode():
            seeing = seen_for(self, cache)
            before = len(cache.context_state)
            watch = Stopwatch(self._device)
            layers: list[Any] = cache.past_key_values.layers
            for layer_idx, layer in enumerate(layers):
                if holds_everything(layer, self.window) and layer.keys is not None:
                    held = [states[:, :, : cache.length] for states in (layer.keys, layer.values)]
                    self.sparse_attention.prepare_context(cache.context_state, layer_idx, *held)
            return seeing + (watch.read()[0] if len(cache.context_state) > before else 0.0)

    def new_meta_data(
        self, cache: ContextCache, question_ids: Sequence[int], attention_error: float = 0.0
    ) -> dict[Any, Any]:
        """Make the `sparse_meta_data` of one question over a context, as `answer` does.

        Args:
            cache: From `prefill`, of this model.
            question_ids: Ids that follow the context's; random choices are seeded from both.
            attention_error: Share of queries that are compared with dense attention in every layer.

        Returns:
            The dict, for all model calls of the question and no others.

        Raises:
            ConfigError: If `attention_error` is no share.
        """
        lane = ids_digest([*cache.prompt.ids, *question_ids])
        errors = AttentionErrors(attention_error, getattr(self.sparse_attention_config, "seed", 0), lane)
        return {
            **self._meta_data(cache.context_state, lane),
            CONTEXT_LENGTH_KEY: cache.length,
            FINITE_KEY: FiniteWatch(),
            ATTENTION_ERRORS_KEY: errors,
        }

    def process_request(self, request: Request) -> RequestResponse:
        """Answer all questions of a request over one dense prefill; see `ModelHubAdapterInterface.process_request`."""
        questions = [request.questions] if isinstance(request.questions, str) else request.questions
        responses: list[str] = []
        if questions:
            cache = self.prefill(request.context)
            for question in questions:
                answer = self.answer(
                    cache, question, answer_prefix=request.answer_prefix, max_new_tokens=request.max_new_tokens
                )
                responses.append(answer.text)
        return RequestResponse(responses[0] if isinstance(request.questions, str) else responses)

    @torch.no_grad()
    def generate(self, inputs: str | torch.Tensor, **kwargs: Any) -> Any:
        """Run transformers' own `generate` (sampling, stop strings, streamers) in the mode that is active.

        Inside `enable_sparse_mode()` all but the prompt's last token is prefilled dense, and that token and the answer
        run sparse; with `phases=[decode]` that token runs dense as well. Outside everything is dense.

        Args:
            inputs: A prompt, tokenized as it is, or ids (1, length).
            **kwargs: As for `model.generate`.

        Returns:
            What `model.generate` returns.

        Raises:
            ConfigError: If sparse mode is asked for with beams, a batch, or a way of decoding that takes tokens back.
            DataError: If the prompt is empty.
            ModelError: If sparse mode is on but no layer of the model called the attention.
        """
        ids = self.tokenizer(inputs, return_tensors="pt")["input_ids"] if isinstance(inputs, str) else inputs
        if ids.numel() == 0:
            raise DataError("The prompt is empty. Allowed: a text or ids of at least one token.")
        ids = ids.to(self._device)
        kwargs.setdefault("attention_mask", torch.ones_like(ids))
        if "stop_strings" in kwargs:
            kwargs.setdefault("tokenizer", self.tokenizer)
        if not self._sparse_is_active():
            return self.model.generate(ids, **kwargs)
        check_options(ids.shape[0], kwargs.get("generation_config") or self.model.generation_config, kwargs)
        past = new_cache(self.model.config)
        state: dict[Any, Any] = {}
        if ids.shape[1] > 1:
            methods = [self.sparse_attention]
            run_context(self, ids[0, :-1].tolist(), past, observers=methods, context_state=state)
        meta_data = self._meta_data(state, ids_digest(ids[0].tolist()))

        dense_first = None if QUESTION in self.sparse_phases else partial(dense_question, self, meta_data)
        with meta_data_in_every_call(self.model, meta_data, dense_first) as calls:
            output = self.model.generate(ids, past_key_values=past, **kwargs)
        if calls[0] > 1 or dense_first is None:
            check_any_call(self, meta_data[STATISTICS_KEY].calls())
        return output

    def count_prompt_tokens(self, context: str, question: str, answer_prefix: str = "") -> int:
        """Return the number of tokens of a whole prompt, template and answer prefix included."""
        return len(self.prompts.prompt_ids(context, question, answer_prefix))

    @property
    def _device(self) -> torch.device:
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end an answer."""
        ids = self.model.generation_config.eos_token_id
        if ids is None:
            ids = self.tokenizer.eos_token_id
        if ids is None:
            return frozenset()
        return frozenset([ids] if isinstance(ids, int) else ids)

    @staticmethod
    def _meta_data(context_state: dict[Any, Any], lane: str) -> dict[Any, Any]:
        return {
            CONTEXT_STATE_KEY: MappingProxyType(context_state),
            LANES_KEY: [lane],
            STATISTICS_KEY: AttentionStatistics(),
        }

    def _register(self, sparse_attention: SparseAttention) -> str:
        if self._registered_name is None:
            give_learned(self, sparse_attention)
            name = switch.unique_name()
            switch.register(name, self.get_custom_attention_function(sparse_attention))
            self._finalizer = weakref.finalize(self, switch.unregister, name)
            self._registered_name = name
        return self._registered_name

    def _sparse_is_active(self) -> bool:
        name = self._registered_name
        return name is not None and any(config._attn_implementation == name for config, _ in self._loaded)

    def _check_layers(self) -> None:
        if self.sparse_attention_config is not None:
            self.sparse_attention_config.check_layers(self.num_layers)

    def _check_window(self, tokens: int, what: str) -> None:
        if self.window is not None and tokens > self.window:
            raise DataError(
                f"{what} {tokens} tokens, but the model's window is {self.window}. Nothing is cut off silently: "
                "give a shorter context, fewer new tokens, or a model with a longer window."
            )
