"""Engine based on vLLM: on GPUs, and on CPUs with vLLM's CPU build.

vLLM 0.32's AsyncLLM keeps the model in a separate process, the engine core.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import secrets
import threading
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMClientError, VLLMError
from vllm.inputs.engine import tokens_input
from vllm.logprobs import Logprob
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.executor import Executor
from vllm.v1.executor.multiproc_executor import MultiprocExecutor
from vllm.v1.executor.uniproc_executor import UniProcExecutor
from vllm.v1.metrics.loggers import StatLoggerBase

from ochat_ray.errors import UserError, one_line
from ochat_ray.serve.engines.base import (
    Capacity,
    Delta,
    EngineError,
    EngineUnavailableError,
    PromptLogprobs,
    RequestRefusedError,
    Sampling,
    TokenLogprobs,
    validate,
)
from ochat_ray.serve.engines.sizing import check_context_fits, cpu_threads, default_cache_bytes
from ochat_ray.serve.engines.vllm_adapters import VllmAdapters, lora_arguments
from ochat_ray.serve.settings import EngineSettings

SCORED_BYTES = 4 << 30
"""Maximum size of a scored prompt's logits on a CPU, where all are computed at once."""


class VllmEngine:
    """One model in vLLM's engine core. All methods must run on the event loop of the first request.

    With a `json_schema`, log-probabilities are those after the grammar mask, which vLLM applies
    first.

    Raises:
        UserError: The model cannot be opened, or the cache cannot hold one full context.
    """

    def __init__(self, settings: EngineSettings) -> None:
        self._requests: set[str] = set()
        self._aborts: set[asyncio.Task[None]] = set()
        self._closed = False
        self._load = _Load()
        self._context_length = settings.context_length
        _set_environment(settings)
        try:
            self._llm = _open(settings, self._load)
        except UserError:
            raise
        except (OSError, ValueError, RuntimeError, VLLMError) as error:
            reason = one_line(error, None)
            raise UserError(f"cannot open the model at {settings.directory}: {reason}") from error
        config = self._llm.vllm_config
        self._vocabulary = config.model_config.get_vocab_size()
        self._kv_tokens = config.cache_config.kv_cache_size_tokens
        self._eos = self._llm.renderer.get_eos_token_id()
        self._adapters: VllmAdapters | None = None
        if settings.adapters is not None:
            rules = settings.adapters.rules(Path(settings.directory))
            self._adapters = VllmAdapters(self._llm, rules)

    async def submit(
        self, request_id: str, prompt_ids: list[int], sampling: Sampling
    ) -> AsyncGenerator[Delta, None]:
        """Generate an answer; see `Engine.submit`."""
        if request_id in self._requests:
            raise RequestRefusedError(f"request id {request_id} is in use")
        limits = {"context_length": self._context_length, "vocabulary": self._vocabulary}
        validate(prompt_ids, sampling, **limits)
        logits_bytes = 4 * len(prompt_ids) * self._vocabulary
        scored = sampling.prompt_logprobs is not None and current_platform.is_cpu()
        if scored and logits_bytes > SCORED_BYTES:
            raise RequestRefusedError(
                f"the logits of this prompt need {logits_bytes >> 20} MiB, of at most "
                f"{SCORED_BYTES >> 20}; score a shorter one",
                "prompt_logprobs",
            )
        if sampling.grammar is not None:
            raise RequestRefusedError("this engine has no grammars", "structured_outputs")
        if sampling.embed or (sampling.adapter is not None and self._adapters is None):
            raise RequestRefusedError("this engine was started without it", "model")
        self.check_health()
        self._requests.add(request_id)
        try:
            params = _sampling_params(sampling, self._eos)
            async with AsyncExitStack() as stack:
                lora = None
                if self._adapters is not None:
                    lora = await stack.enter_async_context(self._adapters.used(sampling.adapter))
                outputs = await stack.enter_async_context(
                    aclosing(
                        self._llm.generate(
                            tokens_input(prompt_ids), params, request_id, lora_request=lora
                        )
                    )
                )
                first: dict[str, Any] = {}
                begun = False
                async for output in outputs:
                    completion = output.outputs[0]
                    if completion.finish_reason == "abort":
                        return
                    if not begun:
                        first |= _first(output, prompt_ids, sampling)
                    if completion.token_ids:
                        yield _delta(completion, sampling, {} if begun else first)
                        begun = True
        except VLLMClientError as error:
            raise RequestRefusedError(str(error)) from error
        except EngineDeadError as error:
            raise EngineUnavailableError("the engine core is dead") from error
        except VLLMError as error:
            raise EngineError(f"generation failed: {error.__cause__ or error}") from error
        finally:
            self._requests.remove(request_id)

    def cancel(self, request_id: str) -> None:
        """Cancel a request; see `Engine.cancel`."""
        if request_id in self._requests:
            task = asyncio.get_running_loop().create_task(self._llm.abort(request_id))
            self._aborts.add(task)
            task.add_done_callback(self._aborts.discard)

    def check_health(self) -> None:
        """Raise if the engine core is dead; see `Engine.check_health`."""
        if self._closed:
            raise EngineUnavailableError("the engine is closed")
        if self._llm.errored:
            raise EngineUnavailableError("the engine core is dead")

    def capacity(self) -> Capacity:
        """Return the engine's size and load, as reported by the core after its latest step."""
        stats, requests = self._load.stats, len(self._requests)
        running = min(stats.num_running_reqs, requests) if stats else 0
        usage = stats.kv_cache_usage if stats and requests else 0.0
        return Capacity(
            context_length=self._context_length,
            kv_tokens=self._kv_tokens,
            kv_tokens_used=round(usage * self._kv_tokens),
            vocabulary=self._vocabulary,
            running=running,
            waiting=requests - running,
        )

    def close(self) -> None:
        """Stop permanently; see `Engine.close`."""
        if not self._closed:
            self._closed = True
            if self._adapters is not None:
                self._adapters.close()
            self._llm.output_processor.propagate_error(EngineDeadError())
            self._llm.shutdown()


class _Load(StatLoggerBase):
    """Latest statistics of the engine core's scheduler."""

    def __init__(self) -> None:
        self.stats: Any = None

    def record(self, scheduler_stats: Any, *_: Any, **__: Any) -> None:
        self.stats = scheduler_stats or self.stats

    def log_engine_initialized(self) -> None: ...


class _EndWithParent:
    """Executor mixin that ends the engine core when the process that opened it is killed."""

    def _init_executor(self) -> None:
        threading.Thread(target=self._end_with_parent, daemon=True).start()
        super()._init_executor()  # type: ignore[misc]

    @staticmethod
    def _end_with_parent() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)


class _UniProcExecutor(_EndWithParent, UniProcExecutor): ...


class _MultiprocExecutor(_EndWithParent, MultiprocExecutor): ...


def _set_environment(settings: EngineSettings) -> None:
    """Set the environment variables that vLLM and its processes read."""
    threads = cpu_threads(settings.num_cpus)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ |= {
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # this process has threads already
        "OMP_NUM_THREADS": str(threads),
        # vLLM would bind its threads to the first cores, the same ones for every replica.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }


def _open(settings: EngineSettings, load: _Load) -> AsyncLLM:
    if not current_platform.device_type:
        raise UserError("engine=vllm finds no GPU; give num_gpus=1, or engine=transformers")
    on_cpu = current_platform.is_cpu()
    gpus = max(1, int(settings.num_gpus))
    # On a CPU every prompt is prefilled in one chunk: after the first of several, vLLM's runner
    # rewinds the request's generator, which for a seeded one on a CPU ends the engine core.
    whole = settings.context_length if on_cpu else 0
    emulated = on_cpu and not torch.cpu._is_avx512_bf16_supported()  # vLLM would still use it
    config = AsyncEngineArgs(
        model=settings.directory,
        dtype="float32" if settings.dtype == "auto" and emulated else settings.dtype,
        seed=secrets.randbits(31),
        generation_config="vllm",  # nothing from generation_config.json
        max_model_len=settings.context_length,
        max_num_seqs=settings.max_ongoing,
        max_num_batched_tokens=max(settings.max_batch_tokens, settings.max_ongoing, whole),
        enable_chunked_prefill=not on_cpu,
        enable_prefix_caching=True,
        tensor_parallel_size=gpus,
        # By default vLLM would create its own actors inside a Ray placement group.
        distributed_executor_backend="mp" if gpus > 1 else None,
        gpu_memory_utilization=0.9 * min(1.0, settings.num_gpus or 1.0),
        enforce_eager=on_cpu,  # else minutes of C++ compilation
        # The only backend that ends an answer with the request's stop ids, not the tokenizer's.
        # Unbounded whitespace would truncate an answer before it is valid (vLLM issue 38696).
        structured_outputs_config={"backend": "xgrammar", "disable_any_whitespace": True},
        use_tqdm_on_load=False,
        **lora_arguments(settings.adapters, settings.max_ongoing),
    ).create_engine_config()
    config.cache_config.kv_cache_memory_bytes = _cache_bytes(config, settings, on_cpu)
    several = issubclass(Executor.get_class(config), MultiprocExecutor)
    return AsyncLLM(
        config,
        _MultiprocExecutor if several else _UniProcExecutor,
        log_stats=False,
        log_requests=False,
        stat_loggers=[lambda _config, _index: load],
    )


def _cache_bytes(config: Any, settings: EngineSettings, on_cpu: bool) -> int | None:
    """Return the bytes of cache per device; None lets vLLM use the free GPU memory.

    On a CPU the default is enough for full contexts of all requests, if memory allows.
    """
    if settings.kv_cache_gib is None and not on_cpu:
        return None
    model, parallel = config.model_config, config.parallel_config
    heads, width = model.get_num_kv_heads(parallel), model.get_head_size()
    token_bytes = 2 * model.get_num_layers(parallel) * heads * width * model.dtype.itemsize
    block = config.cache_config.block_size or 16  # on a GPU vLLM decides it later
    # One block more than the tokens need: vLLM reserves one.
    context_bytes = (-(-settings.context_length // block) + 1) * block * token_bytes
    if settings.kv_cache_gib is None:
        budget = min(default_cache_bytes(), settings.max_ongoing * context_bytes)
    else:
        budget = int(settings.kv_cache_gib * 2**30)
    check_context_fits(settings.context_length, context_bytes, budget)
    return budget


def _sampling_params(sampling: Sampling, eos: int | None) -> SamplingParams:
    bias = dict(sampling.logit_bias)
    schema = None
    if sampling.json_schema is not None:
        schema = StructuredOutputsParams(json=sampling.json_schema)
    elif sampling.calls is not None:
        schema = StructuredOutputsParams(structural_tag=sampling.calls.structural_tag())
    if schema is not None and eos is not None and eos not in sampling.stop_ids:
        bias[eos] = -float("inf")  # the grammar would also allow it at the end
    params = SamplingParams(
        max_tokens=sampling.max_tokens,
        temperature=0.0 if sampling.greedy else sampling.temperature,
        top_p=sampling.top_p or 1.0,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        logit_bias=bias or None,
        structured_outputs=schema,
        logprobs=sampling.top_logprobs,
        prompt_logprobs=sampling.prompt_logprobs,
        seed=None if sampling.seed is None else sampling.seed % 2**63,  # -1 is vLLM's None
        stop_token_ids=list(sampling.stop_ids),
        min_tokens=sampling.min_tokens,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )
    if sampling.bad_words:
        # vLLM would tokenize words itself, with special tokens where their names are typed.
        params._bad_words_token_ids = [list(word) for word in sampling.bad_words]
    return params


def _first(output: RequestOutput, prompt_ids: list[int], sampling: Sampling) -> dict[str, Any]:
    """Return the fields of a request's first delta."""
    found: dict[str, Any] = {}
    if output.num_cached_tokens is not None:
        found["cached_tokens"] = output.num_cached_tokens
    if sampling.prompt_logprobs is not None and output.prompt_logprobs:
        found["prompt_logprobs"] = _prompt_logprobs(
            prompt_ids, output.prompt_logprobs[1:], sampling.prompt_logprobs
        )
    return found


def _prompt_logprobs(
    prompt_ids: list[int], found: Sequence[dict[int, Logprob]], top: int
) -> PromptLogprobs:
    """Convert the entries of a prompt's tokens after the first."""
    own = [entries[i] for i, entries in zip(prompt_ids[1:], found, strict=True)]
    ranked = [
        sorted(((e.rank, i, e.logprob) for i, e in entries.items()), key=itemgetter(0))[:top]
        for entries in found
    ]
    shape = (len(own), min((len(row) for row in ranked), default=0))
    return PromptLogprobs(
        token_ids=np.array(prompt_ids),
        logprobs=np.array([entry.logprob for entry in own], dtype=np.float32),
        ranks=np.array([entry.rank for entry in own], dtype=np.int64),
        top_ids=np.array([[i for _, i, _ in row] for row in ranked], dtype=np.int64).reshape(shape),
        top=np.array([[v for *_, v in row] for row in ranked], dtype=np.float32).reshape(shape),
    )


def _delta(completion: CompletionOutput, sampling: Sampling, first: dict[str, Any]) -> Delta:
    if completion.finish_reason not in (None, "stop", "length"):
        raise EngineError(f"generation ended with {completion.finish_reason}")
    logprobs: tuple[TokenLogprobs, ...] = ()
    if sampling.top_logprobs is not None:
        pairs = zip(completion.token_ids, completion.logprobs, strict=True)
        logprobs = tuple(_token_logprobs(i, entries, sampling.top_logprobs) for i, entries in pairs)
    token_ids = tuple(completion.token_ids)
    reason = completion.finish_reason
    return Delta(token_ids=token_ids, finish_reason=reason, logprobs=logprobs, **first)


def _token_logprobs(token_id: int, entries: dict[int, Logprob], count: int) -> TokenLogprobs:
    """Convert the entries of the chosen and the most likely tokens; masked tokens have -inf."""
    values = [(i, entry.logprob) for i, entry in entries.items() if entry.logprob > -float("inf")]
    top = tuple(sorted(values, key=lambda pair: -pair[1])[:count])
    return TokenLogprobs(token_id=token_id, logprob=entries[token_id].logprob, top=top)
