"""Conversion of a model's tensors between run time and the names and layouts of files on the hub.

transformers 5 renames and fuses tensors while it loads them: the experts of a mixture become one
tensor, GPT-NeoX's `embed_out` becomes `lm_head`. Files on the hub, and every engine that reads
them, keep the original names and layouts. `save_pretrained` converts a complete state dict at
once; here groups of tensors are converted one after the other, so that memory is limited to the
largest group.

transformers 5.19 has no public function for a part of a model, hence the private imports of
`core_model_loading` and `conversion_mapping`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch


class HubFormat:
    """Conversion of a model's tensors between run time and files.

    It depends only on the model's class, not on the names in the files that it was loaded from: a
    base that was saved with run-time names is also exported with those of the hub.

    Args:
        model: a transformers model; its tensors are not read, and may be on the meta device.
    """

    def __init__(self, model: Any) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import PrefixChange

        self._model = model
        self._to_run_time = [
            transform
            for transform in get_model_conversion_mapping(model, add_legacy=False)
            # These are for parts of a larger model; an export is a complete model.
            if not isinstance(transform, PrefixChange)
        ]
        # In reverse order, to undo the last transformation first.
        self._to_file = [t.reverse_transform() for t in reversed(self._to_run_time)]

    def groups(self, names: Iterable[str]) -> list[tuple[str, ...]]:
        """Return run-time names in groups that must be passed to `to_file` together."""
        grouped = self._grouped(names, self._to_file, reverse=True)
        return [tuple(name for name, _ in members) for members, _ in grouped]

    def to_file(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Convert one or more complete groups of run-time tensors; the results may be views."""
        return self._converted(tensors, self._to_file, reverse=True)

    def to_run_time(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Convert tensors of files as transformers does when it loads them."""
        return self._converted(tensors, self._to_run_time, reverse=False)

    def _converted(
        self, tensors: Mapping[str, torch.Tensor], transforms: list[Any], *, reverse: bool
    ) -> dict[str, torch.Tensor]:
        converted: dict[str, torch.Tensor] = {}
        for members, target in self._grouped(tensors, transforms, reverse=reverse):
            transform = _transform(transforms, members, target)
            for name, pattern in members:
                transform.add_tensor(target, name, pattern or name, tensors[name])
            done = transform.convert(target, model=self._model, config=self._model.config)
            converted |= {
                name: value[0] if isinstance(value, list) else value for name, value in done.items()
            }
        return converted

    def _grouped(
        self, names: Iterable[str], transforms: list[Any], *, reverse: bool
    ) -> list[tuple[list[tuple[str, str | None]], str]]:
        """Return groups of (name, matched pattern of a converter), each with its target name."""
        from transformers.core_model_loading import (
            WeightConverter,
            WeightRenaming,
            dot_natural_key,
            rename_source_key,
        )

        fresh = copy.deepcopy(transforms)  # a renaming may have state
        renamings = [t for t in fresh if isinstance(t, WeightRenaming)]
        converters = [t for t in fresh if isinstance(t, WeightConverter)]
        groups: dict[str, list[tuple[str, str | None]]] = {}
        for name in sorted(names, key=dot_natural_key):
            target, pattern = rename_source_key(name, renamings, converters, reverse=reverse)
            groups.setdefault(target, []).append((name, pattern))
        return [(members, target) for target, members in groups.items()]


def _transform(transforms: list[Any], members: list[tuple[str, str | None]], target: str) -> Any:
    """Return the transformation of a group: a converter or a renaming."""
    from transformers.core_model_loading import WeightConverter, WeightRenaming

    name, pattern = members[0]
    for transform in transforms:
        if isinstance(transform, WeightConverter) and pattern in transform.source_patterns:
            return copy.deepcopy(transform)
    assert len(members) == 1, f"{[name for name, _ in members]} all become {target}"
    return WeightRenaming(name, target)
