//! DescribeAcls, CreateAcls and DeleteAcls (keys 29 to 31): there is no authorization.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::create_acls_response::AclCreationResult;
use kafka_protocol::messages::delete_acls_response::DeleteAclsFilterResult;
use kafka_protocol::messages::{
    CreateAclsRequest, CreateAclsResponse, DeleteAclsRequest, DeleteAclsResponse, DescribeAclsRequest,
    DescribeAclsResponse,
};
use kafka_protocol::protocol::StrBytes;

use super::Call;

const CODE: i16 = ResponseError::SecurityDisabled.code();

fn message() -> Option<StrBytes> {
    Some(StrBytes::from_static_str("the server has no authorization, so there are no access control lists"))
}

pub(super) mod describe_acls {
    use super::{CODE, Call, DescribeAclsRequest, DescribeAclsResponse, message};

    pub(in super::super) async fn answer(_: &Call, _: DescribeAclsRequest) -> DescribeAclsResponse {
        DescribeAclsResponse::default().with_error_code(CODE).with_error_message(message())
    }
}

pub(super) mod create_acls {
    use super::{AclCreationResult, CODE, Call, CreateAclsRequest, CreateAclsResponse, message};

    pub(in super::super) async fn answer(_: &Call, request: CreateAclsRequest) -> CreateAclsResponse {
        let refused = AclCreationResult::default().with_error_code(CODE).with_error_message(message());
        CreateAclsResponse::default().with_results(vec![refused; request.creations.len()])
    }
}

pub(super) mod delete_acls {
    use super::{CODE, Call, DeleteAclsFilterResult, DeleteAclsRequest, DeleteAclsResponse, message};

    pub(in super::super) async fn answer(_: &Call, request: DeleteAclsRequest) -> DeleteAclsResponse {
        let refused = DeleteAclsFilterResult::default().with_error_code(CODE).with_error_message(message());
        DeleteAclsResponse::default().with_filter_results(vec![refused; request.filters.len()])
    }
}
