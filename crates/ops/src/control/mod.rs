//! Control flow, sequences and optionals.

pub mod if_op;
pub mod loop_op;
pub mod optional;
pub mod scan;
pub mod sequence;
pub mod sequence_map;
pub mod split_to_sequence;
pub(crate) mod support;

crate::registry::operators! {
    "ConcatFromSequence" => split_to_sequence::build_concat,
    "If" => if_op::build,
    "Loop" => loop_op::build,
    "Optional" => optional::build,
    "OptionalGetElement" => optional::build_get,
    "OptionalHasElement" => optional::build_has,
    "Scan" => scan::build,
    "SequenceAt" => sequence::at,
    "SequenceConstruct" => sequence::construct,
    "SequenceEmpty" => sequence::empty,
    "SequenceErase" => sequence::erase,
    "SequenceInsert" => sequence::insert,
    "SequenceLength" => sequence::length,
    "SequenceMap" => sequence_map::build,
    "SplitToSequence" => split_to_sequence::build_split,
}
