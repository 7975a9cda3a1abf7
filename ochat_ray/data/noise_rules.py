"""Remove text that browser extensions and providers left in turns: tails, labels, errors.

Each rule has a name, under which the manifest and the report count it and `--keep-noise` disables
it. The table is in docs/data-format.md. Tails and labels are removed only from records that can
have come through an extension (`EXTENSION_ORIGINS`), error messages from every input.

Sources: the demo's part of the ShareGPT dump, in which every tail except the marked ones occurs;
the error messages of chat.openai.com, of OpenAI's API and of Bing.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from html import unescape

import regex

from ochat_ray.data.markdown.noise import COUNTER, PAGER, has_pager
from ochat_ray.data.pager import pager_end, without_pager
from ochat_ray.schema import Turn

EXTENSION_ORIGINS = frozenset({"page", "sharegpt"})

COPY_CODE, SHARED_FROM = "copy_code", "shared_from"


@dataclass(frozen=True, kw_only=True, slots=True)
class Tail:
    """Text of an extension's buttons at the end of a turn.

    `own` marks text that no person writes; other tails are words that a person may write, and must
    directly follow the text before them.
    """

    name: str
    pattern: re.Pattern[str]
    own: bool = False


def _tail(name: str, pattern: str, *, own: bool = False) -> Tail:
    return Tail(name=name, pattern=re.compile(f"(?:{pattern})\\Z"), own=own)


# The lists of languages and buttons have about 300 characters.
_TAIL_CHARACTERS = 1000
_MAX_TAILS = 100
"""Maximum tails of one turn: removing each copies the text, so a million would take hours."""
TAILS: tuple[Tail, ...] = (
    _tail("share_prompt", r"Share Prompt"),
    _tail("translate_now", r"(?:\r?\n ){3,4}(?:지금 번역하기|Translate now)", own=True),
    _tail("translate_now", r"지금 번역하기|Translate now"),
    _tail("save_submit", r"Save & SubmitCancel", own=True),
    _tail("copy_to_clipboard", r"Copy to Clipboard"),
    _tail(
        "copy_bar",
        r"(?:\n )?CopyCopy HTMLRead Aloud(?:⏹️ Stop)?\d+ chars \| \d+ words",
        own=True,
    ),
    _tail(
        "language_bar",
        r" \d+ words \d+ char Copy Text Copy HTML Export PDF (?:Text-Speech )?Plagiarism Checker "
        r"Search Trend [A-Za-z ()]+ Ukrainian",
        own=True,
    ),
    _tail(COUNTER, r"Copy\s?\d+ chars / \d+ words"),
    # Not in the demo's part of the dump.
    _tail("regenerate_response", r"Regenerate response"),
    _tail("save_to_notion", r"Save to Notion"),
)
# Most turns end with none of these, and need no further check.
_ENDINGS = (
    "Prompt", "하기", "now", "Cancel", "Clipboard", "words", "Ukrainian", "response", "Notion"
)  # fmt: skip

_FENCE = re.compile(r"(?P<before>[ \t>]*+(?P<fence>`{3,}|~{3,}))[ \t]*+(?P<info>[^`\n]*)")
_LABEL = re.compile(r"(?P<language>[\w+#.-]*?)[ \t]*Copy code(?P<rest>.*)", re.DOTALL)
_SHARED_FROM = re.compile(
    r"\s*\*This (?:chat )?conversation is shared from "
    r"\[\*\*[^\]\n]{1,80}\*\*\]\([^)\s]{1,200}\)\*\s*"
)

_CONTACT = (
    r"If this issue persists,? please contact us through our help center at help\.openai\.com"
)
_RETRY = (
    r"You can retry your request, or contact us through our help center at help\.openai\.com if "
    r"(?:the error persists|you keep seeing this error)\."
    r"(?: \(Please include the request ID \w+ in your (?:message|email)\.\))?"
)
ERRORS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (name, re.compile(pattern))
    for name, pattern in (
        (
            "too_many_requests",
            r"!Too many requests.?|!?Too many requests(?: in \d+ (?:hours?|minutes?|seconds?)[.,]?"
            r"(?: (?:[Pp]lease )?[Tt]ry again later)?|[.,] (?:[Pp]lease )?(?:[Tt]ry again later"
            r"|slow down))[.!]?",
        ),
        (
            "error_occurred",
            r"An error occurred\. (?:Either the engine you requested does not exist or there was "
            rf"another issue processing your request\. )?{_CONTACT}\.?",
        ),
        (
            "something_went_wrong",
            rf"(?:(?:Oops|Sorry)[.,!] )?[Ss]omething went wrong(?:[.,]? (?:{_CONTACT}"
            r"|[Pp]lease try (?:again(?: later)?|reloading the conversation)))?[.!]?",
        ),
        ("network_error", r"network error"),
        (
            "message_too_long",
            r"The message you submitted was too long, please (?:reload the conversation and submit "
            r"something shorter|edit it and resubmit)\.?",
        ),
        (
            "one_message_at_a_time",
            r"Only one message at a time\. Please allow any other responses to complete before "
            r"sending another message, or wait one minute\.?",
        ),
        (
            "something_gone_wrong",
            r"Hmm(?:\.\.\.|…) ?something seems to have gone wrong\.?"
            r"(?: Maybe try me again in a little bit\.?)?",
        ),
        ("generating_error", r"There was an error generating a response\.?"),
        ("stream_error", r"Error in (?:body|message) stream\.?"),
        ("conversation_missing", r"Conversation not found|Unable to load conversation [\w-]+"),
        (
            "server_error",
            r"The server had an error while processing your request\. Sorry about that!"
            rf"(?: {_RETRY})?",
        ),
        (
            "overloaded",
            r"(?:The server|That model) is currently overloaded with other requests\."
            rf"(?: Sorry about that!)?(?: {_RETRY})?",
        ),
        (
            "usage_limit",
            r"You['’]ve reached the current usage cap for GPT-4(?:[.,] (?:You can continue with "
            r"the default model now, or|[Pp]lease) try again after [\w: ]+)?\.?(?: Learn more\.?)?"
            r"|Rate limit reached for \S+ in organization \S+ on .{0,500}"
            r"|You exceeded your current quota, please check your plan and billing details\."
            r"(?: For more information on this error, read the docs: \S+)?",
        ),
        ("at_capacity", r"ChatGPT is at capacity right now\.?"),
        (
            "context_exceeded",
            r"This model['’]s maximum context length is \d+ tokens[.,] [Hh]owever,? "
            r"(?:you requested|your messages resulted in) \d+ tokens(?: \([^()]*\))?\."
            r"(?: Please reduce [\w ;,]+\.?)?",
        ),
        (
            "unusual_activity",
            r"Our systems have detected unusual activity from your system\. "
            r"Please try again later\.?"
            r"|Our systems are a bit busy at the moment, please take a break and try again soon\.?",
        ),
    )
)
_MAX_ERROR_CHARACTERS = 1000
_ERROR_BEGINNINGS = (
    "!Too many", "Too many", "An error occ", "Something went", "something went", "Oops", "Sorry",
    "network err", "The message you", "Only one mess", "Hmm", "There was an err", "Error in",
    "Conversation not", "Unable to load", "The server", "That model", "You've reach",
    "You’ve reach", "Rate limit", "You exceeded", "ChatGPT is at", "This model", "Our systems",
)  # fmt: skip
_FIRST_TEXT = re.compile(r"(?:\s|<[^<>]*>)*+([^<]{0,20})")

RULES: tuple[str, ...] = tuple(
    dict.fromkeys(
        [PAGER, *(t.name for t in TAILS), COPY_CODE, SHARED_FROM, *(name for name, _ in ERRORS)]
    )
)
"""Names of all rules."""


def without_noise(
    turns: Sequence[Turn], names: Collection[str] = RULES
) -> tuple[list[Turn], list[str]]:
    """Return the turns without pagers, tails and labels, and a rule's name per removal.

    Answers in HTML are left to the conversion, which sees their structure. Words that a person may
    write are removed if no blank precedes them, or if another turn of the conversation shows that
    the extension was active.
    """
    found: list[str] = []
    with_pagers = PAGER in names and any(_has_certain_pager(turn) for turn in turns)
    tails = [tail for tail in TAILS if tail.name in names]
    sure = {
        t.name for turn in turns if not _is_markup(turn) for t in tails if _is_certain(turn.text, t)
    }
    cleaned = []
    for turn in turns:
        text = turn.text
        if turn.role != "system" and not _is_markup(turn):
            if PAGER in names:
                text = _count(without_pager(text, possible=with_pagers), text, PAGER, found)
            text = _without_tails(text, tails, sure, found)
            if COPY_CODE in names and turn.role == "assistant":
                text = _count(_without_copy_code(text), text, COPY_CODE, found)
        cleaned.append(turn if text == turn.text else replace(turn, text=text))
    if SHARED_FROM in names and cleaned and _is_shared_from(cleaned[0]):
        del cleaned[0]
        found.append(SHARED_FROM)
    return cleaned, found


def provider_error(turn: Turn, names: Collection[str] = RULES) -> str | None:
    """Return the name of the error message that an answer consists of, or None.

    An answer of several messages has the first one's name. An answer that quotes a message does not
    count.
    """
    if turn.role != "assistant" or len(turn.text) > 4 * _MAX_ERROR_CHARACTERS:
        return None
    text = turn.text
    first = _FIRST_TEXT.match(text) if turn.html else None
    if not (unescape(first[1]) if first else text[:200].lstrip()).startswith(_ERROR_BEGINNINGS):
        return None
    if turn.html:
        text = unescape(re.sub(r"<(?:br|/p|/div)\b[^>]*>", "\n\n", text))
        text = re.sub(r"<[^>]*>", "", text)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text).strip()
    if not text or len(text) > _MAX_ERROR_CHARACTERS:
        return None
    paragraphs = [" ".join(p.split()) for p in re.split(r"\n\s*\n", text) if p.strip()]
    found = [_error(paragraph, names) for paragraph in paragraphs]
    return found[0] if all(found) else None


def _error(text: str, names: Collection[str]) -> str | None:
    return next(
        (name for name, pattern in ERRORS if name in names and pattern.fullmatch(text)), None
    )


def _count(after: str, before: str, name: str, found: list[str]) -> str:
    if after != before:
        found.append(name)
    return after


def _is_markup(turn: Turn) -> bool:
    return turn.html and ("<" in turn.text or "&" in turn.text)


def _has_certain_pager(turn: Turn) -> bool:
    if _is_markup(turn):
        return has_pager(turn.text)
    end = pager_end(turn.text)
    return end is not None and end[1] == "certain"


def _without_tails(
    text: str, tails: Sequence[Tail], sure: Collection[str], found: list[str]
) -> str:
    """Remove tails until none is left: tails of several extensions may follow each other."""
    for _ in range(_MAX_TAILS):
        if not text.rstrip().endswith(_ENDINGS):
            break
        for tail in tails:
            before = _before(text, tail)
            if before is None:
                continue
            # Text that consists only of such words was sent by a person.
            if tail.own or _is_glued(before) or (tail.name in sure and before.strip()):
                text = _count(before, text, tail.name, found)
                break
        else:
            break
    return text


def _before(text: str, tail: Tail) -> str | None:
    """Return the text before a tail and the blanks after it; None if it does not end with it."""
    end = text.rstrip()
    if not end.endswith(_ENDINGS):
        return None
    match = tail.pattern.search(end, max(0, len(end) - _TAIL_CHARACTERS))
    return end[: match.start()] if match else None


def _is_certain(text: str, tail: Tail) -> bool:
    before = _before(text, tail)
    return before is not None and (tail.own or _is_glued(before))


# A letter or digit of a script with spaces between words, or the end of a sentence.
_GLUED = regex.compile(
    r"(?:[[\p{L}\p{N}]--[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}"
    r"\p{Myanmar}\p{Tibetan}]]|[.!?…。！？)\]}]|[\p{L}\p{N}.!?)][\"'’”*`])\Z",
    regex.V1,
)


def _is_glued(before: str) -> bool:
    return _GLUED.search(before[-2:]) is not None


def _without_copy_code(text: str) -> str:
    """Remove the label of a code block's button, "pythonCopy code", from the block."""
    if "Copy code" not in text:
        return text
    lines = text.split("\n")
    kept: list[str] = []
    opened = ""
    position = 0
    while position < len(lines):
        line = lines[position]
        position += 1
        match = _FENCE.fullmatch(line)
        if opened:
            if match and match["fence"].startswith(opened) and not match["info"]:
                opened = ""
            kept.append(line)
            continue
        kept.append(line)
        if match is None:
            continue
        opened = match["fence"]
        before, info = match["before"], match["info"].strip()
        after = lines[position] if position < len(lines) else ""
        if label := _LABEL.fullmatch(info):
            kept[-1] = before + label["language"]
            if label["rest"].strip():
                kept.append(label["rest"])
        elif label := _LABEL.fullmatch(after.lstrip(" \t>")):
            following = lines[position + 1] if position + 1 < len(lines) else opened
            # A block of only these words is about them.
            if label["rest"].strip() or not following.strip(" \t>").startswith(opened):
                kept[-1] = before + (info or label["language"])
                kept += [label["rest"]] if label["rest"].strip() else []
                position += 1
    return "\n".join(kept)


def _is_shared_from(turn: Turn) -> bool:
    return turn.role == "system" and _SHARED_FROM.fullmatch(turn.text) is not None
