"""HTML to Markdown: what ChatGPT's page showed, and the Markdown that a person expects of it."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from ochat_ray.data.fidelity import blocks_of, fidelity
from ochat_ray.data.html_tree import ConversionError, parse
from ochat_ray.data.markdown import convert, html_to_markdown

COMMONMARK = MarkdownIt("commonmark").enable("table")
# ChatGPT's page shows HTML in an answer as text.
CHATGPT = MarkdownIt("commonmark", {"html": False}).enable("table")


@pytest.mark.parametrize(
    ("html", "markdown"),
    [
        ("<p>One</p><p>two</p>", "One\n\ntwo"),
        ("<h2>Title</h2><p>text</p>", "## Title\n\ntext"),
        ("<p><strong>a</strong> and <em>b</em></p>", "**a** and *b*"),
        ("<p>a<b>c </b>d</p>", "a**c** d"),
        ("<ul><li>a</li><li>b</li></ul>", "- a\n- b"),
        ("<ul><li><p>a</p></li><li><p>b</p></li></ul>", "- a\n\n- b"),
        ("<ol start='3'><li>a<ul><li>b</li></ul></li><li>c</li></ol>", "3. a\n   - b\n4. c"),
        ("<ul><li>a</li></ul><ul><li>b</li></ul>", "- a\n\n* b"),
        ("<blockquote><p>a</p><p>b</p></blockquote>", "> a\n>\n> b"),
        ("<p>a</p><hr><p>b</p>", "a\n\n---\n\nb"),
        ("<ul><li>a<hr></li></ul>", "- a\n  ___"),
        ("<p>a<br>b</p>", "a  \nb"),
        ("<p>a<br><br>b</p>", "a\\\n\\\nb"),
        ('<a href="http://x.y/z">t</a>', "[t](http://x.y/z)"),
        ('<a href="http://x.y/z">http://x.y/z</a>', "<http://x.y/z>"),
        ('<a href="http://x.y/a b)">t</a>', "[t](<http://x.y/a%20b)>)"),
        ('<a href="mailto:a@b.c">a@b.c</a>', "<a@b.c>"),
        ('<a href="mailto:a@b..c">a@b..c</a>', "[a@b..c](mailto:a@b..c)"),
        ('<a href="javascript:alert(1)">t</a>', "t"),
        ('<img src="a.png" alt="A [b]" title="&quot;c">', '![A \\[b\\]](a.png "\\"c")'),
        ("<p><code>a`b</code> <code>`</code></p>", "``a`b`` `` ` ``"),
        ("<p>soft\n   break</p>", "soft\nbreak"),
        ("<p>a<!-- no --></p><script>no</script><style>no</style>", "a"),
        ("plain, without a tag\n\nat all", "plain, without a tag\n\nat all"),
        ("", ""),
        ("<p></p><p> </p>", ""),
    ],
)  # fmt: skip
def test_elements(html, markdown):
    assert html_to_markdown(html) == markdown


@pytest.mark.parametrize(
    "text",
    [
        "a snake_case_word and 2 * 3 * 4",
        "5 < 6 and a&b, AT&T; C# and #1",
        "one ` tick, one * star*",
        "[a] (b) and a[0] and ]",
        "a|b, 1.5, -1, 3.",
        "Hello! [done]",
        "**注意：**文本",  # what CommonMark does not take for emphasis, as the model wrote it
        "back\\slash at C:\\dir",
    ],
)
def test_what_needs_no_escape_gets_none(text):
    html = text.replace("&", "&amp;").replace("<", "&lt;")
    assert html_to_markdown(f"<p>{html}</p>") == text


@pytest.mark.parametrize(
    ("text", "markdown"),
    [
        ("a*b*c", "a\\*b\\*c"),
        ("__init__", "\\_\\_init\\_\\_"),
        ("use &lt;div> here", "use \\<div> here"),
        ("&lt;div", "\\<div"),
        ("&amp;lt;", "\\&lt;"),
        ("1. no list", "1\\. no list"),
        ("- no list", "\\- no list"),
        ("# no heading", "\\# no heading"),
        ("a\n===", "a\n\\==="),
        ("a | b\n--- | ---", "a | b\n\\--- | ---"),
        ("[a](b)", "[a\\](b)"),
        ("[x]: y", "\\[x]: y"),
        ("`a` `b`", "\\`a\\` \\`b\\`"),
        ("\\(x\\)", "\\\\(x\\\\)"),
        ("* * *", "\\* * *"),
        ("~~~", "\\~~~"),
    ],
)
def test_what_would_be_markdown_is_escaped(text, markdown):
    assert html_to_markdown(f"<p>{text}</p>") == markdown


CODE = """<pre><div class="bg-black mb-4 rounded-md"><div class="flex items-center text-xs">\
<span class="">python</span><button class="flex ml-auto gap-2"><svg><path d="M16"></path></svg>\
Copy code</button></div><div class="p-4 overflow-y-auto"><code class="!whitespace-pre hljs\
{language}"><span class="hljs-keyword">def</span> f():\n\n    <span>return</span> "`{fence}"  \n\
</code></div></div></pre>"""


@pytest.mark.parametrize("language", ["", " language-python"])
def test_code_comes_back_byte_for_byte(language):
    html = CODE.format(language=language, fence="")
    assert html_to_markdown(html) == '```python\ndef f():\n\n    return "`"  \n```'


def test_a_fence_in_code_makes_the_fence_longer():
    html = CODE.format(language="", fence="``")
    assert html_to_markdown(html).startswith("````python\n")
    assert html_to_markdown(html).endswith('"```"  \n````')


def test_code_in_a_list_is_indented_with_it():
    html = "<ol><li><p>a</p><pre><code>x\n\n\ty</code></pre></li><li><p>b</p></li></ol>"
    assert html_to_markdown(html) == "1. a\n\n   ```\n   x\n\n   \ty\n   ```\n\n2. b"


def test_a_table_keeps_its_alignment_and_the_pipes_in_its_cells():
    html = (
        "<table><thead><tr><th>a</th><th align='center'>b</th>"
        "<th style='text-align: right;'>c</th></tr></thead>"
        "<tbody><tr><td>x|y</td><td><code>p|q</code></td><td>1<br>2</td></tr></tbody></table>"
    )
    assert html_to_markdown(html) == (
        "| a | b | c |\n| --- | :---: | ---: |\n| x\\|y | `p\\|q` | 1<br>2 |"
    )


def katex(tex):
    return (
        '<span class="katex"><span class="katex-mathml"><math><semantics><mrow><mi>x</mi></mrow>'
        f'<annotation encoding="application/x-tex">{tex}</annotation></semantics></math></span>'
        '<span class="katex-html" aria-hidden="true">x</span></span>'
    )


def test_a_formula_comes_back_once_as_its_tex():
    inline = f'<p>Let <span class="math math-inline">{katex("x_1 * y_1 &lt; 2")}</span> be</p>'
    assert html_to_markdown(inline) == "Let \\(x_1 * y_1 < 2\\) be"
    display = (
        f'<div class="math math-display"><span class="katex-display">{katex("a")}</span></div>'
    )
    assert html_to_markdown(display) == "\\[a\\]"
    assert fidelity(convert(inline + display)) == (2, 2)


@pytest.mark.parametrize(
    ("html", "markdown", "pager"),
    [
        ("2 / 3<div class='markdown'><p>Hello</p></div>", "Hello", True),
        ("<div><span>2 / 3</span><div class='markdown'><p>Hello</p></div></div>", "Hello", True),
        ("<div><button></button>2 / 3<button></button></div><p>Hello</p>", "Hello", True),
        ("<p>1 / 2 is half</p>", "1 / 2 is half", False),
        ("<p>1 / 2</p>", "1 / 2", False),
        ("3 / 2<p>Hello</p>", "3 / 2\n\nHello", False),
        ("2 / 3\x1bHello<p>b</p>", "Hello\n\nb", True),
        ("<p>Hello</p>2 / 3", "Hello\n\n2 / 3", False),
    ],
)
def test_the_pager_is_taken_off_only_where_the_extension_put_it(html, markdown, pager):
    converted = convert(html)
    assert (converted.markdown, bool(converted.noise.pager)) == (markdown, pager)


@pytest.mark.parametrize(
    ("html", "markdown"),
    [
        ("<p>Hi</p>Copy12 chars / 34 words", "Hi"),
        ("<p>Hi.Copy12 chars / 34 words</p>", "Hi."),
        ("<p>Hi</p><div><button>Copy</button><span>12 chars / 34 words</span></div>", "Hi"),
        ("<p>It adds Copy12 chars / 34 words</p>", "It adds Copy12 chars / 34 words"),
        ("<p>Copy12 chars / 34 words</p><p>b</p>", "Copy12 chars / 34 words\n\nb"),
        ("<p>a <code>Copy1 chars / 2 words</code></p>", "a `Copy1 chars / 2 words`"),
    ],
)
def test_the_counter_is_taken_off_only_where_the_extension_put_it(html, markdown):
    assert html_to_markdown(html) == markdown


def test_too_deep_or_too_long_is_an_error_and_not_a_crash():
    with pytest.raises(ConversionError, match="nested too deeply"):
        html_to_markdown("<div>" * 3000 + "x")
    with pytest.raises(ConversionError, match="characters of HTML"):
        html_to_markdown("x" * 9_000_000)
    assert html_to_markdown("<div>" * 200 + "x") == "x"


@pytest.mark.parametrize(
    "hostile", ["<", "[](", "`", "*a", "_a ", "&lt;a", " ", "\n ", "<b></b>", "!["]
)
def test_a_long_run_of_one_thing_takes_no_longer_than_its_length(hostile):
    # Quadratic time would be hours here; the suite's timeout ends it.
    convert("<p>" + hostile * (400_000 // len(hostile)) + "</p>")


def test_the_measure_sees_a_loss():
    converted = convert("<p>a</p><ul><li>b</li><li>c</li></ul>")
    assert fidelity(converted) == (6, 6)  # p, ul, and two items with their text
    converted.root[1][0].text = "other"
    assert fidelity(converted) == (5, 6)


WORDS = [
    "*", "**", "_", "__", "`", "``", "[", "]", "(", ")", "<", ">", "&", "amp;", "\\", "!", "~", "#",
    "-", "+", "1.", "2)", "=", "|", " ", "  ", "\n", "\n\n", "a", "foo", "。", "é", ":", ".", '"',
    "http://x.y", "```", "    ", "\t", "---", "| a | b |\n| --- | :-: |\n", "> ", "- ", "1. ",
    "\n  ", "\n   ", "$", "<div>", "</p>", "<br>",
]  # fmt: skip


def test_random_markdown_comes_back_with_its_structure():
    """What Markdown cannot write at all (an empty item before text) is one in a thousand here."""
    rng = random.Random(0)
    lost = 0
    for _ in range(3000):
        source = "".join(rng.choice(WORDS) for _ in range(rng.randint(1, 20)))
        converted = convert(CHATGPT.render(source))
        rendered = blocks_of(parse(COMMONMARK.render(converted.skeleton)))
        lost += rendered != blocks_of(converted.root)
    assert lost <= 6


@settings(max_examples=300, deadline=None)
@given(st.text())
def test_any_text_is_shown_as_it_was(text):
    html = f"<p>{text.replace('&', '&amp;').replace('<', '&lt;')}</p>"
    converted = convert(html)
    assert blocks_of(parse(COMMONMARK.render(converted.skeleton))) == blocks_of(converted.root)
