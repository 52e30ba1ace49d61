//! The simulator as the SDK's HTTP client.

use aws_smithy_runtime_api::{
    client::{
        http::{
            HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
            SharedHttpConnector,
        },
        orchestrator::{HttpRequest, HttpResponse},
        result::ConnectorError,
        runtime_components::RuntimeComponents,
    },
    shared::IntoShared,
};
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use http_body_util::BodyExt as _;

use super::Simulator;

pub(super) fn in_process(simulator: Simulator) -> SharedHttpClient {
    SharedHttpClient::new(InProcess(simulator))
}

#[derive(Clone, Debug)]
struct InProcess(Simulator);

impl HttpClient for InProcess {
    fn http_connector(&self, _: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        self.clone().into_shared()
    }
}

impl HttpConnector for InProcess {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let simulator = self.0.clone();
        HttpConnectorFuture::new(async move {
            let (head, body) = request.try_into_http1x().map_err(|e| ConnectorError::user(e.into()))?.into_parts();
            let body: Bytes = body.collect().await.map_err(ConnectorError::user)?.to_bytes();
            let answer = simulator.answer(http::Request::from_parts(head, body)).await;
            let answer = answer.ok_or_else(|| ConnectorError::io("the connection broke".into()))?;
            HttpResponse::try_from(answer.map(SdkBody::from)).map_err(|e| ConnectorError::other(e.into(), None))
        })
    }
}
