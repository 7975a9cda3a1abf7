"""Share pages as ShareGPT's site served them, small."""

import json


def share_page(items, *, id=None, page_id="__NEXT_DATA__", **content) -> bytes:
    """A page with a conversation of raw {from, value} items."""
    props = {"pageProps": {"id": id, "views": 3, "content": {"items": items, **content}}}
    data = json.dumps({"props": props}).replace("<", "\\u003c")
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charSet="utf-8"/><title>x</title></head><body>'
        '<div id="__next"><main><p>rendered</p></main></div>'
        f'<script id="{page_id}" type="application/json">{data}</script></body></html>'
    ).encode()
