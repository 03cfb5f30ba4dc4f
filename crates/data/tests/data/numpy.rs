//! Agreement with NumPy, and with real data sets where they are at hand.
//!
//! `NARROWBIT_VENV` names a Python environment with numpy and h5py, `NARROWBIT_MODELS` a folder of
//! cases (`*/case.json` beside `calib.npz`, `test.npz`, `data.h5`); without them a test says that
//! it was skipped.

use std::path::{Path, PathBuf};
use std::process::Command;

use narrowbit_data::{DataOptions, Dataset, InputSpec, NpzWriter, Preprocess, Split, write_npy};
use narrowbit_tensor::{DType, Tensor};

fn python(script: &str, args: &[&Path]) -> Option<String> {
    let Some(venv) = std::env::var_os("NARROWBIT_VENV") else {
        eprintln!("skipped: NARROWBIT_VENV is not set");
        return None;
    };
    let mut command = Command::new(PathBuf::from(venv).join("bin/python"));
    let out = command.arg("-c").arg(script).args(args).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    Some(String::from_utf8(out.stdout).unwrap().trim().to_owned())
}

#[test]
fn numpy_reads_what_we_write() {
    let dir = tempfile::tempdir().unwrap();
    let (npz, npy) = (dir.path().join("x.npz"), dir.path().join("x.npy"));
    let mut w = NpzWriter::create(&npz).unwrap();
    for i in 0..4i64 {
        w.append("rows", &Tensor::new([2, 3], vec![i; 6]).unwrap()).unwrap();
    }
    w.add("half", &Tensor::from_f64s(DType::F16, [2], &[0.5, -1.0]).unwrap()).unwrap();
    w.add("flags", &Tensor::from_bools([3], vec![true, false, true]).unwrap()).unwrap();
    w.add("none", &Tensor::zeros(DType::U16, [0, 4]).unwrap()).unwrap();
    w.finish().unwrap();
    write_npy(&npy, &Tensor::scalar(2.5f32)).unwrap();
    let script = "
import sys, numpy as np
z = np.load(sys.argv[1]); s = np.load(sys.argv[2])
assert z.files == ['rows', 'half', 'flags', 'none'], z.files
assert z['rows'].dtype == np.int64 and (z['rows'] == np.repeat(np.arange(4), 6).reshape(8, 3)).all()
assert z['half'].dtype == np.float16 and z['half'].tolist() == [0.5, -1.0]
assert z['flags'].dtype == bool and z['flags'].tolist() == [True, False, True]
assert z['none'].shape == (0, 4) and s.shape == () and s == 2.5
print('ok')";
    if let Some(out) = python(script, &[&npz, &npy]) {
        assert_eq!(out, "ok");
    }
}

#[test]
fn reads_what_numpy_writes_in_every_version_order_and_type() {
    let dir = tempfile::tempdir().unwrap();
    let script = "
import sys, os, numpy as np
d = sys.argv[1]; a = np.arange(60).reshape(5, 4, 3)
for t in ['?', 'i1', 'u1', '<i2', '>u2', '<i4', '>i4', '<u4', '<i8', '>u8', '<f2', '>f4', '<f8', '>f8']:
    for order in 'CF':
        for version in [(1, 0), (2, 0), (3, 0)]:
            name = t.replace('<', 'l').replace('>', 'b').replace('?', 'bool')
            with open(os.path.join(d, f'{name}_{order}{version[0]}.npy'), 'wb') as f:
                np.lib.format.write_array(f, np.asarray(a % 2 if t == '?' else a, order=order).astype(t, order='K'), version=version)
np.save(os.path.join(d, 'refused_strings.npy'), np.array(['a', 'b']))
np.save(os.path.join(d, 'refused_objects.npy'), np.array([{}, 1], dtype=object), allow_pickle=True)
print('ok')";
    if python(script, &[dir.path()]).is_none() {
        return;
    }
    let mut seen = 0;
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let data = Dataset::open(&path, &DataOptions::default());
        if name.starts_with("refused") {
            assert!(data.err().unwrap().to_string().contains("can't be used"), "{name}");
            continue;
        }
        let t = data.unwrap().batch(1..4).unwrap().inputs.remove(0).1;
        let want: Vec<f64> = (12..48).map(|v| f64::from(if name.starts_with("bool") { v % 2 } else { v })).collect();
        assert_eq!(t.to_f64s().unwrap(), want, "{name}");
        seen += 1;
    }
    assert_eq!(seen, 14 * 2 * 3);
}

/// Writes what each case's first and last sample are, by numpy and h5py, after its preprocessing.
const EXPECT: &str = "
import sys, os, json, glob, numpy as np
root, out = sys.argv[1:3]
def prepare(x, p):
    x = x.astype(np.float32) * np.float32(p.get('scale', 1)) + np.float32(p.get('offset', 0))
    x = (x - np.array(p.get('mean', 0), np.float32)) / np.array(p.get('std', 1), np.float32)
    return x.transpose(0, 3, 1, 2) if p.get('layout') == 'NCHW' else x
def emit(case, file, split, arrays, n):
    np.savez(os.path.join(out, f'{case}__{file}__{split}.npz'), n=np.array(n), **arrays)
for case in sorted(glob.glob(os.path.join(root, '*', 'case.json'))):
    folder = os.path.dirname(case); name = os.path.basename(folder)
    p = json.load(open(case)).get('preprocess') or {}
    for f in sorted(glob.glob(os.path.join(folder, '*.npz'))):
        z = np.load(f); n = len(z[z.files[0]]); pick = [0, n // 2, n - 1]
        arrays = {}
        for k in z.files:
            v = z[k][pick]
            arrays[{'images': 'input', 'masks': 'labels'}.get(k, k)] = prepare(v, p) if k == 'images' else v
        emit(name, os.path.basename(f), 'all', arrays, n)
    h = os.path.join(folder, 'data.h5')
    if os.path.exists(h):
        import h5py
        with h5py.File(h) as f:
            for split in ('calibration', 'test'):
                names = list(f[split]); n = len(names); pick = [names[0], names[n // 2], names[-1]]
                get = lambda k: np.stack([f[split][s][k][:] for s in pick])
                emit(name, 'data.h5', split, dict(input=prepare(get('image'), p), labels=get('mask')), n)
print('ok')";

#[test]
fn real_data_sets_equal_numpys() {
    let Some(root) = std::env::var_os("NARROWBIT_MODELS").map(PathBuf::from) else {
        eprintln!("skipped: NARROWBIT_MODELS is not set");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    if python(EXPECT, &[&root, dir.path()]).is_none() {
        return;
    }
    let mut seen = 0;
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        let [case, file, split] = stem.split("__").collect::<Vec<_>>()[..] else { panic!("{stem}") };
        compare(&root.join(case), file, split, &path, &stem);
        seen += 1;
    }
    eprintln!("{seen} data sets compared");
    assert!(seen > 0);
}

fn compare(case: &Path, file: &str, split: &str, expected: &Path, stem: &str) {
    let expected = Dataset::open(expected, &DataOptions { check_finite: false, ..DataOptions::default() }).unwrap();
    let names: Vec<String> = expected.arrays().iter().map(|(n, ..)| (*n).to_owned()).filter(|n| n != "n").collect();
    let specs: Vec<InputSpec> = expected
        .arrays()
        .iter()
        .filter(|(n, ..)| *n != "n")
        .map(|(n, d, s)| {
            let dims = std::iter::once(None).chain(s.unwrap().iter().map(|&d| Some(d))).collect::<Vec<_>>();
            InputSpec::new(*n, *d, dims)
        })
        .collect();
    let expected = expected.bind(&specs).unwrap().batch(0..3).unwrap();
    let has_own = std::fs::read_to_string(case.join("case.json")).unwrap().contains("\"preprocess\"");
    let preprocess =
        if has_own { Preprocess::from_file(case.join("case.json")).unwrap() } else { Preprocess::default() };
    let split = if split == "test" { Split::Test } else { Split::Calibration };
    let options = DataOptions { preprocess, split, ..DataOptions::default() };
    let data = Dataset::open(case.join(file), &options).unwrap().bind(&specs).unwrap();
    for (k, i) in [0, data.len() / 2, data.len() - 1].into_iter().enumerate() {
        let sample = data.sample(i).unwrap();
        for ((name, t), (_, want)) in sample.iter().zip(&expected.inputs) {
            assert!(names.contains(name));
            let bytes = t.bytes().len();
            assert_eq!(t.dtype(), want.dtype(), "{stem} {name}");
            assert!(t.bytes()[..] == want.bytes()[k * bytes..][..bytes], "{stem} {name} sample {i}");
        }
        let labels = data.batch(i..i + 1).unwrap().labels;
        let want = expected.labels.as_ref().map(|l| l.to_i64s().unwrap());
        if let (Some(have), Some(want)) = (labels, want) {
            let n = have.len();
            assert_eq!(have.to_i64s().unwrap(), want[k * n..][..n], "{stem} labels {i}");
        }
    }
}
