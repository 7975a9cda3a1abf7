"""What `jobs/prepare.py` can be told: labels, their weights and conditions."""

from dataclasses import replace

import pytest

from ochat_ray.data.config import PrepareConfig
from ochat_ray.errors import UserError
from ochat_ray.schema import ModelClass

OPENCHAT = PrepareConfig.for_recipe("openchat")


@pytest.mark.parametrize(
    ("changes", "labels"),
    [
        ({}, ["gpt-4"]),
        ({"keep_model": "Model: Default (GPT-3.5)"}, ["gpt-3.5"]),
        ({"keep_model": "any"}, []),
        ({"keep_model": "any", "class_weights": "GPT-3.5=0.1"}, ["gpt-3.5"]),
        ({"class_weights": "GPT-4=1,GPT-3.5=0.1"}, ["gpt-4", "gpt-3.5"]),
    ],
)
def test_labels_with_a_weight_replace_the_one_to_keep(changes, labels):
    config = replace(OPENCHAT, **changes)
    assert config.check().kept_labels == labels


def test_classes_have_a_weight_and_a_condition():
    weights, conditions = "GPT-4=1.0, GPT-4 (browsing)=1e-1,gpt 3.5=2", "Model: GPT-4=GPT4"
    config = replace(OPENCHAT, class_weights=weights, conditions=conditions)
    assert config.check().classes == {
        "gpt-4": ModelClass(weight=1.0, condition="GPT4"),
        "gpt-4 (browsing)": ModelClass(weight=0.1),
        "gpt-3.5": ModelClass(weight=2.0),
    }


@pytest.mark.parametrize("keep_model", ["GPT-4", "any"])
def test_conditions_need_no_weights(keep_model):
    config = replace(OPENCHAT, keep_model=keep_model, conditions="GPT-4=GPT4")
    assert config.check().classes == {"gpt-4": ModelClass(weight=1.0, condition="GPT4")}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        *(
            (
                {"class_weights": f"GPT-4={weight}"},
                "weight of gpt-4 must be a finite number above 0",
            )
            for weight in ("0", "-1", "nan", "inf", "1e-46", "1e39", "x")
        ),
        *(
            ({"class_weights": text}, "--class-weights is LABEL=VALUE,LABEL=VALUE")
            for text in ("GPT-4", "=1", "GPT-4=", "GPT-4=1,", " ")
        ),
        ({"class_weights": "GPT-4=1,Model: GPT-4=2"}, "--class-weights names gpt-4 twice"),
        ({"conditions": "GPT-4=a,gpt 4=b"}, "--conditions names gpt-4 twice"),
        ({"class_weights": "GPT-4=1", "keep_model": "GPT-3.5"}, "leave out --keep-model"),
        ({"conditions": "GPT-3.5=GPT3"}, r"names gpt-3.5, which is not kept \(gpt-4\)"),
        (
            {"class_weights": "GPT-4=1,Claude=1", "conditions": "GPT-3.5=GPT3"},
            r"names gpt-3.5, which is not kept \(gpt-4, claude\)",
        ),
    ],
)
def test_weights_and_conditions_that_cannot_be_are_one_clear_line(changes, line):
    with pytest.raises(UserError, match=line) as error:
        replace(OPENCHAT, **changes).check()
    assert len(str(error.value).splitlines()) == 1


def test_a_run_with_other_weights_or_conditions_is_another_run():
    weights = {"class_weights": "GPT-4=1,GPT-3.5=0.1"}
    configs = [
        OPENCHAT,
        replace(OPENCHAT, **weights),
        replace(OPENCHAT, class_weights="GPT-4=1,GPT-3.5=0.2"),
        replace(OPENCHAT, **weights, conditions="GPT-4=GPT4"),
    ]
    identities = [config.check().identity for config in configs]
    assert all(identities.count(identity) == 1 for identity in identities)
    same = replace(OPENCHAT, keep_model="any", class_weights="gpt 3.5=0.1, GPT-4=1.0")
    assert same.check().identity == identities[1]


def test_noise_rules_are_switched_off_by_name():
    config = replace(OPENCHAT, keep_noise=("pager", "network_error"))
    assert set(OPENCHAT.check().noise_rules) - set(config.check().noise_rules) == {
        "pager",
        "network_error",
    }
    assert replace(OPENCHAT, keep_noise=("all",)).check().noise_rules == []
    assert config.check().identity != OPENCHAT.check().identity
    with pytest.raises(
        UserError, match="--keep-noise: there is no rule 'pagers'; choose of pager,"
    ):
        replace(OPENCHAT, keep_noise=("pagers",)).check()


def test_a_run_with_another_choice_for_long_conversations_is_another_run():
    assert OPENCHAT.long == "cut"
    identities = [
        replace(OPENCHAT, long=long).check().identity for long in ("cut", "split", "drop")
    ]
    assert all(identities.count(identity) == 1 for identity in identities)


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        ("dialog", "--columns is NAME=COLUMN,NAME=COLUMN; 'dialog' is not of this form"),
        ("conversations=", "'conversations=' is not of this form"),
        ("conversations=a,", "'' is not of this form"),
        ("turns=a", "--columns: unknown name 'turns'; names are conversations, role, text"),
        ("role=a,role=b", "--columns names role twice"),
        ("role=a,text=a", "--columns gives the column 'a' to two names"),
    ],
)
def test_columns_that_cannot_be_read_are_one_line(columns, line):
    with pytest.raises(UserError) as error:
        replace(OPENCHAT, columns=columns).check()
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_columns_are_read():
    config = replace(OPENCHAT, columns="conversations=dialog, role = speaker,text=a=b")
    assert config.check().columns == {"conversations": "dialog", "role": "speaker", "text": "a=b"}


@pytest.mark.parametrize(
    "change",
    [{"answers": "html"}, {"columns": "id=key"}, {"branches": "all"}, {"merge_turns": True}],
)
def test_another_way_to_read_is_another_run(change):
    assert replace(OPENCHAT, **change).check().identity != OPENCHAT.check().identity


@pytest.mark.parametrize("change", [{"output": ""}, {"input": ("a.json", "")}])
def test_an_empty_path_is_not_the_current_directory(change):
    (name,) = change
    config = replace(OPENCHAT, **{"input": ("a.json",), **change})
    with pytest.raises(UserError, match=f"--{name} is empty; give a value, or leave it out"):
        config.check()


@pytest.mark.parametrize("arguments", ["[1]", "{", '{"a": NaN}', '{"a": [-Infinity]}'])
def test_template_arguments_are_a_json_object(arguments):
    """A NaN would have another value in the exported template, where its name means nothing."""
    config = replace(PrepareConfig.for_recipe("chat"), template_arguments=arguments)
    with pytest.raises(UserError, match="--template-arguments is a JSON object"):
        config.check()
