//! What a finished stage has left, in `stages/NAME.json`: a resumed job goes on without running
//! it again. A file is there as a whole or not at all.

use std::collections::BTreeMap;

use plumb_config::Stage;
use plumb_domain::{Label, PromptId};
use plumb_proto::Message as _;
use plumb_proto::actor::AnswerPair;
use serde::{Deserialize, Serialize};

use super::label::Pairs;
use super::training_data::EncodedPair;
use super::{Figures, Outputs};
use crate::job::error::JobError;
use crate::job::folder::{RunFolder, write_whole};
use crate::job::footprint::Footprint;
use crate::job::summary::{AnswerPair as ShownAnswers, KlSummary, MeasureResult};
use crate::ports::PlainSample;

/// A finished stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageRecord {
    /// Its kind.
    pub kind: String,
    /// How long it took.
    pub seconds: f64,
    /// Its figures.
    pub figures: Figures,
    /// Workers lost and restarted by its end, since the job began.
    pub restarts: u64,
    /// What its processes held.
    #[serde(default)]
    pub memory: Vec<Footprint>,
    /// Whether later stages start from its model.
    trained: bool,
    kl: KlSummary,
    measures: Vec<MeasureResult>,
    answers: Vec<ShownAnswers>,
    artefacts: BTreeMap<String, String>,
    samples: Option<Vec<SampleRecord>>,
    pairs: Option<PairsRecord>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SampleRecord {
    id: String,
    prompt_id: String,
    label: String,
    prompt_ids: Vec<u32>,
    response_ids: Vec<u32>,
    question: String,
    response: String,
    reference: Option<String>,
    finish: String,
    policy_version: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PairsRecord {
    train: Vec<PairRecord>,
    heldout: Vec<PairRecord>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PairRecord {
    /// The pair as it goes to the workers: protobuf, hex.
    answers: String,
    safe: Option<[bool; 2]>,
}

impl StageRecord {
    /// What `stage` has left in `outputs`.
    #[must_use]
    pub fn of(stage: &Stage, folder: &RunFolder, outputs: &Outputs, figures: Figures) -> Self {
        let name = stage.name();
        let samples = outputs.samples.get(name);
        let pairs = outputs.pairs.get(name);
        let pair_records = |pairs: &[EncodedPair]| pairs.iter().map(PairRecord::from).collect();
        Self {
            kind: stage.kind().to_owned(),
            seconds: 0.0,
            figures,
            restarts: 0,
            memory: Vec::new(),
            trained: outputs.model == folder.model(name),
            kl: outputs.kl.clone(),
            measures: outputs.measures.clone(),
            answers: outputs.answers.clone(),
            artefacts: outputs.artefacts.clone(),
            samples: samples.map(|samples| samples.iter().map(SampleRecord::from).collect()),
            pairs: pairs.map(|pairs| PairsRecord {
                train: pair_records(&pairs.train),
                heldout: pair_records(&pairs.heldout),
            }),
        }
    }

    /// Writes the record: from then on the stage is finished.
    ///
    /// # Errors
    /// The disk's.
    pub fn write(&self, folder: &RunFolder, stage: &str) -> Result<(), JobError> {
        write_whole(&folder.record(stage), &serde_json::to_vec(self)?)
    }

    /// The record of a stage; `None` where it has not finished.
    ///
    /// # Errors
    /// A record that cannot be read.
    pub fn read(folder: &RunFolder, stage: &Stage) -> Result<Option<Self>, JobError> {
        let path = folder.record(stage.name());
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(JobError::Io { what: "read", path, source }),
        };
        serde_json::from_slice(&bytes).map(Some).map_err(|error| JobError::Io {
            what: "understood",
            path,
            source: error.into(),
        })
    }

    /// Puts what the stage left where later stages look for it.
    ///
    /// # Errors
    /// A record that was altered.
    pub fn restore(
        &self,
        stage: &str,
        folder: &RunFolder,
        outputs: &mut Outputs,
    ) -> Result<(), JobError> {
        if self.trained {
            outputs.model = folder.model(stage);
        }
        outputs.kl = self.kl.clone();
        outputs.measures.clone_from(&self.measures);
        outputs.answers.clone_from(&self.answers);
        outputs.artefacts.extend(self.artefacts.clone());
        let wrong = |problem: String| JobError::Io {
            what: "understood",
            path: folder.record(stage),
            source: std::io::Error::other(problem),
        };
        if let Some(samples) = &self.samples {
            let samples = samples.iter().map(SampleRecord::sample).collect::<Result<_, _>>();
            outputs.samples.insert(stage.to_owned(), samples.map_err(wrong)?);
        }
        if let Some(pairs) = &self.pairs {
            let encoded = |records: &[PairRecord]| {
                records.iter().map(PairRecord::pair).collect::<Result<_, _>>()
            };
            let train = encoded(&pairs.train).map_err(wrong)?;
            let heldout = encoded(&pairs.heldout).map_err(wrong)?;
            outputs.pairs.insert(stage.to_owned(), Pairs { train, heldout });
        }
        Ok(())
    }
}

impl From<&PlainSample> for SampleRecord {
    fn from(sample: &PlainSample) -> Self {
        Self {
            id: sample.id.clone(),
            prompt_id: sample.prompt_id.to_string(),
            label: sample.label.to_string(),
            prompt_ids: sample.prompt_ids.clone(),
            response_ids: sample.response_ids.clone(),
            question: sample.question.clone(),
            response: sample.response.clone(),
            reference: sample.reference.clone(),
            finish: sample.finish.to_owned(),
            policy_version: sample.policy_version,
        }
    }
}

impl SampleRecord {
    fn sample(&self) -> Result<PlainSample, String> {
        let finish = ["eos", "stop_string", "length"].into_iter().find(|f| *f == self.finish);
        Ok(PlainSample {
            id: self.id.clone(),
            prompt_id: PromptId::new(self.prompt_id.clone()).map_err(|e| e.to_string())?,
            label: Label::new(self.label.clone()).map_err(|e| e.to_string())?,
            prompt_ids: self.prompt_ids.clone(),
            response_ids: self.response_ids.clone(),
            question: self.question.clone(),
            response: self.response.clone(),
            reference: self.reference.clone(),
            finish: finish.ok_or_else(|| format!("a sample ended by {:?}", self.finish))?,
            policy_version: self.policy_version,
        })
    }
}

impl From<&EncodedPair> for PairRecord {
    fn from(pair: &EncodedPair) -> Self {
        Self { answers: hex::encode(pair.answers.encode_to_vec()), safe: pair.safe }
    }
}

impl PairRecord {
    fn pair(&self) -> Result<EncodedPair, String> {
        let bytes = hex::decode(&self.answers).map_err(|e| e.to_string())?;
        let answers = AnswerPair::decode(bytes.as_slice()).map_err(|e| e.to_string())?;
        Ok(EncodedPair { answers, safe: self.safe })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_stage_finds_what_a_finished_one_left() {
        let root = tempfile::tempdir().unwrap();
        let folder = RunFolder::open(root.path()).unwrap();
        let stage: Stage = toml::from_str("kind = \"grpo\"\nname = \"train\"").unwrap();
        let sample = PlainSample {
            id: "0/p/0".into(),
            prompt_id: PromptId::new("p").unwrap(),
            label: Label::new("safety").unwrap(),
            prompt_ids: vec![1],
            response_ids: vec![2, 3],
            question: "q".into(),
            response: "a".into(),
            reference: None,
            finish: "eos",
            policy_version: 2,
        };
        let answers = AnswerPair { id: "p/0".into(), prompt_ids: vec![1], ..AnswerPair::default() };
        let pair = EncodedPair { answers, safe: Some([true, false]) };
        let mut outputs = Outputs { model: folder.model("train"), ..Outputs::default() };
        outputs.samples.insert("train".into(), vec![sample]);
        outputs.pairs.insert("train".into(), Pairs { train: vec![pair], heldout: vec![] });
        outputs.kl.max = 0.1 + 0.2;
        outputs.artefacts.insert("train".into(), "models/train".into());
        assert_eq!(StageRecord::read(&folder, &stage).unwrap(), None);
        let figures = [("loss".to_owned(), 1.0 / 3.0)].into();
        let record = StageRecord::of(&stage, &folder, &outputs, figures);
        record.write(&folder, "train").unwrap();
        let read = StageRecord::read(&folder, &stage).unwrap().unwrap();
        assert_eq!(read, record);
        let mut restored = Outputs::default();
        read.restore("train", &folder, &mut restored).unwrap();
        assert_eq!(restored.model, outputs.model);
        assert_eq!(restored.samples, outputs.samples);
        assert_eq!(restored.pairs, outputs.pairs);
        assert_eq!((restored.kl, restored.artefacts), (outputs.kl, outputs.artefacts));
        std::fs::write(folder.record("train"), "{").unwrap();
        let error = StageRecord::read(&folder, &stage).unwrap_err().to_string();
        assert!(error.contains("stages/train.json could not be understood"), "{error}");
    }
}
