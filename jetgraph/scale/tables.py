"""Records of units of work as tables of parquet: one row for each tensor, which any reader of tables shows.

The columns are `stage`, `unit`, `name`, `type`, `shape`, and the numbers of the tensor in `floats` or `integers`, of
which each type of floats, or of whole numbers, is a part. A unit that gives nothing has a row without a name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jetgraph.files.writing import write_atomically

_TYPES = {
    str(kind).removeprefix("torch."): kind
    for kind in (
        torch.float64, torch.float32, torch.bfloat16, torch.float16,
        torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
    )
}  # fmt: skip

Records = Mapping[tuple[str, int], Mapping[str, Tensor]]
"""By stage and number of the unit."""


def write_records(records: Records, file: Path) -> None:
    """Write a table, whole or not at all."""
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist(list(_rows(records)), _schema())
    write_atomically(file, lambda path: pyarrow.parquet.write_table(table, path, compression="zstd"))


def read_records(file: Path) -> dict[tuple[str, int], dict[str, Tensor]]:
    """Read what `write_records` has written.

    Raises
    ------
    OSError, ValueError, KeyError, TypeError
        Anything else.
    """
    import pyarrow.parquet

    records: dict[tuple[str, int], dict[str, Tensor]] = {}
    with pyarrow.parquet.ParquetFile(file) as opened:
        for batch in opened.iter_batches(columns=_schema().names):
            for row, floats, integers in zip(
                batch.drop_columns(["floats", "integers"]).to_pylist(),
                batch.column("floats"),
                batch.column("integers"),
                strict=True,
            ):
                record = records.setdefault((row["stage"], row["unit"]), {})
                if row["name"] is not None:
                    kind = _TYPES[row["type"]]
                    numbers = (floats if kind.is_floating_point else integers).values.to_numpy(zero_copy_only=False)
                    record[row["name"]] = torch.from_numpy(numbers.copy()).to(kind).reshape(row["shape"])
    return records


def _schema() -> Any:
    import pyarrow

    lists = {"shape": pyarrow.int64(), "floats": pyarrow.float64(), "integers": pyarrow.int64()}
    texts = [pyarrow.field(name, pyarrow.string()) for name in ("stage", "name", "type")]
    return pyarrow.schema(
        [texts[0], pyarrow.field("unit", pyarrow.int64()), *texts[1:]]
        + [pyarrow.field(name, pyarrow.list_(kind)) for name, kind in lists.items()]
    )


def _rows(records: Records) -> Iterator[dict[str, Any]]:
    for (stage, unit), record in sorted(records.items()):
        if not record:
            yield {"stage": stage, "unit": unit}
        for name, tensor in record.items():
            is_float = tensor.is_floating_point()
            wide = tensor.double() if is_float else tensor.long()
            yield {
                "stage": stage,
                "unit": unit,
                "name": name,
                "type": str(tensor.dtype).removeprefix("torch."),
                "shape": list(tensor.shape),
                "floats" if is_float else "integers": wide.reshape(-1).numpy(),
            }
