"""An index moves by versions that are signed, never forgets, and expires."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fedlora.errors import ReleaseError
from fedlora.release.index import LIFETIME, Index
from fedlora.release.sealed import seal
from fedlora.signing import Signer, canonical, new_key

NOW = datetime(2026, 1, 1, tzinfo=UTC)
A, B, C = "a" * 64, "b" * 64, "c" * 64


@pytest.fixture
def index() -> Index:
    """Two releases; production points to the first."""
    index = Index.empty("demo", now=NOW).published(A, now=NOW)
    index = index.moved("production", A, expected=None, reason="good", now=NOW)
    return index.published(B, now=NOW)


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    new_key(tmp_path / "key")
    return Signer.load(tmp_path / "key")


def test_each_change_is_the_next_version(index: Index) -> None:
    """Publishing moves latest; production stays until it is moved."""
    assert (index.version, index.target("latest"), index.target("production")) == (3, B, A)


def test_an_alias_moves_only_from_where_it_was_seen(index: Index) -> None:
    """Of two who decide on what they saw, the second is told."""
    moved = index.moved("production", B, expected=A, reason="better", now=NOW)

    assert moved.target("production") == B
    with pytest.raises(ReleaseError, match="points to bbbbbbbbbbbb, not to aaaaaaaaaaaa"):
        moved.moved("production", A, expected=A, reason="no", now=NOW)
    with pytest.raises(ReleaseError, match="somebody moved it"):
        moved.moved("production", A, expected=None, reason="no", now=NOW)


def test_a_rollback_passes_over_what_was_revoked(index: Index) -> None:
    """Each goes one further back; when nothing is left it says so."""
    index = index.published(C, now=NOW).moved("production", B, expected=A, reason="2", now=NOW)
    index = index.moved("production", C, expected=B, reason="3", now=NOW)
    index = index.revoking(B, reason="it knows a patient's name", now=NOW)

    back = index.rolled_back("production", reason="worse", now=NOW)
    assert back.target("production") == A
    with pytest.raises(ReleaseError, match="no usable release before"):
        back.rolled_back("production", reason="worse", now=NOW)


def test_a_revoked_release_is_refused_with_the_reason(index: Index) -> None:
    """Through its alias, too; and it is not revoked twice, nor promoted."""
    revoked = index.revoking(A, reason="it knows a patient's name", now=NOW)

    for use in (
        lambda: revoked.target("production"),
        lambda: revoked.require_usable(A),
        lambda: revoked.moved("candidate", A, expected=None, reason="x", now=NOW),
        lambda: revoked.revoking(A, reason="again", now=NOW),
    ):
        with pytest.raises(ReleaseError, match=r"was revoked on 2026.*a patient's name"):
            use()


def test_names_that_are_not_there_are_refused(index: Index) -> None:
    """The message says which aliases there are."""
    with pytest.raises(ReleaseError, match="no alias staging, only: latest, production"):
        index.target("staging")
    with pytest.raises(ReleaseError, match="no release cccccccccccc"):
        index.moved("production", C, expected=A, reason="x", now=NOW)


def test_an_index_expires(index: Index) -> None:
    """Who is kept from newer versions notices; a renewal says the same for longer."""
    index.require_fresh(now=NOW + LIFETIME)
    with pytest.raises(ReleaseError, match="expired on 2026-01-31"):
        index.require_fresh(now=NOW + LIFETIME + timedelta(seconds=1))

    renewed = index.renewed(now=NOW + LIFETIME)
    renewed.require_fresh(now=NOW + 2 * LIFETIME)
    assert (renewed.version, renewed.aliases) == (index.version + 1, index.aliases)


def test_what_follows_forgets_nothing(index: Index) -> None:
    """Neither a release, nor that it was revoked, nor a version."""
    revoked = index.revoking(A, reason="x", now=NOW)
    revoked.require_follows(index)
    forgotten = revoked.model_copy(update={"releases": {B: index.releases[B]}})
    unrevoked = revoked.renewed(now=NOW).model_copy(update={"releases": index.releases})

    with pytest.raises(ReleaseError, match="never forgets"):
        forgotten.require_follows(index)
    with pytest.raises(ReleaseError, match="never forgets"):
        unrevoked.require_follows(revoked)
    for other in (index, revoked.renewed(now=NOW), revoked.model_copy(update={"name": "other"})):
        with pytest.raises(ReleaseError, match="does not follow"):
            other.require_follows(index)


def test_a_seal_is_the_publishers(index: Index, signer: Signer, tmp_path: Path) -> None:
    """What comes out is what went in; another's key, another type or a changed byte is refused."""
    envelope = index.seal(signer)
    assert Index.unseal(envelope, key=signer.public, source="x") == index

    other = new_key(tmp_path / "other")
    with pytest.raises(ReleaseError, match="signature is not good"):
        Index.unseal(envelope, key=other, source="x")
    payload = canonical(index.model_dump(mode="json", exclude_none=True))
    with pytest.raises(ReleaseError, match="signature is not good"):
        Index.unseal(seal(payload, "another/type", signer=signer), key=signer.public, source="x")
    for position in range(0, len(envelope), 7):
        changed = bytearray(envelope)
        changed[position] ^= 1
        with pytest.raises(ReleaseError):
            Index.unseal(bytes(changed), key=signer.public, source="x")
