from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    KIND_UNSPECIFIED: _ClassVar[Kind]
    KIND_STATE: _ClassVar[Kind]
    KIND_TRAINED: _ClassVar[Kind]
    KIND_UPDATE: _ClassVar[Kind]

class Codec(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CODEC_UNSPECIFIED: _ClassVar[Codec]
    CODEC_FP32: _ClassVar[Codec]
    CODEC_BF16: _ClassVar[Codec]
    CODEC_INT8: _ClassVar[Codec]
    CODEC_NF4: _ClassVar[Codec]

class Compression(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    COMPRESSION_UNSPECIFIED: _ClassVar[Compression]
    COMPRESSION_NONE: _ClassVar[Compression]
    COMPRESSION_ZSTD: _ClassVar[Compression]

class Factor(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FACTOR_UNSPECIFIED: _ClassVar[Factor]
    FACTOR_A: _ClassVar[Factor]
    FACTOR_B: _ClassVar[Factor]
    FACTOR_HEAD: _ClassVar[Factor]

class Dtype(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DTYPE_UNSPECIFIED: _ClassVar[Dtype]
    DTYPE_FLOAT32: _ClassVar[Dtype]
    DTYPE_BFLOAT16: _ClassVar[Dtype]
    DTYPE_INT8: _ClassVar[Dtype]
    DTYPE_NF4: _ClassVar[Dtype]
KIND_UNSPECIFIED: Kind
KIND_STATE: Kind
KIND_TRAINED: Kind
KIND_UPDATE: Kind
CODEC_UNSPECIFIED: Codec
CODEC_FP32: Codec
CODEC_BF16: Codec
CODEC_INT8: Codec
CODEC_NF4: Codec
COMPRESSION_UNSPECIFIED: Compression
COMPRESSION_NONE: Compression
COMPRESSION_ZSTD: Compression
FACTOR_UNSPECIFIED: Factor
FACTOR_A: Factor
FACTOR_B: Factor
FACTOR_HEAD: Factor
DTYPE_UNSPECIFIED: Dtype
DTYPE_FLOAT32: Dtype
DTYPE_BFLOAT16: Dtype
DTYPE_INT8: Dtype
DTYPE_NF4: Dtype

class TensorHeader(_message.Message):
    __slots__ = ("module", "factor", "shape", "dtype", "offset")
    MODULE_FIELD_NUMBER: _ClassVar[int]
    FACTOR_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    module: str
    factor: Factor
    shape: _containers.RepeatedScalarFieldContainer[int]
    dtype: Dtype
    offset: int
    def __init__(self, module: _Optional[str] = ..., factor: _Optional[_Union[Factor, str]] = ..., shape: _Optional[_Iterable[int]] = ..., dtype: _Optional[_Union[Dtype, str]] = ..., offset: _Optional[int] = ...) -> None: ...

class AdapterHeader(_message.Message):
    __slots__ = ("kind", "codec", "run", "round", "spec_digest", "base_digest", "num_examples", "tensors", "compression")
    KIND_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    SPEC_DIGEST_FIELD_NUMBER: _ClassVar[int]
    BASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    NUM_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    COMPRESSION_FIELD_NUMBER: _ClassVar[int]
    kind: Kind
    codec: Codec
    run: str
    round: int
    spec_digest: bytes
    base_digest: bytes
    num_examples: int
    tensors: _containers.RepeatedCompositeFieldContainer[TensorHeader]
    compression: Compression
    def __init__(self, kind: _Optional[_Union[Kind, str]] = ..., codec: _Optional[_Union[Codec, str]] = ..., run: _Optional[str] = ..., round: _Optional[int] = ..., spec_digest: _Optional[bytes] = ..., base_digest: _Optional[bytes] = ..., num_examples: _Optional[int] = ..., tensors: _Optional[_Iterable[_Union[TensorHeader, _Mapping]]] = ..., compression: _Optional[_Union[Compression, str]] = ...) -> None: ...
