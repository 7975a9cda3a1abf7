"""Model card of an exported model: README.md in the form that the Hugging Face Hub reads.

Names of models and files come from outside. In the header YAML quotes them, and in the text they
are code spans, so that none of them adds a field, a link or markup.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from ochat_ray.errors import UserError
from ochat_ray.run_dir import open_location
from ochat_ray.train.lora_options import LoraOptions

MODEL_CARD = "README.md"

_HEADER_BYTES = 1 << 20
_LICENCE_FIELDS = ("license", "license_name", "license_link")


def write_card(directory: Path, result: Mapping[str, Any]) -> None:
    """Write the model card into an exported directory.

    Args:
        directory: The exported model.
        result: Content of its ochat.json.
    """
    base = str(result["config"]["model"])
    text = model_card(result, licence=licence_of(base))
    (directory / MODEL_CARD).write_text(text, encoding="utf-8")


def model_card(result: Mapping[str, Any], *, licence: Mapping[str, str]) -> str:
    """Return the model card as Markdown with a YAML header.

    Args:
        result: Content of ochat.json.
        licence: Fields of the header on the base model's licence.
    """
    config, before, after = (result[name] for name in ("config", "eval_before", "eval_after"))
    base = _line(base_name(str(config["model"])))
    header = {
        "base_model": base,
        "library_name": "peft" if "adapter" in result else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["ochat-ray", "chat", f"recipe-{result['recipe']}"],
        **{name: _line(value) for name, value in licence.items()},
    }
    rows = {
        "base model": base,
        "recipe": result["recipe"],
        "template": template_name(result),
        "context length": f"{result['context_length']:,} tokens",
        "conversations": f"{result['conversations']:,}",
        "data digest": result["data_digest"],
        "optimizer steps": f"{result['step']:,}",
        "workers": result["world_size"],
        "learning rate": f"{config['learning_rate']:g}, {config['schedule']}",
        "loss": config["loss"],
        **_quantization_rows(result),
        "held-out loss": f"{before['loss']:.4f} before, {after['loss']:.4f} after training",
        "end of turn chosen": f"{100 * before['end_of_turn']:.0f}% before, "
        f"{100 * after['end_of_turn']:.0f}% after training",
        "commit": result.get("commit") or "of an installed package",
        "versions": ", ".join(f"{name} {v}" for name, v in result.get("versions", {}).items()),
    }
    written = yaml.safe_dump(header, sort_keys=False, allow_unicode=False, width=1000)
    table = "\n".join(f"- {name}: {code(value)}" for name, value in rows.items())
    terms = (
        f"The base model's licence is {code(licence['license'])}."
        if "license" in licence
        else "The base model's directory names no licence; the base model's terms apply."
    )
    load, serve = _USE_ADAPTER if "adapter" in result else _USE
    if "adapter" in result and not result.get("template"):  # the base may have one of its own
        serve += f" model_type={result['model_type']}"
    text = _TEXT.format(base=code(base), table=table, terms=terms, load=load, serve=serve)
    return f"---\n{written}---\n\n{text}"


def _quantization_rows(result: Mapping[str, Any]) -> dict[str, str]:
    """Return the rows of a model whose base was quantized in training."""
    adapter = result.get("adapter") or result.get("merged_adapter") or {}
    if "lora" not in adapter or LoraOptions.parse(adapter["lora"]).quantize is None:
        return {}
    trained = "quantized to NF4 by bitsandbytes, also for the held-out losses"
    if "adapter" not in result:
        return {"base in training": f"{trained}; merged into the dequantized weights"}
    difference = adapter.get("unquantized_difference")
    served = "not measured" if difference is None else f"{100 * difference:.1f}%"
    return {"base in training": trained, "difference of logits on the unquantized base": served}


_USE = (
    'model = AutoModelForCausalLM.from_pretrained(".")',
    "ochat-ray serve model=DIRECTORY",
)
_USE_ADAPTER = (
    "from transformers import GenerationConfig\n\n"
    "BASE = ...  # directory or name of the base model\n"
    'model = AutoModelForCausalLM.from_pretrained(BASE)\nmodel.load_adapter(".")\n'
    'model.generation_config = GenerationConfig.from_pretrained(".")  # stops at the end of turn',
    "ochat-ray serve model=BASE adapters=PARENT_OF_THIS_DIRECTORY",
)
"""Code that loads and serves a model, and adapters of a base."""


_TEXT = """# A chat model fine-tuned from {base}

Trained with ochat_ray. `ochat.json` in this directory has every option and figure.

{table}

## Use

With transformers, in this directory:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
{load}
messages = [{{"role": "user", "content": "What is the sea?"}}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
answer = model.generate(**inputs, max_new_tokens=256)[0, inputs["input_ids"].shape[1]:]
print(tokenizer.decode(answer, skip_special_tokens=True))
```

As a server with OpenAI's API: `{serve}`.

## Licence

{terms} The licences of the conversations apply as well.
"""


def code(value: object) -> str:
    """Return a value as a code span of one line, without characters that could end it."""
    text = _line(value).replace("`", "'")
    return f"`{text[:300] or '-'}`"


def _line(value: object) -> str:
    """Return a value as one line of printable characters."""
    return "".join(c if c.isprintable() else " " for c in str(value)).strip()


def base_name(model: str) -> str:
    """Return a Hub name unchanged; of a directory or URI the last part, since paths are private."""
    if "://" not in model and not Path(model).is_dir() and re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        return model
    return PurePosixPath(model.rstrip("/")).name or model


def template_name(result: Mapping[str, Any]) -> str:
    """Return the name of a template of 2023, or a chat template's arguments."""
    settings = result.get("template")
    if not settings:
        return str(result["model_type"])
    arguments = json.dumps(settings["arguments"]) if settings.get("arguments") else ""
    return f"chat template in chat_template.jinja {arguments}".strip()


def licence_of(model: str) -> dict[str, str]:
    """Return the licence fields of a base model's README.md, or of its config.json.

    A Hub name gives none, unless the files are in the Hub's cache: nothing is downloaded.
    """
    lines = _read(model, MODEL_CARD).splitlines()
    found: Any = None
    if lines and lines[0].strip() == "---":
        ends = [number for number, line in enumerate(lines[1:], 1) if line.strip() == "---"]
        found = _parsed(yaml.safe_load, "\n".join(lines[1 : ends[0]])) if ends else None
    fields = _texts(found)
    return fields or _texts(_parsed(json.loads, _read(model, "config.json")))


def _texts(found: Any) -> dict[str, str]:
    """Return the licence fields of a mapping that are short texts."""
    if not isinstance(found, Mapping):
        return {}
    values = {name: found.get(name) for name in _LICENCE_FIELDS}
    texts = {n: v for n, v in values.items() if isinstance(v, str) and 0 < len(v) <= 200}
    return texts if "license" in texts else {}


def _parsed(parse: Any, text: str) -> Any:
    try:
        return parse(text)
    except (ValueError, yaml.YAMLError, RecursionError):
        return None


def _read(model: str, name: str) -> str:
    """Return a text file of a model directory, URI or cached Hub repository; "" without one."""
    place = f"{model}/{name}"
    if "://" not in model and not Path(model).is_dir():
        from huggingface_hub import try_to_load_from_cache

        try:
            found = try_to_load_from_cache(model, name)
        except ValueError:  # not the name of a repository
            return ""
        if not isinstance(found, str):
            return ""
        place = found
    try:
        fs, path = open_location(place)
        with fs.open_input_stream(path) as stream:
            return str(stream.read(_HEADER_BYTES).decode("utf-8", "replace"))
    except (OSError, UserError):
        return ""
