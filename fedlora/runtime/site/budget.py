"""What a site charges to its ledger for a run, always before anything is drawn."""

import hmac
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path

from fedlora import atomic
from fedlora.privacy.accounting.renyi_filter import RenyiFilter
from fedlora.privacy.charge import Charge
from fedlora.privacy.ledger import DEFAULT_ACCOUNT, Committed, Ledger, Purpose
from fedlora.privacy.mechanism import KeyStream
from fedlora.recipe import Recipe
from fedlora.runtime.account import noise_stream, reserved
from fedlora.runtime.charges import evaluation_charge, run_charges, training_charge
from fedlora.runtime.site.memory import site_folder
from fedlora.runtime.site.site import Site

_LEDGER, _KEY = "ledger.sqlite", "ledger.key"
_KEY_BYTES = 32


def site_ledger(site: str) -> Ledger:
    """Return a site's ledger, made if it is not there.

    Raises:
        BudgetError: it is broken, or an older one was restored.
        StorageError: it cannot be read or written.
    """
    return Ledger(site_folder(site) / _LEDGER, new_filter=RenyiFilter)


@dataclass(frozen=True, kw_only=True)
class Draw:
    """What a site is about to draw in a run."""

    run: str
    purpose: Purpose
    number: int
    """Of the round or query."""
    charge: Charge
    data: str
    """Keyed fingerprint of the site's rows: tells the operator which data it was for."""


Charger = Callable[[Recipe, str, Draw], Committed]
"""Commits a draw of a site, in a run of a recipe, before it happens."""


def charged(recipe: Recipe, site: str, draw: Draw) -> Committed:
    """Commit a draw to the site's ledger, in which the run first reserves the most it will draw.

    Raises:
        BudgetError: the account does not allow it, or as ``reserved``.
        StorageError: the ledger cannot be written.
    """
    ledger = reserved(
        site_folder(site) / _LEDGER,
        DEFAULT_ACCOUNT,
        run=draw.run,
        recipe=recipe,
        maximum=run_charges(recipe, site),
    )
    return ledger.commit(
        DEFAULT_ACCOUNT,
        draw.run,
        purpose=draw.purpose,
        number=draw.number,
        charge=draw.charge,
        data=draw.data,
    )


_charger = ContextVar[Charger]("charger", default=charged)


@contextmanager
def charging(charger: Charger) -> Iterator[None]:
    """Let another commit draws inside the block: a trainer is not let near the ledger."""
    token = _charger.set(charger)
    try:
        yield
    finally:
        _charger.reset(token)


@dataclass(frozen=True)
class SiteBudget:
    """One run's claim on a site's account.

    Raises:
        BudgetError: from each method, when the account does not allow what the recipe asks for, or
            as ``reserved``.
        StorageError: from each method, when the ledger cannot be written.
    """

    site: Site
    run: str

    def training(self, number: int, *, clip_norm: float) -> Committed:
        """Charge the private steps of round ``number``, the first of which clips to this norm."""
        recipe = self.site.recipe
        charge = training_charge(recipe, self.site.name, steps=recipe.federation.local_steps)
        return self._commit("train", number, replace(charge, sensitivity=clip_norm))

    def evaluation(self, number: int) -> Committed:
        """Charge the evaluation of the global adapter of round ``number``."""
        return self._commit("evaluate", number, evaluation_charge(self.site.recipe))

    def stream(self, name: str) -> KeyStream:
        """Return where the noise and samples of one charge come from."""
        return noise_stream(self.site.recipe, f"{self.site.name}/{name}")

    def _commit(self, purpose: Purpose, number: int, charge: Charge) -> Committed:
        key = _key(site_folder(self.site.name) / _KEY)
        data = hmac.digest(key, self.site.digest, "sha256").hex()
        draw = Draw(run=self.run, purpose=purpose, number=number, charge=charge, data=data)
        return _charger.get()(self.site.recipe, self.site.name, draw)


def _key(path: Path) -> bytes:
    """Return the key of this site's fingerprints, the same in all of its processes."""
    if not path.is_file():
        atomic.write_secret(path, os.urandom(_KEY_BYTES))
    return path.read_bytes()
