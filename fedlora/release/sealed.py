"""Signatures over payloads that say what they are, as DSSE has them.

DSSE is secure-systems-lab's Dead Simple Signing Envelope, version 1 (its ``protocol.md`` and
``envelope.md``): what is signed includes the payload's type, so that no signature of one kind of
document is good for another.
"""

import base64
import json

from fedlora.errors import ReleaseError
from fedlora.signing import PublicKey, Signer, canonical

MANIFEST_TYPE = "application/vnd.fedlora.release.v1+json"
INDEX_TYPE = "application/vnd.fedlora.index.v1+json"

LARGEST_ENVELOPE = 15 * 2**18
"""Bytes: of the largest index, in base64."""


def sign(payload: bytes, payload_type: str, *, signer: Signer) -> bytes:
    """Return the signature over a payload and its type: 64 bytes."""
    return signer.sign(_encoding(payload, payload_type))


def require_signed(
    payload: bytes, payload_type: str, signature: bytes, *, key: PublicKey, source: str
) -> None:
    """Do nothing if the key's owner signed this payload as one of this type.

    Raises:
        ReleaseError: the signature is another's, or over something else.
    """
    if not key.signed(_encoding(payload, payload_type), signature):
        raise ReleaseError(
            f"{source}: the signature is not good. Either this was changed after it was signed, or "
            f"it is another publisher's than {key.fingerprint}."
        )


def seal(payload: bytes, payload_type: str, *, signer: Signer) -> bytes:
    """Return an envelope in JSON: payload, its type and the signature."""
    signature = sign(payload, payload_type, signer=signer)
    return _envelope(payload, payload_type, signature, key=signer.public)


def unseal(envelope: bytes, payload_type: str, *, key: PublicKey, source: str) -> bytes:
    """Return the payload of an envelope that the key's owner has sealed, each byte of it.

    Raises:
        ReleaseError: it is no such envelope, or sealed by somebody else.
    """
    if len(envelope) > LARGEST_ENVELOPE:
        raise ReleaseError(f"{source}: an envelope of {len(envelope):,} bytes is not plausible.")
    try:
        facts = json.loads(envelope)
        payload = base64.b64decode(facts["payload"], validate=True)
        [entry] = facts["signatures"]
        signature = base64.b64decode(entry["sig"], validate=True)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ReleaseError(f"{source}: a signed envelope was expected (DSSE, JSON).") from None
    require_signed(payload, payload_type, signature, key=key, source=source)
    if envelope != _envelope(payload, payload_type, signature, key=key):
        raise ReleaseError(f"{source}: what is around the signed text was changed.")
    return payload


def _envelope(payload: bytes, payload_type: str, signature: bytes, *, key: PublicKey) -> bytes:
    return canonical(
        {
            "payload": _text(payload),
            "payloadType": payload_type,
            "signatures": [{"keyid": key.fingerprint, "sig": _text(signature)}],
        }
    )


def _encoding(payload: bytes, payload_type: str) -> bytes:
    """Return what is signed: DSSE's pre-authentication encoding."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()
