//! Files that other programs wrote (`testdata/README.md`), and broken copies of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use plumb_config::OnBadRow;
use serde_json::{Value, json};

use crate::{
    At, DataError, MixSettings, PairNeeds, PreferredBy, Row, RowFault, Schema, Source,
    read_preferences, read_prompts, read_supervised,
};

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name)
}

fn rows(path: &Path) -> Result<Vec<Row>, DataError> {
    Source::at(path)?.rows()?.collect()
}

fn fields(name: &str) -> Vec<Value> {
    rows(&file(name)).unwrap().into_iter().map(|row| row.fields.unwrap()).collect()
}

fn settings(labels: &BTreeMap<String, String>) -> MixSettings<'_> {
    let base_dir = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/testdata"));
    MixSettings { base_dir, home: None, seed: 1, on_bad_row: OnBadRow::Fail, labels }
}

fn sources<const N: usize>(texts: [&str; N]) -> Vec<String> {
    texts.map(str::to_owned).to_vec()
}

/// A folder with a copy of a file or folder of test data, and the copy.
fn copy(name: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (file(name), folder.path().join(name));
    if from.is_dir() {
        std::fs::create_dir(&to).unwrap();
        for entry in std::fs::read_dir(&from).unwrap().flatten() {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    } else {
        std::fs::copy(&from, &to).unwrap();
    }
    (folder, to)
}

#[test]
fn gzip_and_plain_lines_are_the_same_rows() {
    let plain = fields("hh-harmless.jsonl");
    assert_eq!(plain.len(), 6);
    assert_eq!(plain, fields("hh-harmless.jsonl.gz"));
}

#[test]
fn every_codec_of_parquet_gives_the_same_rows() {
    let plain = fields("gsm8k.none.parquet");
    assert_eq!(plain.len(), 5);
    assert!(plain[0]["response"].as_str().unwrap().ends_with("#### 18"));
    for codec in ["snappy", "gzip", "brotli", "lz4", "zstd"] {
        assert_eq!(plain, fields(&format!("gsm8k.{codec}.parquet")), "{codec}");
    }
    let places: Vec<At> =
        rows(&file("gsm8k.none.parquet")).unwrap().iter().map(|row| row.place.at).collect();
    assert_eq!(places, [0, 1, 2, 3, 4].map(At::Row));
}

#[test]
fn a_saved_folder_s_shards_are_read_in_order() {
    let rows = rows(&file("do-not-answer")).unwrap();
    let ids: Vec<String> = rows
        .iter()
        .map(|row| row.fields.as_ref().unwrap()["id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(ids, (0..7).map(|i| format!("dna-{i}")).collect::<Vec<_>>());
    assert_eq!(rows[6].place.at, At::Row(6));
    assert!(rows[6].place.to_string().ends_with("do-not-answer row 6"), "{}", rows[6].place);
}

#[test]
fn every_type_has_its_json() {
    let expected = [
        json!({"none": null, "flag": true, "i8": -1, "u64": 9_223_372_036_854_775_808_u64,
            "f16": 0.5, "f32": 0.5, "f64": 1e300, "large": "a",
            "view": "a view of more than twelve bytes", "code": "x", "bytes": "text",
            "list": [1, null], "turns": [{"role": "user", "content": "q"}], "map": {"k": 1},
            "day": 2, "when": 1500}),
        json!({"none": null, "flag": null, "i8": 2, "u64": 0, "f16": null, "f32": null,
            "f64": null, "large": null, "view": null, "code": "y", "bytes": {"bytes": 2},
            "list": [], "turns": [], "map": {}, "day": null, "when": null}),
        json!({"none": null, "flag": false, "i8": null, "u64": 1, "f16": 1.5, "f32": -1.0,
            "f64": null, "large": "ü", "view": "b", "code": null, "bytes": null, "list": null,
            "turns": null, "map": null, "day": null, "when": 0}),
    ];
    for name in ["types.parquet", "types"] {
        let rows = fields(name);
        assert_eq!(rows.len(), 3);
        for (row, expected) in rows.iter().zip(&expected) {
            let columns = row.as_object().unwrap();
            for (column, value) in columns {
                assert_eq!(value, &expected[column], "{name} {column}");
            }
            // The decimal column has no JSON and is left out.
            assert_eq!(columns.len(), expected.as_object().unwrap().len(), "{name}");
        }
    }
}

#[test]
fn a_folder_of_splits_names_them() {
    let error = rows(&file("rank")).unwrap_err().to_string();
    assert!(error.contains("the splits train, validation; name the folder of one"), "{error}");
    assert_eq!(fields("rank/train").len(), 2);
}

#[test]
fn what_is_cut_off_is_named_and_gives_no_rows() {
    let (_folder, saved) = copy("do-not-answer");
    let shard = saved.join("data-00001-of-00002.arrow");
    let bytes = std::fs::read(&shard).unwrap();
    // Between two messages: the reader itself would take it for the end.
    std::fs::write(&shard, &bytes[..bytes.len() - 8]).unwrap();
    let error = rows(&saved).unwrap_err().to_string();
    assert!(error.contains("data-00001-of-00002.arrow: ends without the mark"), "{error}");

    let (_folder, parquet) = copy("gsm8k.snappy.parquet");
    let bytes = std::fs::read(&parquet).unwrap();
    std::fs::write(&parquet, &bytes[..bytes.len() - 20]).unwrap();
    let error = rows(&parquet).unwrap_err().to_string();
    assert!(error.contains("gsm8k.snappy.parquet: not a readable Parquet file"), "{error}");

    let (_folder, gzip) = copy("hh-harmless.jsonl.gz");
    let bytes = std::fs::read(&gzip).unwrap();
    std::fs::write(&gzip, &bytes[..bytes.len() - 20]).unwrap();
    let error = rows(&gzip).unwrap_err();
    assert!(matches!(error, DataError::Read { .. }), "{error}");
}

#[test]
fn what_is_no_data_set_is_named() {
    let (folder, saved) = copy("do-not-answer");
    std::fs::write(saved.join("state.json"), r#"{"_data_files": [{"filename": "../x"}]}"#).unwrap();
    assert!(rows(&saved).unwrap_err().to_string().contains("\"../x\", no file in the folder"));
    let indices = r#"{"_data_files": [], "_indices_data_files": [{"filename": "i.arrow"}]}"#;
    std::fs::write(saved.join("state.json"), indices).unwrap();
    assert!(rows(&saved).unwrap_err().to_string().contains("flatten_indices()"));
    std::fs::write(saved.join("state.json"), "{").unwrap();
    assert!(rows(&saved).unwrap_err().to_string().contains("state.json: not as save_to_disk"));
    assert!(rows(folder.path()).unwrap_err().to_string().contains("no state.json"));
    std::fs::write(folder.path().join("rows.csv"), "a,b").unwrap();
    let error = rows(&folder.path().join("rows.csv")).unwrap_err().to_string();
    assert!(error.contains("rows.csv: unknown kind of data; give .jsonl"), "{error}");
    let error = rows(&folder.path().join("none.jsonl")).unwrap_err().to_string();
    assert!(error.ends_with("none.jsonl cannot be read"), "{error}");
}

const LINES: &str = "\u{feff}{\"id\":\"a\",\"label\":\"l\",\"prompt\":\"q\"}\r\n\n{\"id\": \n\
    {\"id\":\"b\",\"label\":\"l\"}\n{\"id\":\"a\",\"label\":\"l\",\"prompt\":\"r\"}\n\
    {\"id\":\"c\",\"label\":\"l\",\"prompt\":\"s\"}\n{\"id\":\"d\",\"label\":\"l\"}";

#[test]
fn bad_rows_fail_with_file_and_line_or_are_counted_by_cause() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.jsonl");
    std::fs::write(&path, [LINES.as_bytes(), b"\n\xff\n"].concat()).unwrap();
    let labels = BTreeMap::new();
    let settings = MixSettings { base_dir: folder.path(), ..settings(&labels) };
    let error = read_prompts(&sources(["p.jsonl"]), settings).unwrap_err().to_string();
    assert!(error.contains("p.jsonl line 3: not JSON: EOF"), "{error}");

    let settings = MixSettings { on_bad_row: OnBadRow::Skip, ..settings };
    let mixed = read_prompts(&sources(["p.jsonl"]), settings).unwrap();
    let ids: Vec<&str> = mixed.rows.iter().map(|p| p.id.as_str()).collect();
    assert_eq!(ids, ["a", "c"]);
    let skipped = &mixed.parts[0].skipped;
    assert_eq!((mixed.parts[0].rows, skipped.total()), (2, 5));
    let told = skipped.to_string();
    for part in [
        "1 x an id that stands twice (first: ",
        "line 5: id \"a\" stands in ",
        "line 1 too)",
        "2 x neither prompt nor messages; give one (first: ",
        "line 4: neither prompt",
        "1 x not JSON",
        "1 x not UTF-8",
        "line 8: byte 1 is not UTF-8",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
}

#[test]
fn a_file_without_good_rows_is_named() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("p.jsonl"), "\n").unwrap();
    std::fs::write(folder.path().join("q.jsonl"), "[]\n").unwrap();
    let labels = BTreeMap::new();
    let base_dir = folder.path();
    let settings = MixSettings { base_dir, on_bad_row: OnBadRow::Skip, ..settings(&labels) };
    let error = read_prompts(&sources(["p.jsonl"]), settings).unwrap_err().to_string();
    assert!(error.ends_with("p.jsonl has no rows"), "{error}");
    let error = read_prompts(&sources(["q.jsonl"]), settings).unwrap_err().to_string();
    assert!(error.contains("q.jsonl has no good rows, skipped are 1 x "), "{error}");
}

#[test]
fn data_sets_are_mixed_by_name_proportion_and_path() {
    let labels: BTreeMap<String, String> =
        [("hh-rlhf-harmless-preference/test".into(), "safety".into())].into();
    let texts = sources([
        "do-not-answer",
        "hh-rlhf-harmless-preference/test:0.5:hh-harmless.jsonl.gz",
        "rank-grpo:3/-1:rank/train",
    ]);
    let error = read_prompts(&texts, settings(&labels)).unwrap_err().to_string();
    assert!(error.contains("rank/train row 0: the row has no label"), "{error}");

    let labels = labels.into_iter().chain([("rank-grpo".into(), "films".into())]).collect();
    let mixed = read_prompts(&texts, settings(&labels)).unwrap();
    let taken: Vec<usize> = mixed.parts.iter().map(|part| part.taken).collect();
    assert_eq!(taken, [7, 3, 3]);
    assert_eq!(mixed.rows[0].id.as_str(), "dna-0");
    let of = |label: &str| mixed.rows.iter().filter(|p| p.label.as_str() == label).count();
    assert_eq!((of("safety"), of("films")), (10, 3));
    // Lines count from 1, rows of tables from 0.
    let hh = &mixed.rows[7..10];
    assert!(hh.iter().all(|p| p.id.as_str().starts_with("hh-rlhf-harmless-preference/test:")));
    let rank = &mixed.rows[10..];
    assert_eq!((rank[0].id.as_str(), rank[1].id.as_str()), ("rank-grpo:0", "rank-grpo:1"));
    assert!(rank[1].reference.as_deref().unwrap().contains("[\"Ran\",\"1985\"]"));
    assert_eq!(mixed, read_prompts(&texts, settings(&labels)).unwrap(), "the seed decides");
}

#[test]
fn supervised_rows_and_preferences_come_of_real_data() {
    let labels = BTreeMap::new();
    let texts = sources(["gsm8k.snappy.parquet", "hh-rlhf-harmless-dialogue:1:hh-harmless.jsonl"]);
    let mixed = read_supervised(&texts, settings(&labels)).unwrap();
    assert_eq!(mixed.rows.len(), 11);
    let last = |named: &crate::NamedRow<crate::SupervisedRow>| {
        named.row.messages.last().unwrap().role.clone()
    };
    assert!(mixed.rows.iter().all(|row| last(row) == "assistant"));
    let ids = [0, 4, 5].map(|at| mixed.rows[at].id.as_str());
    assert_eq!(ids, ["gsm8k.snappy:0", "gsm8k.snappy:4", "hh-rlhf-harmless-dialogue:1"]);

    let texts = sources(["hh-rlhf-harmless-preference/test:2.0:hh-harmless.jsonl"]);
    let mixed = read_preferences(&texts, PairNeeds::default(), settings(&labels)).unwrap();
    assert_eq!(mixed.rows.len(), 12);
    assert_eq!(mixed.rows[..6], mixed.rows[6..]);
    assert_eq!(mixed.rows[0].row.prompt[0].content, "Is it possible to download a car?");
    assert!(mixed.rows[0].row.rejected.ends_with("I don’t understand."));
    let safer = PairNeeds { by: PreferredBy::Safer, ..PairNeeds::default() };
    let error = read_preferences(&texts, safer, settings(&labels)).unwrap_err();
    assert!(error.to_string().ends_with("line 1: no field \"safer\""), "{error}");
    let margins = PairNeeds { margin: true, ..PairNeeds::default() };
    let error = read_preferences(&texts, margins, settings(&labels)).unwrap_err().to_string();
    assert!(error.contains("hh-harmless.jsonl line 1: no margin; give margin"), "{error}");
}

#[test]
fn a_source_s_text_is_checked() {
    let labels = BTreeMap::new();
    for (text, cause) in [
        ("alpaca", "data set \"alpaca\" has no path, and nothing is downloaded; write alpaca:1.0:"),
        ("alpaca:0.5", "has no path"),
        ("alpacca:0.5:x.jsonl", "no data set is named \"alpacca\"; there are: prompts, "),
        ("moss-002-sft:1:x.jsonl", "has no prompts; it gives conversations to learn"),
        ("prompts:-1:do-not-answer", "proportion -1"),
        ("prompts:0:do-not-answer", "nothing is taken of"),
        ("prompts:a:do-not-answer", "proportion \"a\""),
        ("a:b:c:d", "more than two colons"),
    ] {
        let error = read_prompts(&sources([text]), settings(&labels)).unwrap_err().to_string();
        assert!(error.contains(cause), "{text}: {error}");
    }
}

#[test]
fn only_the_records_stay_in_memory() {
    // 3,000 rows in many batches; the reader sees them one at a time, in order.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("many.jsonl");
    let text: String = (0..3000).map(|i| format!("{{\"n\": {i}}}\n")).collect();
    std::fs::write(&path, text).unwrap();
    let source = Source::at(&path).unwrap();
    let first: Vec<Row> = source.rows().unwrap().take(2).map(Result::unwrap).collect();
    assert_eq!(first[1].place.at, At::Line(2));
    let read =
        |_: &Row, fields: &Value| fields["n"].as_u64().ok_or_else(|| RowFault::new("no n", "no n"));
    let loaded = source.load(OnBadRow::Fail, read).unwrap();
    assert_eq!(loaded.rows, (0..3000).collect::<Vec<_>>());
}

#[test]
fn raw_samples_of_every_registered_data_set() {
    let sample = |schema: Schema, row: Value| schema.raw_sample(&row).map(Result::unwrap);
    assert_eq!(sample(Schema::Prompts, json!({})), None);
    let raw = sample(Schema::RawSamples, json!({"input": "q", "answer": "a"})).unwrap();
    let alpaca = json!({"instruction": "q", "input": "", "output": "a", "text": "..."});
    let firefly = json!({"kind": "QA", "input": "q", "target": "a"});
    assert_eq!(sample(Schema::Alpaca, alpaca).unwrap(), raw);
    assert_eq!(sample(Schema::Firefly, firefly).unwrap(), raw);
    let moss = json!({"plain_text": "[Human]: q<eoh> [MOSS]: a<eoa>"});
    let short = json!({"conversation": [{"human": "q", "assistant": "a"}]});
    let dialogue = Some(vec!["q".to_owned(), "a".to_owned()]);
    assert_eq!(sample(Schema::Moss002, moss).unwrap().dialogue, dialogue);
    assert_eq!(sample(Schema::Moss003, short).unwrap().dialogue, dialogue);
}
