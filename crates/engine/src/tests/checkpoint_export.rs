//! Folders made from checkpoints on disk.

use std::path::Path;

use plumb_model::{LoraConfig, LoraTarget};

use super::checkpoints::step;
use super::support::*;
use crate::{EmaSettings, LoadPlan, LoraPlan, Precision, ShardedModel};

/// All files of an exported folder.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let file = |entry: std::fs::DirEntry| {
        (entry.file_name().to_string_lossy().into_owned(), std::fs::read(entry.path()).unwrap())
    };
    let mut files: Vec<_> = entries.map(file).collect();
    files.sort();
    files
}

#[test]
fn an_export_from_disk_equals_the_run_s_own() {
    let tiny = TinyModel::new(true, 2);
    let config = LoraConfig::new(2, 4.0, 0.0, &[LoraTarget::Q, LoraTarget::Down]).unwrap();
    let adapters = LoraPlan { config, seed: 5, folder: None };
    let average = EmaSettings { decay: 0.9, interval: 1 };
    let mut frozen = settings();
    (frozen.frozen_layers, frozen.compute) = (1, Precision::Bf16);
    let plans = [
        LoadPlan { ema: Some(average), ..plan(settings()) },
        plan(frozen.clone()),
        LoadPlan { lora: Some(adapters), ema: Some(average), ..plan(frozen) },
    ];
    for plan in plans {
        let run = tempfile::tempdir().unwrap();
        let folder = run.path().join("checkpoint");
        let (own, disk) = (run.path().join("own"), run.path().join("disk"));
        ranks(2, |comm| {
            let mut model = tiny.load(plan.clone(), comm);
            step(&mut model);
            step(&mut model);
            model.save_checkpoint(&folder).unwrap();
            for precision in [Precision::Fp32, Precision::Bf16] {
                model.export(&own.with_extension(precision.as_str()), precision).unwrap();
            }
            if plan.ema.is_some() {
                let to = own.with_extension("ema");
                model.with_average(|model| model.export(&to, Precision::Fp32)).unwrap();
            }
            if plan.lora.is_some() {
                model.export_adapter(&own.with_extension("peft"), Precision::Fp32).unwrap();
            }
        });
        let mut model = ShardedModel::from_checkpoint(&folder, None, false).unwrap();
        let same = |model: &mut ShardedModel, name: &str, precision| {
            let to = disk.with_extension(name);
            match name {
                "peft" => model.export_adapter(&to, precision).unwrap(),
                _ => model.export(&to, precision).unwrap(),
            };
            assert_eq!(files(&to), files(&own.with_extension(name)), "{name} of {plan:?}");
        };
        same(&mut model, "fp32", Precision::Fp32);
        same(&mut model, "bf16", Precision::Bf16);
        if plan.lora.is_some() {
            same(&mut model, "peft", Precision::Fp32);
        }
        match plan.ema {
            Some(_) => {
                let mut model = ShardedModel::from_checkpoint(&folder, None, true).unwrap();
                same(&mut model, "ema", Precision::Fp32);
            }
            None => {
                let error = ShardedModel::from_checkpoint(&folder, None, true).err().unwrap();
                assert!(error.to_string().contains("no moving average"), "{error}");
            }
        }
    }
    let missing = ShardedModel::from_checkpoint(Path::new("/no/such"), None, false).err().unwrap();
    assert!(missing.to_string().contains("/no/such/manifest.json"), "{missing}");
}
