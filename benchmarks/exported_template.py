"""Compare the plain chat template of an exported model with training, on real conversations.

    python benchmarks/exported_template.py [--tokenizer DIR] [--conversations 1000]

The default template writes plain text, so a prefix and the text after it are tokenized together.
Printed is, per model type, the share of turns whose ids are those of training (`template.encode`),
and the tokens of the plain text relative to training's.
"""

from __future__ import annotations

import argparse

from chat_templates import conversations

from ochat_ray.demo import assets
from ochat_ray.tokenization.exported_tokenizer import export_tokenizer
from ochat_ray.tokenization.template import encode
from ochat_ray.tokenization.tokenizer import load_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", help="directory; default: the demo's base model")
    parser.add_argument("--conversations", type=int, default=1000)
    arguments = parser.parse_args()
    tokenizer = load_tokenizer(arguments.tokenizer or str(assets.base_model()))
    turns = [turn for c in conversations(arguments.conversations) for turn in c.turns]
    print("| model type | turns | equal ids | tokens, of training's |\n|---|---:|---:|---:|")
    for model_type in ("openchat", "opencoder"):
        exported = export_tokenizer(tokenizer, model_type)
        equal = plain = exact = 0
        for turn in turns:
            ids, _ = encode([turn], model_type, tokenizer)
            found = exported.apply_chat_template(
                [{"role": turn.role, "content": turn.text}], return_dict=False
            )
            equal += ids == found
            exact, plain = exact + len(ids), plain + len(found)
        print(f"| {model_type} | {len(turns):,} | {equal / len(turns):.1%} | {plain / exact:.2%} |")


if __name__ == "__main__":
    main()
