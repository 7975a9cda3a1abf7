"""LoRA adapters in vLLM: its own support, with files that no longer change.

vLLM reads an adapter's files when it needs them, perhaps again later. So it gets a private copy of
the content that was checked, under the digest as name, by which its prefix cache tells adapters
apart as well (vLLM 0.32).
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import tempfile
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from vllm.lora.request import LoRARequest
from vllm.v1.engine.exceptions import EngineDeadError

from ochat_ray.errors import UserError, one_line
from ochat_ray.serve.adapter_files import CONFIG, WEIGHTS, AdapterRules, check_content, read_adapter
from ochat_ray.serve.adapters import AdapterSettings
from ochat_ray.serve.engines.base import Adapter, EngineUnavailableError, RequestRefusedError

MOST_IN_BATCH = 8
"""Maximum adapters in one batch; requests of others wait. Memory for all is reserved at the start.
"""

MOST_COPIES = 32
"""Copies that are kept, in addition to those of requests in progress."""

_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Values of vLLM's `max_lora_rank`."""


def lora_arguments(settings: AdapterSettings | None, max_ongoing: int) -> dict[str, Any]:
    """Return vLLM's engine arguments for adapters with these settings; None is no adapters."""
    if settings is None:
        return {}
    return {
        "enable_lora": True,
        "max_loras": min(MOST_IN_BATCH, max_ongoing),
        "max_cpu_loras": MOST_COPIES,
        "max_lora_rank": next(rank for rank in _RANKS if rank >= settings.most_rank),
    }


class VllmAdapters:
    """Adapters of one vLLM engine, loaded with the first request that names them."""

    def __init__(self, llm: Any, rules: AdapterRules) -> None:
        self._llm = llm
        self._rules = rules
        self._folder = Path(tempfile.mkdtemp(prefix="ochat-adapters-"))
        self._numbers = itertools.count(1)
        self._known: OrderedDict[str, LoRARequest] = OrderedDict()
        self._in_use: Counter[str] = Counter()
        self._loading = asyncio.Lock()

    @asynccontextmanager
    async def used(self, adapter: Adapter | None) -> AsyncIterator[LoRARequest | None]:
        """Provide vLLM's description of an adapter, which stays loaded for the block.

        Raises:
            RequestRefusedError: Its files no longer have this content, or vLLM cannot load it.
        """
        if adapter is None:
            yield None
            return
        self._in_use[adapter.digest] += 1
        try:
            async with self._loading:
                if adapter.digest not in self._known:
                    self._known[adapter.digest] = await self._load(adapter)
                self._known.move_to_end(adapter.digest)
                await self._drop_unused()
            yield self._known[adapter.digest]
        finally:
            self._in_use[adapter.digest] -= 1

    def close(self) -> None:
        """Delete all copies."""
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _load(self, adapter: Adapter) -> LoRARequest:
        copy = self._folder / adapter.digest
        try:
            await asyncio.to_thread(self._copy, adapter, copy)
        except UserError as error:
            raise RequestRefusedError(f"the adapter {adapter.name!r} {error}", "model") from error
        request = LoRARequest(
            lora_name=adapter.digest, lora_int_id=next(self._numbers), lora_path=str(copy)
        )
        try:
            await self._llm.add_lora(request)
        except EngineDeadError as error:
            raise EngineUnavailableError("the engine core is dead") from error
        except Exception as error:  # vLLM raises plain exceptions of its other process
            shutil.rmtree(copy, ignore_errors=True)
            raise RequestRefusedError(
                f"the adapter {adapter.name!r} is not served: {one_line(error, 500)}", "model"
            ) from error
        return request

    def _copy(self, adapter: Adapter, copy: Path) -> None:
        content = read_adapter(Path(adapter.directory), self._rules)
        check_content(adapter.digest, content)
        copy.mkdir(exist_ok=True)
        (copy / CONFIG).write_bytes(content.config)
        (copy / WEIGHTS).write_bytes(content.weights)

    async def _drop_unused(self) -> None:
        unused = [digest for digest in self._known if not self._in_use[digest]]
        for digest in unused[: max(0, len(self._known) - MOST_COPIES)]:
            request = self._known.pop(digest)
            del self._in_use[digest]
            await self._llm.remove_lora(request.lora_int_id)
            shutil.rmtree(request.lora_path, ignore_errors=True)
