"""Prints name, type and shape of the arrays of an .npz file as numpy reads it: read_npz.py FILE"""

import sys

import numpy as np

with np.load(sys.argv[1], allow_pickle=False) as data:
    for name in data.files:
        print(name, data[name].dtype, data[name].shape)
