"""What fedlora's numbers come from: ours and the peer, interleaved, on the same work."""
