//! A line to an API server that counts what goes over it, and can be disturbed.

use std::{
    fmt,
    future::pending,
    io,
    path::Path,
    sync::{Arc, Mutex},
};

use futures_util::stream;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use kube::client::Body;
use rollback_k8s::Client;
use serde_json::{Value, json};

type Data = <Body as http_body::Body>::Data;
type Trouble = Box<dyn std::error::Error + Send + Sync>;

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing is there.
    Away,
    /// It is never answered.
    Hangs,
    /// It is accepted, and then nothing comes.
    Silent,
    /// The API server is busy, and says for how many seconds.
    Busy(u64),
    /// What was asked for is too old: within the stream, as a watch has it.
    Gone,
    /// It is carried out, and its answer is lost.
    Lost,
    /// It may not be asked.
    Denied,
    /// It is answered with this text.
    Says(&'static str),
}

type Rule = Box<dyn FnMut(&str) -> Option<Fault> + Send>;

/// The line: what went over it, and what disturbs it.
#[derive(Clone, Default)]
pub(crate) struct Line {
    sent: Arc<Mutex<Vec<String>>>,
    rule: Arc<Mutex<Option<Rule>>>,
}

impl Line {
    /// A client whose requests go over this line to the server of a kubeconfig.
    pub(crate) async fn client(&self, kubeconfig: &Path) -> Client {
        let inner = crate::place::kube(kubeconfig).await;
        Client::from_kube(kube::Client::new(self.service(inner), "default"))
    }

    #[expect(clippy::type_complexity, reason = "the type of a service says all that there is to say")]
    fn service(
        &self,
        inner: kube::Client,
    ) -> impl tower::Service<
        Request<Body>,
        Response = Response<UnsyncBoxBody<Data, Trouble>>,
        Error = Trouble,
        Future = impl Future<Output = Result<Response<UnsyncBoxBody<Data, Trouble>>, Trouble>> + Send + use<>,
    > + Send
    + 'static {
        let line = self.clone();
        tower::service_fn(move |request: Request<Body>| {
            let (line, inner) = (line.clone(), inner.clone());
            async move {
                let name = format!("{} {}", request.method(), request.uri());
                line.sent.lock().unwrap().push(name.clone());
                let fault = line.rule.lock().unwrap().as_mut().and_then(|rule| rule(&name));
                let away = || Trouble::from(io::Error::from(io::ErrorKind::ConnectionRefused));
                match fault {
                    None => pass(inner, request).await,
                    Some(Fault::Away) => Err(away()),
                    Some(Fault::Hangs) => pending().await,
                    Some(Fault::Silent) => {
                        let body = StreamBody::new(stream::pending::<Result<Frame<Data>, Trouble>>());
                        Ok(Response::new(body.boxed_unsync()))
                    }
                    Some(Fault::Busy(seconds)) => {
                        let said = answer(429, "too many requests, please try again later");
                        Ok(with(said, "retry-after", &seconds.to_string()))
                    }
                    Some(Fault::Gone) => {
                        let status = json!({ "kind": "Status", "status": "Failure", "code": 410, "reason": "Expired",
                            "message": "too old resource version" });
                        Ok(whole(200, &json!({ "type": "ERROR", "object": status })))
                    }
                    Some(Fault::Lost) => {
                        drop(pass(inner, request).await);
                        Err(away())
                    }
                    Some(Fault::Says(text)) => {
                        let body = Full::<Data>::from(text).map_err(|never| match never {}).boxed_unsync();
                        Ok(Response::new(body))
                    }
                    Some(Fault::Denied) => Ok(answer(403, "pods is forbidden: User \"bot\" cannot watch resource")),
                }
            }
        })
    }

    /// From now on this happens to a request, as `GET /api/v1/namespaces/x/pods?watch=true`.
    pub(crate) fn disturb(&self, rule: impl FnMut(&str) -> Option<Fault> + Send + 'static) {
        *self.rule.lock().unwrap() = Some(Box::new(rule));
    }

    /// From now on nothing happens to any.
    pub(crate) fn calm(&self) {
        *self.rule.lock().unwrap() = None;
    }

    /// What went over it since the last call.
    pub(crate) fn sent(&self) -> Vec<String> {
        std::mem::take(&mut self.sent.lock().unwrap())
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Line")
    }
}

async fn pass(inner: kube::Client, request: Request<Body>) -> Result<Response<UnsyncBoxBody<Data, Trouble>>, Trouble> {
    let answer = inner.send(request).await.map_err(Trouble::from)?;
    Ok(answer.map(|body| body.map_err(Trouble::from).boxed_unsync()))
}

fn answer(code: u16, message: &str) -> Response<UnsyncBoxBody<Data, Trouble>> {
    whole(code, &json!({ "kind": "Status", "status": "Failure", "code": code, "message": message }))
}

fn whole(code: u16, body: &Value) -> Response<UnsyncBoxBody<Data, Trouble>> {
    let body = Full::<Data>::from(format!("{body}\n").into_bytes());
    let body = body.map_err(|never| match never {}).boxed_unsync();
    Response::builder().status(code).body(body).expect("a good answer")
}

fn with<B>(mut answer: Response<B>, name: &'static str, value: &str) -> Response<B> {
    answer.headers_mut().insert(name, value.parse().expect("a header"));
    answer
}
