"""Ed25519 signatures, verified: with `cryptography` where it is installed, else in Python.

Debian's python3 has no `cryptography`, and this program must run there as one file. RFC 8032,
section 5.1.7, without the cofactor, as Go and OpenSSL do it: the encoding of [S]B - [h]A must be R.
Nothing here is secret, so nothing has to take constant time.
"""

from __future__ import annotations

import hashlib
from typing import Final, NamedTuple, Protocol

KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64

# RFC 8032, section 5.1: the field, the order of B, the curve's d, the root of -1.
P: Final = 2**255 - 19
L: Final = 2**252 + 27742317777372353535851937790883648493
D: Final = -121665 * pow(121666, -1, P) % P
D2: Final = 2 * D % P
SQRT_M1: Final = pow(2, (P - 1) // 4, P)

# What is added is kept as (y + x, y - x, 2dxy): seven multiplications instead of nine.
Affine = tuple[int, int, int]
# Bits of S that one row of the table of B stands for: 32 rows of 128 points, 1 MB, about 30 ms.
_ROW_BITS: Final = 8
# Width of the digits of h (wNAF): 8 odd multiples of A, some 43 additions.
_DIGIT_BITS: Final = 5


class Extended(NamedTuple):
    """A point as X, Y, Z, T with x = X/Z, y = Y/Z, xy = T/Z."""

    x: int
    y: int
    z: int
    t: int


class Verifier(Protocol):
    """Says whether `signature` (64 bytes) is `key`'s (32 bytes) over `message`. Never raises."""

    def __call__(self, key: bytes, message: bytes, signature: bytes, /) -> bool: ...


def _x_of(y: int, sign: int) -> int | None:
    """The x that goes with y, or None where the curve has no such point."""
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * SQRT_M1 % P
    if (x * x - square) % P or (x == 0 and sign):
        return None
    return P - x if x & 1 != sign else x


def _add(a: Extended, b: Extended) -> Extended:
    """a + b in general (complete: a may be b)."""
    low = (a.y - a.x) * (b.y - b.x) % P
    high = (a.y + a.x) * (b.y + b.x) % P
    c = D2 * a.t * b.t % P
    d = 2 * a.z * b.z % P
    e, f, g, h = high - low, d - c, d + c, high + low
    return Extended(e * f % P, g * h % P, f * g % P, e * h % P)


def _affine(points: list[Extended]) -> list[Affine]:
    """Points as they are added, with one inversion for all of them (Montgomery)."""
    products = [1]
    for point in points:
        products.append(products[-1] * point.z % P)
    inverse = pow(products[-1], -1, P)
    found: list[Affine] = []
    for point, before in zip(reversed(points), reversed(products[:-1]), strict=True):
        z = inverse * before % P
        inverse = inverse * point.z % P
        x, y = point.x * z % P, point.y * z % P
        found.append(((y + x) % P, (y - x) % P, D2 * x % P * y % P))
    return found[::-1]


def _table_of_base() -> list[list[Affine]]:
    """Row i holds 1 to 128 times 256^i B (negative digits are subtracted)."""
    y = 4 * pow(5, -1, P) % P
    x = _x_of(y, 0)
    assert x is not None
    base = Extended(x, y, 1, x * y % P)
    points: list[Extended] = []
    for _ in range(256 // _ROW_BITS):
        row = [base]
        for _ in range((1 << (_ROW_BITS - 1)) - 1):
            row.append(_add(row[-1], base))
        points += row
        base = _add(row[-1], row[-1])
    flat = _affine(points)
    size = 1 << (_ROW_BITS - 1)
    return [flat[start : start + size] for start in range(0, len(flat), size)]


def _digits(scalar: int) -> list[tuple[int, int]]:
    """(position, odd digit) from the top down, so that their sum of digit * 2^position is it."""
    found: list[tuple[int, int]] = []
    position = 0
    while scalar:
        skip = (scalar & -scalar).bit_length() - 1
        scalar >>= skip
        position += skip
        digit = scalar & ((1 << _DIGIT_BITS) - 1)
        if digit >> (_DIGIT_BITS - 1):
            digit -= 1 << _DIGIT_BITS
        scalar -= digit
        found.append((position, digit))
    return found[::-1]


class PythonVerifier:
    """Verification in Python: about 1 ms on the machine that FACTS was measured on."""

    name: Final = "python"

    def __init__(self) -> None:
        self._base = _table_of_base()

    def __call__(self, key: bytes, message: bytes, signature: bytes, /) -> bool:
        if len(key) != KEY_BYTES or len(signature) != SIGNATURE_BYTES:
            return False
        s = int.from_bytes(signature[32:], "little")
        encoded = int.from_bytes(key, "little")
        y = (encoded & ((1 << 255) - 1)) % P
        x = _x_of(y, encoded >> 255)
        if s >= L or x is None:
            return False
        digest = hashlib.sha512(signature[:32] + key + message).digest()
        h = int.from_bytes(digest, "little") % L
        minus_a = Extended(P - x, y, 1, (P - x) * y % P)
        x, y, z = self._add_base(_times(h, minus_a), s)
        inverse = pow(z, -1, P)
        return (y * inverse % P | (x * inverse % P & 1) << 255) == int.from_bytes(
            signature[:32], "little"
        )

    def _add_base(self, point: Extended, scalar: int) -> tuple[int, int, int]:
        """X, Y, Z of point + scalar * B, by the table: one addition a byte of the scalar."""
        x, y, z, t = point
        carry = False
        for row in self._base:
            digit = (scalar & 255) + carry
            scalar >>= _ROW_BITS
            carry = digit >= 128
            if carry:
                digit -= 256
            if not digit:
                continue
            if digit > 0:
                plus, minus, product = row[digit - 1]
            else:
                minus, plus, product = row[-digit - 1]
                product = -product
            low, high = (y - x) * minus % P, (y + x) * plus % P
            c = t * product % P
            e, f, g, h = high - low, 2 * z - c, 2 * z + c, high + low
            x, y, z, t = e * f % P, g * h % P, f * g % P, e * h % P
        return x, y, z


def _times(scalar: int, point: Extended) -> Extended:
    """scalar * point: doublings and, at its odd digits, additions of odd multiples of point."""
    twice = _add(point, point)
    odd = [point]
    for _ in range((1 << (_DIGIT_BITS - 2)) - 1):
        odd.append(_add(odd[-1], twice))
    multiples = _affine(odd)
    x, y, z, t = 0, 1, 1, 0
    digits = _digits(scalar)
    for index, (position, digit) in enumerate(digits):
        plus, minus, product = multiples[abs(digit) >> 1]
        if digit < 0:
            plus, minus, product = minus, plus, -product
        low, high = (y - x) * minus % P, (y + x) * plus % P
        c = t * product % P
        e, f, g, h = high - low, 2 * z - c, 2 * z + c, high + low
        x, y, z, t = e * f % P, g * h % P, f * g % P, e * h % P
        below = digits[index + 1][0] if index + 1 < len(digits) else 0
        for _ in range(position - below):
            xx, yy = x * x, y * y
            h = xx + yy
            e, g = (h - (x + y) ** 2) % P, (xx - yy) % P
            f = (2 * z * z + g) % P
            x, y, z = e * f % P, g * h % P, f * g % P
        if below != position:
            t = e * h % P  # needed by the next addition only
    return Extended(x, y, z, t)


class CryptographyVerifier:
    """Verification by OpenSSL through `cryptography`; ImportError where it is not installed."""

    name: Final = "cryptography"

    def __init__(self) -> None:
        from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - may not be there
        from cryptography.hazmat.primitives.asymmetric.ed25519 import (  # noqa: PLC0415
            Ed25519PublicKey,
        )

        self._read = Ed25519PublicKey.from_public_bytes
        self._wrong = (InvalidSignature, ValueError)

    def __call__(self, key: bytes, message: bytes, signature: bytes, /) -> bool:
        try:
            self._read(key).verify(signature, message)
        except self._wrong:
            return False
        return True


def best_verifier() -> PythonVerifier | CryptographyVerifier:
    """OpenSSL's where it is to be had: some ten times as fast, and the same answers (tested)."""
    try:
        return CryptographyVerifier()
    except ImportError:
        return PythonVerifier()
