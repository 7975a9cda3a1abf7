"""Progress lines."""

import io
import re

from ochat_ray.progress import Progress


def test_a_line_has_counts_rate_and_note():
    stream = io.StringIO()
    progress = Progress("clean", "conversations", total=2000, interval_s=0, stream=stream)
    progress.add(1500, "so far")
    seconds = progress.finish("done")
    first, last = stream.getvalue().splitlines()
    line = r"     clean  1,500 of 2,000 conversations · [\d,]+/s · 0 s · "
    assert re.fullmatch(line + "so far", first)
    assert re.fullmatch(line + "done", last)
    assert seconds >= 0


def test_lines_are_few():
    stream = io.StringIO()
    progress = Progress("x", "y", interval_s=1000, stream=stream)
    for _ in range(100):
        progress.add(1)
    assert stream.getvalue() == ""
