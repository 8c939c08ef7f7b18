"""Decrypts Fernet tokens: the PiCaS client encrypts passwords as such (client 1.1.2: crypto.py)."""

import base64
import hmac
from typing import Callable, List, Sequence


def decrypt_fernet(token: bytes, key: bytes) -> bytes:
    """Decrypt a Fernet token (AES-128-CBC, HMAC-SHA256): the nodes' Python has no library for it. Raises ValueError."""
    secret, data = base64.urlsafe_b64decode(key.strip()), base64.urlsafe_b64decode(token)
    body, iv, blocks = data[:-32], data[9:25], data[25:-32]
    if len(secret) != 32 or len(data) < 73 or len(blocks) % 16 or data[0] != 0x80:
        raise ValueError("not a Fernet token, or not a Fernet key")
    if not hmac.compare_digest(hmac.new(secret[:16], body, "sha256").digest(), data[-32:]):
        raise ValueError("encrypted with another key")
    decrypt, plain, previous = _aes_decryption(secret[16:]), b"", iv
    for place in range(0, len(blocks), 16):
        block = blocks[place : place + 16]
        plain += bytes(_xor(decrypt(block), previous))
        previous = block
    return plain[: -plain[-1]]


def _aes_decryption(key: bytes) -> Callable[[bytes], bytes]:
    """AES-128 decryption of one block with this key (FIPS 197). Not for other people's keys: the duration depends on
    the key."""
    box = _aes_box()
    inverse = [box.index(value) for value in range(256)]
    schedule, constant = list(key), 1
    while len(schedule) < 176:
        word = schedule[-4:]
        if len(schedule) % 16 == 0:
            word = [box[byte] for byte in word[1:] + word[:1]]
            word[0] ^= constant
            constant = _aes_times(constant, 2)
        schedule += _xor(schedule[-16:], word)

    def decrypt(block: bytes) -> bytes:
        state = _xor(block, schedule[160:])
        for start in range(144, -1, -16):
            state = [inverse[state[(place - 4 * (place % 4)) % 16]] for place in range(16)]
            state = _xor(state, schedule[start:])
            if start:
                state = [
                    _aes_times(state[place], 14)
                    ^ _aes_times(state[place // 4 * 4 + (place + 1) % 4], 11)
                    ^ _aes_times(state[place // 4 * 4 + (place + 2) % 4], 13)
                    ^ _aes_times(state[place // 4 * 4 + (place + 3) % 4], 9)
                    for place in range(16)
                ]
        return bytes(state)

    return decrypt


def _xor(these: Sequence[int], others: Sequence[int]) -> List[int]:
    return [a ^ b for a, b in zip(these, others)]  # noqa: B905 (strict is newer than Python 3.6)


def _aes_times(a: int, b: int) -> int:
    """The product in AES's field of 256 elements."""
    product = 0
    while b:
        product ^= a * (b & 1)
        a, b = (a << 1) ^ 0x11B * (a >> 7), b >> 1
    return product


def _aes_box() -> List[int]:
    """AES's substitution of bytes."""
    powers = [1]
    for _ in range(254):
        powers.append(_aes_times(powers[-1], 3))
    box = [0x63] * 256
    for exponent, value in enumerate(powers):
        inverse = powers[-exponent % 255]
        bits = inverse ^ inverse << 1 ^ inverse << 2 ^ inverse << 3 ^ inverse << 4
        box[value] = (bits ^ bits >> 8) & 0xFF ^ 0x63
    return box
