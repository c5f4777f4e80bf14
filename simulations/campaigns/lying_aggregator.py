"""What an aggregator tells members of a secure sum that is not so."""

import random
from collections.abc import Callable, Mapping

from google.protobuf.message import Message

from fedlora.privacy.secure_aggregation import statements
from fedlora.privacy.secure_aggregation.primitives import KeyPair
from fedlora.secure_sum.v1 import secure_sum_pb2 as pb
from simulations.secure_sum_lies import scatter_survivors, split_inboxes, split_survivors
from simulations.secure_sums import Cohort, new_signer


def _split_survivors(cohort: Cohort, colluders: int, generator: random.Random) -> None:
    split_survivors(cohort, colluders, first=generator.randrange(len(cohort.vectors) - colluders))


def _split_shares(cohort: Cohort, colluders: int, _generator: random.Random) -> None:
    split_inboxes(cohort, colluders)


def _scattered_survivors(cohort: Cohort, colluders: int, _generator: random.Random) -> None:
    scatter_survivors(cohort, colluders)


def _other_keys(cohort: Cohort, _colluders: int, generator: random.Random) -> None:
    """Put keys of the aggregator's in a member's place, in some rosters."""
    stranger, keys = new_signer(), KeyPair.generate()

    def tell(_site: str, message: Message | None) -> Message | None:
        if isinstance(message, pb.Roster) and generator.random() < 0.5:
            member = generator.choice(list(message.members))
            said = statements.advertised(
                stranger,
                site=member.site,
                context=member.context,
                mask_key=keys.public,
                seal_key=keys.public,
                seed=bytes(32),
            )
            member.CopyFrom(said)
        return message

    cohort.tell = tell
    cohort.total()


def _hidden_shares(cohort: Cohort, _colluders: int, generator: random.Random) -> None:
    """Withhold some shares from some."""

    def tell(_site: str, message: Message | None) -> Message | None:
        if isinstance(message, pb.Inbox) and message.sealed and generator.random() < 0.5:
            del message.sealed[generator.randrange(len(message.sealed))]
        return message

    cohort.tell = tell
    cohort.total()


def _old_shares(cohort: Cohort, _colluders: int, generator: random.Random) -> None:
    """Show some what was sealed for them in another attempt."""
    before = Cohort(cohort.vectors, cohort.terms, signers=cohort.signers)
    old = before.share(before.advertise())

    def tell(site: str, message: Message | None) -> Message | None:
        if isinstance(message, pb.Inbox) and generator.random() < 0.5:
            number = generator.randrange(len(message.sealed))
            message.sealed[number].CopyFrom(old[site].sealed[number])
        return message

    cohort.tell = tell
    cohort.total()


def _unsigned_survivors(cohort: Cohort, _colluders: int, generator: random.Random) -> None:
    """Ask some to reveal for survivors that they have not signed, or with too few signatures."""

    def tell(_site: str, message: Message | None) -> Message | None:
        if isinstance(message, pb.Unmasking) and generator.random() < 0.5:
            if generator.random() < 0.5:
                del message.signatures[cohort.terms.threshold - 1 :]
            else:
                sites = message.survivors.sites
                del sites[generator.randrange(len(sites))]
        return message

    cohort.tell = tell
    cohort.total()


LIES: Mapping[str, Callable[[Cohort, int, random.Random], None]] = {
    "different survivors": _split_survivors,
    "other survivors to each": _scattered_survivors,
    "different shares": _split_shares,
    "the aggregator's keys": _other_keys,
    "withheld shares": _hidden_shares,
    "shares of another attempt": _old_shares,
    "survivors that few signed": _unsigned_survivors,
}
