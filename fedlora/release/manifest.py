"""The manifest of a release: what it is, where it comes from, and what is promised of it."""

import hashlib
import json
import re
from datetime import UTC, datetime
from typing import Annotated, Literal, Self, TypeVar

from pydantic import Field, ValidationError

from fedlora.errors import ReleaseError
from fedlora.methods import Method, Robust
from fedlora.sections import Count, Digest, LossUnit, Name, Section, Strings
from fedlora.signing import canonical

MANIFEST = "manifest.json"
"""Its file in a release's folder."""
LARGEST_MANIFEST = 2**20
"""Bytes."""

FILE_NAME = "[A-Za-z0-9][A-Za-z0-9_.-]{0,199}"
FileName = Annotated[str, Field(pattern=f"^{FILE_NAME}$")]
"""Of a file of a release; a release has no folders."""
Pseudonym = Annotated[str, Field(pattern="^site-[0-9a-f]{12}$")]
"""Of a site: the same in all releases of a publisher, and nobody else can tell whose it is."""
Time = Annotated[str, Field(pattern="^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$")]
"""UTC, ISO 8601."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_RELEASE = re.compile("[0-9a-f]{8,64}")
_T = TypeVar("_T", bound=Section)
_NotNegative = Annotated[float, Field(ge=0)]


class File(Section):
    """One file of a release."""

    size: Annotated[int, Field(ge=0)]
    """Bytes."""
    sha256: Digest


class Base(Section):
    """The base model that an adapter belongs on."""

    name: Annotated[str, Field(min_length=1)]
    revision: str | None = None
    digest: Digest
    """Over all that decides tokens and logits; it is the ``base_digest`` of a locked recipe."""
    weights: Digest | None = None
    tokenizer: Digest | None = None
    chat_template: Digest | None = None
    """Absent where the base has none; like the other two, where it was made without a lock."""

    @property
    def hub_id(self) -> str | None:
        """The base's id on the Hub, if its name is one."""
        return self.name if _HUB_ID.fullmatch(self.name) else None


class Adapter(Section):
    """The adapter's specification."""

    digest: Digest
    """Of the whole specification: adapters with the same can be added."""
    rank: Count
    alpha: Annotated[float, Field(gt=0)]
    """The change to a weight is ``alpha / rank · B·A``."""
    target_modules: Strings
    modules: Count
    """That B·A is added to; a classifier's head is trained whole and not among them."""
    parameters: Count
    dtype: Literal["float32"] = "float32"
    labels: Strings | None = None
    """What a classifier tells apart, in the order of its outputs; absent of a language model."""


class Quantization(Section):
    """How the base was held while the adapter was trained."""

    kind: Literal["none", "int8", "nf4"] = "none"
    double_quantization: bool = False
    compute_dtype: Literal["float32", "bfloat16", "by-device"] = "by-device"


class Origin(Section):
    """The run that made it."""

    run: Name
    round: Annotated[int, Field(ge=0)]
    rounds: Count
    """That the whole run has."""
    recipe: Digest
    """SHA-256 of the resolved recipe."""
    parent: Digest | None = None
    """The release that it follows, under the same name: what the promoted alias pointed to when it
    was made, and what the gate holds it against. Of a merged model it is its adapter's."""
    began_with: Digest | None = None
    """The release whose adapter training began with, by ``init_from``."""
    site: Pseudonym | None = None
    """Whose own factors are in it, where factors are personal."""


class Cohort(Section):
    """Who took part."""

    population: Count
    """Sites of the run."""
    sites: Annotated[tuple[Pseudonym, ...], Field(strict=False)] | None = None
    """Whose updates are in it; absent under ``privacy.unit: client``, which hides clients."""


class Aggregation(Section):
    """How the updates became one."""

    method: Method
    robust: Robust
    truncation_error: _NotNegative | None = None
    """Of the last round: what the cut to the rank left out, over what was to be changed (norms)."""


class SecureSums(Section):
    """That updates were masked and summed, so that nobody had a single one; on whom it rests."""

    threat_model: Literal["malicious-aggregator", "honest-but-curious"]
    cohort: Count
    """Most sites of a round."""
    threshold: Count
    """Sites without whom no mask is opened: of the cohort, or of a site's neighbours."""
    neighbours: Count | None = None
    """That each site shares keys with; absent where these are all others."""
    colluders: Annotated[int, Field(ge=0)]
    """Sites that may tell the aggregator all they know."""
    fewest: Count
    """Sites that are in each sum at least."""
    clip: Annotated[float, Field(gt=0)]
    """Largest L2 norm of an update."""
    error_bound: _NotNegative | None = None
    """Most that a value of a round's mean is off, over all rounds; absent if no sum was opened."""


class Privacy(Section):
    """What is promised. ε is the largest over all sites."""

    unit: Literal["none", "example", "client"]
    epsilon: Annotated[float, Field(gt=0)] | None = None
    """Absent where nothing is promised: without privacy, or with reproducible noise."""
    delta: Annotated[float, Field(gt=0, lt=1)] | None = None
    adjacency: Literal["add-remove", "replace-one", "zero-out"] | None = None
    accountant: str | None = None
    clip: Annotated[float, Field(gt=0)] | None = None
    """Largest norm of what one unit adds."""
    noise_multiplier: _NotNegative | None = None
    """Standard deviation of the noise over ``clip``; the smallest over all sites."""
    sampling: Literal["poisson", "fixed-size", "all"] | None = None
    secure_sums: SecureSums | None = None
    """Absent where the aggregator had updates one by one."""
    statement: Strings
    """The promise in sentences, its assumptions and limits included."""


class Loss(Section):
    """Loss on one text, in nats."""

    base: float
    adapter: float


class Evaluation(Section):
    """How good it is. Under privacy all of it is noised and charged, or on public data."""

    unit: LossUnit | None = None
    """What the losses on held-out rows are a mean over; absent where that is tokens, as it always
    is on a public text."""
    held_out: Loss | None = None
    """The mean over the sites, each of which counts the same, so that no size can be worked out."""
    sites: dict[Pseudonym, Loss] | None = None
    """Of each site; not under privacy."""
    forgetting: Loss | None = None
    """On the public text that the recipe names: at the median site, by what the adapter changes."""


class Code(Section):
    """What made it."""

    fedlora: str
    torch: str


class Manifest(Section):
    """What a release is; its digest is the release's name that never moves."""

    format: Literal["fedlora.release/v1"] = "fedlora.release/v1"
    kind: Literal["adapter", "merged"] = "adapter"
    name: Name
    created: Time
    files: dict[FileName, File]
    base: Base
    adapter: Adapter
    quantization: Quantization
    origin: Origin
    cohort: Cohort
    aggregation: Aggregation
    privacy: Privacy
    evaluation: Evaluation
    code: Code

    @property
    def release(self) -> str:
        """The release's identity: SHA-256 of the manifest, in hexadecimal."""
        return hashlib.sha256(self.to_json()).hexdigest()

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(file.size for file in self.files.values())

    def to_json(self) -> bytes:
        """Return canonical JSON: the bytes of ``manifest.json``, which are hashed and signed."""
        return canonical_text(self)

    @classmethod
    def from_json(cls, text: bytes, *, source: str) -> Self:
        """Read what ``to_json`` wrote.

        Raises:
            ReleaseError: it is something else, or in another spelling.
        """
        return read_canonical(cls, text, source=source, what="a release's manifest")


def canonical_text(section: Section) -> bytes:
    """Return a section in canonical JSON, what it has not left out."""
    return canonical(section.model_dump(mode="json", exclude_none=True))


def read_canonical(
    kind: type[_T], text: bytes, *, source: str, what: str, most: int = LARGEST_MANIFEST
) -> _T:
    """Read a section from canonical JSON of at most ``most`` bytes.

    Raises:
        ReleaseError: it is something else, or in another spelling.
    """
    if len(text) > most:
        raise ReleaseError(f"{source}: {what} of {len(text):,} bytes is not plausible.")
    try:
        section = kind.model_validate(json.loads(text))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ReleaseError(f"{source}: this is not {what}: {key}: {first['msg']:.200}.") from None
    except (ValueError, RecursionError) as error:
        raise ReleaseError(f"{source}: {what} was expected, in JSON ({error!s:.200}).") from None
    if canonical_text(section) != text:
        raise ReleaseError(f"{source}: {what} was expected in canonical JSON; it was rewritten.")
    return section


def is_release(version: str) -> bool:
    """Whether a version may be a release's identity, or its beginning: 8 or more digits of hex."""
    return _RELEASE.fullmatch(version) is not None


def stamp(time: datetime) -> str:
    """Return a time as manifests and indices have it: UTC, to the second."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
