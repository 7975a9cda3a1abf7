"""Report of a training run: one HTML page that opens offline and runs no script."""

from __future__ import annotations

import base64
from functools import cache
from typing import Any

from jinja2 import Environment

from ochat_ray.command_line import flag
from ochat_ray.report_template import page_environment
from ochat_ray.run_dir import RunDir
from ochat_ray.train.output import REPORT
from ochat_ray.train.plot import plot
from ochat_ray.train.run_record import RunRecord, number, read_run, text


def write_report(uri: str) -> None:
    """Write report.html about the run in an output directory.

    Raises:
        UserError: there is no run, or it is damaged.
    """
    page = report_html(read_run(uri))
    with RunDir.open(uri).writing(REPORT) as stream:
        stream.write(page.encode("utf-8", "replace"))


def report_html(run: RunRecord) -> str:
    """Return the page of a run."""
    return render(
        "report.html",
        run=run,
        tiles=tiles(run),
        facts=facts(run),
        differences=run.differences(),
        picture=picture(plot(list(run.lines))),
    )


def render(template: str, **values: Any) -> str:
    """Return the page of a template in `templates/`."""
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    return page_environment("ochat_ray.train", text, flag, decimals, share)


def picture(png: bytes) -> str:
    """Return a PNG as a data URI."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def tiles(run: RunRecord) -> list[tuple[str, str]]:
    """Return (figure, meaning) of the figures that sum up a run."""
    rates = run.learning_rates
    loss, turn = (
        [run.held_out(name, after=after) for after in (False, True)]
        for name in ("loss", "end_of_turn")
    )
    return [
        (f"{decimals(loss[0])} → {decimals(loss[1])}", "held-out loss, before and after"),
        (f"{share(turn[0])} → {share(turn[1])}", "end of turn chosen, before and after"),
        (steps(run), "optimizer steps"),
        (f"{max(rates):.3g}" if rates else "–", "peak learning rate"),
        (decimals(run.tokens_per_second, 0), "tokens per second"),
        (duration(run.seconds), "in optimizer steps"),
    ]


def facts(run: RunRecord) -> list[tuple[str, str]]:
    """Return (name, value) of the facts that say where a run comes from."""
    manifest = run.manifest
    config = manifest.get("config")
    config = config if isinstance(config, dict) else {}
    rates = run.learning_rates
    best = manifest.get("best")
    loss = number(best.get("eval_loss")) if isinstance(best, dict) else None
    versions = manifest.get("versions")
    known = {
        "recipe": manifest.get("recipe"),
        "base model": config.get("model"),
        "data": config.get("data"),
        "data digest": manifest.get("data_digest"),
        "conversations": manifest.get("conversations"),
        "template": _template(manifest),
        "context length": manifest.get("context_length"),
        "workers": manifest.get("world_size"),
        "ZeRO stage": manifest.get("zero_stage"),
        "dtype": manifest.get("dtype"),
        "learning rate": f"{max(rates):.4g} at its peak, {rates[-1]:.4g} in the last step"
        if rates
        else None,
        "best checkpoint": f"step {text(best['step'])}, held-out loss {decimals(loss)}"
        if isinstance(best, dict) and "step" in best
        else None,
        "versions": ", ".join(f"{name} {text(value)}" for name, value in versions.items())
        if isinstance(versions, dict)
        else None,
        "commit": manifest.get("commit"),
    }
    return [(name, text(value)) for name, value in known.items() if value not in (None, "")]


def _template(manifest: Any) -> str:
    """Return the template's name, with the digest of a base model's own template."""
    own = manifest.get("template")
    digest = own.get("digest") if isinstance(own, dict) else None
    kind = text(manifest.get("model_type", "unknown"))
    if kind == "chat":
        kind = "the base model's own chat template"
    return f"{kind}, {text(digest)}" if digest else kind


def steps(run: RunRecord) -> str:
    """Format the number of steps, with the planned number if it is another."""
    total = run.total_steps
    return f"{run.step:,}" if total in (None, run.step) else f"{run.step:,} of {total:,}"


def decimals(value: Any, digits: int = 3) -> str:
    """Format a number; a dash for anything else."""
    known = number(value)
    return "–" if known is None else f"{known:,.{digits}f}"


def share(value: Any) -> str:
    """Format a share in percent; a dash for anything else."""
    known = number(value)
    return "–" if known is None else f"{known:.0%}"


def duration(seconds: float | None) -> str:
    """Format a duration; a dash for None."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
