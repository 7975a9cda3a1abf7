"""DeepSpeed in separate processes: gradients compared with plain PyTorch, and checkpoints."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from ochat_ray.local_cluster import free_port
from ochat_ray.train.loss import pack_scales

pytestmark = pytest.mark.timeout(600)

PROCESS = Path(__file__).with_name("engine_process.py")
# With an eps far above any gradient, AdamW's first step is rate / eps x gradient: with both equal
# the parameters' change is the gradient itself.
GRADIENT = {"learning_rate": 1e4, "eps": 1e4, "max_grad_norm": 1e9}
ADAM = {"learning_rate": 1e-2, "eps": 1e-8}
END = 299


def random_conversations():
    """Seven of 3 to 20 tokens; weights 0, 1 and in between; one has none at all."""
    rng = np.random.default_rng(0)
    made = []
    for number, length in enumerate([3, 20, 7, 11, 5, 13, 4]):
        weights = rng.choice([0.0, 0.1, 1.0], length)
        weights[0] = 0.0
        weights[-1] = 1.0
        if number == 3:
            weights[:] = 0.0
        made.append((rng.integers(1, 290, length).tolist(), weights.tolist()))
    return made


CONVERSATIONS = random_conversations()


@pytest.fixture(scope="module")
def start(tmp_path_factory, model_directory):
    """Run named cases one after the other in new processes, and return their results."""

    def start(world_size, cases):
        folder = tmp_path_factory.mktemp("engine")
        port = free_port()
        task = {
            "port": port,
            "model": str(model_directory),
            "config": {"dtype": "float32", "gradient_checkpointing": False},
            "conversations": CONVERSATIONS,
            "end_of_turn": END,
            "cases": cases,
        }
        (folder / "task.json").write_text(json.dumps(task))
        running = [
            subprocess.Popen(
                [sys.executable, PROCESS, str(rank), str(world_size), folder],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(world_size)
        ]
        outputs = [process.communicate()[0] for process in running]
        codes = [process.returncode for process in running]
        assert codes == [0] * world_size, f"{codes}\n" + "\n".join(outputs)[-6000:]
        # DeepSpeed leaves 69 MB per process there.
        assert not list(Path("/dev/shm").glob(f"deepspeed*_{port}_*"))
        return torch.load(folder / "result.pt", weights_only=True)

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
        **PACKINGS,
        # The second worker has the conversation without weight, then nothing.
        "none on one": {"packs": [[REST[:3], REST[3:]], [[3], []]], "config": GRADIENT},
        "none at all": {"packs": [[[3]], [[]]], "config": GRADIENT},
        "2023": {"packs": PACKS_OF_2023, "config": GRADIENT | {"loss": "openchat-2023"}},
        "chunks": {"max_tokens": 100, "chunk_logits": 900, "config": GRADIENT},
        "frozen 3, whole": whole_run(saved / "frozen 3", FROZEN | {"zero_stage": 3}),
        **of_stages((3,), saved),
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


def test_a_restored_run_is_bit_identical(start, saved, two):
    cases = {dtype: rest_of_run(saved / dtype, ADAM | {"dtype": dtype}) for dtype in DTYPES}
    cases["frozen 3"] = rest_of_run(saved / "frozen 3", FROZEN | {"zero_stage": 3})
    for name, restored in start(2, cases).items():
        undisturbed = two[f"{name}, whole"]
        assert restored["losses"] == undisturbed["losses"][2:]
        assert restored["grad_norms"] == undisturbed["grad_norms"][2:]
        for parameter, tensor in undisturbed["after"].items():
            assert torch.equal(restored["after"][parameter], tensor), parameter


OTHER_STAGES = [
    *(("float32", *stages) for stages in ((3, 2), (3, 1), (2, 3), (1, 3), (1, 2))),
    # ZeRO-1 in bfloat16 uses another optimizer of DeepSpeed, with its own layout.
    *(("bfloat16", *stages) for stages in ((3, 1), (1, 3), (2, 1))),
]


@pytest.fixture(scope="module")
def other_stages(start, saved, two):
    """Results of two processes that resume a checkpoint of two with another ZeRO stage."""
    cases = {
        f"{dtype}, {before} to {after}": rest_of_run(
            saved / name_of(dtype, before),
            other_rates(after) | {"dtype": dtype},
            universal=str(saved / f"universal {dtype} {before}"),
        )
        for dtype, before, after in OTHER_STAGES
    }
    # ZeRO-3 last, since DeepSpeed then changes the creation of modules.
    return start(2, dict(sorted(cases.items(), key=lambda case: case[0].endswith("3"))))


@pytest.mark.parametrize(("dtype", "before", "after"), OTHER_STAGES)
def test_a_run_resumes_with_another_zero_stage(two, other_stages, dtype, before, after):
    undisturbed = two[f"{name_of(dtype, before)}, whole"]
    restored = other_stages[f"{dtype}, {before} to {after}"]
    if dtype == "bfloat16":
        # Two stages round gradients differently, which grows with each step; with a wrong count of
        # AdamW's steps, or without its moments, the second loss is off by a tenth or more.
        assert restored["losses"][:2] == pytest.approx(undisturbed["losses"][2:4], rel=5e-2)
        return
    assert restored["losses"] == pytest.approx(undisturbed["losses"][2:], rel=1e-4)
    for name, tensor in undisturbed["after"].items():
        assert torch.allclose(restored["after"][name], tensor, atol=1e-3), name


@pytest.mark.parametrize("world_size", ["one", "three"])
@pytest.mark.parametrize("name", ["stage 2", "stage 3", "frozen 3"])
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


def test_scales_by_hand():
    weights = [[2.0, 1.0], [0.0, 1.0]]
    assert pack_scales(weights) == [[0.25, 0.25], [0.25, 0.25]]
    assert pack_scales(weights, "openchat-2023") == [[1 / 6, 1 / 3], [0.0, 1 / 3]]
    assert pack_scales([[0.0], [0.0]]) == [[0.0], [0.0]]
    assert pack_scales([[0.0], [0.0]], "openchat-2023") == [[0.0], [0.0]]
