"""Share of ChatGPT's answers that survives the conversion from HTML to Markdown.

    python benchmarks/markdown_fidelity.py --messages 5000 --show 20

Real answers are rendered as by ChatGPT's page of 2023, converted back by each converter, and the
Markdown is rendered again with markdown-it-py (CommonMark and tables). A message is intact if the
result has the structure of the original HTML: the same blocks in the same nesting, tight and loose,
list starts, cells and their alignment, link targets, text with normalized white space, code byte
for byte with its language. The page's chrome (label, button, highlight spans) is not structure, and
a formula is its TeX.

The judge shares no code with `ochat_ray.data.markdown`, and uses another HTML parser.

    python benchmarks/markdown_fidelity.py --restore lists code     see `restore`
    python benchmarks/markdown_fidelity.py --html FILE              one file's HTML instead

Without --restore the figures favour the converter of 2023, which produced the demo's data.
"""

from __future__ import annotations

import argparse
import importlib
import random
import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline
from share_pages import chatgpt_html

from ochat_ray.data.sources import read_file
from ochat_ray.demo import assets
from ochat_ray.progress import Progress
from ochat_ray.schema import Conversation

Converter = Callable[[str], str]

# ---- converters


def ours() -> Converter:
    """Return `ochat_ray.data.markdown.html_to_markdown`."""
    module = importlib.import_module("ochat_ray.data.markdown.blocks")
    convert: Converter = module.html_to_markdown
    return convert


_DIV = re.compile("<div.*?>")
_SPAN = re.compile("<span.*?>")
_CODE_LANGUAGE = re.compile(r"```\s*(.*?)(?:Copy code)+(.+?)\s*?```", re.DOTALL)
_PAGER = re.compile(r"\d+ / \d+")
_COPY_CHARS = re.compile(r"Copy\d+ chars / \d+ words")
_EMPTY_CODE = re.compile(r"```(.*?)Copy code\s*```")


def reference_2023() -> Converter:
    """Return markdownify with the regular expressions of FastChat's clean_sharegpt."""
    from markdownify import markdownify

    def convert(html: str) -> str:
        text = markdownify(_SPAN.sub("", _DIV.sub("", html))).strip()
        text = _CODE_LANGUAGE.sub(r"```\g<1>\n\g<2>\n```", text)
        if match := _PAGER.match(text):
            text = text[match.end() :]
        text = _EMPTY_CODE.sub("", _COPY_CHARS.sub("", text))
        return str(text.replace("\n\n\n", "\n").strip())

    return convert


def rust_plain() -> Converter:
    """Return the package html-to-markdown with its defaults."""
    from html_to_markdown import convert

    return lambda html: convert(html).content or ""


def rust_prepared() -> Converter:
    """Return html-to-markdown with suitable options, after removing the code blocks' chrome.

    This is the best that a user gets without writing a converter.
    """
    from html_to_markdown import ConversionOptions, convert

    options = ConversionOptions(
        code_block_style="backticks",
        escape_asterisks=True,
        escape_underscores=True,
        escape_misc=True,
        autolinks=False,
        extract_metadata=False,
    )
    head = re.compile(r'<pre><div class="bg-black.*?<div class="p-4 overflow-y-auto">', re.DOTALL)

    def prepared(html: str) -> str:
        html = head.sub("<pre>", html).replace("</code></div></div></pre>", "</code></pre>")
        html = re.sub(r'<code class="!whitespace-pre hljs ?', '<code class="', html)
        return convert(html, options).content or ""

    return prepared


CONVERTERS: dict[str, Callable[[], Converter]] = {
    "ours": ours,
    "2023": reference_2023,
    "html-to-markdown": rust_plain,
    "html-to-markdown, chrome removed": rust_prepared,
}


# ---- structure

Node = tuple[Any, ...]
"""Node as (name, attributes, children), where children are nodes and strings.

Code and formulas have one string. Names are those of HTML, and `math` and `text`: the latter is a
run of text that forms a block, the item of a tight list, where a loose one has a paragraph.
"""

_VOID = {"br", "hr", "img", "input", "wbr", "rect"}
_CONTAINERS = {"root", "blockquote", "ul", "ol", "li", "table", "thead", "tbody", "tr"}
_BLOCKS = {"p", "pre", "hr", "math-display", "div", "h1", "h2", "h3", "h4", "h5", "h6"}
_BLOCKS |= _CONTAINERS - {"root"}


@dataclass
class Element:
    """Element as found by the parser."""

    name: str
    attributes: dict[str, str] = field(default_factory=dict)
    children: list[Element | str] = field(default_factory=list)

    def text(self) -> str:
        return "".join(c if isinstance(c, str) else c.text() for c in self.children)

    def find(self, name: str) -> Iterator[Element]:
        for child in self.children:
            if isinstance(child, Element):
                if child.name == name:
                    yield child
                yield from child.find(name)


class _Tree(HTMLParser):
    """Tree of exactly the tags in the source; both sides should be well formed."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("root")
        self._open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {key: value or "" for key, value in attrs})
        self._open[-1].children.append(element)
        if tag not in _VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open[-1].children.append(Element(tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        names = [element.name for element in self._open]
        if tag in names[1:]:
            del self._open[len(names) - 1 - names[::-1].index(tag) :]

    def handle_data(self, data: str) -> None:
        self._open[-1].children.append(data)

    def handle_comment(self, data: str) -> None:
        self._open[-1].children.append(Element("comment", {"data": data}))


def structure(html: str) -> Node:
    """Return the canonical structure of HTML, of a page's answer or of rendered Markdown."""
    parser = _Tree()
    parser.feed(html)
    parser.close()
    root = parser.root
    answer = root.children[0] if len(root.children) == 1 else None
    if isinstance(answer, Element) and "markdown" in answer.attributes.get("class", "").split():
        root = Element("root", {}, answer.children)
    return _node(root)


def _node(element: Element) -> Node:
    name = element.name
    if name == "pre":
        return _code(element)
    if name in ("math-inline", "math-display"):
        return (name, (), (element.text().strip(),))
    style = element.attributes.get("class", "").split()
    if "math" in style or "katex" in style:
        tex = next((e.text() for e in element.find("annotation")), "")
        return ("math-display" if name == "div" else "math-inline", (), (tex.strip(),))
    if name == "code":
        return (name, (), (element.text(),))
    if name in _CONTAINERS:
        return (name, _attributes(element), _blocks(element))
    return (name, _attributes(element), _inline(element.children, trim=name in _BLOCKS))


def _code(element: Element) -> Node:
    """Return a code block: its language and its text, without label, button and spans."""
    code = next(element.find("code"), element)
    pattern = r"(?:^|\s)language-(\S+)"
    language = re.search(pattern, code.attributes.get("class", ""))
    return ("pre", (("language", language[1] if language else ""),), (code.text(),))


def _attributes(element: Element) -> tuple[tuple[str, str], ...]:
    """Return the attributes of an element that Markdown can represent."""
    given = element.attributes
    wanted: dict[str, str | None] = {}
    if element.name == "a":
        wanted = {key: given.get(key) for key in ("href", "title")}
    elif element.name == "img":
        wanted = {key: given.get(key) for key in ("src", "alt", "title")}
    elif element.name == "ol":
        wanted = {"start": given.get("start", "1")}
    elif element.name in ("th", "td"):
        align = re.search(r"text-align:\s*(\w+)", given.get("style", ""))
        wanted = {"align": align[1] if align else None}
    elif element.name == "comment":
        wanted = {"data": given["data"]}
    return tuple((key, value) for key, value in wanted.items() if value is not None)


def _blocks(element: Element) -> tuple[Node | str, ...]:
    """Return blocks, with runs of bare text between them as blocks named `text`."""
    blocks: list[Node | str] = []
    run: list[Element | str] = []

    def end_run() -> None:
        if inline := _inline(run, trim=True):
            blocks.append(("text", (), inline))
        run.clear()

    for child in element.children:
        if isinstance(child, Element) and (child.name in _BLOCKS or _is_display_math(child)):
            end_run()
            blocks.append(_node(child))
        elif isinstance(child, Element) and child.name in ("th", "td"):
            blocks.append((child.name, _attributes(child), _inline(child.children, trim=True)))
        else:
            run.append(child)
    end_run()
    return tuple(blocks)


def _is_display_math(element: Element) -> bool:
    return element.name == "div" and "math" in element.attributes.get("class", "").split()


def _inline(children: Sequence[Element | str], *, trim: bool) -> tuple[Node | str, ...]:
    """Return text runs and inline elements, without white space at block ends and line breaks."""
    parts: list[Node | str] = []
    for child in children:
        part = child if isinstance(child, str) else _node(child)
        if isinstance(part, str) and parts and isinstance(parts[-1], str):
            part = parts.pop() + part  # type: ignore[operator]
        parts.append(part)
    parts = [_squeeze(part) if isinstance(part, str) else part for part in parts]
    for i, part in enumerate(parts):
        if isinstance(part, str):
            if (trim and i == 0) or (i > 0 and parts[i - 1][0] == "br"):
                part = part.lstrip(" ")
            if (trim and i == len(parts) - 1) or (i + 1 < len(parts) and parts[i + 1][0] == "br"):
                part = part.rstrip(" ")
            parts[i] = part
    return tuple(part for part in parts if part != "")


def _squeeze(text: str) -> str:
    return re.sub(r"[ \t\n\r\f]+", " ", text)


# ---- the judge


@dataclass(frozen=True)
class Difference:
    """First difference of two structures: the path to it, and the content on each side."""

    path: tuple[str, ...]
    expected: Node | str | None
    found: Node | str | None

    def cause(self) -> str:
        """Return a short description of the probable kind of mistake."""
        names = [_name(self.expected), _name(self.found)]
        where = self.path[-1] if self.path else "root"
        if where == "pre":
            return "code: " + ("bytes" if names == ["#text", "#text"] else " -> ".join(names))
        if isinstance(self.expected, str) and isinstance(self.found, str):
            return f"text in {where}"
        if names[0] == names[1]:
            return f"attributes of {names[0]}"
        return f"in {where}: {names[0]} -> {names[1]}"

    def __str__(self) -> str:
        expected, found = _around(repr(self.expected), repr(self.found))
        return f"{' > '.join(self.path)}\n  expected {expected}\n  found    {found}"


def _name(node: Node | str | None) -> str:
    if node is None:
        return "nothing"
    return "#text" if isinstance(node, str) else str(node[0])


def _around(expected: str, found: str, width: int = 160) -> tuple[str, str]:
    """Return both texts, from shortly before their first difference."""
    same = 0
    while same < min(len(expected), len(found)) and expected[same] == found[same]:
        same += 1
    start = max(0, same - 60)
    return expected[start : start + width], found[start : start + width]


def first_difference(
    expected: Node | str | None, found: Node | str | None, path: tuple[str, ...] = ()
) -> Difference | None:
    """Return the first difference; None if both structures are equal."""
    if expected == found:
        return None
    if not isinstance(expected, tuple) or not isinstance(found, tuple) or expected[:2] != found[:2]:
        return Difference(path, expected, found)
    path = (*path, str(expected[0]))
    for i in range(max(len(expected[2]), len(found[2]))):
        sides = [side[2][i] if i < len(side[2]) else None for side in (expected, found)]
        if difference := first_difference(sides[0], sides[1], path):
            return difference
    raise AssertionError("structures differ nowhere")


def judge(html: str, markdown: str) -> Difference | None:
    """Return the first difference between the original HTML and the rendered Markdown."""
    original = structure(html)
    rendered = _judge_renderer(frozenset(_formulas(original))).render(markdown)
    return first_difference(original, structure(rendered))


def _formulas(node: Node | str) -> Iterator[str]:
    if isinstance(node, tuple):
        if node[0] in ("math-inline", "math-display"):
            yield node[2][0]
        for child in node[2]:
            yield from _formulas(child)


_SIGNS = (("\\(", "\\)"), ("\\[", "\\]"), ("$$", "$$"), ("$", "$"))


def _judge_renderer(formulas: frozenset[str]) -> MarkdownIt:
    """Return a renderer of CommonMark, tables and those formulas that the original contains.

    No other rule for formulas is neutral: whether "$5 and $6" is one depends on the reader.
    """
    markdown = MarkdownIt("commonmark", {"html": True}).enable("table")
    if not formulas:
        return markdown

    def inline(state: StateInline, silent: bool) -> bool:
        found = _formula_at(state.src, state.pos, state.posMax, formulas)
        if found is None:
            return False
        if not silent:
            state.push("math_inline", "math-inline", 0).content = found[0]
        state.pos = found[1]
        return True

    def block(state: StateBlock, start: int, end: int, silent: bool) -> bool:
        first = state.bMarks[start] + state.tShift[start]
        if state.src[first : first + 2] not in ("\\[", "$$") or state.is_code_block(start):
            return False
        for line in range(start, end):
            lines = state.getLines(start, line + 1, state.blkIndent, False).strip()
            found = _formula_at(lines, 0, len(lines), formulas)
            if found is not None and found[1] == len(lines):
                if not silent:
                    state.push("math_display", "math-display", 0).content = found[0]
                    state.line = line + 1
                return True
        return False

    def write(name: str) -> Callable[..., str]:
        def rule(_self: Any, tokens: Any, idx: int, _options: Any, _env: Any) -> str:
            text = tokens[idx].content.replace("&", "&amp;").replace("<", "&lt;")
            return f"<{name}>{text}</{name}>"

        return rule

    markdown.inline.ruler.before("escape", "math", inline)
    alternatives = ["paragraph", "reference", "blockquote", "list"]
    markdown.block.ruler.before("fence", "math", block, {"alt": alternatives})
    markdown.add_render_rule("math_inline", write("math-inline"))
    markdown.add_render_rule("math_display", write("math-display"))
    return markdown


def _formula_at(
    text: str, start: int, end: int, formulas: frozenset[str]
) -> tuple[str, int] | None:
    """Return the known formula between delimiters at a position, and its end."""
    for opening, closing in _SIGNS:
        if not text.startswith(opening, start):
            continue
        stop = text.find(closing, start + len(opening), end)
        tex = text[start + len(opening) : stop].strip()
        if stop >= 0 and tex in formulas:
            return tex, stop + len(closing)
    return None


# ---- the run


@dataclass
class Score:
    """Results of one converter. Seconds are CPU time of the converter only."""

    name: str
    convert: Converter
    messages: int = 0
    seconds: float = 0.0
    failures: dict[str, list[tuple[str, str, str]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    """Failures by cause: source Markdown, the converter's Markdown, difference."""

    def run(self, pages: Sequence[str]) -> list[str | Exception]:
        """Convert all messages in one run, so that no converter warms the caches for another."""
        for html in pages[:50]:
            self._convert(html)
        started = time.process_time()
        results = [self._convert(html) for html in pages]
        self.seconds = time.process_time() - started
        return results

    def _convert(self, html: str) -> str | Exception:
        """Convert one message; an exception of the converter counts as a failure."""
        try:
            return self.convert(html)
        except Exception as error:  # noqa: BLE001  (whatever a peer raises)
            return error

    def judge(self, source: str, html: str, result: str | Exception) -> None:
        self.messages += 1
        if isinstance(result, Exception):
            cause = f"raised {type(result).__name__}"
            self.failures[cause].append((source, "", str(result)))
        elif difference := judge(html, result):
            self.failures[difference.cause()].append((source, result, str(difference)))

    @property
    def failed(self) -> int:
        return sum(map(len, self.failures.values()))

    def row(self) -> str:
        intact = 100 * (1 - self.failed / self.messages)
        milliseconds = 1000 * self.seconds / self.messages
        return f"| {self.name} | {intact:.2f}% | {self.failed:,} | {milliseconds:.3f} |"


def sample(path: str, count: int, seed: int) -> list[str]:
    """Return a random sample of answers longer than 20 characters."""
    answers = [
        turn.text
        for record in read_file(path)
        if isinstance(record, Conversation)
        for turn in record.turns
        if turn.role == "assistant" and len(turn.text) > 20
    ]
    return random.Random(seed).sample(answers, min(count, len(answers)))


_FENCED = re.compile(r"(^```.*?^```)", re.MULTILINE | re.DOTALL)
_ITEM = re.compile(r"\n(?=(?:[*-]|\d+\.) )")
_DEFINITION = re.compile(
    r"\n(?=(?:def|class|function|async|public|if __name__|export|const|int|void|import)\b)"
)


def restore(answer: str, what: Sequence[str]) -> str:
    """Restore, as far as possible, structure that the demo's data lost when it was made.

    Its Markdown is the output of the converter of 2023, which made every list tight and left no two
    consecutive blank lines; so that converter has little left to lose. `lists` makes every
    top-level list loose, `code` puts two blank lines before apparent definitions.
    """
    parts = _FENCED.split(answer)
    for i, part in enumerate(parts):
        if part.startswith("```"):
            parts[i] = _DEFINITION.sub("\n\n\n", part) if "code" in what else part
        elif "lists" in what:
            parts[i] = _ITEM.sub("\n\n", part)
    return "".join(parts)


def scores(names: Sequence[str]) -> list[Score]:
    """Return the converters that can be imported here; report the others."""
    found = []
    for name in names:
        try:
            found.append(Score(name, CONVERTERS[name]()))
        except ImportError as error:
            print(f"{name}: left out ({error})", file=sys.stderr)
    return found


def show_causes(score: Score, examples: int) -> None:
    """Print the failures by cause, the most frequent first, with some examples of each."""
    print(f"\n{score.name}: {score.failed:,} failures")
    by_count = sorted(score.failures.items(), key=lambda item: -len(item[1]))
    for cause, failures in by_count:
        print(f"{len(failures):6,}  {cause}")
    left = examples
    for cause, failures in by_count:
        for source, markdown, difference in failures[: max(1, examples // len(by_count))]:
            if left == 0:
                return
            left -= 1
            print(f"\n==== {cause}\n{difference}")
            print(f"---- source\n{_excerpt(source)}\n---- converted\n{_excerpt(markdown)}")


def _excerpt(text: str, limit: int = 1500) -> str:
    return text if len(text) <= limit else text[:limit] + f"\n... ({len(text):,} characters)"


def own_measures(pages: Sequence[str]) -> str:
    """Report both measures of `prepare`: the number of intact messages, and time per message."""
    convert = importlib.import_module("ochat_ray.data.markdown.blocks").convert
    structure = importlib.import_module("ochat_ray.data.markdown.fidelity").fidelity
    text = importlib.import_module("ochat_ray.data.visible.fidelity").text_fidelity
    converted = [convert(html) for html in pages]
    started = time.process_time()
    blocks = [structure(one) for one in converted]
    between = time.process_time()
    shown = [text(html, one.markdown) for html, one in zip(pages, converted, strict=True)]
    seconds = (between - started, time.process_time() - between)
    names = ("structure (markdown/fidelity.py)", "visible text (visible/fidelity.py)")
    return "\n".join(
        f"| {name} | {sum(same == all_ for same, all_ in results):,} | "
        f"{1000 * took / len(pages):.3f} |"
        for name, results, took in zip(names, (blocks, shown), seconds, strict=True)
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--messages", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--input", default="", help="ShareGPT JSON; the demo's when not given")
    parser.add_argument("--restore", nargs="*", choices=("lists", "code"), default=[])
    parser.add_argument("--html", type=Path, help="judge this file's HTML and nothing else")
    parser.add_argument("--only", nargs="*", choices=list(CONVERTERS), default=list(CONVERTERS))
    parser.add_argument("--causes-of", default="ours", choices=list(CONVERTERS))
    parser.add_argument("--show", type=int, default=0, metavar="K", help="examples of failures")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    if arguments.html:
        messages = [(arguments.html.name, arguments.html.read_text())]
    else:
        path = arguments.input or str(assets.conversations())
        answers = sample(path, arguments.messages, arguments.seed)
        answers = [restore(answer, arguments.restore) for answer in answers]
        messages = [(answer, chatgpt_html(answer)) for answer in answers]
    converters = scores(arguments.only)
    progress = Progress("judge", "messages", total=len(messages) * len(converters))
    for score in converters:
        results = score.run([html for _, html in messages])
        for (source, html), result in zip(messages, results, strict=True):
            score.judge(source, html, result)
            progress.add(1)
    progress.finish()
    print(f"{len(messages):,} messages, seed {arguments.seed}, restored: {arguments.restore}\n")
    print("| converter | intact | failures | ms per message |\n| --- | --- | --- | --- |")
    for score in converters:
        print(score.row())
    if "ours" in arguments.only:
        print("\n| measure of prepare | intact | ms per message |\n| --- | --- | --- |")
        print(own_measures([html for _, html in messages]))
    for score in converters:
        if score.name == arguments.causes_of:
            show_causes(score, arguments.show)


if __name__ == "__main__":
    main()
