//! Instruction-set tiers, their detection, and tokens that prove a tier.
//!
//! A token such as [`Avx512`] can only be made by a constructor that asked the
//! CPU, so code that holds one may run the matching instructions.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

/// The variable that forces a tier, for example `NARROWBIT_ISA=avx2`.
pub const ISA_VARIABLE: &str = "NARROWBIT_ISA";
/// What [`ISA_VARIABLE`] may hold for tests: [`Isa::emulated`].
const EMULATED: &str = "amx-emulated";

/// A level of vector instructions; a later tier includes the earlier ones of its architecture (x86-64 or aarch64),
/// [`Tier::AvxVnni`] excepted, which some processors with AVX-512 lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Tier {
    /// Portable Rust, one lane.
    Scalar,
    /// The vectors of aarch64: 4 lanes of f32.
    Neon,
    /// NEON with signed 8-bit dot products (FEAT_DotProd).
    NeonDot,
    /// NEON with dot products of unsigned and signed bytes, too (FEAT_I8MM).
    NeonI8mm,
    /// AVX2, FMA and F16C: 8 lanes of f32.
    Avx2,
    /// AVX2 with AVX-VNNI (8-bit dot products of 32 bytes): laptops without AVX-512.
    AvxVnni,
    /// AVX-512 F, BW, DQ, VL and CD: 16 lanes of f32.
    Avx512,
    /// AVX-512 with VNNI (8-bit dot products).
    Vnni,
    /// AMX tiles.
    Amx,
}

impl Tier {
    /// Every tier, lowest first.
    pub const ALL: [Tier; 9] = [
        Tier::Scalar,
        Tier::Neon,
        Tier::NeonDot,
        Tier::NeonI8mm,
        Tier::Avx2,
        Tier::AvxVnni,
        Tier::Avx512,
        Tier::Vnni,
        Tier::Amx,
    ];

    /// The name that [`ISA_VARIABLE`] takes.
    pub fn name(self) -> &'static str {
        match self {
            Tier::Scalar => "scalar",
            Tier::Neon => "neon",
            Tier::NeonDot => "neon-dot",
            Tier::NeonI8mm => "neon-i8mm",
            Tier::Avx2 => "avx2",
            Tier::AvxVnni => "avx-vnni",
            Tier::Avx512 => "avx512",
            Tier::Vnni => "vnni",
            Tier::Amx => "amx",
        }
    }

    /// Whether code for `other` runs on this tier.
    pub(crate) fn includes(self, other: Tier) -> bool {
        let related = other == Tier::Scalar || self.is_neon() == other.is_neon();
        other <= self && related && (other != Tier::AvxVnni || self == other)
    }

    /// Whether this is a tier of aarch64's vectors.
    fn is_neon(self) -> bool {
        matches!(self, Tier::Neon | Tier::NeonDot | Tier::NeonI8mm)
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Tier {
    type Err = IsaError;

    fn from_str(text: &str) -> Result<Self, IsaError> {
        Tier::ALL
            .into_iter()
            .find(|tier| tier.name() == text)
            .ok_or_else(|| IsaError::Unknown { name: text.to_string() })
    }
}

/// Why an instruction-set tier was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IsaError {
    /// The name is none of the tiers.
    #[error(
        "unknown instruction set \"{name}\"; use scalar, neon, neon-dot, neon-i8mm, avx2, avx-vnni, avx512, vnni or amx"
    )]
    Unknown {
        /// The text that was given.
        name: String,
    },
    /// The machine, or this build, can't run the tier.
    #[error("instruction set \"{tier}\" is not available here; the best that is: {best}")]
    Unavailable {
        /// The tier that was asked for.
        tier: Tier,
        /// The highest tier that can run.
        best: Tier,
    },
}

/// The instruction-set tier that kernels may use: proof that the CPU has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa {
    tier: Tier,
    emulates_tiles: bool,
    bf16: Bf16,
}

/// What multiplies bfloat16.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) enum Bf16 {
    /// Nothing.
    #[default]
    None,
    /// AVX512-BF16, which some processors with VNNI have.
    Vectors,
    /// AMX-BF16.
    Tiles,
}

impl Isa {
    /// The highest tier of this machine; asks the CPU once per process.
    pub fn detect() -> Isa {
        static BEST: OnceLock<(Tier, Bf16)> = OnceLock::new();
        let (tier, bf16) = *BEST.get_or_init(|| {
            let tier = detect_tier();
            (tier, detect_bf16(tier))
        });
        Isa { tier, emulates_tiles: false, bf16 }
    }

    /// A tier up to the machine's.
    fn of(tier: Tier) -> Isa {
        let most = match tier {
            Tier::Amx => Bf16::Tiles,
            Tier::Vnni => Bf16::Vectors,
            _ => Bf16::None,
        };
        Isa { tier, emulates_tiles: false, bf16: Isa::detect().bf16.min(most) }
    }

    /// Whether products of bfloat16 have an instruction (AVX512-BF16 or AMX-BF16), or an emulated one.
    pub fn multiplies_bf16(self) -> bool {
        self.emulates_tiles || self.bf16 > Bf16::None
    }

    /// Whether products of bfloat16 are faster than those of f32. Intel's vectors multiply them at half the speed of fused
    /// multiply-adds (86 against 175 GFLOP/s on an Emerald Rapids): there only tiles are worth it.
    pub fn gains_by_bf16(self) -> bool {
        static SLOW_VECTORS: OnceLock<bool> = OnceLock::new();
        let slow = self.bf16 == Bf16::Vectors && !self.emulates_tiles && *SLOW_VECTORS.get_or_init(is_intel);
        self.multiplies_bf16() && !slow
    }

    pub(crate) fn bf16(self) -> Bf16 {
        self.bf16
    }

    /// The machine's vectors, with a model of AMX tiles in the place of integer products: the same walk over
    /// memory as with tiles, in plain Rust, thousands of times slower. For tests (`NARROWBIT_ISA=amx-emulated`).
    pub fn emulated() -> Isa {
        Isa { emulates_tiles: true, ..Isa::of(Isa::detect().tier.min(Tier::Vnni)) }
    }

    /// Whether tiles are emulated.
    pub(crate) fn emulates_tiles(self) -> bool {
        self.emulates_tiles
    }

    /// The tier named by `NARROWBIT_ISA`, or the detected one when it is unset or empty.
    ///
    /// # Errors
    /// The name is unknown, or the machine lacks the tier.
    pub fn from_env() -> Result<Isa, IsaError> {
        match std::env::var(ISA_VARIABLE) {
            Ok(name) if name == EMULATED => Ok(Isa::emulated()),
            Ok(name) if !name.is_empty() => Isa::with_tier(name.parse()?),
            _ => Ok(Isa::detect()),
        }
    }

    /// The given tier.
    ///
    /// # Errors
    /// The machine lacks the tier.
    pub fn with_tier(tier: Tier) -> Result<Isa, IsaError> {
        if machine_has(tier) {
            return Ok(Isa::of(tier));
        }
        Err(IsaError::Unavailable { tier, best: Isa::detect().tier })
    }

    /// The tier that this value proves.
    pub fn tier(self) -> Tier {
        self.tier
    }

    /// Every tier that this machine can run, best first.
    pub fn available() -> Vec<Isa> {
        Tier::ALL.into_iter().rev().filter(|&tier| machine_has(tier)).map(Isa::of).collect()
    }
}

impl Default for Isa {
    fn default() -> Self {
        Isa::detect()
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.emulates_tiles { f.write_str(EMULATED) } else { self.tier.fmt(f) }
    }
}

/// Whether this machine runs code for a tier.
fn machine_has(tier: Tier) -> bool {
    let best = Isa::detect().tier;
    match tier {
        Tier::AvxVnni => tier <= best && has_avx_vnni(),
        _ => best.includes(tier),
    }
}

#[cfg(target_arch = "x86_64")]
fn has_avx_vnni() -> bool {
    is_x86_feature_detected!("avxvnni")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_avx_vnni() -> bool {
    false
}

#[cfg(target_arch = "x86_64")]
fn detect_tier() -> Tier {
    let avx2 = is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("popcnt");
    if !avx2 {
        return Tier::Scalar;
    }
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512cd");
    match (avx512, avx512 && is_x86_feature_detected!("avx512vnni")) {
        (_, true) if has_tiles() => Tier::Amx,
        (_, true) => Tier::Vnni,
        (true, _) => Tier::Avx512,
        _ if has_avx_vnni() => Tier::AvxVnni,
        _ => Tier::Avx2,
    }
}

#[cfg(target_arch = "x86_64")]
fn detect_bf16(tier: Tier) -> Bf16 {
    #[cfg(target_os = "linux")]
    if tier >= Tier::Amx && crate::panel::amx::hardware::takes_bf16() {
        return Bf16::Tiles;
    }
    let vectors = tier >= Tier::Vnni && is_x86_feature_detected!("avx512bf16");
    if vectors { Bf16::Vectors } else { Bf16::None }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect_bf16(_: Tier) -> Bf16 {
    Bf16::None
}

/// Whether the processor calls itself "GenuineIntel".
#[cfg(target_arch = "x86_64")]
fn is_intel() -> bool {
    let id = std::arch::x86_64::__cpuid(0);
    [id.ebx, id.edx, id.ecx].map(u32::to_le_bytes).concat() == b"GenuineIntel"
}

#[cfg(not(target_arch = "x86_64"))]
fn is_intel() -> bool {
    false
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn has_tiles() -> bool {
    crate::panel::amx::hardware::is_usable()
}

/// Other systems have their own ways to ask for tiles.
#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn has_tiles() -> bool {
    false
}

#[cfg(target_arch = "aarch64")]
fn detect_tier() -> Tier {
    use std::arch::is_aarch64_feature_detected;
    if !is_aarch64_feature_detected!("neon") {
        return Tier::Scalar;
    }
    match (is_aarch64_feature_detected!("dotprod"), is_aarch64_feature_detected!("i8mm")) {
        (true, true) => Tier::NeonI8mm,
        (true, false) => Tier::NeonDot,
        _ => Tier::Neon,
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn detect_tier() -> Tier {
    Tier::Scalar
}

/// Token of the portable tier; always available.
#[derive(Clone, Copy, Debug)]
pub struct Scalar(());

impl Scalar {
    /// The token.
    pub fn new() -> Self {
        Scalar(())
    }
}

impl Default for Scalar {
    fn default() -> Self {
        Scalar::new()
    }
}

/// Proof that the CPU has the vectors of aarch64.
#[derive(Clone, Copy, Debug)]
pub struct Neon(());

impl Neon {
    /// The token, if `isa` is a tier of these vectors.
    pub fn new(isa: Isa) -> Option<Self> {
        isa.tier.is_neon().then_some(Neon(()))
    }

    /// The token, without asking.
    ///
    /// # Safety
    /// The CPU has this tier.
    #[cfg(target_arch = "aarch64")]
    #[inline(always)]
    pub(crate) const unsafe fn assume() -> Self {
        Neon(())
    }
}

/// Proof that the CPU has AVX2, FMA, F16C and BMI2.
#[derive(Clone, Copy, Debug)]
pub struct Avx2(());

impl Avx2 {
    /// The token, if `isa` reaches this tier.
    pub fn new(isa: Isa) -> Option<Self> {
        (isa.tier >= Tier::Avx2).then_some(Avx2(()))
    }

    /// The token, without asking.
    ///
    /// # Safety
    /// The CPU has this tier.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(crate) const unsafe fn assume() -> Self {
        Avx2(())
    }
}

/// Proof that the CPU has AVX-512 F, BW, DQ, VL and CD.
#[derive(Clone, Copy, Debug)]
pub struct Avx512 {
    /// Whether it has AVX512-BF16, too.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    bf16: bool,
}

impl Avx512 {
    /// The token, if `isa` reaches this tier.
    pub fn new(isa: Isa) -> Option<Self> {
        (isa.tier >= Tier::Avx512).then_some(Avx512 { bf16: isa.bf16 >= Bf16::Vectors })
    }

    /// Whether the CPU has AVX512-BF16, and the tier is not to go without.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn rounds_to_bf16(self) -> bool {
        self.bf16
    }

    /// The token, without asking.
    ///
    /// # Safety
    /// The CPU has this tier.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(crate) const unsafe fn assume() -> Self {
        Avx512 { bf16: false }
    }
}

/// Proof that the CPU has AVX-VNNI, and that vectors of 32 bytes are to be used.
#[derive(Clone, Copy, Debug)]
pub struct AvxVnni(());

impl AvxVnni {
    /// The token, if `isa` is this tier.
    pub fn new(isa: Isa) -> Option<Self> {
        (isa.tier == Tier::AvxVnni).then_some(AvxVnni(()))
    }
}

/// Proof that the CPU has AVX-512 with VNNI.
#[derive(Clone, Copy, Debug)]
pub struct Vnni(());

impl Vnni {
    /// The token, if `isa` reaches this tier.
    pub fn new(isa: Isa) -> Option<Self> {
        (isa.tier >= Tier::Vnni).then_some(Vnni(()))
    }
}

/// Proof that the CPU has AMX tiles of 8-bit integers, and that the system lets this process use them.
#[derive(Clone, Copy, Debug)]
pub struct Amx(());

impl Amx {
    /// The token, if `isa` reaches this tier.
    pub fn new(isa: Isa) -> Option<Self> {
        (isa.tier >= Tier::Amx).then_some(Amx(()))
    }

    /// The token, without asking.
    ///
    /// # Safety
    /// The CPU has this tier, and the system's permission was given.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    pub(crate) const unsafe fn assume() -> Self {
        Amx(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_every_name_and_refuses_others() {
        for tier in Tier::ALL {
            assert_eq!(tier.name().parse(), Ok(tier));
        }
        let error = "sse9".parse::<Tier>().unwrap_err();
        assert!(error.to_string().contains("sse9"));
    }

    #[test]
    fn refuses_a_tier_above_the_machine() {
        let best = Isa::detect().tier();
        for tier in Tier::ALL {
            let has = if tier == Tier::AvxVnni { tier <= best && has_avx_vnni() } else { best.includes(tier) };
            assert_eq!(Isa::with_tier(tier).is_ok(), has, "{tier}");
        }
        assert!(Avx512::new(Isa::of(Tier::Avx2)).is_none());
    }

    #[test]
    fn keeps_the_architectures_apart() {
        for tier in Tier::ALL {
            assert!(tier.includes(Tier::Scalar) && tier.includes(tier), "{tier}");
            assert_eq!(tier.includes(Tier::Neon), tier.name().starts_with("neon"), "{tier}");
            assert!(!tier.is_neon() || !tier.includes(Tier::Avx2), "{tier}");
        }
        assert!(Tier::NeonI8mm.includes(Tier::NeonDot) && !Tier::Neon.includes(Tier::NeonDot));
        let all = Isa::available();
        let neon = all.iter().filter(|isa| isa.tier().is_neon()).count();
        assert!(all.iter().filter(|isa| Neon::new(**isa).is_some()).count() == neon);
        let other = all.len() - 1 - neon;
        assert!(neon == 0 || other == 0, "{all:?}");
        #[cfg(target_arch = "aarch64")]
        assert!(neon > 0, "every such processor that runs this has vectors");
    }

    #[test]
    fn lists_available_tiers_best_first_down_to_scalar() {
        let all = Isa::available();
        assert_eq!(all.first().map(|isa| isa.tier()), Some(Isa::detect().tier()));
        assert_eq!(all.last().map(|isa| isa.tier()), Some(Tier::Scalar));
    }
}
