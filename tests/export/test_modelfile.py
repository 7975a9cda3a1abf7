"""Ollama's Modelfile: pieces of chat templates, and their translation."""

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ochat_ray.export.modelfile import modelfile, ollama_template, pieces_of

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    + CHATML
)
JOINED = (  # as Gemma
    "<bos>{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}"
    "{% endif %}{% for m in rest %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}"
    "\n{{ first if loop.first else '' }}{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
DROPS_REASONING = (  # as Qwen 3
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% if loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content.split('</think>')[-1] "
    "| trim }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LAST_ONLY = (  # the question's text depends on whether it is the last
    "{% for m in messages %}[{{ m.role }}{{ '!' if loop.last else '' }}]{{ m.content }}"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ refuse() }}{% endif %}" + CHATML


def refuse():
    raise ValueError("no system messages")


def render_of(source):
    template = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(
        source
    )

    def render(messages, add_generation_prompt):
        turns = [{"role": role, "content": text} for role, text in messages]
        return template.render(
            messages=turns, add_generation_prompt=add_generation_prompt, refuse=refuse
        )

    return render


@pytest.mark.parametrize("source", [CHATML, DEFAULT_SYSTEM, JOINED, NO_SYSTEM])
def test_pieces_render_other_conversations_as_the_template_does(source):
    pieces = pieces_of(render_of(source))
    assert not pieces.drops_reasoning
    for messages in (
        [("user", "What?")],
        [("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "c")],
        [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e")],
    ):
        if source is NO_SYSTEM and messages[0][0] == "system":
            continue
        assert pieces.render(messages) == render_of(source)(messages, True)


def test_the_pieces_of_chatml():
    pieces = pieces_of(render_of(CHATML))
    assert pieces.begin == ""
    assert pieces.before == {
        role: f"<|im_start|>{role}\n" for role in ("user", "assistant", "system")
    }
    assert set(pieces.after.values()) == {"<|im_end|>\n"}
    assert pieces.answer == "<|im_start|>assistant\n"


def test_a_template_without_system_messages_has_no_text_for_them():
    assert "system" not in pieces_of(render_of(NO_SYSTEM)).before
    assert 'eq .Role "system"' not in ollama_template(pieces_of(render_of(NO_SYSTEM)))


def test_a_template_that_is_no_text_around_messages_is_not_translated():
    assert pieces_of(render_of(LAST_ONLY)) is None
    assert 'TEMPLATE """' not in modelfile("model.gguf", ["</s>"], None)


def test_dropped_reasoning_is_a_comment():
    pieces = pieces_of(render_of(DROPS_REASONING))
    assert pieces.drops_reasoning
    assert "# The chat template drops the reasoning" in modelfile("model.gguf", [], pieces)


def test_ollama_s_template_has_texts_as_literals_and_no_line_break_of_its_own():
    pieces = pieces_of(render_of(DEFAULT_SYSTEM))
    assert ollama_template(pieces).splitlines() == [
        r'{{- if not .System }}{{ "<|im_start|>system\nBe kind.<|im_end|>\n" }}{{ end }}',
        "{{- range $i, $_ := .Messages }}",
        r'{{- if eq .Role "system" }}{{ "<|im_start|>system\n" }}{{ .Content }}'
        r'{{ "<|im_end|>\n" }}',
        r'{{- else if eq .Role "user" }}{{ "<|im_start|>user\n" }}{{ .Content }}'
        r'{{ "<|im_end|>\n" }}',
        r'{{- else if eq .Role "assistant" }}{{ "<|im_start|>assistant\n" }}{{ .Content }}'
        r'{{ "<|im_end|>\n" }}',
        "{{- end }}",
        "{{- end }}",
        r'{{- "<|im_start|>assistant\n" }}',
    ]


def test_bos_that_ollama_adds_is_not_repeated():
    pieces = pieces_of(render_of(JOINED))
    assert pieces.begin == "<bos>"
    assert pieces.joins_system
    written = ollama_template(pieces, bos="<bos>")
    assert "<bos>" not in written
    assert "{{ if not (and $.System (eq $i 1)) }}" in written
    assert "<bos>" in ollama_template(pieces)


def test_bos_that_begins_every_message_stays():
    pieces = pieces_of(render_of(DEFAULT_SYSTEM))
    written = ollama_template(pieces, bos="")
    assert r'{{ "<|im_start|>user\n" }}' in written
    assert r'{{ "user' not in ollama_template(pieces, bos="<|im_start|>")
    without_begin = pieces_of(render_of(CHATML))
    assert 'TEMPLATE """' not in modelfile("m", [], without_begin, bos="<|im_start|>")


def test_a_modelfile_names_the_file_and_the_stops():
    text = modelfile("model.gguf", ["<|im_end|>", 'a"b'], pieces_of(render_of(CHATML)), dated=True)
    assert text.splitlines()[1:5] == [
        "FROM ./model.gguf",
        'PARAMETER stop "<|im_end|>"',
        r'PARAMETER stop "a\"b"',
        "# The chat template writes the date: here that of the export.",
    ]
    assert text.count('"""') == 2
