"""Templates as they are found beside a tokenizer, and as an export of it applies them."""

import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ochat_ray.errors import UserError
from ochat_ray.schema import Turn
from ochat_ray.tokenization.chat_tokenizer import (
    load_chat_tokenizer,
    own_template,
    read_template,
    settings_of,
)
from ochat_ray.tokenization.exported_tokenizer import export_tokenizer
from ochat_ray.tokenization.messages import Chat

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MESSAGES = [{"role": "user", "content": "hi"}]
CHAT = Chat([Turn(role="user", text="hi")])


@pytest.fixture
def base(tmp_path):
    """Write a base's tokenizer with a template; return its directory."""

    def write(source, eos="</s>"):
        from tokenizers import decoders

        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        backend = Tokenizer(models.BPE({token: n for n, token in enumerate(alphabet)}, []))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.decoder = decoders.ByteLevel()
        backend.add_special_tokens(["<s>", "</s>", "<|im_start|>", "<|im_end|>"])
        plain = PreTrainedTokenizerFast(
            tokenizer_object=backend, bos_token="<s>", eos_token=eos, chat_template=source
        )
        plain.save_pretrained(tmp_path / "base")
        return tmp_path / "base"

    return write


def as_exported(base, tmp_path, arguments):
    """Return the exported tokenizer's directory, and the ids of training."""
    settings = settings_of(str(base), own_template(str(base)), arguments)
    tokenizer = load_chat_tokenizer(str(base), settings)
    export_tokenizer(tokenizer, "chat").save_pretrained(tmp_path / "export")
    return tmp_path / "export", tokenizer.chat.ids(CHAT, add_generation_prompt=True), settings


@pytest.mark.parametrize("eos", ["</s>", "<|im_end|>", None])
@pytest.mark.parametrize("start", ["{{ eos_token }}", "{{ eos_token is defined }}", "\n \n", ""])
@pytest.mark.parametrize(
    "arguments", [{}, {"style": {"a": [None, True, 1.5, 'é\n"%}🙂']}, "eager": False}]
)
def test_an_export_has_the_ids_of_training_everywhere(base, tmp_path, eos, start, arguments):
    """In an export `eos_token` is the end of turn, and nobody else knows the arguments."""
    source = f"{start}{{{{ style }}}}{{% if eager is not false %}}e{{% endif %}}{CHATML}"
    found = base(source, eos)
    plain = AutoTokenizer.from_pretrained(found).apply_chat_template(
        MESSAGES, add_generation_prompt=True, return_dict=False, **arguments
    )
    export, trained, settings = as_exported(found, tmp_path, arguments)
    opened = AutoTokenizer.from_pretrained(export)
    assert opened.eos_token == "<|im_end|>"
    assert trained == plain
    assert plain == opened.apply_chat_template(
        MESSAGES, add_generation_prompt=True, return_dict=False
    )
    for again in (None, settings, settings_of(str(export), own_template(str(export)), arguments)):
        served = load_chat_tokenizer(str(export), again).chat
        assert served.ids(CHAT, add_generation_prompt=True) == plain
    assert again == settings
    # A request may still set another value.
    assert "e<|im_start|>" in opened.apply_chat_template(MESSAGES, tokenize=False, eager=True)


def test_templates_of_which_transformers_chooses_one_are_rejected(base):
    """With tools it takes `tool_use`, and otherwise `default`."""
    found = base(CHATML)
    assert own_template(str(found)) == CHATML
    (found / "additional_chat_templates").mkdir()
    (found / "additional_chat_templates/tool_use.jinja").write_text("x")
    with pytest.raises(UserError, match=r"several chat templates \(default, tool_use\)"):
        own_template(str(found))


@pytest.mark.parametrize("template", [{"a": 1}, [{"x": 1}], [1], 5])
def test_a_damaged_template_is_one_line(base, template):
    found = base(CHATML)
    (found / "chat_template.jinja").unlink()
    config = json.loads((found / "tokenizer_config.json").read_bytes())
    written = json.dumps(config | {"chat_template": template})
    (found / "tokenizer_config.json").write_text(written)
    with pytest.raises(UserError, match=r"the chat template at .* cannot be read"):
        own_template(str(found))


def test_a_template_in_other_characters_is_one_line(base):
    found = base(CHATML)
    (found / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"the chat template at .* cannot be read"):
        own_template(str(found))


def test_a_byte_order_mark_is_no_part_of_a_template(tmp_path):
    path = tmp_path / "a.jinja"
    path.write_bytes(b"\xef\xbb\xbf" + CHATML.encode())
    assert read_template(str(path)) == CHATML
