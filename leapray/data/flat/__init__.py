"""Flat parquet and csv in the competition's layout: what a folder holds, which rows of it a split reads, and the rows.

Reads our own files and those that people already have: the competition's csv, pandas-written parquet with row
groups of a million rows, integer or float32 columns, columns in any order, further columns.
"""

from leapray.data.flat.blocks import Block, read_chosen, read_columns, read_piece
from leapray.data.flat.layout import ROW_GROUP_ROWS, flat_schema, to_table
from leapray.data.flat.listing import Piece, Survey, list_pieces, survey
from leapray.data.flat.selection import Selection

__all__ = [
    "ROW_GROUP_ROWS",
    "Block",
    "Piece",
    "Selection",
    "Survey",
    "flat_schema",
    "list_pieces",
    "read_chosen",
    "read_columns",
    "read_piece",
    "survey",
    "to_table",
]
