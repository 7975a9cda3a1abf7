"""Page that puts training runs side by side: `python -m ochat_ray.train.compare RUN [RUN...]`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from ochat_ray.command_line import flag, user_message
from ochat_ray.command_line import run as run_command
from ochat_ray.errors import UserError
from ochat_ray.run_dir import RunDir, absolute
from ochat_ray.train.plot_runs import colour, plot_runs
from ochat_ray.train.report import facts, picture, render, steps, tiles
from ochat_ray.train.run_record import RunRecord, number, read_run, text
from ochat_ray.train.samples import Sample

PROGRAM = "python -m ochat_ray.train.compare"
RESULTS = "results.json"


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Write one page about training runs: losses, options, answers and scores.

    Runs that cannot be read are named on the page and on standard error.
    """

    runs: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN...]")
    ] = ()
    """Output directories of trainings, complete or not; local paths or URIs."""
    output: str = "training-runs.html"
    """Page to write; a local path or URI."""
    evaluations: tuple[str, ...] = ()
    """Output directories of evaluations, whose scores are shown."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the result as one JSON object on the last line of standard output."""


def compare(config: CompareConfig) -> dict[str, Any]:
    """Write the page and return its path, its runs and the notes on it.

    Raises:
        UserError: no run can be read, one is given twice, or the output is not an HTML file.
    """
    if not config.runs:
        raise UserError("give at least one RUN, the output directory of a training")
    counts = Counter(absolute(uri).rstrip("/") for uri in config.runs)
    if twice := [uri for uri, count in counts.items() if count > 1]:
        raise UserError(f"{twice[0]} is given twice")
    if not config.output.endswith(".html"):  # so that no file of another kind is replaced
        raise UserError(f"--output {config.output} must end with .html")
    records, notes = _read(config.runs)
    if not records:
        raise UserError(notes[0])
    scores, more = _scores(config.evaluations, records)
    notes += more
    for note in notes:
        print(note, file=sys.stderr)
    folder, _, name = absolute(config.output).rpartition("/")
    with RunDir.open(folder or "/").writing(name) as stream:
        stream.write(comparison_html(records, scores, notes).encode("utf-8", "replace"))
    return {"page": config.output, "runs": [record.uri for record in records], "notes": notes}


def comparison_html(
    records: Sequence[RunRecord], scores: Sequence[Mapping[str, Any]], notes: Sequence[str]
) -> str:
    """Return the page about some runs."""
    prompts = same_prompts(records)
    return render(
        "compare.html",
        runs=[
            {"number": n + 1, "colour": colour(n), "uri": record.uri, "tiles": tiles(record)}
            for n, record in enumerate(records)
        ],
        picture=picture(plot_runs([record.lines for record in records])),
        origins=_differing([dict(facts(record)) if record.manifest else {} for record in records]),
        options=_differing([_options(record) for record in records]),
        prompts=prompts,
        others=sum(len(record.prompts) for record in records)
        - sum(len(prompt["answers"]) for prompt in prompts),
        scores=scores,
        notes=notes,
    )


def same_prompts(records: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """Return the prompts that several runs answered, with the answers of these runs.

    Of a single run, all its prompts are returned. Each has "text"; "bases", pairs of the numbers of
    runs and their base's answer, in which equal answers are one; and "answers", pairs of a run's
    number and its last answer.
    """
    found: dict[tuple[str, int], list[tuple[int, Any]]] = {}
    for n, record in enumerate(records, 1):
        seen: Counter[str] = Counter()
        for prompt in record.prompts:
            found.setdefault((prompt.text, seen[prompt.text]), []).append((n, prompt))
            seen[prompt.text] += 1
    least = min(2, len(records))
    return [
        {
            "text": name,
            "bases": _bases(answers),
            "answers": [(n, prompt.last) for n, prompt in answers],
        }
        for (name, _), answers in found.items()
        if len(answers) >= least
    ]


def _bases(answers: Sequence[tuple[int, Any]]) -> list[tuple[list[int], Sample]]:
    found: dict[tuple[str, bool], tuple[list[int], Sample]] = {}
    for n, prompt in answers:
        if prompt.base is not None:
            key = prompt.base.answer, prompt.base.ended
            found.setdefault(key, ([], prompt.base))[0].append(n)
    return list(found.values())


def _read(uris: Sequence[str]) -> tuple[list[RunRecord], list[str]]:
    """Return the runs that can be read, and a line on each that cannot or is not complete."""
    records, notes = [], []
    for uri in uris:
        try:
            record = read_run(uri)
        except Exception as error:
            if (message := user_message(error)) is None:
                raise
            notes.append(message if uri in message else f"{uri}: {message}")
            continue
        if not record.manifest:
            notes.append(f"{uri} has not completed: it has {steps(record)} steps")
        records.append(record)
    return records, notes


def _options(record: RunRecord) -> dict[str, str]:
    return {flag(name): text(value) for name, value in record.options.items()}


def _differing(rows: Sequence[dict[str, str]]) -> list[tuple[str, list[str]]]:
    """Return (name, values) of the names whose values differ between runs."""
    names = dict.fromkeys(name for row in rows for name in row)
    known = [row for row in rows if row]
    return [
        (name, [row.get(name, "–") for row in rows])
        for name in names
        if len({row.get(name) for row in known}) > 1
    ]


def _scores(
    uris: Sequence[str], records: Sequence[RunRecord]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the scores of evaluations, with the number of the run that trained each model.

    A server reports the digest of its model's ochat.json, which the evaluation records.
    """
    numbers = {record.digest: n for n, record in enumerate(records, 1) if record.digest}
    rows: list[dict[str, Any]] = []
    notes = []
    for uri in uris:
        try:
            found: Any = RunDir.open(uri).read_json(RESULTS, "run the evaluation again")
            own = [_score(uri, found, one, numbers) for one in found["scores"]]
        except (UserError, TypeError, KeyError, AttributeError) as error:
            known = isinstance(error, UserError)
            reason = str(error) if known else f"no scores in its {RESULTS}"
            notes.append(f"--evaluations {uri}: {reason}; give an evaluation that has finished")
            continue
        if all(row["run"] is None for row in own):
            notes.append(f"--evaluations {uri} has no model of these runs")
        rows += own
    return rows, notes


def _score(
    uri: str, results: Mapping[str, Any], one: Mapping[str, Any], numbers: Mapping[str, int]
) -> dict[str, Any]:
    entry = (results.get("models") or {}).get(one["model"]) or {}
    digest: Any = (entry.get("training") or {}).get("digest")
    return {
        "evaluation": uri,
        "run": numbers.get(digest),
        "model": text(one["model"]),
        **{name: text(results.get(name) or "–") for name in ("suite", "unit", "judge", "baseline")},
        **{name: number(one.get(name)) for name in ("score", "low", "high")},
    }


def _describe(config: CompareConfig, result: dict[str, Any]) -> str:
    return f"{len(result['runs'])} runs: {config.output}"


def main() -> int:
    """Run the command and return its exit status."""
    return run_command(lambda _: CompareConfig(), compare, _describe, PROGRAM, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
