"""Cleaning: each rule, the conversation beside what becomes of it."""

import json
from dataclasses import replace

import pytest

from ochat_ray.data.clean import blocked_words_rule, clean, rules
from ochat_ray.data.decontaminate import load_questions
from ochat_ray.data.records import records_of
from ochat_ray.schema import Conversation, Drop, Reason, Turn

RULES = rules(keep_model="any", blocked_words=("openai",))
ROLES = {"s": "system", "u": "user", "a": "assistant"}


def conversation(*turns, model=None, origin="sharegpt"):
    return Conversation(
        id="x",
        source="f",
        model=model,
        origin=origin,
        turns=tuple(Turn(role=ROLES[turn[0]], text=turn[2:]) for turn in turns),
    )


def cleaned(*turns, model=None, keep_model="any", blocked_words=("openai",)):
    result = clean(
        conversation(*turns, model=model), rules(keep_model=keep_model, blocked_words=blocked_words)
    )
    if isinstance(result, Drop):
        return result.reason
    return [f"{turn.role[0]}:{turn.text}" for turn in result.turns]


@pytest.mark.parametrize(
    ("turns", "kept"),
    [
        (["u:q", "a:r"], ["u:q", "a:r"]),
        (["s:rules", "u:q", "a:r"], ["s:rules", "u:q", "a:r"]),
        (["a:hello", "u:q", "a:r", "u:bye"], ["u:q", "a:r"]),
        (["s:rules", "a:hello", "u:q", "a:r"], ["s:rules", "u:q", "a:r"]),
        (["u:  q\n", "a:r\t "], ["u:  q\n", "a:r\t "]),
    ],
)
def test_what_is_kept(turns, kept):
    assert cleaned(*turns) == kept


MERGING = rules(keep_model="any", blocked_words=(), merge_turns=True)


@pytest.mark.parametrize(
    ("turns", "kept"),
    [
        (["u:q", "a:r"], ["u:q", "a:r"]),
        (["u:q", "u:r", "a:s"], ["u:q\n\nr", "a:s"]),
        (["u:q", "a:r", "a:s", "u:t", "a:v"], ["u:q", "a:r\n\ns", "u:t", "a:v"]),
        (["s:a", "s:b", "u:q", "a:r"], ["s:a\n\nb", "u:q", "a:r"]),
        (["u:q", "a:1", "a:2", "a:3"], ["u:q", "a:1\n\n2\n\n3"]),
    ],
)
def test_consecutive_turns_of_a_role_are_merged_where_asked_for(turns, kept):
    merged = clean(conversation(*turns), MERGING)
    assert [f"{turn.role[0]}:{turn.text}" for turn in merged.turns] == kept


def test_html_is_converted_before_turns_are_merged():
    turns = (
        Turn(role="user", text="q"),
        Turn(role="assistant", text="<p><strong>a</strong></p>", html=True),
        Turn(role="assistant", text="<b> as typed"),
    )
    merged = clean(Conversation(id="x", source="f", turns=turns), MERGING)
    assert merged.turns[1].text == "**a**\n\n<b> as typed"


def test_turns_of_different_weights_are_not_merged():
    turns = (
        Turn(role="user", text="q"),
        Turn(role="assistant", text="a", weight=0.0),
        Turn(role="assistant", text="b", weight=1.0),
    )
    dropped = clean(Conversation(id="x", source="f", turns=turns), MERGING)
    assert (dropped.reason, dropped.detail) == (
        Reason.WRONG_ROLE_ORDER,
        "turns 1 and 2 have different loss weights",
    )


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([], Reason.TOO_SHORT),
        (["u:q"], Reason.TOO_SHORT),
        (["a:r"], Reason.TOO_SHORT),
        (["s:rules"], Reason.TOO_SHORT),
        (["u:q", "a: \n"], Reason.EMPTY_TURN),
        (["u:", "a:r"], Reason.EMPTY_TURN),
        (["u:q", "u:q", "a:r"], Reason.WRONG_ROLE_ORDER),
        (["u:q", "a:r", "a:r"], Reason.WRONG_ROLE_ORDER),
        (["u:q", "s:late", "a:r"], Reason.WRONG_ROLE_ORDER),
        (["u:q", "a:trained by OpenAI."], Reason.BLOCKED_WORD),
    ],
)
def test_what_is_dropped(turns, reason):
    assert cleaned(*turns) == reason


@pytest.mark.parametrize("text", ["openaikey", "my_openai", "open ai"])
def test_blocked_words_are_whole_words(text):
    assert cleaned("u:q", f"a:{text}") == ["u:q", f"a:{text}"]


def test_no_blocked_words_block_nothing():
    assert cleaned("u:q", "a:OpenAI", blocked_words=()) == ["u:q", "a:OpenAI"]


@pytest.mark.parametrize(
    ("label", "kept"),
    [("Model: GPT-4", True), ("gpt-4", True), ("Model: Default (GPT-3.5)", False), (None, False)],
)
def test_the_model_label_is_normalised(label, kept):
    result = cleaned("u:q", "a:r", model=label, keep_model="GPT-4")
    assert (result == ["u:q", "a:r"]) == kept
    assert kept or result == Reason.OTHER_MODEL


def test_several_models_are_kept():
    labels = ["Model: GPT-4", "Default (GPT-3.5)", "Claude 2", None]
    kept = [cleaned("u:q", "a:r", model=m, keep_model=["gpt-4", "GPT-3.5"]) for m in labels]
    assert kept == [["u:q", "a:r"], ["u:q", "a:r"], Reason.OTHER_MODEL, Reason.OTHER_MODEL]


def page(*turns):
    return with_html(conversation(*turns))


def with_html(made):
    turns = (replace(turn, html=turn.role == "assistant") for turn in made.turns)
    return replace(made, turns=tuple(turns))


def test_html_answers_are_converted_and_questions_are_not():
    result = clean(page("u:<p>a</p> *b*", "a:<p>c <b>d</b></p>"), RULES)
    assert [turn.text for turn in result.turns] == ["<p>a</p> *b*", "c **d**"]
    assert (result.fidelity, result.text_fidelity, result.turns[1].html) == (1.0, 1.0, False)


def test_a_page_s_answer_without_markup_is_plain_text():
    result = clean(page("u:q", "a:2 * 3\n\n1. x"), RULES)
    assert result.turns[1].text == "2 * 3\n\n1. x"
    assert result.fidelity is None


def test_an_answer_of_nothing_but_buttons_is_empty():
    result = clean(page("u:q", "a:<div><button>Copy code</button></div>"), RULES)
    assert result.reason == Reason.EMPTY_TURN


def test_a_conversion_that_fails_or_loses_too_much_is_dropped():
    assert clean(page("u:q", "a:" + "<div>" * 999 + "x"), RULES).reason == Reason.CONVERSION_FAILED
    loses = page("u:q", "a:<p>a</p><p><img src='data:image/png;base64,AA'></p>")
    assert clean(loses, RULES).fidelity == 0.5
    strict = rules(keep_model="any", blocked_words=(), min_fidelity=0.9)
    assert clean(loses, strict).reason == Reason.LOW_FIDELITY


def test_the_worse_of_structure_and_text_decides():
    # Of 11 characters and a line end, the formula's structure is one that does not come back.
    text_lost = page("u:q", "a:<p>ten letters <math><mfrac><mn>1</mn></mfrac></math></p>")
    result = clean(text_lost, RULES)
    assert (result.fidelity, result.turns[1].text) == (1.0, "ten letters 1")
    assert 0.7 < result.text_fidelity < 1.0
    strict = rules(keep_model="any", blocked_words=(), min_fidelity=0.95)
    dropped = clean(text_lost, strict)
    assert dropped.reason == Reason.LOW_FIDELITY
    assert "characters of visible text are preserved" in dropped.detail


def test_fidelity_of_text_is_weighted_by_the_length_of_the_answers():
    lossy = "a:<p>x <math><msup><mi>y</mi></msup></math></p>"  # 2 of its 4 characters come back
    whole = f"a:<p>{'z' * 95}</p>"  # 96 with the line's end
    assert clean(page("u:q", lossy, "u:q", whole), RULES).text_fidelity == 0.98


def test_a_pager_and_a_counter_are_no_lost_text():
    html = "a:2 / 3<div><p>Hello</p></div><div><button>Copy</button>5 chars / 1 words</div>"
    result = clean(page("u:q", html), RULES)
    assert (result.turns[1].text, result.text_fidelity) == ("Hello", 1.0)
    assert set(result.noise) == {"pager", "counter"}


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        ('<div class="min-h-[20px] whitespace-pre-wrap">a &lt;b&gt;\n c</div>', "a <b>\n c"),
        ('<div class="x"><div class="whitespace-pre-wrap">a</div></div>', "a"),
        ('<div class="whitespace-pre-wrap"><b>a</b></div>', None),
        ('<div class="box">a</div>', None),
        ('<div class="whitespace-pre-wrap">a</div> and why?', None),
        ("2 / 3What is this?", "What is this?"),
        ("see 2 / 3What", None),
    ],
)
def test_a_user_s_turn_is_as_typed_save_for_the_box_and_the_pager(typed, kept):
    result = clean(conversation(f"u:{typed}", "a:r"), RULES)
    assert result.turns[0].text == (typed if kept is None else kept)


def test_pagers_are_counted():
    assert clean(page("u:1 / 2q", "a:2 / 2<p>r</p>"), RULES).noise == ("pager", "pager")


@pytest.mark.parametrize(
    "answer", ["1 / 2Hello", "<p>a</p>Copy12 chars / 34 words", "fineShare Prompt"]
)
def test_what_never_came_through_an_extension_is_kept_byte_for_byte(answer):
    asked = "2 / 3What is it?Share Prompt"
    result = clean(conversation(f"u:{asked}", f"a:{answer}", origin="other"), RULES)
    assert [turn.text for turn in result.turns] == [asked, answer]
    html = with_html(conversation("u:q", "a:2 / 3<p>a</p>", origin="other"))
    assert clean(html, RULES).turns[1].text == "2 / 3\n\na"


def test_a_fraction_in_openai_messages_is_no_pager():
    asked, answer = "1 / 2Alpha plus 3 is 7; 1 / 2x + 3 = 7", "1 / 2Hello"
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    result = clean(next(records_of({"messages": messages}, source="x", index=0)), RULES)
    assert ([turn.text for turn in result.turns], result.noise) == ([asked, answer], ())
    turns = [{"from": "human", "value": "2 / 3Why?"}, {"from": "gpt", "value": "2 / 2Because"}]
    for key in ("conversations", "items"):
        result = clean(next(records_of({key: turns}, source="x", index=0)), RULES)
        assert [turn.text for turn in result.turns] == ["Why?", "Because"]


def test_a_rule_that_is_switched_off_takes_nothing():
    made = conversation("u:2 / 3What?Share Prompt", "a:network error")
    kept = clean(made, rules(keep_model="any", blocked_words=(), noise=["share_prompt"]))
    assert [turn.text for turn in kept.turns] == ["2 / 3What?", "network error"]
    assert kept.noise == ("share_prompt",)
    html = clean(
        page("u:q", "a:2 / 3<p>a</p>"), rules(keep_model="any", blocked_words=(), noise=())
    )
    assert html.turns[1].text == "2 / 3\n\na"


TOO_MANY = "Too many requests in 1 hour. Try again later."
CONTACT = "An error occurred. If this issue persists please contact us through our help center at "


@pytest.mark.parametrize(
    ("turns", "kept", "noise"),
    [
        (["u:q", "a:r", "u:x", f"a:{TOO_MANY}"], ["u:q", "a:r"], ("too_many_requests",)),
        (["u:q", "a:r", "u:x", "a:network error", "u:y", f"a:{TOO_MANY}"], ["u:q", "a:r"],
         ("too_many_requests", "network_error")),
        (["s:rules", "u:q", "a:r", "u:x", "a:network error"], ["s:rules", "u:q", "a:r"],
         ("network_error",)),
        (["a:network error", "u:q", "a:r"], ["u:q", "a:r"], ()),
        (["u:q", f"a:It says: {TOO_MANY}"], ["u:q", f"a:It says: {TOO_MANY}"], ()),
        ([f"u:{TOO_MANY}", "a:r"], [f"u:{TOO_MANY}", "a:r"], ()),
        (["u:q", "a:r", "u:x", f"a:{CONTACT}help.openai.com."], ["u:q", "a:r"],
         ("error_occurred",)),
    ],
)  # fmt: skip
def test_an_error_at_the_end_goes_with_its_question(turns, kept, noise):
    result = clean(conversation(*turns), RULES)
    assert [f"{turn.role[0]}:{turn.text}" for turn in result.turns] == kept
    assert result.noise == noise


@pytest.mark.parametrize(
    ("turns", "detail"),
    [
        (["u:q", f"a:{TOO_MANY}"], "too_many_requests: the only answer"),
        (["u:q", f"a:{TOO_MANY}", "u:q", "a:r"], "too_many_requests: turn 1"),
        (
            ["u:q", f"a:{TOO_MANY}", "u:q", "a:r", "u:q", "a:network error"],
            "too_many_requests: turn 1",
        ),
    ],
)
def test_an_error_that_other_answers_follow_drops_the_conversation(turns, detail):
    for made in (conversation(*turns), conversation(*turns, origin="other")):
        drop = clean(made, RULES)
        assert (drop.reason, drop.detail) == (Reason.PROVIDER_ERROR, detail)


def test_an_error_in_html_is_found():
    made = page(
        "u:q",
        "a:<p>r</p>",
        "u:x",
        f'a:<div class="red"><p>{CONTACT}<a href="https://help.openai.com/">help.openai.com</a>.'
        "</p></div>",
    )
    assert [turn.text for turn in clean(made, RULES).turns] == ["q", "r"]


@pytest.mark.parametrize("text", ["\u200b", "\u2800", "\xad", "\ufe0f", "\u3164"])
def test_a_turn_that_shows_nothing_is_empty(text):
    assert cleaned("u:go on", f"a:{text}") == Reason.EMPTY_TURN
    assert cleaned(f"u:{text}", "a:r") == Reason.EMPTY_TURN


@pytest.mark.parametrize(
    "html",
    ["<p>&#8203;</p>", "<p><b>&shy;</b></p>", "&nbsp;", "\u200b", "<p></p>", "<ul><li></ul>"],
)
def test_an_html_answer_that_shows_nothing_is_empty(html):
    assert clean(page("u:q", f"a:{html}"), RULES).reason == Reason.EMPTY_TURN


def test_an_answer_of_a_picture_alone_is_the_picture():
    result = clean(page("u:q", "a:<p><img src='https://x.test/y.png'></p>"), RULES)
    assert result.turns[1].text == "![](https://x.test/y.png)"


@pytest.mark.parametrize("text", ["\U0001f468\u200d\U0001f469", "\u2764\ufe0f", "a\u200bb\u200b"])
def test_invisible_characters_in_a_text_stay(text):
    assert cleaned(f"u:{text}", f"a:{text}") == [f"u:{text}", f"a:{text}"]


@pytest.mark.parametrize(
    ("turn", "blocked"),
    [
        ('a:<p>see <a href="https://openai.com">here</a></p>', False),
        ("a:<p>by <b>OpenAI</b>&nbsp;</p>", True),
        ("a:see [here](https://openai.com/x)", False),
        ("a:see https://openai.com", True),
    ],
)
def test_a_blocked_word_counts_where_a_reader_sees_it(turn, blocked):
    result = clean((page if "<p>" in turn else conversation)("u:q", turn), RULES)
    assert (isinstance(result, Drop) and result.reason == Reason.BLOCKED_WORD) == blocked


def test_rules_that_need_no_conversion_come_before_it():
    broken = page("u:q", "a:openai " + "<div>" * 999)
    assert clean(broken, RULES).reason == Reason.BLOCKED_WORD


def test_a_contaminated_conversation_is_dropped_with_the_question(tmp_path):
    question = "How many legs does an ordinary healthy spider have on each side?"
    file = tmp_path / "question.jsonl"
    file.write_text(json.dumps({"question_id": 7, "text": question}))
    checked = rules(keep_model="any", blocked_words=(), questions=load_questions([str(file)]))
    result = clean(conversation(f"u:Tell me: {question.lower()}", "a:r"), checked)
    assert (result.reason, result.detail) == (Reason.CONTAMINATED, "question:7")


def test_a_blocked_word_is_found_in_linear_time_behind_tags_without_an_end():
    answer = Turn(role="assistant", text="<p>" + "<" * 300_000 + "openai", html=True)
    turns = (Turn(role="user", text="hi"), answer)
    found = blocked_words_rule(["openai"])(Conversation(id="a", source="f", turns=turns))
    assert isinstance(found, Drop)


def test_turns_at_the_ends_without_their_pair_are_left_out_and_counted():
    result = clean(conversation("s:x", "a:hi", "a:there", "u:q", "a:r", "u:bye"), RULES)
    assert [turn.text for turn in result.turns] == ["x", "q", "r"]
    assert result.left_out == (*["answer without a question"] * 2, "question without an answer")
