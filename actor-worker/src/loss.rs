//! From a request's policy loss to the maths' types, checked.

use plumb_loss::importance::Correction;
use plumb_loss::kl::{Clamps, Gradient, Kind as KlKind};
use plumb_loss::policy::{Cispo, Cpg, GeoMean, Gspo, KlTerm, Objective, PolicyTerm, PpoClip, Sapo};
use plumb_proto::actor::PolicyLossSpec;
use tonic::Status;

use crate::convert::invalid;

/// verl's bound on the log ratio.
const VERL_LOG_RATIO_BOUND: f64 = 20.0;

/// What an update minimises.
#[allow(clippy::result_large_err)]
pub(crate) fn objective(spec: &PolicyLossSpec) -> Result<Objective, Status> {
    let clamps = if spec.verl_clamps { Clamps::Verl } else { Clamps::Off };
    let kl = (spec.kl_coef != 0.0).then(|| {
        let kind: KlKind = spec.kl_kind.parse().map_err(|error| invalid("loss.kl_kind", error))?;
        let (coef, gradient) = (spec.kl_coef, Gradient::Estimate);
        Ok::<_, Status>(KlTerm { coef, kind, clamps, gradient })
    });
    Ok(Objective {
        policy: policy_term(spec)?,
        aggregation: spec
            .aggregation
            .parse()
            .map_err(|error| invalid("loss.aggregation", error))?,
        kl: kl.transpose()?,
        entropy_coef: spec.entropy_coef,
    })
}

#[allow(clippy::result_large_err)]
fn policy_term(spec: &PolicyLossSpec) -> Result<PolicyTerm, Status> {
    let (clip_low, clip_high) = (spec.clip_low, spec.clip_high);
    let log_ratio_bound = spec.verl_clamps.then_some(VERL_LOG_RATIO_BOUND);
    Ok(match spec.kind.as_str() {
        "ppo_clip" => {
            let dual_clip = (spec.dual_clip != 0.0).then_some(spec.dual_clip);
            PolicyTerm::PpoClip(PpoClip { clip_low, clip_high, dual_clip, log_ratio_bound })
        }
        "gspo" => {
            let usual = Gspo::default();
            let log_ratio_cap = usual.log_ratio_cap.filter(|_| spec.verl_clamps);
            PolicyTerm::Gspo(Gspo { clip_low, clip_high, log_ratio_cap })
        }
        "cispo" => PolicyTerm::Cispo(Cispo { clip_low, clip_high, log_ratio_bound }),
        "sapo" => {
            let (tau_pos, tau_neg) = (spec.tau_pos, spec.tau_neg);
            PolicyTerm::Sapo(Sapo { tau_pos, tau_neg, ..Sapo::default() })
        }
        "geo_mean" => PolicyTerm::GeoMean(GeoMean { clip_low, clip_high, ..GeoMean::default() }),
        "gpg" => PolicyTerm::Gpg,
        "cpg" if clip_low == clip_high => PolicyTerm::Cpg(Cpg { clip: clip_low }),
        "cpg" => {
            let problem = format!("{clip_low} and {clip_high}; cpg has one bound for both sides");
            return Err(invalid("loss.clip_low", problem));
        }
        other => {
            let problem =
                format!("{other:?}; expected ppo_clip, gspo, cispo, sapo, geo_mean, gpg or cpg");
            return Err(invalid("loss.kind", problem));
        }
    })
}

/// The importance correction, none where the request has none.
#[allow(clippy::result_large_err)]
pub(crate) fn importance(spec: &PolicyLossSpec) -> Result<Option<Correction>, Status> {
    let Some(spec) = &spec.importance else { return Ok(None) };
    let (cap, low, high) = (spec.cap, spec.low, spec.high);
    let correction = match spec.kind.as_str() {
        "truncated_token" => Correction::TruncatedToken { cap },
        "truncated_sequence" => Correction::TruncatedSequence { cap },
        "icepop" => Correction::IcePop { low, high },
        "sequence_mask" => Correction::SequenceMask { low, high },
        other => {
            let problem = format!(
                "{other:?}; expected truncated_token, truncated_sequence, icepop or sequence_mask"
            );
            return Err(invalid("loss.importance.kind", problem));
        }
    };
    correction.validate().map_err(|error| invalid("loss.importance", error))?;
    Ok(Some(correction))
}

#[cfg(test)]
mod tests {
    use plumb_proto::actor::ImportanceSpec;

    use super::*;

    fn spec(kind: &str) -> PolicyLossSpec {
        PolicyLossSpec {
            kind: kind.into(),
            clip_low: 0.1,
            clip_high: 0.1,
            tau_pos: 1.5,
            tau_neg: 2.0,
            aggregation: "seq-mean-token-mean".into(),
            ..PolicyLossSpec::default()
        }
    }

    #[test]
    fn every_kind_keeps_its_settings() {
        let (clip_low, clip_high) = (0.1, 0.1);
        for (kind, term) in [
            ("ppo_clip", PolicyTerm::PpoClip(PpoClip::lightrft(0.1))),
            ("gspo", PolicyTerm::Gspo(Gspo { clip_low, clip_high, log_ratio_cap: None })),
            ("cispo", PolicyTerm::Cispo(Cispo { clip_low, clip_high, log_ratio_bound: None })),
            ("sapo", PolicyTerm::Sapo(Sapo { tau_pos: 1.5, tau_neg: 2.0, ..Sapo::default() })),
            (
                "geo_mean",
                PolicyTerm::GeoMean(GeoMean { clip_low, clip_high, ..GeoMean::default() }),
            ),
            ("gpg", PolicyTerm::Gpg),
            ("cpg", PolicyTerm::Cpg(Cpg { clip: 0.1 })),
        ] {
            assert_eq!(objective(&spec(kind)).unwrap().policy, term, "{kind}");
        }
        let uneven = PolicyLossSpec { clip_high: 0.2, ..spec("cpg") };
        assert!(objective(&uneven).unwrap_err().message().contains("0.1 and 0.2"));
        assert!(objective(&spec("ppo")).unwrap_err().message().contains("loss.kind"));
    }

    #[test]
    fn corrections_are_read_and_checked() {
        let of = |kind: &str, cap, low, high| {
            let importance = Some(ImportanceSpec { kind: kind.into(), cap, low, high });
            importance_of(&PolicyLossSpec { importance, ..spec("gpg") })
        };
        let importance_message = |kind: &str| of(kind, 0.0, 2.0, 1.0).unwrap_err();
        assert_eq!(importance(&spec("gpg")).unwrap(), None);
        let cap = 2.0;
        assert_eq!(of("truncated_token", cap, 0.0, 0.0), Ok(Correction::TruncatedToken { cap }));
        let expected = Correction::TruncatedSequence { cap };
        assert_eq!(of("truncated_sequence", cap, 0.0, 0.0), Ok(expected));
        let (low, high) = (0.5, 5.0);
        assert_eq!(of("icepop", 0.0, low, high), Ok(Correction::IcePop { low, high }));
        assert_eq!(of("sequence_mask", 0.0, low, high), Ok(Correction::SequenceMask { low, high }));
        assert!(importance_message("icepop").contains("high = 1"));
        assert!(importance_message("tis").contains("tis"));
    }

    fn importance_of(spec: &PolicyLossSpec) -> Result<Correction, String> {
        importance(spec).map(Option::unwrap).map_err(|status| status.message().to_owned())
    }
}
