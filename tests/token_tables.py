"""Token tables as jobs/prepare.py writes them, made here."""

import pyarrow as pa

from ochat_ray.data.verify import summarize_files
from ochat_ray.run_dir import RunDir
from ochat_ray.schema import TOKENS
from ochat_ray.tokenization.template import encode


def write_data(directory, tokenizer, digest, changes=(), model_type="openchat"):
    """Token tables of 24 conversations that all have the same short answer."""
    run = RunDir.open(str(directory))
    names = []
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
        names.append(name)
    files = summarize_files(run, names)
    tokens = {
        name.split("/")[1]: {key: file[key] for key in ("rows", "tokens", "supervised_tokens")}
        for name, file in files.items()
    }
    content = sum(int(file["digest"], 16) for file in files.values()) % 2**256
    manifest = {
        "model_type": model_type, "context_length": 128, "tokens": tokens, "files": files,
        "digest": f"{content:064x}", "counts": {"kept": 24, "dropped": {}},
        "tokenizer": digest, "tokenizer_path": "somewhere",
    }  # fmt: skip
    run.write_json("manifest.json", manifest | dict(changes))
    return str(directory)
