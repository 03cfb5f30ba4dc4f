//! Operators of the `com.microsoft` domain that ONNX Runtime writes.

crate::registry::operators! { domain "com.microsoft": }
