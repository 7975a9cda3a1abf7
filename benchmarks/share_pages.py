# ruff: noqa: ARG002  (the signature of markdown-it's render rules)
"""Generate share pages like those of ShareGPT in 2023 from real conversations, in any number.

    python benchmarks/share_pages.py --output pages --count 90000

ShareGPT's pages cannot be shipped, so the demo's conversations, whose answers are Markdown, are
rendered as by ChatGPT's page of spring 2023: react-markdown's blocks without white space between
them, code with a label, a "Copy code" button and highlight.js spans, KaTeX.

Each conversation is rendered once, which takes most of the time. Further pages of it are variants:
frequent words are exchanged in every turn, so that they are neither exact nor near duplicates, as
far as the text has such words. The known counts of each kind are written next to the pages' folder,
to NAME.truth.json.
"""

from __future__ import annotations

import argparse
import base64
import functools
import hashlib
import html
import json
import multiprocessing
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from markdown_it import MarkdownIt
from markdown_it.common.utils import unescapeAll
from markdown_it.renderer import RendererHTML
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from pygments.lexer import Lexer
from pygments.lexers import get_lexer_by_name
from pygments.token import STANDARD_TYPES, _TokenType
from pygments.util import ClassNotFound

from ochat_ray.data.sources import read_file
from ochat_ray.demo import assets
from ochat_ray.progress import Progress
from ochat_ray.schema import Conversation

# ---- an answer's HTML

_WRAPPER = '<div class="markdown prose w-full break-words dark:prose-invert dark">'
_CODE_HEAD = (
    '<pre><div class="bg-black mb-4 rounded-md"><div class="flex items-center relative '
    'text-gray-200 bg-gray-800 px-4 py-2 text-xs font-sans"><span class="">'
)
_CODE_BUTTON = (
    '</span><button class="flex ml-auto gap-2"><svg stroke="currentColor" fill="none" '
    'stroke-width="2" viewBox="0 0 24 24" stroke-linecap="round" stroke-linejoin="round" '
    'class="h-4 w-4" height="1em" width="1em" xmlns="http://www.w3.org/2000/svg"><path d="M16 '
    '4h2a2 2 0 0 1 2 2v14a2 2 0 0 1-2 2H6a2 2 0 0 1-2-2V6a2 2 0 0 1 2-2h2"></path><rect x="8" '
    'y="2" width="8" height="4" rx="1" ry="1"></rect></svg>Copy code</button></div>'
    '<div class="p-4 overflow-y-auto">'
)
_HIGHLIGHT_LIMIT = 20_000
"""Characters of code above which there are no spans, since ChatGPT's page would also be slow."""

# Pygments' short names of token types, complete or by first letter, and highlight.js's classes.
_HLJS = {
    "c": "hljs-comment",
    "cp": "hljs-meta",
    "k": "hljs-keyword",
    "kt": "hljs-built_in",
    "kc": "hljs-literal",
    "nb": "hljs-built_in",
    "nf": "hljs-title function_",
    "nc": "hljs-title class_",
    "nt": "hljs-name",
    "na": "hljs-attr",
    "nv": "hljs-variable",
    "nd": "hljs-meta",
    "s": "hljs-string",
    "m": "hljs-number",
    "gi": "hljs-addition",
    "gd": "hljs-deletion",
}


def chatgpt_html(markdown: str) -> str:
    """Return an answer's HTML as in the DOM of ChatGPT's page of spring 2023."""
    return _WRAPPER + str(_renderer().render(markdown)) + "</div>"


@functools.cache
def _renderer() -> MarkdownIt:
    markdown = MarkdownIt("commonmark", {"html": False}, renderer_cls=_ChatGptRenderer)
    markdown.enable("table")
    markdown.inline.ruler.before("escape", "math", _inline_math)
    markdown.block.ruler.before(
        "fence", "math", _block_math, {"alt": ["paragraph", "reference", "blockquote", "list"]}
    )
    return markdown


class _ChatGptRenderer(RendererHTML):
    """Renderer that matches `outerHTML` of react-markdown's elements, without space between."""

    def renderToken(  # noqa: N802
        self, tokens: Sequence[Token], idx: int, options: Any, env: Any
    ) -> str:
        token = tokens[idx]
        if token.hidden:
            return ""
        if token.nesting == -1:
            return f"</{token.tag}>"
        if token.type == "link_open":
            token.attrSet("target", "_new")
        if style := token.attrGet("style"):
            token.attrSet("style", f"{style};".replace(":", ": "))
        attributes = "".join(f' {key}="{_attribute(value)}"' for key, value in token.attrItems())
        return f"<{token.tag}{attributes}>"

    def text(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        return _text(tokens[idx].content)

    def code_inline(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        return f"<code>{_text(tokens[idx].content)}</code>"

    def fence(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        words = unescapeAll(tokens[idx].info).split()
        return _code_block(tokens[idx].content, words[0] if words else "")

    def code_block(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        return _code_block(tokens[idx].content, "")

    def image(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        token = tokens[idx]
        token.attrSet("alt", self.renderInlineAsText(token.children, options, env))
        return self.renderToken(tokens, idx, options, env)

    def hardbreak(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        return "<br>\n"

    def math_inline(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        return f'<span class="math math-inline">{_katex(tokens[idx].content)}</span>'

    def math_block(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        formula = f'<span class="katex-display">{_katex(tokens[idx].content)}</span>'
        return f'<div class="math math-display">{formula}</div>'


def _text(text: str) -> str:
    return html.escape(text, quote=False).replace("\xa0", "&nbsp;")


def _attribute(value: str | int | float) -> str:
    text = str(value).replace("&", "&amp;").replace('"', "&quot;")
    return text.replace("\xa0", "&nbsp;")


def _code_block(code: str, language: str) -> str:
    if code and not code.endswith("\n"):  # a fence truncated by the answer's end
        code += "\n"
    label = _text(language)
    style = "!whitespace-pre hljs" + (f" language-{_attribute(language)}" if label else "")
    body = f'<code class="{style}">{_highlight(code, language)}</code></div></div></pre>'
    return _CODE_HEAD + label + _CODE_BUTTON + body


def _highlight(code: str, language: str) -> str:
    """Return the code with highlight.js's spans, if Pygments knows the language."""
    lexer = _lexer(language.lower())
    if lexer is None or len(code) > _HIGHLIGHT_LIMIT:
        return _text(code)
    pieces: list[tuple[str, str]] = []
    for _, kind, value in lexer.get_tokens_unprocessed(code):
        style = _hljs_class(kind)
        if pieces and pieces[-1][0] == style:
            value = pieces.pop()[1] + value
        pieces.append((style, value))
    if "".join(value for _, value in pieces) != code:
        return _text(code)
    return "".join(
        f'<span class="{style}">{_text(value)}</span>' if style else _text(value)
        for style, value in pieces
    )


@functools.cache
def _lexer(language: str) -> Lexer | None:
    try:
        return get_lexer_by_name(language) if language else None
    except ClassNotFound:
        return None


@functools.cache
def _hljs_class(kind: _TokenType) -> str:
    short = STANDARD_TYPES.get(kind, "")
    return _HLJS.get(short[:2]) or _HLJS.get(short[:1], "")


# ---- formulas


def _looks_like_tex(tex: str) -> bool:
    r"""Return whether it is a formula, not an escaped bracket or a price: "\[Your Name\]"."""
    return re.search(r"\\[A-Za-z]{2}|[=^_]", tex) is not None and "|" not in tex


_INLINE_MATH = re.compile(r"\\\(([^\n]+?)\\\)|\$\$([^\n$]+?)\$\$")
_BLOCK_MATH = re.compile(r"(?:\\\[(.+?)\\\]|\$\$(.+?)\$\$)[ \t]*$", re.DOTALL)


def _inline_math(state: StateInline, silent: bool) -> bool:
    match = _INLINE_MATH.match(state.src, state.pos)
    if match is None or match.end() > state.posMax:
        return False
    tex = (match[1] or match[2]).strip()
    if not _looks_like_tex(tex):
        return False
    if not silent:
        state.push("math_inline", "math", 0).content = tex
    state.pos = match.end()
    return True


def _block_math(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """Parse a formula on its own lines, up to the first blank line."""
    if state.is_code_block(start):
        return False
    first = state.bMarks[start] + state.tShift[start]
    if state.src[first : first + 2] not in ("\\[", "$$"):
        return False
    for line in range(start, end):
        if state.isEmpty(line) or state.sCount[line] < state.blkIndent:
            return False
        lines = state.getLines(start, line + 1, state.blkIndent, False).strip()
        if match := _BLOCK_MATH.fullmatch(lines):
            tex = (match[1] or match[2]).strip()
            if not _looks_like_tex(tex):
                return False
            if not silent:
                state.push("math_block", "math", 0).content = tex
                state.line = line + 1
            return True
    return False


def _katex(tex: str) -> str:
    """Return KaTeX's HTML: MathML with the TeX as annotation, and again as spans."""
    atoms = re.findall(r"\\([A-Za-z]+)|(\d+)|([^\s{}\\])", tex)
    mathml = spans = ""
    for command, number, sign in atoms:
        if number:
            mathml += f"<mn>{number}</mn>"
            spans += f'<span class="mord">{number}</span>'
        elif command or sign.isalpha():
            name = command or sign
            mathml += f"<mi>{name}</mi>"
            spans += f'<span class="mord mathnormal">{name}</span>'
        else:
            mathml += f"<mo>{_text(sign)}</mo>"
            spans += f'<span class="mbin">{_text(sign)}</span>'
    return (
        '<span class="katex"><span class="katex-mathml"><math '
        f'xmlns="http://www.w3.org/1998/Math/MathML"><semantics><mrow>{mathml}</mrow>'
        f'<annotation encoding="application/x-tex">{_text(tex)}</annotation></semantics></math>'
        '</span><span class="katex-html" aria-hidden="true"><span class="base"><span '
        'class="strut" style="height: 1em; vertical-align: -0.25em;"></span>'
        f"{spans}</span></span></span>"
    )


# ---- a page

_HEAD = (
    '<!DOCTYPE html><html lang="en"><head><meta charSet="utf-8"/><meta name="viewport" '
    'content="width=device-width"/><link rel="icon" href="/favicon.ico"/><title>%s</title>'
    '<meta property="og:image" content="https://sharegpt.com/api/og"/><style>'
    + "".join(
        f".p-{n}{{padding:{n / 4}rem}}.m-{n}{{margin:{n / 4}rem}}.h-{n}{{height:{n / 4}rem}}"
        f".md\\:w-{n}{{width:{n / 4}rem}}.text-gray-{n}00{{color:rgb({n} {n} {n}/1)}}"
        for n in range(40)
    )
    + "</style>"
    + "".join(
        f'<script src="/_next/static/chunks/{hashlib.md5(bytes([n])).hexdigest()[:16]}.js" '  # noqa: S324
        'defer=""></script>'
        for n in range(14)
    )
    + '</head><body><div id="__next"><div class="flex flex-col items-center pb-24">'
)
_AVATARS = [
    "data:image/jpeg;base64," + base64.b64encode(random.Random(n).randbytes(1800)).decode()
    for n in range(16)
]
_NEXT_ESCAPES = (
    (b"&", b"\\u0026"),
    (b"<", b"\\u003c"),
    (b">", b"\\u003e"),
    ("\u2028".encode(), b"\\u2028"),
    ("\u2029".encode(), b"\\u2029"),
)
"""Escapes of Next.js's JSON, so that no text in it can end the script."""

MALFORMED = ("truncated", "empty", "no_script", "broken_json", "no_items")

Item = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One page to write. `copy_of` is the id of the page that it repeats or nearly repeats."""

    id: str
    kind: str
    variant: int
    model: str | None
    copy_of: str | None = None


def page(plan: Plan, items: Sequence[Item]) -> bytes:
    """Return the bytes of a page."""
    rng = random.Random(plan.id)
    if plan.kind == "empty":
        return b""
    asked = next((item["value"] for item in items if item["from"] == "human"), "")
    title = " ".join(asked.split()[:6])[:60] + f" ({plan.id})"
    content: dict[str, Any] = {"title": title, "avatarUrl": rng.choice(_AVATARS)}
    if plan.model is not None:
        content["model"] = plan.model
    if plan.kind != "no_items":
        content["items"] = items
    data = {
        "props": {
            "pageProps": {"id": plan.id, "views": rng.randrange(5000), "content": content},
            "__N_SSG": True,
        },
        "page": "/c/[id]",
        "query": {"id": plan.id},
        "buildId": "X2sUuBnhUdZxS3NpWcbkM",
        "isFallback": False,
        "gsp": True,
    }
    body = (_HEAD % html.escape(title) + _conversation_html(items) + "</div></div>").encode()
    if plan.kind == "no_script":
        return body + b"</body></html>"
    script = orjson.dumps(data)
    for sign, escape in _NEXT_ESCAPES:
        script = script.replace(sign, escape)
    if plan.kind == "broken_json":
        script = script.replace(b'"items":[{', b'"items":[{{', 1)
    body += b'<script id="__NEXT_DATA__" type="application/json">' + script
    if plan.kind == "truncated":
        return body[: rng.randrange(len(_HEAD), len(body) - 20)]
    return body + b"</script></body></html>"


def _conversation_html(items: Sequence[Item]) -> str:
    turns = []
    for item in items:
        text = item["value"]
        if item["from"] == "human":
            text = f'<p class="pb-2 whitespace-prewrap">{html.escape(text)}</p>'
        turns.append(f'<div class="dark:bg-[#343541] text-gray-700 w-full px-4">{text}</div>')
    return "".join(turns)


# ---- variants

_SWAPS = [
    ["the", "a", "this", "that", "our", "their", "every", "some", "another"],
    ["to", "for", "with", "from", "by", "at", "on", "in"],
    ["and", "or", "but", "so", "then", "yet"],
    ["is", "was", "are", "were", "be", "seems", "remains"],
    ["of", "about", "behind", "under", "over", "against"],
    ["you", "we", "they", "I", "she", "he"],
    ["can", "will", "should", "could", "might", "must", "would"],
    ["de", "en", "con", "por", "para", "sin", "sobre"],
    ["la", "el", "los", "las", "un", "una"],
    ["der", "die", "das", "den", "ein", "eine", "und"],
    ["的", "是", "了", "在", "和", "有", "不", "我", "你"],
    ["は", "が", "を", "に", "で", "と", "の", "も"],
    ["이", "가", "을", "는", "의", "에", "도"],
]
_PLACES = {word: (group, i) for group in _SWAPS for i, word in enumerate(group)}
_FREQUENT = re.compile(
    r"(?<= )(?:" + "|".join(w for w in _PLACES if w.isascii()) + r")(?= )"
    r"|[" + "".join(w for w in _PLACES if not w.isascii()) + "]"
)


def vary(items: Sequence[Item], variant: int, mark: str) -> list[Item]:
    """Return the conversation with other frequent words, and `mark` in a question and an answer."""
    if variant == 0:
        return list(items)

    def swap(match: re.Match[str]) -> str:
        group, place = _PLACES[match[0]]
        return group[(place + variant) % len(group)]

    varied = [{**item, "value": _FREQUENT.sub(swap, item["value"])} for item in items]
    return _append(varied, f"\n(case {mark})", f"<p>Case {mark}.</p>")


def _append(items: list[Item], typed: str, rendered: str) -> list[Item]:
    """Append text to the first question and to the last answer."""
    items = [dict(item) for item in items]
    question = next((i for i in items if i["from"] == "human"), None)
    answer = next((i for i in reversed(items) if i["from"] == "gpt"), None)
    if question is not None:
        question["value"] += typed
    if answer is not None:
        answer["value"] = answer["value"].removesuffix("</div>") + rendered + "</div>"
    return items


# ---- what is written where


def plans(arguments: argparse.Namespace, sources: int) -> list[list[Plan]]:
    """Return the pages of each source conversation."""
    rng = random.Random(arguments.seed)
    ids = _ids(arguments.seed, arguments.count)
    counts = {
        "exact_duplicate": round(arguments.count * arguments.exact_duplicates),
        "near_duplicate": round(arguments.count * arguments.near_duplicates),
    }
    malformed = round(arguments.count * arguments.malformed)
    uniques = arguments.count - sum(counts.values()) - malformed
    if uniques < 1:
        raise SystemExit("share_pages: no share is left for pages that are no copies")
    order = list(range(sources))
    rng.shuffle(order)
    of_source: list[list[Plan]] = [[] for _ in range(sources)]
    originals: list[tuple[int, Plan]] = []
    for n in range(uniques + malformed):
        kind = "unique" if n < uniques else MALFORMED[n % len(MALFORMED)]
        model = _model(rng, arguments.gpt4)
        plan = Plan(id=next(ids), kind=kind, variant=n // sources, model=model)
        of_source[order[n % sources]].append(plan)
        if kind == "unique":
            originals.append((order[n % sources], plan))
    for kind, number in counts.items():
        for source, original in rng.choices(originals, k=number):
            copy = Plan(
                id=next(ids),
                kind=kind,
                variant=original.variant,
                model=original.model,
                copy_of=original.id,
            )
            of_source[source].append(copy)
    return of_source


def _model(rng: random.Random, gpt4: float) -> str | None:
    draw = rng.random()
    if draw < gpt4:
        return "Model: GPT-4"
    return "Model: Default (GPT-3.5)" if draw < gpt4 + (1 - gpt4) * 0.8 else None


def _ids(seed: int, count: int) -> Iterator[str]:
    """Yield distinct ids like ShareGPT's, of seven letters or digits."""
    signs = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
    rng = random.Random(f"ids {seed}")
    seen: set[str] = set()
    while len(seen) < count:
        name = "".join(rng.choices(signs, k=7))
        if name not in seen:
            seen.add(name)
            yield name


def items_of(plan: Plan, rendered: Sequence[Item]) -> list[Item]:
    """Return the page's turns, given the rendered conversation."""
    items = vary(rendered, plan.variant, plan.copy_of or plan.id)
    if plan.kind == "near_duplicate":
        items = _append(items, " thanks", "<p>Let me know.</p>")
    return items


def write(job: tuple[Path, list[tuple[str, str]], list[Plan]]) -> int:
    """Render one conversation and write its pages; return their number."""
    output, turns, pages = job
    rendered = [
        {"from": sender, "value": chatgpt_html(text) if sender == "gpt" else text}
        for sender, text in turns
    ]
    for plan in pages:
        folder = output / hashlib.sha256(plan.id.encode()).hexdigest()[:2]
        folder.mkdir(exist_ok=True)
        (folder / f"{plan.id}.html").write_bytes(page(plan, items_of(plan, rendered)))
    return len(pages)


def conversations(path: str) -> list[list[tuple[str, str]]]:
    """Return the distinct conversations whose answers are Markdown, in the file's order."""
    names = {"user": "human", "assistant": "gpt"}
    found: dict[str, list[tuple[str, str]]] = {}
    for record in read_file(path):
        if not isinstance(record, Conversation) or not record.turns or not _is_markdown(record):
            continue
        turns = [(names[turn.role], turn.text) for turn in record.turns]
        found.setdefault(hashlib.sha256(repr(turns).encode()).hexdigest(), turns)
    return list(found.values())


def _is_markdown(conversation: Conversation) -> bool:
    """Return whether no answer is already HTML and no turn is a system turn."""
    rendered = re.compile(r'\s*<(?:div|p|span|pre|ul|ol|h\d|table)\b|.*class="markdown', re.DOTALL)
    return all(
        turn.role == "user" or (turn.role == "assistant" and not rendered.match(turn.text))
        for turn in conversation.turns
    )


def truth(arguments: argparse.Namespace, of_source: Sequence[Sequence[Plan]]) -> dict[str, Any]:
    """Return the number of pages of each kind, and of each model among readable ones.

    Near duplicates within the source are not counted here.
    """
    pages = [plan for plans in of_source for plan in plans]
    readable = [plan for plan in pages if plan.kind not in MALFORMED]
    return {
        "pages": len(pages),
        "kinds": dict(Counter(plan.kind for plan in pages)),
        "malformed": len(pages) - len(readable),
        "models": dict(Counter(plan.model or "" for plan in readable)),
        "sources": sum(bool(plans) for plans in of_source),
        "arguments": {key: str(value) for key, value in vars(arguments).items()},
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--exact-duplicates", type=float, default=0.05)
    parser.add_argument("--near-duplicates", type=float, default=0.05)
    parser.add_argument("--malformed", type=float, default=0.01)
    parser.add_argument("--gpt4", type=float, default=0.1, help="share with a GPT-4 label")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--input", default="", help="ShareGPT JSON; the demo's when not given")
    parser.add_argument("--workers", type=int, default=2, help="processes that render")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    output: Path = arguments.output.resolve()
    if output.exists() and any(output.iterdir()):
        sys.exit(f"share_pages: {output} is not empty; pages of two runs must not mix")
    output.mkdir(parents=True, exist_ok=True)
    sources = conversations(arguments.input or str(assets.conversations()))
    if not sources:
        sys.exit("share_pages: the input holds no conversation in Markdown")
    of_source = plans(arguments, len(sources))
    jobs = [(output, turns, pages) for turns, pages in zip(sources, of_source, strict=True)]
    progress = Progress("render", "pages", total=arguments.count)
    with multiprocessing.Pool(arguments.workers) as pool:
        for written in pool.imap_unordered(write, [job for job in jobs if job[2]], chunksize=8):
            progress.add(written)
    progress.finish()
    counts = truth(arguments, of_source)
    path = output.with_name(f"{output.name}.truth.json")
    path.write_text(json.dumps(counts, indent=2) + "\n")
    print(json.dumps(counts["kinds"]), path)


if __name__ == "__main__":
    main()
