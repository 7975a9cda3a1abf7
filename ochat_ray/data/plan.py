"""Plan a run: list its files as a new run, or load the unfinished run that it resumes.

The content digests of each group of files are recorded before the first of its parts. A resumed run
and a retried task compare the files with them, so no table mixes two versions of an input.
"""

from __future__ import annotations

import sys
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from ochat_ray.data.config import PrepareConfig, Resolved
from ochat_ray.data.content import Changes, Content, changes, content_digests
from ochat_ray.data.inputs import InputFile, Listing, find_files
from ochat_ray.data.output import PLAN, Output
from ochat_ray.data.statistics import most_first
from ochat_ray.data.verify import ALL_TABLES, verify_tables
from ochat_ray.errors import UserError
from ochat_ray.recipes import CHAT
from ochat_ray.run_dir import MANIFEST, RunDir, completed
from ochat_ray.run_lock import RunLock, hold
from ochat_ray.tokenization.chat_tokenizer import (
    TemplateSettings,
    load_chat_tokenizer,
    own_template,
    read_template,
    settings_of,
)
from ochat_ray.tokenization.template import check_template
from ochat_ray.tokenization.tokenizer import load_tokenizer, tokenizer_digest


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A run's work folder, number of file groups, and the listing that it started from.

    `passed_over` counts the skipped files by kind.
    """

    token: str
    work: RunDir
    groups: int
    stamp: str
    passed_over: dict[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """Values that affect a run's result, besides the inputs' content.

    `template` is the chat template, its arguments and date; None for a template of 2023.
    """

    values: dict[str, Any]
    template: TemplateSettings | None


def identity_of(config: PrepareConfig, resolved: Resolved) -> Identity:
    """Return the identity of a run.

    Raises:
        UserError: The tokenizer or its chat template is not usable, or not with the recipe's
            template; or the template's file cannot be read.
    """
    settings = None
    if config.model_type == CHAT:
        own = config.template == "own"
        source = own_template(config.tokenizer) if own else read_template(config.template)
        settings = settings_of(config.tokenizer, source, resolved.template_arguments)
        tokenizer = load_chat_tokenizer(config.tokenizer, settings)
    else:
        tokenizer = load_tokenizer(config.tokenizer)
        conditions = [model_class.condition for model_class in resolved.classes.values()]
        check_template(config.model_type, tokenizer, conditions)
    values = {
        **resolved.identity,
        "decontaminate": sorted(content_digests(config.decontaminate)),
        "tokenizer": tokenizer_digest(tokenizer),
        **({"template": settings.digest} if settings is not None else {}),
        # Signatures are comparable within one version only.
        "rensa": version("rensa"),
    }
    return Identity(values=values, template=settings)


def completed_already(
    config: PrepareConfig, output: Output, identity: dict[str, Any]
) -> dict[str, Any] | None:
    """Return the manifest of this run if it is complete and its tables agree with it.

    Raises:
        UserError: Another run is complete there and --overwrite is not given, or the data is of an
            earlier version, which is never replaced.
    """
    try:
        manifest = output.run.read_json(MANIFEST)
    except ValueError:  # not JSON
        manifest = {}
    if manifest is None:
        return None
    found = manifest.get("identity") if isinstance(manifest, dict) else None
    if "run" not in manifest or not isinstance(found, dict):
        if found and not output.is_recorded():
            raise UserError(
                f"{config.output} holds data of an earlier version of ochat-ray, which did not "
                "record its files, so none is replaced (jobs/train.py reads them); choose another "
                "--output, or remove that directory"
            )
        output.check_ownership()
        return None
    inputs = found.get("inputs")
    if found == identity | {"inputs": inputs}:  # inputs are hashed only if that decides
        inputs = Content.of(list(find_files(config.input))).identity()
    identity = identity | {"inputs": inputs}
    if found == identity:
        try:
            verify_tables(config.output, manifest, ALL_TABLES)
        except UserError as error:
            print(f"{error}; starting clean", file=sys.stderr)
            return None
    return completed(output.run, MANIFEST, identity, overwrite=config.overwrite)


def set_up(
    config: PrepareConfig, output: Output, stack: ExitStack, identify: Callable[[], Identity]
) -> tuple[RunLock, Plan | dict[str, Any], Identity]:
    """Lock the output directory until `stack` ends, and plan the run.

    Returns:
        The lock; the plan, or the manifest if the run is already complete; the run's identity.
    """
    with ThreadPoolExecutor(1) as pool:
        opening = pool.submit(identify)
        lock = stack.enter_context(hold(output.run, "prepare"))
        identity = opening.result()
    # Another run may have completed it since the first check.
    done = completed_already(config, output, identity.values)
    return lock, done or make_plan(config, output, identity.values), identity


def make_plan(config: PrepareConfig, output: Output, identity: dict[str, Any]) -> Plan:
    """Resume the unfinished run in the output directory, or delete it and plan a new one.

    `identity` excludes the inputs. The caller holds the directory's lock.

    Raises:
        UserError: Files that no run wrote are in the way, or the unfinished run has another
            configuration or has read other files.
    """
    output.check_ownership()
    unfinished = output.unfinished() if config.resume else None
    if unfinished is None:
        return _new_plan(config, output, identity)
    token, plan = unfinished
    if plan.get("version") != version("ochat-ray"):
        raise UserError(
            f"{config.output} holds an unfinished run of another version of ochat-ray "
            f"({plan.get('version', 'unknown')}); leave out --resume to start clean"
        )
    keys = sorted({*identity, *plan["identity"]})
    different = [key for key in keys if plan["identity"].get(key) != identity.get(key)]
    if different:
        raise UserError(
            f"{config.output} holds an unfinished run of another configuration "
            f"({', '.join(different)}); leave out --resume to start clean"
        )
    work = output.work(token)
    current = list(find_files(config.input))
    _check_unchanged(work, plan["groups"], current)
    return Plan(
        token=token,
        work=work,
        groups=plan["groups"],
        stamp=Listing.of(current).stamp,
        passed_over=plan["passed_over"],
    )


def group_files(work: RunDir, number: int) -> list[InputFile]:
    """Return the files of a group, as they were listed."""
    return [InputFile(*file) for file in work.load_json(_group(number))]


def record_content(
    work: RunDir, number: int, files: Sequence[InputFile], digests: Sequence[str] | None = None
) -> None:
    """Record a group's content digests, computed unless given, before any of its parts is written.

    Raises:
        UserError: Other content is recorded, since a file changed in the meantime.
    """
    digests = content_digests([file.uri for file in files]) if digests is None else digests
    recorded = work.read_json(_content(number))
    if recorded is None:
        work.write_json(_content(number), list(digests))
        return
    for file, digest, before in zip(files, digests, recorded, strict=True):
        if digest != before:
            raise _changed(file.uri)


def content_of(plan: Plan) -> Content:
    """Return the content recorded by all groups."""
    content = Content()
    for number in range(plan.groups):
        content.add(group_files(plan.work, number), plan.work.load_json(_content(number)))
    return content


def check_inputs_stayed(config: PrepareConfig, plan: Plan) -> None:
    """Compare the inputs, after reading, with their listing at the start of the run.

    Raises:
        UserError: A file was changed or removed while the run was reading.
    """
    current = list(find_files(config.input))
    if Listing.of(current).stamp != plan.stamp:
        _report(changes(_planned(plan.work, plan.groups), current), resumed=False)


def _new_plan(config: PrepareConfig, output: Output, identity: dict[str, Any]) -> Plan:
    output.clear()
    token = uuid.uuid4().hex
    work = output.start_work(token)
    listing, kinds = Listing(), Counter[str]()
    for number, files in enumerate(listing.groups(find_files(config.input, kinds))):
        work.write_json(_group(number), [[f.uri, f.size, f.mtime_ns] for f in files])
    passed_over = most_first(kinds)
    work.write_json(
        PLAN,
        {
            "token": token,
            "version": version("ochat-ray"),
            "identity": identity,
            "groups": listing.count,
            "passed_over": passed_over,
        },
    )
    return Plan(
        token=token,
        work=work,
        groups=listing.count,
        stamp=listing.stamp,
        passed_over=passed_over,
    )


def _check_unchanged(work: RunDir, groups: int, current: Sequence[InputFile]) -> None:
    """Compare the inputs with those that an unfinished run has read, by content where possible."""
    by_uri = {file.uri: file for file in current}
    unread: list[InputFile] = []
    for number in range(groups):
        files = group_files(work, number)
        if work.exists(_content(number)) and all(file.uri in by_uri for file in files):
            record_content(work, number, files)
            # A file whose content is unchanged counts as the same.
            unread += [by_uri[file.uri] for file in files]
        else:
            unread += files
    _report(changes(unread, current), resumed=True)


def _report(found: Changes, *, resumed: bool) -> None:
    """Raise a UserError for the first file that changed or is missing; report new ones."""
    if found.gone:
        raise _changed(found.gone[0], "is gone")
    if found.changed:
        raise _changed(found.changed[0])
    if found.new:
        print(
            f"{len(found.new):,} input files are new since the run started and are not part of it, "
            f"such as {found.new[0]}; "
            + ("a start without --resume reads them" if resumed else "another run reads them"),
            file=sys.stderr,
        )


def _changed(uri: str, what: str = "was changed") -> UserError:
    return UserError(
        f"input {uri} {what} since this run started; start clean, without --resume, when nothing "
        "writes to the inputs"
    )


def _planned(work: RunDir, groups: int) -> list[InputFile]:
    return [file for number in range(groups) for file in group_files(work, number)]


def _group(number: int) -> str:
    return f"inputs/{number:06d}.json"


def _content(number: int) -> str:
    return f"content/{number:06d}.json"
