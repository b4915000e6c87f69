"""The most likely tokens of each row, exactly, without `topk` over the vocabulary: on a CPU that costs more than all else.

Shapes: C rows, V vocabulary, K entries, M candidates of a row, B blocks of columns, S columns of a folded row.

The K blocks of columns with the largest maxima contain the K largest columns: a maximum per block is one cheap pass, and `topk`
sees some thousand candidates. Values and ids are packed into one integer each, so that no two are equal: equal logits come in
the order of their ids, on every device and for every size of chunk and block.
"""

import functools
import math

import torch
from torch import Tensor

BLOCK_COLUMNS = 64  # maxima over rows of 16 columns took ten times as long as over 64, over 256 a third less
LEAST_FOLD = 3
DIRECT_COLUMNS = 4096  # with fewer the maxima save nothing
ID_BITS = 32


def top_entries(logits_CV: Tensor, num_entries: int) -> Tensor:
    """Ids of the `num_entries` <= V largest of each row of fp32 logits, [C, K] int64, largest first.

    Of equals the lower id comes first (0.0 before -0.0). Rows with NaN give some valid ids.
    """
    num_columns, device = logits_CV.shape[1], logits_CV.device
    num_blocks = num_columns // BLOCK_COLUMNS
    if num_columns < DIRECT_COLUMNS or num_blocks <= num_entries:
        return key_ids(largest_keys(order_keys(logits_CV, first_ids(num_columns, device)), num_entries))
    blocks_CBb = logits_CV[:, : num_blocks * BLOCK_COLUMNS].unflatten(1, (num_blocks, BLOCK_COLUMNS))
    # Of blocks with equal maxima the first ones: they hold the lower ids.
    block_keys_CB = order_keys(blocks_CBb.amax(2), first_ids(num_blocks, device))
    firsts_CK = key_ids(largest_keys(block_keys_CB, num_entries)).mul_(BLOCK_COLUMNS)
    ids_CM = firsts_CK.unsqueeze(2).add(first_ids(BLOCK_COLUMNS, device)).flatten(1)
    if num_blocks * BLOCK_COLUMNS < num_columns:
        left_over_R = torch.arange(num_blocks * BLOCK_COLUMNS, num_columns, device=device)
        ids_CM = torch.cat([ids_CM, left_over_R.expand(len(logits_CV), -1)], dim=1)
    return key_ids(largest_keys(order_keys(logits_CV.gather(1, ids_CM), ids_CM), num_entries))


@functools.lru_cache(maxsize=8)
def first_ids(number: int, device: torch.device) -> Tensor:
    """0, 1, ... [number] int64; kept, because every block of rows asks for the same ones. Nobody writes to them."""
    return torch.arange(number, device=device)


def order_keys(values_CM: Tensor, ids_CM: Tensor) -> Tensor:
    """Integers in the order of the fp32 values and, of equal values, against the order of the ids: [C, M] int64.

    The bits of a float >= 0 are in its order; those of a negative one are so after flipping all but the sign.
    """
    bits_CM = values_CM.view(torch.int32)
    ordered_CM = (bits_CM >> 31).bitwise_and_(0x7FFFFFFF).bitwise_xor_(bits_CM)
    return ordered_CM.long().bitwise_left_shift_(ID_BITS).sub_(ids_CM)


def key_ids(keys_CK: Tensor) -> Tensor:
    return keys_CK.neg().bitwise_and_(2**ID_BITS - 1)


def largest_keys(keys_CM: Tensor, num_entries: int) -> Tensor:
    """The `num_entries` largest of keys that all differ, [C, K], largest first.

    They are in those columns of the folded row that have the largest maxima. Any partition would do; folding reads whole vectors.
    """
    fold = round(math.sqrt(keys_CM.shape[1] / num_entries))  # as many columns as candidates
    if fold < LEAST_FOLD:
        return keys_CM.topk(num_entries, dim=1).values
    num_folded = keys_CM.shape[1] // fold
    folded_CFS = keys_CM[:, : num_folded * fold].unflatten(1, (fold, num_folded))
    columns_CK = folded_CFS.amax(1).topk(num_entries, dim=1, sorted=False).indices
    kept_CM = folded_CFS.gather(2, columns_CK.unsqueeze(1).expand(-1, fold, -1)).flatten(1)
    if num_folded * fold < keys_CM.shape[1]:
        kept_CM = torch.cat([kept_CM, keys_CM[:, num_folded * fold :]], dim=1)
    largest_CK: Tensor = kept_CM.topk(num_entries, dim=1).values
    return largest_CK
