use crate::buffer::SharedMut;
use crate::error::{Result, exact};
use crate::exec::Exec;

/// Bytes of one part.
const PART: usize = 1 << 18;

/// Copies little-endian floats, which need not be aligned, on all cores: reading a file's pages for the first time
/// takes most of it.
///
/// # Errors
/// `bytes` is not four times as long as `out`.
pub fn floats_of(exec: &Exec, bytes: &[u8], out: &mut [f32]) -> Result {
    exact("floats_of", "bytes", bytes.len(), size_of_val(out))?;
    let target = SharedMut::from_ptr(out.as_mut_ptr().cast::<u8>());
    exec.split(bytes.len().div_ceil(PART), 1, &|parts| {
        for part in parts {
            let from = &bytes[part * PART..((part + 1) * PART).min(bytes.len())];
            // SAFETY: each part is copied to its own place in `out`, which is as long as `bytes`; any bytes are floats.
            unsafe { target.slice(part * PART, from.len()).copy_from_slice(from) };
        }
    });
    if cfg!(target_endian = "big") {
        out.iter_mut().for_each(|x| *x = f32::from_bits(x.to_bits().swap_bytes()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::execs;

    #[test]
    fn copies_floats_from_any_address() {
        for exec in execs() {
            for len in [0, 1, 1000, 200_003] {
                let want: Vec<f32> = (0..len).map(|i| i as f32 - 7.5).collect();
                for shift in [0, 1, 3] {
                    let mut bytes = vec![0u8; shift];
                    bytes.extend(want.iter().flat_map(|x| x.to_le_bytes()));
                    let mut out = vec![0.0; len];
                    floats_of(&exec, &bytes[shift..], &mut out).unwrap();
                    assert_eq!(out, want, "{shift}");
                }
            }
        }
    }

    #[test]
    fn refuses_another_length() {
        let exec = Exec::new(crate::Isa::detect(), 1);
        assert!(floats_of(&exec, &[0; 7], &mut [0.0; 2]).is_err());
    }
}
