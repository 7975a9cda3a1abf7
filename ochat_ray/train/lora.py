"""Low-rank adapters in a model, through peft, and checks of them before a run starts."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch

from ochat_ray.errors import UserError, one_line
from ochat_ray.models.base_model import lacks_end_of_turn
from ochat_ray.recipes import CHAT
from ochat_ray.train.config import TrainConfig
from ochat_ray.train.flops import ModelShape
from ochat_ray.train.lora_options import LoraOptions, lora_of
from ochat_ray.train.meta_model import meta_model
from ochat_ray.train.optimizer import frozen_by
from ochat_ray.train.quantization import quantized_parameters, silence_kernel_warning

ADAPTER = "default"
"""peft's name of the adapter, which its files do not contain."""

_EXPERTS = (
    "--lora: with these targets peft 0.21 would also adapt the fused experts and their routers, "
    "which is not supported; name attention's layers, such as targets=q_proj+k_proj+v_proj+o_proj"
)


def adapt(model: Any, config: TrainConfig) -> None:
    """Add a run's adapters to its model in place and freeze all other parameters.

    Does nothing without `--lora`. The adapters start from the run's seed, equal on all workers, and
    with B = 0, so the adapted model computes what the base computes.

    Raises:
        UserError: the targets do not fit the model.
    """
    options = lora_of(config)
    if options is None:
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        _inject(model, options, base=config.model)
    model.register_state_dict_post_hook(_keep_first_names)


def _keep_first_names(model: Any, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Remove all but the first names of parameters and buffers from a state dict.

    DeepSpeed 0.19.8 excludes frozen parameters from a checkpoint by these names only, so it would
    contain a tied embedding, and the scales of quantized weights.
    """
    first = {name for name, _ in [*model.named_parameters(), *model.named_buffers()]}
    for name in list(state):
        if name.removeprefix(prefix) not in first:
            del state[name]


def trained_adapters(model: Any) -> dict[str, torch.nn.Parameter]:
    """Return the adapters' parameters of a model by name; they are all that is trained."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def shape_of(config: TrainConfig, model_config: Any) -> ModelShape:
    """Return the sizes of a run's model, adapters included, and what of it is frozen.

    Raises:
        UserError: `--freeze` or `--lora` does not fit the model.
    """
    options = lora_of(config)
    if options is None:
        return ModelShape.of(model_config, frozen_by(config, model_config))
    model = meta_model(model_config)
    quantized = quantized_parameters(model_config) if options.quantize else 0
    if options.quantize and not quantized:
        raise UserError(
            f"--lora: quantize={options.quantize} would quantize none of the weights of a model of "
            f"type {model_config.model_type}, whose linear layers are of a class of its own; leave "
            "it out"
        )
    with torch.device("meta"):
        _inject(model, options, base=config.model)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    return ModelShape.of(model_config, frozen, model=model, quantized=quantized)


def check_adaptable(
    config: TrainConfig, model_config: Any, manifest: Mapping[str, Any]
) -> ModelShape:
    """Check `--freeze` or `--lora` against base model and chat template; return the model's sizes.

    Raises:
        UserError: it does not; the message names the option.
    """
    adds_token = manifest["model_type"] != CHAT and lacks_end_of_turn(config.model)
    if config.lora is not None and adds_token:
        raise UserError(
            f"--lora trains no embeddings, but the template {manifest['model_type']} adds an "
            f"end-of-turn token to {config.model}, which could then not end an answer; prepare and "
            "train with --recipe chat and a base with a chat template, or train without --lora"
        )
    return shape_of(config, model_config)


def _inject(model: Any, options: LoraOptions, *, base: str) -> None:
    silence_kernel_warning()  # peft imports bitsandbytes wherever it is installed
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora.layer import ParamWrapper

    _check_targets(model, options)
    lora = LoraConfig(
        r=options.r,
        lora_alpha=options.alpha,  # a float, too: peft divides it by r
        target_modules=list(options.targets) or "all-linear",
        use_rslora=options.rslora,
        use_dora=options.dora,
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
    )
    try:
        with warnings.catch_warnings():
            # Conv1D (GPT-2) has its weight transposed; peft notices and warns of it.
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
            inject_adapter_in_model(lora, model, ADAPTER)
    except ValueError as error:
        if "ParamWrapper" in str(error):  # for DoRA
            raise UserError(_EXPERTS) from error
        raise UserError(f"--lora: peft cannot adapt this model: {one_line(error)}") from error
    if any(isinstance(module, ParamWrapper) for module in model.modules()):
        raise UserError(_EXPERTS)


def _check_targets(model: Any, options: LoraOptions) -> None:
    """Check the names of targets by peft's rule: the complete name, or its end after a dot."""
    from transformers.pytorch_utils import Conv1D

    modules = dict(model.named_modules())
    embeddings = (model.get_input_embeddings(), model.get_output_embeddings())
    linear = {
        name: module
        for name, module in modules.items()
        if isinstance(module, torch.nn.Linear | Conv1D) and module not in embeddings
    }
    if not linear:
        raise UserError("--lora: the model has no linear layers except its output head")
    for target in options.targets:
        matched = {n: m for n, m in modules.items() if n == target or n.endswith(f".{target}")}
        kinds = sorted({name.rpartition(".")[2] for name in linear})
        if not matched:
            raise UserError(
                f"--lora: the target {target} matches no layer; linear layers are "
                f"{', '.join(kinds[:12])}"
            )
        if others := [name for name in matched if name not in linear]:
            is_embedding = modules[others[0]] in embeddings
            what = "an embedding or the output head" if is_embedding else "not a linear layer"
            raise UserError(
                f"--lora: the target {target} matches {others[0]}, which is {what}; linear layers "
                f"are {', '.join(kinds[:12])}"
            )


def adapter_config(model: Any) -> Any:
    """Return the peft configuration of a model's adapters as it is written beside them."""
    lora = copy.deepcopy(model.peft_config[ADAPTER])
    lora.inference_mode = True
    lora.target_modules = sorted(lora.target_modules)  # peft's set has another order each time
    return lora
