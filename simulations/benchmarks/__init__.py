"""What fedlora's numbers come from: ours and the peer, interleaved, on the same work."""

import fedlora  # noqa: F401 - before torch, whose waiting threads then sleep
