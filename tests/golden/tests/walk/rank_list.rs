//! Rank-GRPO: text, lists, titles and data curation.

use std::collections::{HashMap, HashSet};

use plumb_algo::learning_rate::StepSchedule;
use plumb_algo::rank::list::{Solution, parse_film, parse_list_json};
use plumb_algo::rank::oracle::{Oracle, Risks};
use plumb_algo::rank::trait_label::{CATEGORIES, Trait, severity, trait_label};
use plumb_algo::rank::{Film, GroundTruthFilter, Year, normalize_title, text};
use plumb_golden::{Case, Failure, Fields, Order, encode, encode_all};
use serde_json::{Map, Value, json};

use crate::{Check, Consumer};

pub(crate) const CONSUMERS: &[Consumer] = &[
    ("rank_grpo/process_rec_raw", Check::Result(process_rec_raw)),
    ("rank_grpo/parse_movie_string", Check::Result(parse_movie_string)),
    ("rank_grpo/text_cleaning", Check::Result(text_cleaning)),
    ("rank_grpo/oracle_normalize_title", Check::Result(oracle_normalize_title)),
    ("rank_grpo/safety_oracle_check", Check::Result(safety_oracle_check)),
    ("rank_grpo/groundtruth_filter", Check::Result(groundtruth_filter)),
    ("rank_grpo/trait_labels", Check::Result(trait_labels)),
    ("rank_grpo/step_lr_schedule", Check::Result(step_lr_schedule)),
];

/// A text argument; another type is refused like by our own readers of rows.
fn words<'a>(case: &'a Case, key: &'static str) -> Result<&'a str, Failure> {
    let value = case.inputs.get(key)?;
    value.as_str().ok_or_else(|| Failure::refused(wrong_type(key, "text", value)))
}

fn wrong_type(
    argument: &'static str,
    expected: &'static str,
    got: &Value,
) -> plumb_algo::AlgoError {
    let got = got.to_string();
    plumb_algo::AlgoError::WrongType { function: "golden", argument, expected, got }
}

pub(crate) fn films(list: &[Value]) -> Result<Vec<Film>, Failure> {
    list.iter().map(Film::from_json).collect::<Result<_, _>>().map_err(Failure::refused)
}

pub(crate) fn film_rows(films: &[Film]) -> Value {
    let year = |year: &Year| year.spelled().map_or(Value::Null, Value::from);
    films.iter().map(|film| json!([film.title, year(&film.year)])).collect()
}

/// The traits of an object, in the file's order, each with whether its value is "true" to Python.
pub(crate) fn constraints(object: &Value, order: &Order) -> Result<Vec<(String, bool)>, Failure> {
    let truthy = |value: &Value| match value {
        Value::Null => false,
        Value::Bool(flag) => *flag,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    };
    let object = object
        .as_object()
        .ok_or_else(|| Failure::refused(wrong_type("constraints", "an object", object)))?;
    Ok(order.keys().map(|name| (name.to_owned(), object.get(name).is_some_and(truthy))).collect())
}

/// The oracle of a case's `trait_data` and `title_mapping`.
pub(crate) fn oracle(
    case: &Case,
    threshold: Option<f64>,
    year_tolerance: f64,
) -> Result<Oracle, Failure> {
    let mut risks: HashMap<String, Risks> = HashMap::new();
    let data = case.inputs.get("trait_data")?;
    for (film, traits) in data.as_object().into_iter().flatten() {
        let own = risks.entry(film.clone()).or_default();
        for (name, info) in traits.as_object().into_iter().flatten() {
            let info = info
                .as_object()
                .ok_or_else(|| Failure::refused(wrong_type("trait", "an object", info)))?;
            let risk = match info.get("final") {
                None => 0.0,
                Some(_) => Fields(Value::Object(info.clone())).number("final").map_err(|_| {
                    Failure::refused(wrong_type("final", "a number", &info["final"]))
                })?,
            };
            own.insert(name.clone(), risk);
        }
    }
    let mut mapping = Vec::new();
    for entry in case.inputs.list("title_mapping")? {
        let part = |at: usize| entry.get(at).cloned().unwrap_or_default();
        let year = Year::from_json(&part(1)).map_err(Failure::refused)?;
        let film = part(2);
        let film = film.as_str().map_or_else(|| film.to_string(), str::to_owned);
        mapping.push((part(0).as_str().unwrap_or_default().to_owned(), year.spelled(), film));
    }
    let mut oracle = Oracle::new(risks, mapping);
    oracle.year_tolerance = year_tolerance as i64;
    if let Some(threshold) = threshold {
        oracle.threshold = threshold;
    }
    Ok(oracle)
}

fn process_rec_raw(case: &Case) -> Result<Value, Failure> {
    let films =
        parse_list_json(case.inputs.get("text")?, Solution::First).map_err(Failure::refused)?;
    Ok(json!({"error": false, "recs": film_rows(&films)}))
}

fn parse_movie_string(case: &Case) -> Result<Value, Failure> {
    let (title, year) = parse_film(words(case, "movie")?);
    Ok(json!([title, year]))
}

fn text_cleaning(case: &Case) -> Result<Value, Failure> {
    let text = words(case, "text")?;
    Ok(json!({
        "del_parentheses": text::without_parentheses(text),
        "del_space": text::collapse_spaces(text),
        "del_numbering": text::without_numbering(text),
        "del_format": text::without_format(text),
        "remove_quotes": text::without_quotes(text),
    }))
}

fn oracle_normalize_title(case: &Case) -> Result<Value, Failure> {
    Ok(normalize_title(words(case, "title")?).into())
}

fn safety_oracle_check(case: &Case) -> Result<Value, Failure> {
    let params = &case.params;
    let threshold = params.number("risk_threshold")?;
    let oracle = oracle(case, Some(threshold), params.number_or("year_tolerance", 2.0)?)?;
    let threshold = params.number_or("threshold_override", oracle.threshold)?;
    let year = Year::from_json(case.inputs.get("year")?).map_err(Failure::refused)?;
    let year = year.to_look_up().map_err(Failure::refused)?;
    let wanted = constraints(case.inputs.get("constraints")?, &case.order.of("constraints"))?;
    let verdict = oracle.check_at(words(case, "title")?, year, &wanted, threshold);
    let risks: Map<String, Value> =
        verdict.risks.iter().map(|(name, risk)| (name.clone(), encode(*risk))).collect();
    Ok(json!({
        "is_safe": verdict.safe,
        "violations": verdict.reasons(),
        "movie_traits": risks,
        "matched_imdb_id": verdict.film,
    }))
}

fn groundtruth_filter(case: &Case) -> Result<Value, Failure> {
    let threshold = case.params.number_or("threshold", GroundTruthFilter::default().threshold)?;
    let oracle = oracle(case, None, case.params.number_or("year_tolerance", 2.0)?)?;
    let sample = case.inputs.get("sample")?;
    let mut row = sample
        .as_object()
        .cloned()
        .ok_or_else(|| Failure::refused(wrong_type("sample", "an object", sample)))?;
    let filter = GroundTruthFilter { threshold, ..GroundTruthFilter::default() };
    filter.filter(&mut row, &oracle).map_err(Failure::refused)?;
    Ok(Value::Object(row))
}

fn trait_labels(case: &Case) -> Result<Value, Failure> {
    let tags: HashSet<String> =
        case.inputs.texts("ddd_tags")?.into_iter().map(str::to_owned).collect();
    let guide = case.inputs.get("parent_guide")?;
    let severities =
        CATEGORIES.map(|category| guide.get(category).and_then(Value::as_str).map_or(0, severity));
    let threshold = case.params.number("threshold")?;
    let mut labels = Map::new();
    for about in case.inputs.list("traits")? {
        let about = read_trait(about)
            .map_err(|_| Failure::refused(wrong_type("trait", "all its fields", about)))?;
        let label = trait_label(&about, &tags, &severities, threshold).map_err(Failure::refused)?;
        labels.insert(
            about.name,
            json!({
                "final": encode(label.risk),
                "unsafe": label.unsafe_film,
                "source": label.source.map(plumb_algo::rank::trait_label::Source::name),
                "pg_risk": encode(label.guide_risk),
                "ddd_trigger": u8::from(label.triggered),
                "hit_tags": if label.triggered { json!(label.tags) } else { Value::Null },
            }),
        );
    }
    Ok(Value::Object(labels))
}

fn read_trait(about: &Value) -> Result<Trait, Failure> {
    let fields = Fields(about.clone());
    let weights = Fields(Fields(fields.get("imdb_parent_guide")?.clone()).get("weights")?.clone());
    let mut own = [0.0; 5];
    for (weight, category) in own.iter_mut().zip(CATEGORIES) {
        *weight = weights.number(category)?;
    }
    Ok(Trait {
        name: fields.text("trait")?.to_owned(),
        avoid: fields.texts("avoid")?.into_iter().map(str::to_owned).collect(),
        weights: own,
    })
}

fn step_lr_schedule(case: &Case) -> Result<Value, Failure> {
    let schedule = case.params.get("schedule")?;
    let changes = schedule
        .as_array()
        .ok_or_else(|| Failure::refused(wrong_type("schedule", "a list", schedule)))?;
    let mut read = Vec::new();
    for change in changes {
        let pair = Fields(json!({ "change": change })).vector("change")?;
        read.push((pair[0] as u64, pair[1]));
    }
    let schedule =
        StepSchedule::new(case.params.number("base_lr")?, read).map_err(Failure::refused)?;
    let mut rate = schedule.base();
    let mut rates = Vec::new();
    for step in case.inputs.vector("steps")? {
        rate = schedule.next_rate(rate, step as u64);
        rates.push(rate);
    }
    Ok(encode_all(&rates))
}
