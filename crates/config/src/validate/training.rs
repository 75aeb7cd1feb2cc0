//! Contradictions in stages that train on a data set.

use super::Findings;
use super::optimizer::optimizer;
use crate::schema::{
    CostModelStage, DataSources, DpoStage, OptimizerConfig, PreferenceLoss, RewardModelStage,
    ScoreHeadConfig, SftStage, Stage,
};
use crate::{LoraConfig, Recipe, ScoreHeadKind};

/// Where a stage's pairs come from.
struct Pairs<'a> {
    stage: Option<&'a str>,
    train: &'a DataSources,
    heldout: &'a DataSources,
}

impl Recipe {
    pub(super) fn check_training(
        &self,
        stage: &Stage,
        key: &str,
        before: &[&Stage],
        found: &mut Findings,
    ) {
        match stage {
            Stage::Sft(s) => self.check_sft(s, key, before, found),
            Stage::RewardModel(s) => self.check_reward_model(s, key, before, found),
            Stage::CostModel(s) => self.check_cost_model(s, key, before, found),
            Stage::Dpo(s) => self.check_dpo(s, key, before, found),
            _ => {}
        }
    }

    fn check_sft(&self, s: &SftStage, key: &str, before: &[&Stage], found: &mut Findings) {
        self.check_max_tokens(s.max_tokens, key, found);
        check_course(s.epochs, s.dialogues_per_step, "dialogues", key, found);
        check_sources(&[("train", &s.train), ("heldout", &s.heldout)], key, found);
        found.require(
            !s.train.is_empty(),
            &format!("{key}.train"),
            "no dialogues",
            "name a file or folder, or a list of them",
        );
        check_heldout(s.eval_every_steps > 0, &s.heldout, key, found);
        found.require(
            s.max_loss.is_none() || !s.heldout.is_empty(),
            &format!("{key}.max_loss"),
            "there are no held-out dialogues to measure",
            "give heldout, or leave max_loss out",
        );
        check_policy_is_free(key, before, found);
        check_optimizer(&s.optimizer, key, found);
        check_lora(s.lora.as_ref(), key, found);
    }

    fn check_reward_model(
        &self,
        s: &RewardModelStage,
        key: &str,
        before: &[&Stage],
        found: &mut Findings,
    ) {
        let pairs = Pairs { stage: s.pairs.as_deref(), train: &s.train, heldout: &s.heldout };
        check_pairs(&pairs, s.eval_every_steps > 0, key, before, found);
        self.check_max_tokens(s.max_tokens, key, found);
        check_course(s.epochs, s.pairs_per_step, "pairs", key, found);
        check_head(&s.head, key, found);
        check_optimizer(&s.optimizer, key, found);
        check_lora(s.lora.as_ref(), key, found);
    }

    fn check_cost_model(
        &self,
        s: &CostModelStage,
        key: &str,
        before: &[&Stage],
        found: &mut Findings,
    ) {
        let pairs = Pairs { stage: s.pairs.as_deref(), train: &s.train, heldout: &s.heldout };
        check_pairs(&pairs, s.eval_every_steps > 0, key, before, found);
        found.require(
            s.pairs.is_none() || !s.sign_terms,
            &format!("{key}.sign_terms"),
            "a label stage does not say which answers are safe",
            "write sign_terms = false, or take the pairs from a file",
        );
        self.check_max_tokens(s.max_tokens, key, found);
        check_course(s.epochs, s.pairs_per_step, "pairs", key, found);
        check_head(&s.head, key, found);
        check_optimizer(&s.optimizer, key, found);
        check_lora(s.lora.as_ref(), key, found);
    }

    fn check_dpo(&self, s: &DpoStage, key: &str, before: &[&Stage], found: &mut Findings) {
        let pairs = Pairs { stage: s.pairs.as_deref(), train: &s.train, heldout: &s.heldout };
        check_pairs(&pairs, s.eval_every_steps > 0, key, before, found);
        self.check_max_tokens(s.max_tokens, key, found);
        check_course(s.epochs, s.pairs_per_step, "pairs", key, found);
        found.require(
            s.beta.is_finite() && s.beta > 0.0,
            &format!("{key}.beta"),
            s.beta.to_string(),
            "write a number > 0",
        );
        check_margins(s, key, found);
        check_pop(s, key, found);
        found.require(
            (0.0..0.5).contains(&s.label_smoothing)
                && (s.label_smoothing == 0.0 || s.loss == PreferenceLoss::Dpo),
            &format!("{key}.label_smoothing"),
            format!("{} with loss = {:?}", s.label_smoothing, s.loss.as_str()),
            "write a number in [0, 0.5), and 0 unless loss = \"dpo\"",
        );
        check_policy_is_free(key, before, found);
        check_optimizer(&s.optimizer, key, found);
        check_lora(s.lora.as_ref(), key, found);
    }

    fn check_max_tokens(&self, max_tokens: Option<u32>, key: &str, found: &mut Findings) {
        let budget = self.engine.micro_batch_tokens;
        found.require(
            max_tokens.is_none_or(|most| (2..=budget).contains(&most)),
            &format!("{key}.max_tokens"),
            format!("{} tokens", max_tokens.unwrap_or_default()),
            &format!("write 2 to engine.micro_batch_tokens = {budget}"),
        );
    }
}

fn check_margins(s: &DpoStage, key: &str, found: &mut Findings) {
    let kind = s.loss.as_str();
    found.require(
        s.margin.is_finite() && (s.margin == 0.0 || s.loss.takes_margin()),
        &format!("{key}.margin"),
        format!("{} with loss = {kind:?}", s.margin),
        "leave it out, or take loss = \"dpo\" or \"simpo\"",
    );
    found.require(
        !s.own_margins || s.loss.takes_margin(),
        &format!("{key}.own_margins"),
        format!("true with loss = {kind:?}"),
        "leave it out, or take loss = \"dpo\" or \"simpo\"",
    );
    found.require(
        !s.own_margins || (s.margin == 0.0 && s.pairs.is_none()),
        &format!("{key}.own_margins"),
        "margin is given, too, or the pairs are a label stage's, which have none",
        "leave margin out and take the pairs from train, or leave own_margins out",
    );
}

fn check_pop(s: &DpoStage, key: &str, found: &mut Findings) {
    let kind = s.loss.as_str();
    found.require(
        !s.loss.compares_pairs() || s.pairs.is_none(),
        &format!("{key}.pairs"),
        format!("loss = {kind:?} takes two pairs a row, a label stage leaves single ones"),
        "take rows of the kind pop from train",
    );
    let keys = [
        ("pop_lambda", s.pop_lambda, PreferenceLoss::Pop),
        ("margin_min", s.margin_min, PreferenceLoss::PopFixed),
        ("margin_max", s.margin_max, PreferenceLoss::PopFixed),
    ];
    for (name, value, loss) in keys {
        let Some(value) = value else { continue };
        found.require(
            s.loss == loss,
            &format!("{key}.{name}"),
            format!("{value} with loss = {kind:?}"),
            &format!("leave it out, or take loss = {:?}", loss.as_str()),
        );
        found.require(
            value.is_finite() && (name != "pop_lambda" || value >= 0.0),
            &format!("{key}.{name}"),
            value.to_string(),
            "write a finite number, as pop_lambda one of at least 0",
        );
    }
    let (least, most) = (s.margin_min.unwrap_or(0.0), s.margin_max.unwrap_or(10.0));
    found.require(
        least <= most,
        &format!("{key}.margin_min"),
        format!("{least} is above margin_max = {most}"),
        "write margin_min <= margin_max",
    );
}

fn check_pairs(
    pairs: &Pairs<'_>,
    measures_often: bool,
    key: &str,
    before: &[&Stage],
    found: &mut Findings,
) {
    found.require(
        pairs.stage.is_some() == pairs.train.is_empty(),
        &format!("{key}.pairs"),
        format!("pairs = {:?} and train = {}", pairs.stage, pairs.train),
        "give exactly one of them",
    );
    check_sources(&[("train", pairs.train), ("heldout", pairs.heldout)], key, found);
    found.require(
        pairs.stage.is_none() || pairs.heldout.is_empty(),
        &format!("{key}.heldout"),
        "a label stage holds pairs out by itself",
        "leave it out, and set heldout_share of the label stage",
    );
    if let Some(name) = pairs.stage {
        found.require(
            before.iter().any(|s| s.kind() == "label" && s.name() == name),
            &format!("{key}.pairs"),
            format!("no earlier label stage is named {name:?}"),
            "name one that stands before this stage",
        );
    } else {
        check_heldout(measures_often, pairs.heldout, key, found);
    }
}

fn check_sources(named: &[(&str, &DataSources)], key: &str, found: &mut Findings) {
    for (name, sources) in named.iter().filter(|(_, sources)| !sources.is_empty()) {
        super::data::sources(&format!("{key}.{name}"), sources, found);
    }
}

fn check_heldout(measures_often: bool, heldout: &DataSources, key: &str, found: &mut Findings) {
    found.require(
        !measures_often || !heldout.is_empty(),
        &format!("{key}.eval_every_steps"),
        "there are no held-out rows to measure",
        "give heldout, or leave eval_every_steps out",
    );
}

fn check_course(epochs: u32, rows: usize, what: &str, key: &str, found: &mut Findings) {
    found.require(
        epochs >= 1 && rows >= 1,
        &format!("{key}.epochs"),
        format!("{epochs} epochs of {rows} {what} a step"),
        "write at least 1 for both",
    );
}

fn check_head(head: &ScoreHeadConfig, key: &str, found: &mut Findings) {
    found.require(
        (head.kind == ScoreHeadKind::Mlp) != head.hidden_dims.is_empty(),
        &format!("{key}.head.hidden_dims"),
        format!("{:?} with kind {:?}", head.hidden_dims, head.kind.as_str()),
        "give an mlp at least one width, a linear head none",
    );
}

fn check_policy_is_free(key: &str, before: &[&Stage], found: &mut Findings) {
    found.require(
        !before.iter().any(|s| s.reinforces()),
        key,
        "the policy that a stage before it has trained would be lost",
        "put it before that stage",
    );
}

fn check_lora(lora: Option<&LoraConfig>, key: &str, found: &mut Findings) {
    if let Some(config) = lora {
        super::lora::lora(&format!("{key}.lora"), config, found);
    }
}

fn check_optimizer(config: &OptimizerConfig, key: &str, found: &mut Findings) {
    optimizer(&format!("{key}.optimizer"), config, found);
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::Recipe;

    const SFT: &str = r#"
name = "sft"
seed = 1
[model]
path = "model"
dtype = "fp32"
[[stage]]
kind = "sft"
name = "sft"
train = "train.jsonl"
heldout = "heldout.jsonl"
epochs = 1
dialogues_per_step = 4
optimizer = { learning_rate = 1e-4 }
[[stage]]
kind = "dpo"
name = "dpo"
train = "pairs.jsonl"
beta = 0.1
epochs = 1
pairs_per_step = 4
optimizer = { learning_rate = 1e-4 }
[[stage]]
kind = "cost_model"
name = "cost"
train = "pairs.jsonl"
epochs = 1
pairs_per_step = 4
optimizer = { learning_rate = 1e-4 }
"#;

    fn problems(set: &[&str]) -> String {
        let overrides: Vec<crate::Override> = set.iter().map(|s| s.parse().unwrap()).collect();
        match Recipe::from_toml(SFT, Path::new("r.toml"), &overrides) {
            Ok(_) => String::new(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn training_needs_neither_prompts_nor_rewards_and_reads_back_the_same() {
        let recipe = Recipe::from_toml(SFT, Path::new("r.toml"), &[]).unwrap();
        let text = recipe.to_toml().unwrap();
        assert_eq!(Recipe::from_toml(&text, Path::new("r.toml"), &[]).unwrap(), recipe);
        let explained = crate::derive::explain(&recipe, None);
        assert!(explained.contains("sft: 1 epochs, 4 dialogues"), "{explained}");
        assert!(!explained.contains("generation"), "{explained}");
    }

    #[test]
    fn tables_that_nothing_reads_are_named() {
        for (set, key) in [
            ("data.train=p.jsonl", "data: no stage generates"),
            ("sampling.max_new_tokens=8", "sampling: no stage generates"),
            ("reward={ component = [], mix = { safety = {} } }", "reward: no stage is grpo"),
        ] {
            let text = problems(&[set]);
            assert!(text.contains(key), "{set}: {text}");
        }
    }

    #[test]
    fn contradictions_of_training_stages_are_named() {
        for (set, cause) in [
            ("stage.0.max_tokens=99999", "stage[0].max_tokens: 99999 tokens"),
            ("stage.0.epochs=0", "stage[0].epochs"),
            ("stage.1.loss=ipo\u{0}stage.1.margin=0.5", "stage[1].margin"),
            ("stage.1.loss=simpo\u{0}stage.1.label_smoothing=0.1", "stage[1].label_smoothing"),
            ("stage.1.beta=0.0", "stage[1].beta"),
            ("stage.1.loss=ipo\u{0}stage.1.own_margins=true", "stage[1].own_margins: true with"),
            ("stage.1.margin=1.0\u{0}stage.1.own_margins=true", "stage[1].own_margins: margin is"),
            ("stage.1.pop_lambda=1.0", "stage[1].pop_lambda: 1 with loss = \"dpo\""),
            ("stage.1.loss=pop\u{0}stage.1.margin_max=1.0", "take loss = \"pop_fixed\""),
            ("stage.1.loss=pop_fixed\u{0}stage.1.margin_min=11.0", "above margin_max = 10"),
            ("stage.1.loss=pop\u{0}stage.1.margin=1.0", "stage[1].margin"),
            ("stage.1.pairs=label", "give exactly one of them"),
            ("stage.1.train=[]", "give exactly one of them"),
            ("stage.0.train=[]", "stage[0].train: no dialogues"),
            ("stage.1.train=[\"a.jsonl\", \"a.jsonl\"]", "stage[1].train: \"a.jsonl\" stands"),
            ("stage.1.heldout=[\"\"]", "stage[1].heldout: \"\" is empty"),
            ("stage.1.eval_every_steps=3", "there are no held-out rows to measure"),
            ("stage.2.head={ kind = \"mlp\", hidden_dims = [] }", "stage[2].head.hidden_dims"),
        ] {
            let set: Vec<&str> = set.split('\u{0}').collect();
            let text = problems(&set);
            assert!(text.contains(cause), "{set:?}: {text}");
        }
    }
}
