//! `plumb explain`, and the check that `plumb train` makes of the same figures.

use std::path::Path;

use anyhow::Context as _;
use plumb_config::memory::Layout;
use plumb_config::{Recipe, derive};

use super::Ended;
use super::args::{ExplainArgs, MemoryArgs};
use crate::memory;

pub(super) fn run(args: &ExplainArgs) -> anyhow::Result<Ended> {
    let recipe = Recipe::read(&args.recipe.recipe, &args.recipe.set)?;
    let base = args.recipe.recipe.parent().unwrap_or(Path::new("."));
    let machine = memory::machine(args.memory.memory_gib)?;
    let Some(shapes) = memory::model_shapes(&recipe, base)? else {
        let config = base.join(&recipe.model.path).join("config.json");
        eprintln!("{} is not there; memory is left out", config.display());
        print!("{}", derive::explain(&recipe, None));
        return Ok(Ended::Well);
    };
    print!("{}", derive::explain(&recipe, Some((&shapes, &machine))));
    check(&recipe, base, &args.memory)?;
    Ok(Ended::Well)
}

/// Refuses a recipe whose processes need more memory than this machine has. A model that is not
/// here yet cannot be judged.
pub(super) fn check(recipe: &Recipe, base: &Path, args: &MemoryArgs) -> anyhow::Result<()> {
    let Some(shapes) = memory::model_shapes(recipe, base)? else { return Ok(()) };
    let machine = memory::machine(args.memory_gib)?;
    match Layout::new(recipe, &shapes).check(&machine, recipe, &shapes) {
        Ok(()) => Ok(()),
        Err(misfit) if args.ignore_memory => {
            eprintln!("warning: {misfit}");
            Ok(())
        }
        Err(misfit) => Err(misfit).context(
            "the recipe does not fit on this machine (--memory-gib says what it has, \
             --ignore-memory starts it all the same)",
        ),
    }
}
