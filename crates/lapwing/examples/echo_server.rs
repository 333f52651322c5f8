//! The smallest server: it answers every request of one method with the request's own bytes, until SIGINT
//! (Ctrl-C) or SIGTERM.
//!
//! ```sh
//! cargo run --release -p lapwing --example echo_server -- /tmp/echo.sock
//! lapwing call --raw 0x0400 hello --socket /tmp/echo.sock
//! ```

use std::os::unix::net::UnixStream;
use std::path::Path;

use lapwing::IpcServer;
use signal_hook::consts::{SIGINT, SIGTERM};

/// Any number from `0x0400` on is an application's own.
const ECHO: u16 = 0x0400;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args_os().nth(1).ok_or("say where to listen: echo_server PATH")?;
    serve(path.as_ref())
}

/// Serves until a signal comes.
pub(crate) fn serve(path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    // Each signal writes a byte. Where tokio's feature `signal` is on, `tokio::signal` does the same.
    let (stopped, stop) = UnixStream::pair()?;
    for signal in [SIGINT, SIGTERM] {
        signal_hook::low_level::pipe::register(signal, stop.try_clone()?)?;
    }
    stopped.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let stopped = tokio::net::UnixStream::from_std(stopped)?;
        let server = IpcServer::builder()
            .route_inline(ECHO, "echo", |_caller, request, reply| {
                reply.extend(request);
                Ok(())
            })
            .bind(path)?
            .serve()?;
        stopped.readable().await?;
        // Answers what runs, and removes the socket. Of a server that is killed the memory goes with it,
        // and the next one takes the socket's path over.
        server.shutdown().await;
        Ok(())
    })
}
