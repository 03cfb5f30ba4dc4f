//! Neural-network layers: convolution, pooling, normalisation, attention, recurrence.

crate::registry::operators! {}
