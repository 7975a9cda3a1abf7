"""The JSON inside a share page, however the page is written."""

import codecs
import gzip
import json

import pytest

from ochat_ray.data import share_page
from ochat_ray.data.records import records_of
from ochat_ray.data.share_page import Unusable, page_record
from ochat_ray.schema import Reason
from tests.pages import share_page as make_page

ITEMS = [{"from": "human", "value": "né 你好 🙂"}, {"from": "gpt", "value": "<p>hi</p>"}]
PAGE = make_page(ITEMS, id="x")
TEXT = PAGE.decode()
SCRIPT = '<script id="__NEXT_DATA__" type="application/json">'


def in_charset(text, charset, items=ITEMS):
    data = json.dumps({"props": {"pageProps": {"content": {"items": items}}}}, ensure_ascii=False)
    head = f'<html><head><meta charset="{charset}"></head><body>{text}'
    return f'{head}<script id="__NEXT_DATA__">{data}</script></body></html>'.encode(charset)


@pytest.mark.parametrize(
    "page",
    [
        PAGE,
        codecs.BOM_UTF8 + PAGE,
        TEXT.encode("utf-16"),
        TEXT.encode("utf-16-le"),
        TEXT.encode("utf-16-be"),
        TEXT.encode("utf-32"),
        gzip.compress(PAGE),
        TEXT.replace(SCRIPT, "<script type='application/json' id='__NEXT_DATA__'>").encode(),
        TEXT.replace(SCRIPT, "<script type=application/json id=__NEXT_DATA__>").encode(),
        TEXT.replace(SCRIPT, "<SCRIPT\n id = '__NEXT_DATA__'\n defer>").encode(),
        TEXT.replace(SCRIPT, "<script>var a='__NEXT_DATA__'</script>" + SCRIPT).encode(),
        TEXT.replace("</body></html>", "").encode(),
        TEXT.replace(SCRIPT, '<script data-x="a>b" id="__NEXT_DATA__">').encode(),
        in_charset("你好", "gb18030"),
        in_charset("", "utf-8"),
    ],
)
def test_a_page_is_read_in_any_dress(page):
    assert page_record(page)["items"] == ITEMS


@pytest.mark.parametrize("charset", ["windows-1252", "iso-8859-15", "shift_jis"])
def test_declared_encodings(charset):
    items = [{"from": "human", "value": "né €" if "j" not in charset else "日本語"}]
    if charset == "shift_jis":
        assert page_record(in_charset("", charset, items))["items"] == items
    else:
        assert page_record(in_charset("é", charset, items))["items"] == items


def test_only_what_is_needed_is_taken():
    record = page_record(make_page(ITEMS, id="x", title="t", model="m", avatarUrl="data:x"))
    assert record == {"id": "x", "title": "t", "model": "m", "items": ITEMS}


@pytest.mark.parametrize(
    ("page", "reason", "detail"),
    [
        (b"", Reason.UNREADABLE, "empty"),
        (b" \n", Reason.UNREADABLE, "empty"),
        (b"<html><body>404</body></html>", Reason.NO_DATA, "no __NEXT_DATA__ script"),
        (make_page(ITEMS, page_id="OTHER"), Reason.NO_DATA, "no __NEXT_DATA__ script"),
        (b"about __NEXT_DATA__ only", Reason.NO_DATA, "no __NEXT_DATA__ script"),
        (make_page([]), Reason.NO_DATA, "no items"),
        (PAGE[: PAGE.index(b"hi")], Reason.UNREADABLE, "cut off"),
        (PAGE.replace(b'"props"', b"props"), Reason.UNREADABLE, "not JSON"),
        (
            PAGE.replace(b'{"props"', b'[1, {"props"').replace(b"}</script", b"}]</script"),
            Reason.NO_DATA,
            "no items",
        ),
        (b"\x1f\x8b" + b"x" * 50, Reason.UNREADABLE, "gzip"),
        (gzip.compress(PAGE)[:-20], Reason.UNREADABLE, "gzip"),
        (PAGE.replace(b'"id"', b"[" * 100_000 + b'"id"'), Reason.UNREADABLE, "not JSON"),
    ],
)
def test_what_has_no_conversation_says_why(page, reason, detail):
    record = page_record(page)
    assert isinstance(record, Unusable)
    assert record.reason == reason
    assert detail in record.detail


def next_page(**props):
    data = json.dumps({"props": {"pageProps": props}})
    return f'<html><script id="__NEXT_DATA__">{data}</script></html>'.encode()


TREE = {"title": "T", "mapping": {"a": {"id": "a"}}, "current_node": "a"}
ROUTE = "routes/share.$shareId.($action)"


def flattened(value, values=None):
    """The array of React Router's stream: each value once, the root first, and then its parts."""
    values = [] if values is None else values
    if value is None:
        return -5
    index = len(values)
    values.append(value)
    if isinstance(value, dict):
        values[index] = {f"_{flattened(k, values)}": flattened(v, values) for k, v in value.items()}
    elif isinstance(value, list):
        values[index] = [flattened(v, values) for v in value]
    return values if index == 0 else index


def router_page(loaders, *, pieces=1, after=""):
    line = json.dumps(flattened({"loaderData": loaders, "actionData": None})) + "\n" + after
    size = -(-len(line) // pieces)
    scripts = "".join(
        "<script>window.__reactRouterContext.streamController.enqueue("
        + json.dumps(line[at : at + size]).replace("<", "\\u003c")
        + ");</script>"
        for at in range(0, len(line), size)
    )
    head = "<script>window.__reactRouterContext = {};</script>"
    return f"<!DOCTYPE html><html><body>{head}{scripts}</body></html>".encode()


def response(data, **more):
    return {
        "root": {"user": None},
        ROUTE: {"serverResponse": {"type": "data", "data": data}, **more},
    }


@pytest.mark.parametrize(
    "page",
    [
        next_page(sharedConversationId="s", serverResponse={"type": "data", "data": TREE}),
        next_page(serverResponse={"data": TREE | {"conversation_id": "s"}}),
        router_page(response(TREE, sharedConversationId="s")),
        router_page(response(TREE, sharedConversationId="s"), pieces=7),
        router_page({"routes/shared": {"serverResponse": {"data": TREE | {"id": "s"}}}}),
        router_page(response(TREE, sharedConversationId="s"), after='E999:[["E", "x"]]\n'),
        router_page(response(TREE | {"title": "__NEXT_DATA__"}, sharedConversationId="s")),
        gzip.compress(router_page(response(TREE, sharedConversationId="s"))),
        b"<script>window.__remixContext = "
        + json.dumps({"state": {"loaderData": response(TREE, sharedConversationId="s")}}).encode()
        + b";__remixContext.p = function(){}</script>",
    ],
)
def test_chatgpt_s_own_share_pages(page):
    record = page_record(page)
    assert record["id"] == "s"
    assert record["mapping"] == TREE["mapping"]
    assert record["current_node"] == "a"


def test_a_page_of_the_stream_gives_every_character_of_the_conversation():
    text = '</script> < & "quoted" \\ \u2028 é 你好 🙂\n```\ncode\n```'
    linear = [
        {"id": role, "message": {"author": {"role": role}, "content": {
            "content_type": "text", "parts": [text]}}}
        for role in ("user", "assistant")
    ]  # fmt: skip
    record = page_record(router_page(response({"linear_conversation": linear})))
    (found,) = records_of(record, source="x", index=0, page=True)
    assert [(turn.role, turn.text, turn.html) for turn in found.turns] == [
        ("user", text, False),
        ("assistant", text, False),
    ]


@pytest.mark.parametrize(
    ("page", "reason", "detail"),
    [
        (router_page(response({})), Reason.NO_DATA, "no conversation in serverResponse.data"),
        (router_page({"root": {}}), Reason.NO_DATA, "no serverResponse"),
        (
            router_page({ROUTE: {"serverResponse": {"type": "error", "error": "Not found"}}}),
            Reason.NO_DATA,
            "Not found",
        ),
        (router_page(response(TREE))[:-80], Reason.UNREADABLE, "cut off"),
        (router_page(response(TREE)).replace(b'"[', b'"<'), Reason.UNREADABLE, "decoded"),
        (next_page(serverResponse={"type": "error"}), Reason.NO_DATA, "no conversation"),
        (next_page(serverResponse=None), Reason.NO_DATA, "no conversation"),
        (b"<script>window.__remixContext = {", Reason.UNREADABLE, "cut off"),
    ],
)
def test_chatgpt_s_page_without_a_conversation_says_why(page, reason, detail):
    record = page_record(page)
    assert isinstance(record, Unusable)
    assert record.reason == reason
    assert detail in record.detail


def test_other_keys_of_a_page_are_there_to_be_counted():
    record = page_record(make_page(ITEMS, id="x", system="s", avatarUrl="data:x"))
    assert record["system"] == "s"
    assert "avatarUrl" not in record


def test_a_page_beyond_all_measure_is_not_unpacked(monkeypatch):
    monkeypatch.setattr(share_page, "MAX_PAGE_BYTES", 10_000)
    for page in (b"x" * 20_000, gzip.compress(b"x" * 10_000_000)):
        assert page_record(page).reason == Reason.TOO_LARGE


def test_a_page_made_to_search_for_ever_takes_no_time():
    mark = b'id="__NEXT_DATA__" '
    for page in (
        b"__NEXT_DATA__ " * 100_000,
        b"<script " + mark * 100_000,
        (b"<script " + mark) * 50_000,
    ):
        assert isinstance(page_record(page), Unusable)


def test_a_script_with_nan_or_half_a_surrogate_pair_is_read():
    page = make_page([{"from": "human", "value": "x"}], id="a").replace(
        b'"x"', rb'"\udce9", "n": NaN'
    )
    assert page_record(page)["items"][0]["value"] == "\udce9"
