"""Data for training."""

import pytest

from ochat_ray.tokenizer import load_tokenizer, tokenizer_digest
from tests.token_tables import write_data


@pytest.fixture(scope="session")
def data(tmp_path_factory, model_directory):
    """The run directory of a prepare that kept 24 conversations."""
    tokenizer = load_tokenizer(str(model_directory))
    return write_data(tmp_path_factory.mktemp("data"), tokenizer, tokenizer_digest(tokenizer))
