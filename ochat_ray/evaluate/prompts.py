"""What a judge is asked: our own words, or a file of FastChat's or OpenChat's format."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from ochat_ray.errors import UserError
from ochat_ray.evaluate.records import key_of

GENERAL = "general"


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """A judge's prompt for one category of questions; `template` holds names in braces."""

    name: str
    category: str
    system: str
    template: str

    @property
    def digest(self) -> str:
        """Of all that the judge reads of it."""
        return key_of(self.system, self.template)

    def messages(self, **values: str) -> list[dict[str, str]]:
        """The conversation that the judge answers; braces in the values stay as they are."""
        user = {"role": "user", "content": self.template.format(**values)}
        return [{"role": "system", "content": self.system}, user] if self.system else [user]


@dataclass(frozen=True, slots=True)
class Prompts:
    """The prompts of a file, by name."""

    by_name: Mapping[str, Prompt]

    @property
    def digest(self) -> str:
        """Of all of them."""
        return key_of(sorted((name, prompt.digest) for name, prompt in self.by_name.items()))

    def for_category(self, category: str) -> Prompt:
        """The category's own prompt, or the general one."""
        by_category = {prompt.category: prompt for prompt in self.by_name.values()}
        return by_category.get(category) or by_category[GENERAL]

    @property
    def categories(self) -> frozenset[str]:
        """Those that have a prompt."""
        return frozenset(prompt.category for prompt in self.by_name.values())

    def named(self, name: str) -> Prompt:
        """The prompt of that name.

        Raises:
            UserError: there is none.
        """
        if name not in self.by_name:
            raise UserError(f"the prompts have none with the name {name!r}")
        return self.by_name[name]


def read_prompts(path: str | Path | None, *, suite: str, names: frozenset[str]) -> Prompts:
    """The prompts of a JSONL file; without a path, our own for this suite.

    `names` are those that a template may hold in braces.

    Raises:
        UserError: the file cannot be read, a line is no prompt, or a template asks for something
            else.
    """
    try:
        if path is None:
            own = resources.files("ochat_ray.evaluate") / "judge_prompts" / f"{suite}.jsonl"
            text = own.read_text(encoding="utf-8")
        else:
            text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    found = {}
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            prompt = _prompt(line, f"{path or suite}, line {number}", names)
            found[prompt.name] = prompt
    if not any(prompt.category == GENERAL for prompt in found.values()):
        raise UserError(f"{path}: no prompt of category {GENERAL!r}")
    return Prompts(found)


def _prompt(line: str, where: str, names: frozenset[str]) -> Prompt:
    try:
        record = json.loads(line)
        template, system = record["prompt_template"], record.get("system_prompt", "")
        name = str(record.get("name", record.get("prompt_id")))
        category, defaults = record["category"], record.get("defaults", {})
        asked = {field for _, field, _, _ in string.Formatter().parse(template) if field}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{where}: no prompt; `prompt_template` and `category` are needed"
        ) from error
    if unknown := asked - names - set(defaults):
        raise UserError(f"{where}: nothing is known of {{{sorted(unknown)[0]}}}")
    return Prompt(name=name, category=category, system=system, template=_filled(template, defaults))


def _filled(template: str, defaults: Mapping[str, Any]) -> str:
    """The template with its defaults in their places, and everything else left as it is."""
    for name, value in defaults.items():
        escaped = str(value).replace("{", "{{").replace("}", "}}")
        template = template.replace("{" + name + "}", escaped)
    return template
