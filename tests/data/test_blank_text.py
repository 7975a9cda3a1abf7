"""Text that shows nothing, and text that only looks like it."""

import pytest

from ochat_ray.data.blank_text import html_shows_nothing, shows_nothing


@pytest.mark.parametrize(
    "text",
    [
        "", " \t\r\n\v\f", "\xa0\u202f\u2007\u3000\u205f\u1680\u2028", "\u200b", "\u200b\n\u200b ",
        "\u200c\u200d", "\u2060\ufeff", "\xad\xad", "\u2800", "\u3164", "\u115f\u1160\uffa0",
        "\ufe0f", "\U000e0100", "\u034f", "\u200e\u200f\u202a\u202e\u2066\u2069\u061c",
        "\U000e0067\U000e007f", "\u180e", "\u17b4\u17b5", "\x00\x07\x1b\x85", "\ufdd0\uffff",
        "\ufff9\ufffb", "\U0001d173", "\U0001d159", "\U00013441", "\U00016fe4",
    ],
)  # fmt: skip
def test_what_shows_nothing(text):
    assert shows_nothing(text)


@pytest.mark.parametrize(
    "text",
    [
        ".", "\u200b.", "0", "\u0600", "\u06dd", "\U0001f468\u200d\U0001f469\u200d\U0001f467",
        "\u2764\ufe0f", "1\ufe0f\u20e3", "\u0645\u06cc\u200c\u0631\u0648\u0645", "\u2801", "\u0301",
        "\u2423", "\u3002", "\ufffd", "\ue000", "-", "&nbsp;", "<br>",
    ],
)  # fmt: skip
def test_what_shows_something(text):
    assert not shows_nothing(text)


@pytest.mark.parametrize(
    ("html", "nothing"),
    [
        ("<p>&#8203;</p>", True),
        ("<p><strong>&shy;</strong></p><ul><li>&nbsp;</li></ul>", True),
        ("<pre><code>&#x2800;</code></pre>", True),
        ("<div></div>", True),
        ("<p>a</p>", False),
        ("<p>&amp;nbsp;</p>", False),
        ("<p><img src='https://x/y.png'></p>", False),
        ("<hr>", False),
        ('<span data-math="x"></span>', False),
    ],
)
def test_html_is_judged_by_what_it_shows(html, nothing):
    assert html_shows_nothing(html) == nothing
