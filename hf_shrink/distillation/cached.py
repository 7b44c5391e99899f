"""A teacher that has said everything already: its answers come from the disk, and it need not be there."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from hf_shrink.distillation.autocast import autocast_key
from hf_shrink.distillation.cache_files import Manifest, first_fault, read_manifest, read_shard, refuse_another
from hf_shrink.distillation.config import LossTerm
from hf_shrink.distillation.losses import LOSSES
from hf_shrink.distillation.merged import Kept
from hf_shrink.distillation.own_losses import as_loss
from hf_shrink.distillation.row_keys import RowKeys, refuse_moved, row_keys
from hf_shrink.errors import IntegrityError, MismatchError, ResourceError
from hf_shrink.lines import few, without_home

logger = logging.getLogger(__name__)


class CachedTeacher:
    """Takes a teacher's place in a training; made by ``from_folder``.

    A row is found by a hash of its tokens, so that the order of the data, the batches and the padding do not matter, and a
    row of other tokens is never taken for one that is kept.
    """

    label_order = None
    models: tuple[Any, ...] = ()
    precision: torch.dtype | None = None

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest, self.layout = folder, manifest, manifest.layout
        self.accepts = manifest.layout.accepts
        self._shards = [read_shard(folder, shard) for shard in manifest.shards]
        self._places = {
            key: (shard, row)
            for shard, columns in reversed(list(enumerate(self._shards)))
            for row, key in reversed(list(enumerate(columns.pop("row_key"))))
        }  # of a text that is there twice, the first counts

    @property
    def combine(self) -> str | None:
        """How several teachers were weighed; None of one."""
        return self.manifest.key.get("combine")

    @property
    def labels(self) -> list[str]:
        """The names of the classes in the order of the answers; empty where they have none, or an order was given."""
        found: list[str] = json.loads(self.manifest.key.get("labels", "[]"))
        return found

    @classmethod
    def from_folder(cls, folder: str | Path, *, key: Mapping[str, str] | None = None) -> "CachedTeacher":
        """The teacher whose answers lie in ``folder``; every byte is compared with the manifest first.

        Args:
            folder: written by ``write_cache`` or ``hf-shrink cache``.
            key: what the answers must have been written for; None takes any, and a training then stops at the first row that
                is not there.

        Raises:
            ResourceError: there is no cache.
            IntegrityError: it is not complete, damaged, or was written for something else; the message names what.
        """
        path = Path(folder)
        manifest, name = read_manifest(path), without_home(str(folder))
        if manifest is None:
            raise ResourceError(f"cache {name!r}: there is none. Write it with: hf-shrink cache RECIPE")
        refuse_another(path, manifest.key, key or {})
        if not manifest.is_complete:
            raise IntegrityError(
                f"cache {name!r}: holds {manifest.rows:,} of {manifest.layout.rows:,} rows.\nTo go on: hf-shrink cache RECIPE"
            )
        if fault := first_fault(path, manifest):
            raise IntegrityError(f"cache {name!r}: {fault}. Run hf-shrink cache RECIPE to write this file again.")
        return cls(path, manifest)

    def under(self, autocast: torch.dtype | None) -> Self:
        """The same: what was said stands, and a warning where it was said in another precision than the training's."""
        wrote, now = (name.get("autocast", "none") for name in (self.manifest.key, autocast_key(autocast)))
        if wrote != now:
            logger.warning(
                "cache %r: written under autocast %s, this training has %s. Fine where its teacher was in 16 bits or fewer; "
                "else write another with Teacher(model).under(%s), to learn what a live teacher would say.",
                self.folder.name,
                wrote,
                now,
                autocast,
            )
        return self

    def to(self, device: torch.device) -> None:
        """Nothing to move: each answer goes to the device of the batch."""

    def ordered(self, logits: Tensor) -> Tensor:
        """The logits as they are: they were written in the student's order."""
        return logits

    def words_of(self, student: Any) -> int | None:
        """How many of the student's words the cache is about; None where the outputs are no words.

        Raises:
            MismatchError: the student has fewer.
        """
        head = getattr(student, "get_output_embeddings", lambda: None)()
        if head is None or not self.layout.per_token:
            return None
        if len(head.weight) < self.layout.outputs:
            raise MismatchError(
                f"distillation: the student has {len(head.weight)} words, the cache is about {self.layout.outputs}.\n"
                "Write another with words= no more than the student has."
            )
        return self.layout.outputs

    def check_terms(self, terms: Mapping[str, LossTerm]) -> None:
        """Refuse losses that need more than is kept.

        Raises:
            MismatchError: losses on layers; where only the likeliest words are kept, losses that tell apart the others, or
                a temperature at which their share is not known.
        """
        for name, term in terms.items():
            loss = as_loss(term.loss)
            if loss.reads != "logits":
                raise MismatchError(
                    f"distillation: {name} reads {loss.reads}, but a cache holds the teacher's logits alone.\n"
                    "Remove the cache, or the loss."
                )
            if loss.crosses:
                raise MismatchError(f"distillation: {name} asks a live teacher in its own tokens. Remove the cache.")
            if self.layout.top_k is None:
                continue
            if not loss.merges:
                able = ", ".join(sorted(other for other, entry in LOSSES.items() if entry.merges))
                raise MismatchError(
                    f"distillation: {name} needs every word, but the cache holds the likeliest {self.layout.top_k}. Use {able}."
                )
            if term.temperature_end is not None or (self._has_rest and term.temperature not in self.layout.temperatures):
                asked = f"{term.temperature:g}" + ("" if term.temperature_end is None else f" to {term.temperature_end:g}")
                raise MismatchError(
                    f"distillation: {name} at temperature {asked}, but the cache knows what the other words have together at "
                    f"{few(f'{t:g}' for t in self.layout.temperatures)} alone.\nUse one of these, or write another cache."
                )

    def outputs(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """What the teacher said about a batch: ``logits``, or ``kept`` where it is the likeliest words. Padding gets zeros.

        Raises:
            MismatchError: a row is not in the cache, the teacher would have read a column that it was not given, or padding on
                the left would have moved the places that it counts.
        """
        if unread := [n for n in self.accepts if n in inputs and n not in (*self.layout.columns, "attention_mask")]:
            raise MismatchError(f"cached teacher: the batch has {unread[0]!r}, which the teacher never saw. Remove the column.")
        rows = row_keys(inputs, self.layout.columns)
        if self.layout.moves:
            refuse_moved(rows)
        places = [self._places.get(key) for key in rows.keys]
        if missing := [i for i, place in enumerate(places) if place is None]:
            raise self._miss(inputs, rows, missing)
        device = inputs["input_ids"].device
        found = {name: self._gather(name, rows, places) for name in self._shards[0]}
        if self.layout.top_k is None:
            return {"logits": found["logits"].to(device)}
        rest = {t: found["rest"][..., i] for i, t in enumerate(self.layout.temperatures)} if self._has_rest else {}
        return {"kept": Kept(found["values"], found["ids"], rest).to(device)}

    def before(self, head: object, inputs: Mapping[str, Any]) -> Tensor | Kept:
        """What was kept of the answers, where a live teacher gives what its ``head`` would read: nothing to multiply."""
        (found,) = self.outputs(inputs).values()
        assert isinstance(found, Tensor | Kept)
        return found

    @property
    def _has_rest(self) -> bool:
        return self.layout.top_k != self.layout.outputs

    def first_bad_row(self) -> str | None:
        """The first row that is not what the layout says: another number of values, or one that is no number; None."""
        layout = self.layout
        for shard, columns in zip(self.manifest.shards, self._shards, strict=True):
            counts = {name: np.diff(offsets) for name, (_, offsets) in columns.items()}
            lengths = {name: counts[name] // self._width(name) for name in columns}
            whole = [counts[name] == length * self._width(name) for name, length in lengths.items()]
            alike = [length == (next(iter(lengths.values())) if layout.per_token else 1) for length in lengths.values()]
            numbers = [
                np.bincount(np.repeat(np.arange(shard.rows), counts[name]), ~np.isfinite(values), shard.rows) == 0
                for name, (values, _) in columns.items()
            ]
            good = np.logical_and.reduce([*whole, *alike, *numbers])
            if not good.all():
                return f"{shard.file}: row {int(np.argmin(good))} is not {layout.outputs} outputs that are numbers"
        return None

    def _width(self, name: str) -> int:
        """How many values of a column stand at each position."""
        return {"logits": self.layout.outputs, "rest": len(self.layout.temperatures)}.get(name, self.layout.top_k or 0)

    def _gather(self, name: str, rows: RowKeys, places: list[Any]) -> Tensor:
        """One column for a batch, ``[batch, numbers]``, or ``[batch, length, numbers]`` at the place of its tokens."""
        layout, width = self.layout, self._width(name)
        shape = (len(places), rows.width, width) if layout.per_token else (len(places), width)
        batch = np.zeros(shape, np.int64 if name == "ids" else np.float32)
        for i, (shard, row) in enumerate(places):
            values, offsets = self._shards[shard][name]
            numbers = values[offsets[row] : offsets[row + 1]]
            if layout.per_token:
                batch[i, rows.starts[i] : rows.starts[i] + rows.lengths[i]] = numbers.reshape(-1, width)
            else:
                batch[i] = numbers
        return torch.from_numpy(batch)

    def _miss(self, inputs: Mapping[str, Any], rows: RowKeys, missing: list[int]) -> MismatchError:
        i = missing[0]
        start = rows.starts[i]
        tokens = inputs["input_ids"][i, start : start + min(rows.lengths[i], 8)].tolist()
        return MismatchError(
            f"cache {self.folder.name!r}: no answer for batch rows {few(missing)}; the first has {rows.lengths[i]} tokens, "
            f"{few(tokens, 8)}.\nIt was written for {self._written_for()}. Another order of rows is fine; other data, another "
            "tokenizer, max_length or packing, or text that changes at random is not."
        )

    def _written_for(self) -> str:
        said = [f"{name} {value}" for name, value in self.manifest.key.items() if len(value) <= 20]
        return ", ".join([f"{self.layout.rows:,} rows", *said])
