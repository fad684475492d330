"""Reads images and labels from parquet files, as the Hugging Face Hub has them."""

import contextlib
import functools
import json
import os
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cutmix_jax import UserError, first_line
from cutmix_jax.data.records import Example, Part

# Rows that are in memory at a time, and bytes of a column that are read at a time.
ROWS, BUFFER = 16, 2**20


def open_part(path: str, image_column: str | None, label_column: str | None) -> Part:
    """Reads the labels of a file, and checks its columns.

    Args:
        path: the file.
        image_column: binary, or a structure with the fields `bytes` and `path`; None: `image`.
        label_column: integers; None: `label`. Their names are in the metadata of the Hub's files.

    Raises:
        UserError: the file is damaged or lacks a column, or a label is not an integer.
    """
    image, label = image_column or "image", label_column or "label"
    with _opened(path) as file:
        schema = file.schema_arrow
        for column, flag in ((image, "--image-column"), (label, "--label-column")):
            if column not in schema.names:
                raise UserError(
                    f"{path} has no column {column!r}, only {', '.join(schema.names)}. Choose one "
                    f"with {flag}."
                )
        _check_image(path, image, schema.field(image).type)
        kind = schema.field(label).type
        if not pa.types.is_integer(kind):
            raise UserError(
                f"{path} has labels of type {kind} in {label!r}, but integers are expected. Choose "
                "another column with --label-column."
            )
        labels = []
        for batch in file.iter_batches(2**16, columns=[label], use_threads=False):
            if batch.column(0).null_count:
                row = sum(map(len, labels)) + batch.column(0).is_null().to_pylist().index(True)
                raise UserError(f"{path}, row {row} has no label in {label!r}. Remove the row.")
            labels.append(batch.column(0).to_numpy().astype(np.int64))
        return Part(
            labels=np.concatenate(labels) if labels else np.zeros(0, np.int64),
            read=functools.partial(read, path, image, label),
            name=lambda i: f"{path}, row {i}",
            class_names=_class_names(schema.metadata, label),
        )


def read(path: str, image: str, label: str, start: int, stop: int) -> Iterator[Example]:
    """Yields the examples of the rows from `start` to `stop`, with few in memory at a time."""
    with _opened(path) as file:
        first = 0
        for group in range(file.num_row_groups):
            last = first + file.metadata.row_group(group).num_rows
            if last > start and first < stop:
                batches = file.iter_batches(
                    ROWS, row_groups=[group], columns=[image, label], use_threads=False
                )
                row = first
                for batch in batches:
                    if row >= stop:
                        break
                    skipped = min(max(0, start - row), len(batch))
                    wanted = batch.slice(skipped, max(0, min(len(batch), stop - row) - skipped))
                    images = wanted.column(image).to_pylist()
                    labels = wanted.column(label).to_pylist()
                    for i, values in enumerate(zip(images, labels, strict=True), row + skipped):
                        yield _example(path, i, *values)
                    row += len(batch)
            first = last


def _example(path: str, row: int, image, label: int) -> Example:
    name = f"{path}, row {row}"
    data, file_name = (
        (image.get("bytes"), image.get("path")) if isinstance(image, dict) else (image, None)
    )
    if data is None:
        found = f"only the path {file_name!r}" if file_name else "no image"
        raise UserError(f"{name} holds {found}, but the bytes of an image are expected. Remove it.")
    file_name = os.path.basename(file_name) if file_name else f"{os.path.basename(path)}:{row}"
    return Example(name, os.fsencode(file_name), data, label)


def _check_image(path: str, column: str, kind: pa.DataType) -> None:
    held = kind
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        held = kind.field("bytes").type
    if not (
        pa.types.is_binary(held) or pa.types.is_large_binary(held) or pa.types.is_binary_view(held)
    ):
        raise UserError(
            f"{path} has the type {kind} in {column!r}, but bytes or a structure with the field "
            "'bytes' are expected. Choose another column with --image-column."
        )


def _class_names(metadata, label: str) -> tuple[str, ...] | None:
    """The names of the labels in the metadata that the library `datasets` writes."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
        return tuple(map(str, names)) if isinstance(names, list) and names else None
    except (KeyError, TypeError, ValueError):
        return None


@contextlib.contextmanager
def _opened(path: str) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(
            path, buffer_size=BUFFER, pre_buffer=False, page_checksum_verification=True
        ) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path} is damaged or cannot be read as parquet ({first_line(error)}). Download it "
            "again."
        ) from error
