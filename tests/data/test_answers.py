"""Each answer is HTML or text, by the rules of a browser's serialisation."""

import pytest

from ochat_ray.data.formats.answers import are_html, examine, mark_html
from ochat_ray.schema import Turn

BOX = '<div class="markdown prose w-full break-words dark:prose-invert light"><p>Sure.</p></div>'
FENCE = "Look:\n\n```html\n<div>\n  <p>a</p>\n</div>\n```"

HTML_ON_A_PAGE = [
    BOX,
    f"<div class='flex flex-col'><div class='markdown prose'>{BOX}</div></div>",
    f'<div class="flex justify-between"><button>Edit</button></div>{BOX}',
    f"<button class='copy'><svg viewBox='0 0 1 1'><path d='M1 2'></path></svg></button>{BOX}",
    f"2 / 3{BOX}",
    f"2 / 3 {BOX}",
    f"{BOX}Copy12 chars / 34 words",
    f"\n{BOX}\n",
    '<div class="markdown prose"><p>M <mjx-container><math></math></mjx-container></p></div>',
    '<div class="markdown prose"><script type="math/tex">x</script></div>',
    "<p>One.</p>",
    "<p>One.</p>\n<p>Two.</p>",
    "2 / 3<p>a</p>",
    "<p>a &lt; b &amp;&amp; c</p>",
    '<ol start="3"><li>a</li><li>b</li></ol>',
    "<h3>Title</h3><p>Text<br>more</p><hr>",
    '<pre><code class="hljs language-cpp">#include &lt;vector&gt;\n    a\n</code></pre>',
    '<p>a</p><pre><div class="bg-black"><button>Copy code</button><code>b</code></div></pre>',
    '<table><thead><tr><th style="text-align:right">a</th></tr></thead>'
    "<tbody><tr><td>1</td></tr></tbody></table>",
    "<blockquote><p>a</p></blockquote>",
    "<p>a <!-- -->b</p>",
    '<p>x <span class="katex"><math><mi>x</mi></math></span></p>',
    "<p>Write <code>**bold**</code> or <code>`x`</code></p>",
    "<p>**not bold**</p>",
    '<p><a target="_new" href="https://a.b/?x=1&amp;y=2">a</a></p>',
    '<ul><li><input type="checkbox" disabled=""> Open</li></ul>',
    "Hello <strong>you</strong> &amp; all",
    "<em>Hi</em>",
]

NOT_HTML_ON_A_PAGE = [
    "",
    "Hello",
    "a < b and b > c",
    "3 < 4",
    "if (a < b && c > d) return;",
    "Use #include <vector> for it",
    "std::vector<int> a;",
    "Dear <your name>, hello",
    "Like this:\n\n```cpp\n#include <vector>\nint a;\n```\n\n- one",
    FENCE,
    "```html\n<!DOCTYPE html>\n<html></html>\n```",
    "~~~\n<p>a</p>\n~~~",
    "<!DOCTYPE html>\n<html><body><p>a</p></body></html>",
    "<html><head><title>a</title></head><body><p>b</p></body></html>",
    "<div>\n  <p>Hello <b>you</b> &amp; all</p>\n</div>",
    "<ul>\n    <li>a</li>\n</ul>",
    '<p onclick="run()">a</p>',
    '<h1 id="top">a</h1>',
    '<p style="color:red">a</p>',
    '<h1 align="center">a</h1>',
    "<p>Hello <b>you</b></p>",
    "<form><input></form>",
    "<script>alert(1)</script>",
    "<style>p { }</style><p>a</p>",
    "<nav><ul><li>a</li></ul></nav>",
    "<p>is a tag",
    "<p> is a tag for paragraphs",
    "</p> ends it",
    "Use <p>a</p>",
    "Use `<p>a</p>` for it",
    "**Note**: <em>this</em>",
    "# Title\n\n<p>a</p>",
    "- one <strong>a</strong>\n- two",
    "1. a\n2. <em>b</em>",
    "[a](b) <em>c</em>",
    "H<sub>2</sub>O",
    "Press <kbd>Ctrl</kbd>",
    "a<br>b",
    "<details>\n<summary>More</summary>\n\ntext\n</details>",
    "fish & chips <em>here</em>",
    "AT&T",
    "<p>fish & chips</p>",
    "Tom &amp; Jerry",
    "Write &lt;b&gt; for bold",
    "<Button onClick={go}>Go</Button>",
    "<T extends Foo>(a: T) => a",
    "<![CDATA[a]]>",
    '<?xml version="1.0"?><a></a>',
    "<p>a</div>",
    "<3 you",
    "2 / 3 of them",
]


@pytest.mark.parametrize("answer", HTML_ON_A_PAGE)
def test_rendered_html_of_a_share_page(answer):
    assert are_html([answer], "page") == [True]


@pytest.mark.parametrize("answer", NOT_HTML_ON_A_PAGE)
def test_markdown_plain_text_and_source_code_on_a_share_page(answer):
    assert are_html([answer], "page") == [False]


@pytest.mark.parametrize("answer", [*HTML_ON_A_PAGE, *NOT_HTML_ON_A_PAGE])
def test_other_formats_are_never_html(answer):
    assert are_html([answer, BOX], "other") == [False, False]


@pytest.mark.parametrize(
    ("answer", "html"),
    [
        ("Hello", False),
        ("An error occurred. Please try again.", False),
        ("Tom &amp; Jerry", True),
        ("Hello <strong>you</strong>", True),
        ("H<sub>2</sub>O", True),
        ("Here:<ul><li>a</li></ul>", True),
        ("<p>Hello <b>you</b></p>", True),
        ("#include <vector>", False),
        (FENCE, False),
        ("a < b", False),
    ],
)
def test_answers_beside_chatgpt_s_box(answer, html):
    for origin in ("page", "dump", "roles"):
        assert are_html([BOX, answer, BOX], origin) == [True, html, True]


def test_unescaped_text_anywhere_leaves_what_is_unclear_as_it_is():
    assert are_html([BOX, "a < b", "Tom &amp; Jerry"], "page") == [True, False, False]


@pytest.mark.parametrize(
    ("answers", "html"),
    [
        (["<p>a</p>"], [True]),
        (["<ul><li>a</li></ul>"], [False]),  # alone, it may be code
        (["<ul><li>a</li></ul>", "<p>a</p>"], [True, True]),
        (["<div><span>a</span></div>"], [False]),
        (["<div><span>a</span></div>", BOX], [True, True]),
        (["Hello <strong>you</strong>"], [False]),
        (["<p>a</p>", "plain"], [True, False]),
        (["<div>\n  <p>a</p>\n</div>"], [False]),
        (["<p>a</p>", "Like **this**:\n\n```\nb\n```"], [False, False]),
        ([BOX, "<p>a</p>", "# Title\n\n**b**"], [True, False, False]),
    ],
)
def test_dumps_need_a_paragraph_or_the_box(answers, html):
    assert are_html(answers, "dump") == html


def test_dumps_of_role_and_content_need_the_box():
    assert are_html(["<p>a</p>", "<p>b</p>"], "roles") == [False, False]
    assert are_html(["<p>a</p>", BOX], "roles") == [False, True]


def test_the_user_can_say_it():
    turns = (
        Turn(role="user", text="<p>a</p>"),
        Turn(role="assistant", text="a <b"),
        Turn(role="assistant", text="b"),
    )
    html = [turn.html for turn in mark_html(turns, "other", "html")]
    assert html == [False, True, False]  # without a tag or a reference nothing is converted
    turns = (Turn(role="assistant", text=BOX),)
    assert not mark_html(turns, "page", "markdown")[0].html
    assert mark_html(turns, "page", "auto")[0].html


@pytest.mark.parametrize(
    "answer",
    [
        "<pre>" * 100_000,
        "<p>" * 100_000,
        "<!--" * 100_000,
        "<p" + " a" * 200_000 + ">",
        '<a b="' * 100_000,
        "<a " * 100_000,
        "&amp" * 100_000,
        "<div>" * 50_000 + "</p>" * 50_000,
        "<li>" * 50_000 + "</ul>" * 50_000,
        " \n" * 100_000 + "<p>",
        "`" * 200_000 + "<em>a</em>",
        "[" * 200_000 + "<em>a</em>",
        "**a" * 100_000 + "<em>a</em>",
        "<a" + " " * 200_000 + "x",
        "<p " + "class='a' " * 50_000,
        "<div class=" * 50_000 + "x>",
    ],
)
def test_answers_made_to_take_long_are_examined_in_one_pass(answer):
    assert examine(answer).kind in ("markdown", "either")
