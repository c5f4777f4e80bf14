"""What members of an attempt sign and hash, and how messages are read."""

import hashlib
from collections.abc import Collection, Sequence
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from fedlora.errors import SecureSumError
from fedlora.secure_sum.v1 import secure_sum_pb2 as pb
from fedlora.signing import PublicKey, Signer, canonical

_LENGTHS = {"identity": 32, "context": 32, "mask_key": 32, "seal_key": 32, "seed_digest": 32}
_SIGNATURE = 64

_Message = TypeVar("_Message", bound=Message)


def read(kind: type[_Message], payload: bytes) -> _Message:
    """Return the message that a payload is.

    Raises:
        SecureSumError: it is none of that kind.
    """
    try:
        return kind.FromString(payload)
    except DecodeError:
        name = kind.DESCRIPTOR.name
        raise SecureSumError(f"{len(payload)} bytes came that are no {name}.") from None


def advertised(
    signer: Signer, *, site: str, context: bytes, mask_key: bytes, seal_key: bytes, seed: bytes
) -> pb.Advertisement:
    """Return a site's signed keys for one attempt."""
    said = pb.Advertisement(
        site=site,
        identity=signer.public.raw,
        context=context,
        mask_key=mask_key,
        seal_key=seal_key,
        seed_digest=digest_of(seed),
    )
    said.signature = signer.sign(_text(said))
    return said


def require_signed(said: pb.Advertisement) -> PublicKey:
    """Return whose word an advertisement is.

    Raises:
        SecureSumError: a field is not as long as it must be, or the signature is another's.
    """
    wrong = [name for name, length in _LENGTHS.items() if len(getattr(said, name)) != length]
    if wrong or len(said.signature) != _SIGNATURE:
        raise SecureSumError(
            f"The advertisement of {said.site!r:.80} is broken: {', '.join(wrong) or 'signature'}."
        )
    key = PublicKey(said.identity)
    if not key.signed(_text(said), said.signature):
        raise SecureSumError(f"The advertisement of {said.site!r:.80} is not signed by its key.")
    return key


def roster_digest(members: Sequence[pb.Advertisement]) -> bytes:
    """Return what names an attempt: keys are fresh, so that no two have the same members.

    It is the SHA-256 of what the members have signed, in the order of their sites.
    """
    ordered = sorted(members, key=lambda member: member.site)
    return hashlib.sha256(b"\n".join(map(_text, ordered))).digest()


def survivors_text(digest: bytes, survivors: Collection[str]) -> bytes:
    """Return what members sign of the survivors of the attempt that ``digest`` names.

    Through the roster it is bound to recipe, base, adapter, run and round.
    """
    return canonical(
        {
            "statement": "secure sum survivors",
            "roster": digest.hex(),
            "sites": sorted(survivors),
        }
    )


def signatures_of(unmasking: pb.Unmasking) -> dict[str, bytes]:
    """Return the signatures by site.

    Raises:
        SecureSumError: a site has two.
    """
    found = {each.site: each.signature for each in unmasking.signatures}
    if len(found) < len(unmasking.signatures):
        raise SecureSumError("A site has signed the survivors twice.")
    return found


def digest_of(seed: bytes) -> bytes:
    """Return what an advertisement says of a seed."""
    return hashlib.sha256(b"fedlora secure sum seed\n" + seed).digest()


def sealed_about(digest: bytes, *, sender: str, receiver: str) -> bytes:
    """Return what binds sealed shares to their attempt, sender and receiver."""
    return canonical(
        {"for": "shares", "roster": digest.hex(), "from": sender, "to": receiver},
    )


def masked_about(digest: bytes, one: str, other: str) -> bytes:
    """Return what binds the mask of two sites to their attempt."""
    return canonical({"for": "mask", "roster": digest.hex(), "between": sorted((one, other))})


def _text(said: pb.Advertisement) -> bytes:
    fields = {name: bytes(getattr(said, name)).hex() for name in _LENGTHS}
    return canonical({"statement": "secure sum advertisement", "site": said.site, **fields})
