"""YAML documents that remember on which line each key stands, so that errors can say it."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from yaml.error import MarkedYAMLError

from fedlora.errors import FedloraError, RecipeError

_Model = TypeVar("_Model", bound=BaseModel)
_Path = tuple[str | int, ...]
_BRANCH = re.compile(r"[\[(]|^(bool|tuple|str)$")
"""How pydantic names a branch of a union in an error's location."""
_LONGEST_NUMBER = 64
"""Letters: YAML reads ``1:1:1`` as a number to the base of 60, in a time that grows as a square."""
_LINES, _SHOWN = 20, 80
"""Errors that are explained, and letters that are shown of a key that is unknown."""


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, except that ``3e-4`` is a number and ``on`` is a word.

    Aliases are refused: a few lines of them can stand for gigabytes, or for themselves. So are
    numbers that take long to read.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:  # noqa: ANN401 - PyYAML's own
        if self.check_event(yaml.AliasEvent):
            mark = self.current_event.start_mark
            raise MarkedYAMLError(problem="aliases (*name) are not read", problem_mark=mark)
        return super().compose_node(parent, index)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:  # noqa: ANN401, FBT001, FBT002 - PyYAML's own
        number = node.tag in {"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"}
        if number and len(node.value) > _LONGEST_NUMBER:
            problem = f"a number of at most {_LONGEST_NUMBER} letters was expected"
            raise MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        try:
            return super().construct_object(node, deep=deep)
        except ValueError as error:  # a date or a number that is none
            raise MarkedYAMLError(problem=str(error), problem_mark=node.start_mark) from None


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|false|False)$"), list("tTfF")
)
_FLOAT = ("tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(?:\.\d*)?[eE][-+]?\d+$"))
_Loader.add_implicit_resolver(*_FLOAT, list("-+0123456789"))


class _Dumper(yaml.SafeDumper):
    """Quotes the words that ``_Loader`` would take for numbers; writes lines as lines."""


def _written(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
    )


_Dumper.add_representer(str, _written)
_Dumper.add_implicit_resolver(*_FLOAT, list("-+0123456789"))


def write_yaml(values: Mapping[str, Any]) -> str:
    """Return values as YAML that ``Document.read`` reads back.

    Letters outside ASCII are escaped: YAML takes some of them for line breaks.
    """
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False)


@dataclass(frozen=True, kw_only=True)
class Document:
    """A mapping read from YAML."""

    source: str
    """What error messages call it, usually its path."""
    values: dict[str, Any]
    places: dict[_Path, str]
    """Where each key stands, by its path from the root: a line of the source, or an override."""

    @classmethod
    def read(cls, text: str, *, source: str) -> Self:
        """Parse a document.

        Raises:
            RecipeError: it is not YAML, not a mapping, or gives a key twice.
        """
        places: dict[_Path, str] = {}
        try:
            loader = _Loader(text)
            root = loader.get_single_node()
            if root:
                _collect_places(root, (), places=places, source=source)
            values = loader.construct_document(root) if root else {}
        except RecursionError:
            raise RecipeError(f"{source}: this is nested too deeply.") from None
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f", line {mark.line + 1}" if mark else ""
            problem = getattr(error, "problem", None) or getattr(error, "reason", error)
            raise RecipeError(f"{source}{where}: this is not valid YAML: {problem}.") from None
        if not isinstance(values, dict):
            raise RecipeError(f"{source}: a mapping of keys to values was expected.")
        return cls(source=source, values=values, places=places)

    def override(self, item: str) -> None:
        """Replace one value by a ``section.key=value`` item of the command line.

        Raises:
            RecipeError: the item has another form.
        """
        key, separator, text = item.partition("=")
        if not separator or not key.strip():
            raise RecipeError(f"{item!r}: an override has the form section.key=value.")
        try:
            value = yaml.load(text, Loader=_Loader)  # noqa: S506 - derived from SafeLoader
        except (yaml.YAMLError, RecursionError):
            raise RecipeError(f"{item!r}: the value is not valid YAML.") from None
        *sections, last = key.strip().split(".")
        target = self.values
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise RecipeError(f"{item!r}: {section} is not a section of the recipe.")
        target[last] = value
        path = (*sections, last)
        for replaced in [known for known in self.places if known[: len(path)] == path]:
            del self.places[replaced]
        self.places[path] = f"override {item}"

    def explain(self, error: ValidationError, *, model: type[BaseModel]) -> str:
        """Return what is wrong, a line a key: where it stands, what was expected, what came."""
        details = error.errors()
        deepest = [d for d in details if not _repeats_deeper(d, details)]
        lines = [self._explain(each, model) for each in deepest[:_LINES]]
        more = [f"There are {len(deepest) - _LINES} more errors."] if deepest[_LINES:] else []
        return "\n".join(dict.fromkeys(lines + more))

    def _explain(self, error: ErrorDetails, model: type[BaseModel]) -> str:
        path = _key_path(error)
        ancestors = (path[:length] for length in range(len(path), 0, -1))
        where = next((self.places[p] for p in ancestors if p in self.places), self.source)
        key = _dotted(path)
        if error["type"] == "extra_forbidden":
            section = _section_at(path[:-1], model)
            if reason := getattr(section, "REFUSED", {}).get(str(path[-1])):
                return f"{where}: {key} is no key of a recipe: {reason}."
            names = sorted(section.model_fields)
            near = difflib.get_close_matches(str(path[-1]), names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(names)}."
            return f"{where}: {key[:_SHOWN]} is not a known key; {hint}"
        if error["type"] == "missing":
            wanted = _section_at(path[:-1], model).model_fields[str(path[-1])].description
            return f"{where}: {key} is missing{f': {wanted}' if wanted else ''}."
        message = error["msg"].removeprefix("Value error, ").replace("valid tuple", "list")
        message = message[0].lower() + message[1:]
        if error["type"] == "value_error":
            return f"{where}: {f'{key}: ' if key else ''}{message}."
        return f"{where}: {key}: {message}, but it is {error['input']!r:.200}."


def parse_section(
    text: str, model: type[_Model], *, source: str, error: type[FedloraError]
) -> _Model:
    """Read YAML that is one model.

    Args:
        text: the YAML.
        model: what it is to be.
        source: what error messages call it.
        error: what is raised.

    Raises:
        FedloraError: of the kind ``error``; it names source, line, key and what was expected.
    """
    try:
        document = Document.read(text, source=source)
        return model.model_validate(document.values)
    except RecipeError as cause:
        raise error(str(cause)) from None
    except ValidationError as cause:
        raise error(document.explain(cause, model=model)) from None


def read_section(
    path: Path, model: type[_Model], *, error: type[FedloraError], otherwise: str
) -> _Model:
    """Read a file as ``parse_section`` does.

    Args:
        path: of the file.
        model: what it is to be.
        error: what is raised.
        otherwise: what to do when there is no such file.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as cause:
        raise error(f"{path}: it cannot be read ({cause}). {otherwise}") from None
    return parse_section(text, model, source=str(path), error=error)


def _collect_places(node: yaml.Node, path: _Path, *, places: dict[_Path, str], source: str) -> None:
    """Note on which line each key stands, and refuse a key that is doubled or not a name."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            place = f"{source}, line {key.start_mark.line + 1}"
            if key.tag != "tag:yaml.org,2002:str":
                raise RecipeError(f"{place}: a name was expected as a key.")
            inner = (*path, key.value)
            if inner in places:
                raise RecipeError(
                    f"{place}: {_dotted(inner)} is given twice (first: {places[inner]}). "
                    "Keep one of them."
                )
            places[inner] = place
            _collect_places(value, inner, places=places, source=source)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            places[*path, index] = f"{source}, line {item.start_mark.line + 1}"
            _collect_places(item, (*path, index), places=places, source=source)


def _repeats_deeper(error: ErrorDetails, others: Sequence[ErrorDetails]) -> bool:
    """Tell whether an error only says that a list is short because one of its items is wrong."""
    path = _key_path(error)
    deeper = (p for p in map(_key_path, others) if len(p) > len(path) and p[: len(path)] == path)
    return error["type"] == "too_short" and any(deeper)


def _key_path(error: ErrorDetails) -> _Path:
    """Return pydantic's location without the parts that name a branch of a union."""
    unknown = error["loc"][-1:] if error["type"] == "extra_forbidden" else ()
    known = error["loc"][: len(error["loc"]) - len(unknown)]
    return (*(part for part in known if not _BRANCH.search(str(part))), *unknown)


def _section_at(path: _Path, model: type[BaseModel]) -> type[BaseModel]:
    """Return the model of the section at ``path``."""
    for part in path:
        if isinstance(part, str):
            annotation = model.model_fields[part].annotation
            candidates = [a for a in (annotation, *get_args(annotation)) if isinstance(a, type)]
            model = next(a for a in candidates if issubclass(a, BaseModel))
    return model


def _dotted(path: _Path) -> str:
    text = ""
    for part in path:
        text += f"[{part + 1}]" if isinstance(part, int) else f".{part}" if text else part
    return text
