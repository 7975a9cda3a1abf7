"""What every engine does alike: one suite for all of them, with a tiny model, against PyTorch."""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import json
import re
from dataclasses import dataclass
from functools import partial

import jsonschema
import pytest

from ochat_ray.serve.args import ServeArgs, resolve
from ochat_ray.serve.deployment import open_engine
from ochat_ray.serve.engines.base import (
    UNSUPPORTED,
    EngineError,
    RequestRefusedError,
    Sampling,
)
from ochat_ray.serve.protocol.tools import NO_ARGUMENTS, CallReader, CallRules, Tool

PROMPTS = [[0, 40, 41, 42], [0, *range(60, 90)], [0, 7]]
CONTEXT = 512
SLOTS = 4
VOCABULARY = 301
END_OF_TURN = 300


@pytest.fixture(
    scope="module",
    params=["transformers", pytest.param("vllm", marks=pytest.mark.vllm), "scripted"],
)
def name(request):
    if request.param == "vllm" and importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed; make test-vllm")
    return request.param


@pytest.fixture(scope="module")
def settings(name, two_headed_model):
    args = ServeArgs(
        model=str(two_headed_model),
        engine=name,
        context_length=CONTEXT,
        max_ongoing=SLOTS,
        max_batch_tokens=32,
        dtype="float32",
    )
    return resolve(args).engine


@pytest.fixture(scope="module")
def run():
    """Runs a coroutine, all of a module's on one event loop, as in a replica."""
    with asyncio.Runner() as runner:
        yield runner.run


@pytest.fixture(scope="module")
def engine(settings, run):
    async def opened():  # in a running loop, as Serve does
        return open_engine(settings)

    engine = run(opened())
    yield engine
    engine.close()


@pytest.fixture
def needs(name):
    def needs(*fields):
        missing = UNSUPPORTED[name] & set(fields)
        if missing:
            pytest.skip(f"{name} has no {', '.join(sorted(missing))}")

    return needs


@pytest.fixture(scope="module")
def model(name, two_headed_model):
    """The model itself, to compare with."""
    if name == "scripted":
        pytest.skip("the scripted engine has no model")
    import torch
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(two_headed_model, dtype=torch.float32).eval()


def logits(model, ids):
    """Float32 [tokens, vocabulary]; row i follows the first i + 1 ids."""
    import torch

    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float()


def greedy(model, prompt, length, change=lambda logits, answer: logits):
    """The most likely ids one after the other, of the last row as `change` leaves it."""
    answer = []
    for _ in range(length):
        row = change(logits(model, prompt + answer)[-1], answer)
        answer.append(int(row.argmax()))
    return answer


@dataclass
class Answer:
    ids: list[int]
    reason: str | None
    logprobs: list


async def ask(engine, prompt, name="r", **sampling):
    deltas = [delta async for delta in engine.submit(name, prompt, Sampling(**sampling))]
    assert all(delta.token_ids for delta in deltas)
    assert all(delta.finish_reason is None for delta in deltas[:-1])
    return Answer(
        [i for delta in deltas for i in delta.token_ids],
        deltas[-1].finish_reason,
        [entry for delta in deltas for entry in delta.logprobs],
    )


async def ask_all(engine, prompts, **sampling):
    return await asyncio.gather(
        *[ask(engine, prompt, f"r{i}", **sampling) for i, prompt in enumerate(prompts)]
    )


def test_the_most_likely_tokens_are_those_of_generate(engine, run, model):
    import torch

    wanted = []
    for prompt in PROMPTS:
        out = model.generate(
            torch.tensor([prompt]), max_new_tokens=24, do_sample=False, eos_token_id=-1
        )
        wanted.append(Answer(out[0, len(prompt) :].tolist(), "length", []))
    assert len({tuple(answer.ids) for answer in wanted}) == len(PROMPTS)
    assert run(ask_all(engine, PROMPTS, max_tokens=24, temperature=0)) == wanted


def test_a_greedy_answer_comes_again(engine, run):
    first = run(ask(engine, PROMPTS[1], max_tokens=24, temperature=0))
    assert len(first.ids) == 24
    assert run(ask(engine, PROMPTS[1], max_tokens=24, temperature=0)) == first


@pytest.mark.parametrize("sampling", [{"top_k": 1}, {"top_p": 0}, {"top_p": 1e-6}, {"min_p": 1}])
def test_where_one_token_is_left_it_is_the_most_likely_one(engine, run, model, needs, sampling):
    needs(*sampling)
    wanted = greedy(model, PROMPTS[0], 12)
    assert run(ask(engine, PROMPTS[0], max_tokens=12, seed=5, **sampling)).ids == wanted


@pytest.mark.parametrize(
    ("sampling", "allowed"),
    [
        ({"top_k": 3}, lambda p: p >= p.sort(descending=True).values[2]),
        ({"min_p": 0.2}, lambda p: p >= 0.2 * p.max()),
    ],
)
def test_draws_stay_within_the_filter(engine, run, model, needs, sampling, allowed):
    needs(*sampling)
    prompt = PROMPTS[0]

    def outside(ids):
        rows = logits(model, prompt + ids)[len(prompt) - 1 : -1]
        # The filters come after the temperature.
        return [
            i for row, i in zip(rows, ids, strict=True) if not allowed((row / 2).softmax(-1))[i]
        ]

    plain = run(ask(engine, prompt, max_tokens=40, temperature=2, seed=1))
    assert outside(plain.ids)
    drawn = run(ask(engine, prompt, max_tokens=40, temperature=2, seed=1, **sampling))
    assert not outside(drawn.ids)
    assert drawn.ids != greedy(model, prompt, 40)


def test_a_stop_id_ends_the_answer_and_is_its_last_token(engine, run):
    ids = run(ask(engine, PROMPTS[0], max_tokens=8, temperature=0)).ids
    stop = ids[3]
    got = run(ask(engine, PROMPTS[0], max_tokens=8, temperature=0, stop_ids=(290, stop)))
    assert got == Answer(ids[: ids.index(stop) + 1], "stop", [])


def test_nothing_stops_but_the_requests_own_stop_ids(engine, run, needs):
    needs("logit_bias")
    # The model's config has it as eos_token_id.
    got = run(
        ask(engine, PROMPTS[0], max_tokens=6, temperature=0, logit_bias=((END_OF_TURN, 100),))
    )
    assert got == Answer([END_OF_TURN] * 6, "length", [])


@pytest.mark.parametrize("seed", [7, 0, -1, -(2**63), 2**63 - 1])
def test_a_seed_repeats_an_answer_in_any_company(engine, run, needs, seed):
    needs("seed")
    alone = run(ask(engine, PROMPTS[0], max_tokens=16, seed=seed))
    assert run(ask_all(engine, PROMPTS, max_tokens=16, seed=seed))[0] == alone
    assert run(ask(engine, PROMPTS[0], max_tokens=16, seed=8)) != alone


def test_without_a_seed_answers_differ(engine, run, needs):
    needs("seed")
    first, second = run(ask_all(engine, PROMPTS[:1] * 2, max_tokens=16))
    assert first != second


def test_more_requests_than_slots_all_end(engine, run):
    got = run(ask_all(engine, PROMPTS * SLOTS, max_tokens=4, temperature=0))
    assert got == got[:3] * SLOTS


@pytest.mark.parametrize(
    ("prompt", "sampling"),
    [
        ([], {"max_tokens": 1}),
        ([VOCABULARY], {"max_tokens": 1}),
        ([-1], {"max_tokens": 1}),
        ([0] * CONTEXT, {"max_tokens": 1}),
        ([0], {"max_tokens": CONTEXT}),
        ([0], {"max_tokens": 0}),
        ([0], {"max_tokens": 1, "logit_bias": ((VOCABULARY, 1.0),)}),
        ([0], {"max_tokens": 1, "logit_bias": ((-1, 1.0),)}),
        ([0], {"max_tokens": 1, "stop_ids": (VOCABULARY,)}),
        ([0], {"max_tokens": 1, "bad_words": ((5, VOCABULARY),)}),
        ([0], {"max_tokens": 1, "bad_words": ((),)}),
        ([0], {"max_tokens": 1, "grammar": 'start: "a"'}),
        ([0], {"max_tokens": 1, "grammar": "start: /(/", "stop_ids": (END_OF_TURN,)}),
    ],
)
def test_what_would_end_the_loop_is_refused_and_it_goes_on(engine, run, prompt, sampling):
    with pytest.raises(RequestRefusedError):
        run(ask(engine, prompt, **sampling))
    engine.check_health()
    assert len(run(ask(engine, PROMPTS[0], max_tokens=2)).ids) == 2


def test_a_request_id_in_use_is_refused(engine, run):
    async def twice():
        stream = engine.submit("same", PROMPTS[0], Sampling(max_tokens=4, temperature=0))
        first = await anext(stream)
        with pytest.raises(RequestRefusedError, match="same"):
            await ask(engine, PROMPTS[1], "same", max_tokens=4)
        rest = [i async for delta in stream for i in delta.token_ids]
        return [*first.token_ids, *rest]

    alone = run(ask(engine, PROMPTS[0], "same", max_tokens=4, temperature=0))
    assert run(twice()) == alone.ids


def test_a_whole_context_fits(engine, run):
    got = run(ask(engine, [0] * (CONTEXT - 12), max_tokens=12))
    assert (len(got.ids), got.reason) == (12, "length")


def test_capacity_is_the_models_and_the_load_is_real(engine, run, name):
    async def look():
        stream = engine.submit("r", PROMPTS[0], Sampling(max_tokens=400))
        for _ in range(3):
            await anext(stream)
        during = engine.capacity()
        await stream.aclose()
        return during

    before, during = engine.capacity(), run(look())
    assert (before.context_length, before.vocabulary) == (CONTEXT, VOCABULARY)
    assert (before.running, before.waiting) == (0, 0)
    assert before.kv_tokens_used < CONTEXT <= before.kv_tokens
    assert (during.running, during.waiting) == (1, 0)
    if name != "scripted":
        assert 0 < during.kv_tokens_used < during.kv_tokens


async def load_falls_to(engine, count):
    async with asyncio.timeout(1):
        while engine.capacity().running + engine.capacity().waiting > count:
            await asyncio.sleep(0.01)


async def fill(engine, count):
    """Streams that each have one token and want all that the context holds."""
    streams = [
        engine.submit(f"long{i}", PROMPTS[0], Sampling(max_tokens=500, temperature=0))
        for i in range(count)
    ]
    await asyncio.gather(*[anext(stream) for stream in streams])
    return streams


def test_leaving_frees_the_slot(engine, run):
    async def leave():
        streams = await fill(engine, SLOTS)
        await streams[0].aclose()
        await load_falls_to(engine, SLOTS - 1)
        got = await ask(engine, PROMPTS[1], "next", max_tokens=2)
        assert engine.capacity().running + engine.capacity().waiting == SLOTS - 1
        for stream in streams:
            await stream.aclose()
        await load_falls_to(engine, 0)
        return got

    assert run(leave()).reason == "length"


def test_a_cancelled_request_ends_without_a_reason(engine, run):
    async def cancel():
        streams = await fill(engine, 2)
        engine.cancel("long0")
        engine.cancel("nobody")
        async with asyncio.timeout(10):
            rest = [delta async for delta in streams[0]]
        await load_falls_to(engine, 1)
        await anext(streams[1])
        await streams[1].aclose()
        return rest

    assert all(delta.finish_reason is None for delta in run(cancel()))


def test_log_probabilities_have_an_entry_a_token(engine, run):
    got = run(ask(engine, PROMPTS[0], max_tokens=8, temperature=0, top_logprobs=1))
    assert [entry.token_id for entry in got.logprobs] == got.ids
    assert all(entry.logprob <= 0 for entry in got.logprobs)
    assert [entry.top for entry in got.logprobs] == [
        ((e.token_id, e.logprob),) for e in got.logprobs
    ]
    none = run(ask(engine, PROMPTS[0], max_tokens=8, temperature=0, top_logprobs=0))
    assert [entry.logprob for entry in none.logprobs] == [e.logprob for e in got.logprobs]
    assert all(entry.top == () for entry in none.logprobs)


@pytest.mark.parametrize(
    "sampling", [{"temperature": 0}, {"temperature": 2, "seed": 3, "top_k": 50}]
)
def test_log_probabilities_are_the_models_before_any_filter(engine, run, model, sampling):
    import torch

    prompt = PROMPTS[1]
    got = run(ask(engine, prompt, max_tokens=12, top_logprobs=5, **sampling))
    rows = logits(model, prompt + got.ids)[len(prompt) - 1 : -1].log_softmax(-1)
    for row, token_id, entry in zip(rows, got.ids, got.logprobs, strict=True):
        assert entry.token_id == token_id
        assert entry.logprob == pytest.approx(float(row[token_id]), abs=1e-3)
        values, ids = torch.topk(row, 5)
        assert [i for i, _ in entry.top] == ids.tolist()
        assert [value for _, value in entry.top] == pytest.approx(values.tolist(), abs=1e-3)


async def score(engine, prompt, name="r", **sampling):
    rules = Sampling(**{"max_tokens": 1, "temperature": 0, "prompt_logprobs": 3, **sampling})
    deltas = [delta async for delta in engine.submit(name, prompt, rules)]
    assert all(delta.prompt_logprobs is None for delta in deltas[1:])
    return deltas[0]


def check_scores(model, prompt, delta, name, top=3):
    """Against a plain forward pass; vLLM's kernels round otherwise."""
    import torch

    near = partial(pytest.approx, abs=1e-3 if name == "vllm" else 1e-4)
    first, *entries = delta.prompt_logprobs.entries()
    assert (first.token_id, first.logprob, first.top) == (prompt[0], None, ())
    assert [entry.token_id for entry in entries] == prompt[1:]
    rows = logits(model, prompt)[:-1].log_softmax(-1)
    for row, token_id, entry in zip(rows, prompt[1:], entries, strict=True):
        assert entry.logprob == near(float(row[token_id]))
        assert entry.rank == int((row > row[token_id]).sum()) + 1
        values, ids = torch.topk(row, top)
        assert [i for i, _ in entry.top] == ids.tolist()
        assert [value for _, value in entry.top] == near(values.tolist())


LONG = [0, *[(7 * i) % 250 + 30 for i in range(300)]]


def test_a_prompt_is_scored_as_by_a_plain_forward_pass(engine, run, model, needs, name):
    needs("prompt_logprobs")

    async def all_at_once():
        others = [ask(engine, PROMPTS[1], "plain", max_tokens=24, temperature=0)]
        scored = [score(engine, p, f"s{i}") for i, p in enumerate([*PROMPTS, LONG])]
        return await asyncio.gather(*others, *scored)

    alone = run(ask(engine, PROMPTS[1], max_tokens=24, temperature=0))
    plain, *scored = run(all_at_once())
    assert plain == alone
    for prompt, delta in zip([*PROMPTS, LONG], scored, strict=True):
        check_scores(model, prompt, delta, name)
    none = run(score(engine, LONG, prompt_logprobs=0))
    assert all(entry.top == () for entry in none.prompt_logprobs.entries())
    assert run(ask(engine, [5], max_tokens=2, prompt_logprobs=0, temperature=0)).ids


def test_a_prompt_in_the_cache_is_scored_completely(engine, run, model, needs, name):
    needs("prompt_logprobs")
    prompt = [0, *[(11 * i) % 250 + 30 for i in range(400)]]
    answer = run(ask(engine, prompt, max_tokens=4, temperature=0)).ids
    for _ in range(2):
        check_scores(model, prompt, run(score(engine, prompt)), name)
    assert run(ask(engine, prompt, max_tokens=4, temperature=0)).ids == answer


def test_cached_tokens_are_counted(engine, run, name):
    async def cached(prompt):
        rules = Sampling(max_tokens=2, temperature=0)
        deltas = [delta async for delta in engine.submit("r", prompt, rules)]
        return [delta.cached_tokens for delta in deltas]

    prompt = [0, *[(13 * i) % 250 + 30 for i in range(400)]]
    first, again = run(cached(prompt)), run(cached(prompt))
    if name == "scripted":
        assert first[0] is again[0] is None
    else:
        assert first[0] == 0
        assert 256 <= again[0] < len(prompt)
    assert not any(again[1:])


def test_a_prompt_with_no_room_for_its_scores_is_none_of_others_business(engine, run, needs):
    """Scored and plain requests that leave, among others that stay."""
    needs("prompt_logprobs")

    async def leave():
        stays = asyncio.create_task(ask(engine, PROMPTS[1], "stays", max_tokens=60, temperature=0))
        for i in range(4):
            scored = engine.submit(f"gone{i}", LONG, Sampling(max_tokens=50, prompt_logprobs=20))
            await anext(scored)
            await scored.aclose()
        return await stays

    assert len(run(leave()).ids) == 60


def test_logit_bias_forces_and_bans(engine, run, needs):
    needs("logit_bias")
    plain = run(ask(engine, PROMPTS[0], max_tokens=6, temperature=0)).ids
    forced = run(ask(engine, PROMPTS[0], max_tokens=6, temperature=0, logit_bias=((77, 100),)))
    assert forced.ids == [77] * 6
    bans = tuple((i, -100) for i in plain)
    banned = run(ask(engine, PROMPTS[0], max_tokens=6, temperature=0, logit_bias=bans))
    assert not set(banned.ids) & set(plain)


def presence(row, prompt, answer):
    for i in set(answer):
        row[i] -= 2
    return row


def frequency(row, prompt, answer):
    for i in answer:
        row[i] -= 1.5
    return row


def repetition(row, prompt, answer):
    for i in {*prompt, *answer}:
        row[i] = row[i] / 3 if row[i] > 0 else row[i] * 3
    return row


@pytest.mark.parametrize(
    ("sampling", "penalty"),
    [
        ({"presence_penalty": 2}, presence),
        ({"frequency_penalty": 1.5}, frequency),
        ({"repetition_penalty": 3}, repetition),
    ],
)
def test_penalties_change_the_answer_as_worked_out(engine, run, model, needs, sampling, penalty):
    needs("logit_bias", *sampling)
    prompt, likely = PROMPTS[1], {60: 11, 61: 11, 62: 11}

    def biased(row, answer):
        for i, bias in likely.items():
            row[i] += bias
        return row

    # With the bias the answer repeats a few tokens; without a penalty it is another one.
    plain = greedy(model, prompt, 20, biased)
    wanted = greedy(model, prompt, 20, lambda row, a: penalty(biased(row, a), prompt, a))
    assert len(set(plain)) < 10
    assert wanted != plain
    got = run(
        ask(
            engine,
            prompt,
            max_tokens=20,
            temperature=0,
            logit_bias=tuple(likely.items()),
            **sampling,
        )
    )
    assert got.ids == wanted


def test_no_stop_id_comes_before_min_tokens(engine, run):
    ids = run(ask(engine, PROMPTS[0], max_tokens=12, temperature=0)).ids
    stops = tuple(set(ids))
    got = run(ask(engine, PROMPTS[0], max_tokens=12, temperature=0, stop_ids=stops))
    assert (len(got.ids), got.reason) == (1, "stop")
    stops = (*stops, END_OF_TURN)
    got = run(ask(engine, PROMPTS[0], max_tokens=12, temperature=0, stop_ids=stops, min_tokens=5))
    assert 5 <= len(got.ids) <= 12
    assert not set(got.ids[:5]) & set(stops) or got.ids[:5] == ids[:5]


def test_min_tokens_bans_stop_ids_until_then(engine, run, needs):
    needs("logit_bias")
    wants = {"temperature": 0, "logit_bias": ((END_OF_TURN, 100),), "stop_ids": (END_OF_TURN,)}
    got = run(ask(engine, PROMPTS[0], max_tokens=12, min_tokens=5, **wants))
    assert (len(got.ids), got.reason) == (6, "stop")
    assert END_OF_TURN not in got.ids[:5]


def test_bad_words_do_not_occur(engine, run, model, needs):
    needs("bad_words")
    plain = greedy(model, PROMPTS[0], 12)
    single, pair = plain[:1], plain[4:6]
    words = (tuple(single), tuple(pair))
    got = run(ask(engine, PROMPTS[0], max_tokens=40, temperature=0, bad_words=words)).ids
    assert single[0] not in got
    assert tuple(pair) not in set(itertools.pairwise(got))

    def banned(row, answer):
        for *before, last in words:
            if answer[len(answer) - len(before) :] == before:
                row[last] = -float("inf")
        return row

    assert got == greedy(model, PROMPTS[0], 40, banned)


@pytest.mark.parametrize(
    ("grammar", "pattern"),
    [
        ("start: /[0-9]{30} [ab]+c/", "[0-9]{30} [ab]+c"),
        ('start: "yes" | "né🙂"', "yes|né🙂"),
        ('root ::= "SELECT " col\ncol ::= "a" | "b" ', "SELECT [ab]"),
    ],
)
def test_a_grammar_holds_and_only_a_whole_answer_stops(
    engine, run, needs, tokenizer, grammar, pattern
):
    needs("guided_grammar")
    bias = ((END_OF_TURN, 60),)
    got = run(
        ask(
            engine, PROMPTS[0], max_tokens=200, seed=1, grammar=grammar, stop_ids=(END_OF_TURN,),
            logit_bias=bias,
        )
    )  # fmt: skip
    assert got.reason == "stop"
    assert re.fullmatch(pattern, tokenizer.decode(got.ids[:-1]))


SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Oslo", "Rome", "São Paulo"]},
        "days": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0},
        {"seed": 1},
        {"seed": 2, "logit_bias": ((END_OF_TURN, 100),)},
        {"seed": 3, "logit_bias": ((END_OF_TURN, -30),)},
    ],
)
def test_a_schema_holds_and_only_a_whole_answer_stops(engine, run, needs, tokenizer, sampling):
    needs("response_format")
    got = run(
        ask(
            engine,
            PROMPTS[0],
            max_tokens=300,
            json_schema=json.dumps(SCHEMA),
            stop_ids=(END_OF_TURN,),
            **sampling,
        )
    )
    assert got.reason == "stop"
    assert got.ids[-1] == END_OF_TURN
    assert END_OF_TURN not in got.ids[:-1]
    jsonschema.validate(json.loads(tokenizer.decode(got.ids[:-1])), SCHEMA)


def test_a_model_that_wants_blanks_still_completes_its_json(engine, run, needs, tokenizer):
    needs("response_format")
    (blank,) = tokenizer.encode("\n", add_special_tokens=False)
    got = run(
        ask(
            engine,
            PROMPTS[0],
            max_tokens=200,
            temperature=0,
            logit_bias=((blank, 100),),
            json_schema=json.dumps(
                {"type": "array", "items": {"enum": [1, 2]}, "minItems": 2, "maxItems": 2}
            ),
            stop_ids=(END_OF_TURN,),
        )
    )
    assert got.reason == "stop"
    assert len(json.loads(tokenizer.decode(got.ids[:-1]))) == 2


def test_requests_with_and_without_a_schema_share_a_batch(engine, run, needs):
    needs("response_format")

    async def both():
        return await asyncio.gather(
            ask(engine, PROMPTS[0], "plain", max_tokens=24, temperature=0),
            ask(
                engine,
                PROMPTS[1],
                "schema",
                max_tokens=300,
                temperature=0,
                json_schema='{"enum": ["yes", "no"]}',
                stop_ids=(END_OF_TURN,),
            ),
        )

    plain, schema = run(both())
    assert plain == run(ask(engine, PROMPTS[0], max_tokens=24, temperature=0))
    assert schema.reason == "stop"


@pytest.mark.parametrize("required", [True, False])
def test_calls_of_tools_are_of_their_schemas(engine, run, needs, tokenizer, required):
    """A model of random weights calls only what it must, and answers with text otherwise."""
    needs("tools")
    tools = (Tool(name="now", parameters=NO_ARGUMENTS), Tool(name="add", parameters=SCHEMA))
    got = run(
        ask(
            engine,
            PROMPTS[0],
            max_tokens=400,
            temperature=0,
            calls=CallRules(tools=tools, required=required, parallel=False),
            stop_ids=(END_OF_TURN,),
        )
    )
    reader, text = CallReader(), tokenizer.decode([i for i in got.ids if i != END_OF_TURN])
    name, *arguments = [part.text for part in [*reader.push(text), *reader.flush()]]
    assert reader.calls == required
    if required:
        assert got.reason == "stop"
        (tool,) = [tool for tool in tools if tool.name == name]
        jsonschema.validate(json.loads("".join(arguments)), tool.parameters)


def test_a_dead_engine_fails_health_and_the_request_in_flight(settings, run):
    engine = open_engine(settings)  # no loop runs here

    async def die():
        stream = engine.submit("r", PROMPTS[0], Sampling(max_tokens=500))
        await anext(stream)
        engine.close()
        async with asyncio.timeout(30):
            async for _ in stream:
                pass

    with pytest.raises(EngineError):
        run(die())
    with pytest.raises(EngineError):
        engine.check_health()
    with pytest.raises(EngineError):
        run(ask(engine, PROMPTS[0], max_tokens=2))
    engine.close()
