"""Ed25519 signatures (RFC 8032), verified by OpenSSL's libcrypto through ctypes.

Debian's python3 has no `cryptography`, and this program must run there as one file. libcrypto is
there: Python's own `hashlib` and `ssl` need it.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from typing import Final, Protocol

KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64

# NID_ED25519 of OpenSSL's obj_mac.h.
_EVP_PKEY_ED25519: Final = 1087
# OpenSSL 3 (Debian 12 and later, Ubuntu 22.04 and later).
_LIBRARY: Final = "libcrypto.so.3"


class Verifier(Protocol):
    """Says whether `signature` (64 bytes) is `key`'s (32 bytes) over `message`. Never raises."""

    def __call__(self, key: bytes, message: bytes, signature: bytes, /) -> bool: ...


class LibcryptoVerifier:
    """Verification by OpenSSL 1.1.1 or newer. OSError where there is none."""

    name: Final = "libcrypto"

    def __init__(self) -> None:
        library = _load()
        pointer, size, text = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p
        self._new_key = library.EVP_PKEY_new_raw_public_key
        self._new_key.argtypes, self._new_key.restype = [ctypes.c_int, pointer, text, size], pointer
        self._free_key = library.EVP_PKEY_free
        self._free_key.argtypes, self._free_key.restype = [pointer], None
        self._new_context = library.EVP_MD_CTX_new
        self._new_context.argtypes, self._new_context.restype = [], pointer
        self._free_context = library.EVP_MD_CTX_free
        self._free_context.argtypes, self._free_context.restype = [pointer], None
        self._begin = library.EVP_DigestVerifyInit
        self._begin.argtypes = [pointer, pointer, pointer, pointer, pointer]
        self._verify = library.EVP_DigestVerify
        self._verify.argtypes = [pointer, text, size, text, size]
        self._clear_errors = library.ERR_clear_error
        self._clear_errors.argtypes, self._clear_errors.restype = [], None

    def __call__(self, key: bytes, message: bytes, signature: bytes, /) -> bool:
        public = self._new_key(_EVP_PKEY_ED25519, None, key, len(key))
        context = self._new_context()
        try:
            return bool(
                public
                and context
                and self._begin(context, None, None, None, public) == 1
                and self._verify(context, signature, len(signature), message, len(message)) == 1
            )
        finally:
            # Both take NULL. A failure is left in the thread's queue of errors, where another user
            # of OpenSSL in this thread would take it for its own.
            self._free_context(context)
            self._free_key(public)
            self._clear_errors()


def _load() -> ctypes.CDLL:
    try:
        return ctypes.CDLL(_LIBRARY)
    except OSError:
        name = ctypes.util.find_library("crypto")
        if name is None:
            raise OSError(f"{_LIBRARY} is not installed; Debian's package is libssl3") from None
        return ctypes.CDLL(name)
