"""Checks that run before a training job starts."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ochat_ray.data.verify import check_shape, verify_tables
from ochat_ray.errors import UserError
from ochat_ray.locations import check_is_folder, check_output_apart
from ochat_ray.models.base_model import check_weights, load_config, vocabulary_size
from ochat_ray.models.fingerprint import fingerprint
from ochat_ray.models.weights import check_config, check_files, check_tensors, check_vocabulary
from ochat_ray.ownership import Ownership
from ochat_ray.recipes import recipe
from ochat_ray.run_dir import Split, read_manifest
from ochat_ray.tokenization.chat_tokenizer import load_tokenizer_of
from ochat_ray.tokenization.exported_tokenizer import export_tokenizer
from ochat_ray.tokenization.tokenizer import end_of_turn_id, tokenizer_digest
from ochat_ray.train.config import TrainConfig
from ochat_ray.train.continuation import Start, find_resume_checkpoint, start_of
from ochat_ray.train.deepspeed_check import check_with_deepspeed
from ochat_ray.train.deepspeed_config import deepspeed_config, read_override
from ochat_ray.train.derived import (
    extend_config,
    identity_of,
    min_length_for_own_pack,
    steps_of,
    with_step_size,
)
from ochat_ray.train.flops import ModelShape
from ochat_ray.train.forward import PACKED_SDPA
from ochat_ray.train.lora import check_adaptable
from ochat_ray.train.probe import AttentionMode, candidates_of, choose_attention_mode
from ochat_ray.train.round_trip import check_exportable
from ochat_ray.train.samples import prompts_of
from ochat_ray.train.steps import Steps
from ochat_ray.train.tokens import TokenTable
from ochat_ray.train.trackers import check_trackers


@dataclass(frozen=True, kw_only=True, slots=True)
class Resolved:
    """Data, model and files that a run's options name, opened once.

    `tables` are the splits without conversations that are too long. `model_config` is the model's
    configuration for training, `shape` the sizes of the model with its adapters, and `model` the
    fingerprint of its files. `override` is the content of the file of `--deepspeed`, `prompts` are
    the token ids of the prompts for samples.
    """

    manifest: dict[str, Any]
    tables: dict[Split, TokenTable]
    tokenizer: Any
    model_config: Any
    shape: ModelShape
    model: str
    override: dict[str, Any] | None
    prompts: list[list[int]] | None

    def steps(self, config: TrainConfig, identity: Mapping[str, Any]) -> Steps:
        """Return all steps of a run with this identity."""
        own_pack = min_length_for_own_pack(self.model_config)
        return steps_of(config, self.tables["train"], self.shape, own_pack, identity)


def check_inputs(config: TrainConfig) -> Resolved:
    """Check that data, model and recipe fit each other, and return them.

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
    override, bf16 = read_override(config.deepspeed), config.dtype != "float32"
    settings = deepspeed_config(
        config, override, world_size=config.num_workers, bf16=bf16, cuda=True
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
    extend_config(config, model_config, manifest)
    shape = check_adaptable(config, model_config, manifest)
    check_exportable(model_config)
    verify_tables(config.data, manifest)
    tables = {split: TokenTable(config.data, split, config.max_length) for split in splits}
    for split, table in tables.items():
        table.check(vocabulary_size(tokenizer))
        longest = int(table.lengths.max())
        if longest > config.max_tokens:
            raise UserError(
                f"a conversation of the {split} split has {longest:,} tokens but a pack holds "
                f"{config.max_tokens:,}; give --max-tokens {longest} or a smaller --max-length"
            )
    return Resolved(
        manifest=manifest,
        tables=tables,
        tokenizer=tokenizer,
        model_config=model_config,
        shape=shape,
        model=fingerprint(config.model),
        override=override,
        prompts=prompts_of(config, tables["eval"], manifest["model_type"], tokenizer),
    )


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


def settle(config: TrainConfig, resolved: Resolved, output: Ownership) -> tuple[TrainConfig, Start]:
    """Return the options with the size of a step, and the starting point of the run.

    Raises:
        UserError: `--from-checkpoint` names no checkpoint, an option differs that may not, or the
            run would end before the checkpoint from which it continues.
    """
    config = with_step_size(config, find_resume_checkpoint(config))
    identity = identity_of(config, resolved.manifest, resolved.override, resolved.model)
    start = start_of(config, identity, output)
    if start.continues and start.checkpoint is not None:
        steps, step = len(resolved.steps(config, start.identity)), start.checkpoint.step
        if steps < step:
            raise UserError(
                f"--from-checkpoint {config.from_checkpoint} is step {step:,}, but the run has "
                f"{steps:,} steps; give more --epochs or --max-steps"
            )
    return config, start
