//! One call of foreign code: bounded in time, its panic caught, its text kept.

use std::{
    any::Any,
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    task::Poll,
    time::Duration,
};

use crate::error::{Error, ErrorKind, Result};

/// Runs a call that may be dropped half way: a look, a judgement, a hook, a save that is followed by a load.
pub(super) async fn bounded<T>(limit: Duration, call: impl Future<Output = Result<T>> + Send) -> Result<T> {
    tokio::time::timeout(limit, caught(call)).await.unwrap_or_else(|_| Err(no_answer(limit)))
}

/// Runs a call that must not be dropped: it goes on in a task of its own, and only the waiting for it is bounded.
pub(super) async fn kept<T: Send + 'static>(
    limit: Duration,
    call: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let call = tokio::spawn(caught(call));
    match tokio::time::timeout(limit, call).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(gone)) => Err(Error::new(ErrorKind::Unavailable, "the runtime is shutting down").because(gone)),
        Err(_) => Err(no_answer(limit)),
    }
}

/// A panic is an error of the call it happened in.
async fn caught<T>(call: impl Future<Output = Result<T>> + Send) -> Result<T> {
    let mut call = Box::pin(call);
    poll_fn(move |cx| {
        catch_unwind(AssertUnwindSafe(|| call.as_mut().poll(cx)))
            .unwrap_or_else(|panic| Poll::Ready(Err(Error::new(ErrorKind::Internal, panic_text(&*panic)))))
    })
    .await
}

pub(super) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("it panicked: {}", text.unwrap_or("without a text"))
}

fn no_answer(limit: Duration) -> Error {
    Error::new(ErrorKind::Unavailable, format!("no answer within {limit:?}"))
}
