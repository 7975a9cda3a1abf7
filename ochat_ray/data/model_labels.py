"""Normalize model labels of conversations by full match.

A label is free text: "Model: GPT-4" on a share page, "gpt-4-0613" in an API log, "GPT-4 Turbo" in a
data set. The table of spellings is in docs/data-format.md, and a test reads it.

Sources: the model lists of OpenAI, Anthropic, Google and Mistral; the labels of chat.openai.com in
share pages of 2023.
"""

from __future__ import annotations

import re
import unicodedata

_PREFIX = re.compile(r"model\s*:\s*")
_PROVIDER = re.compile(
    r"(?:models|openai|azure|anthropic|google|vertex_ai|meta-llama|mistralai|mistral|deepseek-ai"
    r"|deepseek|qwen|x-ai|xai|cohere)/(?=[^/]+$)"
)
_BEDROCK = re.compile(r"(?:[a-z]{2}\.)?anthropic\.(.*?)(?:(?<=\d{8})-v\d+(?::\d+)?)?")
_SEPARATORS = re.compile(r"[\s_()@:\u2010-\u2015\u2212-]+")
_DATE = re.compile(r"-(?:20\d\d-\d\d-\d\d|20\d{6})(?=-|$)")
_MONTH = re.compile(r"-(?:\d{4}|\d\d-20\d\d)(?=-|$)")

# Full matches of the label, with "-" for each run of blanks, parentheses and similar characters.
_EXACT: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), label)
    for pattern, label in (
        # ChatGPT's default model of 2023, and its names on the page and in the API.
        (
            r"(?:default|legacy|turbo|chatgpt)"
            r"(?:-(?:default|legacy|turbo|gpt-?3\.5(?:-turbo)?|(?:default-)?for-free-users))*",
            "gpt-3.5",
        ),
        (r"text-davinci-002-render(?:-sha|-paid)*(?:-mobile)?", "gpt-3.5"),
        (r"(?:chat-?)?gpt-?3\.?5(?:-turbo)?(?:-mobile)?(?:-default|-legacy)*", "gpt-3.5"),
        (r"(?:default|legacy|chatgpt)-gpt-?4", "gpt-4"),
        (r"(?:chat-?)?gpt-?4(?:-mobile)?(?:-default|-legacy)*", "gpt-4"),
        (r"(?:chat-?)?gpt-?4-turbo(?:-preview|-default)?", "gpt-4-turbo"),
        (r"gpt-?4-(?:1106|0125)(?:-preview)?", "gpt-4-turbo"),
        (r"(?:chat-?)?gpt-?4\.5(?:-preview|-research-preview)?", "gpt-4.5"),
        (r"chatgpt-4o-latest", "chatgpt-4o-latest"),
    )
)
_GPT = re.compile(
    r"(?:chat-?)?gpt-?(?P<version>3\.5|35|[5-9]-\d(?=-|$)|[4-9](?:\.\d)?o?)"
    r"(?P<rest>(?:-(?:mini|nano|turbo|preview|pro|16k|32k|instruct|vision|audio|realtime|search"
    r"|transcribe|tts|image|codex|chat|latest|thinking|instant|max|high|medium|low|auto))*)"
)
_TOOLS = {
    "browsing": "browsing",
    "browse-with-bing": "browsing",
    "web-browsing": "browsing",
    "plugins": "plugins",
    "code-interpreter": "code interpreter",
    "advanced-data-analysis": "code interpreter",
    "dalle": "dall-e",
    "dall-e": "dall-e",
    "dall·e": "dall-e",
}
_WITH_TOOLS = re.compile(
    r"(?:chat-?)?gpt-?(?P<version>4o?|4-turbo)-(?P<tool>" + "|".join(_TOOLS) + r")(?:-model)?"
)
_REASONING = re.compile(r"o[1-9](?:-(?:mini|preview|pro|deep-research|high|medium|low))*")
_CLAUDE = re.compile(
    r"claude(?P<instant>-instant)?(?:-(?P<tier>opus|sonnet|haiku))?"
    r"(?:-?v?(?P<major>\d)(?:[.-](?P<minor>\d))?)?(?:-(?P<tier_after>opus|sonnet|haiku))?"
    r"(?P<rest>(?:-(?:thinking|100k))*)"
)
# Families whose labels differ only in blanks and capitals.
_FAMILIES = re.compile(
    r"(?:gemini|gemma|palm|llama|codellama|code-llama|mistral|ministral|magistral|mixtral|codestral"
    r"|pixtral|deepseek|qwen|qwq|grok|command|phi|yi|vicuna|wizardlm|gpt-oss|nova|kimi|glm)"
    r"[a-z]?\d*(?:\.\d+)*(?:-[a-z0-9.]+)*"
)


def normalize_model(label: str | None) -> str:
    """Return the canonical spelling of a label; "" if there is none.

    "Model: GPT-4", "gpt 4" and "GPT-4-0314" are "gpt-4": a date names a snapshot of the same model.
    A variant that uses tools is another model: "GPT-4 Browsing" is "gpt-4 (browsing)". A label that
    is not in the table stays as written, in lower case and with single blanks.
    """
    # Full-width letters count as ASCII letters.
    plain = unicodedata.normalize("NFKC", label or "").lower()
    written = _PREFIX.sub("", " ".join(plain.split()), count=1).strip()
    name = _PROVIDER.sub("", written)
    if match := _BEDROCK.fullmatch(name):
        name = match[1]
    name = _SEPARATORS.sub("-", name).strip("-")
    return _known(name) or written


def _known(name: str) -> str | None:
    """Return the canonical spelling of a label in the table."""
    dated = _exact(name)
    if dated:
        return dated
    name = _DATE.sub("", name)
    if name.startswith(("gpt", "chatgpt", "chat-gpt")):
        name = _MONTH.sub("", name)
    if found := _exact(name):
        return found
    if match := _GPT.fullmatch(name):
        version = match["version"].replace("35", "3.5").replace("-", ".")
        return f"gpt-{version}{match['rest']}"
    if match := _WITH_TOOLS.fullmatch(name):
        return f"gpt-{match['version']} ({_TOOLS[match['tool']]})"
    if _REASONING.fullmatch(name):
        return name
    if match := _CLAUDE.fullmatch(name.removesuffix("-latest")):
        return _claude(match)
    name = re.sub(r"^meta-(?=llama)", "", re.sub(r"-(?:latest|hf)$", "", name))
    return name if _FAMILIES.fullmatch(name) else None


def _exact(name: str) -> str | None:
    return next((label for pattern, label in _EXACT if pattern.fullmatch(name)), None)


def _claude(match: re.Match[str]) -> str:
    """Write a Claude label as Anthropic does: the tier follows the version only up to 3.7."""
    tier, major, minor = match["tier"] or match["tier_after"], match["major"], match["minor"]
    version = f"{major}.{minor}" if minor not in (None, "0") else major
    tier_first = tier if tier and (major is None or int(major) >= 4) else None
    words = ["claude", "instant" if match["instant"] else None, tier_first, version]
    words.append(tier if tier != tier_first else None)
    return "-".join(word for word in words if word) + match["rest"]
