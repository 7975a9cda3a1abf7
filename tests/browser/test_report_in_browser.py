"""A real browser opens a report whose every text is hostile."""

import html
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from ochat_ray.data.report import render_report
from ochat_ray.data.statistics import Statistics

BROWSER = next(
    (
        path
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (path := shutil.which(name))
    ),
    None,
)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine"),
]

PWN = "document.title='pwned'"
HOSTILE = (
    f"<script>{PWN}</script>"
    f'<img src=x onerror="{PWN}">'
    f'"><svg onload="{PWN}">'
    f"' onclick='{PWN}' autofocus onfocus='{PWN}' x='"
    f"</pre></details></title></style><script>{PWN}</script>"
    f"<!--<script>{PWN}</script>--><iframe srcdoc='<script>parent.{PWN}</script>'></iframe>"
)
POLICY = re.compile(r"<meta http-equiv=Content-Security-Policy [^>]*>")


class Dom(HTMLParser):
    """The elements, the names of their attributes, and the title of a serialized document."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.title = [], set(), ""
        self._in_title = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self._in_title = tag == "title"

    def handle_endtag(self, tag):
        self._in_title = False

    def handle_data(self, data):
        self.title += data if self._in_title else ""


def hostile_report():
    drop = {"id": HOSTILE, "source": HOSTILE, "stage": "clean", "detail": HOSTILE}
    stats = Statistics(seconds={"clean": 1.0, "total": 2.0})
    stats.add_clean(
        {
            "read": 2, "read_well": 2, "rows": 1, "pagers": 0, "models": {HOSTILE: 2},
            "dropped": [drop | {"reason": HOSTILE}], "drop_counts": {HOSTILE: 1},
        }
    )  # fmt: skip
    stats.add_tokenize(
        {
            "kept": [["train", 2, 4, 2, 0, 0.5, HOSTILE]],
            "worst": [{"id": HOSTILE, "source": HOSTILE, "fidelity": 0.5}],
            "samples": [
                {
                    "digest": "0", "id": HOSTILE, "source": HOSTILE, "split": "train",
                    "fidelity": 0.5, "length": 4, "turn_count": 2,
                    "turns": [["user", HOSTILE, HOSTILE + "."], ["assistant", HOSTILE, HOSTILE]],
                    "tokens": [[HOSTILE, 0.0], ["<|end_of_turn|>", 0.0], [HOSTILE, 1.0]],
                }
            ],
            "dropped": [], "drop_counts": {},
        }
    )  # fmt: skip
    manifest = {
        "counts": stats.counts(), "tokens": stats.tokens(), "seconds": stats.seconds,
        "digest": "ab" * 32, "model_type": HOSTILE, "context_length": 2048,
        "tokenizer_path": HOSTILE, "versions": {HOSTILE: HOSTILE},
        "config": {"recipe": HOSTILE, "input": [HOSTILE], HOSTILE: HOSTILE},
    }  # fmt: skip
    return render_report(manifest, stats)


def dom_of(page, folder):
    """What the browser has made of a page once everything in it has loaded or failed."""
    file = folder / "report.html"
    file.write_text(page, encoding="utf-8")
    done = subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--disable-dev-shm-usage", f"--user-data-dir={folder / 'profile'}",
            "--virtual-time-budget=2000", "--dump-dom", file.as_uri(),
        ],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.rstrip().endswith("</html>"), done.stderr
    return Dom(done.stdout)


@pytest.mark.parametrize("policy", [True, False], ids=["as written", "escaping alone"])
def test_nothing_hostile_runs(policy, tmp_path):
    page = hostile_report()
    assert POLICY.search(page)
    if not policy:
        page = POLICY.sub("", page)
    dom = dom_of(page, tmp_path)
    assert dom.title == f"Data report: {HOSTILE}"
    assert not {"script", "img", "svg", "iframe"} & set(dom.tags)
    assert not {name for name in dom.attributes if name.startswith("on") or name == "autofocus"}
    assert dom.tags.count("details") == 2  # the sample, and the settings


def test_the_policy_alone_would_hold(tmp_path):
    dom = dom_of(without_escapes(hostile_report()), tmp_path)
    assert "script" in dom.tags
    assert "svg" in dom.tags
    assert dom.title.startswith("Data report: ")


def test_without_either_it_would_run(tmp_path):
    """So that the tests above cannot pass because the browser runs nothing at all."""
    page = POLICY.sub("", without_escapes(hostile_report()))
    assert dom_of(page, tmp_path).title == "pwned"


def without_escapes(page):
    """The report as it would be if its body were not escaped; the title stays."""
    head, mark, body = page.partition("</style>")
    return head + mark + html.unescape(body)
