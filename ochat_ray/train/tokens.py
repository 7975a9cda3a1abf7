"""Random access to a split's token table."""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc

from ochat_ray.errors import UserError
from ochat_ray.run_dir import Split, open_tokens
from ochat_ray.train.batch import Batch, make_batch


class TokenTable:
    """Conversations of a split, in an order that does not depend on the files.

    `lengths` are their tokens, int64 of shape (rows,). Conversations of more than `max_length`
    tokens are excluded.

    Raises:
        UserError: there is no conversation.
    """

    def __init__(self, data: str, split: Split, max_length: int | None = None) -> None:
        self._data, self._split = data, split
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

    def check(self, vocabulary: int) -> None:
        """Check ids and weights for the training of a model with `vocabulary` tokens.

        Raises:
            UserError: a conversation is empty, an id is not below `vocabulary`, a weight is
                negative or not finite, or no label has a weight.
        """
        if not self.lengths.all():
            raise self._damaged("has a conversation without tokens")
        weighted = 0
        ids, weights = self._table["input_ids"].chunks, self._table["loss_weights"].chunks
        for id_chunk, weight_chunk in zip(ids, weights, strict=True):
            found = pc.min_max(id_chunk.flatten())
            low, high = found["min"].as_py(), found["max"].as_py()
            if low is not None and not 0 <= low <= high < vocabulary:
                raise self._damaged(
                    f"has the token id {low if low < 0 else high}, but the tokenizer has "
                    f"{vocabulary:,} tokens"
                )
            values = weight_chunk.flatten().to_numpy()
            if not (np.isfinite(values).all() and (values >= 0).all()):
                raise self._damaged("has a loss weight that is negative or not finite")
            offsets = weight_chunk.offsets.to_numpy()
            firsts = (offsets[:-1] - offsets[0])[np.diff(offsets) > 0]
            weighted += int(np.count_nonzero(values)) - int(np.count_nonzero(values[firsts]))
        if not weighted:
            raise self._damaged("has no token with a loss weight")

    def _damaged(self, what: str) -> UserError:
        return UserError(f"the {self._split} split of {self._data} {what}; prepare the data again")

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return input ids (int32) and loss weights (float32) of a conversation."""
        row = int(self._order[index])
        return (
            self._table["input_ids"][row].values.to_numpy(),
            self._table["loss_weights"][row].values.to_numpy(),
        )

    def id(self, index: int) -> str:
        """Return a conversation's id."""
        return self._table["id"][int(self._order[index])].as_py()

    def batch(self, pack: list[int]) -> Batch:
        """Return the tensors of a pack."""
        return make_batch([self.row(index) for index in pack])

    def sample(self, max_tokens: int | None, seed: int) -> np.ndarray:
        """Return indices of a random sample of at most `max_tokens` tokens; None means all."""
        if max_tokens is None:
            return np.arange(self.lengths.size)
        order = np.random.default_rng(seed).permutation(self.lengths.size)
        fits = np.cumsum(self.lengths[order]) <= max_tokens
        fits[0] = True  # never empty
        return np.sort(order[fits])
