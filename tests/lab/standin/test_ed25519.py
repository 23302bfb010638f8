"""Signatures: RFC 8032's vectors, and libcrypto by ctypes against the `cryptography` package."""

from __future__ import annotations

import hashlib

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.standin.ed25519 import LibcryptoVerifier

VERIFY = LibcryptoVerifier()
# The order of the base point (RFC 8032, section 5.1).
L = 2**252 + 27742317777372353535851937790883648493
# RFC 8032, section 7.1: tests 1, 2, 3 and SHA(abc): seed, message, signature.
VECTORS = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        b"",
        (
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
            "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
        ),
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        b"\x72",
        (
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
            "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
        ),
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        b"\xaf\x82",
        (
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
            "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a"
        ),
    ),
    (
        "833fe62409237b9d62ec77587520911e9a759cec1d19755b7da901b96dca3d42",
        hashlib.sha512(b"abc").digest(),
        (
            "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b589"
            "09351fc9ac90b3ecfdfbc7c66431e0303dca179c138ac17ad9bef1177331a704"
        ),
    ),
]


def _reference(key: bytes, message: bytes, signature: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def key_of(seed: bytes) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


@pytest.mark.parametrize(("seed", "message", "signature"), VECTORS)
def test_vectors(seed: str, message: bytes, signature: str) -> None:
    key, good = key_of(bytes.fromhex(seed)), bytes.fromhex(signature)
    assert VERIFY(key, message, good)
    assert not VERIFY(key, message + b"x", good)
    assert not VERIFY(key[::-1], message, good)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.binary(min_size=32, max_size=32),
    message=st.binary(max_size=200),
    where=st.integers(0, 64 * 8 - 1),
)
def test_it_agrees_with_cryptography(seed: bytes, message: bytes, where: int) -> None:
    private = Ed25519PrivateKey.from_private_bytes(seed)
    key, signature = private.public_key().public_bytes_raw(), private.sign(message)
    assert VERIFY(key, message, signature)
    flipped = bytearray(signature)
    flipped[where // 8] ^= 1 << where % 8
    assert VERIFY(key, message, bytes(flipped)) is _reference(key, message, bytes(flipped)) is False
    wrong = bytearray(key)
    wrong[where % 32] ^= 1 << where % 8
    assert VERIFY(bytes(wrong), message, signature) is _reference(bytes(wrong), message, signature)


@settings(max_examples=60, deadline=None)
@given(key=st.binary(min_size=32, max_size=32), signature=st.binary(min_size=64, max_size=64))
def test_noise_never_raises(key: bytes, signature: bytes) -> None:
    """(A key of small order takes some noise for a signature: both say so.)"""
    assert VERIFY(key, b"noise", signature) is _reference(key, b"noise", signature)


@pytest.mark.parametrize(
    ("key", "signature"), [(b"", b"\0" * 64), (b"\0" * 31, b"\0" * 64), (b"\0" * 32, b"\0" * 63)]
)
def test_wrong_sizes_do_not_verify(key: bytes, signature: bytes) -> None:
    assert not VERIFY(key, b"", signature)


def test_a_second_s_for_the_same_signature_is_refused() -> None:
    """S + L satisfies the equation, too: RFC 8032 wants S below L."""
    private = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
    signature = private.sign(b"m")
    s = int.from_bytes(signature[32:], "little") + L
    twin = signature[:32] + s.to_bytes(32, "little")
    assert VERIFY(private.public_key().public_bytes_raw(), b"m", signature)
    assert not VERIFY(private.public_key().public_bytes_raw(), b"m", twin)
