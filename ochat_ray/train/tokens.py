"""Random access to a split's token table."""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc

from ochat_ray.errors import UserError
from ochat_ray.run_dir import Split, open_tokens
from ochat_ray.train.batch import Batch, make_batch


class TokenTable:
    """One split, in an order that does not depend on how it lies in files.

    `lengths` is int64 of shape (rows,). Conversations of more than `max_length` tokens are left
    out.

    Raises:
        UserError: there is no conversation.
    """

    def __init__(self, data: str, split: Split, max_length: int | None = None) -> None:
        table = open_tokens(data, split)
        if max_length is not None:
            table = table.filter(pc.less_equal(table["length"], max_length))
        if table.num_rows == 0:
            raise UserError(
                f"no conversation of the {split} split at {data} has at most {max_length} tokens; "
                "raise --max-length"
            )
        order = pc.sort_indices(
            table.select(["id", "length"]), sort_keys=[("id", "ascending"), ("length", "ascending")]
        )
        self._order = order.to_numpy()
        self._table = table
        self.lengths = table["length"].to_numpy().astype(np.int64)[self._order]

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Input ids (int32) and loss weights (float32) of one conversation."""
        row = int(self._order[index])
        return (
            self._table["input_ids"][row].values.to_numpy(),
            self._table["loss_weights"][row].values.to_numpy(),
        )

    def id(self, index: int) -> str:
        """The conversation's id."""
        return self._table["id"][int(self._order[index])].as_py()

    def batch(self, pack: list[int]) -> Batch:
        """The tensors of one pack."""
        return make_batch([self.row(index) for index in pack])

    def sample(self, max_tokens: int | None, seed: int) -> np.ndarray:
        """Indices of a random sample of at most `max_tokens` tokens; all of them when None."""
        if max_tokens is None:
            return np.arange(self.lengths.size)
        order = np.random.default_rng(seed).permutation(self.lengths.size)
        fits = np.cumsum(self.lengths[order]) <= max_tokens
        fits[0] = True  # never empty
        return np.sort(order[fits])
