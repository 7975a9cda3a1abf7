"""The measure of visible text: what a conversion loses is found, what is right counts as 1."""

import ast
import sys
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from ochat_ray.data.visible.fidelity import text_fidelity

LINES_OF_CODE = "def f():\n    return 1\n\nf()"
MATHML = (
    "<math><semantics><mi>b</mi>"
    '<annotation encoding="application/x-tex">\\beta</annotation></semantics></math>'
)
MATHJAX_2 = (
    '<span class="MathJax_Preview"></span><span class="MathJax" data-mathml="<math><mi>d</mi>'
    '</math>"><nobr aria-hidden="true"><span class="math">δ</span></nobr>'
    '<span class="MJX_Assistive_MathML"><math><mi>δ</mi></math></span></span>'
    '<script type="math/tex">\\delta</script>'
)
MATHJAX_3 = (
    '<mjx-container><mjx-math aria-hidden="true"><mjx-mi>b</mjx-mi></mjx-math>'
    f"<mjx-assistive-mml>{MATHML}</mjx-assistive-mml></mjx-container>"
)
GEMINI = (
    '<span class="math-inline" data-math="x^2"><span class="katex"><span class="katex-html">x2'
    "</span></span></span>"
)


def share(html, markdown, taken_off=()):
    same, characters = text_fidelity(html, markdown, taken_off)
    return same / characters


def cm(*lines):
    return "".join(f'<div class="cm-line">{line or "<br>"}</div>' for line in lines)


@pytest.mark.parametrize(
    ("html", "old_markdown"),
    [
        # Each was counted as 1.0 by the measure of the structure.
        (
            f'<pre><div class="cm-content">{cm(*LINES_OF_CODE.split(chr(10)))}</div></pre>',
            "```\ndef f():    return 1\nf()\n```",
        ),
        (
            '<pre><code><span class="line">a</span><span class="line">  b</span></code></pre>',
            "```\na  b\n```",
        ),
        (
            "<pre><code><table><tr><td>a</td></tr><tr><td>  b</td></tr></table></code></pre>",
            "```\na  b\n```",
        ),
        ("<pre>see <code>x</code> here</pre>", "```\nx\n```"),
        (f"<p>M {MATHJAX_3} here.</p>", "M b\\(\\beta\\) here."),
        ('<p>and <script type="math/tex">\\delta</script>.</p>', "and ."),
        (f"<p>x {MATHJAX_2} y</p>", "x δδ y"),
        (f"<p>x {GEMINI} y</p>", "x x2 y"),
        ("<p><strong>注意：</strong>文本</p>", "**注意：**&#25991;本"),
        ('<a href=" https://example.com/a ">x</a>', "[x](%20https://example.com/a%20)"),
        ('<a href="https://exa\nmple.com/\tb">y</a>', "[y](https://exa%0Ample.com/%09b)"),
        ("<p>a<span hidden>no</span></p>", "ano"),
        ("<p>a</p><pre hidden>no</pre>", "a\n\n```\nno\n```"),
        ("<p>Use <vector> &lt;a&gt;:</p><p>x</p>", "Use \\<a>:\n\nx"),
        ("<table><caption>Sums</caption><tr><th>a</th></tr></table>", "| a |\n| --- |"),
        ("<p>about 10<sup>5</sup></p>", "about 105"),
        ("<p><code>x<br>y</code></p>", "`xy`"),
        ('<p>a <script type="math/asciimath">x^2</script></p>', "a"),
        ("<code><div>a</div><div>  b</div></code>", "`a  b`"),
    ],
)
def test_what_the_old_converter_lost_is_found(html, old_markdown):
    assert share(html, old_markdown) < 1


@pytest.mark.parametrize(
    ("html", "markdown"),
    [
        (
            f'<pre><div class="cm-content">{cm(*LINES_OF_CODE.split(chr(10)))}</div></pre>',
            f"```\n{LINES_OF_CODE}\n```",
        ),
        (
            '<pre><div class="flex"><span>python</span><button>Copy code</button></div>'
            '<div class="p-4"><code class="hljs language-python">a\n  <span>b</span>\n</code>'
            "</div></pre>",
            "```python\na\n  b\n```",
        ),
        (
            "<ul><li><input type=checkbox checked> Done<li><input type=checkbox> Open</ul>",
            "- [x] Done\n- [ ] Open",
        ),
        (
            '<p>Said.<a href="https://e.com/x"><img alt="" src="https://i.com/favicon.ico">Wiki</a></p>',
            "Said.[Wiki](https://e.com/x)",
        ),
        ('<p><a href="\n https://e.com/a b">x</a></p>', "[x](https://e.com/a%20b)"),
        (f"<p>M {MATHJAX_3} here.</p>", "M \\(\\beta\\) here."),
        (f"<p>x {MATHJAX_2} y</p>", "x \\(\\delta\\) y"),
        (
            '<ul><li><span class="katex-display"><math><annotation encoding="application/x-tex">'
            "a\n| *b*</annotation></math></span></li></ul>",
            "- \\[a\n  | *b*\\]",
        ),
        ("<p>`<code>\\(x\\)</code></p>", "\\``\\(x\\)`"),
        ("<p><strong>注意：</strong>文本</p>", "**注意**：文本"),
        ("<p>a &amp;copy; b &lt;br&gt;</p>", "a \\&copy; b \\<br>"),
        ("<p>a<br>b</p><hr><p>c\n d</p>", "a  \nb\n\n---\n\nc d"),
        (
            "<table><tr><th>a</th></tr><tr><td>1<br>2</td></tr></table>",
            "| a |\n| --- |\n| 1<br>2 |",
        ),
        ("<p>x<button>Copy</button><svg><text>no</text></svg><style>p{}</style></p>", "x"),
        ('<h2>A<span class="sr-only">for ears</span></h2>', "## A"),
        ("<p>10<sup>5</sup> of H<sub>2</sub>O</p>", "10⁵ of H₂O"),
        ("<details><summary>S</summary>T</details>", "S\n\nT"),
        ("a <b>b</b>\n\nc", "a **b**\n\nc"),
    ],
)
def test_a_right_conversion_counts_as_1(html, markdown):
    assert share(html, markdown) == 1


@pytest.mark.parametrize(
    ("html", "markdown", "expected"),
    [
        ("<p>one two</p>", "one", 4 / 7),  # "one", "two" and the line's end; two of them back
        ("<p>one</p>", "one two", 4 / 7),  # what was added counts as what was lost
        ("<p>a b</p>", "b a", 2 / 3),
        ("<pre>  x</pre>", "```\n x\n```", 0.0),  # code without its indentation
        ("<pre>x</pre>", "x", 0.0),
        ("<p>ab</p>", "a b", 1 / 3),
        ("<p>a</p><p>b</p>", "a b", 3 / 4),
        ("<p>x</p>", "", 0.0),
    ],
)
def test_the_share_is_of_characters_in_order(html, markdown, expected):
    assert share(html, markdown) == pytest.approx(expected, abs=0.01)


def test_the_measure_shares_no_code_with_the_converter():
    shared = []
    modules = ["ochat_ray.data.visible.fidelity"]
    for name in modules:  # grows by what is imported
        tree = ast.parse(Path(sys.modules[name].__file__).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ochat_ray"):
                shared += [node.module] if "markdown" in node.module else []
                modules += [node.module] if node.module not in modules else []
    assert {name.removeprefix("ochat_ray.data.visible.") for name in modules} == {
        "fidelity",
        "text",
        "code",
        "formulas",
        "links",
    }
    assert not shared


def test_what_was_taken_off_on_purpose_is_no_loss():
    html = "<div>2 / 3</div><p>Hello.</p><div>Copy<span>6 chars / 1 words</span></div>"
    assert share(html, "Hello.") < 1
    assert share(html, "Hello.", ("2 / 3", "Copy6 chars / 1 words")) == 1
    assert share("2 / 3</b></div><p>Hello.</p>", "Hello.", ("2 / 3",)) == 1
    assert share("<p>Half is 2 / 3 here</p>", "Half is here", ("2 / 3",)) < 1  # not at an end


@pytest.mark.parametrize("lost", ["<mfrac><mn>1</mn><mn>2</mn></mfrac>", "<msup><mi>x</mi></msup>"])
def test_a_formula_of_which_only_the_letters_are_left_is_a_loss(lost):
    assert share(f"<p>a <math>{lost}</math></p>", "a 12") < 1
    assert share("<p>a <math><mi>x</mi><mo>=</mo><mn>1</mn></math></p>", "a x=1") == 1


def test_another_renderer_shows_the_same():
    markdown = (
        "# A\n\n- a `b`\n- **c**\n\n```py\nx = 1\n```\n\n| a | b |\n| --- | --- |\n| 1 | <br> |"
    )
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown)
    assert share(html, markdown) == 1


@pytest.mark.parametrize(
    "hostile",
    [
        "<a" * 20_000, '<a x="' * 20_000, "<!-- " * 20_000, "<pre>" * 10_000,
        "<p hidden>" * 10_000, "<span class=math>" * 900, "</b>" * 20_000,
        "<pre>" + "<div>x</div>" * 10_000, "<script>" * 10_000, "&" * 40_000,
        "<script></script><p title='" + "<script " * 20_000,
    ],
)  # fmt: skip
def test_hostile_html_is_read_in_linear_time(hostile):
    assert text_fidelity(hostile, "x")[0] >= 0
