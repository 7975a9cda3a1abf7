"""A tiny random Llama with a byte-level tokenizer, made here: no download; and a local Ray."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

# Ray's files are this run's own: what another Ray of this machine left of itself, or is, would be
# joined by those that start here. The path is short, since Ray has sockets below it.
os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="ochat-", dir="/tmp")
os.environ.pop("RAY_ADDRESS", None)
# A process for each training that watches for announced losses of hosts, of which there are none.
os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"


SHARED_CPUS = 3

TOGETHER = (
    (
        "tests/train/test_faults.py",
        "tests/train/test_launch.py",
        "tests/train/test_lora_run.py",
        "tests/train/test_more_steps.py",
        "tests/train/test_s3.py",
    ),
    (
        "tests/serve/test_serving.py",
        "tests/serve/test_serving_faults.py",
        "tests/serve/test_temporary.py",
    ),
    (
        "tests/cluster/test_head_with_redis.py",
        "tests/cluster/test_operations.py",
        "tests/cluster/test_prepare_faults.py",
    ),
)
"""Groups of files that run in one process: they share an undisturbed training, Ray Serve, or a
cluster. The cluster of test_cluster.py runs beside the last."""

ALONE = ("tests/serve/test_vllm_engine.py",)
"""Files whose tests start an engine each."""


def pytest_configure():
    gc.disable()  # until all tests are imported
    try:
        from hypothesis import settings
    except ImportError:  # as in .venv-vllm
        return
    # Its deadline of 200 ms per example depends on what else the machine does.
    settings.register_profile("no deadline", deadline=None)
    settings.load_profile("no deadline")


def pytest_collection_finish():
    """Exclude what was imported from garbage collection, a sixth of the fast tests' CPU time."""
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_unconfigure():
    shutil.rmtree(os.environ["RAY_TMPDIR"], ignore_errors=True)


def pytest_collection_modifyitems(items):
    """Run long tests first, so that two processes end at about the same time."""
    check_marks_are_found(items)
    together = {file for files in TOGETHER for file in files}
    items.sort(
        key=lambda item: (
            item.nodeid.split("::")[0] not in together,
            item.get_closest_marker("ray") is None,
        )
    )


def check_marks_are_found(items):
    """Check that the Makefile finds each test that it looks for by the name of its mark."""
    for mark in ("slow", "browser", "end_to_end"):
        for path in {item.path for item in items if item.get_closest_marker(mark)}:
            if mark not in path.read_text():
                raise pytest.UsageError(f"{path} has a test with the mark {mark}: it must name it")


@pytest.hookimpl(optionalhook=True)  # without xdist it is no hook
def pytest_xdist_make_scheduler(config, log):
    """Schedule each file, or each group of TOGETHER, on one process, in collection order.

    Tests of ALONE share nothing, and are scheduled one by one.
    """
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            if file in ALONE:
                return nodeid
            return next((files[0] for files in TOGETHER if file in files), file)

    config.option.loadscopereorder = False
    return Scheduling(config, log)


TRAINING_TEXT = ["Human: Assistant: hello there, how are you?", "naïve café 你好 🙂", "0123456789"]


def byte_level_tokenizer() -> Tokenizer:
    """BPE over all 256 bytes, with a few merges, BOS `<s>` = 0 and the end-of-turn token last."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TRAINING_TEXT, trainer)
    tokenizer.add_special_tokens(["<|end_of_turn|>"])
    return tokenizer


@pytest.fixture(scope="session")
def tokenizer():
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=byte_level_tokenizer(), bos_token="<s>")


@pytest.fixture(scope="session")
def tokenizer_directory(tokenizer, tmp_path_factory) -> str:
    directory = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(directory)
    return str(directory)


def write_tiny_llama(tokenizer, directory: Path, heads: int) -> Path:
    """A two-layer Llama, float32, as train would write it; half as many key-value heads."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    end_of_turn = tokenizer.convert_tokens_to_ids("<|end_of_turn|>")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        max_position_embeddings=4096,
        bos_token_id=0,
        eos_token_id=end_of_turn,
        # Wide enough for logits that differ: with the usual 0.02 every answer is one token.
        initializer_range=0.5,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def model_directory(tokenizer, tmp_path_factory) -> Path:
    return write_tiny_llama(tokenizer, tmp_path_factory.mktemp("served") / "tiny", heads=4)


@pytest.fixture(scope="session")
def two_headed_model(tokenizer, tmp_path_factory) -> Path:
    """Its heads are 32 wide, the least that vLLM has on a CPU."""
    return write_tiny_llama(tokenizer, tmp_path_factory.mktemp("two-headed") / "tiny", heads=2)


@pytest.fixture(scope="session")
def s3_server():
    """Environment variables that point S3 clients to a server of its protocol on loopback."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    yield {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    server.stop()


@pytest.fixture(scope="session")
def shared_ray(s3_server):
    """Function that connects this process to the Ray of three CPUs that all its tests share."""
    import ray
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.items():  # workers inherit it
            patch.setenv(name, value)
        cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": SHARED_CPUS,
                "include_dashboard": False,
                # It sends drivers what workers print; none here reads that.
                "include_log_monitor": False,
            },
        )

    def join(**options):
        if not ray.is_initialized():
            ray.init(address=cluster.address, log_to_driver=False, **options)

    yield join
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def local_ray(shared_ray):
    """Connect to the Ray of three CPUs that all tests of this process share."""
    shared_ray()


@pytest.fixture
def no_ray():
    """Disconnect this process from Ray, for tests that start or join one of their own."""
    import ray

    ray.shutdown()
    yield
    ray.shutdown()


@pytest.fixture
def s3(s3_server, monkeypatch):
    """A client of a server of S3's protocol with an empty "bucket"; `local_ray` knows it, too."""
    import boto3
    import httpx

    for name, value in s3_server.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="bucket")
    yield client
    httpx.post(f"{s3_server['AWS_ENDPOINT_URL']}/moto-api/reset").raise_for_status()
