"""Speed of the template relative to the tokenizers library.

    python benchmarks/template_speed.py                     the demo's conversations and tokenizer
    python benchmarks/template_speed.py --tokenizer DIR     another tokenizer, same conversations

Compares `template.encode_batch` with direct calls of the library on the same texts: `encode_batch`
(its usual call, with offsets), `encode_batch_fast` (without), and transformers on top of it. All
four process each batch in turn, in rotating order, so that a busy machine affects them equally;
each returns the ids as lists. Measured once with one thread and once with the library's default.
The ratio is that of the sums over all batches.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from ochat_ray.data.sources import read_file
from ochat_ray.demo import assets
from ochat_ray.schema import Conversation, Turn
from ochat_ray.tokenization.template import encode_batch
from ochat_ray.tokenization.tokenizer import load_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokenizer", help="a directory; without it the demo's")
    parser.add_argument("--conversations", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--parallelism", choices=("true", "false"), help="without it: both")
    arguments = parser.parse_args()
    if arguments.parallelism:
        # The library reads this setting once, so each value needs a separate process.
        os.environ["TOKENIZERS_PARALLELISM"] = arguments.parallelism
        measure(arguments)
        return
    for parallelism in ("false", "true"):
        command = [sys.executable, *sys.argv, "--parallelism", parallelism]
        subprocess.run(command, check=True)


def measure(arguments: argparse.Namespace) -> None:
    """Measure in one process: print a line for each way to call the library."""
    tokenizer = load_tokenizer(arguments.tokenizer or str(assets.base_model()))
    conversations = sample(arguments.conversations)
    batches = [
        conversations[start : start + arguments.batch]
        for start in range(0, len(conversations), arguments.batch)
    ]
    backend = tokenizer.backend_tokenizer
    ways: dict[str, Callable[[list[list[Turn]]], Any]] = {
        "template.encode_batch": lambda batch: encode_batch(batch, "openchat", tokenizer),
        "tokenizers encode_batch": lambda batch: [
            e.ids for e in backend.encode_batch(texts(batch), add_special_tokens=False)
        ],
        "tokenizers encode_batch_fast": lambda batch: [
            e.ids for e in backend.encode_batch_fast(texts(batch), add_special_tokens=False)
        ],
        "transformers": lambda batch: tokenizer(
            texts(batch), add_special_tokens=False, split_special_tokens=True
        )["input_ids"],
    }
    tokens = sum(
        len(ids) for batch in batches for ids in ways["tokenizers encode_batch_fast"](batch)
    )
    names = list(ways)
    seconds = dict.fromkeys(names, 0.0)
    for turn in range(arguments.rounds):
        for index, batch in enumerate(batches):
            first = (turn + index) % len(names)
            for name in names[first:] + names[:first]:
                started = time.perf_counter()
                ways[name](batch)
                seconds[name] += time.perf_counter() - started
    threads = "one thread" if arguments.parallelism == "false" else f"{os.cpu_count()} threads"
    print(f"{len(conversations):,} conversations, {tokens:,} tokens of text, {threads}")
    ours = seconds["template.encode_batch"]
    for name, theirs in seconds.items():
        speed = tokens * arguments.rounds / theirs
        print(f"  {name:<30}{speed:>12,.0f} tokens/s   ours is {100 * theirs / ours:.0f}% of it")


def texts(conversations: list[list[Turn]]) -> list[str]:
    """Return the texts of all turns in order."""
    return [turn.text for turns in conversations for turn in turns]


def sample(count: int) -> list[list[Turn]]:
    """Return the first conversations of the demo's file."""
    found: list[list[Turn]] = []
    for item in read_file(str(assets.conversations())):
        if isinstance(item, Conversation):
            found.append(list(item.turns))
            if len(found) == count:
                break
    return found


if __name__ == "__main__":
    main()
