"""Checks that run before a training job starts, and settings derived from data and model."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ochat_ray.data.verify import check_shape, verify_tables
from ochat_ray.errors import UserError
from ochat_ray.locations import check_is_folder, check_output_apart
from ochat_ray.models.base_model import (
    check_weights,
    extend_context,
    load_config,
    vocabulary_size,
    without_dropout,
)
from ochat_ray.models.weights import check_config, check_files, check_tensors, check_vocabulary
from ochat_ray.ownership import Ownership
from ochat_ray.recipes import recipe
from ochat_ray.run_dir import RunDir, Split, completed, read_manifest
from ochat_ray.tokenization.chat_tokenizer import TemplateSettings, load_tokenizer_of
from ochat_ray.tokenization.exported_tokenizer import export_tokenizer
from ochat_ray.tokenization.tokenizer import end_of_turn_id, tokenizer_digest
from ochat_ray.train import checkpoint as checkpoints
from ochat_ray.train.checkpoint import Checkpoint
from ochat_ray.train.config import TrainConfig
from ochat_ray.train.continuation import Start, schedule_from
from ochat_ray.train.deepspeed_check import check_with_deepspeed
from ochat_ray.train.deepspeed_config import decisive_override, deepspeed_config
from ochat_ray.train.flops import ModelShape, attention_tokens
from ochat_ray.train.forward import PACKED_SDPA
from ochat_ray.train.lora import check_adaptable
from ochat_ray.train.output import MODEL_MANIFEST, check_output_dir, read_model_manifest
from ochat_ray.train.probe import AttentionMode, candidates_of, choose_attention_mode
from ochat_ray.train.round_trip import check_exportable
from ochat_ray.train.steps import Steps
from ochat_ray.train.tokens import TokenTable
from ochat_ray.train.trackers import check_trackers


def check_inputs(config: TrainConfig) -> dict[str, Any]:
    """Check that data, model and recipe fit each other, and return the data's manifest.

    Raises:
        UserError: they do not.
    """
    check_is_folder(config.output)
    check_output_apart(config.output, data=config.data, model=config.model)
    manifest = read_manifest(config.data)
    check_shape(config.data, manifest)
    chosen = recipe(config.recipe)
    fits = manifest["model_type"] == chosen.model_type
    if not fits and manifest.get("config", {}).get("recipe") != config.recipe:
        raise UserError(
            f"{config.data} was prepared with the template {manifest['model_type']}, but recipe "
            f"{config.recipe} needs {chosen.model_type}; prepare it again with --recipe "
            f"{config.recipe}"
        )
    splits: tuple[Split, ...] = ("train", "eval")
    for split in splits:
        if manifest["tokens"][split]["rows"] == 0:
            raise UserError(
                f"the {split} split of {config.data} is empty; prepare more conversations, or "
                "another --eval-ratio"
            )
    check_trackers(wandb=config.wandb, mlflow=config.mlflow)
    # Only to check a user's JSON; the workers' hardware is not known here.
    settings = deepspeed_config(
        config, world_size=config.num_workers, bf16=config.dtype != "float32", cuda=True
    )
    if config.deepspeed is not None:
        check_with_deepspeed(config.deepspeed, settings | {"train_batch_size": 1})
    check_weights(config.model, allow_pickle=config.allow_pickle)
    tensors = check_files(config.model)
    model_config = load_config(config.model)
    check_config(config.model, model_config)
    tokenizer = load_tokenizer_of(config.model, manifest)
    export_tokenizer(tokenizer, manifest["model_type"])  # raises now, and not after the training
    if tokenizer_digest(tokenizer) != manifest["tokenizer"]:
        raise UserError(
            f"{config.data} was tokenised with another tokenizer ({manifest['tokenizer_path']}) "
            f"than {config.model} has; prepare it again with --tokenizer {config.model}"
        )
    check_vocabulary(
        config.model,
        model_config.get_text_config(decoder=True).vocab_size,
        tokenizer.get_vocab().values(),
        end_of_turn_id(tokenizer),
    )
    if tensors is not None and (left_out := check_tensors(config.model, tensors, model_config)):
        print(
            f"{len(left_out)} tensors of {config.model} are not part of the model and are ignored: "
            f"{', '.join(left_out[:3])}{', ...' if len(left_out) > 3 else ''}",
            file=sys.stderr,
        )
    model_config = extended_config(config, config.model, manifest)
    check_adaptable(config, model_config, manifest)
    check_exportable(model_config)
    verify_tables(config.data, manifest)
    for split in splits:
        table = TokenTable(config.data, split, config.max_length)
        table.check(vocabulary_size(tokenizer))
        longest = int(table.lengths.max())
        if longest > config.max_tokens:
            raise UserError(
                f"a conversation of the {split} split has {longest:,} tokens but a pack holds "
                f"{config.max_tokens:,}; give --max-tokens {longest} or a smaller --max-length"
            )
    return manifest


def extended_config(config: TrainConfig, model: str, manifest: dict[str, Any]) -> Any:
    """Return a model's configuration for training, with the data's context and without dropout.

    Raises:
        UserError: the model cannot have the data's context.
    """
    model_config = without_dropout(load_config(model))
    extend_context(
        model_config,
        min(int(manifest["context_length"]), config.max_length or sys.maxsize),
        extrapolate=recipe(config.recipe).extends_context,
        rope_scaling=config.rope_scaling,
    )
    return model_config


def probe_on_driver(config: TrainConfig, model_config: Any) -> AttentionMode:
    """Choose an attention mode that is exact on a tiny model, in float32 on the CPU.

    The workers repeat this on their own device, in their dtype and with their attention, which may
    be flash-attn; PyTorch's attention stands in for it here.

    Raises:
        UserError: no mode is exact.
    """
    own = config.attention if config.attention in ("sdpa", "eager") else "auto"
    candidates = candidates_of(own, "eager" if own == "eager" else PACKED_SDPA)
    mode = choose_attention_mode(
        model_config, candidates, gradient_checkpointing=config.gradient_checkpointing
    )
    if mode.notice:
        print(mode.notice, file=sys.stderr)
    return mode


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


def check_steps(config: TrainConfig, manifest: dict[str, Any], start: Start) -> None:
    """Check that a run that continues from a checkpoint does not end before it.

    Raises:
        UserError: it does.
    """
    if not start.continues or start.checkpoint is None:
        return
    model_config = extended_config(config, config.model, manifest)
    table = TokenTable(config.data, "train", config.max_length)
    shape, own_pack = ModelShape.of(model_config), min_length_for_own_pack(model_config)
    steps = steps_of(config, table, shape, own_pack, start.identity)
    if len(steps) < start.checkpoint.step:
        raise UserError(
            f"--from-checkpoint {config.from_checkpoint} is step {start.checkpoint.step:,}, but "
            f"the run has {len(steps):,} steps; give more --epochs or --max-steps"
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


def find_resume_checkpoint(config: TrainConfig) -> Checkpoint | None:
    """Return the latest checkpoint in the output directory; None with --overwrite."""
    return None if config.overwrite else checkpoints.latest(RunDir.open(config.output))


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


def identity_of(config: TrainConfig, manifest: dict[str, Any], model: str) -> dict[str, Any]:
    """Return everything that the result depends on, as plain JSON values.

    `model` is the base model's fingerprint.
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
        "deepspeed": decisive_override(config.deepspeed),
    }


def completed_already(
    config: TrainConfig, output: Ownership, start: Start
) -> dict[str, Any] | None:
    """Return the content of ochat.json if the same training is complete, or None.

    Raises:
        UserError: a file that no training wrote would be overwritten, or another training is
            complete and --overwrite is not given.
    """
    check_output_dir(output)
    if read_model_manifest(output) is None:
        return None
    replaces = config.overwrite or start.continues
    return completed(output.run, MODEL_MANIFEST, start.identity, overwrite=replaces)


def announce_start(
    config: TrainConfig, resumed: Checkpoint | None, identity: dict[str, Any]
) -> None:
    """Print the step at which training starts.

    Raises:
        UserError: there are checkpoints of another run, and --overwrite is not given.
    """
    if resumed is not None:
        checkpoints.check_same_run(resumed, identity, config.output)
        print(
            f"resuming from step {resumed.step}; --overwrite starts from the beginning",
            file=sys.stderr,
        )
    elif config.resume:
        print(
            f"{config.output} has no checkpoint yet; starting from the beginning", file=sys.stderr
        )
