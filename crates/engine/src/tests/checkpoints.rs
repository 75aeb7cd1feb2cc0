//! CKPT-1 to CKPT-3.

use std::path::{Path, PathBuf};
use std::process::Command;

use plumb_loss::policy::Objective;

use super::support::*;
use crate::checkpoint::{MANIFEST, read_manifest};
use crate::{OldLogProbs, PolicyUpdate, ShardedModel, update_policy};

fn step(model: &mut ShardedModel) {
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
        let model = tiny.load(plan(settings()), comm);
        model.save_checkpoint(&folder).unwrap_err().to_string()
    });
    assert!(
        errors.iter().any(|e| e.contains("No space left") && e.contains("shard-0000")),
        "{errors:?}"
    );
    assert_eq!(std::fs::read_dir(disk.0.path()).unwrap().count(), 0, "something was left behind");
}
