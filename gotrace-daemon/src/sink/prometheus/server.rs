//! The pages over HTTP, on loopback unless another address is given. Answers GET alone, reads no bodies.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::{net::TcpListener, runtime::Handle, task::JoinHandle};

use super::{Board, Health, Watched};

/// How long ending waits for answers that are under way.
const END_WITHIN: Duration = Duration::from_millis(200);

/// Why the pages cannot be served.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot serve health and metrics at {address}: {error}; choose another address (http.listen), or off"
)]
pub struct ServeError {
    address: SocketAddr,
    error: std::io::Error,
}

/// The pages, while they are served.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    task: JoinHandle<()>,
}

struct Pages {
    board: Arc<Board>,
    watched: Arc<dyn Watched>,
}

impl Server {
    /// Begins to serve.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub fn start(
        address: SocketAddr,
        board: Arc<Board>,
        watched: Arc<dyn Watched>,
        runtime: &Handle,
    ) -> Result<Self, ServeError> {
        let failed = |error| ServeError { address, error };
        let listener = runtime.block_on(TcpListener::bind(address)).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let router = Router::new()
            .route("/metrics", get(metrics))
            .route("/livez", get(livez))
            .route("/readyz", get(readyz))
            .with_state(Arc::new(Pages { board, watched }));
        let task = runtime.spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, "health and metrics are not served any more");
            }
        });
        Ok(Self { address, task })
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends it.
    pub fn stop(self, runtime: &Handle) {
        self.task.abort();
        // A timer needs the runtime around it when it is made.
        let _ = runtime.block_on(async { tokio::time::timeout(END_WITHIN, self.task).await });
    }
}

async fn metrics(State(pages): State<Arc<Pages>>) -> Response {
    let text = pages.board.page(&pages.watched.agent());
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

async fn livez(State(pages): State<Arc<Pages>>) -> Response {
    answer(pages.watched.live())
}

async fn readyz(State(pages): State<Arc<Pages>>) -> Response {
    answer(pages.watched.ready())
}

fn answer(health: Health) -> Response {
    match health {
        Health::Good => (StatusCode::OK, "ok\n").into_response(),
        Health::Bad(why) => (StatusCode::SERVICE_UNAVAILABLE, why + "\n").into_response(),
    }
}
