"""Statistics of a `prepare` run: sums of the parts' summaries, independent of their order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MAX_EXAMPLES = 3
MAX_SAMPLES = 50
MAX_WORST = 10
MAX_NAMES = 1000


@dataclass
class Shares:
    """Distribution of one conversion measure over the conversations that have it."""

    count: int = 0
    intact: int = 0
    total: float = 0.0
    hundredths: Counter[int] = field(default_factory=Counter)

    def add(self, share: float | None) -> None:
        """Count a conversation's share in [0, 1], if it has one."""
        if share is not None:
            self.count += 1
            self.intact += share == 1.0
            self.total += share
            self.hundredths[int(share * 100)] += 1

    def summary(self) -> dict[str, Any]:
        """Return the number of conversations with the full share, and the mean."""
        mean = round(self.total / self.count, 6) if self.count else None
        return {"intact": self.intact, "mean": mean}


def worse_fidelity(row: Mapping[str, Any]) -> float:
    """Return the lower of a conversation's two measures; 1 if it was not converted."""
    shares = (row["fidelity"], row["text_fidelity"])
    return min((float(share) for share in shares if share is not None), default=1.0)


@dataclass
class Statistics:
    """Sums over parts: numbers of conversations, and lengths in tokens."""

    read: int = 0
    read_well: int = 0
    cleaned: int = 0
    kept: Counter[str] = field(default_factory=Counter)
    """Conversations per split; `rows` counts their samples, of which `--long split` makes
    several."""
    cut_tokens: int = 0
    cut_conversations: int = 0
    offered: int = 0
    """Tokens of all unique conversations, before any choice of `--long`."""
    yields: dict[str, Counter[str]] = field(default_factory=dict)
    """Conversations, samples, tokens and supervised tokens kept by each choice of `--long`."""
    models: Counter[str] = field(default_factory=Counter)
    drops: Counter[str] = field(default_factory=Counter)
    passed_over: Counter[str] = field(default_factory=Counter)
    """Files and archive members that hold no conversations, by kind."""
    noise: Counter[str] = field(default_factory=Counter)
    """Turns changed or removed by each rule of `noise_rules`."""
    unknown_keys: Counter[str] = field(default_factory=Counter)
    """Records per unknown key, of the record or one of its turns."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Parts of records that are in no turn, by name: citation marks, thoughts, other branches."""
    template_notes: Counter[str] = field(default_factory=Counter)
    """Counts of the model's own chat template, by the names in `tokenization/supervision.py`."""
    answers: Counter[str] = field(default_factory=Counter)
    """Answers read as "html" and as "markdown"."""
    examples: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    rows: Counter[str] = field(default_factory=Counter)
    token_sums: Counter[str] = field(default_factory=Counter)
    supervised_sums: Counter[str] = field(default_factory=Counter)
    turns: Counter[int] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)
    """Lengths before truncation at the context length."""
    converted: int = 0
    """Kept conversations that were converted; for those in `intact`, both measures are 1."""
    intact: int = 0
    structure: Shares = field(default_factory=Shares)
    visible_text: Shares = field(default_factory=Shares)
    worst: list[dict[str, Any]] = field(default_factory=list)
    languages: Counter[str] = field(default_factory=Counter)
    samples: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def add_passed_over(self, counts: dict[str, int]) -> None:
        """Count files skipped by the listing of the inputs, by kind."""
        self.read += sum(counts.values())
        _add_bounded(self.passed_over, counts, "other kinds")

    def add_clean(self, summary: dict[str, Any]) -> None:
        """Add a part's summary from the cleaning pass."""
        self.read += summary["read"]
        self.read_well += summary["read_well"]
        self.cleaned += summary["rows"]
        self.noise.update(summary["noise"])
        _add_bounded(self.models, summary["models"], "other labels")
        _add_bounded(self.passed_over, summary["passed_over"], "other kinds")
        _add_bounded(self.unknown_keys, summary["unknown_keys"], "other keys")
        _add_bounded(self.left_out, summary["left_out"], "other names")
        self.answers.update(summary["answers"])
        self._add_drops(summary)

    def add_tokenize(self, summary: dict[str, Any]) -> None:
        """Add a part's summary from the tokenization pass."""
        for split, turns, length, cut, samples, tokens, supervised, *rest in summary["kept"]:
            structure, text, language = rest
            self.kept[split] += 1
            self.rows[split] += samples
            self.token_sums[split] += tokens
            self.supervised_sums[split] += supervised
            self.turns[turns] += 1
            self.lengths[length] += 1
            self.cut_tokens += cut
            self.cut_conversations += cut > 0
            self.languages[language] += 1
            self.structure.add(structure)
            self.visible_text.add(text)
            if structure is not None or text is not None:
                self.converted += 1
                self.intact += worse_fidelity({"fidelity": structure, "text_fidelity": text}) == 1.0
        self.template_notes.update(summary["template_notes"])
        self.offered += summary["offered"]
        for choice, sums in summary["yields"].items():
            self.yields.setdefault(choice, Counter()).update(sums)
        self.worst = sorted(
            self.worst + summary["worst"], key=lambda w: (worse_fidelity(w), w["id"], w["source"])
        )[:MAX_WORST]
        self.samples = sorted(self.samples + summary["samples"], key=lambda s: s["digest"])
        del self.samples[MAX_SAMPLES:]
        self._add_drops(summary)

    @property
    def token_count(self) -> int:
        """Tokens of both splits."""
        return sum(self.token_sums.values())

    def counts(self) -> dict[str, Any]:
        """Return the manifest's `counts`; read == kept + sums of dropped and passed_over."""
        kept = self.kept.total()
        counts = {
            "read": self.read,
            "kept": kept,
            "dropped": most_first(self.drops),
            "passed_over": most_first(self.passed_over),
        }
        lost = self.read - kept - self.drops.total() - self.passed_over.total()
        assert lost == 0, "an input was lost"
        return counts

    def fidelity(self) -> dict[str, Any]:
        """Return the manifest's `fidelity`, over kept conversations converted from HTML."""
        return {
            "converted": self.converted,
            "intact": self.intact,
            "structure": self.structure.summary(),
            "text": self.visible_text.summary(),
        }

    def tokens(self) -> dict[str, dict[str, int]]:
        """Return the manifest's `tokens`."""
        return {
            split: {
                "rows": self.rows[split],
                "tokens": self.token_sums[split],
                "supervised_tokens": self.supervised_sums[split],
            }
            for split in ("train", "eval")
        }

    def long(self) -> dict[str, dict[str, int]]:
        """Return the manifest's `long`: what each choice of `--long` keeps."""
        return {choice: dict(sums) for choice, sums in self.yields.items()}

    def explain_drops(self) -> str:
        """Return the drop reasons in one line, with an example of the most frequent one."""
        if not self.drops:
            kinds = ", ".join(f"{kind} {n}" for kind, n in self.passed_over.most_common(5))
            return f"no records (passed over: {kinds})" if kinds else "no records"
        reasons = ", ".join(f"{reason} {n}" for reason, n in self.drops.most_common())
        example = self.examples[self.drops.most_common(1)[0][0]][0]
        return f"{reasons} (for example {example['id']}: {example['detail']})"

    def _add_drops(self, summary: dict[str, Any]) -> None:
        self.drops.update(summary["drop_counts"])
        for drop in summary["dropped"]:
            known = self.examples.setdefault(drop["reason"], [])
            known.append(drop)
            # The smallest ids, so that the report does not depend on which part came first.
            known.sort(key=lambda d: (d["id"], d["source"]))
            del known[MAX_EXAMPLES:]


def most_first(counts: Counter[str]) -> dict[str, int]:
    """Return names with their counts, in descending order of count, then by name."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _add_bounded(counter: Counter[str], counts: dict[str, int], rest: str) -> None:
    """Add counts by name.

    Names are free text; beyond a limit, which bounds the memory for malicious inputs, they share
    one entry.
    """
    for name, count in counts.items():
        known = name in counter or len(counter) < MAX_NAMES
        counter[name if known else rest] += count
