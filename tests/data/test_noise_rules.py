"""Text that extensions and providers left in turns, beside what people write themselves."""

import re
from pathlib import Path

import pytest

from ochat_ray.data.noise_rules import RULES, provider_error, without_noise
from ochat_ray.schema import Turn

DOCUMENT = Path(__file__).parents[2] / "docs/data-format.md"
ROLES = {"s": "system", "u": "user", "a": "assistant"}
LANGUAGES = "Bulgarian Chinese English (UK) Ukrainian"
TRANSLATE = "\n \n \n \n 지금 번역하기"


def noise(*turns, names=RULES):
    cleaned, found = without_noise(
        [Turn(role=ROLES[turn[0]], text=turn[2:]) for turn in turns], names
    )
    return [f"{turn.role[0]}:{turn.text}" for turn in cleaned], found


@pytest.mark.parametrize(
    ("typed", "kept", "rules"),
    [
        ("continueShare Prompt", "continue", ["share_prompt"]),
        ("Why is that?Share Prompt", "Why is that?", ["share_prompt"]),
        ('say "yes"Share Prompt', 'say "yes"', ["share_prompt"]),
        ("(see above)Share Prompt", "(see above)", ["share_prompt"]),
        ("continueShare Prompt \n", "continue", ["share_prompt"]),
        ("more지금 번역하기", "more", ["translate_now"]),
        (f"go on  \n{TRANSLATE}", "go on  \n", ["translate_now"]),
        ("go on\n \n \n \n Translate now", "go on", ["translate_now"]),
        ("In English.Share Prompt지금 번역하기", "In English.", ["translate_now", "share_prompt"]),
        (f"q{TRANSLATE}\n CopyCopy HTMLRead Aloud7 chars | 2 words", "q",
         ["copy_bar", "translate_now"]),
        ("q?CopyCopy HTMLRead Aloud⏹️ Stop7 chars | 2 words", "q?", ["copy_bar"]),
        ("make it funny,Save & SubmitCancel", "make it funny,", ["save_submit"]),
        ("Save & SubmitCancel", "", ["save_submit"]),
        ("/helpCopy to Clipboard", "/help", ["copy_to_clipboard"]),
        (f"cont 1 words 4 char Copy Text Copy HTML Export PDF Text-Speech Plagiarism Checker Search"
         f" Trend {LANGUAGES}", "cont", ["language_bar"]),
        ("Thanks.Regenerate response", "Thanks.", ["regenerate_response"]),
        ("Thanks.Save to Notion", "Thanks.", ["save_to_notion"]),
        ("fine.Copy12 chars / 34 words", "fine.", ["counter"]),
        ("2 / 3What?Share Prompt", "What?", ["pager", "share_prompt"]),
    ],
)  # fmt: skip
def test_tails_are_taken_off_where_they_are_glued(typed, kept, rules):
    assert noise(f"u:{typed}", "a:r") == ([f"u:{kept}", "a:r"], rules)


@pytest.mark.parametrize(
    "typed",
    [
        "What does the button Share Prompt do?",
        "Explain the button Share Prompt",
        "Translate:\nShare Prompt",
        "Translate to French:Share Prompt",
        'What is "Share Prompt"',
        'What is "Share Prompt',
        "什么是Share Prompt",
        "Share Prompt",
        "이 문장을 지금 번역하기",
        "Do it and Translate now",
        "<button>Copy to Clipboard",
        "The label is Copy12 chars / 34 words",
        "sharePrompt",
        "a Share Prompt is",
    ],
)
def test_words_that_a_person_writes_stay(typed):
    assert noise(f"u:{typed}", f"a:{typed}") == ([f"u:{typed}", f"a:{typed}"], [])


def test_another_turn_shows_that_the_extension_was_there():
    turns = ["u:add it Share Prompt", "a:r", "u:why?Share Prompt", "a:r", "u:Share Prompt", "a:r"]
    kept = ["u:add it ", "a:r", "u:why?", "a:r", "u:Share Prompt", "a:r"]
    assert noise(*turns) == (kept, ["share_prompt", "share_prompt"])


def test_a_possible_pager_counts_beside_a_certain_one():
    turns, found = noise("u:1 / 2go on please", "a:2 / 2Here it is")
    assert (turns, found) == (["u:go on please", "a:Here it is"], ["pager", "pager"])
    alone = ["u:1 / 2go on please", "a:Here it is"]
    assert noise(*alone) == (alone, [])
    formula = ["u:1 / 2x = 4", "a:1 / 2Here it is"]
    assert noise(*formula) == (["u:1 / 2x = 4", "a:Here it is"], ["pager"])


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        ("```\npythonCopy code\nprint()\n```", "```python\nprint()\n```"),
        ("```python\nCopy code\nprint()\n```", "```python\nprint()\n```"),
        ("```pythonCopy code\nprint()\n```", "```python\nprint()\n```"),
        ("```\nsqlCopy codeFROM x\n```", "```sql\nFROM x\n```"),
        ("a\n\n```\nCopy code\nx\n```\n\nb", "a\n\n```\nx\n```\n\nb"),
        ("```\nCopy code\n```", None),
        ("```\nx\n```\nCopy code\ny", None),
        ("```html\n<b>Copy code</b>\n```", None),
        ("Click Copy code.", None),
    ],
)
def test_the_label_of_a_code_block_is_taken_out(answer, kept):
    found = [] if kept is None else ["copy_code"]
    assert noise("u:q", f"a:{answer}") == (["u:q", f"a:{answer if kept is None else kept}"], found)
    assert noise(f"u:{answer}", "a:r") == ([f"u:{answer}", "a:r"], [])


def test_a_note_of_where_the_chat_is_from_is_no_system_turn():
    note = "s:*This conversation is shared from [**Somewhere**](https://somewhere.test)*"
    assert noise(note, "u:q", "a:r") == (["u:q", "a:r"], ["shared_from"])
    prompt = note + " Be kind."
    assert noise(prompt, "u:q", "a:r") == ([prompt, "u:q", "a:r"], [])


HELP = "please contact us through our help center at help.openai.com"
ERRORS = [
    ("Too many requests in 1 hour. Try again later.", "too_many_requests"),
    ("!Too many requests", "too_many_requests"),
    ("Too many requests, please slow down", "too_many_requests"),
    (f"An error occurred. If this issue persists {HELP}.", "error_occurred"),
    (f"An error occurred. Either the engine you requested does not exist or there was another "
     f"issue processing your request. If this issue persists {HELP}.", "error_occurred"),
    ("Something went wrong", "something_went_wrong"),
    (f"Something went wrong. If this issue persists {HELP}.", "something_went_wrong"),
    ("network error", "network_error"),
    ("The message you submitted was too long, please reload the conversation and submit something "
     "shorter.", "message_too_long"),
    ("Only one message at a time. Please allow any other responses to complete before sending "
     "another message, or wait one minute.", "one_message_at_a_time"),
    ("Hmm...something seems to have gone wrong. Maybe try me again in a little bit.",
     "something_gone_wrong"),
    ("There was an error generating a response", "generating_error"),
    ("Error in body stream", "stream_error"),
    ("Conversation not found", "conversation_missing"),
    ("The server had an error while processing your request. Sorry about that!", "server_error"),
    ("That model is currently overloaded with other requests. You can retry your request, or "
     "contact us through our help center at help.openai.com if the error persists.", "overloaded"),
    ("You exceeded your current quota, please check your plan and billing details.", "usage_limit"),
    ("ChatGPT is at capacity right now", "at_capacity"),
    ("This model's maximum context length is 4097 tokens. However, your messages resulted in 5000 "
     "tokens.", "context_exceeded"),
    ("Our systems have detected unusual activity from your system. Please try again later.",
     "unusual_activity"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "name"), ERRORS)
def test_an_answer_that_is_an_error_message_is_one(text, name):
    assert provider_error(Turn(role="assistant", text=f" {text}\n")) == name
    html = f"<div><p>{text.replace(chr(39), '&#39;')}</p></div>"
    assert provider_error(Turn(role="assistant", text=html, html=True)) == name
    assert provider_error(Turn(role="assistant", text=f"{text}\n\nnetwork error")) == name
    assert provider_error(Turn(role="user", text=text)) is None
    assert provider_error(Turn(role="assistant", text=text), ["pager"]) is None


@pytest.mark.parametrize("text", [text for text, _ in ERRORS])
def test_an_answer_that_quotes_an_error_message_is_none(text):
    for quote in (f"It says: {text}", f"{text}\n\nThis means that", f'"{text}"', f"- {text}"):
        assert provider_error(Turn(role="assistant", text=quote)) is None


@pytest.mark.parametrize(
    "text",
    ["Too many requests", "Network error", "Sorry", "Hmm", "An error occurred.", "Oops!", ""],
)
def test_short_answers_that_a_model_gives_are_none(text):
    assert provider_error(Turn(role="assistant", text=text)) is None


def test_every_error_rule_has_an_example_here():
    assert {name for _, name in ERRORS} == set(RULES[RULES.index("too_many_requests") :])


def test_the_document_lists_every_rule():
    table = re.search(r"\| rule \| [^\n]+\n\|[- |]+\|\n((?:\|.*\n)+)", DOCUMENT.read_text())
    names = [re.search("`([a-z_]+)`", row)[1] for row in table[1].splitlines()]
    assert names == list(RULES)


def test_so_many_tails_that_each_copy_would_take_hours_are_left():
    turn = Turn(role="user", text="x" + "Share Prompt" * 300)
    (cleaned,), found = without_noise([turn])
    assert found == ["share_prompt"] * 100
    assert cleaned.text == "x" + "Share Prompt" * 200
