"""The bytes of what is said in a secure sum besides the masked updates themselves."""

from dataclasses import dataclass

from google.protobuf.message import Message

from fedlora.privacy.secure_aggregation.primitives import KEY_BYTES, SEAL_BYTES
from fedlora.privacy.secure_aggregation.shamir import SHARE_BYTES
from fedlora.recipe import Recipe
from fedlora.runtime.secure_terms import terms_of
from fedlora.secure_sum.v1 import secure_sum_pb2 as pb

_WEIGHT = 4
_SIGNATURE = 64


@dataclass(frozen=True)
class Talk:
    """Bytes of one client and round: they depend on who sums, never on what."""

    down: int
    up: int


def talk_of(recipe: Recipe) -> Talk:
    """Return what a round's stages take if nobody is lost; nothing without secure aggregation.

    Names count as long as the longest.

    Raises:
        SecureSumError: there are no such sums.
    """
    if not recipe.privacy.secure_aggregation:
        return Talk(down=0, up=0)
    terms, site = terms_of(recipe), max(recipe.site_names, key=len)
    near = terms.members if terms.degree is None else terms.degree + 1
    keys, key, signature = _advertisement(site), bytes(KEY_BYTES), bytes(_SIGNATURE)
    signed = [pb.Signature(site=site, signature=signature)] if terms.signed else []
    sealed = [pb.Sealed(site=site, text=bytes(2 * SHARE_BYTES + SEAL_BYTES))] * (near - 1)
    survivors = pb.Survivors(sites=[site] * near)
    seeds = [pb.Share(site=site, share=bytes(SHARE_BYTES))] * near
    up = [keys, pb.Shares(sealed=sealed), *signed, pb.Revealed(seeds=seeds)]
    down = [
        pb.Roster(members=[keys] * near, digest=key),
        pb.Inbox(sealed=sealed),
        *([survivors] if signed else []),
        pb.Unmasking(survivors=survivors, signatures=signed * near),
    ]
    return Talk(down=_size(down), up=_WEIGHT + _size(up))


def _advertisement(site: str) -> pb.Advertisement:
    key = bytes(KEY_BYTES)
    return pb.Advertisement(
        site=site,
        identity=key,
        context=key,
        mask_key=key,
        seal_key=key,
        seed_digest=key,
        signature=bytes(_SIGNATURE),
    )


def _size(messages: list[Message]) -> int:
    return sum(message.ByteSize() for message in messages)
