//! Text tables: one label per line, or CSV with a header.

use crate::{DataError, Place};

/// The rows of a CSV text (RFC 4180: quotes around a field, doubled inside it). Blank lines and
/// lines that start with `#` are left out.
pub(crate) fn rows(text: &str, place: &Place) -> Result<Vec<Vec<String>>, DataError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut out = Vec::new();
    let (mut row, mut field, mut quoted, mut was_quoted) = (Vec::new(), String::new(), false, false);
    let mut chars = text.chars().peekable();
    let mut end_row = |row: &mut Vec<String>, field: &mut String, was_quoted: &mut bool| {
        let comment = row.is_empty() && !*was_quoted && (field.trim().is_empty() || field.starts_with('#'));
        let last = std::mem::take(field);
        if !comment {
            row.push(if *was_quoted { last } else { last.trim().to_owned() });
            out.push(std::mem::take(row));
        }
        row.clear();
        *was_quoted = false;
    };
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                field.push('"');
            }
            '"' if quoted => quoted = false,
            '"' if field.trim().is_empty() => {
                field.clear();
                (quoted, was_quoted) = (true, true);
            }
            ',' if !quoted => {
                let f = std::mem::take(&mut field);
                row.push(if was_quoted { f } else { f.trim().to_owned() });
                was_quoted = false;
            }
            '\n' if !quoted => end_row(&mut row, &mut field, &mut was_quoted),
            '\r' if !quoted => {}
            // Text after a closing quote is not part of the field.
            _ if was_quoted && !quoted => {}
            c => field.push(c),
        }
    }
    if quoted {
        return Err(DataError::format(place, "a quote is not closed", "close it, or double quotes inside fields"));
    }
    if !row.is_empty() || !field.is_empty() || was_quoted {
        end_row(&mut row, &mut field, &mut was_quoted);
    }
    Ok(out)
}

/// Label values: whole numbers, numbers, or names whose sorted order gives the class index.
pub(crate) enum Values {
    Classes(Vec<i64>),
    Named(Vec<i64>, Vec<String>),
    Scores(Vec<f32>),
}

pub(crate) fn values(cells: &[String]) -> Values {
    if let Ok(v) = cells.iter().map(|c| c.parse()).collect() {
        return Values::Classes(v);
    }
    if let Ok(v) = cells.iter().map(|c| c.parse()).collect() {
        return Values::Scores(v);
    }
    let mut names = cells.to_vec();
    names.sort_unstable();
    names.dedup();
    let index = |c: &String| names.binary_search(c).unwrap_or_default() as i64;
    Values::Named(cells.iter().map(index).collect(), names)
}

/// A table's label column and, where it has one, its file column.
pub(crate) struct Labelled {
    pub(crate) files: Option<Vec<String>>,
    pub(crate) labels: Vec<String>,
}

const LABEL_NAMES: [&str; 7] = ["label", "labels", "class", "target", "score", "y", "index"];
const FILE_NAMES: [&str; 6] = ["file", "filename", "files", "image", "path", "name"];

/// Tells header, label column and file column of a table.
///
/// A first row that names a label column is a header; so is a first row whose last cell is
/// no number while the second row's is one. Without a header the last column holds the
/// labels, and of two columns the first holds files.
pub(crate) fn labelled(mut rows: Vec<Vec<String>>, place: &Place) -> Result<Labelled, DataError> {
    let find =
        |row: &[String], names: &[&str]| row.iter().position(|c| names.contains(&c.to_ascii_lowercase().as_str()));
    let Some(first) = rows.first().cloned() else {
        return Err(DataError::format(
            place,
            "the table is empty",
            "write one label per line, or lines \"file,label\"",
        ));
    };
    let named = find(&first, &LABEL_NAMES);
    let number = |row: Option<&Vec<String>>| row.and_then(|r| r.last()).is_some_and(|c| c.parse::<f64>().is_ok());
    let header = named.is_some() || rows.len() > 1 && !number(Some(&first)) && number(rows.get(1));
    if header {
        rows.remove(0);
    }
    let width = first.len();
    let label = named.unwrap_or(width - 1);
    let file = match header {
        true => find(&first, &FILE_NAMES).filter(|&f| f != label).or((width == 2).then(|| usize::from(label == 0))),
        false => (width >= 2).then_some(0),
    };
    if let Some((i, row)) = rows.iter().enumerate().find(|(_, r)| r.len() != width) {
        let what = format!("row {} has {} fields, the first row has {width}", i + 1, row.len());
        return Err(DataError::format(place, what, "write the same number of fields in each row"));
    }
    let column = |k: usize| rows.iter().map(|r| r[k].clone()).collect::<Vec<_>>();
    Ok(Labelled { files: file.map(column), labels: column(label) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Labelled {
        labelled(rows(text, &Place::default()).unwrap(), &Place::default()).unwrap()
    }

    #[test]
    fn reads_headers_quotes_and_plain_lists() {
        let t = parse("\u{feff}file,label\r\n\"a,\"\"b\".png, cat\nc.png,dog\n");
        assert_eq!(t.files.unwrap(), ["a,\"b", "c.png"]);
        assert_eq!(t.labels, ["cat", "dog"]);
        let t = parse("# comment\n3\n1\n\n2");
        assert_eq!((t.files, t.labels), (None, vec!["3".into(), "1".into(), "2".into()]));
        let t = parse("name,kind\nx.png,4\n");
        assert_eq!((t.files.unwrap()[0].as_str(), t.labels[0].as_str()), ("x.png", "4"));
    }

    #[test]
    fn tells_classes_scores_and_names() {
        let v = |cells: &[&str]| values(&cells.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>());
        assert!(matches!(v(&["1", "2"]), Values::Classes(c) if c == [1, 2]));
        assert!(matches!(v(&["1", "2.5"]), Values::Scores(c) if c == [1.0, 2.5]));
        assert!(matches!(v(&["b", "a", "b"]), Values::Named(c, n) if c == [1, 0, 1] && n == ["a", "b"]));
    }

    #[test]
    fn refuses_ragged_tables_and_open_quotes() {
        assert!(rows("\"a", &Place::default()).is_err());
        assert!(labelled(rows("a,1\nb\n", &Place::default()).unwrap(), &Place::default()).is_err());
        assert!(labelled(vec![], &Place::default()).is_err());
    }
}
