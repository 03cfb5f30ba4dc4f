//! Loops of aarch64: 24 sums by one product each, of two vectors that stay.

use std::arch::asm;

/// Bytes of all sizes.
static BYTES: [[u32; 4]; 2] = [[0xb57c_93e1; 4], [0x6d3a_e85b; 4]];
/// 1.25 and 0.8.
static FLOATS: [[u32; 4]; 2] = [[0x3fa0_0000; 4], [0x3f4c_cccd; 4]];

macro_rules! turns {
    ($name:ident, $features:literal, $operands:ident, $op:literal, $a:literal, $b:literal, [$($n:literal)*], [$($v:tt)*]) => {
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $name(turns: u64) {
            // SAFETY: reads the two operands, writes only registers that are named; the caller vouches for the tier.
            unsafe {
                asm!(
                    "ldp q30, q31, [{operands}]",
                    $(concat!("movi v", $n, ".16b, #0"),)*
                    "2:",
                    $(concat!($op, " v", $n, ".4s, ", $a, ", ", $b),)*
                    "subs {turns}, {turns}, #1",
                    "b.ne 2b",
                    operands = in(reg) $operands.as_ptr(),
                    turns = inout(reg) turns.max(1) => _,
                    $(out($v) _,)*
                    out("v30") _, out("v31") _,
                    options(nostack, readonly),
                );
            }
        }
    };
    ($name:ident, $features:literal, $operands:ident, $op:literal, $a:literal, $b:literal) => {
        turns!(
            $name, $features, $operands, $op, $a, $b,
            [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23],
            ["v0" "v1" "v2" "v3" "v4" "v5" "v6" "v7" "v8" "v9" "v10" "v11" "v12" "v13" "v14" "v15" "v16" "v17" "v18"
             "v19" "v20" "v21" "v22" "v23"]
        );
    };
}

turns!(int8_i8mm, "neon,i8mm", BYTES, "usmmla", "v30.16b", "v31.16b");
turns!(int8_dot, "neon,dotprod", BYTES, "sdot", "v30.16b", "v31.16b");
turns!(int8, "neon", BYTES, "smlal", "v30.4h", "v31.4h");
turns!(f32, "neon", FLOATS, "fmla", "v30.4s", "v31.4s");
