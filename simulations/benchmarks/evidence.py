"""What evidence costs for each answer, beside the gate's step without it.

A gate encodes an update of 40 million parameters in int8. With evidence it also digests the exact
bytes and the whole content, writes a signed entry that is on disk before the answer goes out, and
signs the log's head. The other figure is of a whole exchange: the instruction, whose adapter is
float32 and four times as large, is digested too, and there are four entries, the aggregator's
receipt among them; beside it stands reading the one adapter and encoding the other.

Then a deployment is captured (``capture.py``): the payloads by its sites' logs against those by the
aggregator, and what the rest of the wire's bytes are.
"""

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flwr.app import RecordDict

from fedlora.adapter import AdapterState
from fedlora.gate.evidence.entries import Decided, Received, Released
from fedlora.gate.evidence.log import EvidenceLog
from fedlora.gate.evidence.statements import Receipt
from fedlora.runtime import records
from fedlora.signing import Signer, new_key
from fedlora.wire.codec import Envelope, decode_state, encode_state, encode_update
from simulations.benchmarks import capture
from simulations.benchmarks.measure import compare, interleaved, report
from simulations.benchmarks.replies import adapter_spec, increment

LIMITS = {"answer with evidence / without": 1.5}
_MOST_BYTES = 2**31


class _Gate:
    """A gate with a log, a key, and an update that is ready to leave."""

    def __init__(self, folder: Path) -> None:
        spec = adapter_spec()
        self._update = increment(spec, seed=0)
        self._envelope = Envelope(spec=spec, run="evidence", round=1)
        new_key(folder / "gate.key")
        self._signer = Signer.load(folder / "gate.key")
        self._log = EvidenceLog(folder / "evidence", site="north", signer=self._signer)
        self._text = self._log.keep("name: evidence\n")
        state = AdapterState.initial(spec, seed=0)
        encoded = encode_state(state, self._envelope, compress=False)
        self._instruction = RecordDict({"adapter": records.pack(encoded)})

    def answer(self) -> RecordDict:
        """Return an answer as it leaves without evidence."""
        payload = encode_update(self._update, self._envelope, codec="int8", compress=False)
        return records.reply({}, payload=payload)

    def answer_with_evidence(self) -> None:
        """Log an answer, and sign how far the log has come."""
        content = self.answer()
        self._log.append(
            Released(
                **self._asked,
                **asdict(records.digests_of(content)),
                metrics=(),
                recipe=self._text,
                spec=self._update.spec.digest,
                ledger_count=None,
                ledger_hash=None,
            )
        )
        records.add_evidence(content, self._log.signed_head())

    def exchange(self) -> None:
        """Read an instruction and answer it."""
        self._read()
        self.answer()

    def exchange_with_evidence(self) -> None:
        """Log an instruction, what was decided, its receipt, and the answer."""
        head = self._log.head()
        # its own key stands in for the aggregator's
        receipt = Receipt.sign(self._signer, count=head.count, hash=head.hash, site="north")
        self._log.require_receipted(receipt, aggregator=self._signer.public)
        self._log.append(
            Received(
                **self._asked,
                **asdict(records.digests_of(self._instruction)),
                recipe=self._text,
                spec=self._update.spec.digest,
            )
        )
        self._log.append(Decided(**self._asked, allowed=True, reasons=(), policy=self._text))
        self._read()
        self.answer_with_evidence()

    def _read(self) -> None:
        payload = records.unpack(self._instruction)
        decode_state(payload, self._envelope, compress=False, max_bytes=_MOST_BYTES)

    @property
    def _asked(self) -> dict[str, Any]:
        return {"run": "evidence", "round": 1, "purpose": "train", "message": "0" * 64}


def run(n: int) -> None:
    """Time answers and exchanges with evidence and without, capture a deployment; print all."""
    with tempfile.TemporaryDirectory() as name:
        gate = _Gate(Path(name))

        def answer() -> None:
            gate.answer()

        seconds = interleaved(
            {
                "answer": answer,
                "answer with evidence": gate.answer_with_evidence,
                "exchange": gate.exchange,
                "exchange with evidence": gate.exchange_with_evidence,
            },
            n=n,
        )
    bars = [
        compare(
            f"{name} with evidence / without",
            seconds,
            ours=f"{name} with evidence",
            peer=name,
            at_most=LIMITS.get(f"{name} with evidence / without"),
        )
        for name in ("answer", "exchange")
    ]
    report("evidence", [*bars, *capture.run()], LIMITS | capture.LIMITS)
