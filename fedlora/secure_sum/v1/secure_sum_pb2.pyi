from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Advertisement(_message.Message):
    __slots__ = ("site", "identity", "context", "mask_key", "seal_key", "seed_digest", "signature")
    SITE_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    MASK_KEY_FIELD_NUMBER: _ClassVar[int]
    SEAL_KEY_FIELD_NUMBER: _ClassVar[int]
    SEED_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    site: str
    identity: bytes
    context: bytes
    mask_key: bytes
    seal_key: bytes
    seed_digest: bytes
    signature: bytes
    def __init__(self, site: _Optional[str] = ..., identity: _Optional[bytes] = ..., context: _Optional[bytes] = ..., mask_key: _Optional[bytes] = ..., seal_key: _Optional[bytes] = ..., seed_digest: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Roster(_message.Message):
    __slots__ = ("members", "digest")
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    members: _containers.RepeatedCompositeFieldContainer[Advertisement]
    digest: bytes
    def __init__(self, members: _Optional[_Iterable[_Union[Advertisement, _Mapping]]] = ..., digest: _Optional[bytes] = ...) -> None: ...

class Sealed(_message.Message):
    __slots__ = ("site", "text")
    SITE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    site: str
    text: bytes
    def __init__(self, site: _Optional[str] = ..., text: _Optional[bytes] = ...) -> None: ...

class Shares(_message.Message):
    __slots__ = ("sealed",)
    SEALED_FIELD_NUMBER: _ClassVar[int]
    sealed: _containers.RepeatedCompositeFieldContainer[Sealed]
    def __init__(self, sealed: _Optional[_Iterable[_Union[Sealed, _Mapping]]] = ...) -> None: ...

class Inbox(_message.Message):
    __slots__ = ("sealed",)
    SEALED_FIELD_NUMBER: _ClassVar[int]
    sealed: _containers.RepeatedCompositeFieldContainer[Sealed]
    def __init__(self, sealed: _Optional[_Iterable[_Union[Sealed, _Mapping]]] = ...) -> None: ...

class Survivors(_message.Message):
    __slots__ = ("sites",)
    SITES_FIELD_NUMBER: _ClassVar[int]
    sites: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, sites: _Optional[_Iterable[str]] = ...) -> None: ...

class Signature(_message.Message):
    __slots__ = ("site", "signature")
    SITE_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    site: str
    signature: bytes
    def __init__(self, site: _Optional[str] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Unmasking(_message.Message):
    __slots__ = ("survivors", "signatures")
    SURVIVORS_FIELD_NUMBER: _ClassVar[int]
    SIGNATURES_FIELD_NUMBER: _ClassVar[int]
    survivors: Survivors
    signatures: _containers.RepeatedCompositeFieldContainer[Signature]
    def __init__(self, survivors: _Optional[_Union[Survivors, _Mapping]] = ..., signatures: _Optional[_Iterable[_Union[Signature, _Mapping]]] = ...) -> None: ...

class Share(_message.Message):
    __slots__ = ("site", "share")
    SITE_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    site: str
    share: bytes
    def __init__(self, site: _Optional[str] = ..., share: _Optional[bytes] = ...) -> None: ...

class Revealed(_message.Message):
    __slots__ = ("seeds", "mask_keys")
    SEEDS_FIELD_NUMBER: _ClassVar[int]
    MASK_KEYS_FIELD_NUMBER: _ClassVar[int]
    seeds: _containers.RepeatedCompositeFieldContainer[Share]
    mask_keys: _containers.RepeatedCompositeFieldContainer[Share]
    def __init__(self, seeds: _Optional[_Iterable[_Union[Share, _Mapping]]] = ..., mask_keys: _Optional[_Iterable[_Union[Share, _Mapping]]] = ...) -> None: ...
