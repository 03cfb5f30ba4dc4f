//! HDF5 files of a data set: opened, bound, read.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| narrowbit_fuzz::read_dataset("x.h5", bytes));
