//! Questions to the line, which answers them at its next turn.

use std::time::Duration;

use tokio::{sync::oneshot, time::timeout};

use super::{Answer, CaptureError};

/// The line turns at least once a second, unless it has much to do.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Puts a question and waits for the answer.
///
/// # Errors
/// The answer's, and that none came.
pub(super) async fn ask<T: Send + 'static>(question: impl FnOnce(Answer<T>)) -> Result<T, CaptureError> {
    let (answer, answered) = oneshot::channel();
    question(Box::new(move |told| {
        // Refused when the client is gone.
        let _ = answer.send(told);
    }));
    match timeout(ANSWER_WITHIN, answered).await {
        Ok(Ok(told)) => told,
        Ok(Err(_)) => Err(CaptureError::Later("gotrace is ending".into())),
        Err(_) => {
            let seconds = ANSWER_WITHIN.as_secs();
            Err(CaptureError::Later(format!("gotrace was too busy to answer within {seconds} s: try again")))
        }
    }
}
