"""The .proto files are in Buf's style, and nothing that others rely on has changed.

``descriptors/`` holds each file as it was when others began to rely on it. What was added since
belongs there too: ``make descriptors``, never to make a change pass that takes something away.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
from google.protobuf import text_format
from google.protobuf.descriptor_pb2 import (
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)

from tests.proto_rules import broken, compiled, style

ROOT = Path(__file__).parents[2] / "proto"
PROTOS = sorted(ROOT.rglob("*.proto"))
GOLDEN = Path(__file__).parent / "descriptors"
FILES = {file.name: file for file in compiled(ROOT, PROTOS).file}
REGISTRY, UPDATE = "fedlora/registry/v1/registry.proto", "fedlora/wire/v1/update.proto"
SECURE_SUM = "fedlora/secure_sum/v1/secure_sum.proto"


def golden(name: str) -> FileDescriptorProto:
    """Return a file as others know it."""
    text = (GOLDEN / f"{name.replace('/', '.').removesuffix('.proto')}.txtpb").read_text()
    [file] = text_format.Parse(text, FileDescriptorSet()).file
    return file


def copy(name: str) -> FileDescriptorProto:
    """Return a file to be changed."""
    file = FileDescriptorProto()
    file.CopyFrom(FILES[name])
    return file


def test_the_files_are_those_that_are_known() -> None:
    """Each has a description that others rely on."""
    assert sorted(FILES) == [REGISTRY, SECURE_SUM, UPDATE]
    assert len(list(GOLDEN.iterdir())) == len(FILES)


@pytest.mark.parametrize("name", FILES)
def test_style(name: str) -> None:
    """Names, packages, zero values and comments."""
    assert list(style(FILES[name])) == []


@pytest.mark.parametrize("name", FILES)
def test_nothing_that_others_rely_on_has_changed(name: str) -> None:
    """Fields, values and calls are added, never taken away, renamed or renumbered."""
    assert list(broken(golden(name), FILES[name])) == []


@pytest.mark.parametrize("name", FILES)
def test_what_was_added_is_known(name: str) -> None:
    """Or taking it away again would go unnoticed; if this fails alone: ``make descriptors``."""
    assert list(broken(FILES[name], golden(name))) == []


def _field(file: FileDescriptorProto) -> FieldDescriptorProto:
    return file.message_type[0].field[0]


def _set(part: Callable, **values: object) -> Callable:
    def change(file: FileDescriptorProto) -> None:
        for key, value in values.items():
            setattr(part(file), key, value)

    return change


BREAKING = {
    "package": _set(lambda f: f, package="fedlora.other.v1"),
    "field renumbered": _set(_field, number=99),
    "field renamed": _set(_field, name="other"),
    "field of another type": _set(_field, type=FieldDescriptorProto.TYPE_BYTES, type_name=""),
    "field repeated": _set(_field, label=FieldDescriptorProto.LABEL_REPEATED),
    "field gone": lambda f: f.message_type[0].field.pop(0),
    "message gone": lambda f: f.message_type.pop(),
    "message renamed": _set(lambda f: f.message_type[-1], name="Other"),
    "field out of its oneof": lambda f: f.message_type[0].field[0].ClearField("oneof_index"),
    "call gone": lambda f: f.service[0].method.pop(),
    "call renamed": _set(lambda f: f.service[0].method[0], name="Other"),
    "call streams": _set(lambda f: f.service[0].method[0], server_streaming=True),
    "call takes something else": _set(
        lambda f: f.service[0].method[0], input_type=".fedlora.registry.v1.GetReleaseRequest"
    ),
    "service gone": lambda f: f.service.pop(),
}


@pytest.mark.parametrize("what", BREAKING)
def test_a_breaking_change_is_noticed(what: str) -> None:
    """Each kind of it."""
    file = copy(REGISTRY)
    BREAKING[what](file)

    assert list(broken(golden(REGISTRY), file))


def test_a_changed_enum_is_noticed_and_an_addition_breaks_nothing() -> None:
    """Values keep their names and numbers; new fields, values and messages may come."""
    renumbered, gone, more = copy(UPDATE), copy(UPDATE), copy(UPDATE)
    renumbered.enum_type[0].value[1].number = 99
    gone.enum_type.pop(0)
    more.enum_type[0].value.add(name="KIND_OTHER", number=99)
    more.message_type[0].field.add(name="other", number=99)
    more.message_type.add(name="Other")

    assert list(broken(golden(UPDATE), renumbered))
    assert list(broken(golden(UPDATE), gone))
    assert list(broken(golden(UPDATE), more)) == []


STYLE = {
    "package without a version": _set(lambda f: f, package="fedlora.registry"),
    "package elsewhere": _set(lambda f: f, package="fedlora.other.v1"),
    "file": _set(lambda f: f, name="fedlora/registry/v1/Registry.proto"),
    "syntax": _set(lambda f: f, syntax="proto2"),
    "message": _set(lambda f: f.message_type[-1], name="other_message"),
    "field": _set(_field, name="camelCase"),
    "call": _set(lambda f: f.service[0].method[0], name="list"),
    "request": _set(
        lambda f: f.service[0].method[0], input_type=".fedlora.registry.v1.ReleaseHeader"
    ),
    "comments": lambda f: f.ClearField("source_code_info"),
    "zero": lambda f: f.enum_type.add(name="Kind").value.add(name="KIND_NONE", number=0),
    "value": lambda f: f.enum_type.add(name="Kind").value.add(name="unspecified", number=0),
}


@pytest.mark.parametrize("what", STYLE)
def test_bad_style_is_noticed(what: str) -> None:
    """Each kind of it."""
    file = copy(REGISTRY)
    STYLE[what](file)

    assert list(style(file))
