"""Reading in tests: one decoded record, or one file with all that is in it."""

from ochat_ray.data.records import ReadOptions, records_of
from ochat_ray.data.sources import read_file
from ochat_ray.schema import Conversation, Drop

TURNS = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]
ITEM = {"id": "a", "conversations": TURNS}
MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
READ = [("user", "hi"), ("assistant", "hello")]
BOX = '<div class="markdown prose"><p>Yes</p></div>'


def read_record(item, *, page=False, **options):
    return list(
        records_of(item, source="a/x.json", index=7, options=ReadOptions(**options), page=page)
    )


def one(item, **options):
    (record,) = read_record(item, **options)
    assert isinstance(record, Conversation), record
    return record


def texts(item, **options):
    return [(turn.role, turn.text) for turn in one(item, **options).turns]


def weights(item):
    return [turn.loss_weight for turn in one(item).turns]


def drop(item, **options):
    (record,) = read_record(item, **options)
    assert isinstance(record, Drop), record
    return record.reason, record.detail


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def read_path(path):
    """Conversations and drops of a file."""
    records = list(read_file(path))
    return (
        [r for r in records if isinstance(r, Conversation)],
        [r for r in records if isinstance(r, Drop)],
    )
