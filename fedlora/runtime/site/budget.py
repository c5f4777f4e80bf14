"""What a site charges to its ledger for a run, always before anything is drawn."""

import hmac
import json
import os
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

from fedlora import atomic
from fedlora.privacy.accounting.renyi_filter import RenyiFilter
from fedlora.privacy.ledger import DEFAULT_ACCOUNT, Committed, Ledger
from fedlora.privacy.mechanism import KeyStream
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
        return self._ledger.commit(
            DEFAULT_ACCOUNT,
            self.run,
            purpose="train",
            number=number,
            charge=replace(charge, sensitivity=clip_norm),
            data=self._data,
        )

    def evaluation(self, number: int) -> Committed:
        """Charge the evaluation of the global adapter of round ``number``."""
        return self._ledger.commit(
            DEFAULT_ACCOUNT,
            self.run,
            purpose="evaluate",
            number=number,
            charge=evaluation_charge(self.site.recipe),
            data=self._data,
        )

    def stream(self, name: str) -> KeyStream:
        """Return where the noise and samples of one charge come from."""
        return noise_stream(self.site.recipe, f"{self.site.name}/{name}")

    @cached_property
    def _ledger(self) -> Ledger:
        """The site's ledger, in which the run has reserved the most that it will draw."""
        recipe, folder = self.site.recipe, site_folder(self.site.name)
        maximum = run_charges(recipe, self.site.name)
        return reserved(
            folder / _LEDGER, DEFAULT_ACCOUNT, run=self.run, recipe=recipe, maximum=maximum
        )

    @property
    def _data(self) -> str:
        """What tells the operator which data a charge was for."""
        return _fingerprint(self.site, _key(site_folder(self.site.name) / _KEY))


@lru_cache(maxsize=64)  # all rows are read: once, not in each round
def _fingerprint(site: Site, key: bytes) -> str:
    """Return a keyed digest of the site's rows."""
    rows = [[list(row.input_ids) for row in part] for part in (site.train_rows, site.held_out_rows)]
    return hmac.digest(key, json.dumps(rows).encode(), "sha256").hex()


def _key(path: Path) -> bytes:
    """Return the key of this site's fingerprints, the same in all of its processes."""
    if not path.is_file():
        atomic.write_secret(path, os.urandom(_KEY_BYTES))
    return path.read_bytes()
