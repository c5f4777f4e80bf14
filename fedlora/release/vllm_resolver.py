"""A plug-in with which vLLM fetches verified releases when a request names them.

vLLM calls ``register`` in each of its processes (entry point ``vllm.general_plugins``). A request
for the model ``NAME@ALIAS`` or ``NAME@RELEASE`` then loads that release from the registry that
``FEDLORA_REGISTRY`` names; vLLM keeps it on GPU, CPU or disk as it does with any adapter. The
interface is that of ``vllm/lora/resolver.py`` in vLLM 0.33.
"""

import asyncio
import functools
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from fedlora.errors import ReleaseError, plain
from fedlora.release.folder import Release
from fedlora.release.home import puller
from fedlora.release.registry_file import ENVIRONMENT, RegistryFile, registry_path
from fedlora.release.source import parse

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest

BASE_ENVIRONMENT = "FEDLORA_BASE_MODEL"
"""What releases call the base, where vLLM serves it from another path or under another name."""

_LARGEST_ID = 2**31 - 1
_AT_ONCE = 8
"""Releases that are fetched at once."""
_AGAIN_AFTER_S = 5.0
"""Before a name that failed is asked for again."""
_log = logging.getLogger(__name__)


class Fetcher:
    """Fetches the releases that requests name, off the event loop.

    What failed is not asked for again at once: anybody may send requests, for names that are none.

    Args:
        pull: returns a verified release by ``NAME@ALIAS`` or ``NAME@RELEASE``.
    """

    def __init__(self, pull: Callable[[str], Release]) -> None:
        self._pull = pull
        self._failed: dict[str, float] = {}
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="fedlora")

    async def fetch(self, base_model: str, name: str) -> Release | None:
        """Return a release; None if the name is none of ours, or it cannot or may not be served.

        Why it may not is in the log. The base model must be the one that it was made for.

        Args:
            base_model: what vLLM serves, as its ``--model`` says.
            name: the model that a request names.
        """
        if "@" not in name or self._has_failed(name):
            return None
        try:
            parse(name)
            loop = asyncio.get_running_loop()
            release = await loop.run_in_executor(self._threads, self._pull, name)
            _require_base(release, os.environ.get(BASE_ENVIRONMENT) or base_model)
        except Exception as error:  # noqa: BLE001 - whatever it is, the request is answered with 404
            self._failed[name] = time.monotonic()
            _log.warning("%.100r is not served: %s", name, plain(str(error)))
            return None
        return release

    def _has_failed(self, name: str) -> bool:
        """Whether a name failed a moment ago; who failed longer ago is forgotten."""
        recent = time.monotonic() - _AGAIN_AFTER_S
        self._failed = {each: at for each, at in self._failed.items() if at > recent}
        return name in self._failed


def id_of(release: Release) -> int:
    """Return a number of 31 bits for a release: the same everywhere, never 0."""
    return 1 + int(release.id, 16) % _LARGEST_ID


def register() -> None:
    """Register the resolver with vLLM; nothing happens where no registry is named.

    Raises:
        ReleaseError: the registry file cannot be read.
    """
    if not os.environ.get(ENVIRONMENT):
        return
    RegistryFile.read(registry_path(None))  # a mistake is better found now than at a request
    from vllm.lora.request import LoRARequest  # noqa: PLC0415 - there in vLLM's processes alone
    from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry  # noqa: PLC0415 - as above

    class FedloraResolver(LoRAResolver):  # type: ignore[misc] # vLLM is no dependency
        """Finds releases in a registry."""

        def __init__(self) -> None:
            reader = functools.cache(lambda: puller(None))  # one connection, and none before a fork
            self._fetcher = Fetcher(lambda name: reader().pull(name))

        async def resolve_lora(self, base_model_name: str, lora_name: str) -> "LoRARequest | None":
            release = await self._fetcher.fetch(base_model_name, lora_name)
            return release and _request(LoRARequest, lora_name, release)

    LoRAResolverRegistry.register_resolver("fedlora", FedloraResolver())


def _request(kind: Callable[..., Any], name: str, release: Release) -> "LoRARequest":
    """Return what vLLM loads: under the name that was asked for, which it keys its tables by."""
    return kind(lora_name=name, lora_int_id=id_of(release), lora_path=str(release.folder.resolve()))


def _require_base(release: Release, served: str) -> None:
    manifest = release.manifest
    if manifest.kind != "adapter":
        raise ReleaseError(f"{release.id[:12]} is a merged model: serve it by itself.")
    if manifest.base.name != served:
        raise ReleaseError(
            f"{release.id[:12]} is for {manifest.base.name}, but {served} is served. If that is "
            f"the same by another name, set {BASE_ENVIRONMENT}={manifest.base.name}."
        )
