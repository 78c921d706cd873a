"""Parquet files that hold the checksum of all that is in them: a reader may take damage for other numbers.

Checksums of pages, which the format has, do not protect the pages' headers and the footer. This one stands in front of
the footer, where a Parquet file may have a gap, so that any program still reads the file.
"""

import hashlib

_LENGTH = hashlib.sha256().digest_size


def with_checksum(content: bytes) -> bytes:
    """A Parquet file's content, with the checksum put in."""
    footer = _start_of_footer(content)
    return content[:footer] + hashlib.sha256(content).digest() + content[footer:]


def without_checksum(content: bytes) -> bytes:
    """The inverse of :func:`with_checksum`. ValueError where ``content`` is damaged or has no checksum."""
    footer = _start_of_footer(content)
    original = content[: max(0, footer - _LENGTH)] + content[footer:]
    if with_checksum(original) != content:
        raise ValueError("its content is not that of its checksum")
    return original


def _start_of_footer(content: bytes) -> int:
    """The file ends with the footer, four bytes that say how long that is, and four letters."""
    return max(0, len(content) - 8 - int.from_bytes(content[-8:-4], "little"))
