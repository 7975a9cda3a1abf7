"""Settings of a training run that follow from its options, data and model."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ochat_ray.models.base_model import extend_context, without_dropout
from ochat_ray.recipes import recipe
from ochat_ray.tokenization.chat_tokenizer import TemplateSettings
from ochat_ray.train.checkpoint import Checkpoint
from ochat_ray.train.config import TrainConfig
from ochat_ray.train.continuation import schedule_from
from ochat_ray.train.deepspeed_config import decisive_override
from ochat_ray.train.flops import ModelShape, attention_tokens
from ochat_ray.train.steps import Steps
from ochat_ray.train.tokens import TokenTable


def extend_config(config: TrainConfig, model_config: Any, manifest: Mapping[str, Any]) -> None:
    """Change a model's configuration in place for training: the data's context, no dropout.

    Raises:
        UserError: the model cannot have the data's context.
    """
    extend_context(
        without_dropout(model_config),
        min(int(manifest["context_length"]), config.max_length or sys.maxsize),
        extrapolate=recipe(config.recipe).extends_context,
        rope_scaling=config.rope_scaling,
    )


def steps_of(
    config: TrainConfig,
    table: TokenTable,
    shape: ModelShape,
    min_length_for_own_pack: int | None,
    identity: Mapping[str, Any],
) -> Steps:
    """Return all steps of a run over a table."""
    return Steps(
        config,
        table.lengths,
        attention_tokens=attention_tokens(shape),
        min_length_for_own_pack=min_length_for_own_pack,
        schedule_from=schedule_from(identity),
    )


def min_length_for_own_pack(model_config: Any) -> int | None:
    """Return the length in tokens from which a conversation needs its own pack; None if none does.

    Rotary embeddings of the types dynamic and longrope (Phi-3) depend on the length of the longest
    conversation: beyond a limit, it would affect the other conversations of its pack.
    """
    text = model_config.get_text_config(decoder=True)
    rope = getattr(text, "rope_parameters", None) or {}
    limits = []
    for kind in [value for value in rope.values() if isinstance(value, dict)] or [rope]:
        if kind.get("rope_type") == "dynamic":
            limits.append(text.max_position_embeddings)
        elif kind.get("rope_type") == "longrope":
            original = kind.get("original_max_position_embeddings")
            limits.append(original or text.max_position_embeddings)
    return min(limits) + 1 if limits else None


def with_step_size(config: TrainConfig, resumed: Checkpoint | None) -> TrainConfig:
    """Replace "one pack per worker" by a number of tokens, which holds for other workers, too.

    A resumed run keeps the number of packs of its checkpoint.
    """
    if config.tokens_per_step is not None or config.sequences_per_step is not None:
        return config
    packs = config.num_workers
    if resumed is not None:
        packs = resumed.identity["step"].get("packs_per_step", packs)
    return replace(config, tokens_per_step=packs * config.max_tokens)


def identity_of(
    config: TrainConfig,
    manifest: Mapping[str, Any],
    override: Mapping[str, Any] | None,
    model: str,
) -> dict[str, Any]:
    """Return everything that the result depends on, as plain JSON values.

    `override` is the content of the file of `--deepspeed`; `model` the base model's fingerprint.
    """
    identity = config.identity()
    del identity["data"]
    if settings := TemplateSettings.of_manifest(manifest):
        identity["template"] = settings.digest
    if config.rope_scaling is not None or recipe(config.recipe).extends_context:
        # The digest covers only the rows, and the embeddings are extended to this context.
        identity["context_length"] = manifest["context_length"]
    return identity | {
        "model": model,
        "data_digest": manifest["digest"],
        "deepspeed": decisive_override(override or {}),
    }
