"""Data for training, and a run without faults that others are compared with."""

import pytest

from ochat_ray.tokenization.tokenizer import load_tokenizer, tokenizer_digest
from ochat_ray.train.config import TrainConfig
from tests.token_tables import write_data


@pytest.fixture(scope="session")
def data(tmp_path_factory, model_directory):
    """Run directory of prepare with 24 conversations."""
    tokenizer = load_tokenizer(str(model_directory))
    return write_data(tmp_path_factory.mktemp("data"), tokenizer, tokenizer_digest(tokenizer))


@pytest.fixture(scope="session")
def configured(data, model_directory):
    """Factory of configurations that differ from the undisturbed run's in output and `changes`.

    Six epochs of 20 conversations, three per step.
    """

    def configured(output, **changes):
        return TrainConfig(
            **{
                "recipe": "demo", "data": data, "model": str(model_directory),
                "output": str(output), "num_workers": 2, "epochs": 6, "sequences_per_step": 3,
                "max_tokens": 128, "learning_rate": 1e-3, "dtype": "float32",
                "checkpoint_every": 7,
            }
            | changes
        )  # fmt: skip

    return configured


@pytest.fixture(scope="session")
def undisturbed(shared_ray, configured, tmp_path_factory):
    """Configuration and result of the undisturbed run."""
    from ochat_ray.train.launch import train

    shared_ray()
    config = configured(tmp_path_factory.mktemp("undisturbed") / "model")
    return config, train(config)
