"""What `jobs/prepare.py` can be told."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from ochat_ray.data.formats.columns import parse_columns
from ochat_ray.data.kinds import printable
from ochat_ray.data.long_conversations import Long
from ochat_ray.data.model_labels import normalize_model
from ochat_ray.errors import UserError
from ochat_ray.recipes import recipe
from ochat_ray.run_dir import open_location
from ochat_ray.schema import ModelClass


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Clean, deduplicate, filter and tokenise conversations into Arrow tables."""

    recipe: str = "demo"
    """One of demo, openchat, openchat_8192, opencoder."""
    input: tuple[str, ...] = ()
    """Files, folders or globs of conversations or share pages (local paths or URIs). The demo
    recipe has its own."""
    output: str = ""
    """Run directory to write; runs/RECIPE/data when not given."""
    tokenizer: str = ""
    """The base model's: a directory, its URI or hub name. The demo recipe has its own."""
    answers: Literal["auto", "html", "markdown"] = "auto"
    """Format of the answers: ChatGPT's rendered HTML, Markdown, or decided for each answer.
    ChatGPT's and Claude's own exports and share pages are Markdown always."""
    columns: str = ""
    """Columns of records that have names of their own:
    conversations=dialog,role=speaker,text=utterance."""
    branches: Literal["current", "all"] = "current"
    """Paths to read of a tree of messages (ChatGPT's export, OpenAssistant): the current or
    best-ranked one, or each path to a leaf as a conversation."""
    merge_turns: bool = False
    """Join consecutive turns of one role by a blank line, instead of dropping the conversation."""
    keep_model: str = "GPT-4"
    """Model label to keep, or "any"."""
    class_weights: str = ""
    """Model labels to keep instead, and what their loss weights are multiplied by:
    GPT-4=1.0,GPT-3.5=0.1."""
    conditions: str = ""
    """Words before every role of a model label's conversations: GPT-4=GPT4,GPT-3.5=GPT3."""
    blocked_words: tuple[str, ...] = ("openai",)
    """Words that drop a conversation: whole words, in any case, as a reader sees them. @FILE
    reads them from a file, one a line."""
    keep_noise: tuple[str, ...] = ()
    """Rules for text of browser extensions and error messages to switch off, by their names in
    docs/data-format.md; "all" switches off all."""
    min_fidelity: float = 0.0
    """Share that a conversion from HTML must give back, both of the blocks and of the visible
    text; below it, a conversation is dropped."""
    near_duplicates: float | None = None
    """Jaccard similarity from which conversations are near duplicates, such as 0.8."""
    decontaminate: tuple[str, ...] = ()
    """Files of evaluation questions (FastChat's question.jsonl, AlpacaEval's JSON): conversations
    that contain one are dropped."""
    eval_ratio: float = 0.01
    """Share of conversations held out for evaluation, chosen by their content."""
    seed: int = 42
    """Seed of the choice of held-out conversations."""
    max_length: int = 2048
    """Context length in tokens: the most that a sample has."""
    long: Long = "cut"
    """A longer conversation is cut at the context length, split into samples at turn boundaries
    (each with the system turn), or dropped."""
    resume: bool = False
    """Go on with a run that was killed, instead of starting clean."""
    overwrite: bool = False
    """Replace a complete run of another configuration in the output directory."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the result as one JSON object on the last line of standard output."""

    def check(self) -> None:
        """Raise a UserError for a value that no run can have."""
        if not 0.0 <= self.eval_ratio < 1.0:
            raise UserError(f"--eval-ratio must be in [0, 1), not {self.eval_ratio}")
        if self.max_length < 1:
            raise UserError(f"--max-length must be at least 1, not {self.max_length}")
        if not 0.0 <= self.min_fidelity <= 1.0:
            raise UserError(f"--min-fidelity must be in [0, 1], not {self.min_fidelity}")
        if self.near_duplicates is not None and not 0.0 < self.near_duplicates < 1.0:
            raise UserError(f"--near-duplicates must be in (0, 1), not {self.near_duplicates}")
        if self.resume and self.overwrite:
            raise UserError("--resume goes on with a run and --overwrite replaces it; give one")
        self.noise_rules()
        self.column_names()
        weights, kept = self._weights(), self.kept_labels()
        if weights and self.keep_model not in (recipe(self.recipe).keep_model, "any"):
            raise UserError("--class-weights names the labels to keep; leave out --keep-model")
        for label in self._conditions():
            if kept and label not in kept:
                raise UserError(
                    f"--conditions names {label}, which is not kept ({', '.join(kept)}); "
                    "give it a weight with --class-weights, or leave it out"
                )

    def column_names(self) -> dict[str, str]:
        """Own names of columns, by logical name.

        Raises:
            UserError: --columns cannot be read.
        """
        return parse_columns(self.columns)

    def kept_labels(self) -> list[str]:
        """The model labels to keep, normalised; none stands for all.

        Raises:
            UserError: --class-weights cannot be read.
        """
        if weights := self._weights():
            return list(weights)
        return [] if self.keep_model == "any" else [normalize_model(self.keep_model)]

    def classes(self) -> dict[str, ModelClass]:
        """Weight and condition of the normalised model labels that have either.

        Raises:
            UserError: --class-weights or --conditions cannot be read.
        """
        weights, conditions = self._weights(), self._conditions()
        return {
            label: ModelClass(weight=weights.get(label, 1.0), condition=conditions.get(label, ""))
            for label in sorted({*weights, *conditions})
        }

    def _weights(self) -> dict[str, float]:
        found = {}
        for label, text in _pairs(self.class_weights, "--class-weights").items():
            if not _is_weight(text):
                raise UserError(
                    f"--class-weights: the weight of {label} must be a finite number above 0, "
                    f"not {text!r}"
                )
            found[label] = float(text)
        return found

    def _conditions(self) -> dict[str, str]:
        return _pairs(self.conditions, "--conditions")

    def words(self) -> list[str]:
        """The blocked words, with those of files in place of their names.

        Raises:
            UserError: a file of words cannot be read.
        """
        words: list[str] = []
        for word in self.blocked_words:
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

    def noise_rules(self) -> list[str]:
        """Return the names of the rules of `data/noise_rules.py` that apply.

        Raises:
            UserError: --keep-noise names a rule that does not exist.
        """
        from ochat_ray.data.noise_rules import RULES  # its parsers, so that --help is quick

        for name in self.keep_noise:
            if name not in (*RULES, "all"):
                raise UserError(
                    f"--keep-noise: there is no rule {name!r}; choose of {', '.join(RULES)}, all"
                )
        return [name for name in RULES if not {name, "all"} & {*self.keep_noise}]

    @classmethod
    def for_recipe(cls, name: str) -> PrepareConfig:
        """The recipe's defaults; what the demo recipe fetches is not fetched yet."""
        chosen = recipe(name)
        return cls(
            recipe=name,
            output=f"runs/{name}/data",
            keep_model=chosen.keep_model,
            eval_ratio=chosen.eval_ratio,
            max_length=chosen.context_length,
        )

    def identity(self) -> dict[str, object]:
        """Values that the result depends on, besides inputs, questions and tokenizer."""
        return {
            "recipe": self.recipe,
            "answers": self.answers,
            "columns": self.column_names(),
            "branches": self.branches,
            "merge_turns": self.merge_turns,
            "keep_model": None if self.class_weights else self.keep_model,
            "class_weights": self._weights(),
            "conditions": self._conditions(),
            "blocked_words": self.words(),
            "noise_rules": self.noise_rules(),
            "min_fidelity": self.min_fidelity,
            "near_duplicates": self.near_duplicates,
            "eval_ratio": self.eval_ratio,
            "seed": self.seed,
            "max_length": self.max_length,
            "long": self.long,
        }

    def described(self) -> dict[str, object]:
        """`identity` and the names of the files, for people."""
        return {
            "input": [printable(uri) for uri in self.input],
            **self.identity(),
            "decontaminate": [printable(uri) for uri in self.decontaminate],
        }


def _pairs(text: str, flag: str) -> dict[str, str]:
    """ "GPT-4=a,GPT-3.5=b" by normalised model label.

    Raises:
        UserError: it is not that, or names a label twice.
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


def _is_weight(text: str) -> bool:
    """Whether it is a finite number above 0 as a float32, which the tables hold."""
    try:
        (weight,) = struct.unpack("<f", struct.pack("<f", float(text)))
    except (ValueError, OverflowError):
        return False
    return 0.0 < weight < math.inf
