"""Exports in transformers 4 and in llama.cpp, in the environments of `make venv-exports`."""

import pytest

from benchmarks.export_families import (
    FAMILIES,
    byte_level_tokenizer,
    cell,
    environments,
    export_tiny,
    one_process_group,
    opened_by,
    tiny_config,
)

pytestmark = pytest.mark.slow

EVERYWHERE = (
    "Llama", "Llama, tied", "Llama, linear", "Llama, dynamic", "Llama, YaRN", "Mixtral",
    "Qwen 3 MoE", "GPT-NeoX", "GPT-2",
)  # fmt: skip
IN_TRANSFORMERS = ("Phi", "GPT-J", "Gemma 3", "DeepSeek V3", "Falcon", "StableLM")
ELSEWHERE = [name for name in environments() if name != "transformers 5"]


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """Exports by the name of their family."""
    path = tmp_path_factory.mktemp("exports")
    result = {}
    with one_process_group(path):
        for family in (*EVERYWHERE, *IN_TRANSFORMERS):
            result[family] = path / str(len(result))
            result[family].mkdir()
            export_tiny(tiny_config(family), result[family])
    return result


def test_there_are_environments():
    if len(ELSEWHERE) < 3:
        pytest.skip(f"only {ELSEWHERE} are there: make venv-exports says why")


@pytest.mark.parametrize("name", ELSEWHERE)
def test_an_export_has_the_same_logits_and_end_of_turn_elsewhere(name, directories):
    python, script = environments()[name]
    families = EVERYWHERE if name == "GGUF" else (*EVERYWHERE, *IN_TRANSFORMERS)
    end_of_turn = byte_level_tokenizer().convert_tokens_to_ids("<|end_of_turn|>")
    results = opened_by(python, script, [directories[family] for family in families])
    cells = {f: cell(result, end_of_turn) for f, result in zip(families, results, strict=True)}
    assert cells == dict.fromkeys(families, "equal")


def test_every_family_of_this_test_is_in_the_table():
    assert {*EVERYWHERE, *IN_TRANSFORMERS} <= FAMILIES.keys()
