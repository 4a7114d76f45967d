"""How a sequence is cut into blocks, and which of them a relative table reaches."""

import dataclasses
from typing import TypeVar

import jax
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array

from deberta_jax.kernels import device
from deberta_jax.kernels.relative import Relative

# Rows of one skewed tile: the lanes of a vector register, and the rows of a matrix unit.
TILE = 128
# Tokens of a block at most: its scores, a few megabytes, live in VMEM.
LARGEST_BLOCK = 512
# What a kernel may take of VMEM unless it asks for more.
DEFAULT_VMEM = 16 * 2**20
# Longest sequence whose heads go two by two; the query gradients of a cell stay in VMEM.
LONGEST_PAIRED = 4096

# Blocks between two blocks: known when a kernel is compiled, or not.
Offset = TypeVar("Offset", Array, int)


@dataclasses.dataclass(frozen=True)
class Blocks:
    """The static shape of one attention call.

    Query block i and key block j meet at offset i - j. Up to `near` blocks apart, distances have
    relative rows of their own; beyond, every distance of the pair shares one, the row at which
    the clamp or the buckets end, and the relative terms cost two vectors instead of two tables.

    Attributes:
        length: tokens, a multiple of `block`.
        block: tokens of a block, a multiple of TILE.
        near: largest offset, either way, at which the tables are read.
        heads: heads of one grid cell: 2 in bfloat16, as halves of words, or 1.
        c2p, p2c: the terms that are on.
        causal: whether queries see no later key.
        scale: what content scores are multiplied by; log2(e) is in it, for exp2 is what the
            hardware has.
        rate: share of the probabilities dropped.
        strided: whether the hardware rotates every row of a register by another amount.
        interpret: whether the kernels run interpreted, without a TPU.
    """

    length: int
    block: int
    near: int
    heads: int
    c2p: bool
    p2c: bool
    scale: float
    causal: bool = False
    rate: float = 0.0
    strided: bool = True
    interpret: bool = False

    @property
    def count(self) -> int:
        """Blocks of the sequence."""
        return self.length // self.block

    @property
    def single(self) -> bool:
        return self.count == 1

    @property
    def table_width(self) -> int:
        """Columns of a table: the distances that near blocks can ask for, rounded up."""
        return 2 * self.block * (1 + self.near)

    @property
    def distances(self) -> np.ndarray:
        """The distance i - j of each column of p2c's table; c2p's are the negatives."""
        return np.arange(self.table_width) - (self.block * (1 + self.near) - 1)

    def window(self, offset: Offset, tile: int) -> Offset:
        """First column that tile `tile` of a block reads `offset` blocks away.

        c2p tiles hold queries and ask at offset j - i; p2c tiles hold keys and ask at i - j.
        """
        return offset * self.block - tile * TILE + self.block * (1 + self.near) - TILE

    def backward_vmem(self, size: int, itemsize: int) -> int:
        """Bytes that the backward pass takes for heads of that size in a type of so many bytes.

        One item's gradients, twice, for they leave while the next item's are made; its queries'
        sums; the tables and their gradients, twice; and what one pair of blocks needs.
        """
        tokens = self.heads * size * self.length
        columns = (self.c2p + self.p2c) * self.heads * size * self.table_width
        pair = 3 * self.heads * itemsize * 2**20
        return (2 * 3 * itemsize + 4) * tokens + 2 * (itemsize + 4) * columns + pair


def choose(
    length: int,
    heads: int,
    size: int,
    relative: Relative | None,
    causal: bool,
    rate: float,
    dtype: DTypeLike,
    interpret: bool,
) -> Blocks:
    """The blocks for `length` tokens, which the sequence is padded to."""
    sizes = [block for block in (512, 384, 256, 128) if block <= LARGEST_BLOCK]
    block = min(sizes, key=lambda size: (-(-length // size) * size, -size))
    padded = -(-length // block) * block
    paired = heads % 2 == 0 and padded <= LONGEST_PAIRED and dtype == jax.numpy.bfloat16
    c2p = relative is not None and relative.key_RHD is not None
    p2c = relative is not None and relative.query_RHD is not None
    strided = device.turns_by_row()
    blocks = Blocks(
        length=padded,
        block=block,
        near=_near(relative, block, padded // block),
        heads=2 if paired else 1,
        c2p=c2p,
        p2c=p2c,
        scale=float(np.log2(np.e) / np.sqrt((1 + c2p + p2c) * size)),
        causal=causal,
        rate=rate,
        strided=strided,
        interpret=interpret,
    )
    if paired and not fits(blocks, size, dtype):
        return dataclasses.replace(blocks, heads=1)
    return blocks


def fits(blocks: Blocks, size: int, dtype: DTypeLike) -> bool:
    """Whether the chip's VMEM has room for the backward pass, the larger one."""
    room = blocks.backward_vmem(size, jax.numpy.dtype(dtype).itemsize)
    return room <= device.vmem_bytes()


def _near(relative: Relative | None, block: int, count: int) -> int:
    if relative is None:
        return 0
    rows = np.asarray(relative.distance_rows)
    distances = np.arange(len(rows)) - len(rows) // 2
    changes = distances[1:][np.diff(rows) != 0]  # d whose row is not that of d - 1
    reach = max([0, *(abs(changes))])
    # Offset o holds distances from (o - 1) block + 1 on: all of one row once that passes `reach`.
    return min(count - 1, max(0, -(-int(reach) // block)))


def distance_rows(relative: Relative, distances: np.ndarray) -> np.ndarray:
    """int [W], the row of each of int [W] distances; beyond the sequence, the outermost row."""
    rows = np.asarray(relative.distance_rows)
    return rows[np.clip(distances + len(rows) // 2, 0, len(rows) - 1)]
