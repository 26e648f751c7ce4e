"""What can be read from the training parts of sequences without a model: their items, and which item follows which."""

import numpy as np
from scipy.sparse import csr_array

from antpipe.core.catalogue import Ints
from antpipe.runtime.arrays import within_groups
from antpipe.store.files import Sequences


def training_items(sequences: Sequences) -> tuple[Ints, Ints]:
    """Items of all training parts, user by user in order of time, and the user's row for each item."""
    lengths = np.diff(sequences.offsets)
    training = within_groups(lengths) < np.repeat(sequences.train_end, lengths)
    row = np.repeat(np.arange(len(lengths)), lengths)[training]
    return sequences.items[training].astype(np.int64), row


def transitions(sequences: Sequences, items: int, apart: int = 1) -> "csr_array":
    """(N, N): how often item j came `apart` positions after item i in the training part of a user's sequence."""
    item, row = training_items(sequences)
    together = row[apart:] == row[:-apart]
    pairs = (item[:-apart][together], item[apart:][together])
    return csr_array((np.ones(len(pairs[0])), pairs), shape=(items, items))  # duplicate pairs are summed
