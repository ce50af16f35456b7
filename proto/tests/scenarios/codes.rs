//! The codes with which flows and lanes end.

use std::collections::HashSet;

use proptest::prelude::*;
use qmux_proto::control::{GoAwayReason, RefuseReason};
use qmux_proto::{FlowError, LaneError};

macro_rules! scenarios {
    ($name:ident, $type:ident, $unknown:ident) => {
        mod $name {
            use super::*;

            #[test]
            fn every_variant_has_a_code_and_a_text_of_its_own() {
                let codes: HashSet<u64> = $type::NAMED.iter().map(|named| named.code()).collect();
                let texts: HashSet<String> = $type::NAMED.iter().map($type::to_string).collect();
                assert_eq!(
                    (codes.len(), texts.len()),
                    ($type::NAMED.len(), $type::NAMED.len())
                );
            }

            proptest! {
                #[test]
                fn every_code_survives(code in prop_oneof![0..20u64, any::<u64>()]) {
                    let value = $type::from_code(code);
                    prop_assert_eq!(value.code(), code);
                    let unknown = matches!(value, $type::$unknown(_));
                    prop_assert_eq!(unknown, !$type::NAMED.contains(&value));
                    if unknown {
                        prop_assert!(value.to_string().ends_with(&code.to_string()));
                    }
                }
            }
        }
    };
}

scenarios!(flow_error, FlowError, Unknown);
scenarios!(lane_error, LaneError, Unknown);
scenarios!(refuse_reason, RefuseReason, Other);
scenarios!(go_away_reason, GoAwayReason, Other);
