"""Convert a model directory to GGUF with llama.cpp's converter, and check the result."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ochat_ray.errors import UserError
from ochat_ray.export.config import ExportConfig
from ochat_ray.export.gguf_tokenizer import (
    Prompt,
    adds_bos,
    differences,
    read_metadata,
    read_vocabulary,
)
from ochat_ray.export.modelfile import Messages, modelfile, pieces_of
from ochat_ray.export.prompt_ids import is_installed, prompt_ids

SCRIPT = "convert_hf_to_gguf.py"
FILE, MODELFILE = "model.gguf", "Modelfile"
NO_CONVERTER = (
    f"llama.cpp's converter {SCRIPT} is not on PATH; run `git clone --depth 1 "
    "https://github.com/ggml-org/llama.cpp` and give --converter llama.cpp"
)

_CONVERSATIONS: tuple[Messages, ...] = (
    (("user", "Hello, how are you?"),),
    (("user", "  two\n\n\nlines\t"), ("assistant", "Yes.\n"), ("user", "é 你好 🙂👍🏽 नमस्ते")),
    (("user", "def f(x):\n    return  x  # done\n"), ("assistant", "ok"), ("user", "12345 67")),
    (("user", "a" * 300), ("assistant", "<b>no</b> &amp;"), ("user", "\\( x^2 \\) I'll, HE'S")),
)
"""Conversations whose prompts are compared. Typed names of special tokens are not among them: other
programs read the token, our server reads text."""


def find_converter(given: str | None) -> Path:
    """Return the path of the converter.

    Raises:
        UserError: There is none, or none at the given path.
    """
    if given is None:
        found = shutil.which(SCRIPT)
        if found is None:
            raise UserError(NO_CONVERTER)
        return Path(found)
    path = Path(given).expanduser()
    path = path / SCRIPT if path.is_dir() else path
    if not path.is_file():
        raise UserError(
            f"--converter {given}: there is no file {path}; give {SCRIPT} of llama.cpp, or the "
            "directory with it"
        )
    return path.absolute()


def check_model(directory: Path) -> None:
    """Check that a directory holds a whole model with a tokenizer.

    Raises:
        UserError: It does not.
    """
    if (directory / "adapter_config.json").exists():
        raise UserError(
            f"{directory} holds adapters, not a whole model; train it with --merge to export it"
        )
    for name in ("config.json", "tokenizer.json"):
        if not (directory / name).is_file():
            raise UserError(f"{directory} is not a model directory: it has no {name}")
    if not any(directory.glob("*.safetensors")):
        raise UserError(f"{directory} is not a model directory: it has no *.safetensors")


def convert(converter: Path, directory: Path, file: Path, tensor_type: str) -> None:
    """Run the converter.

    Raises:
        UserError: It fails; the message is its last line.
    """
    command = [sys.executable, str(converter), str(directory)]
    command += ["--outfile", str(file), "--outtype", tensor_type]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0 or not file.exists():
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = (lines or [f"it ended with status {done.returncode}"])[-1].strip()[:300]
        raise UserError(
            f"{converter} cannot convert {directory}: {reason}; a newer llama.cpp may "
            "know the model"
        )


class Directory:
    """Tokenizer of a model directory, as transformers opens it."""

    def __init__(self, path: Path) -> None:
        from transformers import AutoTokenizer

        from ochat_ray.tokenization.chat_tokenizer import load_chat_tokenizer, own_template

        self.path = path
        self.template = own_template(str(path))
        self.is_dated = "strftime_now" in self.template
        self.tokenizer: Any = AutoTokenizer.from_pretrained(str(path), local_files_only=True)
        self.ends: tuple[int, ...] = load_chat_tokenizer(str(path)).chat_ends

    def render(self, messages: Messages, add_generation_prompt: bool) -> str:
        """Return the text of a conversation; raise a ValueError if the template refuses it."""
        from jinja2 import TemplateError

        try:
            text: str = self.tokenizer.apply_chat_template(
                _as_dicts(messages), tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except (TemplateError, TypeError) as error:
            raise ValueError(str(error)) from error
        return text

    def ids(self, messages: Messages) -> list[int]:
        """Return the ids of a prompt."""
        ids: list[int] = self.tokenizer.apply_chat_template(
            _as_dicts(messages), add_generation_prompt=True, return_dict=False
        )
        return ids

    def prompt(self) -> Prompt:
        """Return what the GGUF file's tokenizer must have besides the vocabulary."""
        messages = _CONVERSATIONS[0]
        bos = self.tokenizer.bos_token_id
        text = self.render(messages, True)
        return Prompt(
            template=self.template,
            bos=bos,
            starts_with_bos=bos is not None and self.ids(messages)[0] == bos,
            writes_bos=bos is not None and text.startswith(self.tokenizer.bos_token),
            end=self.ends[0],
        )


def check_file(file: Path, directory: Directory) -> dict[str, Any]:
    """Check the tokenizer of a converted file, and its prompts where llama.cpp is installed.

    Returns:
        `prompts`: how many prompts have equal ids in llama.cpp, None without xllamacpp; `adds_bos`:
            whether programs add BOS to a prompt.

    Raises:
        UserError: A token, the template, an end of turn, BOS or a prompt differs.
    """
    refused = f"the converted {file.name} is not published: "
    vocabulary = read_vocabulary(directory.path / "tokenizer.json")
    metadata = read_metadata(file)
    if found := differences(metadata, vocabulary, directory.prompt()):
        raise UserError(f"{refused}{'; '.join(found)}; use another version of llama.cpp")
    if not is_installed():
        return {"adds_bos": adds_bos(metadata), "prompts": None}
    theirs = prompt_ids(file, [_as_dicts(messages) for messages in _CONVERSATIONS])
    for messages, ids in zip(_CONVERSATIONS, theirs, strict=True):
        expected = directory.ids(messages)
        if ids != expected:
            raise UserError(
                f"{refused}llama.cpp reads {len(ids)} tokens where the model was trained with "
                f"{len(expected)}, in the prompt {messages[0][1][:40]!r}; use another version of "
                "llama.cpp"
            )
    return {"adds_bos": adds_bos(metadata), "prompts": len(theirs)}


def export_gguf(config: ExportConfig) -> dict[str, Any]:
    """Convert a model directory, check the file, and publish it with a Modelfile.

    Raises:
        UserError: Something is missing, the converter fails, or the result differs.
    """
    from ochat_ray.models.model_directory import local_directory
    from ochat_ray.ownership import Ownership
    from ochat_ray.run_dir import RunDir
    from ochat_ray.run_lock import hold

    if not config.model:
        raise UserError("give a model directory, such as runs/chat/model")
    if find_spec("gguf") is None:
        raise UserError("export needs the package gguf: pip install 'ochat-ray[gguf]'")
    converter = find_converter(config.converter)
    output = config.output or f"{config.model.rstrip('/')}-gguf"
    if "://" in output:
        raise UserError(f"--output {output} must be a local directory; give --output DIR")
    path = local_directory(config.model)
    check_model(path)
    directory = Directory(path)
    owned = Ownership(RunDir.open(output), "export")
    owned.check([FILE, MODELFILE])
    Path(output).mkdir(parents=True, exist_ok=True)
    with hold(owned.run, "export"):
        owned.check([FILE, MODELFILE])
        with tempfile.TemporaryDirectory(dir=output, prefix=".export-") as work:
            file = Path(work, FILE)
            convert(converter, path, file, config.type)
            checked = check_file(file, directory)
            pieces = pieces_of(directory.render)
            stops = [directory.tokenizer.convert_ids_to_tokens(id) for id in directory.ends]
            bos = directory.tokenizer.bos_token if checked.pop("adds_bos") else ""
            Path(work, MODELFILE).write_text(
                modelfile(FILE, stops, pieces, bos=bos, dated=directory.is_dated),
                encoding="utf-8",
            )
            owned.record([FILE, MODELFILE])
            for name in (FILE, MODELFILE):
                os.replace(Path(work, name), Path(output, name))
    return {
        "file": str(Path(output, FILE)),
        "modelfile": str(Path(output, MODELFILE)),
        "bytes": Path(output, FILE).stat().st_size,
        "type": config.type,
        "ollama_template": pieces is not None,
        **checked,
    }


def _as_dicts(messages: Messages) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in messages]
