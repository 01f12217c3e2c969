"""URLs of any fsspec file system: opening, listing, and writes that appear whole or not at all.

Credentials come only from the environment or from fsspec's own configuration; no URL or recipe carries them. Errors that pass by
themselves are waited out, others become a UserError that names the URL (see :mod:`leapray.faults`).
"""

from leapray.storage.listing import (
    DataFiles,
    DataFolder,
    exists,
    fingerprint,
    fingerprint_below,
    is_empty,
    list_data,
    list_data_folder,
    list_files,
    list_folder,
    list_sizes,
    passed_over_in_words,
    require_folder,
    size,
    walk_data,
)
from leapray.storage.locking import locked, require_lock
from leapray.storage.reading import open_input, read_bytes, read_json, read_range
from leapray.storage.urls import absolute, ascii_url, filesystem, is_local, join, lies_below, require_outside, short_names
from leapray.storage.writing import atomic_file, remove, write_bytes, write_json

__all__ = [
    "DataFiles",
    "DataFolder",
    "absolute",
    "ascii_url",
    "atomic_file",
    "exists",
    "filesystem",
    "fingerprint",
    "fingerprint_below",
    "is_empty",
    "is_local",
    "join",
    "lies_below",
    "list_data",
    "list_data_folder",
    "list_files",
    "list_folder",
    "list_sizes",
    "locked",
    "open_input",
    "passed_over_in_words",
    "read_bytes",
    "read_json",
    "read_range",
    "remove",
    "require_folder",
    "require_lock",
    "require_outside",
    "short_names",
    "size",
    "walk_data",
    "write_bytes",
    "write_json",
]
