"""Engine for any machine with PyTorch: transformers' continuous batching."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching.requests import GenerationOutput
from transformers.generation.logits_process import LogitsProcessorList

from ochat_ray.errors import UserError
from ochat_ray.serve.engines.base import (
    Capacity,
    Delta,
    EngineError,
    EngineUnavailableError,
    FinishReason,
    RequestRefusedError,
    Sampling,
    validate,
)
from ochat_ray.serve.engines.batch_sampler import BatchSampler, RequestSampler
from ochat_ray.serve.engines.grammar import Grammars, source_of
from ochat_ray.serve.engines.lora import LoraLayers
from ochat_ray.serve.engines.packed_linear import pack_linears
from ochat_ray.serve.engines.paged_attention import PAGED_SDPA, register_paged_sdpa, suits
from ochat_ray.serve.engines.prompt_means import PromptMean, PromptMeans
from ochat_ray.serve.engines.prompt_scores import (
    PromptScores,
    ScoringProcessors,
    Span,
    watch_prefix_matches,
)
from ochat_ray.serve.engines.sizing import check_context_fits, cpu_threads, default_cache_bytes
from ochat_ray.serve.settings import Dtype, EngineSettings

logger = logging.getLogger(__name__)

PAGE_TOKENS = 128
"""Tokens per page of the key-value cache.

Prompts share complete pages; smaller pages share more.
"""

LIVENESS_S = 1.0
"""Seconds between liveness checks of a request that waits for a token."""

GPU_MEMORY_SHARE = 0.7
"""Share of the GPU memory, free after loading, that the cache may use by default."""


class TransformersEngine:
    """One model in this process, generating on its own thread.

    Raises:
        UserError: The model cannot be opened, or the cache cannot hold one full context.
    """

    def __init__(self, settings: EngineSettings) -> None:
        self._device = torch.device("cuda" if settings.num_gpus else "cpu")
        torch.set_num_threads(cpu_threads(settings.num_cpus))
        self._model = _load(settings, self._device)
        self._context_length = settings.context_length
        self._vocabulary = self._model.get_input_embeddings().weight.shape[0]
        pages = _cache_pages(self._model, settings, self._device)
        self._kv_tokens = pages * PAGE_TOKENS
        self._grammars = Grammars(settings.directory, self._vocabulary, settings.model_type)
        self._queues: dict[str, asyncio.Queue[GenerationOutput | None]] = {}
        self._samplers: dict[str, RequestSampler] = {}
        self._means = PromptMeans(self._model) if settings.embeddings else None
        self._loras: LoraLayers | None = None
        if settings.adapters is not None:
            rules = settings.adapters.rules(Path(settings.directory))
            self._loras = LoraLayers(self._model, rules, self._device)
        watchers = [part.begin for part in (self._means, self._loras) if part is not None]
        self._manager = _manager(self._model, settings, pages, watchers)
        watch_prefix_matches(self._manager, self._samplers)
        self._manager.start()
        logger.info(
            "engine: %s on %s, %d tokens of key-value cache",
            self._model.dtype,
            self._device,
            self._kv_tokens,
        )

    async def submit(
        self, request_id: str, prompt_ids: list[int], sampling: Sampling
    ) -> AsyncGenerator[Delta, None]:
        """Generate an answer; see `Engine.submit`."""
        self._validate(request_id, prompt_ids, sampling)
        self.check_health()
        queue: asyncio.Queue[GenerationOutput | None] = asyncio.Queue()
        self._queues[request_id] = queue
        try:
            sampler = await self._sampler(prompt_ids, sampling)
            if not queue.empty():
                return  # cancelled while its schema was compiled
            self._samplers[request_id] = sampler
            # Register the handler first: an earlier answer would land in the manager's shared
            # queue, which nothing reads.
            self._manager.register_result_handler(request_id, queue.put_nowait)
            accepted = self._manager.add_request(
                prompt_ids,
                request_id=request_id,
                max_new_tokens=sampling.max_tokens,
                streaming=True,
                eos_token_id=list(sampling.stop_ids),
                sampler=sampler,
            )
            if accepted is None:
                raise EngineUnavailableError("the engine is stopping")
            sent = 0
            while True:
                output = await self._next_output(queue)
                if output is None:
                    return
                if output.error is not None:
                    raise EngineError(f"generation failed: {output.error}")
                if isinstance(sampler.error, RequestRefusedError):
                    raise sampler.error
                if sampler.error is not None:
                    raise EngineError(f"sampling failed: {sampler.error}")
                token_ids = tuple(output.generated_tokens[sent:])
                reason: FinishReason | None = None
                if output.is_finished():
                    stopped = bool(token_ids) and token_ids[-1] in sampling.stop_ids
                    reason = "stop" if stopped else "length"
                    self._forget(request_id)
                if token_ids or reason is not None:
                    yield _delta(sampler, token_ids, reason, sent)
                if reason is not None:
                    return
                sent += len(token_ids)
        finally:
            if self._queues.get(request_id) is queue:
                self.cancel(request_id)

    def cancel(self, request_id: str) -> None:
        """Cancel a request; see `Engine.cancel`."""
        if request_id in self._queues:
            if request_id in self._samplers:  # the manager has it: its grammar is compiled
                self._manager.cancel_request(request_id)
            self._queues[request_id].put_nowait(None)
            self._forget(request_id)

    def check_health(self) -> None:
        """Raise if the generation thread died; see `Engine.check_health`."""
        error = self._manager.background_thread_status.fatal_error
        if error is not None:
            raise EngineUnavailableError(f"the generation thread died: {error}")
        if not self._manager.is_running():
            raise EngineUnavailableError("the generation thread is not running")

    def capacity(self) -> Capacity:
        """Return the engine's size and load from the manager's counts; see `Engine.capacity`."""
        processor = self._manager.batch_processor
        running = waiting = used = 0
        if processor is not None:
            running = len(processor.scheduler.active_requests)
            waiting = len(processor.scheduler.waiting_requests)
            used = round(self._kv_tokens * (1 - processor.cache.compute_free_capacity()))
        return Capacity(
            context_length=self._context_length,
            kv_tokens=self._kv_tokens,
            kv_tokens_used=used,
            vocabulary=self._vocabulary,
            running=running,
            waiting=waiting,
        )

    def close(self) -> None:
        """Stop permanently; see `Engine.close`."""
        self._manager.stop(block=True, timeout=10, hard_stop=True)
        self._grammars.close()

    def _validate(self, request_id: str, prompt_ids: list[int], sampling: Sampling) -> None:
        """Reject requests that would end the manager's loop, and thereby all other requests."""
        if request_id in self._queues:
            raise RequestRefusedError(f"request id {request_id} is in use")
        validate(
            prompt_ids,
            sampling,
            context_length=self._context_length,
            vocabulary=self._vocabulary,
        )

    async def _sampler(self, prompt_ids: list[int], sampling: Sampling) -> RequestSampler:
        grammar = None
        if (source := source_of(sampling)) is not None:
            grammar = await asyncio.to_thread(self._grammars.grammar, source)
        seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        sampler = RequestSampler(prompt_ids, sampling, seed, grammar)
        if sampling.prompt_logprobs is not None:
            top = sampling.prompt_logprobs
            sampler.prompt_scores = PromptScores(prompt_ids, top, self._vocabulary)
        if sampling.embed:
            if self._means is None:
                raise RequestRefusedError("this engine was started without embeddings")
            sampler.prompt_mean = PromptMean(len(prompt_ids))
        if sampling.adapter is not None:
            if self._loras is None:
                raise RequestRefusedError("this engine was started without adapters", "model")
            sampler.lora = await asyncio.to_thread(self._loras.load, sampling.adapter)
        return sampler

    async def _next_output(
        self, queue: asyncio.Queue[GenerationOutput | None]
    ) -> GenerationOutput | None:
        """Return the latest output, or None once the request is cancelled.

        Each output holds all tokens so far, so earlier ones can be skipped.
        """
        while True:
            try:
                async with asyncio.timeout(LIVENESS_S):
                    outputs = [await queue.get()]
                break
            except TimeoutError:
                self.check_health()
        while not queue.empty():
            outputs.append(queue.get_nowait())
        return None if None in outputs else outputs[-1]

    def _forget(self, request_id: str) -> None:
        del self._queues[request_id]
        self._samplers.pop(request_id, None)
        router = self._manager.output_router
        with router._lock:
            router.result_handlers.pop(request_id, None)
        # An output in flight when its handler was removed ends up in the shared queue, which
        # would keep it forever.
        while not router.output_queue.empty():
            router.output_queue.get_nowait()


def _delta(
    sampler: RequestSampler, token_ids: tuple[int, ...], reason: FinishReason | None, sent: int
) -> Delta:
    """Return the delta of tokens that follow `sent` earlier ones."""
    scores = None if sent else sampler.prompt_scores
    mean = None if sent else sampler.prompt_mean
    return Delta(
        token_ids=token_ids,
        finish_reason=reason,
        logprobs=tuple(sampler.logprobs[sent : sent + len(token_ids)]),
        prompt_logprobs=None if scores is None else scores.found,
        cached_tokens=None if sent else sampler.cached_tokens,
        embedding=None if mean is None else mean.mean,
    )


def choose_dtype(dtype: Dtype, device: torch.device) -> torch.dtype:
    """Return the data type of weights and cache.

    "auto" is bfloat16 on a GPU and on CPUs with native bfloat16, where it halves the memory
    traffic. Other CPUs emulate bfloat16 slowly and use float32.
    """
    if dtype != "auto":
        return {
            "float32": torch.float32,
            "bfloat16": torch.bfloat16,
            "float16": torch.float16,
        }[dtype]
    if device.type == "cuda" or torch.cpu._is_avx512_bf16_supported():
        return torch.bfloat16
    return torch.float32


def _load(settings: EngineSettings, device: torch.device) -> Any:
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            settings.directory,
            dtype=choose_dtype(settings.dtype, device),
            attn_implementation="sdpa",
            use_safetensors=True,
        )
    except (OSError, ValueError) as error:
        raise UserError(f"cannot open the model at {settings.directory}: {error}") from error
    model = model.to(device).eval()
    if device.type == "cpu":
        pack_linears(model)
    return model


def _cache_pages(model: Any, settings: EngineSettings, device: torch.device) -> int:
    """Return the number of cache pages: enough for full contexts of all requests, if memory allows.

    More requests than fit are not an error: the manager evicts some and recomputes them later. One
    full context must fit, or its request could never run.
    """
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    page_bytes = PAGE_TOKENS * config.num_hidden_layers * 2 * heads * width * model.dtype.itemsize
    # One page more than the tokens need, since the last page of a request is rarely full.
    context_pages = -(-settings.context_length // PAGE_TOKENS) + 1
    if settings.kv_cache_gib is not None:
        budget = settings.kv_cache_gib * 2**30
    elif device.type == "cuda":
        budget = GPU_MEMORY_SHARE * torch.cuda.mem_get_info(device)[0]
    else:
        budget = default_cache_bytes()
    check_context_fits(settings.context_length, context_pages * page_bytes, budget)
    return min(int(budget // page_bytes), settings.max_ongoing * context_pages)


def _manager(
    model: Any,
    settings: EngineSettings,
    pages: int,
    watchers: Sequence[Callable[[Sequence[Span]], None]],
) -> Any:
    # do_sample=False: the manager takes the argmax of BatchSampler's output.
    generation = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)
    batching = ContinuousBatchingConfig(
        page_size=PAGE_TOKENS,
        num_blocks=pages,
        max_batch_tokens=settings.max_batch_tokens,
        max_requests_per_batch=settings.max_ongoing,
        use_async_batching=False,
        use_cuda_graph=False,
        per_request_processors=True,
    )
    manager = model.init_continuous_batching(
        generation_config=generation, continuous_batching_config=batching
    )
    processors = ScoringProcessors(LogitsProcessorList([BatchSampler()]), watchers)
    processors.hook(model)
    processors.tensors_required = 1  # counted only for processors that it converts itself
    manager.logit_processor = processors
    if model.device.type == "cpu" and suits(model.config.get_text_config()):
        # Only now: the manager rejects unknown names. Its thread, which checks by name whether a
        # mask is needed, has not started.
        register_paged_sdpa()
        model.set_attn_implementation(PAGED_SDPA)
    return manager
