"""QLoRA: adapters on a base that is quantized to NF4, compared with transformers, peft, PyTorch."""

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from ochat_ray.serve.adapter_files import AdapterRules, base_shapes, read_adapter
from tests.train.engines import CONVERSATIONS, GRADIENT, peft_run, run_engines

pytestmark = pytest.mark.timeout(600)

QLORA = GRADIENT | {"learning_rate": 1e3, "lora": "r=4,alpha=8,quantize=nf4"}
QDORA = QLORA | {"lora": "r=4,alpha=8,rslora=true,dora=true,quantize=nf4"}
RUN = {"learning_rate": 1e-2, "lora": "r=4,alpha=8,quantize=nf4", "weight_decay": 0.5}
ZERO_3 = {"zero_stage": 3, "deepspeed": "a file"}
RELEASE = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
"""ZeRO-3's options that release also small parameters after each layer."""
IN_PEFT = {
    "lora": {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"},
    "dora": {
        "r": 4, "lora_alpha": 8, "target_modules": "all-linear", "use_rslora": True,
        "use_dora": True,
    },
}  # fmt: skip


def quantized_base(directory):
    """Return the base as transformers quantizes it; in training mode, like the engine."""
    settings = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    )
    base = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, quantization_config=settings, device_map="cpu"
    )
    return base.train()  # in evaluation, bitsandbytes may round on a CPU


def case(config, **more):
    override = RELEASE if "deepspeed" in config else None
    return {"max_tokens": 20, "steps": 3, "config": config, "deepspeed": override, **more}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return tmp_path_factory.mktemp("saved")


@pytest.fixture(scope="module")
def two(tmp_path_factory, model_directory, saved):
    """Results of two processes, by the case's name."""

    def exported(name, config, **more):
        return case(config, export=str(saved / f"{name}, export"), **more)

    checkpoint = {"steps": 5, "save_after": 2, "save": str(saved / "run 3")}
    in_bfloat16 = RUN | {"zero_stage": 2, "dtype": "bfloat16"}
    cases = {
        "lora 1": case(QLORA | {"zero_stage": 1}),
        "lora 2": case(QLORA | {"zero_stage": 2}),
        "dora 2": exported("dora 2", QDORA | {"zero_stage": 2, "merge": True}),
        "adapter 2": exported("adapter 2", in_bfloat16),
        "merge 2": exported("merge 2", in_bfloat16 | {"merge": True}),
        "lora 3": exported("lora 3", QLORA | ZERO_3 | {"merge": True}),
        "run 3": exported("run 3", RUN | ZERO_3, **checkpoint),
    }
    return run_engines(tmp_path_factory.mktemp("two"), model_directory, 2, cases)


def test_the_quantized_weights_are_those_of_transformers(two, model_directory):
    """Bit by bit, for all linear layers but the output head; the other weights are the base's."""
    reference = dict(quantized_base(model_directory).named_parameters())
    packed = 0
    for name in ("lora 2", "lora 3"):
        for parameter, tensor in two[name]["before"].items():
            if ".lora_" not in parameter:
                expected = reference[parameter.replace(".base_layer", "")]
                assert torch.equal(tensor, expected.float()), (name, parameter)
                packed += expected.dtype == torch.uint8
    assert packed == 2 * 2 * 7


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_adapters_learn_as_with_peft_and_plain_pytorch(two, model_directory, kind):
    """Losses, gradient norms and adapters of three steps, each after an evaluation, with packs."""
    names = [name for name in two if name.startswith(kind)]
    first = two[names[0]]["before"]
    base = quantized_base(model_directory)
    losses, norms, trained = peft_run(base, IN_PEFT[kind], first, 3)
    assert losses[2] < losses[0]
    for name in names:
        outcome = two[name]
        assert outcome["eval_loss"] == pytest.approx(losses[0], rel=1e-5), name
        assert outcome["losses"] == pytest.approx(losses, rel=1e-4), name
        assert outcome["grad_norms"] == pytest.approx(norms, rel=1e-3), name
        for parameter, before in outcome["before"].items():
            assert torch.equal(before, first[parameter]), (name, parameter)
            if parameter in trained:
                expected = trained[parameter].detach()
                difference = (outcome["after"][parameter] - expected).norm()
                assert difference < 2e-3 * (expected - before).norm(), (name, parameter)
            else:  # the base is bit-identical
                assert torch.equal(outcome["after"][parameter], before), (name, parameter)


@pytest.fixture(scope="module")
def resumed(tmp_path_factory, model_directory, saved, two):
    """Results of two processes and of one that resume a checkpoint of two."""

    load = {"load": str(saved / "run 3")}
    convert = load | {"universal": str(saved / "universal")}
    one = {
        "one, ZeRO-2": case(RUN | {"zero_stage": 2}, **convert),
        "one": case(RUN | ZERO_3, **convert),
    }
    folder = tmp_path_factory.mktemp
    return {
        **run_engines(folder("again"), model_directory, 2, {"two": case(RUN | ZERO_3, **load)}),
        **run_engines(folder("one"), model_directory, 1, one),
    }


def test_a_resumed_run_has_the_same_base_and_continues(two, resumed):
    """Bit by bit with two workers; with one, also with another ZeRO stage, up to rounding."""
    undisturbed = two["run 3"]
    assert resumed["two"]["losses"] == undisturbed["losses"][2:]
    for name, tensor in undisturbed["after"].items():
        assert torch.equal(resumed["two"]["after"][name], tensor), name
    for name in ("one", "one, ZeRO-2"):
        assert resumed[name]["losses"] == pytest.approx(undisturbed["losses"][2:], rel=1e-4)


def test_a_checkpoint_contains_only_adapters(saved, two):
    files = list((saved / "run 3").rglob("*model_states.pt"))
    assert files
    for file in files:
        state = torch.load(file, weights_only=False)
        names = [*state["module"], *(state.get("frozen_param_fragments") or ())]
        assert names
        assert all(".lora_" in name for name in names), names


IDS, WEIGHTS = CONVERSATIONS[1]
POSITIONS = [i for i, w in enumerate(WEIGHTS[1:]) if w > 0]


def logits_of(model):
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0, POSITIONS].float()


def difference(logits, expected):
    """Median over positions of the relative difference; softmax ignores a constant."""
    centred, other = (t - t.mean(-1, keepdim=True) for t in (expected, logits))
    return ((other - centred).norm(dim=-1) / centred.norm(dim=-1)).median().item()


def test_an_exported_adapter_computes_the_same_on_the_quantized_base(saved, two, model_directory):
    """On the unquantized base it computes something else; the export measures how different."""
    outcome, directory = two["run 3"], saved / "run 3, export"
    model = PeftModel.from_pretrained(quantized_base(model_directory), directory).train()
    assert torch.allclose(logits_of(model), outcome["logits"], atol=1e-4)
    exported = outcome["export"]
    assert exported["export_difference"] < 1e-5
    # In bfloat16, of a base in float32.
    assert two["adapter 2"]["export"]["export_difference"] < 4e-2
    base = AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32)
    unquantized = difference(
        logits_of(PeftModel.from_pretrained(base, directory)), outcome["logits"]
    )
    assert unquantized > 1e-2
    assert exported["adapter"]["unquantized_difference"] == pytest.approx(unquantized, rel=1e-3)
    rules = AdapterRules(
        base=base_shapes(model_directory), base_names=(str(model_directory),), most_rank=4
    )
    assert len(read_adapter(directory, rules).layers) == 2 * 7  # the server accepts it


@pytest.mark.parametrize("name", ["dora 2", "merge 2", "lora 3"])
def test_a_merged_export_is_the_model_that_was_trained(saved, two, model_directory, name):
    """Dequantized weights and adapters, rounded to bfloat16."""
    outcome, directory = two[name], saved / f"{name}, export"
    model = AutoModelForCausalLM.from_pretrained(directory)
    assert model.dtype == torch.bfloat16
    assert "quantization_config" not in (directory / "config.json").read_text()
    exported = outcome["export"]
    assert exported["export_difference"] == exported["merged_adapter"]["difference"] < 3e-2
    assert difference(logits_of(model.float()), outcome["logits"]) < 3e-2
    if name == "lora 3":
        otherwise = AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32)
        quantized = quantized_base(model_directory)
        for path, layer in quantized.named_modules():
            if isinstance(layer, Linear4bit):
                a, b = (outcome["after"][f"{path}.lora_{x}.default.weight"] for x in "AB")
                weight = dequantize_4bit(layer.weight, layer.weight.quant_state) + 2 * b @ a
                merged = model.get_submodule(path).weight
                assert torch.allclose(merged, weight, rtol=2e-2, atol=2e-2), path
                with torch.no_grad():
                    otherwise.get_submodule(path).weight += 2 * b @ a
        # Merged into the unquantized base, it is another model.
        assert difference(logits_of(otherwise), outcome["logits"]) > 5e-2
