//! What this machine does at the most.

use narrowbit_kernels::peak::{Arithmetic, PeakKernel, multiply_adds};
use narrowbit_kernels::{Exec, Tier};
use serde::{Serialize, Serializer};

/// Above this spread other work disturbs the measurement.
const NOISY: f64 = 0.15;

/// The peak of one type.
#[derive(Debug, Clone, Serialize)]
pub struct Peak {
    /// The tier of the loop that was measured.
    #[serde(serialize_with = "name")]
    pub tier: Tier,
    /// The loop.
    pub kernel: &'static str,
    /// 10⁹ operations per second; a multiply-accumulate counts as two.
    pub gops: f64,
    /// The distance from the tenth to the ninetieth percentile, as a share of the median.
    pub spread: f64,
}

/// A tier by its name.
pub fn name<S: Serializer>(tier: &Tier, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(tier.name())
}

/// The peaks of a tier and a number of threads.
#[derive(Debug, Clone, Serialize)]
pub struct Peaks {
    /// Threads.
    pub threads: usize,
    /// Of 8-bit integers.
    pub int8: Peak,
    /// Of bfloat16, where the processor multiplies it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bf16: Option<Peak>,
    /// Of 32-bit floats.
    pub f32: Peak,
}

impl Peaks {
    /// Measures all; takes about a second.
    pub fn measure(exec: &Exec) -> Peaks {
        let peak = |arithmetic| {
            let (kernel, rate) = (PeakKernel::best(exec.isa(), arithmetic), multiply_adds(exec, arithmetic));
            Peak { tier: kernel.tier, kernel: kernel.name, gops: rate.per_second * 2e-9, spread: rate.spread }
        };
        let bf16 = exec.isa().multiplies_bf16().then(|| peak(Arithmetic::Bf16));
        Peaks { threads: exec.threads(), int8: peak(Arithmetic::Int8), bf16, f32: peak(Arithmetic::F32) }
    }

    /// Of a type.
    pub fn of(&self, arithmetic: Arithmetic) -> &Peak {
        match arithmetic {
            Arithmetic::Int8 => &self.int8,
            Arithmetic::Bf16 => self.bf16.as_ref().unwrap_or(&self.f32),
            Arithmetic::F32 => &self.f32,
        }
    }

    /// A line or two.
    pub fn text(&self) -> String {
        let types = [("int8", Some(&self.int8)), ("bf16", self.bf16.as_ref()), ("f32", Some(&self.f32))];
        let known = || types.iter().filter_map(|(name, peak)| Some((name, (*peak)?)));
        let each = known().map(|(name, p)| format!("{name} {:.0} GOP/s ({})", p.gops, p.tier));
        let mut out =
            format!("peak on {}: {}\n", count(self.threads, "thread"), each.collect::<Vec<String>>().join(", "));
        let spread = known().map(|(_, p)| p.spread).fold(0.0, f64::max);
        if spread > NOISY {
            out.push_str(&format!(
                "other work disturbs this machine: the peak varied by {:.0} %, so shares of it are rough\n",
                spread * 100.0
            ));
        }
        out
    }
}

/// `1 thread`, `2 threads`.
pub fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peaks(spread: f64) -> Peaks {
        let peak = |gops| Peak { tier: Tier::Avx2, kernel: "loop", gops, spread };
        Peaks { threads: 1, int8: peak(200.0), bf16: None, f32: peak(100.0) }
    }

    #[test]
    fn says_so_when_the_machine_is_busy() {
        assert_eq!(peaks(0.02).text(), "peak on 1 thread: int8 200 GOP/s (avx2), f32 100 GOP/s (avx2)\n");
        assert!(peaks(0.4).text().contains("varied by 40 %"));
        let bf16 = Some(Peak { tier: Tier::Vnni, ..peaks(0.0).f32 });
        assert!(Peaks { bf16, ..peaks(0.0) }.text().contains("(avx2), bf16 100 GOP/s (vnni), f32"));
    }
}
