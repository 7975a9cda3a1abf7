"""What `jobs/prepare.py` can be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from ochat_ray.errors import UserError
from ochat_ray.recipes import recipe
from ochat_ray.run_dir import open_location


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
    """Directory of the base model's tokenizer. The demo recipe has its own."""
    keep_model: str = "GPT-4"
    """Model label to keep, or "any"."""
    blocked_words: tuple[str, ...] = ("openai",)
    """Words that drop a conversation: whole words, in any case, as a reader sees them. @FILE
    reads them from a file, one a line."""
    min_fidelity: float = 0.0
    """Share of blocks that a conversion from HTML must give back; below it, a conversation goes."""
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
    """Tokens a conversation is cut at."""
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
        """What the result depends on, besides the inputs' content and the tokenizer."""
        return {
            "recipe": self.recipe,
            "input": list(self.input),
            "keep_model": self.keep_model,
            "blocked_words": self.words(),
            "min_fidelity": self.min_fidelity,
            "near_duplicates": self.near_duplicates,
            "decontaminate": list(self.decontaminate),
            "eval_ratio": self.eval_ratio,
            "seed": self.seed,
            "max_length": self.max_length,
        }
