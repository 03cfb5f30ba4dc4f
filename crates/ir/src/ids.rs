use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub(crate) u32);

        impl $name {
            /// The position in side tables indexed by this id.
            pub fn index(self) -> usize {
                self.0 as usize
            }

            /// The id of a position, for side tables that go beyond the graph's own ids.
            pub fn from_index(index: usize) -> Self {
                $name(u32::try_from(index).unwrap_or(u32::MAX))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

id!(
    /// A node of one graph; prints as `n3`.
    NodeId, "n"
);
id!(
    /// A value (an edge) of one graph; prints as `%12`.
    ValueId, "%"
);
id!(
    /// A tensor in one graph's constant pool; prints as `c4`.
    ConstId, "c"
);
