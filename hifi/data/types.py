"""Types of columns: which are supported, their names, and how two of them are merged."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

_MOST_TYPE_CHARACTERS = 120
BLANKS = (  # the white space of str.isspace
    "\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007"
    "\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
)
CELLS = {b"hifi.cells": b"1"}  # metadata of a Parquet file whose texts are cells
_NAMES = {"double": "float64", "float": "float32", "halffloat": "float16"}
_TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
_BYTES = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
_LISTS = (
    pa.types.is_list,
    pa.types.is_large_list,
    pa.types.is_fixed_size_list,
    pa.types.is_list_view,
    pa.types.is_large_list_view,
)
_SCALARS = (
    pa.types.is_null,
    pa.types.is_boolean,
    pa.types.is_integer,
    pa.types.is_floating,
    pa.types.is_temporal,
    pa.types.is_decimal128,
    pa.types.is_decimal256,
)


class UnfitError(Exception):
    """Two types cannot be merged, or a type is not supported; the message has the reason."""


def is_text(kind: pa.DataType) -> bool:
    """Return whether a type holds texts."""
    return any(test(kind) for test in _TEXTS)


def is_bytes(kind: pa.DataType) -> bool:
    """Return whether a type holds bytes."""
    return any(test(kind) for test in _BYTES)


def is_list(kind: pa.DataType) -> bool:
    """Return whether a type holds lists."""
    return any(test(kind) for test in _LISTS)


def are_empty_lists(kind: pa.DataType) -> bool:
    """Return whether a type holds lists that have no entry in any row."""
    return is_list(kind) and pa.types.is_null(kind.value_type)


def are_spans(kind: pa.DataType) -> bool:
    """Return whether a type holds spans of characters: lists of objects with ends and a label."""
    if not is_list(kind) or not pa.types.is_struct(kind.value_type):
        return False
    types = {field.name: field.type for field in kind.value_type}
    ends = [types.get(name, pa.string()) for name in ("start", "end")]
    return "label" in types and all(pa.types.is_integer(end) for end in ends)


def are_answers(kind: pa.DataType) -> bool:
    """Return whether a type holds answers: texts and their starts, in lists or one by one."""
    whole = kind.value_type if is_list(kind) else kind
    if not pa.types.is_struct(whole):
        return False
    types = {field.name: field.type for field in whole}
    if not {"text", "answer_start"} <= types.keys():
        return False
    found = [types["text"], types["answer_start"]]
    if not is_list(kind):
        if not all(map(is_list, found)):
            return False
        found = [each.value_type for each in found]
    text, start = found
    is_start = pa.types.is_integer(start) or pa.types.is_null(start)
    return is_start and (is_text(text) or pa.types.is_null(text))


def is_image(kind: pa.DataType) -> bool:
    """Return whether a type holds images: encoded bytes, or a struct with an entry ``bytes``."""
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    return is_bytes(kind)


def kept_type(kind: pa.DataType) -> pa.DataType:
    """Return the plain type in which a column is stored.

    Scalars, lists of scalars, objects of these, and lists of labelled spans or of answers are
    supported: they cover all task types, including planned ones.

    Raises:
        UnfitError: any other type.
    """
    if are_spans(kind) or (are_answers(kind) and is_list(kind)):
        return pa.list_(_object_type(kind.value_type, entry=_scalar_type, whole=kind))
    if pa.types.is_struct(kind):
        return _object_type(kind, entry=_listed_type, whole=kind)
    return _listed_type(kind, whole=kind)


def _object_type(
    kind: pa.DataType, *, entry: Callable[..., pa.DataType], whole: pa.DataType
) -> pa.DataType:
    fields = [(field.name, field.type) for field in kind]
    if not fields:
        raise UnfitError("its objects have no entries")
    if len({name for name, _ in fields}) < len(fields):
        raise UnfitError("an entry of its objects occurs twice")
    return pa.struct([(name, entry(inner, whole=whole)) for name, inner in fields])


def _listed_type(kind: pa.DataType, *, whole: pa.DataType) -> pa.DataType:
    if is_list(kind):
        return pa.list_(_scalar_type(kind.value_type, whole=whole))
    return _scalar_type(kind, whole=whole)


def _scalar_type(kind: pa.DataType, *, whole: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if is_text(kind):
        return pa.string()
    if is_bytes(kind):
        return pa.binary()
    if any(test(kind) for test in _SCALARS) and not pa.types.is_interval(kind):
        return kind
    raise UnfitError(
        f"no task reads columns of {type_name(whole)}, only texts, numbers, booleans, images, "
        "lists of these, lists of spans with start, end and label, and answers with text and "
        "answer_start"
    )


def type_name(kind: pa.DataType, *, depth: int = 3) -> str:
    """Return the name of a type for messages, down to some depth."""
    if pa.types.is_nested(kind) and depth == 0:
        return "…"
    if is_list(kind):
        return f"list<{type_name(kind.value_type, depth=depth - 1)}>"[:_MOST_TYPE_CHARACTERS]
    if pa.types.is_struct(kind):
        entries = [f"{field.name}: {type_name(field.type, depth=depth - 1)}" for field in kind]
        return f"struct<{', '.join(entries)}>"[:_MOST_TYPE_CHARACTERS]
    if pa.types.is_dictionary(kind):
        return type_name(kind.value_type, depth=depth)
    name = str(kind)
    return _NAMES.get(name, name)[:_MOST_TYPE_CHARACTERS]


def merged_type(first: pa.DataType, second: pa.DataType) -> pa.DataType:
    """Return the common type of two types; integers and floating-point numbers become the latter.

    Raises:
        UnfitError: the types have no common type.
    """
    if first == second or pa.types.is_null(second):
        return first
    if pa.types.is_null(first):
        return second
    if {first, second} == {pa.int64(), pa.float64()}:
        return pa.float64()
    if is_list(first) and is_list(second):
        return pa.list_(merged_type(first.value_type, second.value_type))
    if pa.types.is_struct(first) and pa.types.is_struct(second):
        types = {field.name: field.type for field in first}
        for field in second:
            types[field.name] = merged_type(types.get(field.name, pa.null()), field.type)
        return pa.struct(list(types.items()))
    raise UnfitError(f"the rows above hold {type_name(first)}")


def cast_to(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """Cast an array to a type.

    One that has it is returned as it is: pyarrow casts a list of two nulls, whose entries have no
    type, to a broken list.
    """
    return array if array.type == kind else array.cast(kind)


def count_leaves(kind: pa.DataType) -> int:
    """Return the number of entries of a nested type; 1 for any other."""
    if pa.types.is_struct(kind):
        return sum(count_leaves(field.type) for field in kind)
    return count_leaves(kind.value_type) if is_list(kind) else 1


def are_blank(texts: pa.Array) -> pa.Array:
    """Return whether each text is empty or only white space; null for values of another type."""
    if not is_text(texts.type):
        return pa.nulls(len(texts), pa.bool_())
    return pc.equal(pc.utf8_trim(texts, characters=BLANKS), "")


def first_true(mask: pa.Array, *, start: int = 0) -> int | None:
    """Return the index of the first True, counted from ``start``; None if there is none."""
    place = pc.index(mask, value=True).as_py()
    return None if place < 0 else start + int(place)
