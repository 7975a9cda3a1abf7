"""Token tables as jobs/prepare.py writes them, made here."""

import pyarrow as pa

from ochat_ray.run_dir import RunDir
from ochat_ray.schema import TOKENS
from ochat_ray.template import encode


def write_data(directory, tokenizer, digest, changes=(), model_type="openchat"):
    """Token tables of 24 conversations that all have the same short answer."""
    run = RunDir.open(str(directory))
    tokens = {}
    for split, count in (("train", 20), ("eval", 4)):
        rows = []
        for i in range(count):
            turns = [
                {"role": "user", "text": f"{split} {i} {'very ' * (i % 5)}well?"},
                {"role": "assistant", "text": "fine"},
            ]
            ids, weights = encode(turns, model_type, tokenizer)
            rows.append(
                {"id": f"{i:02d}", "input_ids": ids, "loss_weights": weights, "length": len(ids)}
            )
        table = pa.Table.from_pylist(rows, TOKENS)
        name = f"tokens/{split}/0.arrow"
        with run.writing(name) as stream, pa.ipc.new_file(stream, TOKENS) as writer:
            writer.write_table(table)
        tokens[split] = {"rows": count}
    manifest = {
        "model_type": model_type, "context_length": 128, "digest": "d", "tokens": tokens,
        "tokenizer": digest, "tokenizer_path": "somewhere",
    }  # fmt: skip
    run.write_json("manifest.json", manifest | dict(changes))
    return str(directory)
