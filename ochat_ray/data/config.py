"""Command-line options of `jobs/prepare.py`."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from ochat_ray.command_line import flag
from ochat_ray.data.formats.columns import parse_columns
from ochat_ray.data.long_conversations import Long
from ochat_ray.data.model_labels import normalize_model
from ochat_ray.errors import UserError
from ochat_ray.recipes import CHAT, DEMO, RECIPES, Recipe, default_directory, recipe
from ochat_ray.run_dir import open_location
from ochat_ray.schema import ModelClass
from ochat_ray.tokenization.template import TEMPLATES

SeparateAnswers = Literal["each", "last"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Resolved:
    """Values that the options were parsed to.

    `kept_labels` are normalized model labels, empty for all; `classes` has the weight and condition
    of each label with either; `blocked_words` includes those of files. `identity` has the values
    that affect the result, except inputs, questions and tokenizer.
    """

    columns: dict[str, str]
    kept_labels: list[str]
    classes: dict[str, ModelClass]
    blocked_words: list[str]
    noise_rules: list[str]
    template_arguments: dict[str, Any]
    identity: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Clean, deduplicate, filter and tokenize conversations into Arrow tables."""

    recipe: str = DEMO
    """Recipe: demo, openchat, openchat_8192, opencoder, or chat for any base model."""
    input: tuple[str, ...] = ()
    """Files, folders or globs of conversations or share pages (local paths or URIs). The demo
    recipe provides its own."""
    output: str = ""
    """Run directory to write; default: runs/RECIPE/data."""
    tokenizer: str = ""
    """Tokenizer of the base model: a directory, its URI or Hub name. The demo recipe provides
    its own."""
    template: str = "own"
    """Template of --recipe chat: own, the tokenizer's chat template; openchat or opencoder; or a
    Jinja file."""
    template_arguments: str = ""
    """Variables of the chat template as a JSON object: {"enable_thinking": false}."""
    separate_answers: SeparateAnswers = "each"
    """Answers to learn of a conversation whose earlier turns the chat template writes differently
    later (it leaves out their reasoning): each, in a sample of its own, or only the last."""
    answers: Literal["auto", "html", "markdown"] = "auto"
    """Format of the answers: ChatGPT's rendered HTML, Markdown, or detected per answer.
    ChatGPT's and Claude's exports and share pages are always Markdown."""
    columns: str = ""
    """Column names of records that use other names:
    conversations=dialog,role=speaker,text=utterance."""
    branches: Literal["current", "all"] = "current"
    """Branches to read from a tree of messages (ChatGPT's export, OpenAssistant): the current or
    best-ranked path, or each path to a leaf as a separate conversation."""
    merge_turns: bool = False
    """Join consecutive turns of one role with a blank line, instead of dropping the
    conversation."""
    keep_model: str = Recipe.keep_model
    """Model label to keep, or "any"."""
    class_weights: str = ""
    """Model labels to keep instead, with factors for their loss weights: GPT-4=1.0,GPT-3.5=0.1."""
    conditions: str = ""
    """Condition words before every role prefix, per model label: GPT-4=GPT4,GPT-3.5=GPT3."""
    blocked_words: tuple[str, ...] = Recipe.blocked_words
    """Words that drop a conversation: whole words, case-insensitive, in visible text. @FILE
    reads them from a file, one per line."""
    keep_noise: tuple[str, ...] = ()
    """Rules for browser-extension text and error messages to disable, by their names in
    docs/data-format.md; "all" disables all."""
    min_fidelity: float = 0.0
    """Minimum share of blocks and of visible text that a conversion from HTML must preserve;
    otherwise the conversation is dropped."""
    near_duplicates: float | None = None
    """Jaccard similarity from which conversations are near duplicates, such as 0.8."""
    decontaminate: tuple[str, ...] = ()
    """Files of evaluation questions (FastChat's question.jsonl, AlpacaEval's JSON);
    conversations that contain one are dropped."""
    eval_ratio: float = Recipe.eval_ratio
    """Share of conversations held out for evaluation, selected by their content."""
    seed: int = 42
    """Seed of the selection of held-out conversations."""
    max_length: int = RECIPES["openchat"].context_length
    """Context length in tokens: the maximum length of a sample."""
    long: Long = "cut"
    """Longer conversations are truncated at the context length (cut), split into samples at turn
    boundaries, each with the system turn, or dropped."""
    resume: bool = False
    """Resume an interrupted run instead of starting from scratch."""
    overwrite: bool = False
    """Replace a complete run with another configuration in the output directory."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the result as one JSON object on the last line of standard output."""

    def check(self) -> Resolved:
        """Check the options and return the values that they are parsed to.

        Raises:
            UserError: A value is invalid, or a file of words cannot be read.
        """
        for name, value in (("output", self.output), *(("input", one) for one in self.input)):
            if value == "":  # would be the current directory, such as for an unset variable
                raise UserError(f"{flag(name)} is empty; give a value, or leave it out")
        if not 0.0 <= self.eval_ratio < 1.0:
            raise UserError(f"--eval-ratio must be in [0, 1), not {self.eval_ratio}")
        if self.max_length < 1:
            raise UserError(f"--max-length must be at least 1, not {self.max_length}")
        if not 0.0 <= self.min_fidelity <= 1.0:
            raise UserError(f"--min-fidelity must be in [0, 1], not {self.min_fidelity}")
        if self.near_duplicates is not None and not 0.0 < self.near_duplicates < 1.0:
            raise UserError(f"--near-duplicates must be in (0, 1), not {self.near_duplicates}")
        if self.resume and self.overwrite:
            raise UserError("--resume continues a run and --overwrite replaces it; give only one")
        noise_rules, columns = _noise_rules(self.keep_noise), parse_columns(self.columns)
        if self.recipe != CHAT:
            for name in ("template", "template_arguments", "separate_answers"):
                if getattr(self, name) != PrepareConfig.__dataclass_fields__[name].default:
                    raise UserError(f"{flag(name)} needs --recipe chat; {self.recipe} has its own")
        if self.model_type != CHAT:
            if "tools" in columns:
                raise UserError("--columns tools=... needs a chat template; see --recipe chat")
            if self.template_arguments or self.separate_answers != "each":
                raise UserError(
                    "--template-arguments and --separate-answers need a chat template, not "
                    f"--template {self.template}"
                )
        elif self.conditions:
            raise UserError("--conditions has no effect on a chat template; leave it out")
        arguments, weights = _arguments(self.template_arguments), _weights(self.class_weights)
        kept = list(weights)
        if not weights and self.keep_model != "any":
            kept = [normalize_model(self.keep_model)]
        conditions = _pairs(self.conditions, "--conditions")
        if weights and self.keep_model not in (recipe(self.recipe).keep_model, "any"):
            raise UserError("--class-weights names the labels to keep; leave out --keep-model")
        for label in conditions:
            if kept and label not in kept:
                raise UserError(
                    f"--conditions names {label}, which is not kept ({', '.join(kept)}); "
                    "give it a weight with --class-weights, or leave it out"
                )
        words = _words(self.blocked_words)
        return Resolved(
            columns=columns,
            kept_labels=kept,
            classes={
                label: ModelClass(
                    weight=weights.get(label, 1.0), condition=conditions.get(label, "")
                )
                for label in sorted({*weights, *conditions})
            },
            blocked_words=words,
            noise_rules=noise_rules,
            template_arguments=arguments,
            identity={
                "recipe": self.recipe,
                "answers": self.answers,
                "columns": columns,
                "branches": self.branches,
                "merge_turns": self.merge_turns,
                "keep_model": None if self.class_weights else self.keep_model,
                "class_weights": weights,
                "conditions": conditions,
                "blocked_words": words,
                "noise_rules": noise_rules,
                "min_fidelity": self.min_fidelity,
                "near_duplicates": self.near_duplicates,
                "eval_ratio": self.eval_ratio,
                "seed": self.seed,
                "max_length": self.max_length,
                "long": self.long,
                **({"separate_answers": self.separate_answers} if self.model_type == CHAT else {}),
            },
        )

    @property
    def model_type(self) -> str:
        """Template: a key of `template.TEMPLATES`, or "chat" for a chat template."""
        chosen = recipe(self.recipe).model_type
        return self.template if chosen == CHAT and self.template in TEMPLATES else chosen

    @classmethod
    def for_recipe(cls, name: str) -> PrepareConfig:
        """Return the recipe's defaults; the demo recipe's downloads are not fetched yet."""
        chosen = recipe(name)
        return cls(
            recipe=name,
            output=default_directory(name, "data"),
            keep_model=chosen.keep_model,
            blocked_words=chosen.blocked_words,
            eval_ratio=chosen.eval_ratio,
            max_length=chosen.context_length,
        )


def _noise_rules(kept: Sequence[str]) -> list[str]:
    """Return the names of the rules of `data/noise_rules.py` that apply."""
    from ochat_ray.data.noise_rules import RULES  # imports parsers, which --help does not need

    for name in kept:
        if name not in (*RULES, "all"):
            raise UserError(
                f"--keep-noise: there is no rule {name!r}; choose of {', '.join(RULES)}, all"
            )
    return [name for name in RULES if not {name, "all"} & {*kept}]


def _arguments(text: str) -> dict[str, Any]:
    """Parse the variables of the chat template."""
    try:
        found = json.loads(text or "{}", parse_constant=_no_json)
    except ValueError:  # also of NaN and Infinity, which are no JSON
        found = None
    if not isinstance(found, dict):
        raise UserError(f"--template-arguments is a JSON object, not {text[:60]!r}")
    return found


def _weights(text: str) -> dict[str, float]:
    """Parse the factors of loss weights by normalized model label."""
    found = {}
    for label, factor in _pairs(text, "--class-weights").items():
        if not _is_weight(factor):
            raise UserError(
                f"--class-weights: the weight of {label} must be a finite number above 0, "
                f"not {factor!r}"
            )
        found[label] = float(factor)
    return found


def _words(blocked: Sequence[str]) -> list[str]:
    """Return the blocked words, with file names replaced by the words in the files."""
    words: list[str] = []
    for word in blocked:
        if not word.startswith("@"):
            words.append(word)
            continue
        fs, path = open_location(word[1:])
        try:
            with fs.open_input_stream(path) as stream:
                lines = stream.read().decode("utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--blocked-words: cannot read {word[1:]}: {error}") from error
        words += [line.strip() for line in lines if line.strip()]
    return words


def _pairs(text: str, flag: str) -> dict[str, str]:
    """Parse "GPT-4=a,GPT-3.5=b" into values by normalized model label.

    Raises:
        UserError: The text is not of this form, or names a label twice.
    """
    found: dict[str, str] = {}
    for pair in text.split(",") if text else []:
        name, _, value = (part.strip() for part in pair.rpartition("="))
        label = normalize_model(name)
        if not label or not value:
            raise UserError(f"{flag} is LABEL=VALUE,LABEL=VALUE; {pair.strip()!r} is not of it")
        if label in found:
            raise UserError(f"{flag} names {label} twice")
        found[label] = value
    return found


def _no_json(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _is_weight(text: str) -> bool:
    """Return whether the text is a finite number above 0 as a float32, the type of the tables."""
    try:
        (weight,) = struct.unpack("<f", struct.pack("<f", float(text)))
    except (ValueError, OverflowError):
        return False
    return 0.0 < weight < math.inf
