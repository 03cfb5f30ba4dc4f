//! The order of instructions of a block, which assembly and emulation share.
//!
//! `then!` gets `[load_a tile half _] [load_b tile side _] [dot sums rows columns]`. A product follows the load that
//! it waits for, and never the product before it on the same sums.

/// The instructions of one granule, by rows and columns of tiles.
macro_rules! granule {
    (2, 2, $then:ident $args:tt) => {
        $then! { $args [load_a 4 high _] [load_b 6 0 _] [dot 0 4 6] [load_b 7 1 _] [dot 1 4 7] [load_a 5 low _]
        [dot 2 5 6] [dot 3 5 7] }
    };
    (2, 1, $then:ident $args:tt) => {
        $then! { $args [load_a 4 high _] [load_b 6 0 _] [dot 0 4 6] [load_a 5 low _] [dot 2 5 6] }
    };
    (1, 2, $then:ident $args:tt) => {
        $then! { $args [load_a 4 high _] [load_b 6 0 _] [dot 0 4 6] [load_b 7 1 _] [dot 1 4 7] }
    };
    (1, 1, $then:ident $args:tt) => {
        $then! { $args [load_a 4 high _] [load_b 6 0 _] [dot 0 4 6] }
    };
}

/// The sums, `[sums tile half side]`.
macro_rules! sums {
    (2, 2, $then:ident $args:tt) => {
        $then! { $args [sums 0 high 0] [sums 1 high 1] [sums 2 low 0] [sums 3 low 1] }
    };
    (2, 1, $then:ident $args:tt) => {
        $then! { $args [sums 0 high 0] [sums 2 low 0] }
    };
    (1, 2, $then:ident $args:tt) => {
        $then! { $args [sums 0 high 0] [sums 1 high 1] }
    };
    (1, 1, $then:ident $args:tt) => {
        $then! { $args [sums 0 high 0] }
    };
}
