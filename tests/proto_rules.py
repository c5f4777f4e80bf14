"""Rules for .proto files, as Buf has them: what is in good style, and what breaks others.

Style: Buf's category ``STANDARD`` (buf.build/docs/lint/rules), of which ``SERVICE_SUFFIX`` is left
out; and a comment on each file, service and call. Breaking: its category ``WIRE_JSON``
(buf.build/docs/breaking/rules), with no deletion at all.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
)

_PASCAL = re.compile("([A-Z][a-z0-9]*)+")
_LOWER = re.compile("[a-z][a-z0-9]*(_[a-z0-9]+)*")
_UPPER = re.compile("[A-Z][A-Z0-9]*(_[A-Z0-9]+)*")
_PACKAGE = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*\.v[1-9][0-9]*")
_SYNTAX, _SERVICE, _METHOD = 12, 6, 2
"""Field numbers of ``FileDescriptorProto`` and ``ServiceDescriptorProto``, for source locations."""


def compiled(root: Path, protos: Sequence[Path]) -> FileDescriptorSet:
    """Return what protoc makes of files, their comments included."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "set"
        options = ["-I", str(root), "--include_source_info", f"--descriptor_set_out={out}"]
        command = [sys.executable, "-m", "grpc_tools.protoc", *options, *map(str, protos)]
        subprocess.run(command, check=True)
        return FileDescriptorSet.FromString(out.read_bytes())


def style(file: FileDescriptorProto) -> Iterator[str]:
    """Yield what is not in good style."""
    package, name = file.package, Path(file.name)
    if file.syntax != "proto3":
        yield f"{name}: syntax proto3"
    if not _PACKAGE.fullmatch(package):
        yield f"{name}: the package {package!r} must be lower case and end in a version"
    if str(name.parent) != package.replace(".", "/"):
        yield f"{name}: the package {package} belongs in {package.replace('.', '/')}"
    if not _LOWER.fullmatch(name.stem):
        yield f"{name}: lower_snake_case.proto"
    for message in file.message_type:
        yield from _message_style(message)
    for enum in file.enum_type:
        yield from _enum_style(enum)
    yield from _service_style(file)


def broken(before: FileDescriptorProto, after: FileDescriptorProto) -> Iterator[str]:
    """Yield what those who rely on ``before`` cannot do with ``after``."""
    if before.package != after.package:
        yield f"package {before.package} is {after.package}"
    yield from _broken_messages(before, after)
    yield from _broken_enums(before, after)
    services = _by_name(after.service)
    for service in before.service:
        methods = _by_name(services[service.name].method) if service.name in services else {}
        for method in service.method:
            found = methods.get(method.name)
            if found is None or _signature(method) != _signature(found):
                yield f"{service.name}.{method.name} has gone, or takes or gives something else"


def _message_style(message: DescriptorProto) -> Iterator[str]:
    if not _PASCAL.fullmatch(message.name):
        yield f"{message.name}: PascalCase"
    for part in (*message.field, *message.oneof_decl):
        if not _LOWER.fullmatch(part.name.removeprefix("_")):  # proto3's optional makes _name
            yield f"{message.name}.{part.name}: lower_snake_case"
    for nested in message.nested_type:
        yield from _message_style(nested)
    for enum in message.enum_type:
        yield from _enum_style(enum)


def _enum_style(enum: EnumDescriptorProto) -> Iterator[str]:
    prefix = re.sub("(?<=[a-z0-9])(?=[A-Z])", "_", enum.name).upper()
    if not _PASCAL.fullmatch(enum.name):
        yield f"{enum.name}: PascalCase"
    if enum.options.allow_alias:
        yield f"{enum.name}: two names for one number"
    for value in enum.value:
        if not (_UPPER.fullmatch(value.name) and value.name.startswith(f"{prefix}_")):
            yield f"{enum.name}.{value.name}: UPPER_SNAKE_CASE that begins with {prefix}_"
    if enum.value[0].name != f"{prefix}_UNSPECIFIED":
        yield f"{enum.name}: 0 is {prefix}_UNSPECIFIED"


def _service_style(file: FileDescriptorProto) -> Iterator[str]:
    commented = {
        tuple(place.path)
        for place in file.source_code_info.location
        if place.leading_comments or place.leading_detached_comments
    }
    if (_SYNTAX,) not in commented:
        yield f"{file.name}: a comment that says what it is"
    used: list[str] = []
    for number, service in enumerate(file.service):
        if not _PASCAL.fullmatch(service.name):
            yield f"{service.name}: PascalCase"
        if (_SERVICE, number) not in commented:
            yield f"{service.name}: a comment"
        for position, method in enumerate(service.method):
            if not _PASCAL.fullmatch(method.name):
                yield f"{method.name}: PascalCase"
            if (_SERVICE, number, _METHOD, position) not in commented:
                yield f"{method.name}: a comment"
            expected = [f".{file.package}.{method.name}{end}" for end in ("Request", "Response")]
            if [method.input_type, method.output_type] != expected:
                yield f"{method.name}: takes {method.name}Request, gives {method.name}Response"
            used += [method.input_type, method.output_type]
    if len(used) != len(set(used)):
        yield f"{file.name}: a message of two calls, or of both directions"


def _broken_messages(before: Any, after: Any) -> Iterator[str]:
    """``Any``: files and messages hold messages under two names."""
    known = _by_name(_messages(after))
    for message in _messages(before):
        found = known.get(message.name)
        if found is None:
            yield f"message {message.name} has gone"
            continue
        numbers = {field.number: field for field in found.field}
        for field in message.field:
            now = numbers.get(field.number)
            if now is None or _meaning(message, field) != _meaning(found, now):
                yield f"{message.name}.{field.name} = {field.number} has gone, or is another"
        yield from _broken_messages(message, found)
        yield from _broken_enums(message, found)


def _broken_enums(before: Any, after: Any) -> Iterator[str]:
    known = _by_name(after.enum_type)
    for enum in before.enum_type:
        values = {v.number: v.name for v in known[enum.name].value} if enum.name in known else {}
        for value in enum.value:
            if values.get(value.number) != value.name:
                yield f"{enum.name}.{value.name} = {value.number} has gone, or is another"


def _messages(holder: Any) -> Sequence[DescriptorProto]:
    return holder.nested_type if isinstance(holder, DescriptorProto) else holder.message_type


def _by_name(parts: Any) -> Mapping[str, Any]:
    return {part.name: part for part in parts}


def _meaning(message: DescriptorProto, field: FieldDescriptorProto) -> tuple[Any, ...]:
    oneof = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else None
    return field.name, field.json_name, field.type, field.type_name, field.label, oneof


def _signature(method: MethodDescriptorProto) -> tuple[Any, ...]:
    return method.input_type, method.output_type, method.client_streaming, method.server_streaming
