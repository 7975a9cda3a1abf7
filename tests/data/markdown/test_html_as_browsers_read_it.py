"""HTML that libxml2 reads otherwise than a browser, and listings in tables."""

import time

import pytest

from ochat_ray.data.markdown.blocks import convert
from ochat_ray.data.markdown.fidelity import fidelity
from ochat_ray.data.visible.fidelity import text_fidelity
from ochat_ray.data.visible.text import CODE, visible_text

ROWS = "<tr><td>1</td><td>a:</td></tr><tr><td>2</td><td></td></tr><tr><td>3</td><td>  b</td></tr>"


def is_right(html):
    """Return the Markdown, after both measures have counted it as 1."""
    converted = convert(html)
    assert fidelity(converted)[0] == fidelity(converted)[1]
    same, characters = text_fidelity(html, converted.markdown)
    assert same == characters
    return converted.markdown


@pytest.mark.parametrize(
    "html",
    [
        f"<pre><code><table>{ROWS}</table></code></pre>",
        f"<pre><table>\n<tbody>\n{ROWS}\n</tbody>\n</table></pre>",
        "<pre><table><tr><td>1<td>a:<tr><td>2<td><tr><td>3<td>  b</table></pre>",
        "<pre><code><table><tr><td>8<td>8<td>a:<tr><td><td>9<td><tr><td>9<td>10<td>  b</table>"
        "</code></pre>",
        "<table><tr><td>1\n2\n3</td><td><pre>a:\n\n  b</pre></td></tr></table>",
        "<table><tr><td><pre>1\n2\n3</pre></td><td><pre>a:\n\n  b</pre></td></tr></table>",
    ],
)
def test_a_column_that_counts_lines_is_no_code(html):
    assert is_right(html) == "```\na:\n\n  b\n```"


@pytest.mark.parametrize(
    ("cells", "code"),
    [
        ("<tr><td>x</td><td>y</td></tr><tr>\n<td>1</td>\n<td></td></tr>", "x\ty\n1\t"),
        ("<tr><td>1</td><td>7</td></tr><tr><td>1</td><td>8</td></tr>", "1\t7\n1\t8"),
        ("<tr><td>7</td><td>a</td></tr>", "7\ta"),
        ("<tr><td>1</td></tr><tr><td>2</td></tr>", "1\n2"),
    ],
)
def test_other_cells_of_code_are_a_tab_apart(cells, code):
    for html in (f"<pre><code><table>{cells}</table></code></pre>", f"<pre><table>{cells}</pre>"):
        assert is_right(html) == f"```\n{code}\n```"


def test_the_measure_sees_cells_that_run_together_and_numbers_that_stay():
    assert visible_text(f"<pre><table>{ROWS}</table></pre>").lines == [
        f"{CODE}a:",
        CODE,
        f"{CODE}  b",
    ]
    two = "<pre><code><table><tr><td>x</td><td>y</td></tr></table></code></pre>"
    assert visible_text(two).lines == [f"{CODE}x\ty"]


@pytest.mark.parametrize(
    "inner",
    [
        "<form>a\n  b</form>",
        "<fieldset>a\n  b</fieldset>",
        "<fieldset><legend>a</legend>  b</fieldset>",
        "<ul><li>a<li>  b</ul>",
        "<dl><dt>a<dd>  b</dl>",
        "<menu><li>a</li><li>  b</li></menu>",
        "<LI>a</LI><li>  b</li>",
        "<address>a\n  b</address>",
    ],
)
def test_no_element_ends_a_pre(inner):
    assert is_right(f"<p>x</p><pre>{inner}</pre><p>y</p>") == "x\n\n```\na\n  b\n```\n\ny"


@pytest.mark.parametrize(
    ("html", "markdown"),
    [
        ("<h2><p>a <b>b</b></p></h2><p>c</p>", "## a **b**\n\nc"),
        ("<ul><pre>a</pre><li>b</li></ul>", "- ```\n  a\n  ```\n- b"),
        ("<u><p>a<p>b</p></u><p>c</p>", "a\n\nb\n\nc"),
        ("<p>a</p></body></html><p>b</p>", "a\n\nb"),
        ("<p>a</b> b</p><div>c</div>", "a b\n\nc"),
        ("<ul><li>a</li><ul><li>b</li></ul>c<li>d</li></ul>", "- a\n  - b\n- c\n- d"),
        ("<ul>a<li>b</li></ul>", "- a\n- b"),
        (
            "<table><tr><td><table><tr><td>a</td><td>b</td></tr></table></td><td>c</td></tr></table>",
            "| a<br>b | c |\n| --- | --- |",
        ),
        ('<h2>a</h2><a class=anchor href="https://e.com/#a"><svg></svg></a>', "## a"),
        ('<p><a href="https://e.com"><img src="favicon.ico" alt="icon"></a>a</p>', "a"),
    ],
)
def test_what_a_browser_shows_comes_back(html, markdown):
    assert is_right(html) == markdown


def test_emphasis_and_links_around_blocks_are_read():
    assert convert("<b><p>a</p></b>").markdown == "**a**"
    linked = '<a href="https://e.com"><table><tr><td>a</td></tr></table></a>'
    assert convert(linked).markdown == "[a](https://e.com)"


@pytest.mark.parametrize(
    "html",
    [
        "<ul><li><input type=checkbox> a\x01</li></ul>",
        "<p>a <img src=favicon.ico> \x01b</p>",
        "<p><span class=katex>\x01a</span></p>",
        "<p><code>a</code><code>\x01</code></p>",
        "<ul>\x01a<li>b</li>\x02</ul>",
        "<pre>a</pre>\x01b",
        "<pre><code>x</code><div>a</div></pre>\x01b",
        "<p>a <math><mi>x</mi></math>\x01</p>",
    ],
)
def test_control_characters_are_no_error(html):
    assert "a" in convert(html).markdown


@pytest.mark.parametrize("text", ["_\x1f_", "*\u2028a*", "~~\x0ba~~", "**\x85a**"])
def test_other_white_space_beside_delimiters_is_no_blank(text):
    assert is_right(f"<p>{text}</p>").replace("\\", "") == text


@pytest.mark.parametrize(
    "hostile",
    [
        '<a href="https://e.com/">',
        "<input type=checkbox> a",
        "<b hidden>x</b>y ",
        "<code><b>a</b></code>",
        '<img src="favicon.ico"> y',
        "<pre><table><tr><td>1</td><td>a</td></tr></table></pre>",
        "<b><p>x</b>",
    ],
)
def test_many_of_one_thing_take_no_longer_than_their_length(hostile):
    html = hostile * (100_000 // len(hostile))
    started = time.process_time()
    text_fidelity(html, convert(html).markdown)
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    ("above", "markdown"),
    [
        ("<div>It prints &lt;this&gt;:</div>", "It prints \\<this>:\n\n```\nx\n```"),
        ("<p>see <b>below</b></p>", "see below\n\n```\nx\n```"),
        ("<div>c++</div>", "```c++\nx\n```"),
        ("<div><span>js</span><span>Copy code</span></div>", "```js\nx\n```"),
        ("<div><span>Visual Basic</span><button>Copy</button></div>", "```\nx\n```"),
    ],
)
def test_a_sentence_above_code_is_no_bar(above, markdown):
    assert is_right(f"<pre>{above}<code>x</code></pre>") == markdown
