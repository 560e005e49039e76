"""The alphabet in which byte-level vocabularies write the 256 bytes.

Printable bytes stand for themselves, the others take the characters from U+0100 on.
Source: `bytes_to_unicode` in GPT-2's encoder.py.
"""

from functools import cache


@cache
def byte_of_character() -> dict[str, int]:
    """The byte that each of the 256 characters stands for."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + number): byte for number, byte in enumerate(others)}


def bytes_of_token(token: str) -> bytes:
    """The bytes that a token of a byte-level vocabulary stands for.

    A token with any character outside the alphabet, as some added tokens have, stands for its own UTF-8.
    """
    table = byte_of_character()
    try:
        return bytes([table[character] for character in token])
    except KeyError:
        return token.encode()
