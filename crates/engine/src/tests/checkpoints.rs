//! CKPT-1 to CKPT-4.

use std::path::{Path, PathBuf};
use std::process::Command;

use plumb_loss::policy::Objective;
use plumb_model::{LoraConfig, LoraTarget};

use super::support::*;
use crate::checkpoint::{MANIFEST, read_manifest};
use crate::{
    EmaSettings, LoadPlan, LoraPlan, OldLogProbs, PolicyUpdate, ShardedModel, update_policy,
};

pub(super) fn step(model: &mut ShardedModel) {
    let update = PolicyUpdate {
        objective: Objective::default(),
        importance: None,
        norm_tokens: 1.0,
        old_logps: OldLogProbs::Rollout,
        mini_batches: 1,
        epochs: 1,
        learning_rate: 0.05,
        temperature: 1.0,
    };
    update_policy(model, &samples(), &update).unwrap();
}

/// Trains one step at a world size, saves, trains another; the weights after both.
fn saved(tiny: &TinyModel, world: usize, folder: &Path) -> (Vec<f32>, Vec<f32>) {
    let outcome = ranks(world, |comm| {
        let mut model = tiny.load(plan(settings()), comm);
        step(&mut model);
        model.save_checkpoint(folder).unwrap();
        let at_save = weights(&model);
        step(&mut model);
        (at_save, weights(&model))
    });
    outcome.into_iter().next().unwrap()
}

#[test]
fn ckpt_3_any_world_size_resumes_exactly() {
    let tiny = TinyModel::new(true, 2);
    let other = TinyModel::new(true, 3);
    for from in [1, 2, 3] {
        let run = tempfile::tempdir().unwrap();
        let folder = run.path().join("checkpoint");
        let (at_save, after) = saved(&tiny, from, &folder);
        for to in [1, 2, 4] {
            let resumed = ranks(to, |comm| {
                // Another model's weights, so that nothing can stay as it was.
                let mut model = other.load(plan(settings()), comm);
                let manifest = model.load_checkpoint(&folder).unwrap();
                assert_eq!((manifest.ranks, manifest.optimizer_step), (from, 1));
                assert_eq!(model.optimizer_step(), 1);
                let restored = weights(&model);
                step(&mut model);
                (restored, weights(&model))
            });
            let (restored, continued) = &resumed[0];
            assert_eq!(restored, &at_save, "from {from} to {to}");
            assert_close(continued, &after, 1e-6, &format!("from {from} to {to}"));
        }
        assert!(!run.path().join("checkpoint.partial").exists());
    }
}

#[test]
fn a_newer_checkpoint_replaces_an_older_one() {
    let tiny = TinyModel::new(true, 2);
    let run = tempfile::tempdir().unwrap();
    let folder = run.path().join("checkpoint");
    saved(&tiny, 2, &folder);
    saved(&tiny, 1, &folder);
    assert_eq!(read_manifest(&folder).unwrap().ranks, 1);
    let names: Vec<_> =
        std::fs::read_dir(run.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["checkpoint"]);
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 2, "the second shard is gone");
}

/// Saves with two ranks, damages the folder, and tries to resume with two.
fn refusal(damage: impl Fn(&Path)) -> Vec<String> {
    let tiny = TinyModel::new(true, 2);
    let run = tempfile::tempdir().unwrap();
    let folder = run.path().join("checkpoint");
    saved(&tiny, 2, &folder);
    damage(&folder);
    ranks(2, |comm| {
        let mut model = tiny.load(plan(settings()), comm);
        let before = weights(&model);
        let error = model.load_checkpoint(&folder).unwrap_err().to_string();
        assert_eq!(weights(&model), before, "CKPT-2");
        error
    })
}

fn shard(folder: &Path) -> PathBuf {
    folder.join("shard-00001-of-00002.safetensors")
}

fn assert_refused(damage: impl Fn(&Path), expected: &[&str]) {
    let errors = refusal(damage);
    let named = errors.iter().any(|error| expected.iter().all(|text| error.contains(text)));
    assert!(named, "{errors:?} should say {expected:?}");
}

#[test]
fn ckpt_2_damaged_checkpoints_are_refused_by_name() {
    let name = "shard-00001-of-00002.safetensors";
    let truncate = |folder: &Path| {
        let file = std::fs::OpenOptions::new().write(true).open(shard(folder)).unwrap();
        file.set_len(file.metadata().unwrap().len() - 1).unwrap();
    };
    assert_refused(truncate, &[name, "bytes", "the manifest says"]);
    let flip = |folder: &Path| {
        let mut bytes = std::fs::read(shard(folder)).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(shard(folder), bytes).unwrap();
    };
    assert_refused(flip, &[name, "BLAKE3", "the manifest says"]);
    assert_refused(|folder| std::fs::remove_file(shard(folder)).unwrap(), &[name, "is missing"]);
    let cut = |folder: &Path| std::fs::write(folder.join(MANIFEST), b"{\"format\":").unwrap();
    assert_refused(cut, &[MANIFEST, "not a valid manifest"]);
    assert_refused(
        |folder| std::fs::remove_dir_all(folder).unwrap(),
        &[MANIFEST, "cannot be read"],
    );
}

#[test]
fn a_checkpoint_of_another_model_is_refused() {
    let run = tempfile::tempdir().unwrap();
    let folder = run.path().join("checkpoint");
    saved(&TinyModel::new(true, 2), 1, &folder);
    let untied = TinyModel::new(false, 2);
    let mut model = untied.load(plan(settings()), Box::new(plumb_collective::solo()));
    let error = model.load_checkpoint(&folder).unwrap_err().to_string();
    assert!(error.contains("other parameters"), "{error}");
}

/// CKPT-4, with adapters and their dropout, a moving average and two micro-batches beside: a run
/// that saves while it trains goes on as if it had not, and one that resumes goes the same way.
#[test]
fn ckpt_4_a_checkpoint_holds_the_state_at_its_beginning() {
    let tiny = TinyModel::new(true, 2);
    let config = LoraConfig::new(2, 4.0, 0.5, &[LoraTarget::Q, LoraTarget::Down]).unwrap();
    let adapters = LoraPlan { config, seed: 5, folder: None };
    let average = EmaSettings { decay: 0.9, interval: 1 };
    let mut small = settings();
    small.micro_batch_tokens = 30;
    let plans = [
        LoadPlan { ema: Some(average), ..plan(small.clone()) },
        LoadPlan { lora: Some(adapters), ..plan(small) },
    ];
    for (plan, world) in plans.iter().flat_map(|plan| [(plan, 1), (plan, 2)]) {
        let run = tempfile::tempdir().unwrap();
        let folder = run.path().join("checkpoint");
        let outcome = ranks(world, |comm| {
            let mut model = tiny.load(plan.clone(), comm);
            step(&mut model);
            let copied = model.start_checkpoint(&folder).unwrap();
            let state: i64 = model
                .state()
                .iter()
                .map(|(_, t, changes)| match changes {
                    true => t.numel() as i64 * 4,
                    false => 0,
                })
                .sum();
            assert_eq!(copied, state as u64, "only what training changes is copied");
            let at_start = weights(&model);
            step(&mut model);
            assert!(!folder.exists(), "CKPT-1: not before every rank has written");
            let files = model.finish_checkpoint().unwrap().unwrap();
            assert_eq!(files.len(), if model.rank() == 0 { 2 } else { 1 });
            assert_eq!(model.finish_checkpoint().unwrap(), None);
            step(&mut model);
            (at_start, weights(&model), averaged(&mut model))
        });
        let resumed = ranks(world, |comm| {
            let mut model = tiny.load(plan.clone(), comm);
            model.load_checkpoint(&folder).unwrap();
            let restored = weights(&model);
            step(&mut model);
            step(&mut model);
            (restored, weights(&model), averaged(&mut model))
        });
        assert_eq!(outcome, resumed, "world {world}: bit for bit");
    }
}

fn averaged(model: &mut ShardedModel) -> Option<Vec<f32>> {
    model.has_average().then(|| model.with_average(|model| Ok(weights(model))).unwrap())
}

/// Three checkpoints, of steps 1 to 3, written while training goes on; the weights at each.
fn three(tiny: &TinyModel, world: usize, root: &Path) -> Vec<(PathBuf, Vec<f32>)> {
    let folder = |step: u64| root.join(format!("step-{step}"));
    let outcome = ranks(world, |comm| {
        let mut model = tiny.load(plan(settings()), comm);
        let mut at = Vec::new();
        for number in 1..=3 {
            step(&mut model);
            // The one before is finished on the way.
            model.start_checkpoint(&folder(number)).unwrap();
            at.push((folder(number), weights(&model)));
        }
        model.finish_checkpoint().unwrap();
        at
    });
    outcome.into_iter().next().unwrap()
}

#[test]
fn a_damaged_checkpoint_is_refused_by_name_and_the_one_before_it_used() {
    let tiny = TinyModel::new(true, 2);
    let flip = |path: PathBuf| {
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(path, bytes).unwrap();
    };
    let cut = |path: PathBuf| {
        let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    };
    type Damage<'a> = (&'a str, &'a str, Box<dyn Fn(&Path) + 'a>);
    for world in [1, 2, 4] {
        let shard = format!("shard-{:05}-of-{world:05}.safetensors", world - 1);
        let damages: [Damage<'_>; 6] = [
            (&shard, "bytes", Box::new(|folder: &Path| cut(folder.join(&shard)))),
            (&shard, "BLAKE3", Box::new(|folder: &Path| flip(folder.join(&shard)))),
            (
                &shard,
                "missing",
                Box::new(|folder: &Path| {
                    std::fs::remove_file(folder.join(&shard)).unwrap();
                }),
            ),
            (
                MANIFEST,
                "cannot be read",
                Box::new(|folder: &Path| {
                    std::fs::remove_file(folder.join(MANIFEST)).unwrap();
                }),
            ),
            (
                MANIFEST,
                "altered",
                Box::new(|folder: &Path| {
                    let text = std::fs::read_to_string(folder.join(MANIFEST)).unwrap();
                    let text = text.replace("\"optimizer_step\": 3", "\"optimizer_step\": 2");
                    std::fs::write(folder.join(MANIFEST), text).unwrap();
                }),
            ),
            (
                MANIFEST,
                "cannot be read",
                Box::new(|folder: &Path| {
                    std::fs::rename(folder, folder.with_extension("partial")).unwrap();
                }),
            ),
        ];
        for (file, problem, damage) in damages {
            let run = tempfile::tempdir().unwrap();
            let mut all = three(&tiny, world, run.path());
            all.reverse();
            damage(&all[0].0);
            let folders: Vec<_> = all.iter().map(|(folder, _)| folder.clone()).collect();
            let restored = ranks(world, |comm| {
                let mut model = tiny.load(plan(settings()), comm);
                let restored = model.load_newest_checkpoint(&folders).unwrap();
                assert_eq!(restored.folder, folders[1], "all ranks use the same");
                assert_eq!((restored.refused.len(), model.optimizer_step()), (1, 2));
                assert_eq!(restored.refused[0].folder, folders[0]);
                (restored.refused[0].problem.clone(), weights(&model))
            });
            let named = |(text, _): &(String, _)| text.contains(file) && text.contains(problem);
            assert!(restored.iter().any(named), "world {world}: {:?}", restored[0].0);
            assert_eq!(restored[0].1, all[1].1);
        }
    }
}

#[test]
fn without_a_sound_checkpoint_every_one_is_named_and_the_model_stays() {
    let tiny = TinyModel::new(true, 2);
    let run = tempfile::tempdir().unwrap();
    let all = three(&tiny, 2, run.path());
    let folders: Vec<_> = all.into_iter().map(|(folder, _)| folder).collect();
    for folder in &folders {
        std::fs::remove_file(shard(folder)).unwrap();
    }
    let errors = ranks(2, |comm| {
        let mut model = tiny.load(plan(settings()), comm);
        let before = weights(&model);
        let error = model.load_newest_checkpoint(&folders).unwrap_err().to_string();
        assert_eq!(weights(&model), before);
        error
    });
    let error = &errors[1];
    assert!(error.starts_with("none of 3 checkpoints can be used"), "{error}");
    assert_eq!(error.matches("00001-of-00002.safetensors: is missing").count(), 3, "{error}");
}

/// A small file system of its own, unmounted when dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(bytes: u64) -> Result<Self, String> {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"])
            .arg(folder.path())
            .output();
        match mounted {
            Ok(output) if output.status.success() => Ok(Self(folder)),
            Ok(output) => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(self.0.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

#[test]
fn ckpt_1_a_full_disk_is_named_and_nothing_is_left() {
    let disk = match SmallDisk::mount(40 << 10) {
        Ok(disk) => disk,
        Err(reason) => {
            eprintln!("SKIPPED: mounting a small tmpfs needs root: {reason}");
            return;
        }
    };
    let tiny = TinyModel::new(true, 2);
    let folder = disk.0.path().join("checkpoint");
    let errors = ranks(2, |comm| {
        let mut model = tiny.load(plan(settings()), comm);
        model.save_checkpoint(&folder).unwrap_err().to_string()
    });
    assert!(
        errors.iter().any(|e| e.contains("No space left") && e.contains("shard-0000")),
        "{errors:?}"
    );
    assert_eq!(std::fs::read_dir(disk.0.path()).unwrap().count(), 0, "something was left behind");
}

#[test]
fn a_failed_write_is_told_when_the_next_checkpoint_begins() {
    let tiny = TinyModel::new(true, 2);
    let run = tempfile::tempdir().unwrap();
    let (first, second) = (run.path().join("first"), run.path().join("second"));
    let errors = ranks(2, |comm| {
        let mut model = tiny.load(plan(settings()), comm);
        model.start_checkpoint(&first).unwrap();
        // Long enough for both files; then the folder goes away under the manifest.
        while std::fs::read_dir(run.path().join("first.partial")).map_or(0, Iterator::count) < 2 {
            std::thread::yield_now();
        }
        model.agree("test", Ok(())).unwrap();
        if model.rank() == 0 {
            std::fs::rename(run.path().join("first.partial"), run.path().join("gone")).unwrap();
        }
        let error = model.start_checkpoint(&second).unwrap_err().to_string();
        assert!(!first.exists() && !second.exists());
        model.save_checkpoint(&second).unwrap();
        error
    });
    assert!(errors[0].contains("first.partial/manifest.json"), "{errors:?}");
}
