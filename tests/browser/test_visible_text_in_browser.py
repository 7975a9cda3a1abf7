"""The text that a real browser shows (`innerText`) is what the measure of visible text reads."""

import json
import re

import pytest
from markdown_it import MarkdownIt

from ochat_ray.data.visible.text import CODE, visible_text
from tests.browser.chromium import dom_of, needs_browser

pytestmark = needs_browser

ANSWER = """# Title with `code`

First **bold** and *em*, a [link](https://example.com/a?b=1&c=2) &amp; 1 < 2.
Second line\\
after a break.

> quoted
>
> - tight
> - with ~~more~~ `x  y`

1. one

   ```python
   def f():
       return "<b>"

   f()
   ```
2. two

| a | b |
| --- | ---: |
| 1 | *2* |
| 3<br>4 | &#126; |

---

Last.
"""
FRAGMENTS = [
    MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(ANSWER),
    "<p>a<b>b </b> c\n d&nbsp;e</p>text <i>beside</i><p>f</p>",
    "<div>a<div>b</div>c<span>d<br>e</span></div>",
    "<p>a<span hidden>no</span><span style='display: none'>no</span>b<wbr>c</p>",
    "<p>x<script>no</script><style>no</style><template>no</template><!-- no -->y</p>",
    "<p>1 < 2 <a title='>' href=x>b</a> &copy; &bigstar; &#x41;</p>",
    "<dl><dt>a</dt><dd>b</dd></dl><ul><li>c<ul><li>d</li></ul></li></ul><h2>e</h2><hr>",
    "<table><caption>c</caption><tr><th>a</th><td>b</td></tr></table>",
    "<details open><summary>s</summary><p>t</p></details>",
    "<figure><figcaption>c</figcaption></figure><blockquote>q</blockquote>",
    "<pre><code>a\n  b\n\nc\n</code></pre><pre>\nd\n   e</pre>",
    "<pre><code>a<br>  b<br><br>c</code></pre>",
    "<pre><div>a</div><div>  b</div><div><br></div><div>c</div></pre>",
    "<pre><span style='display: block'>a</span><span style='display: block'>  b</span></pre>",
    "<pre><code><span>a</span>\n  <span class='hljs-string'>b</span></code></pre>",
    "<pre><ol><li>a</li><li>  b</li></ol></pre>",
    "<P>Upper<BR>case</P><p>unclosed<p>next</div></b>end",
    "<a href='x'><div>a</div><div>b</div></a><p>c</i>d</p>",
    "<vector-icon>a</vector-icon><p title=\"a=b>c\" data-x='</p>'>b</p>",
]


@pytest.fixture(scope="module")
def inner_texts(tmp_path_factory):
    fragments = json.dumps(FRAGMENTS).replace("<", "\\u003c")
    page = (
        "<!DOCTYPE html><meta charset=utf-8><title></title><div id=box></div><script>"
        f"const shown = {fragments}.map(html => {{ box.innerHTML = html; return box.innerText }});"
        "document.title = JSON.stringify(shown)</script></html>"
    )
    return json.loads(dom_of(page, tmp_path_factory.mktemp("page")).title)


@pytest.mark.parametrize("number", range(len(FRAGMENTS)))
def test_visible_text_is_inner_text(inner_texts, number):
    shown = re.split(r"[\n\t]", inner_texts[number])
    read = [
        line.removeprefix(CODE) for line in visible_text(FRAGMENTS[number], ill_formed=True).lines
    ]
    assert [line for line in read if line] == [line.rstrip(" ") for line in shown if line.strip()]
