"""Safetensors files in pieces."""

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from fedlora.tensor_file import pieces


def test_safetensors_reads_what_was_written(tmp_path):
    """Names, types, shapes, values and metadata come back, empty tensors and scalars too."""
    tensors = {
        "b": torch.randn(3, 5),
        "a": torch.randn(2, dtype=torch.float64),
        "step": torch.tensor(7),
        "none": torch.empty(0),
    }
    path = tmp_path / "state.safetensors"
    with path.open("wb") as file:
        file.writelines(pieces(tensors, metadata={"format": "pt"}))
    again = load_file(path)
    assert again.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert again[name].dtype == tensor.dtype
        assert torch.equal(again[name], tensor)
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_no_tensor_is_copied():
    """A piece is the tensor's own memory."""
    tensor = torch.zeros(4)
    *_, piece = pieces({"a": tensor})
    tensor[0] = 1.0
    assert bytes(piece[:4]) == tensor[:1].numpy().tobytes()
