"""Cleaning: each rule, the conversation beside what becomes of it."""

import json
from dataclasses import replace

import pytest

from ochat_ray.data.clean import clean, normalize_model, rules
from ochat_ray.data.decontaminate import load_questions
from ochat_ray.schema import Conversation, Drop, Reason, Turn

RULES = rules(keep_model="any", blocked_words=("openai",))
ROLES = {"s": "system", "u": "user", "a": "assistant"}


def conversation(*turns, model=None):
    return Conversation(
        id="x",
        source="f",
        model=model,
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


@pytest.mark.parametrize(
    ("label", "model"),
    [
        ("Model: GPT-4", "gpt-4"),
        (" model:  gpt 4 ", "gpt-4"),
        ("GPT-4-0314", "gpt-4"),
        ("GPT-4 (Default)", "gpt-4"),
        ("Model: GPT-4 (browsing)", "gpt-4 (browsing)"),
        ("GPT-4 Browsing", "gpt-4 (browsing)"),
        ("gpt-4-32k", "gpt-4-32k"),
        ("Model: Default (GPT-3.5)", "gpt-3.5"),
        ("Legacy (GPT-3.5)", "gpt-3.5"),
        ("Turbo (Default for free users)", "gpt-3.5"),
        ("gpt-3.5-turbo-0301", "gpt-3.5"),
        ("text-davinci-002-render-sha", "gpt-3.5"),
        ("Claude 2", "claude 2"),
        ("", ""),
        (None, ""),
    ],
)
def test_a_model_label_has_one_spelling(label, model):
    assert normalize_model(label) == model


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
    assert "characters of visible text come back" in dropped.detail


def test_fidelity_of_text_is_weighted_by_the_length_of_the_answers():
    lossy = "a:<p>x <math><msup><mi>y</mi></msup></math></p>"  # 2 of its 4 characters come back
    whole = f"a:<p>{'z' * 95}</p>"  # 96 with the line's end
    assert clean(page("u:q", lossy, "u:q", whole), RULES).text_fidelity == 0.98


def test_a_pager_and_a_counter_are_no_lost_text():
    html = "a:2 / 3<div><p>Hello</p></div><div><button>Copy</button>5 chars / 1 words</div>"
    result = clean(page("u:q", html), RULES)
    assert (result.turns[1].text, result.text_fidelity, result.pagers) == ("Hello", 1.0, 1)


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        ('<div class="min-h-[20px] whitespace-pre-wrap">a &lt;b&gt;\n c</div>', "a <b>\n c"),
        ('<div class="x"><div class="whitespace-pre-wrap">a</div></div>', "a"),
        ('<div class="whitespace-pre-wrap"><b>a</b></div>', None),
        ('<div class="box">a</div>', None),
        ('<div class="whitespace-pre-wrap">a</div> and why?', None),
        ("2 / 3What is this?", "What is this?"),
        ("3 / 2What is this?", None),
        ("2 / 3 of them", None),
        ("1 / 2", None),
        ("see 2 / 3What", None),
    ],
)
def test_a_user_s_turn_is_as_typed_save_for_the_box_and_the_pager(typed, kept):
    result = clean(conversation(f"u:{typed}", "a:r"), RULES)
    assert result.turns[0].text == (typed if kept is None else kept)


def test_pagers_are_counted():
    assert clean(page("u:1 / 2q", "a:2 / 2<p>r</p>"), RULES).pagers == 2


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
