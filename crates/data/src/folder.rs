//! Folders: images, class sub-folders, `labels.csv`, or one array file per sample.

use std::cmp::Ordering;
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use narrowbit_tensor::{DType, Tensor};

use crate::column::{Column, Columns, check_range, stack};
use crate::labels::{Labels, read_table};
use crate::source::Source;
use crate::{DataError, Limits, Place, arrays, picture};

/// Deeper folders are taken for a loop of links.
const MAX_DEPTH: usize = 8;

/// What a folder holds.
pub(crate) struct Folder {
    pub(crate) columns: Columns,
    pub(crate) labels: Option<Labels>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Image,
    Arrays,
}

pub(crate) fn is_image(path: &Path) -> bool {
    kind_of(path) == Some(Kind::Image)
}

fn kind_of(path: &Path) -> Option<Kind> {
    let ending = path.extension()?.to_string_lossy().to_ascii_lowercase();
    match ending.as_str() {
        "jpg" | "jpeg" | "png" => Some(Kind::Image),
        "npz" | "npy" => Some(Kind::Arrays),
        _ => None,
    }
}

pub(crate) fn open(root: &Path, limits: &Limits) -> Result<Folder, DataError> {
    let place = Place::file(root);
    let (files, labels) = match root.join("labels.csv") {
        table if table.is_file() => listed(root, &table)?,
        _ => found(root, &place, limits)?,
    };
    let Some(kind) = files.first().and_then(|f| kind_of(f)) else {
        let help = "put .jpg, .jpeg, .png, .npy or .npz files into it, or into one sub-folder per class";
        return Err(DataError::format(&place, "the folder holds no samples", help));
    };
    if let Some(other) = files.iter().find(|f| kind_of(f) != Some(kind)) {
        let what = format!("the folder mixes images and arrays: {:?} and {:?}", files[0], other);
        return Err(DataError::unsupported(&place, what, "keep them in different folders"));
    }
    let files: Arc<[PathBuf]> = files.into();
    let columns: Columns = match kind {
        Kind::Image => vec![("images".into(), Arc::new(Pictures { files, limits: limits.clone() }))],
        Kind::Arrays => {
            let first = arrays(&Source::open(&files[0])?, &files[0], limits)?;
            let column = |(name, c): (String, Arc<dyn Column>)| {
                let files = files.clone();
                (
                    name.clone(),
                    Arc::new(ArrayFiles { files, name, dtype: c.dtype(), limits: limits.clone() }) as Arc<dyn Column>,
                )
            };
            first.into_iter().map(column).collect()
        }
    };
    Ok(Folder { columns, labels })
}

type Found = (Vec<PathBuf>, Option<Labels>);

/// The files that `labels.csv` names, in its order.
fn listed(root: &Path, table: &Path) -> Result<Found, DataError> {
    let place = Place::file(table);
    let parsed = read_table(&Source::open(table)?, &place)?;
    let Some(names) = parsed.files else {
        return Err(DataError::format(&place, "there is no column of file names", "write lines \"file,label\""));
    };
    let inside = |name: &String| {
        let path = Path::new(name);
        let plain = path.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
        match plain && kind_of(path).is_some() {
            true => Ok(root.join(path)),
            false => {
                let what = format!("{name:?} is no sample inside the folder");
                Err(DataError::format(&place, what, "name .jpg, .png, .npy or .npz files relative to the folder"))
            }
        }
    };
    let files = names.iter().map(inside).collect::<Result<Vec<_>, _>>()?;
    Ok((files, Some(Labels::from_table(&parsed.labels, &place)?)))
}

/// The files in the folder itself, or those in class sub-folders, whose sorted names give labels.
fn found(root: &Path, place: &Place, limits: &Limits) -> Result<Found, DataError> {
    let (mut files, mut folders) = list(root)?;
    if !files.is_empty() {
        files.sort_by(|a, b| natural(a, b));
        return Ok((files, None));
    }
    folders.sort_unstable();
    let mut classes = Vec::new();
    let mut names = Vec::new();
    for folder in folders {
        let mut inside = Vec::new();
        walk(&folder, 1, &mut inside, limits, place)?;
        if inside.is_empty() {
            continue;
        }
        inside.sort_unstable();
        classes.resize(classes.len() + inside.len(), names.len() as i64);
        names.push(folder.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default());
        files.append(&mut inside);
    }
    Ok((files, Some(Labels::from_classes(classes, names, place))))
}

fn walk(folder: &Path, depth: usize, out: &mut Vec<PathBuf>, limits: &Limits, place: &Place) -> Result<(), DataError> {
    let (mut files, folders) = list(folder)?;
    out.append(&mut files);
    if out.len() > limits.arrays {
        let what = format!("the folder holds more than {} files", limits.arrays);
        return Err(DataError::too_large(place, what, "split the data set"));
    }
    for folder in folders.iter().filter(|_| depth < MAX_DEPTH) {
        walk(folder, depth + 1, out, limits, place)?;
    }
    Ok(())
}

/// Sample files and sub-folders of a folder; hidden ones and other files are left out.
fn list(folder: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>), DataError> {
    let place = Place::file(folder);
    let failed = |e| DataError::io(&place, "list", e);
    let (mut files, mut folders) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let hidden = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.'));
        if hidden {
            continue;
        }
        if path.is_dir() {
            folders.push(path);
        } else if kind_of(&path).is_some() {
            files.push(path);
        }
    }
    Ok((files, folders))
}

/// Order of names in which runs of digits compare as numbers: `s2` before `s10`.
fn natural(a: &Path, b: &Path) -> Ordering {
    let (x, y) = (a.as_os_str().to_string_lossy(), b.as_os_str().to_string_lossy());
    let (mut x, mut y) = (x.as_ref(), y.as_ref());
    loop {
        let (nx, ny) = (digits(x), digits(y));
        if !nx.is_empty() && !ny.is_empty() {
            let (vx, vy) = (nx.trim_start_matches('0'), ny.trim_start_matches('0'));
            match vx.len().cmp(&vy.len()).then(vx.cmp(vy)) {
                Ordering::Equal => (x, y) = (&x[nx.len()..], &y[ny.len()..]),
                other => return other,
            }
            continue;
        }
        match (x.chars().next(), y.chars().next()) {
            (Some(p), Some(q)) if p == q => (x, y) = (&x[p.len_utf8()..], &y[q.len_utf8()..]),
            (Some(p), Some(q)) => return p.cmp(&q),
            (None, None) => return a.cmp(b),
            (p, q) => return p.is_some().cmp(&q.is_some()),
        }
    }
}

fn digits(s: &str) -> &str {
    &s[..s.find(|c: char| !c.is_ascii_digit()).unwrap_or(s.len())]
}

/// Image files, decoded on demand.
struct Pictures {
    files: Arc<[PathBuf]>,
    limits: Limits,
}

impl Column for Pictures {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn dtype(&self) -> DType {
        DType::U8
    }

    fn shape(&self) -> Option<&[usize]> {
        None
    }

    fn read(&self, start: usize, n: usize) -> Result<Tensor, DataError> {
        check_range(start, n, self.len())?;
        let one = |i: usize| {
            let place = self.place(i);
            let image = picture::decode(&Source::open(&self.files[i])?, &place, &self.limits)?;
            Tensor::new([1, image.height, image.width, image.channels], image.data)
                .map_err(|e| DataError::tensor(&place, e))
        };
        stack((start..start + n).map(one).collect::<Result<_, _>>()?, &self.place(start))
    }

    fn place(&self, index: usize) -> Place {
        let file = self.files.get(index).cloned().unwrap_or_default();
        Place { file, array: None, sample: Some(index) }
    }

    fn is_image_files(&self) -> bool {
        true
    }
}

/// One image file, also in memory.
pub(crate) struct Picture {
    pub(crate) source: Source,
    pub(crate) place: Place,
    pub(crate) limits: Limits,
}

impl Column for Picture {
    fn len(&self) -> usize {
        1
    }

    fn dtype(&self) -> DType {
        DType::U8
    }

    fn shape(&self) -> Option<&[usize]> {
        None
    }

    fn read(&self, start: usize, n: usize) -> Result<Tensor, DataError> {
        check_range(start, n, 1)?;
        let image = picture::decode(&self.source, &self.place, &self.limits)?;
        let whole = Tensor::new([1, image.height, image.width, 3], image.data);
        whole.map_err(|e| DataError::tensor(&self.place, e))
    }

    fn place(&self, index: usize) -> Place {
        self.place.sample(index)
    }

    fn is_image_files(&self) -> bool {
        true
    }
}

/// One array of each of many `.npy` or `.npz` files; each file is one sample.
struct ArrayFiles {
    files: Arc<[PathBuf]>,
    name: String,
    dtype: DType,
    limits: Limits,
}

impl ArrayFiles {
    /// The whole array of one file, with a batch dimension of 1 before its own dimensions.
    fn one(&self, index: usize) -> Result<Tensor, DataError> {
        let file = &self.files[index];
        let found = arrays(&Source::open(file)?, file, &self.limits)?;
        let Some((_, column)) = found.iter().find(|(name, _)| *name == self.name) else {
            let names: Vec<&str> = found.iter().map(|(n, _)| n.as_str()).collect();
            let what = format!("there is no array \"{}\", only {names:?}", self.name);
            return Err(DataError::format(&self.place(index), what, "write the same arrays into each sample's file"));
        };
        let whole = column.read(0, column.len())?;
        let mut shape = vec![1];
        shape.extend(column.file_shape().iter());
        whole.reshaped(shape).map_err(|e| DataError::tensor(&self.place(index), e))
    }
}

impl Column for ArrayFiles {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn dtype(&self) -> DType {
        self.dtype
    }

    fn shape(&self) -> Option<&[usize]> {
        None
    }

    fn read(&self, start: usize, n: usize) -> Result<Tensor, DataError> {
        check_range(start, n, self.len())?;
        stack((start..start + n).map(|i| self.one(i)).collect::<Result<_, _>>()?, &self.place(start))
    }

    fn place(&self, index: usize) -> Place {
        let file = self.files.get(index).cloned().unwrap_or_default();
        Place { file, array: (!self.name.is_empty()).then(|| self.name.clone()), sample: Some(index) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sorts_numbers_by_value() {
        let mut v: Vec<PathBuf> = ["s10", "s2", "s02", "a", "s1x", "s1"].iter().map(PathBuf::from).collect();
        v.sort_by(|a, b| natural(a, b));
        let v: Vec<_> = v.iter().map(|p| p.to_str().unwrap()).collect();
        assert_eq!(v, ["a", "s1", "s1x", "s02", "s2", "s10"]);
    }
}
