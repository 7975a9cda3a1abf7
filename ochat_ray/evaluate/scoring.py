"""Compute scores, the report and exported files from the judgments of a configuration."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any
from urllib.parse import quote

from ochat_ray.errors import UserError
from ochat_ray.evaluate.asking import Spent
from ochat_ray.evaluate.bias import biases, control
from ochat_ray.evaluate.bradley_terry import Battle, bradley_terry, style_difference
from ochat_ray.evaluate.counts import count_answers, count_declined, count_replies, warnings_of
from ochat_ray.evaluate.human_labels import human_agreement
from ochat_ray.evaluate.outputs import REPORT, RESULTS, TABLE
from ochat_ray.evaluate.records import CONTROL, FAILED
from ochat_ray.evaluate.report import Entry, Said, markdown_table, report_html
from ochat_ray.evaluate.session import Session
from ochat_ray.evaluate.stats import Part, differences, estimate
from ochat_ray.run_dir import RunDir


def score(session: Session) -> dict[str, Any]:
    """Compute the scores from the recorded judgments and write all files; make no call.

    Raises:
        UserError: Judgments are missing.
    """
    config, output = session.config, session.output
    scores, parts = [], {}
    entries: list[Entry] = []
    for model in session.models:
        judgments = _judgments(session, model)
        found = [judgment for judgment in judgments if CONTROL not in judgment]
        one, parts[model] = _scored(session, model, found)
        if session.config.control:
            controls = [judgment for judgment in judgments if CONTROL in judgment]
            one["control"] = asdict(control(session.suite.judged(controls)))
        scores.append(one)
        entries += _entries(session, model, judgments, parts[model])
        for name, text in _files(session, model, found).items():
            _write(output, f"models/{quote(model, safe='')}/{name}", text)
    results: dict[str, Any] = {
        "suite": config.suite,
        "unit": session.suite.unit,
        "baseline": session.baseline or None,
        "judge": config.judge,
        "scores": scores,
        "even": session.suite.even,
        "differences": _differences(session, parts),
        **(_ratings(session, scores) if config.compares else {}),
        "answers": {
            name: count_answers(session.answers_of(name), session.questions)
            | count_replies(_answer_records(session, name))
            | {"usage": _usage(session, name, _answer_records(session, name))}
            for name in [*session.models, session.baseline]
            if name
        },
        "questions": len(session.questions),
        "questions_digest": session.suite.questions_digest,
        "prompts_digest": session.suite.prompts.digest,
        "models": session.identities.entries("models", [*session.models, session.baseline]),
        "judges": session.identities.entries("judges", [config.judge]),
        "config": asdict(config),
        "version": version("ochat-ray"),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    results["warnings"] = [*session.suite.notes(), *warnings_of(results)]
    _write(output, REPORT, report_html(results, entries))
    _write(output, TABLE, markdown_table(results))
    output.write_json(RESULTS, results)
    return results


def _judgments(session: Session, model: str) -> list[dict[str, Any]]:
    calls, known = session.judge_calls(model), session.judgments
    # The metadata of a call may differ under one key: two models may have given the same answer.
    found = [{**known[call.key], **call.about} for call in calls if call.key in known]
    if len(found) < len(calls):
        raise UserError(
            f"{len(calls) - len(found)} of {len(calls)} judgments of {model} are missing; run "
            "the step `judge`"
        )
    return found


def _answer_records(session: Session, model: str) -> list[dict[str, Any]]:
    if model not in session.to_answer():
        return []  # given in a file
    return [
        record
        for question in session.questions
        for record in session.answer_records(question, model)
    ]


def _files(session: Session, model: str, judgments: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    own, baseline = session.answers_of(model), session.baseline_answers()
    questions = session.judged_questions(model)
    return session.suite.files(questions, own, baseline, judgments)


def _entries(
    session: Session,
    model: str,
    judgments: Sequence[Mapping[str, Any]],
    parts: Mapping[str, Part],
) -> Iterator[Entry]:
    suite, references = session.suite, session.suite.references
    whose = {model: session.answers_of(model)}
    if (baseline := session.baseline_answers()) is not None:
        whose[baseline.model] = baseline
    if references is not None:
        by = f", by {references.model}" if references.model else ""
        whose[f"reference answer{by}"] = references
    by_question: dict[str, list[Said]] = defaultdict(list)
    for judgment in judgments:
        read = suite.read(judgment)
        reading = None if read is None else suite.shown(read)
        text = judgment["text"] or judgment.get(FAILED) or "(empty)"
        said = Said(label=_label(judgment), reading=reading, text=text)
        by_question[judgment["question_id"]].append(said)
    for question in session.questions:
        part = parts[question.id]
        yield Entry(
            question=question,
            model=model,
            value=part.numerator / part.denominator if part.denominator else None,
            answers={
                name: answers.turns[question.id]
                for name, answers in whose.items()
                if question.id in answers.turns
            },
            judgments=by_question[question.id],
        )


def _label(judgment: Mapping[str, Any]) -> str:
    parts = [f"turn {judgment['turn'] + 1}"] if "turn" in judgment else []
    if "reason" in judgment:
        parts.append(judgment["judge"])
    if CONTROL in judgment:
        parts.append("beside itself")
    elif "model_first" in judgment:
        parts.append(f"{judgment['model' if judgment['model_first'] else 'baseline']} first")
    if judgment.get("sample"):
        parts.append(f"sample {judgment['sample'] + 1}")
    return ", ".join(parts)


def _write(output: RunDir, name: str, text: str) -> None:
    # An answer may contain an unpaired surrogate, which UTF-8 cannot encode.
    with output.writing(name) as stream:
        stream.write(text.encode("utf-8", "replace"))


def _scored(
    session: Session, model: str, judgments: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Any], dict[str, Part]]:
    config, questions, suite = session.config, session.questions, session.suite
    failed = sum(suite.read(judgment) is None for judgment in judgments)
    unjudged = {question.id: Part(0, 0) for question in questions}
    rules = {"drop": unjudged | suite.parts(judgments)}
    if (with_zeros := suite.zero_parts(judgments)) is not None:
        rules["zero"] = unjudged | with_zeros
    chosen = rules[config.failures]

    def estimated(parts: Mapping[str, Part], category: str | None = None) -> dict[str, Any]:
        some = [parts[q.id] for q in questions if category in (None, q.category)]
        return _json(estimate(some, seed=config.seed))

    one = {
        "model": model,
        **estimated(chosen),
        "judgments": len(judgments),
        "failed": failed,
        "declined": count_declined(judgments, suite.read),
        "replies": count_replies(judgments),
        "usage": _usage(session, config.judge, judgments),
        "questions": len(questions),
        "not_answered": len(questions) - len(session.judged_questions(model)),
        "not_judged": sum(not part.denominator for part in rules["drop"].values()),
        "by_category": {
            category: {
                "questions": count,
                "scored": sum(
                    bool(chosen[q.id].denominator) for q in questions if q.category == category
                ),
                **estimated(chosen, category),
            }
            for category, count in Counter(q.category for q in questions).items()
        },
        "by_question": {id: [part.numerator, part.denominator] for id, part in chosen.items()},
        **(suite.more(judgments) if judgments else {}),
    }
    if config.compares:
        one["biases"] = asdict(biases(suite.judged(judgments)))
        one["outcomes"] = suite.outcomes(judgments)
        if (labels := session.human_labels) is not None:
            one["human"] = human_agreement(labels, one["outcomes"], seed=config.seed)
    if failed and len(rules) > 1:
        # Both 2023 rules, if they differ.
        one["by_failures"] = {rule: estimated(parts) for rule, parts in rules.items()}
    return one, {question.id: chosen[question.id] for question in questions}


def _differences(session: Session, parts: Mapping[str, Mapping[str, Part]]) -> list[dict[str, Any]]:
    """Return the difference of each two models."""
    names = list(parts)
    found = differences([list(own.values()) for own in parts.values()], seed=session.config.seed)
    return [
        {"first": names[one], "second": names[other], **_json(estimated)}
        for (one, other), estimated in found.items()
    ]


def _ratings(session: Session, scores: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return Bradley-Terry ratings from the outcomes, plain and with style under control."""
    baseline = session.baseline_answers()
    assert baseline is not None
    plain, styled = [], []
    for one in scores:
        answers = session.answers_of(one["model"]).turns
        for id, share in one["outcomes"].items():
            votes = 1.0
            if session.suite.votes:
                won, votes = one["by_question"][id]
                share = won / votes / 100
            battle = Battle(
                question=id, first=one["model"], second=baseline.model, share=share, votes=votes
            )
            style = style_difference("\n\n".join(answers[id]), "\n\n".join(baseline.turns[id]))
            plain.append(battle)
            styled.append(replace(battle, style=style))
    seed = session.config.seed
    return {
        "ratings": bradley_terry(plain, anchor=baseline.model, seed=seed),
        "style_controlled": bradley_terry(styled, anchor=baseline.model, seed=seed, rounds=100),
    }


def _usage(session: Session, model: str, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the tokens of these records, and their cost; None without a price."""
    spent = Spent()
    for record in records:
        if "prompt_tokens" in record:
            tokens = (record.get("prompt_tokens") or 0, record.get("completion_tokens") or 0)
            spent.add(model, *tokens, session.prices)
    return {
        "calls": spent.calls,
        "prompt_tokens": spent.prompt_tokens,
        "completion_tokens": spent.completion_tokens,
        "dollars": spent.dollars if spent.priced and spent.calls else None,
    }


def _json(estimated: Any) -> dict[str, float | None]:
    if estimated is None:
        return {"score": None, "low": None, "high": None}
    return {"score": estimated.value, "low": estimated.low, "high": estimated.high}
