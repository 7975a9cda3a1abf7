"""Checks that run before a training job starts."""

from __future__ import annotations

import sys
from typing import Any

from ochat_ray.data.verify import check_shape, verify_tables
from ochat_ray.errors import UserError
from ochat_ray.locations import check_is_folder, check_output_apart
from ochat_ray.models.base_model import check_weights, load_config, vocabulary_size
from ochat_ray.models.weights import check_config, check_files, check_tensors, check_vocabulary
from ochat_ray.recipes import recipe
from ochat_ray.run_dir import Split, read_manifest
from ochat_ray.tokenization.chat_tokenizer import load_tokenizer_of
from ochat_ray.tokenization.exported_tokenizer import export_tokenizer
from ochat_ray.tokenization.tokenizer import end_of_turn_id, tokenizer_digest
from ochat_ray.train.config import TrainConfig
from ochat_ray.train.continuation import Start
from ochat_ray.train.deepspeed_check import check_with_deepspeed
from ochat_ray.train.deepspeed_config import deepspeed_config
from ochat_ray.train.derived import extended_config, min_length_for_own_pack, steps_of
from ochat_ray.train.flops import ModelShape
from ochat_ray.train.forward import PACKED_SDPA
from ochat_ray.train.lora import check_adaptable
from ochat_ray.train.probe import AttentionMode, candidates_of, choose_attention_mode
from ochat_ray.train.round_trip import check_exportable
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
