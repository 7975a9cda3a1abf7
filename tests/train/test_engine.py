"""DeepSpeed in separate processes: gradients compared with plain PyTorch, and checkpoints."""

import json

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from ochat_ray.train.loss import pack_scales
from tests.train.engines import CONVERSATIONS, GRADIENT, peft_run, run_engines

pytestmark = pytest.mark.timeout(600)

ADAM = {"learning_rate": 1e-2, "eps": 1e-8}


@pytest.fixture(scope="module")
def start(tmp_path_factory, model_directory):
    """Run named cases one after the other in new processes, and return their results."""

    def start(world_size, cases):
        return run_engines(tmp_path_factory.mktemp("engine"), model_directory, world_size, cases)

    return start


@pytest.fixture(scope="module")
def reference(model_directory):
    """Loss, gradient and gradient norm of all conversations, one at a time, in plain PyTorch."""
    model = AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32)
    nll, weight = torch.zeros(()), 0.0
    for ids, weights in CONVERSATIONS:
        log_probabilities = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        taken = log_probabilities.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
        nll = nll - (taken * torch.tensor(weights[1:])).sum()
        weight += sum(weights[1:])
    loss = nll / weight
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    norm = torch.stack([g.norm() for g in gradients.values()]).norm().item()
    return loss.item(), gradients, norm


def gradient(outcome):
    return {name: outcome["before"][name] - outcome["after"][name] for name in outcome["before"]}


PACKINGS = {f"packs of {room}": {"max_tokens": room, "config": GRADIENT} for room in (20, 31, 100)}
REST = [0, 1, 2, 4, 5, 6]  # those with a weight
PACKS_OF_2023 = [[[0, 1]], [[2, 4, 5, 6]]]
DTYPES = ("float32", "bfloat16")
STAGES = (2, 3)


# Steps of a tenth of the gradient: the second one also has a gradient of A, whose B is 0 before.
LORA = GRADIENT | {"learning_rate": 1e3, "lora": "r=4,alpha=8"}
DORA = LORA | {"lora": "r=4,alpha=8,targets=q_proj+down_proj,rslora=true,dora=true"}
ADAPTERS = {
    "lora 1": LORA | {"zero_stage": 1},
    "lora 2": LORA | {"zero_stage": 2},
    "dora 2": DORA | {"zero_stage": 2},
    "lora 3": LORA,
    "dora 3": DORA,
}
LORA_RUN = ADAM | {"lora": "r=4,alpha=8", "weight_decay": 0.5}


def adapter_cases(saved, stages):
    """Three steps of each kind of adapter, and complete runs, which save and export."""
    chunks = {"chunk_logits": 900} if 2 in stages else {}
    cases = {
        name: {
            "max_tokens": 100 if name == "lora 2" else 20,
            **(chunks if name == "lora 2" else {}),
            "steps": 3,
            "config": config,
        }
        for name, config in ADAPTERS.items()
        if int(name[-1]) in stages
    }
    for stage in stages - {1}:
        merge = {"merge": True, "dtype": "bfloat16"} if stage == 2 else {}
        cases[f"adapters {stage}, whole"] = {
            "max_tokens": 31,
            "steps": 5,
            "save_after": 2,
            "save": str(saved / f"adapters {stage}"),
            "export": str(saved / f"adapters {stage}, export"),
            "config": LORA_RUN | {"zero_stage": stage} | merge,
        }
    cases[f"merge {max(stages)}"] = {
        "max_tokens": 31,
        "steps": 2,
        "export": str(saved / f"merge {max(stages)}"),
        "config": DORA | {"zero_stage": max(stages), "merge": True},
    }
    return cases


CHUNKS_2 = GRADIENT | {"zero_stage": 2}
FROZEN = ADAM | {"freeze": ["embed_tokens", r"layers\.0\."], "weight_decay": 0.5}


def other_rates(zero_stage):
    return ADAM | {"zero_stage": zero_stage, "embedding_learning_rate": 3e-2}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folder of the checkpoints that two processes write and others load."""
    return tmp_path_factory.mktemp("saved")


def whole_run(folder, config):
    return {"max_tokens": 31, "steps": 5, "save_after": 2, "save": str(folder), "config": config}


def name_of(dtype, stage):
    return f"stage {stage}" if dtype == "float32" else f"stage {stage} in {dtype}"


def of_stages(stages, saved):
    """Complete runs with each ZeRO stage in both dtypes, which save a checkpoint."""
    return {
        f"{name_of(dtype, stage)}, whole": whole_run(
            saved / name_of(dtype, stage), other_rates(stage) | {"dtype": dtype}
        )
        for stage in stages
        for dtype in DTYPES
    }


def rest_of_run(folder, config, **changes):
    return {"max_tokens": 31, "steps": 3, "load": str(folder), "config": config, **changes}


@pytest.fixture(scope="module")
def two(start, saved):
    """Results of two processes, by the case's name."""
    cases = {
        # Before ZeRO-3, with which DeepSpeed changes the creation of modules.
        **{
            f"stage {stage}": {"max_tokens": 20, "config": GRADIENT | {"zero_stage": stage}}
            for stage in (1, 2)
        },
        "chunks, stage 2": {"max_tokens": 100, "chunk_logits": 900, "config": CHUNKS_2},
        "frozen 2, whole": whole_run(saved / "frozen 2", FROZEN | {"zero_stage": 2}),
        **of_stages((1, 2), saved),
        **adapter_cases(saved, {1, 2}),
        **PACKINGS,
        # The second worker has the conversation without weight, then nothing.
        "none on one": {"packs": [[REST[:3], REST[3:]], [[3], []]], "config": GRADIENT},
        "none at all": {"packs": [[[3]], [[]]], "config": GRADIENT},
        "2023": {"packs": PACKS_OF_2023, "config": GRADIENT | {"loss": "openchat-2023"}},
        "chunks": {"max_tokens": 100, "chunk_logits": 900, "config": GRADIENT},
        "frozen 3, whole": whole_run(saved / "frozen 3", FROZEN | {"zero_stage": 3}),
        **of_stages((3,), saved),
        **adapter_cases(saved, {3}),
        **{f"{d}, whole": whole_run(saved / d, ADAM | {"dtype": d}) for d in DTYPES},
    }
    return start(2, cases)


@pytest.fixture(scope="module")
def one(start, saved, two):
    """Results of one process; two of the cases resume from checkpoints of two processes."""
    vocabulary = {"max_tokens": 100, "vocabulary": 290, "config": GRADIENT}
    return start(1, {**from_two(saved), **PACKINGS, "vocabulary": vocabulary})


@pytest.fixture(scope="module")
def three(start, saved, one):
    """Results of three processes that resume from the checkpoints of two, converted by `one`."""
    return start(3, from_two(saved))


def from_two(saved):
    return {
        f"{name}, rest": rest_of_run(
            saved / name, config, universal=str(saved / f"universal-{name}")
        )
        for name, config in (
            ("stage 2", other_rates(2)),
            ("stage 3", other_rates(3)),
            ("frozen 3", FROZEN | {"zero_stage": 3}),
            ("adapters 3", LORA_RUN | {"zero_stage": 3}),
        )
    }


@pytest.mark.parametrize("world_size", ["one", "two"])
def test_loss_and_gradient_equal_plain_pytorch_for_every_packing(request, reference, world_size):
    loss, gradients, norm = reference
    outcomes = request.getfixturevalue(world_size)
    for name in PACKINGS:
        outcome = outcomes[name]
        assert outcome["losses"] == [pytest.approx(loss, rel=1e-5)]
        assert outcome["eval_loss"] == pytest.approx(loss, rel=1e-5)
        assert outcome["grad_norms"] == [pytest.approx(norm, rel=1e-4)]
        for parameter, computed in gradient(outcome).items():
            assert torch.allclose(computed, gradients[parameter], atol=2e-4 * norm), parameter


@pytest.mark.parametrize("zero_stage", [1, 2])
def test_the_other_zero_stages_give_the_same_gradient(two, reference, zero_stage):
    loss, gradients, norm = reference
    outcome = two[f"stage {zero_stage}"]
    assert outcome["losses"] == [pytest.approx(loss, rel=1e-5)]
    for name, computed in gradient(outcome).items():
        assert torch.allclose(computed, gradients[name], atol=2e-4 * norm), name


def test_packs_without_weight_or_conversation_add_nothing_and_do_not_hang(two, reference):
    loss, _, _ = reference
    assert two["none on one"]["losses"] == [pytest.approx(loss, rel=1e-5)]
    nothing = two["none at all"]
    assert nothing["losses"] == [0.0]
    assert nothing["grad_norms"] == [0.0]
    assert all(not change.any() for change in gradient(nothing).values())


def mean_nll(model, conversations, vocabulary=None):
    """Return the losses of their weighted tokens, one conversation at a time, in plain PyTorch."""
    nll = weight = 0.0
    for ids, weights in conversations:
        with torch.no_grad():
            scores = model(torch.tensor([ids])).logits[0, :-1, :vocabulary].log_softmax(-1)
        taken = scores.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
        nll -= (taken * torch.tensor(weights[1:])).sum().item()
        weight += sum(weights[1:])
    return nll / weight


def test_the_loss_of_2023_is_the_mean_of_the_packs_means(two, model_directory):
    model = AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32)
    means = [mean_nll(model, [CONVERSATIONS[i] for i in pack]) for (pack,) in PACKS_OF_2023]
    assert two["2023"]["losses"] == [pytest.approx(sum(means) / 2, rel=1e-5)]


def test_ids_beyond_the_vocabulary_are_left_out_of_the_loss(one, model_directory):
    model = AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32)
    expected = mean_nll(model, CONVERSATIONS, vocabulary=290)
    assert one["vocabulary"]["losses"] == [pytest.approx(expected, rel=1e-5)]


OTHER_STAGES = [
    *(("float32", *stages) for stages in ((3, 2), (3, 1), (2, 3), (1, 3), (1, 2))),
    # ZeRO-1 in bfloat16 uses another optimizer of DeepSpeed, with its own layout.
    *(("bfloat16", *stages) for stages in ((3, 1), (1, 3), (2, 1))),
]


@pytest.fixture(scope="module")
def resumed(start, saved, two):
    """Results of two processes that resume checkpoints of two, also with another ZeRO stage."""
    same = {dtype: rest_of_run(saved / dtype, ADAM | {"dtype": dtype}) for dtype in DTYPES}
    same["frozen 3"] = rest_of_run(saved / "frozen 3", FROZEN | {"zero_stage": 3})
    same["adapters 3"] = rest_of_run(saved / "adapters 3", LORA_RUN | {"zero_stage": 3})
    others = {
        f"{dtype}, {before} to {after}": rest_of_run(
            saved / name_of(dtype, before),
            other_rates(after) | {"dtype": dtype},
            universal=str(saved / f"universal {dtype} {before}"),
        )
        for dtype, before, after in OTHER_STAGES
    }
    # ZeRO-3 last, since DeepSpeed then changes the creation of modules.
    others = dict(sorted(others.items(), key=lambda case: case[0].endswith("3")))
    return start(2, others | same)


@pytest.mark.parametrize("name", [*DTYPES, "frozen 3", "adapters 3"])
def test_a_restored_run_is_bit_identical(resumed, two, name):
    restored, undisturbed = resumed[name], two[f"{name}, whole"]
    assert restored["losses"] == undisturbed["losses"][2:]
    assert restored["grad_norms"] == undisturbed["grad_norms"][2:]
    for parameter, tensor in undisturbed["after"].items():
        assert torch.equal(restored["after"][parameter], tensor), parameter


@pytest.mark.parametrize(("dtype", "before", "after"), OTHER_STAGES)
def test_a_run_resumes_with_another_zero_stage(two, resumed, dtype, before, after):
    undisturbed = two[f"{name_of(dtype, before)}, whole"]
    restored = resumed[f"{dtype}, {before} to {after}"]
    if dtype == "bfloat16":
        # Two stages round gradients differently, which grows with each step; with a wrong count of
        # AdamW's steps, or without its moments, the second loss is off by a tenth or more.
        assert restored["losses"][:2] == pytest.approx(undisturbed["losses"][2:4], rel=5e-2)
        return
    assert restored["losses"] == pytest.approx(undisturbed["losses"][2:], rel=1e-4)
    for name, tensor in undisturbed["after"].items():
        assert torch.allclose(restored["after"][name], tensor, atol=1e-3), name


@pytest.mark.parametrize("world_size", ["one", "three"])
@pytest.mark.parametrize("name", ["stage 2", "stage 3", "frozen 3", "adapters 3"])
def test_a_run_resumes_with_another_number_of_workers(request, two, name, world_size):
    """With different learning rates and weight decays of the parameter groups."""
    restored = request.getfixturevalue(world_size)[f"{name}, rest"]
    undisturbed = two[f"{name}, whole"]
    assert restored["losses"] == pytest.approx(undisturbed["losses"][2:], rel=1e-4)


@pytest.mark.parametrize("name", ["chunks", "chunks, stage 2"])
def test_the_loss_in_chunks_has_the_same_gradient(two, reference, name):
    loss, gradients, norm = reference
    outcome = two[name]
    assert outcome["in_chunks"]
    assert outcome["losses"] == [pytest.approx(loss, rel=1e-5)]
    assert outcome["eval_loss"] == pytest.approx(loss, rel=1e-5)
    for parameter, computed in gradient(outcome).items():
        assert torch.allclose(computed, gradients[parameter], atol=2e-4 * norm), parameter


@pytest.mark.parametrize("stage", STAGES)
def test_frozen_parameters_do_not_change_and_the_others_do(two, stage):
    outcome = two[f"frozen {stage}, whole"]
    assert outcome["losses"][-1] < outcome["losses"][0]
    for name, before in outcome["before"].items():
        frozen = "embed_tokens" in name or "layers.0." in name
        assert torch.equal(outcome["after"][name], before) is frozen, name


LORA_IN_PEFT = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
DORA_IN_PEFT = {
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["q_proj", "down_proj"],
    "use_rslora": True,
    "use_dora": True,
}


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_adapters_learn_as_with_peft_and_plain_pytorch(two, model_directory, kind):
    """Losses, gradient norms and adapters of three steps, for each ZeRO stage, with packs."""
    options = LORA_IN_PEFT if kind == "lora" else DORA_IN_PEFT
    names = [name for name in ADAPTERS if name.startswith(kind)]
    first = two[names[0]]["before"]
    base = AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32)
    losses, norms, trained = peft_run(base, options, first, 3)
    assert losses[2] < losses[0]
    for name in names:
        outcome = two[name]
        assert all(torch.equal(outcome["before"][n], first[n]) for n in first), name
        assert outcome["losses"] == pytest.approx(losses, rel=1e-4), name
        assert outcome["grad_norms"] == pytest.approx(norms, rel=1e-3), name
        for parameter, before in outcome["before"].items():
            if parameter in trained:
                expected = trained[parameter].detach()
                changed = (expected - before).norm()
                assert changed > 0, parameter
                difference = (outcome["after"][parameter] - expected).norm()
                assert difference < 2e-3 * changed, (name, parameter)
            else:  # the base is bit-identical
                assert torch.equal(outcome["after"][parameter], before), parameter


def test_a_checkpoint_of_adapters_contains_no_weights_of_the_base(saved, two):
    for stage in STAGES:
        folder = saved / f"adapters {stage}"
        assert sum(p.stat().st_size for p in folder.rglob("*.pt")) < 500_000
        for file in folder.rglob("*model_states.pt"):
            state = torch.load(file, weights_only=False)
            names = [*state["module"], *(state.get("frozen_param_fragments") or ())]
            assert names
            assert all(".lora_" in name for name in names)


def test_exported_adapters_open_with_peft_and_compute_the_engines_logits(
    saved, two, model_directory
):
    directory, outcome = saved / "adapters 3, export", two["adapters 3, whole"]
    base = AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, directory).eval()
    with torch.no_grad():
        logits = model(torch.tensor([CONVERSATIONS[1][0]])).logits[0]
    positions = [i for i, w in enumerate(CONVERSATIONS[1][1][1:]) if w > 0]
    assert torch.allclose(logits[positions], outcome["logits"], atol=1e-4)
    assert outcome["export"]["export_difference"] < 1e-5
    with torch.no_grad(), model.disable_adapter():
        plain = model(torch.tensor([CONVERSATIONS[1][0]])).logits[0]
    assert (logits - plain).norm() > 0.1 * plain.norm()  # the adapters do something
    settings = json.loads((directory / "adapter_config.json").read_text())
    assert settings["peft_type"] == "LORA"
    with safe_open(directory / "adapter_model.safetensors", framework="pt") as file:
        names = set(file.keys())
    written = set(get_peft_model_state_dict(model))
    assert names == written
    trained = sum(t.numel() for n, t in outcome["after"].items() if ".lora_" in n)
    assert outcome["export"]["adapter"]["trained_parameters"] == trained
    assert (directory / "tokenizer.json").exists()
    assert (directory / "chat_template.jinja").exists()


@pytest.mark.parametrize("name", ["adapters 2, whole", "merge 3"])
def test_a_merged_export_is_a_whole_model_that_computes_the_same(saved, two, name):
    """In bfloat16 with ZeRO-2; with ZeRO-3 in float32, whose merge is rounded by the export."""
    outcome = two[name]["export"]
    assert outcome["merged_adapter"]["difference"] < 4e-2
    assert outcome["export_difference"] < (1e-4 if name == "merge 3" else 3e-2)
    folder = "adapters 2, export" if name.startswith("adapters") else name
    model = AutoModelForCausalLM.from_pretrained(saved / folder)
    assert model.dtype == torch.bfloat16
    assert not list((saved / folder).glob("adapter*"))


def test_scales_by_hand():
    weights = [[2.0, 1.0], [0.0, 1.0]]
    assert pack_scales(weights) == [[0.25, 0.25], [0.25, 0.25]]
    assert pack_scales(weights, "openchat-2023") == [[1 / 6, 1 / 3], [0.0, 1 / 3]]
    assert pack_scales([[0.0], [0.0]]) == [[0.0], [0.0]]
    assert pack_scales([[0.0], [0.0]], "openchat-2023") == [[0.0], [0.0]]
