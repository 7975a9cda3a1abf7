"""Tokenizer of an exported model, for programs that apply its chat template.

It has two templates of a model type. The default is plain text, as programs without tokenizer.json
need it (llama.cpp). With that of `EXACT_TEMPLATE`, `apply_chat_template` gives the ids of
`template.encode`: it writes `segment_marks` between segments, and tokenizer.json splits at them.
`load_tokenizer` removes both, since our own jobs and server call `encode`.
"""

from __future__ import annotations

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

from ochat_ray.errors import UserError
from ochat_ray.recipes import CHAT
from ochat_ray.tokenization.segment_marks import add_marks
from ochat_ray.tokenization.template import chat_template, encode, exact_chat_template
from ochat_ray.tokenization.tokenizer import END_OF_TURN, PROBE_TEXTS

EXACT_TEMPLATE = "exact_chat_template.jinja"
"""File with the chat template that gives the ids of training."""


def export_tokenizer(tokenizer: Any, model_type: str) -> Any:
    """Return a copy with the chat template of a model type, to be saved by `save_pretrained`.

    With the base's own template it is the base's tokenizer, whose EOS ends an answer.

    Otherwise its EOS is the end-of-turn token, since converters to GGUF and other programs take
    the stop token from the tokenizer. The base's EOS remains a special token.

    The chat templates accept messages of the roles system, user and assistant and the variable
    `condition`. The ids of texts without U+FDD0 and U+FDD1 do not change.

    Raises:
        UserError: unknown model type, a tokenizer that `encode` rejects, or one whose ids of a
            complete conversation differ from those of its segments.
    """
    from tokenizers import Tokenizer

    if model_type == CHAT:
        own = copy.copy(tokenizer)
        own.__class__ = _exported_class()
        del own.chat  # our renderer, which is not written
        return own
    marked = add_marks(json.loads(tokenizer.backend_tokenizer.to_str()))
    exported = copy.deepcopy(tokenizer)
    exported._tokenizer = Tokenizer.from_str(json.dumps(marked))  # transformers has no setter
    exported.__class__ = _exported_class()
    special_tokens = [t["content"] for t in marked["added_tokens"] if t["special"]]
    exported.chat_template = chat_template(model_type)
    exported.exact_chat_template = exact_chat_template(model_type, special_tokens)
    _end_at_end_of_turn(exported)
    _check(exported, tokenizer, model_type, special_tokens)
    return exported


def _end_at_end_of_turn(tokenizer: Any) -> None:
    others = [*tokenizer.extra_special_tokens, tokenizer.eos_token]
    tokenizer.eos_token = END_OF_TURN
    tokenizer.extra_special_tokens = [t for t in others if t is not None and t != END_OF_TURN]


@cache
def _exported_class() -> type:
    """Return a tokenizer class whose tokenizer_config.json transformers 4 and 5 can read.

    The file names the class, and with this name both versions use tokenizer.json unchanged.
    Version 4 knows neither the name that version 5 writes nor its list of special tokens. Version
    4 also wrote the added tokens to the file, where converters to GGUF that need a SentencePiece
    tokenizer.model look for them.
    """
    import transformers

    flags = ("lstrip", "normalized", "rstrip", "single_word", "special")

    class PreTrainedTokenizerFast(transformers.PreTrainedTokenizerFast):
        def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
            saved = super().save_pretrained(save_directory, *args, **kwargs)
            path = Path(save_directory) / "tokenizer_config.json"
            config = json.loads(path.read_bytes())
            if special_tokens := config.pop("extra_special_tokens", None):
                config["additional_special_tokens"] = special_tokens
            config["added_tokens_decoder"] = {
                str(id): {"content": token.content} | {name: getattr(token, name) for name in flags}
                for id, token in sorted(self.added_tokens_decoder.items())
            }
            text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)
            path.write_text(text + "\n", encoding="utf-8")
            if exact := getattr(self, "exact_chat_template", None):
                (path.parent / EXACT_TEMPLATE).write_text(exact, encoding="utf-8")
            return saved

    return PreTrainedTokenizerFast


def _check(exported: Any, tokenizer: Any, model_type: str, special_tokens: list[str]) -> None:
    for text in (*PROBE_TEXTS, *special_tokens):
        turns = [{"role": role, "text": text} for role in ("system", "user", "assistant")]
        messages = [{"role": turn["role"], "content": turn["text"]} for turn in turns]
        rendered = exported.apply_chat_template(
            messages, tokenize=False, chat_template=exported.exact_chat_template
        )
        ids = exported(rendered, add_special_tokens=False)["input_ids"]
        if ids != encode(turns, model_type, tokenizer)[0]:
            raise UserError(
                f"no chat template can give this tokenizer's ids: with the text {text[:60]!r} the "
                "ids of a complete conversation differ from those of its segments"
            )
