"""An adapter's folder held against the engines' rules."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedlora.errors import ReleaseError
from fedlora.release.engines.adapter import AdapterFolder
from fedlora.release.engines.rule import ENGINES, Engine, Severity, Verdict
from fedlora.release.engines.rules import RULES
from fedlora.release.engines.traits import Options

_WORST: Sequence[Severity] = ("refuses", "wrong results", "warns")
UNSEEN: Mapping[Engine, str] = {
    "vllm": "which modules the base has; vLLM adapts its linear layers, and embeddings of few.",
    "lorax": "how the adapter is named: LoRAX keeps what it once loaded under a name.",
    "sglang": "its --lora-target-modules; by default those of the adapters that it starts with.",
    "ollama": "the base: Ollama converts adapters of Llama, Mistral and Gemma 2 only.",
}
"""What the folder does not tell."""


@dataclass(frozen=True)
class Finding:
    """Something in a folder, and what the engines do with it."""

    found: str
    advice: str
    engines: Mapping[Engine, Verdict]


@dataclass(frozen=True)
class Report:
    """What engines make of an adapter."""

    adapter: AdapterFolder
    engines: Sequence[Engine]
    findings: Sequence[Finding]

    def verdict(self, engine: Engine) -> Severity | None:
        """Return the worst that an engine does; None if it has nothing against the adapter."""
        severities = {f.engines[engine].severity for f in self.findings if engine in f.engines}
        return next((each for each in _WORST if each in severities), None)

    @property
    def all_load_it(self) -> bool:
        """Whether each engine loads it and computes what PEFT would."""
        return all(self.verdict(engine) in {None, "warns"} for engine in self.engines)


def lint(folder: Path, *, engines: Collection[Engine] = ENGINES, options: Options) -> Report:
    """Return what engines make of a PEFT folder, whoever wrote it. No pickle is opened.

    Raises:
        AdapterError: it is no adapter's folder.
    """
    adapter = AdapterFolder.read(folder)
    findings = []
    for rule in RULES:
        concerned = {e: verdict for e, verdict in rule.engines.items() if e in engines}
        if concerned and (found := rule.find(adapter, options)):
            findings.append(Finding(found, rule.advice, concerned))
    return Report(adapter, [e for e in ENGINES if e in engines], findings)


def require_loadable(folder: Path, engine: Engine) -> None:
    """Do nothing if an engine loads an adapter and computes what PEFT would.

    Raises:
        ReleaseError: it does not.
    """
    report = lint(folder, engines={engine}, options=Options())
    grave = [f for f in report.findings if f.engines[engine].severity != "warns"]
    if grave:
        found = "; ".join(f"{finding.found}. {finding.engines[engine].why}" for finding in grave)
        raise ReleaseError(
            f"{folder}: {engine} does not serve it as it is: {found} What to do: fedlora adapters "
            f"lint {folder} --for {engine}"
        )
