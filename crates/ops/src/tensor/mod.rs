//! Moving, selecting and making elements: Reshape, Gather, Concat, Resize and the like.

crate::registry::operators! {}
