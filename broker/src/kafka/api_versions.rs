//! ApiVersions (key 18): the APIs that are served, and their versions.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::api_versions_response::{ApiVersion, FinalizedFeatureKey, SupportedFeatureKey};
use kafka_protocol::messages::{ApiKey, ApiVersionsRequest, ApiVersionsResponse};

use kafka_protocol::protocol::StrBytes;

use super::Call;
use super::api::{APIS, Api};

/// The version from which a client names its software (KIP-511).
const NAMED_FROM: i16 = 3;

/// Features and their levels (KIP-584). With level 1 of groups, the broker assigns partitions (KIP-848). With level 2 of transactions, partitions join a transaction with their first
/// records, and the producer gets a new epoch at its end (KIP-890).
const FEATURES: [(&str, i16); 2] = [("group.version", 1), ("transaction.version", 2)];

pub(super) async fn answer(call: &Call, request: ApiVersionsRequest) -> ApiVersionsResponse {
    if call.version >= NAMED_FROM
        && !(is_software(&request.client_software_name) && is_software(&request.client_software_version))
    {
        return ApiVersionsResponse::default().with_error_code(ResponseError::InvalidRequest.code());
    }
    let version = |api: Api| {
        ApiVersion::default()
            .with_api_key(api.key as i16)
            .with_min_version(api.advertised_from)
            .with_max_version(api.to)
    };
    let answer = ApiVersionsResponse::default().with_api_keys(APIS.into_iter().map(version).collect());
    if call.version < NAMED_FROM {
        return answer;
    }
    let supported = FEATURES.map(|(name, level)| {
        SupportedFeatureKey::default().with_name(StrBytes::from_static_str(name)).with_max_version(level)
    });
    let finalized = FEATURES.map(|(name, level)| {
        FinalizedFeatureKey::default()
            .with_name(StrBytes::from_static_str(name))
            .with_max_version_level(level)
            .with_min_version_level(level)
    });
    answer
        .with_supported_features(supported.to_vec())
        .with_finalized_features_epoch(0)
        .with_finalized_features(finalized.to_vec())
}

/// Returns the answer to a request of a version that is not served: the versions of this API, so that the client can ask
/// again.
pub(super) fn unsupported() -> ApiVersionsResponse {
    let mut answer = ApiVersionsResponse::default().with_error_code(ResponseError::UnsupportedVersion.code());
    let own = APIS.into_iter().filter(|api| api.key == ApiKey::ApiVersions);
    answer.api_keys = own
        .map(|api| {
            ApiVersion::default().with_api_key(api.key as i16).with_min_version(api.from).with_max_version(api.to)
        })
        .collect();
    answer
}

/// Returns whether this may be the name or version of a client's software (KIP-511).
fn is_software(text: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || b".-".contains(&byte);
    let ends = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    text.bytes().all(is_inner) && ends(text.bytes().next()) && ends(text.bytes().next_back())
}
