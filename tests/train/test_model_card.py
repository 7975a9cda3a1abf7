"""Model card and origin of an exported model."""

import subprocess

import pytest
import yaml

from ochat_ray.train.model_card import base_name, licence_of, model_card, write_card
from ochat_ray.train.origin import commit, origin_of

EVALUATION = {"loss": 2.5, "end_of_turn": 0.25, "weight": 1.0}
RESULT = {
    "recipe": "chat",
    "model_type": "chat",
    "template": {"source": "{{ messages }}", "arguments": {"enable_thinking": False}},
    "context_length": 4096,
    "conversations": 170,
    "data_digest": "ab" * 32,
    "step": 33,
    "world_size": 2,
    "eval_before": EVALUATION,
    "eval_after": EVALUATION | {"loss": 1.75, "end_of_turn": 0.995},
    "commit": None,
    "versions": {"torch": "2.13.0", "ray": "2.60.0"},
    "config": {
        "model": "owner/base-1B",
        "learning_rate": 2e-5,
        "schedule": "cosine",
        "loss": "exact",
    },
}


def header_of(card):
    _, header, text = card.split("---\n", 2)
    return yaml.safe_load(header), text


def test_the_card_has_the_hub_s_header_and_the_run_s_figures():
    header, text = header_of(model_card(RESULT, licence={"license": "apache-2.0"}))
    assert header == {
        "base_model": "owner/base-1B",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["ochat-ray", "chat", "recipe-chat"],
        "license": "apache-2.0",
    }
    for line in (
        "# A chat model fine-tuned from `owner/base-1B`",
        '- template: `chat template in chat_template.jinja {"enable_thinking": false}`',
        f"- data digest: `{'ab' * 32}`",
        "- held-out loss: `2.5000 before, 1.7500 after training`",
        "- versions: `torch 2.13.0, ray 2.60.0`",
        "The base model's licence is `apache-2.0`.",
    ):
        assert line in text, line


def test_the_card_of_adapters_loads_their_base():
    """`base_model_name_or_path` of the files may be a path on the training's machine."""
    card = model_card(RESULT | {"adapter": {}}, licence={})
    assert "AutoModelForCausalLM.from_pretrained(BASE)\nmodel.load_adapter(" in card
    assert 'model.generation_config = GenerationConfig.from_pretrained(".")' in card
    assert "ochat-ray serve model=BASE adapters=PARENT_OF_THIS_DIRECTORY`" in card
    of_2023 = RESULT | {"adapter": {}, "template": None, "model_type": "opencoder"}
    assert "PARENT_OF_THIS_DIRECTORY model_type=opencoder`" in model_card(of_2023, licence={})
    assert 'from_pretrained(".")\nmessages' in model_card(RESULT, licence={})


def test_the_card_names_the_quantization_of_the_base_however_it_was_written():
    adapter = {"lora": "r=4, quantize = nf4", "unquantized_difference": 0.25}
    text = model_card(RESULT | {"adapter": adapter}, licence={})
    assert "- base in training: `quantized to NF4" in text
    assert "- difference of logits on the unquantized base: `25.0%`" in text
    assert "NF4" not in model_card(RESULT | {"adapter": {"lora": "r=4"}}, licence={})


def test_a_base_without_a_licence_is_not_given_one():
    header, text = header_of(model_card(RESULT, licence={}))
    assert "license" not in header
    assert "names no licence" in text


@pytest.mark.parametrize(
    "name",
    [
        "`**bold**` [x](http://evil)",
        "a\n---\nlicense: mit\n# Title",
        "x: {y: [z",
        "<script>alert(1)</script>",
        "a\u2028b\x1b[31m",
        "'quoted\"",
    ],
)
def test_text_from_outside_adds_no_field_and_no_markup(name):
    config = RESULT["config"] | {"model": name}
    card = model_card(RESULT | {"config": config}, licence={"license": name})
    header, text = header_of(card)
    assert set(header) == {"base_model", "library_name", "pipeline_tag", "tags", "license"}
    assert [line for line in card.splitlines() if line == "---"] == ["---", "---"]
    spans = text.split("```", 1)[0].split("`")
    assert not any(mark in part for part in spans[::2] for mark in ("[", "<", "**", "\n# T"))
    assert "\x1b" not in card


@pytest.mark.parametrize(
    ("model", "shown"),
    [
        ("owner/model-1B", "owner/model-1B"),
        ("/home/me/models/base", "base"),
        ("s3://bucket/models/base/", "base"),
    ],
)
def test_of_a_path_only_its_last_part_is_shown(model, shown):
    assert base_name(model) == shown


@pytest.mark.parametrize(
    ("readme", "config", "licence"),
    [
        ("---\nlicense: mit\ntags: [a]\n---\n# Model", "", {"license": "mit"}),
        (
            "---\nlicense: other\nlicense_name: own\nlicense_link: LICENSE\n---\n",
            "",
            {"license": "other", "license_name": "own", "license_link": "LICENSE"},
        ),
        ("# No header", '{"license": "apache-2.0"}', {"license": "apache-2.0"}),
        ("---\nlicense: [a, b]\n---\n", "{}", {}),
        ("---\n: : {\n---\n", "{", {}),
        ("---\nlicense: mit", "[]", {}),
    ],
)
def test_the_licence_is_that_of_the_base_s_own_files(tmp_path, readme, config, licence):
    (tmp_path / "README.md").write_text(readme)
    (tmp_path / "config.json").write_text(config)
    assert licence_of(str(tmp_path)) == licence


def test_a_base_without_files_has_no_licence(tmp_path):
    assert licence_of(str(tmp_path)) == {}
    assert licence_of("owner/never-fetched") == {}


def test_the_card_is_written_into_the_directory(tmp_path):
    write_card(tmp_path, RESULT)
    assert (tmp_path / "README.md").read_text() == model_card(RESULT, licence={})


def test_the_origin_has_the_data_and_the_versions():
    manifest = {"model_type": "openchat", "context_length": 8, "tokenizer": "t", "digest": "d"}
    origin = origin_of(manifest | {"counts": {}})
    assert origin["data_digest"] == "d"
    assert {"model_type", "context_length", "tokenizer"} < set(origin)
    assert "template" not in origin
    assert {"ochat-ray", "torch", "ray"} <= set(origin["versions"])


def test_the_commit_is_that_of_a_checkout_of_the_package(tmp_path):
    def git(*arguments):
        identity = ("-c", "user.name=x", "-c", "user.email=x@example.com")
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    assert commit(package) is None
    git("init", "-q")
    assert commit(package) is None  # installed in the checkout of another project
    git("add", ".")
    git("commit", "-qm", "x")
    assert commit(package) == git("rev-parse", "HEAD")
    (package / "__init__.py").write_text("changed")
    assert commit(package) == git("rev-parse", "HEAD") + "+changes"
